"""The operations that each platform computes in its own way: convolution, BatchNorm with ReLU, max-pool, interpolation.

This is what the network and the augmentation call, and the only place where a platform is chosen: `choose` for what a
run says about it, `lax.platform_dependent` for what a program is compiled to. How a platform computes an operation is
in its file, and in `plain.py` if it has no form of its own:

    `native.py`, `kernels.cc`   a CPU with a C++ compiler; `library.py` compiles and loads them
    `cpu.py`                    a CPU by XLA's operations
    `gpu.py`                    GPUs, and what is neither of these
    `tpu.py`                    TPUs

All forms have the values and gradients of the textbook's: `tests/ops/test_ops.py` compares each of them with it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from mnist_flax.errors import UserError
from mnist_flax.ops import cpu, gpu, native, plain, tpu
from mnist_flax.ops.native import BlockedImages

Kernels = Literal["native", "xla"]
Images = Float[Array, "_n _h _w _c"] | BlockedImages  # NHWC, or as the C++ kernels have them


class Choice(NamedTuple):
    """The kernels that a program uses, and why these; "" if they are what was asked for."""

    name: Kernels
    why: str = ""


def choose(
    wanted: Literal["auto", "native", "xla"],
    platform: str,
    keep: bool = True,
    say: Callable[[str], None] = lambda sentence: None,
) -> Choice:
    """The kernels for a platform; "auto" takes the native ones if there are any.

    `keep` and `say` are those of `library.load`.

    Raises:
        UserError: "native" is wanted, and there are none.
    """
    if wanted == "xla" or (wanted == "auto" and platform != "cpu"):
        return Choice("xla")
    on_cpu = platform == "cpu"
    reason = native.unavailable_reason(keep, say) if on_cpu else f"they are for CPUs, and this is a {platform}"
    if reason is None:
        return Choice("native")
    if wanted == "native":
        raise UserError(f"--kernels native: {reason}")
    return Choice("xla", reason)


class PendingBatchNorm(NamedTuple):
    """A BatchNorm and ReLU, max-pooled if `pooled`, that what reads them computes: ReLU(`factor * values + offset`).

    The arithmetic is little; a pass over memory for each of these operations would cost more.

    Attributes:
        values: a convolution's result.
        factor: of each channel.
        offset: of each channel.
        pooled: whether a 2×2 max-pool follows.
    """

    values: Images
    factor: Float[Array, " c"]
    offset: Float[Array, " c"]
    pooled: bool = False

    @property
    def shape(self) -> tuple[Any, ...]:
        """That of the result; in a program for any number of images the first is a symbol."""
        n, height, width, channels = self.values.shape
        return (n, height // 2, width // 2, channels) if self.pooled else (n, height, width, channels)

    def compute(self) -> Float[Array, "n h_out w_out c"]:
        """Compute the result."""
        values = self.values.unblocked() if isinstance(self.values, BlockedImages) else self.values
        y = _activate(values, self.factor, self.offset)
        return max_pool_2x2(y) if self.pooled else y


def computed(tree: Any) -> Any:
    """A tree with the result of each `PendingBatchNorm` in its place."""
    pending = lambda node: isinstance(node, PendingBatchNorm)  # noqa: E731
    return jax.tree.map(lambda node: node.compute() if pending(node) else node, tree, is_leaf=pending)


def convolve(
    x: PendingBatchNorm | Images,
    kernel: Float[Array, "side side c_in c_out"],
    padding: int,
    kernels: Kernels = "xla",
) -> tuple[Images, Float[Array, "2 c_out"]]:
    """The convolution with stride 1, and for each channel the sums over batch and space of it and of its squares.

    `padding` is the number of zeros on each side. `kernels` is what computes them, as in `MNISTNet`.
    """
    if kernels == "native" and kernel.dtype == jnp.float32:
        if not isinstance(x, PendingBatchNorm):
            return native.convolve(BlockedImages.of(x), jnp.zeros(0, jnp.float32), kernel, padding)
        scaling = jnp.stack([x.factor, x.offset])
        return native.convolve(BlockedImages.of(x.values), scaling, kernel, padding, x.pooled)
    y: Any = _convolution(computed(x), kernel, padding)
    return y, lax.platform_dependent(y, cpu=plain.channel_sums, tpu=plain.channel_sums, default=gpu.channel_sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(
    x: Float[Array, "n h w c_in"], kernel: Float[Array, "side side c_in c_out"], padding: int
) -> Float[Array, "n h_out w_out c_out"]:
    on_cpu, on_tpu, on_gpu = (functools.partial(form.convolve, padding=padding) for form in (cpu, tpu, gpu))
    return lax.platform_dependent(x, kernel, cpu=on_cpu, tpu=on_tpu, default=on_gpu)


def _convolution_fwd(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel, padding), (x, kernel)


def _convolution_bwd(padding: int, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    on_cpu, on_tpu, on_gpu = (functools.partial(form.gradients, padding=padding) for form in (cpu, tpu, gpu))
    return lax.platform_dependent(*residuals, d_y, cpu=on_cpu, tpu=on_tpu, default=on_gpu)


_convolution.defvjp(_convolution_fwd, _convolution_bwd)


def _activate(values: Float[Array, "n h w c"], factor: Float[Array, " c"], offset: Float[Array, " c"]) -> Array:
    """The ReLU of `factor * values + offset`."""
    return lax.platform_dependent(values, factor, offset, cpu=plain.activate, tpu=plain.activate, default=gpu.activate)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2×2 max-pool with stride 2 of an even-sized image."""
    return lax.platform_dependent(x, tpu=tpu.max_pool_2x2, default=plain.max_pool_2x2)


def interpolate(
    images: UInt8[Array, "n h w"], rows: Float[Array, "n h_out w_out"], columns: Float[Array, "n h_out w_out"]
) -> Float[Array, "n h_out w_out"]:
    """The bilinear value of each image at positions (row, column), zero outside the image; float32 in 0..255."""
    return lax.platform_dependent(images, rows, columns, tpu=tpu.interpolate, default=plain.interpolate)


def materialize(tree: Any) -> Any:
    """The same arrays, which a CPU computes before what reads them.

    Read in the warp itself, number by number for every pixel, an epoch's distortions take a CPU 8 % of a step.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda x: x)
