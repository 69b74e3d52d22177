"""A run's options as two frozen dataclasses: those asked for (`Config`), and those it is trained with.

The command line of `train` is made from the first. `presets.resolve` makes the second of it, once the data are loaded.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import simple_parsing

from mnist_flax.errors import UserError
from mnist_flax.files import expanded

DATASETS = ("mnist", "fashion_mnist", "kmnist", "digits")
NAMES = ("auto", *DATASETS)  # of data sets; what else --dataset is given is a folder or a file
PATHS = ("workdir", "dataset", "data_dir", "initial_weights", "teacher")  # options that are paths, or may be


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the 12,534-parameter network; run the same command again to resume."""

    preset: Literal["default", "best", "speedrun", "reference"] = "default"
    """'default': 10 epochs. 'best': 50. 'speedrun': 2. 'reference': a PyTorch recipe reproduced exactly (trains on all
    60,000 images, selects on the test set, stops at an accuracy of 0.994)."""

    workdir: Path = Path("runs/mnist_training")
    """Run directory: checkpoints, TensorBoard events, config.json, metrics.jsonl, summary.json."""

    dataset: str = "auto"
    """'mnist', 'fashion_mnist', 'kmnist', 'digits'; a folder with a folder of images for each class; a .csv, .arff or
    .npz file; or a folder of IDX files. 'auto' is MNIST if it is on disk or can be downloaded, else 'digits'."""

    data_dir: Path | None = None
    """TFDS data directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    epochs: int | None = None
    """Passes over the training images. Default: 10; 60 for 'digits'; by its size for a folder."""

    batch_size: int = 64
    """Images per step, over all devices. Default: 16 for a folder."""

    max_lr: float = 0.01
    """Peak learning rate of the one-cycle schedule. Default: 0.003 from trained weights."""

    initial_weights: str | None = None
    """Start from trained weights: 'pretrained' (the shipped ones), a run directory, or a safetensors file."""

    teacher: str | None = None
    """Train towards the mean answer of trained networks: all seeds of a run directory, a file's, or 'pretrained'."""

    val_size: int | None = None
    """Training images held out to select on. Default: one twelfth. 0 trains on all and selects on the test set."""

    seed: int = 0
    """Fixes initial weights, order and augmentation. The held-out images are the same for every seed."""

    num_seeds: int = 1
    """Train this many networks at once, with seeds from --seed on, and report mean, spread and ensemble."""

    optimizer: Literal["adam", "muon"] = "muon"
    """'muon': convolution kernels by Muon, the rest by Adam. Both optimizers have a one-cycle learning rate."""

    rotation: float = 18.0
    """Augmentation: rotate by up to this many degrees either way."""

    translation: float = 0.1
    """Augmentation: shift by up to this fraction of the side either way."""

    scale_min: float = 0.8
    """Augmentation: smallest magnification."""

    scale_max: float = 1.2
    """Augmentation: largest magnification."""

    blur: float = 0.0
    """Augmentation: blur by a Gaussian filter of up to this standard deviation in pixels."""

    gamma: float = 0.0
    """Augmentation: raise grey levels, from 0 to 1, to a power between e^-gamma and e^gamma."""

    augmentation_fade: float = 1.0
    """Fraction of the run, at its end, over which augmentation, except blur and gamma, fades linearly to nothing."""

    label_smoothing: float = 0.0
    """Probability mass spread evenly over the classes. Default: 0.1 for a folder."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; larger ones are scaled down to it."""

    patience: int | None = None
    """Stop after this many epochs without a better validation accuracy; 0: never. Default: 5; 'digits', folders: 20."""

    target_accuracy: float | None = None
    """Stop once validation accuracy, as a fraction, reaches this."""

    num_devices: int | None = None
    """Devices to spread each batch over. Default: as many as divide the batch; a CPU is one."""

    kernels: Literal["auto", "native", "xla"] = "auto"
    """What computes convolutions: 'native' C++ for CPUs, or 'xla'. 'auto': 'native' on a CPU with a C++ compiler."""

    distributed: bool = simple_parsing.field(default=False, action="store_true")
    """Join the other processes of a TPU pod, Slurm, Kubernetes or MPI job (jax.distributed.initialize)."""

    no_compilation_cache: bool = simple_parsing.field(default=False, action="store_true")
    """Do not keep XLA's programs for the next run (in $JAX_COMPILATION_CACHE_DIR, else ~/.cache/mnist_flax)."""

    no_report: bool = simple_parsing.field(default=False, action="store_true")
    """Do not draw `report/report.html` at the end."""

    checkpoint_every_seconds: float = 60.0
    """Longest time between checkpoints, also within an epoch: a killed run loses no more than that."""

    debug_nans: bool = simple_parsing.field(default=False, action="store_true")
    """If a loss or gradient is not finite, repeat the step operation by operation and name the one that caused it."""

    overwrite: bool = simple_parsing.field(default=False, action="store_true")
    """Delete what an earlier run left in the run directory and start afresh."""

    def __post_init__(self) -> None:
        """Expand the paths, wherever they come from: the command line, a config.json, Python."""
        for name in PATHS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, type(value)(expanded(str(value))))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_json`. A missing option has its default; one of another version is ignored.

        Raises:
            UserError: a value is not of its option's type.
        """
        hints = get_type_hints(cls)
        return cls(**{name: _value(name, values[name], hint) for name, hint in hints.items() if name in values})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """The options that a run is trained with: what depends on its data set is filled in. `presets.resolve` makes it."""

    epochs: int  # pyright: ignore[reportGeneralTypeIssues] - no default, unlike there
    val_size: int  # pyright: ignore[reportGeneralTypeIssues]
    patience: int  # pyright: ignore[reportGeneralTypeIssues]


def _value(name: str, value: Any, hint: Any) -> Any:
    """An option's value from what JSON has."""
    if not _fits(value, hint):
        raise UserError(f"{name} is {json.dumps(value)[:50]}; {_expected(hint)} was expected")
    if isinstance(value, str) and hint in (Path, Path | None):
        return Path(value)
    return float(value) if type(value) is int and hint in (float, float | None) else value


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


_NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "null"}


def _expected(hint: Any) -> str:
    """What a value of an option's type is, in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(json.dumps, get_args(hint)))
    if get_origin(hint) is UnionType:
        return " or ".join(map(_expected, get_args(hint)))
    return _NOUNS[hint]


def validate(config: Config) -> None:
    """Refuse values that make no sense, before anything is loaded.

    Raises:
        UserError: naming the first such option.
    """
    target = config.target_accuracy
    rules: list[tuple[str, bool, str]] = [
        ("epochs", config.epochs is None or config.epochs >= 1, "at least 1"),
        ("batch_size", config.batch_size >= 1, "at least 1"),
        ("max_lr", math.isfinite(config.max_lr) and config.max_lr > 0, "a positive number"),
        ("val_size", config.val_size is None or config.val_size >= 0, "0 or more"),
        ("seed", 0 <= config.seed < 2**32, "between 0 and 2**32 - 1"),
        ("num_seeds", 1 <= config.num_seeds <= 2**32 - config.seed, "at least 1, and no seed above 2**32 - 1"),
        ("rotation", 0 <= config.rotation <= 180, "between 0 and 180 degrees"),
        ("translation", 0 <= config.translation <= 1, "between 0 and 1 (a fraction of the side)"),
        ("scale_min", 0 < config.scale_min <= config.scale_max, "positive and not above --scale-max"),
        ("scale_max", math.isfinite(config.scale_max) and config.scale_max <= 10, "at most 10"),
        ("blur", 0 <= config.blur <= 1.5, "between 0 and 1.5 pixels"),
        ("gamma", 0 <= config.gamma <= 2, "between 0 and 2"),
        ("augmentation_fade", 0 <= config.augmentation_fade <= 1, "between 0 and 1 (a fraction of the run)"),
        ("label_smoothing", 0 <= config.label_smoothing < 1, "at least 0 and below 1"),
        ("clip_norm", config.clip_norm > 0, "a positive number"),
        ("patience", config.patience is None or config.patience >= 0, "0 or more"),
        ("target_accuracy", target is None or 0 < target <= 1, "a fraction, e.g. 0.994"),
        ("checkpoint_every_seconds", config.checkpoint_every_seconds > 0, "a positive number"),
        ("num_devices", config.num_devices is None or config.num_devices >= 1, "at least 1"),
    ]
    for name, valid, requirement in rules:
        if not valid:
            raise UserError(f"{flag(name)} is {getattr(config, name)}; it must be {requirement}")


def require_dataset(name: str) -> None:
    """Refuse what is neither the name of a data set nor on disk; apart from `validate`, for data may have moved.

    Raises:
        UserError: it is neither.
    """
    if name not in NAMES and not Path(name).exists():
        raise UserError(f"{name} is neither a file or folder here nor one of the data sets {', '.join(NAMES)}")


def located(dataset: str) -> str:
    """`--dataset` as a run keeps it: a path is absolute, for the next command may be given in another directory."""
    return dataset if dataset in NAMES else os.path.abspath(dataset)


# Options that say where and how a run is computed: it may be resumed with others. Two runs that differ only in these
# compute the same, but for rounding: with other `kernels` or `num_devices` sums have another order, and other bits.
EXECUTION_OPTIONS = {
    *("workdir", "data_dir", "num_devices", "distributed", "no_compilation_cache", "no_report", "overwrite"),
    *("checkpoint_every_seconds", "debug_nans", "kernels"),
}


def flag(name: str) -> str:
    """An option as the command line has it: "batch_size" is `--batch-size`."""
    return "--" + name.replace("_", "-")
