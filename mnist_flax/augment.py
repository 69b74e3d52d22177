"""Augmentation as a pure function of (key, images): a random affine warp of each image, then blur and grey levels."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from mnist_flax import ops


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges from which what is done to an image is drawn uniformly. The defaults are the PyTorch original's.

    Attributes:
        rotation: degrees, drawn from [-rotation, rotation].
        translation: fraction of the side, drawn from [-translation, translation] for each axis.
        scale: (smallest, largest) magnification.
        blur: standard deviation of a Gaussian filter in pixels, drawn from [0, blur].
        gamma: g is drawn from [-gamma, gamma]; grey levels, from 0 to 1, are raised to the power e^g.
    """

    rotation: float = 18.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.8, 1.2)
    blur: float = 0.0
    gamma: float = 0.0


# A row of each image's 2×3 matrix: the factors of an output pixel's row and column, and a constant.
Row = tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]


class Distortions(NamedTuple):
    """What is done to each of n images, in arrays of one axis: as matrices they make a CPU round positions otherwise.

    Attributes:
        transforms: affine maps from output pixel (row, column, 1) to input pixel: the two rows of their matrices.
        deviations: standard deviation in pixels of a Gaussian filter; None: there is none.
        exponents: of grey levels from 0 to 1; None: they stay as they are.
    """

    transforms: tuple[Row, Row]
    deviations: Float[Array, " n"] | None
    exponents: Float[Array, " n"] | None


def draw_distortions(
    key: Key[Array, ""],
    num_images: int,
    side: int,
    augmentation: Augmentation,
    strength: float | Float[Array, " #n"] = 1.0,
) -> Distortions:
    """Draw what is done to each image.

    An image is rotated and magnified about its centre, then shifted. Resampling needs the inverse of that, and the
    transforms are the inverse. A `strength` below 1, of each image or of all, narrows their ranges by that factor;
    those of blur and grey levels stay as they are.
    """
    smallest, largest = augmentation.scale
    limits = [jnp.deg2rad(augmentation.rotation), *[augmentation.translation * side] * 2, (largest - smallest) / 2]
    # One draw for all numbers: each further threefry call takes half a second to compile on a CPU.
    draws = jax.random.uniform(key, (num_images, len(limits) + 2), minval=-1.0, maxval=1.0)
    angle, down, right, magnified = (draws[:, :4] * (jnp.reshape(strength, (-1, 1)) * jnp.array(limits))).T
    scale = 1 + strength * ((smallest + largest) / 2 - 1) + magnified
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    centre = (side - 1) / 2

    def row(by_row: Float[Array, " n"], by_column: Float[Array, " n"]) -> Row:
        # Elementwise, not a matrix product: accelerators round its inputs to fewer bits, too few for positions.
        return by_row, by_column, centre - (by_row * (centre + down) + by_column * (centre + right))

    return Distortions(
        transforms=(row(cos / scale, sin / scale), row(-sin / scale, cos / scale)),
        deviations=augmentation.blur * (1 + draws[:, 4]) / 2 if augmentation.blur else None,
        exponents=jnp.exp(augmentation.gamma * draws[:, 5]) if augmentation.gamma else None,
    )


def distort(images: UInt8[Array, "n h w"], distortions: Distortions) -> Float[Array, "n h w"]:
    """Warp images, blur them, and change their grey levels; float32 in 0..255."""
    distorted = warp(images, distortions.transforms)
    if distortions.deviations is not None:
        distorted = blur(distorted, distortions.deviations)
    if distortions.exponents is not None:
        distorted = 255 * (distorted / 255) ** distortions.exponents[:, None, None]
    return distorted


def warp(images: UInt8[Array, "n h w"], transforms: tuple[Row, Row]) -> Float[Array, "n h w"]:
    """Resample each image: output pixel p takes the bilinear value at `transform @ (p, 1)`, zero outside the image.

    Equal to `scipy.ndimage.affine_transform(order=1, mode="grid-constant")`. Values stay in 0..255, as float32.
    """
    rows = jnp.arange(images.shape[1], dtype=jnp.float32)[None, :, None]
    columns = jnp.arange(images.shape[2], dtype=jnp.float32)[None, None, :]

    def positions(row: Row) -> Float[Array, "n h w"]:
        by_row, by_column, constant = (numbers[:, None, None] for numbers in row)
        return by_row * rows + by_column * columns + constant

    return ops.interpolate(images, *map(positions, transforms))


def blur(images: Float[Array, "n h w"], deviations: Float[Array, " n"]) -> Float[Array, "n h w"]:
    """Filter each image by a Gaussian with its standard deviation in pixels, cut off at three pixels; zero outside.

    Equal to `scipy.ndimage.gaussian_filter(radius=3, mode="constant")`.
    """
    offsets = jnp.arange(-3.0, 4.0)[:, None]
    weights = jnp.exp(-((offsets / jnp.maximum(deviations, 1e-3)) ** 2) / 2)
    weights = (weights / weights.sum(0))[:, :, None, None]
    height, width = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (3, 3), (3, 3)))
    rows = sum((weights[i] * padded[:, i : i + height] for i in range(7)), start=jnp.zeros(()))
    return sum((weights[i] * rows[:, :, i : i + width] for i in range(7)), start=jnp.zeros(()))


def augment(key: Key[Array, ""], images: UInt8[Array, "n h w"], augmentation: Augmentation) -> Float[Array, "n h w"]:
    """Distort each of `images` (square, 0..255) at random; float32 in 0..255. Ranges of zero leave them as they are."""
    return distort(images, draw_distortions(key, images.shape[0], images.shape[1], augmentation))
