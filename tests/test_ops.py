"""Each fast operation against its plain formulation: values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from jax import lax

from mnist_flax import ops

# Every convolution of the network (side, c_in, c_out, padding, kernel), and odd sizes that the fast path must decline.
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


@pytest.mark.parametrize(("side", "c_in", "c_out", "padding", "size"), CONVOLUTIONS)
def test_convolution(side, c_in, c_out, padding, size):
    x, kernel = normal(0, 3, side, side, c_in), normal(1, size, size, c_in, c_out)
    pads = ((padding, padding), (padding, padding))
    numbers = ("NHWC", "HWIO", "NHWC")
    fast, fast_vjp = jax.vjp(lambda *a: ops.convolve(*a, padding)[0], x, kernel)
    plain, plain_vjp = jax.vjp(
        lambda *a: lax.conv_general_dilated(*a, (1, 1), pads, dimension_numbers=numbers), x, kernel
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
    cotangent = normal(2, *plain.shape)
    for ours, theirs in zip(fast_vjp(cotangent), plain_vjp(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_each_platform_has_its_form_of_a_convolution():
    """GPUs a product with patches, which `vmap` leaves a product; a CPU two columns at once."""
    x, kernel = jnp.zeros((3, 2, 26, 26, 8)), jnp.zeros((3, 3, 3, 8, 12))
    traced = jax.jit(jax.vmap(lambda *a: ops.convolve(*a, 0)[0])).trace(x, kernel)
    on_gpu, on_cpu = (str(traced.lower(lowering_platforms=(name,)).as_text()) for name in ("cuda", "cpu"))
    assert "dot_general" in on_gpu
    assert "convolution" not in on_gpu
    assert "feature_group_count = 3" in on_cpu


def test_max_pool():
    x = normal(0, 2, 8, 6, 3)
    plain = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    np.testing.assert_array_equal(ops.max_pool_2x2(x), plain(x))
    weights = normal(1, 2, 4, 3, 3)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (ops.max_pool_2x2, plain))
    np.testing.assert_array_equal(ours, theirs)


def test_sums_of_the_convolution():
    x, kernel = normal(0, 3, 9, 9, 4), normal(1, 3, 3, 4, 5)
    y, sums = ops.convolve(x, kernel, 0)
    np.testing.assert_allclose(sums, np.stack([y.sum((0, 1, 2)), (y * y).sum((0, 1, 2))]), rtol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_deferred_is_relu_and_max_pool(pooled):
    x, factor, offset = normal(0, 2, 6, 8, 3), normal(1, 3), normal(2, 3)
    y = nn.relu(x * factor + offset)
    expected = nn.max_pool(y, (2, 2), strides=(2, 2)) if pooled else y
    np.testing.assert_allclose(ops.Deferred(x, factor, offset, pooled).compute(), expected, rtol=1e-6)
