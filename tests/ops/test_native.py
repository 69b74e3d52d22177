"""The C++ kernels against float64 and XLA's operations, and what happens where there are none."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import exact_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import mnist_flax
from mnist_flax import ops
from mnist_flax.model import MNISTNet
from mnist_flax.ops import native
from mnist_flax.ops.native import BlockedImages

pytestmark = pytest.mark.usefixtures("cpu_kernels")
few = settings(max_examples=20, deadline=None, derandomize=True)  # each compiles its own programs


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def close(ours, exact):
    """As near to float64's results as sums in float32 are, minimal filtering's sums before and after them included."""
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-5 * float(np.abs(exact).max()))


def unblocked(results):
    y, sums = results
    return (y.unblocked() if isinstance(y, BlockedImages) else y), sums


@st.composite
def layers(draw):
    """Shapes of a convolution, and whether BatchNorm, ReLU and max-pool come before it."""
    n, c_in, c_out = (
        draw(st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17])),
        draw(st.integers(1, 33)),
        draw(st.integers(1, 33)),
    )
    side = draw(st.sampled_from([1, 2, 3, 3, 3, 5, 7]))
    padding = draw(st.integers(0, side - 1))
    before = draw(st.sampled_from(["nothing", "relu", "pool"]))
    height, width = ((side + draw(st.integers(0, 9))) * (2 if before == "pool" else 1) for _ in "hw")
    return (n, height, width, c_in), (side, side, c_in, c_out), padding, before


@few
@given(layers())
def test_layer(case):
    """Values and all gradients, those of the sums included."""
    x_shape, kernel_shape, padding, before = case
    x, kernel, scaling = normal(0, *x_shape), normal(1, *kernel_shape), normal(2, 2, x_shape[-1])

    @jax.jit
    def layer(x, scaling, kernel):
        pending = x if before == "nothing" else ops.PendingBatchNorm(x, *scaling, before == "pool")
        return unblocked(ops.convolve(pending, kernel, padding, "native"))

    values, vjp = jax.vjp(layer, x, scaling, kernel)
    cotangents = normal(3, *values[0].shape), 0.01 * normal(4, *values[1].shape)
    d_x, d_scaling, d_kernel = vjp(cotangents)
    if before == "nothing":
        assert not d_scaling.any()
        scaling, d_scaling = scaling[:0], d_scaling[:0]
    x, scaling, kernel, *cotangents = (np.float64(a) for a in (x, scaling, kernel, *cotangents))
    exact = exact_layer(x, scaling, kernel, padding, before == "pool", *cotangents)
    for found, expected in zip((*values, d_x, d_scaling, d_kernel), exact, strict=True):
        if found.size:
            close(found, expected)


def loss_and_gradients(kernels, images, labels):
    variables = mnist_flax.load().variables

    def loss(params):
        logits, _ = MNISTNet(kernels=kernels).apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.mark.parametrize("n", [1, 30, 64])
def test_the_network(n):
    images, labels = normal(0, n, 28, 28, 1), np.arange(n) % 10
    ours, theirs = (ravel_pytree(loss_and_gradients(name, images, labels))[0] for name in ("native", "xla"))
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_the_network_in_evaluation():
    variables, images = mnist_flax.load().variables, normal(0, 37, 28, 28, 1)
    ours, theirs = (jax.jit(MNISTNet(kernels=name).apply)(variables, images) for name in ("native", "xla"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def plain(x, kernel, padding=0):
    return unblocked(native.convolve(BlockedImages.of(x), jnp.zeros(0), kernel, padding))


def test_replicas():
    x, kernel = normal(0, 3, 2, 8, 8, 5), normal(1, 3, 3, 3, 5, 7)
    together = jax.vmap(plain)(x, kernel)
    for i in range(3):
        jax.tree.map(np.testing.assert_array_equal, (together[0][i], together[1][i]), plain(x[i], kernel[i]))


def test_no_images_at_all():
    y, sums = plain(jnp.zeros((0, 8, 8, 5)), normal(1, 3, 3, 5, 7))
    assert y.shape == (0, 6, 6, 7)
    assert not sums.any()


CHANNELS = pytest.mark.parametrize("channels", [2, 4], ids=["direct", "minimal"])


@CHANNELS
def test_not_a_number_stays_one(channels):
    x, kernel, nan = normal(0, 1, 4, 4, channels), normal(1, 3, 3, channels, 4), jnp.full(channels, jnp.nan)
    for pooled in (False, True):
        y, sums = unblocked(native.convolve(BlockedImages.of(x), jnp.stack([nan, nan]), kernel, 1, pooled))
        assert np.isnan(y).all()
        assert np.isnan(sums).all()


@CHANNELS
def test_not_a_number_reaches_what_depends_on_it(channels):
    """In values and gradients; by minimal filtering its groups of four pixels too, but no other image."""
    x, kernel = normal(0, 20, 11, 11, channels).at[1, 5, 6, 0].set(jnp.nan), normal(1, 3, 3, channels, 4)
    (y, _), vjp = jax.vjp(plain, x, kernel)
    assert np.isnan(y[1, 3:6, 4:7]).all()
    assert not np.isnan(y[1, :, :4]).any()
    assert not np.isnan(np.delete(y, 1, 0)).any()
    d_x, d_kernel = vjp((jnp.full_like(y, jnp.nan).at[:, 1:].set(0), jnp.zeros((2, 4))))
    assert np.isnan(d_x[:, :3]).all()
    assert np.isnan(d_kernel).all()


def test_the_gradient_of_images_is_computed_when_it_is_asked_for():
    x, kernel = normal(0, 2, 6, 6, 1), normal(1, 3, 3, 1, 4)
    ours, theirs = (
        jax.grad(lambda x, name=name: unblocked(ops.convolve(x, kernel, 0, name))[0].std())(x)
        for name in ("native", "xla")
    )
    close(ours, theirs)
    text = jax.jit(jax.grad(lambda kernel: plain(x, kernel)[0].std())).lower(kernel).as_text()
    assert "tensor<0xf32>, tensor<2x1xf32>" in text  # no gradient of the images, one of the scaling


def test_other_precisions_are_left_to_xla():
    with jax.enable_x64(True):
        x, kernel = jnp.ones((1, 4, 4, 2), jnp.float64), jnp.ones((3, 3, 2, 2), jnp.float64)
        lowered = jax.jit(lambda *a: ops.convolve(*a, 0, "native")).lower(x, kernel)
        assert native.PREFIX not in lowered.as_text()


def test_operation_by_operation_and_with_checks():
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    expected = plain(x, kernel)
    with jax.disable_jit():
        jax.tree.map(np.testing.assert_array_equal, plain(x, kernel), expected)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jax.block_until_ready(plain(x * np.nan, kernel))


def test_what_is_exported_has_none_of_them():
    variables, images = mnist_flax.load().variables, jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: mnist_flax.load().model.apply(variables, x)))(images)
    assert native.PREFIX not in str(exported.mlir_module())


FITTING = {"x": (1, 4, 4, 2), "scaling": (2, 2), "kernel": (3, 3, 2, 4), "y": (1, 2, 2, 4), "sums": (2, 4)}


@pytest.mark.parametrize("function", ["forward", "backward"])
@pytest.mark.parametrize(
    "changed",
    [
        *({name: (*shape[:-1], shape[-1] + 1)} for name, shape in FITTING.items()),
        *({name: shape[1:]} for name, shape in FITTING.items()),
        {"y": (2, 2, 2, 4)},
        {"y": (1, 3, 2, 4)},
        {"kernel": (5, 5, 2, 4)},
        {"kernel": (3, 2, 2, 4)},
        {"padding": -1},
        {"padding": 3, "y": (1, 8, 8, 4)},
        {"x": (1, 3, 4, 2), "y": (1, 1, 2, 4), "pooled": True},
        {"scaling": (0,), "y": (1, 2, 2, 4), "pooled": True},
        {"images": 0},
        {"images": -1},
        {"images": 17},
        {"lanes": 4},
    ],
)
def test_wrong_shapes_are_an_error(function, changed):
    shapes = {"padding": 0, "pooled": False, "images": 3, "lanes": native.num_lanes()} | FITTING | changed
    lanes = {"x": (shapes["lanes"],), "y": (shapes["lanes"],)}
    x, scaling, kernel, y, sums = (np.zeros(shapes[name] + lanes.get(name, ()), np.float32) for name in FITTING)
    arguments, results = [x, scaling, kernel], [y, sums]
    if function == "backward":
        arguments, results = [x, scaling, kernel, y, y, sums], [x, np.zeros((2, 2), np.float32), kernel]
    call = jax.ffi.ffi_call(native.PREFIX + function, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in results])
    options = {"images": np.int64(shapes["images"]), "padding": np.int64(shapes["padding"])}
    with pytest.raises(jax.errors.JaxRuntimeError, match="the shapes do not fit"):
        jax.block_until_ready(call(*arguments, **options, pooled=shapes["pooled"]))


def python(code, **environment):
    """Standard output of a new process."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


STEPS = """
import os
os.environ.pop("XLA_FLAGS", None)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
import hashlib, jax, numpy as np
from mnist_flax import data, ops
from mnist_flax.config import Config
from mnist_flax.training.mesh import make_mesh
from mnist_flax.training.programs import training_program, create_states, step_options, zero_metrics
dataset, config, mesh = data.load("digits", None, 119), Config(), make_mesh(64)
chosen = ops.choose("native", "cpu").name
training = training_program(mesh, step_options(config, dataset.normalization, 100), dataset.train, chosen)
state, totals = create_states(np.zeros(1, np.uint32), mesh, config, 100, chosen), zero_metrics(1, mesh)
state, totals = training(state, totals, training.plan(state), np.array([5], np.int32))
leaves = jax.tree.leaves((state.variables, totals))
print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not bind a process to cores")
def test_bits_do_not_depend_on_the_number_of_cores():
    found = {python(STEPS.replace("CORES", str(cores))) for cores in (1, 2)}
    assert len(found) == 1
