import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import normal
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from mnist_flax.model import variable_shapes
from mnist_flax.optim import make_optimizer, one_cycle
from mnist_flax.packed import global_norm, pack, unpack


def test_golden_one_cycle(golden):
    arrays = golden("onecycle")
    steps = jnp.arange(4840)
    for schedule, name in zip(one_cycle(4840, 0.01), ("lr", "beta1"), strict=True):
        np.testing.assert_allclose(jax.vmap(schedule)(steps), arrays[name], rtol=1e-6, err_msg=name)


def test_golden_short_one_cycle(golden):
    arrays = golden("trajectory")
    for schedule, name in zip(one_cycle(12, 0.01), ("lr", "beta1"), strict=True):
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(12)), arrays[name], rtol=1e-6, err_msg=name)


def parameters(seed=0):
    """A tree like the network's, of random numbers."""
    leaf = lambda p: normal(p.size + seed, *p.shape)  # noqa: E731
    return jax.tree.map(leaf, variable_shapes()["params"])


def update(optimizer, gradient, params):
    """The first update of an optimizer."""
    return unpack(optimizer.update(pack(gradient), optimizer.init(pack(params)), pack(params))[0])


def test_packing_keeps_every_number():
    params = parameters()
    packed = pack(params)
    assert packed.kernels.shape == (8, 20, 144)
    assert packed.rest.size == 12_534 - sum(rows * columns for rows, columns in packed.like.matrices)
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), params)
    expected = np.linalg.norm(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]))
    assert float(global_norm(packed)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_updates_are_those_of_optax(name):
    """Optax's own Adam and Muon, kernel by kernel, for three steps; Muon's iterations round in another order."""
    rate, beta1 = one_cycle(10, 0.01)
    adam = optax.inject_hyperparams(optax.adam, static_args=("b2", "eps", "eps_root"))(rate, b1=beta1)
    axes = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=lambda kernels: jax.tree.map(lambda _: axes, kernels)),
        optax.stateless(lambda kernels, _: jax.tree.map(lambda k: k * 0.5 * (k.size / k.shape[-1]) ** 0.5, kernels)),
        optax.scale_by_learning_rate(rate),
    )
    params = parameters()
    clip, theirs, mine = (
        optax.clip_by_global_norm(1.0),
        {True: muon, False: adam},
        make_optimizer(name, 10, 0.01, clip_norm=1.0),
    )
    is_kernel = [name == "muon" and p[0].key != "final_conv" and x.ndim == 4 for p, x in leaves_with_path(params)]
    state = mine.init(pack(params))
    groups = [k for k in (True, False) if k in is_kernel]
    of = lambda tree, kind: [x for x, k in zip(jax.tree.leaves(tree), is_kernel, strict=True) if k == kind]  # noqa: E731
    states = {kind: theirs[kind].init(of(params, kind)) for kind in groups}
    for step in range(3):
        gradient = parameters(step + 1)
        ours, state = mine.update(pack(gradient), state, pack(params))
        clipped, _ = clip.update(gradient, clip.init(params))
        for kind in groups:
            expected, states[kind] = theirs[kind].update(of(clipped, kind), states[kind], of(params, kind))
            for a, b in zip(of(unpack(ours), kind), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 7])
def test_tiny_runs_have_finite_rates(total_steps):
    for schedule in one_cycle(total_steps, 0.01):
        assert np.isfinite(jax.vmap(schedule)(jnp.arange(total_steps + 1))).all()


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_all_that_is_remembered_may_be_donated(name):
    """A step that is given a state to write over must not get an array twice."""
    arrays = jax.tree.leaves(make_optimizer(name, 10, 0.01, clip_norm=1.0).init(pack(parameters())))
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays)


def test_gradient_is_clipped_to_the_norm():
    params = {"w": jnp.zeros(4)}
    updates = []
    for size in (1.0, 1000.0):
        optimizer = make_optimizer("adam", 10, 0.01, clip_norm=1e-3)
        gradient = {"w": size * jnp.array([1.0, -2.0, 3.0, -4.0])}
        _, state = optimizer.update(pack(gradient), optimizer.init(pack(params)), pack(params))
        updates.append(unpack(state.momentum)["w"])
    np.testing.assert_allclose(updates[0], updates[1], rtol=1e-5)
    assert np.linalg.norm(updates[0]) == pytest.approx(0.05 * 1e-3, rel=1e-4)  # (1 - beta1) of the clipped gradient


def test_muon_steps_kernels_along_an_orthogonal_matrix_and_the_rest_by_adam():
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variable_shapes()["params"])
    gradient = jax.tree.map(lambda p: normal(p.size, *p.shape), params)
    optimizers = [make_optimizer(name, 10, 0.01, clip_norm=1.0) for name in ("muon", "adam")]
    muon, adam = (update(optimizer, gradient, params) for optimizer in optimizers)
    rate = 0.01 / 25
    for name, block in muon.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(block):
            if leaf.ndim == 4 and name != "final_conv":
                matrix = leaf.reshape(-1, leaf.shape[-1])
                singular = np.linalg.svd(matrix, compute_uv=False) / (rate * 0.5 * max(matrix.shape) ** 0.5)
                assert 0.3 < singular.min() <= singular.max() < 1.3, (name, singular)  # Newton-Schulz stops near 1
            else:
                other = functools.reduce(lambda node, key: node[key.key], path, adam[name])
                np.testing.assert_allclose(leaf, other, rtol=1e-6)
