"""Data sets in memory: `load(name, data_dir, val_size)` returns a `Dataset` of uint8 arrays."""

from mnist_flax.data.dataset import Dataset, load
from mnist_flax.data.examples import Examples, Normalization
from mnist_flax.data.geometry import NUM_CLASSES, SIDE
from mnist_flax.data.tfds_files import DataUnavailableError

__all__ = [
    "NUM_CLASSES",
    "SIDE",
    "DataUnavailableError",
    "Dataset",
    "Examples",
    "Normalization",
    "load",
]
