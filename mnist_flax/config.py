"""A run's options: one frozen dataclass, its presets, and the command line made from it."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import simple_parsing

from mnist_flax.errors import ArgumentParser, UserError

DATASETS = ("mnist", "fashion_mnist", "kmnist", "digits")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the 12,534-parameter network; run the same command again to resume."""

    preset: Literal["default", "best", "speedrun", "reference"] = "default"
    """'default': 10 epochs. 'best': the most accurate, 30 epochs. 'speedrun': 3 epochs. 'reference': the original's
    recipe and protocol to the letter (trains on all 60,000 images, selects on the test set, stops at an accuracy of
    0.994)."""

    workdir: Path = Path("runs/mnist_training")
    """Run directory: checkpoints, TensorBoard events, config.json, metrics.jsonl, summary.json."""

    dataset: Literal["auto", "mnist", "fashion_mnist", "kmnist", "digits"] = "auto"
    """'auto' is MNIST if it is on disk or can be downloaded, else 'digits', which ships with scikit-learn."""

    data_dir: Path | None = None
    """TFDS data directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    epochs: int | None = None
    """Passes over the training images. Default: 10; 60 for 'digits'."""

    batch_size: int = 64
    """Images per step, over all devices."""

    max_lr: float = 0.01
    """Peak learning rate of the one-cycle schedule."""

    val_size: int | None = None
    """Training images held out to select the model on. Default: one twelfth. 0 trains on all of them and selects on
    the test set."""

    seed: int = 0
    """Fixes initial weights, order and augmentation. The held-out images are the same for every seed."""

    num_seeds: int = 1
    """Train this many networks at once, with seeds from --seed on, and report mean, spread and ensemble."""

    optimizer: Literal["adam", "muon"] = "muon"
    """Both with a one-cycle learning rate; Muon trains convolution kernels, and Adam the rest."""

    weight_decay: float = 0.02
    """Decoupled weight decay, times the learning rate; for Muon of the convolution kernels only."""

    rotation: float = 18.0
    """Augmentation: rotate by up to this many degrees either way."""

    translation: float = 0.1
    """Augmentation: shift by up to this fraction of the side either way."""

    scale_min: float = 0.8
    """Augmentation: smallest magnification."""

    scale_max: float = 1.2
    """Augmentation: largest magnification."""

    stretch: float = 0.15
    """Augmentation: make higher and narrower, or the reverse, by up to this fraction."""

    slant: float = 0.15
    """Augmentation: slant by up to this tangent either way."""

    augmentation_fade: float = 1.0
    """Fraction of the run, at its end, over which augmentation fades linearly to nothing."""

    label_smoothing: float = 0.1
    """Probability mass spread evenly over the classes."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; larger ones are scaled down to it."""

    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy; 0 never stops early. Default: 5; 20 for
    'digits'."""

    target_accuracy: float | None = None
    """Stop once validation accuracy, as a fraction, reaches this."""

    num_devices: int | None = None
    """Devices to spread each batch over. Default: as many as divide the batch, but CPU cores, which count as devices,
    only for a replica or 48 images each."""

    distributed: bool = simple_parsing.field(default=False, action="store_true")
    """Join the other processes of a TPU pod, Slurm or MPI job (jax.distributed.initialize)."""

    no_compilation_cache: bool = simple_parsing.field(default=False, action="store_true")
    """Compile anew instead of keeping XLA's programs in the user's cache directory ($JAX_COMPILATION_CACHE_DIR, else
    $XDG_CACHE_HOME/mnist_flax, else ~/.cache/mnist_flax)."""

    no_report: bool = simple_parsing.field(default=False, action="store_true")
    """Do not draw `report/report.html` at the end."""

    checkpoint_every_seconds: float = 60.0
    """Also checkpoint within an epoch, this long after the last checkpoint; what is killed loses no more."""

    debug_nans: bool = simple_parsing.field(default=False, action="store_true")
    """When a loss or gradient is not finite, repeat the step operation by operation and say which one it was."""

    overwrite: bool = simple_parsing.field(default=False, action="store_true")
    """Delete what an earlier run left in the run directory and start afresh."""

    def validate(self) -> None:
        """Refuse values that make no sense, before anything is loaded.

        Raises:
            UserError: naming the first such option.
        """
        rules: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs is None or self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("max_lr", math.isfinite(self.max_lr) and self.max_lr > 0, "a positive number"),
            ("val_size", self.val_size is None or self.val_size >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1"),
            ("num_seeds", 1 <= self.num_seeds <= 2**32 - self.seed, "at least 1, and no seed above 2**32 - 1"),
            ("rotation", 0 <= self.rotation <= 180, "between 0 and 180 degrees"),
            ("translation", 0 <= self.translation <= 1, "between 0 and 1 (a fraction of the side)"),
            ("scale_min", 0 < self.scale_min <= self.scale_max, "positive and not above --scale-max"),
            ("scale_max", math.isfinite(self.scale_max) and self.scale_max <= 10, "at most 10"),
            ("stretch", 0 <= self.stretch < 1, "at least 0 and below 1"),
            ("slant", 0 <= self.slant <= 2, "between 0 and 2"),
            ("augmentation_fade", 0 <= self.augmentation_fade <= 1, "between 0 and 1 (a fraction of the run)"),
            ("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("clip_norm", self.clip_norm > 0, "a positive number"),
            ("patience", self.patience is None or self.patience >= 0, "0 or more"),
            (
                "target_accuracy",
                self.target_accuracy is None or 0 < self.target_accuracy <= 1,
                "a fraction, e.g. 0.994",
            ),
            ("checkpoint_every_seconds", self.checkpoint_every_seconds > 0, "a positive number"),
            ("num_devices", self.num_devices is None or self.num_devices >= 1, "at least 1"),
        ]
        for name, valid, requirement in rules:
            if not valid:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}; it must be {requirement}")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`; what is missing has its default, what another version wrote beside it is ignored.

        Raises:
            UserError: a value is not of its option's type.
        """
        arguments: dict[str, Any] = {}
        for name, hint in get_type_hints(cls).items():
            if name in values:
                if not _fits(values[name], hint):
                    raise UserError(f"{name} is {json.dumps(values[name])[:50]}, which it cannot be")
                value = values[name]
                arguments[name] = Path(value) if isinstance(value, str) and hint in (Path, Path | None) else value
        return cls(**arguments)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is one of the option type `hint`."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is Path:
        return isinstance(value, str) and "\0" not in value
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


