"""JAX as a machine and its user's environment give it: which devices there are, in which modes it computes."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import backend

from mnist_flax.errors import UserError

# What names a platform to JAX: options, which these environment variables set.
ASKED_BY = {"jax_platforms": "JAX_PLATFORMS", "jax_platform_name": "JAX_PLATFORM_NAME"}


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """JAX in the modes that it has by default, whatever the environment or the caller has set: also as a decorator.

    Programs are the same then, and so are their bits. In double precision the types of a loop's values do not match,
    other generators draw other numbers, and operation by operation nothing is compiled ahead.
    """
    with (
        jax.enable_x64(False),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
    ):
        yield


def devices() -> list[Any]:
    """JAX's devices. What needs them asks here first.

    Raises:
        UserError: there are none of the kind that the environment asks for.
    """
    try:
        return jax.devices()
    except Exception as error:  # JAX has several types for it, an AssertionError too
        reason = " ".join(re.split(r" \((?:set|you may)", str(error))[0].split()) or "no such device is visible"
        asked = {name: jax.config.values[option] for option, name in ASKED_BY.items() if jax.config.values[option]}
        if not asked:
            raise UserError(
                f"JAX cannot use this machine's devices ({reason}): see what JAX_* variables and XLA_FLAGS say; "
                "JAX_PLATFORMS=cpu uses the CPU alone"
            ) from error
        settings = " ".join(f"{name}={value}" for name, value in asked.items())
        raise UserError(
            f"{settings}: JAX finds no such device here ({reason}); what it finds is {', '.join(_found())}. Unset "
            f"{' and '.join(asked)}; a GPU or TPU also needs JAX's package for it, such as jax[cuda13]"
        ) from error


def _found() -> list[str]:
    """The platforms that JAX finds if it is asked for none."""
    wanted = jax.config.values["jax_platforms"]
    backend.clear_backends()
    jax.config.update("jax_platforms", None)
    try:
        return list(backend.backends())
    finally:
        backend.clear_backends()
        jax.config.update("jax_platforms", wanted)


def num_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
