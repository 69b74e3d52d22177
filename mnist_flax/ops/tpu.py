"""Convolution, max-pool and interpolation for TPUs, as matrix products. Never timed: no TPU has run this project.

What is known comes from the TPU compiler (`docs/accelerators.md`). Matrix units want 128 channels, and have 8 to 20 of
them here. So an image's row of columns by channels is taken as one long vector. A convolution is then one along rows
alone, by a matrix of bands. It has 9 times the multiply-adds, which cost a matrix unit nothing, and no lane of a
register stays empty: with channels along 128 lanes, six of seven would.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8


def convolve(
    x: Float[Array, "n h w c_in"], kernel: Float[Array, "side side c_in c_out"], padding: int
) -> Float[Array, "n h_out w_out c_out"]:
    """The convolution along rows by a matrix of bands."""
    n, height, width, c_in = x.shape
    band = _band(kernel, width, padding)
    outputs = _along_rows(x.reshape(n, height, width * c_in), band, padding)
    return outputs.reshape(*outputs.shape[:2], -1, kernel.shape[-1])


def gradients(
    x: Float[Array, "n h w c_in"],
    kernel: Float[Array, "side side c_in c_out"],
    d_y: Float[Array, "n h_out w_out c_out"],
    padding: int,
) -> tuple[Array, Array]:
    """Both gradients of `convolve`."""
    n, height, width, c_in = x.shape
    band = _band(kernel, width, padding)
    rows = x.reshape(n, height, width * c_in)
    _, transposed = jax.vjp(functools.partial(_along_rows, padding=padding), rows, band)
    d_rows, d_band = transposed(d_y.reshape(*d_y.shape[:2], -1))
    # A kernel's gradient is the sum of the numbers along its bands, in full precision.
    precise = functools.partial(_band, width=width, padding=padding, precision="highest")
    [d_kernel] = jax.linear_transpose(precise, kernel)(d_band)
    return d_rows.reshape(x.shape), d_kernel


def _along_rows(rows: Float[Array, "n h x"], band: Float[Array, "kh x y"], padding: int) -> Array:
    return lax.conv_general_dilated(rows, band, (1,), [(padding, padding)], dimension_numbers=("NHC", "HIO", "NHC"))


def _band(
    kernel: Float[Array, "kh kw c_in c_out"], width: int, padding: int, precision: str | None = None
) -> Float[Array, "kh x y"]:
    """For each row of the kernel the matrix that maps a row of the input to a row of the output.

    By the compiler's cycles a layer takes 1.2 times as long with gathers for it, and 2.4 times with one `einsum`.
    Entry (x, y), of input column i and output column o, is the kernel's column i - o + padding, or 0 outside it.
    Products with matrices of zeros and ones make it, not copies: a TPU moves columns of 8 to 20 numbers slowly.
    """
    height, columns, c_in, c_out = kernel.shape
    i, input_channel = np.divmod(np.arange(width * c_in)[:, None], c_in)
    o, output_channel = np.divmod(np.arange((width + 2 * padding - columns + 1) * c_out), c_out)
    across = (np.arange(c_out)[:, None] == output_channel).astype(kernel.dtype)
    repeated = jnp.matmul(kernel.reshape(-1, c_out), across, precision=precision).reshape(height, columns, c_in, -1)
    # Modulo the kernel's width, its column depends on i by a remainder r alone: choose for each r, repeat downwards.
    r = np.arange(columns)[:, None, None]
    chosen = [(r - o + padding) % columns == k for k in range(columns)]
    shifted: Any = sum(jnp.where(chosen[k], repeated[:, k, None], 0) for k in range(columns))
    remainder, channel = np.divmod(np.arange(columns * c_in), c_in)
    down = ((input_channel == channel) & (i % columns == remainder)).astype(kernel.dtype)
    band = jnp.einsum("xz,hzy->hxy", down, shifted.reshape(height, columns * c_in, -1), precision=precision)
    column = jnp.asarray(i + padding) - o
    return jnp.where(column.astype(jnp.uint32) < columns, band, 0)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """2×2 max-pool with stride 2 of an even-sized image.

    By the compiler's cycles a step takes 1.1 times as long without it. Even and odd columns are picked by products with
    matrices of zeros and ones. Where products round their operands, what comes out is rounded, as it would be by the
    convolution that takes it.
    """
    n, height, width, channels = x.shape
    rows = x.reshape(n, height // 2, 2, width * channels)
    rows = jnp.maximum(rows[:, :, 0], rows[:, :, 1])
    i, o = np.arange(width * channels)[:, None], np.arange(width // 2 * channels)
    same_channel, column = i % channels == o % channels, i // channels - 2 * (o // channels)
    even, odd = (rows @ (same_channel & (column == k)).astype(x.dtype) for k in (0, 1))
    return jnp.maximum(even, odd).reshape(n, height // 2, width // 2, channels)


def interpolate(
    images: UInt8[Array, "n h w"], rows: Float[Array, "n h_out w_out"], columns: Float[Array, "n h_out w_out"]
) -> Float[Array, "n h_out w_out"]:
    """Bilinear interpolation by two products with weights, to within 1e-4 of a grey level.

    The value at (r, c) is the sum over all input pixels (i, j) of max(0, 1 - |r - i|) max(0, 1 - |c - j|) image. The
    sum over rows is a matrix product. That is 640,000 multiply-adds an image where gathers need 3,000, but a TPU moves
    a tile of 1,024 numbers to gather one.
    """
    n, height, width = images.shape

    def weights(positions: Array, size: int) -> Float[Array, "n size pixels"]:
        return jnp.maximum(0, 1 - jnp.abs(positions.reshape(n, 1, -1) - jnp.arange(size, dtype=jnp.float32)[:, None]))

    # In full precision: a weight rounded to bfloat16 would be wrong by up to half a grey level.
    by_rows = jnp.einsum("nij,nip->njp", images.astype(jnp.float32), weights(rows, height), precision="highest")
    return (by_rows * weights(columns, width)).sum(1).reshape(rows.shape)
