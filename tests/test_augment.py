import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mnist_flax.augment import Augmentation, augment, blur, distort, draw_distortions, warp

IMAGES = np.random.RandomState(0).randint(0, 256, (16, 28, 28)).astype(np.uint8)
NONE = Augmentation(rotation=0.0, translation=0.0, scale=(1.0, 1.0))


def test_zero_ranges_are_the_identity():
    np.testing.assert_array_equal(augment(jax.random.key(0), jnp.asarray(IMAGES), NONE), IMAGES)


@settings(max_examples=60)
@given(
    st.floats(-180, 180),
    st.floats(0.3, 3),
    st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
)
def test_agrees_with_scipy(degrees, scale, offset):
    cos, sin = np.cos(np.deg2rad(degrees)) / scale, np.sin(np.deg2rad(degrees)) / scale
    matrix = np.array([[cos, sin], [-sin, cos]], np.float32)
    transform = np.concatenate([matrix, np.array(offset, np.float32)[:, None]], axis=1)
    rows = tuple(tuple(jnp.array([number]) for number in row) for row in transform)
    ours = warp(jnp.asarray(IMAGES[:1]), rows)[0]
    theirs = ndimage.affine_transform(
        IMAGES[0].astype(np.float64), matrix.astype(np.float64), np.float32(offset), order=1, mode="grid-constant"
    )
    # Positions up to 120 pixels have 1e-5 of float32 rounding, and the steepest slope is 255 a pixel.
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def draw(strength=1.0, **ranges):
    """What each of 5,000 maps does to an image: the linear part, from input to output, and the shift after it."""
    augmentation = Augmentation(**ranges)
    transforms, *_ = draw_distortions(jax.random.key(1), 5000, 28, augmentation, strength)
    transforms = np.moveaxis(np.asarray(transforms, np.float64), -1, 0)
    forward = np.linalg.inv(transforms[:, :, :2])
    shift = np.einsum("nij,nj->ni", forward, 13.5 - transforms[:, :, 2]) - 13.5
    return forward, shift


def assert_fills(values, low, high):
    margin = 1e-2 * (high - low)
    assert low - margin / 100 <= values.min() < low + margin
    assert high - margin < values.max() <= high + margin / 100
    assert abs(values.mean() - (low + high) / 2) < 2 * margin


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_draws_stay_within_the_ranges_and_fill_them(strength):
    forward, shift = draw(strength)
    scale = np.sqrt(np.linalg.det(forward))
    angle = np.rad2deg(np.arctan2(-forward[:, 0, 1], forward[:, 0, 0]))
    assert_fills(scale, 1 - 0.2 * strength, 1 + 0.2 * strength)
    assert_fills(angle, -18 * strength, 18 * strength)
    for axis in (0, 1):
        assert_fills(shift[:, axis], -2.8 * strength, 2.8 * strength)
    assert np.abs(np.corrcoef([scale, angle, *shift.T]) - np.eye(4)).max() < 0.06


def test_no_strength_is_the_identity():
    wild = Augmentation(rotation=180.0, scale=(0.5, 0.9))
    distortions = draw_distortions(jax.random.key(0), 16, 28, wild, 0.0)
    np.testing.assert_array_equal(distort(jnp.asarray(IMAGES), distortions), IMAGES)


def test_blur_agrees_with_scipy():
    images, deviations = IMAGES[:5].astype(np.float32), [0.0, 0.3, 0.7, 1.0, 1.5]
    ours = blur(jnp.asarray(images), jnp.array(deviations))
    np.testing.assert_array_equal(ours[0], images[0])
    for blurred, image, deviation in zip(ours[1:], images[1:], deviations[1:], strict=True):
        theirs = ndimage.gaussian_filter(image, deviation, radius=3, mode="constant")
        np.testing.assert_allclose(blurred, theirs, atol=1e-3)


def test_blur_and_grey_levels_fill_their_ranges_whatever_the_strength():
    augmentation = Augmentation(blur=0.8, gamma=0.5)
    _, deviations, exponents = draw_distortions(jax.random.key(3), 5000, 28, augmentation, 0.0)
    assert_fills(deviations, 0.0, 0.8)
    assert_fills(jnp.log(exponents), -0.5, 0.5)
    assert abs(np.corrcoef(deviations, exponents)[0, 1]) < 0.06
    transforms, *neither = draw_distortions(jax.random.key(3), 5000, 28, Augmentation())
    assert neither == [None, None]
    np.testing.assert_array_equal(draw_distortions(jax.random.key(3), 5000, 28, augmentation).transforms, transforms)


def test_grey_levels_are_raised_to_a_power():
    greys = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    augmentation = dataclasses.replace(NONE, gamma=0.5)
    changed = augment(jax.random.key(0), jnp.asarray(greys), augmentation)
    exponent = draw_distortions(jax.random.key(0), 1, 28, augmentation).exponents
    assert abs(exponent - 1) > 0.05
    np.testing.assert_allclose(changed, 255 * (greys / 255) ** np.asarray(exponent), rtol=1e-5)


def test_rotation_turns_and_translation_moves_as_named():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 13:15, 20:24] = 255
    bigger = Augmentation(rotation=0.0, translation=0.0, scale=(2.0, 2.0))
    enlarged = augment(jax.random.key(0), jnp.asarray(image), bigger)
    assert ndimage.center_of_mass(np.asarray(enlarged[0]))[1] > 26  # 8 right of the centre becomes 16, cut at the edge


def test_pure_function_of_the_key():
    images = jnp.asarray(IMAGES)
    first, again, other = (augment(jax.random.key(k), images, Augmentation()) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert 0 <= first.min() <= first.max() <= 255
