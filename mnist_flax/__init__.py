"""A 12,534-parameter MNIST classifier in JAX: train, measure, use.

`python -m mnist_flax.train` trains one; `mnist_flax.load(path).predict(images)` uses it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_flax.data.images import as_images
    from mnist_flax.inference.classifier import Classifier, load, load_pretrained

    __version__: str

__all__ = ["Classifier", "__version__", "as_images", "load", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `--help` is to be answered at once, and JAX takes a second."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mnist-flax")
    if name in __all__:
        from mnist_flax.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
