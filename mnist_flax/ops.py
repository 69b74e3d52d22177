"""The operations that XLA's CPU backend needs help with: convolution, max-pool, sums for BatchNorm.

Each has the values and gradients of its plain formulation, against which `tests/test_ops.py` tests it; only the
operations that XLA is given differ. They are used on every platform.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnist_flax import bands
from mnist_flax.kernels import Kernels, native
from mnist_flax.kernels.native import Packs

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Images = Float[Array, "_n _h _w _c"] | Packs  # NHWC, or as the C++ kernels have them


class Deferred(NamedTuple):
    """The ReLU of `factor * values + offset` for each channel, max-pooled if `pooled`: a BatchNorm's and ReLU's result.

    What takes it computes it, as it reads `values`. The arithmetic is little; a pass over memory for each of these
    operations would cost more.
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
        """Compute it."""
        values = self.values.unpacked() if isinstance(self.values, Packs) else self.values
        y = _activate(values, self.factor, self.offset)
        return max_pool_2x2(y) if self.pooled else y


def _activate(values: Float[Array, "n h w c"], factor: Float[Array, " c"], offset: Float[Array, " c"]) -> Array:
    """The ReLU of `factor * values + offset`."""
    plain, by_rows = _plain_activation, _activation_by_rows
    return lax.platform_dependent(values, factor, offset, cpu=plain, tpu=plain, default=by_rows)


def _plain_activation(values: Array, factor: Array, offset: Array) -> Array:
    return jax.nn.relu(factor * values + offset)


# With both gradients that are sums taken in one pass, by rows of pixels as in `_per_channel`.
_activation_by_rows = jax.custom_vjp(_plain_activation)


def _activate_fwd(values: Array, factor: Array, offset: Array) -> tuple[Array, Any]:
    return _plain_activation(values, factor, offset), (values, factor, offset)


def _activate_bwd(residuals: Any, cotangent: Array) -> tuple[Array, Array, Array]:
    values, factor, offset = residuals
    passed = jnp.where(factor * values + offset > 0, cotangent, 0)
    d_factor, d_offset = _row_sums(passed * values, passed).reshape(2, *values.shape[2:]).sum(1)
    return factor * passed, d_factor, d_offset


_activation_by_rows.defvjp(_activate_fwd, _activate_bwd)


def computed(tree: Any) -> Any:
    """A tree in which nothing is deferred any more."""
    deferred = lambda node: isinstance(node, Deferred)  # noqa: E731
    return jax.tree.map(lambda node: node.compute() if deferred(node) else node, tree, is_leaf=deferred)


def convolve(
    x: Deferred | Images,
    kernel: Float[Array, "side side c_in c_out"],
    padding: int,
    kernels: Kernels = "xla",
) -> tuple[Images, Float[Array, "2 c_out"]]:
    """The convolution with stride 1, and for each channel the sums over batch and space of it and of its squares.

    `padding` is the number of zeros on each side. `kernels` is what computes them, as in `MNISTNet`.
    """
    if kernels == "none":
        (n, height, width, _), growth, c_out = x.shape, 2 * padding + 1 - kernel.shape[0], kernel.shape[-1]
        return jnp.zeros((n, height + growth, width + growth, c_out)), jnp.zeros((2, c_out))
    if kernels == "native" and kernel.dtype == jnp.float32:
        if not isinstance(x, Deferred):
            return native.convolve(Packs.of(x), jnp.zeros(0, jnp.float32), kernel, padding)
        return native.convolve(Packs.of(x.values), jnp.stack([x.factor, x.offset]), kernel, padding, x.pooled)
    y: Any = _conv(computed(x), kernel, padding)
    return y, _sums(y)


def _plain_conv(inputs: Array, kernel: Array, padding: int, strides: tuple[int, int] = (1, 1)) -> Array:
    return lax.conv_general_dilated(inputs, kernel, strides, [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS)


def _column_conv(inputs: Array, kernel: Array, padding: int) -> Array:
    """The same convolution; several adjacent output columns are computed as output channels of a wider kernel.

    XLA's CPU convolution packs a patch of k*k*c_in numbers for every output pixel, and uses it for c_out products only:
    with 8 to 20 channels most of the time is packing. A kernel for s adjacent columns, moved s columns at a time, packs
    (s + k - 1) / (s * k) as many numbers and computes (s + k - 1) / k as many products, which are cheap. It is 1.1 to
    1.7 times as fast for this network's layers at s = 2, and 3.5 times for the first at s = 13; a whole step of
    training takes 1.18 times as long without it. The result needs no copy: `y[..., s * c_out]` and
    `y[..., s, c_out]` are the same bytes.
    """
    kernel_width, c_in, c_out = kernel.shape[1:]
    width = inputs.shape[2] + 2 * padding - kernel_width + 1
    columns = width // 2 if c_in == 1 else 2  # one channel: packing is all the work
    if kernel_width == 1 or columns < 2 or width % columns:
        return _plain_conv(inputs, kernel, padding)
    shifted = [jnp.pad(kernel, ((0, 0), (s, columns - 1 - s), (0, 0), (0, 0))) for s in range(columns)]
    wide_kernel = jnp.concatenate(shifted, axis=-1)
    outputs = _plain_conv(inputs, wide_kernel, padding, (1, columns))
    return outputs.reshape(*outputs.shape[:2], width, c_out)


def _patch_conv(inputs: Array, kernel: Array, padding: int) -> Array:
    """The same convolution as one matrix product: of each output pixel's patch and the kernel.

    For GPUs. `vmap`ped over replicas it is a batched product, where a plain convolution becomes a grouped one, which
    cuDNN computes slowly: a step of 20 replicas of 64 images takes an H100 3.9 ms, and 12.5 ms with plain ones.
    """
    height, width, c_in, c_out = kernel.shape
    padded = jnp.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(height * width * c_in, c_out)


def _forward_conv(inputs: Array, kernel: Array, padding: int) -> Array:
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_column_conv, padding=padding),
        tpu=functools.partial(bands.convolve, padding=padding),
        default=functools.partial(_patch_conv, padding=padding),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(inputs: Array, kernel: Array, padding: int) -> Array:
    return _forward_conv(inputs, kernel, padding)


