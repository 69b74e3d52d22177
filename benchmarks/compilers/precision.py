"""`python -m benchmarks.compilers.precision`: what a network says if products round their operands, in Markdown.

Accelerators do so, and a CPU can imitate it: each convolution's inputs and kernel are rounded before they are
multiplied in float32. The images are MNIST's test images, and drawings that are no digits.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from benchmarks.common import markdown, parser_of
from benchmarks.reading.synthetic.drawings import frames, polygons, scribbles, stripes
from mnist_flax import data, ops
from mnist_flax.cli import command
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier
from mnist_flax.inference.ood import BLOCKS, distances
from mnist_flax.model import Conv
from mnist_flax.reading.drawing import draw

FRACTION_BITS = {"bfloat16": 7, "TF32": 10}
FLOAT32 = 23
DRAWINGS = (scribbles, polygons, frames, stripes)
BATCH = 250


def rounded(tree: Any, bits: int) -> Any:
    """Every float32 number with so many bits of fraction."""
    return jax.tree.map(lambda x: lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits), tree)


def outputs(network: classifier.Classifier, images: UInt8[np.ndarray, "n 28 28"], bits: int) -> list[np.ndarray]:
    """Probabilities and out-of-distribution scores with operands of so many bits of fraction.

    Raises:
        UserError: the network has no such score.
    """

    def with_rounded_operands(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Each convolution's inputs and kernel, before it is called."""
        if not isinstance(context.module, Conv | nn.Conv) or context.method_name != "__call__":
            return following(*args, **kwargs)
        return following(*rounded(ops.computed(args), bits), **kwargs)

    @jax.jit
    def run(variables: Any, batch: UInt8[Array, "n 28 28"]) -> tuple[Float[Array, "n classes"], Float[Array, "n f"]]:
        kernels = jax.tree_util.tree_map_with_path(
            lambda path, x: rounded(x, bits) if path[-1].key == "kernel" else x, variables
        )
        with nn.intercept_methods(with_rounded_operands):
            logits, state = network.model.apply(kernels, network.normalization(batch), capture_intermediates=True)
        blocks = ops.computed(state["intermediates"])
        features = [blocks[name]["__call__"][0].mean((1, 2)) for name in BLOCKS]
        return jax.nn.softmax(logits / network.temperature), jnp.concatenate(features, axis=-1)

    batches = [run(network.variables, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    probabilities, features = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    if network.reference is None:
        raise UserError(
            "the network has no reference for its out-of-distribution score; name a run that held images out"
        )
    return [probabilities, distances(network.reference, features)]


@functools.cache
def drawings(each: int) -> UInt8[np.ndarray, "n 28 28"]:
    """So many of each kind, drawn as MNIST would."""
    return np.stack([draw(1 - kind(np.random.RandomState(seed))) for kind in DRAWINGS for seed in range(each)])


def table(network: classifier.Classifier, digits: UInt8[np.ndarray, "n 28 28"], each: int) -> str:
    """What changes against float32."""
    strange = drawings(each)
    images = np.concatenate([digits, strange])
    exact, scores = outputs(network, images, FLOAT32)
    head = "operands", "test labels that change", "largest change of a probability", "of an out-of-distribution score"
    rows = []
    for name, bits in FRACTION_BITS.items():
        probabilities, moved = outputs(network, images, bits)
        labels = (probabilities.argmax(-1) != exact.argmax(-1))[: len(digits)]
        crossing = ((scores > 1) != (moved > 1))[len(digits) :]
        changes = np.abs(probabilities - exact).max(), np.abs(moved - scores).max()
        counts = f"{labels.sum()} of {len(digits):,}", f"{crossing.sum()} of {len(strange):,}"
        rows.append([name, counts[0], *(f"{change:.2g}" for change in changes), counts[1]])
    return markdown((*head, "drawings whose score crosses 1"), rows)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_checkpoint()
    parser.add_data_dir()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    digits = data.load("mnist", options.data_dir, 0).test.images
    print(table(classifier.load(options.checkpoint), digits, each=300))


if __name__ == "__main__":
    main()
