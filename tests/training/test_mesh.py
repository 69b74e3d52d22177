import jax
import pytest

from mnist_flax.training import mesh

TRIED = ("0.10.0", "0.10.1", "0.10.2", "0.11.2", "0.12.0.1")


@pytest.mark.parametrize("kernels", ["xla", "native"])
def test_xla_has_the_experimental_option(kernels):
    """Where it has it no more, training still works (see below), but on XLA's operations takes 1.3 times as long."""
    expected = {mesh.YNN: mesh.YNN_FUSIONS[kernels]}
    reason = f"XLA of JAX {jax.__version__} refuses {expected}, which was tried with JAX {', '.join(TRIED)}"
    assert mesh.compiler_options("cpu", kernels) == expected, reason


def test_an_xla_without_the_cpu_option_trains_without_it(monkeypatch):
    mesh.compiler_options.cache_clear()
    monkeypatch.setattr(mesh, "YNN", "xla_cpu_no_such_option")
    assert mesh.compiler_options("cpu") is None
    mesh.compiler_options.cache_clear()


def test_other_platforms_have_no_option_of_their_own():
    assert mesh.compiler_options("tpu") is mesh.compiler_options("gpu") is None
