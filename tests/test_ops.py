"""Each fast operation against its plain formulation: values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from mnist_flax import ops
from mnist_flax.training import mesh

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


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("side", "c_in", "c_out", "padding", "size"), CONVOLUTIONS)
def test_convolution(side, c_in, c_out, padding, size):
    x, kernel = normal(0, 3, side, side, c_in), normal(1, size, size, c_in, c_out)
    pads = ((padding, padding), (padding, padding))
    numbers = ("NHWC", "HWIO", "NHWC")
    fast, fast_vjp = jax.vjp(lambda *a: ops.conv_general_dilated(*a, (1, 1), pads), x, kernel)
    plain, plain_vjp = jax.vjp(
        lambda *a: lax.conv_general_dilated(*a, (1, 1), pads, dimension_numbers=numbers), x, kernel
    )
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
    cotangent = normal(2, *plain.shape)
    for ours, theirs in zip(fast_vjp(cotangent), plain_vjp(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{"strides": 2}, {"padding": "SAME"}, {"kernel_dilation": 2}, {"padding": 2}])
def test_convolution_inside_nn_conv_with_any_setting(settings):
    x = normal(0, 2, 12, 12, 3)
    plain, fast = (nn.Conv(4, (3, 3), conv_general_dilated=f, **settings) for f in (None, ops.conv_general_dilated))
    variables = plain.init(jax.random.key(1), x)
    np.testing.assert_allclose(fast.apply(variables, x), plain.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_convolution_lowers_to_the_plain_one_on_accelerators():
    x, kernel = jnp.zeros((2, 26, 26, 8)), jnp.zeros((3, 3, 8, 12))
    lowered = jax.jit(lambda *a: ops.conv_general_dilated(*a, (1, 1), "VALID")).trace(x, kernel)
    assert "3x3x8x12" in lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "3x4x8x24" in lowered.lower(lowering_platforms=("cpu",)).as_text()


def test_max_pool():
    x = normal(0, 2, 8, 6, 3)
    plain = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    np.testing.assert_array_equal(ops.max_pool_2x2(x), plain(x))
    weights = normal(1, 2, 4, 3, 3)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (ops.max_pool_2x2, plain))
    np.testing.assert_array_equal(ours, theirs)


def plain_batch_norm(x, scale, bias, epsilon=1e-5):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias, mean, variance


def test_batch_norm():
    x, scale, bias = 2 + 3 * normal(0, 4, 5, 6, 7), normal(1, 7), normal(2, 7)
    for ours, theirs in zip(ops.batch_norm(x, scale, bias), plain_batch_norm(x, scale, bias), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    weights = normal(3, *x.shape)
    ours, theirs = (
        jax.grad(lambda *a, f=f: (f(*a)[0] * weights).sum(), argnums=(0, 1, 2))(x, scale, bias)
        for f in (ops.batch_norm, plain_batch_norm)
    )
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(ours_one, theirs_one, rtol=1e-3, atol=1e-3)


def test_batch_norm_over_a_mesh_is_batch_norm_of_the_whole_batch():
    x, scale, bias, weights = normal(0, 8, 5, 6, 7), normal(1, 7), normal(2, 7), normal(3, 8, 5, 6, 7)
    spec = PartitionSpec("data")

    def local(x, scale, bias, weights):
        def loss(x, scale, bias):
            return (ops.batch_norm(x, scale, bias, 1e-5, "data")[0] * weights).sum()

        dx, *rest = jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias)
        return dx, *lax.psum(rest, "data")

    everywhere = jax.shard_map(
        local,
        mesh=mesh.make_mesh(8, 4),
        in_specs=(spec, PartitionSpec(), PartitionSpec(), spec),
        out_specs=(spec, PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )
    expected = jax.grad(lambda *a: (plain_batch_norm(*a)[0] * weights).sum(), argnums=(0, 1, 2))(x, scale, bias)
    for ours, theirs in zip(jax.jit(everywhere)(x, scale, bias, weights), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_an_xla_without_the_cpu_option_trains_without_it(monkeypatch):
    mesh.compiler_options.cache_clear()
    monkeypatch.setattr(mesh, "YNN_REDUCTIONS", {"xla_cpu_no_such_option": "1"})
    assert mesh.compiler_options("cpu") is None
    mesh.compiler_options.cache_clear()


def test_other_platforms_have_no_option_of_their_own():
    assert mesh.compiler_options("tpu") is mesh.compiler_options("gpu") is None
