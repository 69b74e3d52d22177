"""Every platform's form of each operation against the textbook's: values and gradients, all on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from jax import lax
from jax.scipy.ndimage import map_coordinates

from mnist_flax import ops
from mnist_flax.training.mesh import FAST_COMPILE

# Every convolution of the network (side, c_in, c_out, padding, kernel), and odd sizes that a CPU's form must decline.
CONVOLUTIONS = [
    (28, 1, 8, 0, 3),
    (26, 8, 12, 0, 3),
    (24, 12, 16, 0, 3),
    (22, 16, 20, 0, 3),
    (10, 20, 12, 0, 1),
    (10, 12, 16, 1, 3),
    (9, 4, 5, 0, 3),
    (7, 1, 3, 1, 3),
    (3, 1, 2, 0, 3),
]


@pytest.fixture(autouse=True, params=["cpu", "default", "tpu"])
def platform(request, monkeypatch):
    """Have a platform's forms; "default" is a GPU's."""

    def chosen(*arguments, default, **forms):
        return forms.get(request.param, default)(*arguments)

    monkeypatch.setattr("jax.lax.platform_dependent", chosen)
    return request.param


def values_and_gradients(function, arguments, cotangent):
    def both(arguments, cotangent):
        values, vjp = jax.vjp(function, *arguments)
        return values, *vjp(cotangent)

    return jax.jit(both, compiler_options=FAST_COMPILE)(arguments, cotangent)


def close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("side", "c_in", "c_out", "padding", "size"), CONVOLUTIONS)
def test_convolution(side, c_in, c_out, padding, size):
    def textbook(x, kernel):
        pads = ((padding, padding), (padding, padding))
        return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = normal(0, 3, side, side, c_in), normal(1, size, size, c_in, c_out)
    cotangent = normal(2, *textbook(x, kernel).shape)
    ours = values_and_gradients(lambda *a: ops.convolve(*a, padding)[0], (x, kernel), cotangent)
    close(ours, values_and_gradients(textbook, (x, kernel), cotangent), 1e-3)


def test_sums_of_the_convolution():
    x, kernel = normal(0, 3, 9, 9, 4), normal(1, 3, 3, 4, 5)
    y, sums = jax.jit(lambda *a: ops.convolve(*a, 0), compiler_options=FAST_COMPILE)(x, kernel)
    np.testing.assert_allclose(sums, np.stack([y.sum((0, 1, 2)), (y * y).sum((0, 1, 2))]), rtol=1e-4)


def test_max_pool():
    """Of numbers that products do not round."""
    x, weights = jnp.round(8 * normal(0, 2, 8, 6, 3)), jnp.round(8 * normal(1, 2, 4, 3, 3))
    plain = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    np.testing.assert_array_equal(ops.max_pool_2x2(x), plain(x))
    x = normal(0, 2, 8, 6, 3)  # no ties
    ours, theirs = (values_and_gradients(f, (x,), weights)[1] for f in (ops.max_pool_2x2, plain))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_pending_batch_norm_is_relu_and_max_pool(pooled):
    def textbook(x, factor, offset):
        y = nn.relu(x * factor + offset)
        return nn.max_pool(y, (2, 2), strides=(2, 2)) if pooled else y

    arguments = normal(0, 2, 6, 8, 3), normal(1, 3), normal(2, 3)
    cotangent = normal(3, *textbook(*arguments).shape)
    ours = values_and_gradients(lambda *a: ops.PendingBatchNorm(*a, pooled).compute(), arguments, cotangent)
    close(ours, values_and_gradients(textbook, arguments, cotangent), 1e-5)


def test_interpolation():
    """At positions inside and outside the images; to within 1e-4 of a grey level, of 255."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 28, 28), np.uint8)
    rows, columns = rng.uniform(-10, 38, (2, 50, 28, 28)).astype(np.float32)
    textbook = jax.vmap(lambda image, *at: map_coordinates(image, at, order=1, mode="constant"))
    expected = jax.jit(textbook, compiler_options=FAST_COMPILE)(images.astype(np.float32), rows, columns)
    assert (expected > 0).mean() > 0.2
    ours = jax.jit(ops.interpolate, compiler_options=FAST_COMPILE)(images, rows, columns)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)


def test_each_platform_has_its_own_convolution(platform, monkeypatch):
    """A GPU a product with patches, which `vmap` leaves a product; a TPU one along rows; a CPU two columns at once."""
    monkeypatch.undo()
    x, kernel = jnp.zeros((3, 2, 26, 26, 8)), jnp.zeros((3, 3, 3, 8, 12))
    traced = jax.jit(jax.vmap(lambda *a: ops.convolve(*a, 0)[0])).trace(x, kernel)
    name = platform.replace("default", "cuda")
    text = str(traced.lower(lowering_platforms=(name,)).as_text())
    assert ("stablehlo.convolution" in text) == (name != "cuda")
    sign = {"cpu": "feature_group_count = 3", "cuda": "dot_general", "tpu": "[b, 0, f]x[0, i, o]->[b, 0, f]"}[name]
    assert sign in text