PRESETS = {
    "default": Config(),
    "best": Config(preset="best", epochs=30, patience=0),
    "speedrun": Config(preset="speedrun", epochs=3, max_lr=0.02, patience=0),
    "reference": Config(
        preset="reference",
        batch_size=124,
        optimizer="adam",
        weight_decay=0.0,
        stretch=0.0,
        slant=0.0,
        augmentation_fade=0.0,
        val_size=0,
        target_accuracy=0.994,
    ),
}

# What may change between the runs that share a run directory: where things are, not what is computed.
_NOT_COMPARED = {"workdir", "data_dir", "num_devices", "distributed", "no_compilation_cache"}
_NOT_COMPARED |= {"no_report", "overwrite", "checkpoint_every_seconds", "debug_nans"}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_PROGRAM = "python -m mnist_flax.train"


def arguments(config: Config) -> list[str]:
    """The options that make `config` anew: the preset, and what differs from it, but not where things are."""
    current, preset = config.to_json(), PRESETS[config.preset].to_json()
    names = [name for name in current if name not in _NOT_COMPARED and current[name] != preset[name]]
    if config.preset != "default":
        names.insert(0, "preset")
    return [part for name in names for part in (_flag(name), str(current[name]))]


class _TrainParser(ArgumentParser, simple_parsing.ArgumentParser):
    """Options from a dataclass, mistakes in one sentence."""


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The command line as a validated `Config`; a preset, or a run's config.json, gives the other flags' defaults."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = _TrainParser(prog=_PROGRAM, add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="default")
    first.add_argument("--config", type=Path)
    chosen, _ = first.parse_known_args(arguments)
    defaults = PRESETS.get(chosen.preset, PRESETS["default"])
    if chosen.config is not None:
        defaults = read(chosen.config)
    parser = _TrainParser(
        prog=_PROGRAM,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
        allow_abbrev=False,
        epilog=f"example: {_PROGRAM} --preset best --num-seeds 3 --workdir runs/best",
    )
    parser.add_argument("--config", dest="file", type=Path, help="repeat the run whose config.json this is")
    parser.add_arguments(Config, dest="config", default=defaults)
    config = parser.parse_args(arguments).config
    config.validate()
    return config


def read(path: Path) -> Config:
    """The configuration in a run's config.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(Config)})
        if unknown:
            raise ValueError(f"there is no option {json.dumps(unknown[0])[:50]}")
        return Config.from_json(values)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"--config {path} is not a run's config.json ({error})") from error


def refuse_changes(stored: dict[str, Any], config: Config) -> None:
    """Hold a resuming run to the configuration its run directory was started with.

    Raises:
        UserError: something that is computed differs; the message lists every difference.
    """
    current = config.to_json()
    names = sorted((set(stored) | set(current)) - _NOT_COMPARED)
    changed = [
        f"{_flag(name)} was {json.dumps(stored.get(name))}, is now {json.dumps(current.get(name))}"
        for name in names
        if stored.get(name) != current.get(name)
    ]
    if changed:
        raise UserError(
            f"{config.workdir} belongs to a run with another configuration ({'; '.join(changed)}): repeat that run's "
            "options to resume it, choose another --workdir, or pass --overwrite to delete it and start afresh"
        )
