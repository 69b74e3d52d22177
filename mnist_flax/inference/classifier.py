"""A trained network ready for use: `load(path).predict(images)`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from numpy.typing import ArrayLike

from mnist_flax import ops
from mnist_flax.data import NUM_CLASSES, Dataset, Normalization
from mnist_flax.data.images import as_images
from mnist_flax.errors import UserError
from mnist_flax.inference import weights
from mnist_flax.inference.card import Card
from mnist_flax.inference.ood import BLOCKS, Features, MahalanobisStatistics, distances
from mnist_flax.model import MNISTNet
from mnist_flax.training.devices import devices, usual_modes
from mnist_flax.training.mesh import FAST_COMPILE, compile_for_one_device

# Programs are compiled for these numbers of images, and others are filled up: to compile one takes a second or two.
# Larger batches fall out of a CPU's caches: 10,000 images take 1.2 to 1.6 times as long in batches of 1,000.
BATCHES = (8, 32, 250)
PRETRAINED = Path(__file__).with_name("pretrained.safetensors")


class Classifier:
    """A network with the normalisation and class names it was trained with.

    Attributes:
        model: the Flax module.
        variables: `{"params", "batch_stats"}`, what `model.apply` takes.
        normalization: what turns images in 0..255 into the model's input.
        class_names: by label.
        card: what is known about it: data set, configuration, accuracies.
        temperature: the logits are divided by it, so that probabilities are calibrated; 1 if it was never fitted.
        reference: the statistics that `novelty` is computed from; None if they were never fitted.
    """

    def __init__(self, variables: dict[str, Any], card: Card, reference: MahalanobisStatistics | None = None) -> None:
        self.variables, self.card, self.reference = variables, card, reference
        self.normalization = Normalization(**card["normalization"])
        self.temperature: float = card.get("temperature", 1.0)
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        self.model = MNISTNet(num_classes=len(self.class_names))
        self._kind = self.normalization, len(self.class_names)  # what its compiled programs depend on

    def was_trained_on(self, dataset: Dataset) -> bool:
        """Whether a data set, wherever it is now, has the network's classes and the moments of its training images."""
        return (self.class_names, self.normalization) == (dataset.class_names, dataset.normalization)

    @functools.cached_property
    def _placed(self) -> Any:
        """The variables on the device, so that calls need not bring them there."""
        return jax.device_put(self.variables)

    def predict(
        self, images: ArrayLike, *, shifts: int = 0
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n classes"]]:
        """Labels and probabilities of images, light ink on a dark ground; of one image they have one row.

        Args:
            images: one or several, as `as_images` takes them. So do all methods.
            shifts: the probabilities are means over the image moved by up to that many pixels each way.

        Raises:
            UserError: the images are of another size, or their grey levels could mean two things.
        """
        probabilities = np.exp(self.log_probabilities(images, shifts=shifts))
        return probabilities.argmax(-1), probabilities

    @usual_modes()
    def log_probabilities(self, images: ArrayLike, *, shifts: int = 0) -> Float[np.ndarray, "n classes"]:
        """Natural logarithms of the probabilities that `predict` returns."""
        # Fewer images at a time with shifts, so that they take about the same memory.
        most = -(-BATCHES[-1] // (2 * shifts + 1) ** 2)
        compiled = functools.partial(compiled_log_probabilities(*self._kind), self._placed, self.temperature)
        return _in_batches(functools.partial(compiled, shifts=shifts), images, most)

    def novelty(self, images: ArrayLike) -> Float[np.ndarray, " n"] | None:
        """The out-of-distribution score of each image; 99.5 % of held-out images score at most 1.

        The images have to be in MNIST's geometry, as `reading.drawing.draw` makes them: blur alone raises the score.
        None if the network has no `reference`.
        """
        return None if self.reference is None else distances(self.reference, self.features(images))

    def features(self, images: ArrayLike) -> Features:
        """What the out-of-distribution score is computed from: the later blocks' outputs, averaged over the image."""
        return self.outputs(images)[1]

    @usual_modes()
    def outputs(self, images: ArrayLike) -> tuple[Float[np.ndarray, "n classes"], Features]:
        """What `log_probabilities` and `features` return, in one pass through the network."""
        compiled = functools.partial(_compiled_outputs(*self._kind), self._placed, self.temperature)
        log_probabilities, features = np.split(_in_batches(compiled, images), [len(self.class_names)], axis=-1)
        return log_probabilities, features

    def judge(self, images: ArrayLike) -> tuple[Float[np.ndarray, "n classes"], Float[np.ndarray, " n"] | None]:
        """The probabilities that `predict` returns and the scores of `novelty`, in one pass through the network."""
        log_probabilities, features = self.outputs(images)
        return np.exp(log_probabilities), None if self.reference is None else distances(self.reference, features)

    @usual_modes()
    def activations(self, images: ArrayLike) -> dict[str, Float[np.ndarray, "n h w c"]]:
        """The output of each block of the network, by the block's name."""
        return jax.device_get(_compiled_activations(*self._kind)(self._placed, as_images(images)))


# Networks of one normalisation and number of classes, such as a run's seeds, share their compiled programs.
@functools.cache
def compiled_log_probabilities(
    normalization: Normalization, num_classes: int = NUM_CLASSES, platform: str | None = None
) -> Any:
    """The program behind `Classifier.predict`; `platform` as in `compile_for_one_device`."""

    def log_probabilities(variables: Any, temperature: Float[Array, ""], images: Array, *, shifts: int) -> Array:
        steps = range(-shifts, shifts + 1)
        moved = jnp.concatenate([_shift(images, down, right) for down in steps for right in steps])
        logits: Any = MNISTNet(num_classes=num_classes).apply(variables, normalization(moved))
        each = jax.nn.log_softmax(logits / temperature).reshape(len(steps) ** 2, *images.shape[:1], -1)
        return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))

    return compile_for_one_device(log_probabilities, platform=platform, static_argnames="shifts")


