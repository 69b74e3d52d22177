"""Operations as platforms compute them that have no form of their own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def activate(
    values: Float[Array, "n h w c"], factor: Float[Array, " c"], offset: Float[Array, " c"]
) -> Float[Array, "n h w c"]:
    """The ReLU of `factor * values + offset`."""
    return jax.nn.relu(factor * values + offset)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2×2 max-pool with stride 2, as two maxima of reshaped pairs.

    `lax.reduce_window` has a gradient (select-and-scatter) that runs serially on a CPU, and `max` over both axes one
    that divides by the number of ties: value and gradient of 64×20×20×20 numbers take it 0.94 ms on one core, pairs
    0.24 ms. A whole step of training takes 1.05 to 1.1 times as long with `reduce_window`, and as long with `max`; but
    pairs share the gradient among ties as the C++ kernels do.
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def channel_sums(x: Float[Array, "n h w c"]) -> Float[Array, "2 c"]:
    """For each channel the sums of `x` and of its squares, in two stages: rows of pixels are added up first.

    XLA's CPU backend then has an inner loop over width * channels numbers instead of 8 to 20, which is up to 1.9 times
    as fast; a whole step of training takes about 1.05 times as long without it. Where XLA adds up without its YNN
    kernels (see `mesh.compiler_options`) it is also more precise: a relative error of 1e-7 instead of 1e-6.
    """
    n, height, width, channels = x.shape

    def total(values: Array) -> Array:
        return values.reshape(n * height, width * channels).sum(0).reshape(width, channels).sum(0)

    return jnp.stack([total(x), total(x * x)])


def interpolate(
    images: UInt8[Array, "n h w"], rows: Float[Array, "n h_out w_out"], columns: Float[Array, "n h_out w_out"]
) -> Float[Array, "n h_out w_out"]:
    """Bilinear interpolation by reading the four pixels around each position."""
    n, height, width = images.shape

    def split(position: Array, size: int) -> tuple[Array, Array]:
        # From one pixel outside the image on all is zero; clipping there keeps indices inside the padding below.
        position = jnp.clip(position, -1.0, size)
        floor = jnp.floor(position)
        return floor.astype(jnp.int32) + 1, position - floor

    row, row_fraction = split(rows, height)
    column, column_fraction = split(columns, width)

    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2))).astype(jnp.float32).reshape(n, -1)
    stride = width + 3
    index = (row * stride + column).reshape(n, -1)

    def neighbour(offset: int) -> Array:
        values = jnp.take_along_axis(padded, index + offset, axis=1, mode="promise_in_bounds")
        return values.reshape(rows.shape)

    top_left, top_right = neighbour(0), neighbour(1)
    bottom_left, bottom_right = neighbour(stride), neighbour(stride + 1)
    top_value = top_left + column_fraction * (top_right - top_left)
    bottom_value = bottom_left + column_fraction * (bottom_right - bottom_left)
    return top_value + row_fraction * (bottom_value - top_value)
