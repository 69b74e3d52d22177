"""The presets, and the values of options that are not given."""

import dataclasses
from pathlib import Path

from mnist_flax.config import NAMES, Config, ResolvedConfig
from mnist_flax.errors import UserError

PRESETS = {
    "default": Config(),
    "best": Config(preset="best", epochs=50, patience=0),
    "speedrun": Config(
        preset="speedrun",
        epochs=2,
        max_lr=0.02,
        rotation=10.0,
        translation=0.07,
        scale_min=0.9,
        scale_max=1.1,
        label_smoothing=0.1,
    ),
    "reference": Config(
        preset="reference",
        batch_size=124,
        optimizer="adam",
        augmentation_fade=0.0,
        label_smoothing=0.1,
        val_size=0,
        target_accuracy=0.994,
    ),
}

# Epochs and patience where they are not given. 1,319 training images take more epochs, and 119 validation images tell
# them apart less often.
DEFAULTS = {"epochs": 10, "patience": 5}
DEFAULTS_FOR = {"digits": {"epochs": 60, "patience": 20}}
# A folder has few images: as many steps are more epochs, of small batches; trained weights need fewer and smaller ones.
# Its learning rate and steps were chosen with label smoothing (docs/own-digits.md).
FOLDER, FROM_TRAINED = {"batch_size": 16, "label_smoothing": 0.1}, {"max_lr": 0.003}
STEPS, STEPS_FROM_TRAINED = 1500, 600


def defaults(preset: str, dataset: str, initial_weights: str | None) -> Config:
    """The values of options that are not given, by preset, data set and initial weights."""
    config = PRESETS[preset]
    suited = (FOLDER if _is_folder_of_images(dataset) else {}) | (FROM_TRAINED if initial_weights else {})
    left = {name: value for name, value in suited.items() if getattr(config, name) == getattr(Config(), name)}
    return dataclasses.replace(config, **left)


def _is_folder_of_images(dataset: str) -> bool:
    if dataset in NAMES:
        return False
    from mnist_flax.data import arrays  # with NumPy, which nothing else on the way to `--help` needs

    return not arrays.is_there(Path(dataset))


def resolve(config: Config, dataset: str, num_train: int, num_held_out: int) -> ResolvedConfig:
    """The options that a run is trained with, on a data set of this name and size.

    Raises:
        UserError: a batch is larger than the training set, or there are more steps than can be counted.
    """
    suited = DEFAULTS_FOR.get(dataset, DEFAULTS)
    if dataset not in NAMES:
        steps = STEPS_FROM_TRAINED if config.initial_weights else STEPS
        epochs = -(-steps // -(-num_train // config.batch_size))
        suited = {"epochs": epochs, "patience": 20} if epochs > DEFAULTS["epochs"] else DEFAULTS
    given = {name: value for name, value in vars(config).items() if value is not None}
    resolved = ResolvedConfig(**{**suited, **given, "dataset": dataset, "val_size": num_held_out})
    _require_countable(resolved, num_train)
    return resolved


def _require_countable(config: ResolvedConfig, num_train: int) -> None:
    """Refuse a batch larger than the training set, and more steps than are counted.

    A batch of the default size is filled up however few images there are.
    """
    most = max(num_train, Config.batch_size)
    if config.batch_size > most:
        raise UserError(
            f"--batch-size {config.batch_size:,} is more than the {num_train:,} training images of {config.dataset}; "
            f"it may be {most:,} at most"
        )
    steps_per_epoch = -(-num_train // config.batch_size)
    most = (2**31 - 1) // steps_per_epoch
    if config.epochs > most:
        raise UserError(
            f"--epochs {config.epochs:,} of {steps_per_epoch:,} steps are more steps than 32 bits can count; they may "
            f"be {most:,} at most"
        )
