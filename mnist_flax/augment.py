"""Augmentation as a pure function of (key, images): one random affine warp an image, bilinear, zero outside."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, UInt8


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges from which the warp is drawn uniformly. The defaults are the PyTorch original's.

    Attributes:
        rotation: degrees, drawn from [-rotation, rotation].
        translation: fraction of the side, drawn from [-translation, translation] for each axis.
        scale: (smallest, largest) magnification.
        stretch: s is drawn from [-stretch, stretch]; rows are magnified by another 1 + s, columns by 1 - s.
        slant: shift in columns for each row, drawn from [-slant, slant].
    """

    rotation: float = 18.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.8, 1.2)
    stretch: float = 0.0
    slant: float = 0.0


def draw_transforms(
    key: Key[Array, ""],
    num_images: int,
    side: int,
    augmentation: Augmentation,
    strength: float | Float[Array, ""] = 1.0,
) -> Float[Array, "n 2 3"]:
    """Random affine maps from output pixel (row, column, 1) to input pixel, about the image's centre.

    An image is slanted, rotated and magnified about its centre, then shifted. Resampling needs the inverse of that, and
    the maps are the inverse. A `strength` below 1 narrows all ranges by that factor.
    """
    smallest, largest = augmentation.scale
    limits = [
        jnp.deg2rad(augmentation.rotation),
        *[augmentation.translation * side] * 2,
        (largest - smallest) / 2,
        augmentation.stretch,
        augmentation.slant,
    ]
    # One draw for all numbers: each further threefry call takes half a second to compile on a CPU.
    draws = jax.random.uniform(key, (num_images, len(limits)), minval=-1.0, maxval=1.0)
    angle, down, right, magnified, stretch, slant = (draws * (strength * jnp.array(limits))).T
    scale = 1 + strength * ((smallest + largest) / 2 - 1) + magnified
    rows, columns = scale * (1 + stretch), scale * (1 - stretch)

    cos, sin = jnp.cos(angle), jnp.sin(angle)
    centre = (side - 1) / 2

    def map_to(by_row: Float[Array, " n"], by_column: Float[Array, " n"]) -> list[Array]:
        by_row = by_row - slant * by_column
        # Elementwise, not a matrix product: accelerators round its inputs to fewer bits, too few for positions.
        return [by_row, by_column, centre - (by_row * (centre + down) + by_column * (centre + right))]

    row, column = map_to(cos / rows, sin / rows), map_to(-sin / columns, cos / columns)
    return jnp.stack(row + column, axis=-1).reshape(num_images, 2, 3)


def warp(images: UInt8[Array, "n h w"], transforms: Float[Array, "n 2 3"]) -> Float[Array, "n h w"]:
    """Resample each image: output pixel p takes the bilinear value at `transform @ (p, 1)`, zero outside the image.

    Equal to `scipy.ndimage.affine_transform(order=1, mode="grid-constant")`. Values stay in 0..255, as float32.
    """
    return lax.platform_dependent(images, transforms, tpu=warp_by_products, default=_warp_by_gathers)


def _positions(transforms: Float[Array, "n 2 3"], axis: int, height: int, width: int) -> Float[Array, "n h w"]:
    """The input row (axis 0) or column (axis 1) of each output pixel."""
    a, b, c = (transforms[:, axis, k][:, None, None] for k in range(3))
    rows = jnp.arange(height, dtype=jnp.float32)[None, :, None]
    columns = jnp.arange(width, dtype=jnp.float32)[None, None, :]
    return a * rows + b * columns + c


def _warp_by_gathers(images: UInt8[Array, "n h w"], transforms: Float[Array, "n 2 3"]) -> Float[Array, "n h w"]:
    """`warp`, by reading the four pixels around each position."""
    n, height, width = images.shape

    def coordinate(axis: int, size: int) -> tuple[Array, Array]:
        # From one pixel outside the image on all is zero; clipping there keeps indices inside the padding below.
        position = jnp.clip(_positions(transforms, axis, height, width), -1.0, size)
        floor = jnp.floor(position)
        return floor.astype(jnp.int32) + 1, position - floor

    row, row_fraction = coordinate(0, height)
    column, column_fraction = coordinate(1, width)

    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2))).astype(jnp.float32).reshape(n, -1)
    stride = width + 3
    index = (row * stride + column).reshape(n, -1)

    def neighbour(offset: int) -> Array:
        values = jnp.take_along_axis(padded, index + offset, axis=1, mode="promise_in_bounds")
        return values.reshape(n, height, width)

    top_left, top_right = neighbour(0), neighbour(1)
    bottom_left, bottom_right = neighbour(stride), neighbour(stride + 1)
    top_value = top_left + column_fraction * (top_right - top_left)
    bottom_value = bottom_left + column_fraction * (bottom_right - bottom_left)
    return top_value + row_fraction * (bottom_value - top_value)


def warp_by_products(images: UInt8[Array, "n h w"], transforms: Float[Array, "n 2 3"]) -> Float[Array, "n h w"]:
    """`warp`, by two products with interpolation weights, to within 1e-4 of a grey level: for matrix units.

    An output pixel at (r, c) is the sum over all input pixels (i, j) of max(0, 1 - |r - i|) max(0, 1 - |c - j|) image.
    The sum over rows is a matrix product. That is 640,000 multiply-adds an image where gathers need 3,000, but a TPU
    moves a tile of 1,024 numbers to gather one.
    """
    n, height, width = images.shape

    def weights(axis: int, size: int) -> Float[Array, "n size pixels"]:
        position = _positions(transforms, axis, height, width).reshape(n, 1, -1)
        return jnp.maximum(0, 1 - jnp.abs(position - jnp.arange(size, dtype=jnp.float32)[:, None]))

    # In full precision: a weight rounded to bfloat16 would be wrong by up to half a grey level.
    by_rows = jnp.einsum("nij,nip->njp", images.astype(jnp.float32), weights(0, height), precision="highest")
    return (by_rows * weights(1, width)).sum(1).reshape(n, height, width)


def augment(key: Key[Array, ""], images: UInt8[Array, "n h w"], augmentation: Augmentation) -> Float[Array, "n h w"]:
    """Warp each of `images` (square, 0..255) at random; float32 in 0..255. With ranges of zero it is the identity."""
    return warp(images, draw_transforms(key, images.shape[0], images.shape[1], augmentation))