def _conv_fwd(inputs: Array, kernel: Array, padding: int) -> tuple[Array, Any]:
    return _forward_conv(inputs, kernel, padding), (inputs, kernel)


def _conv_bwd(padding: int, residuals: Any, cotangent: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_conv_gradients, padding=padding),
        tpu=functools.partial(bands.gradients, padding=padding),
        default=functools.partial(_patch_gradients, padding=padding),
    )


def _patch_gradients(inputs: Array, kernel: Array, cotangent: Array, padding: int) -> tuple[Array, Array]:
    """Both gradients of `_patch_conv`, by JAX: products with the patches are fast on a GPU."""
    return jax.vjp(functools.partial(_patch_conv, padding=padding), inputs, kernel)[1](cotangent)


def _conv_gradients(inputs: Array, kernel: Array, cotangent: Array, padding: int) -> tuple[Array, Array]:
    """Both gradients as ordinary NHWC/HWIO convolutions.

    JAX's own gradients are convolutions with permuted dimension numbers, for which XLA's CPU runtime does not use its
    fast convolution inside a loop: block4's input gradient takes 40 ms instead of 1.6, its weight gradient 86 ms
    instead of 1.5 (64 images, one core; https://github.com/jax-ml/jax/issues/12868). A whole step of training takes
    12 times as long with them.
    """
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    d_inputs = _forward_conv(cotangent, flipped, kernel.shape[0] - 1 - padding)
    # A convolution whose batch is the input channels, whose channels are the batch, and whose kernel is the cotangent.
    d_kernel = _plain_conv(inputs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), padding)
    return d_inputs, d_kernel.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_fwd, _conv_bwd)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2×2 max-pool with stride 2 of an even-sized image.

    Two maxima of reshaped pairs. `lax.reduce_window` has a gradient (select-and-scatter) that runs serially on a CPU,
    and `max` over both axes one that divides by the number of ties: value and gradient of 64×20×20×20 numbers take it
    0.94 ms on one core, pairs 0.24 ms. A whole step of training takes 1.05 to 1.1 times as long with `reduce_window`,
    and as long with `max`; but pairs share the gradient among ties as the C++ kernels do.
    """
    return lax.platform_dependent(x, tpu=bands.max_pool_2x2, default=_pool_pairs)


def _pool_pairs(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def _sums(x: Float[Array, "n h w c"]) -> Float[Array, "2 c"]:
    """For each channel the sums of `x` and of its squares, in two stages: rows of pixels are added up first.

    XLA's CPU backend then has an inner loop over width * channels numbers instead of 8 to 20, which is up to 1.9 times
    as fast; a whole step of training takes about 1.05 times as long without it. Where XLA adds up without its YNN
    kernels (see `compiler_options`) it is also more precise: a relative error of 1e-7 instead of 1e-6.
    """
    return lax.platform_dependent(x, cpu=_two_sums, tpu=_two_sums, default=_both_sums)


def _two_sums(x: Float[Array, "n h w c"]) -> Float[Array, "2 c"]:
    return jnp.stack([_per_channel(x), _per_channel(x * x)])


def _both_sums(x: Float[Array, "n h w c"]) -> Float[Array, "2 c"]:
    """The same in one kernel on a GPU, not two. The second stage, each by itself, becomes part of what follows."""
    return jnp.stack([rows.reshape(x.shape[2:]).sum(0) for rows in _row_sums(x, x * x)])


def _row_sums(*values: Float[Array, "n h w c"]) -> Float[Array, "sums w*c"]:
    """The first of the two stages, of several sums in one pass."""
    n, height, width, channels = values[0].shape
    return jnp.stack(values).reshape(len(values), n * height, width * channels).sum(1)


def _per_channel(values: Float[Array, "n h w c"]) -> Float[Array, " c"]:
    n, height, width, channels = values.shape
    return values.reshape(n * height, width * channels).sum(0).reshape(width, channels).sum(0)
