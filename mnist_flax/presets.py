"""The presets, and what options that are not given are by default."""

import dataclasses
from pathlib import Path

from mnist_flax.config import NAMES, Config

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
    """The options that are not given, of a preset, for a data set and initial weights."""
    config = PRESETS[preset]
    suited = (FOLDER if _is_folder_of_images(dataset) else {}) | (FROM_TRAINED if initial_weights else {})
    left = {name: value for name, value in suited.items() if getattr(config, name) == getattr(Config(), name)}
    return dataclasses.replace(config, **left)


def _is_folder_of_images(dataset: str) -> bool:
    if dataset in NAMES:
        return False
    from mnist_flax.data import arrays  # with NumPy, which nothing else on the way to `--help` needs

    return not arrays.is_there(Path(dataset))


def completed(config: Config, dataset: str, num_train: int, val_size: int) -> Config:
    """`config` with what depends on the data set filled in: its name, epochs, patience, number of held-out images."""
    suited = DEFAULTS_FOR.get(dataset, DEFAULTS)
    if dataset not in NAMES:
        steps = STEPS_FROM_TRAINED if config.initial_weights else STEPS
        epochs = -(-steps // -(-num_train // config.batch_size))
        suited = {"epochs": epochs, "patience": 20} if epochs > DEFAULTS["epochs"] else DEFAULTS
    return dataclasses.replace(
        config,
        dataset=dataset,
        val_size=val_size,
        epochs=suited["epochs"] if config.epochs is None else config.epochs,
        patience=suited["patience"] if config.patience is None else config.patience,
    )
