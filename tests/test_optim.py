import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.model import variable_shapes
from mnist_flax.optim import make_optimizer, one_cycle


def test_golden_one_cycle(golden):
    arrays = golden("onecycle")
    steps = jnp.arange(4840)
    for schedule, name in zip(one_cycle(4840, 0.01), ("lr", "beta1"), strict=True):
        np.testing.assert_allclose(jax.vmap(schedule)(steps), arrays[name], rtol=1e-6, err_msg=name)


def test_golden_short_one_cycle(golden):
    arrays = golden("trajectory")
    for schedule, name in zip(one_cycle(12, 0.01), ("lr", "beta1"), strict=True):
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(12)), arrays[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 7])
def test_tiny_runs_have_finite_rates(total_steps):
    for schedule in one_cycle(total_steps, 0.01):
        assert np.isfinite(jax.vmap(schedule)(jnp.arange(total_steps + 1))).all()


def test_gradient_is_clipped_to_the_norm():
    params = {"w": jnp.zeros(4)}
    updates = []
    for size in (1.0, 1000.0):
        optimizer = make_optimizer("adam", 10, 0.01, clip_norm=1e-3)
        gradient = {"w": size * jnp.array([1.0, -2.0, 3.0, -4.0])}
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        updates.append(state[1].inner_state[0].mu["w"])
    np.testing.assert_allclose(updates[0], updates[1], rtol=1e-5)
    assert np.linalg.norm(updates[0]) == pytest.approx(0.05 * 1e-3, rel=1e-4)  # (1 - beta1) of the clipped gradient


def test_muon_steps_kernels_along_an_orthogonal_matrix_and_the_rest_by_adam():
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variable_shapes()["params"])
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    optimizers = [make_optimizer(name, 10, 0.01, clip_norm=1.0) for name in ("muon", "adam")]
    muon, adam = (optimizer.update(gradient, optimizer.init(params), params)[0] for optimizer in optimizers)
    rate = 0.01 / 25
    for name, block in muon.items():
        for path, update in jax.tree_util.tree_leaves_with_path(block):
            if update.ndim == 4 and name != "final_conv":
                matrix = update.reshape(-1, update.shape[-1])
                singular = np.linalg.svd(matrix, compute_uv=False) / (rate * 0.5 * max(matrix.shape) ** 0.5)
                assert 0.3 < singular.min() <= singular.max() < 1.3, (name, singular)  # Newton-Schulz stops near 1
            else:
                other = functools.reduce(lambda node, key: node[key.key], path, adam[name])
                np.testing.assert_allclose(update, other, rtol=1e-6)


def test_weight_decay_shrinks_weights_by_its_share_of_the_rate():
    params = {"block1": {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}}, "final_conv": {"bias": jnp.ones(10)}}
    gradient = jax.tree.map(jnp.zeros_like, params)
    for name, decayed in (("muon", {"block1"}), ("adam", {"block1", "final_conv"})):
        optimizer = make_optimizer(name, 10, 0.02, clip_norm=1.0, weight_decay=0.5)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        for layer, update in updates.items():
            expected = -0.02 / 25 * 0.5 if layer in decayed else 0
            for leaf in jax.tree.leaves(update):
                np.testing.assert_allclose(leaf, expected, rtol=1e-5)
