import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
        optimizer = make_optimizer(10, 0.01, clip_norm=1e-3)
        gradient = {"w": size * jnp.array([1.0, -2.0, 3.0, -4.0])}
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        updates.append(state[1].inner_state[0].mu["w"])
    np.testing.assert_allclose(updates[0], updates[1], rtol=1e-5)
    assert np.linalg.norm(updates[0]) == pytest.approx(0.05 * 1e-3, rel=1e-4)  # (1 - beta1) of the clipped gradient