@functools.cache
def _compiled_activations(normalization: Normalization, num_classes: int) -> Callable[..., dict[str, Array]]:
    def outputs(variables: Any, images: Array) -> dict[str, Array]:
        return _run(normalization, num_classes, variables, images)[1]

    return jax.jit(outputs, compiler_options=FAST_COMPILE)  # for pictures: of a few images, and they are waited for


@functools.cache
def _compiled_outputs(normalization: Normalization, num_classes: int) -> Callable[..., Array]:
    def outputs(variables: Any, temperature: Float[Array, ""], images: Array) -> Array:
        logits, blocks = _run(normalization, num_classes, variables, images)
        features = [blocks[name].mean((1, 2)) for name in BLOCKS]
        return jnp.concatenate([jax.nn.log_softmax(logits / temperature), *features], axis=-1)

    return compile_for_one_device(outputs)


def _run(
    normalization: Normalization, num_classes: int, variables: Any, images: UInt8[Array, "n 28 28"]
) -> tuple[Float[Array, "n classes"], dict[str, Array]]:
    """The logits, and the outputs of all blocks by name."""
    model = MNISTNet(num_classes=num_classes)
    logits, state = model.apply(variables, normalization(images), capture_intermediates=True)
    intermediates: Any = ops.computed(state["intermediates"])
    return logits, {name: node["__call__"][0] for name, node in intermediates.items() if isinstance(node, dict)}


def _in_batches(function: Callable[..., Array], images: ArrayLike, most: int = BATCHES[-1]) -> np.ndarray:
    """Apply `function` to images in batches: of the smallest of `BATCHES` that holds them all, else of `most`."""
    images = as_images(images)
    size = next((size for size in BATCHES if len(images) <= size <= most), most)
    padded = np.pad(images, ((0, -len(images) % size if len(images) else size), (0, 0), (0, 0)))
    results = [np.asarray(function(padded[start : start + size])) for start in range(0, len(padded), size)]
    return np.concatenate(results)[: len(images)]


def _shift(images: UInt8[Array, "n h w"], down: int, right: int) -> UInt8[Array, "n h w"]:
    """Images moved by whole pixels; zeros fill the gap."""
    height, width = images.shape[1:]
    size = max(abs(down), abs(right))
    padded = jnp.pad(images, ((0, 0), (size, size), (size, size)))
    return padded[:, size - down : size - down + height, size - right : size - right + width]


@usual_modes()
def load(path: str | Path | None = None) -> Classifier:
    """The classifier in a run directory, in a checkpoint of it or in a safetensors file; by default the shipped one.

    Of a run it is the best network; `best/42` is that very checkpoint, and `last` the network as the run left it.

    Raises:
        UserError: there is none, or it cannot be read, or there is no device such as the environment asks for.
    """
    devices()
    if path is None:
        return Classifier(*weights.load(PRETRAINED))
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run directory, a checkpoint in it or a safetensors file")
    if path.is_dir():
        return Classifier(*weights.load_run(path))
    return Classifier(*weights.load(path))


def load_pretrained() -> tuple[MNISTNet, dict[str, Any], Normalization]:
    """The shipped network as `(model, variables, normalization)`.

    `model.apply(variables, normalization(as_images(images)))` maps images to logits `(n, 10)`. The normalisation itself
    takes every number for a grey level in 0..255.
    """
    network = load()
    return network.model, network.variables, network.normalization
