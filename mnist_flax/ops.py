"""The three operations that XLA's CPU backend needs help with: convolution, max-pool, BatchNorm.

Each has the values and gradients of its plain formulation, against which `tests/test_ops.py` tests it; only the
operations that XLA is given differ. They are used on every platform.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    inputs: Float[Array, "n h w c_in"],
    kernel: Float[Array, "kh kw c_in c_out"],
    window_strides: tuple[int, ...],
    padding: Any,
    **options: Any,
) -> Float[Array, "n h_out w_out c_out"]:
    """Drop-in for `lax.conv_general_dilated` inside `nn.Conv`, with a weight gradient XLA compiles well.

    Only what this network uses is special-cased: 2-D, NHWC, no dilation and no groups. Anything else goes to
    `lax.conv_general_dilated` unchanged.
    """
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    if kernel.ndim != 4 or options.get("feature_group_count", 1) != 1 or {*window_strides, *dilations} != {1}:
        return lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], (1, 1), padding)
    (top, bottom), (left, right) = padding
    return _conv(inputs, kernel, ((top, bottom), (left, right)))


Padding = tuple[tuple[int, int], tuple[int, int]]


def _plain_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def _column_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    """The same convolution; several adjacent output columns are computed as output channels of a wider kernel.

    XLA's CPU convolution packs a patch of k*k*c_in numbers for every output pixel, and uses it for c_out products only:
    with 8 to 20 channels most of the time is packing. A kernel for s adjacent columns, moved s columns at a time, packs
    (s + k - 1) / (s * k) as many numbers and computes (s + k - 1) / k as many products, which are cheap. It is 1.1 to
    1.7 times as fast for this network's layers at s = 2, and 3.5 times for the first at s = 13. The result needs no
    copy: `y[..., s * c_out]` and `y[..., s, c_out]` are the same bytes.
    """
    kernel_width, c_in, c_out = kernel.shape[1:]
    width = inputs.shape[2] + sum(padding[1]) - kernel_width + 1
    columns = width // 2 if c_in == 1 else 2  # one channel: packing is all the work
    if kernel_width == 1 or columns < 2 or width % columns:
        return _plain_conv(inputs, kernel, padding)
    shifted = [jnp.pad(kernel, ((0, 0), (s, columns - 1 - s), (0, 0), (0, 0))) for s in range(columns)]
    wide_kernel = jnp.concatenate(shifted, axis=-1)
    outputs = lax.conv_general_dilated(inputs, wide_kernel, (1, columns), padding, dimension_numbers=_DIMENSIONS)
    return outputs.reshape(*outputs.shape[:2], width, c_out)


def _forward_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_column_conv, padding=padding),
        default=functools.partial(_plain_conv, padding=padding),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    return _forward_conv(inputs, kernel, padding)


def _conv_fwd(inputs: Array, kernel: Array, padding: Padding) -> tuple[Array, Any]:
    return _forward_conv(inputs, kernel, padding), (inputs, kernel)


def _conv_bwd(padding: Padding, residuals: Any, cotangent: Array) -> tuple[Array, Array]:
    """Both gradients as ordinary NHWC/HWIO convolutions.

    JAX's own gradients are convolutions with permuted dimension numbers, for which XLA's CPU runtime does not use its
    fast convolution inside a loop: block4's input gradient takes 40 ms instead of 1.6, its weight gradient 86 ms
    instead of 1.5 (64 images, one core; https://github.com/jax-ml/jax/issues/12868).
    """
    inputs, kernel = residuals
    # The barrier keeps XLA from folding the flip back into the convolution.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    spread = ((height - top, height - bottom), (width - left, width - right))
    d_inputs = _forward_conv(cotangent, flipped, spread)
    # A convolution whose batch is the input channels, whose channels are the batch, and whose kernel is the cotangent.
    d_kernel = _plain_conv(inputs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), padding)
    return d_inputs, d_kernel.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_fwd, _conv_bwd)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2×2 max-pool with stride 2 of an even-sized image.

    Two maxima of reshaped pairs. `lax.reduce_window` has a gradient (select-and-scatter) that runs serially on a CPU,
    and `max` over both axes one that divides by the number of ties: value and gradient of 64×20×20×20 numbers take it
    0.94 ms on one core, pairs 0.24 ms. Ties share the gradient.
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def batch_moments(
    x: Float[Array, "n h w c"], axis_name: str | None = None
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Per-channel mean and (biased) variance over batch and space, over all devices of `axis_name` if given."""
    total, squares = _sum_and_dot(x, x)
    return _moments(x, total, squares, axis_name)


def _moments(x: Array, total: Array, squares: Array, axis_name: str | None) -> tuple[Array, Array]:
    count = x.size // x.shape[-1]
    mean, mean_of_squares = total / count, squares / count
    if axis_name is not None:
        mean, mean_of_squares = lax.pmean((mean, mean_of_squares), axis_name)
    return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)


def _sum_and_dot(x: Array, y: Array) -> tuple[Array, Array]:
    """Per-channel `(sum(x), sum(x * y))`, in two stages: rows of pixels are added up first.

    XLA's CPU backend then has an inner loop over width * channels numbers instead of 8 to 20, which is up to 1.9 times
    as fast. It is also more precise: one long float32 sum for each channel has a relative error of 4e-6, enough to flip
    ReLUs near zero and change gradients by 1 %; this one has 4e-8.
    """
    n, height, width, channels = x.shape

    def per_channel(values: Array) -> Array:
        return values.reshape(n * height, width * channels).sum(0).reshape(width, channels).sum(0)

    return per_channel(x), per_channel(x * y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float = 1e-5,
    axis_name: str | None = None,
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """Normalise by the batch's own moments; with `axis_name`, by those of the whole mesh's batch.

    Returns the normalised, scaled and shifted `x`, and the mean and biased variance it used. The moments are auxiliary
    outputs for the running statistics: no gradient flows back through them.

    Ioffe & Szegedy, 2015, arXiv:1502.03167.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name)[0]


def _batch_norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[tuple[Array, Array, Array], Any]:
    mean, variance = batch_moments(x, axis_name)
    inverse = lax.rsqrt(variance + epsilon)
    y = x * (scale * inverse) + (bias - mean * scale * inverse)
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(
    epsilon: float, axis_name: str | None, residuals: Any, cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residuals
    dy = cotangents[0]
    count = x.size // x.shape[-1]
    d_bias, dy_dot_x = _sum_and_dot(dy, x)
    d_scale = (dy_dot_x - mean * d_bias) * inverse
    # The moments are shared by the whole mesh, so the terms that flow through them are summed over it.
    mean_dy, mean_dy_dot_x_hat = d_bias / count, d_scale / count
    if axis_name is not None:
        mean_dy, mean_dy_dot_x_hat = lax.pmean((mean_dy, mean_dy_dot_x_hat), axis_name)
    factor = scale * inverse
    slope = -factor * inverse * mean_dy_dot_x_hat
    dx = factor * dy + slope * x - (factor * mean_dy + slope * mean)
    return dx, d_scale, d_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
