"""The C++ kernels (`kernels.cc`) as JAX functions with gradients, which XLA calls on a CPU."""

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from mnist_flax.ops.library import load

FUNCTIONS = ("forward", "backward")
PREFIX = "mnist_flax_"

# The library, or why there is none. XLA's register, in which its functions then are, is one for the process too.
outcome: list[ctypes.CDLL | str] = []


def unavailable_reason(keep: bool = True, say: Callable[[str], None] = lambda sentence: None) -> str | None:
    """Load the kernels, compiled if they were not yet; None if they are ready for use, else why they are not.

    `keep` and `say` are those of `library.load`.
    """
    if not outcome:
        outcome.append(load(keep, say))
        if isinstance(outcome[0], ctypes.CDLL):
            for name in FUNCTIONS:
                handler = jax.ffi.pycapsule(getattr(outcome[0], PREFIX + name))
                jax.ffi.register_ffi_target(PREFIX + name, handler, platform="cpu")
    return outcome[0] if isinstance(outcome[0], str) else None


def num_lanes() -> int:
    """The images in a block, once the kernels are loaded."""
    [loaded] = outcome
    assert isinstance(loaded, ctypes.CDLL), loaded
    return getattr(loaded, PREFIX + "lanes")()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockedImages:
    """A batch of images in blocks of as many as a vector has lanes; an image's place in its block is the last axis.

    `kernels.cc` calls a block a pack. What the last block has beyond the batch are numbers without meaning.
    """

    values: Any  # Float[Array, "blocks h w c lanes"], in whose place JAX puts other things as it differentiates
    num_images: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: "Float[Array, 'n h w c'] | BlockedImages") -> "BlockedImages":
        """Images in blocks, or as they are if they are in blocks."""
        if isinstance(images, BlockedImages):
            return images
        (n, *shape), lanes = images.shape, num_lanes()
        blocks = -(-n // lanes)
        images = jnp.pad(images, ((0, blocks * lanes - n), (0, 0), (0, 0), (0, 0)))
        return cls(jnp.moveaxis(images.reshape(blocks, lanes, *shape), 1, -1), n)

    def unblocked(self) -> Float[Array, "n h w c"]:
        """Return the images."""
        images = jnp.moveaxis(self.values, -1, 1)
        return images.reshape(-1, *images.shape[2:])[: self.num_images]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return (self.num_images, *self.values.shape[1:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve(
    x: BlockedImages,
    scaling: Float[Array, "..."],
    kernel: Float[Array, "side side c_in c_out"],
    padding: int,
    pooled: bool = False,
) -> tuple[BlockedImages, Float[Array, "2 c_out"]]:
    """A convolution (cross-correlation) with stride 1, with what comes before it and what the next one needs; float32.

    Args:
        x: the output of the convolution before.
        scaling: (2, c_in), a factor and an offset for each channel, before a ReLU; (0,) if `x` is taken as it is.
        kernel: as `lax.conv_general_dilated` takes it.
        padding: the zeros on each side, fewer than the kernel's side.
        pooled: whether a 2×2 max-pool follows the ReLU.

    Returns:
        The convolution, and for each channel the sums over batch and space of its values and of their squares.
    """
    blocks, *sides, _, lanes = x.values.shape
    length, _, _, c_out = kernel.shape
    sides = [side // (2 if pooled else 1) + 2 * padding - length + 1 for side in sides]
    shapes = [(blocks, *sides, c_out, lanes), (2, c_out)]
    y, sums = _call("forward", x.num_images, padding, pooled, shapes, x.values, scaling, kernel)
    return BlockedImages(y, x.num_images), sums


def _convolve_fwd(x: Any, scaling: Any, kernel: Any, padding: int, pooled: bool) -> tuple[Any, Any]:
    # A first layer's input is an image, whose gradient nobody asks for: it need not be computed then.
    wanted = () if x.values.perturbed or scaling.perturbed else None
    x, scaling, kernel = BlockedImages(x.values.value, x.num_images), scaling.value, kernel.value
    results: Any = convolve(x, scaling, kernel, padding, pooled)
    return results, (x, scaling, kernel, results[0], wanted)


def _convolve_bwd(padding: int, pooled: bool, residuals: Any, cotangents: Any) -> tuple[BlockedImages, Array, Array]:
    x, scaling, kernel, y, wanted = residuals
    d_y, d_sums = (
        jnp.zeros(c.shape) if isinstance(c, SymbolicZero) else c for c in (cotangents[0].values, cotangents[1])
    )
    shapes = [(0,) if wanted is None else x.values.shape, (2, x.shape[-1]), kernel.shape]
    arguments = x.values, scaling, kernel, y.values, d_y, d_sums
    d_x, d_scaling, d_kernel = _call("backward", x.num_images, padding, pooled, shapes, *arguments)
    return (
        BlockedImages(jnp.zeros_like(x.values) if wanted is None else d_x, x.num_images),
        d_scaling if scaling.size else jnp.zeros_like(scaling),
        d_kernel,
    )


convolve.defvjp(_convolve_fwd, _convolve_bwd, symbolic_zeros=True)


def _call(function: str, num_images: int, padding: int, pooled: bool, shapes: Any, *arguments: Array) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    # One replica after the other: each already uses all cores.
    call = jax.ffi.ffi_call(PREFIX + function, results, vmap_method="sequential")
    return call(*arguments, images=np.int64(num_images), padding=np.int64(padding), pooled=pooled)
