"""Reading checkpoints of a run: for the run itself, and for others, who change nothing.

`explained` is for writing them too.
"""

import gc
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.training import checkpoint_files
from mnist_flax.training.checkpoint_files import Ours, numbered
from mnist_flax.training.sums import SUMS

_USABLE = "sound", "unlisted"
DAMAGE = "its files are not those that were saved"
UNLISTED = f"has lost its {SUMS}, as in a copy, but all of it can be read, so it is used"


def find(directory: Path) -> Path:
    """The newest sound checkpoint in a directory of checkpoints; or `directory` itself, if it is a checkpoint.

    Warns of newer ones that are damaged, and of one that is used though its sums are lost.

    Raises:
        UserError: there is none, or only damaged ones.
    """
    with explained(f"cannot use {directory} for checkpoints"):
        found = condition(directory)
        if found == "damaged":
            raise UserError(f"{directory} is damaged ({DAMAGE}): restore it from a copy, or use another checkpoint")
        checkpoints = [directory] if found in _USABLE else reversed(numbered(directory))
        damaged = any(directory.glob("damaged-*"))
        for path in checkpoints:
            found = condition(path)
            if found in _USABLE:
                if found == "unlisted":
                    warnings.warn(f"{path} {UNLISTED}", stacklevel=2)
                return path
            if found == "damaged":
                warnings.warn(f"{path} is damaged ({DAMAGE}) and passed over", stacklevel=2)
                damaged = True
        raise none_left(directory) if damaged else UserError(f"{directory} holds no finished checkpoint")


def _readers(alone: bool) -> ocp.options.MultiprocessingOptions:
    """Who reads: by default Orbax waits until all processes of a job do."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        **({"primary_host": process, "active_processes": {process}} if alone else {})
    )


def read(checkpoint: Path, like: Any, *, alone: bool = True) -> tuple[Any, dict[str, Any]]:
    """Arrays and metadata of a sound checkpoint, the arrays placed like those of `like`.

    `alone` says that this process reads without the others of its job.

    Raises:
        UserError: it cannot be read, or does not fit `like`.
    """
    with (
        explained(f"cannot read {checkpoint}"),
        ocp.StandardCheckpointer(multiprocessing_options=_readers(alone)) as arrays,
    ):
        return arrays.restore(checkpoint.absolute() / "state", like), read_metadata(checkpoint, alone=alone)


def read_metadata(checkpoint: Path, *, alone: bool = True) -> Any:
    """The metadata of a sound checkpoint; `alone` as in `read`.

    Raises:
        UserError: it cannot be read.
    """
    handler, options = ocp.JsonCheckpointHandler(), _readers(alone)
    with explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as json:
        return json.restore(checkpoint.absolute() / "metadata")


def read_arrays(checkpoint: Path, names: Any) -> Any:
    """Some arrays of a sound checkpoint, whatever their shapes: those at the leaves of the tree `names`.

    Raises:
        UserError: it cannot be read, or lacks some of them.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    some = ocp.args.PyTreeRestore(item=names, restore_args=as_numpy, partial_restore=True)
    handler, options = ocp.PyTreeCheckpointHandler(), _readers(alone=True)
    with explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as arrays:
        return arrays.restore(checkpoint.absolute() / "state", args=some)


def condition(checkpoint: Path, ours: Ours = lambda metadata: True) -> str:
    """As `checkpoint_files.condition`, but one that is "unlisted" can be read; else it is "damaged"."""
    found = checkpoint_files.condition(checkpoint, ours)
    return "damaged" if found == "unlisted" and not _can_be_read(checkpoint) else found


def _can_be_read(checkpoint: Path) -> bool:
    """Whether all arrays that a checkpoint says it has can be read."""
    handler, options = ocp.PyTreeCheckpointHandler(), _readers(alone=True)
    try:
        with (
            explained(f"cannot read {checkpoint}"),
            ocp.Checkpointer(handler, multiprocessing_options=options) as arrays,
        ):
            names = arrays.metadata(checkpoint.absolute() / "state").item_metadata
        read_arrays(checkpoint, names.tree)
        return True
    except (UserError, AttributeError):
        pass
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    gc.collect()  # or what Orbax left of its tasks would print a traceback each, whenever Python comes to it
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    return False


def none_left(directory: Path) -> UserError:
    """The error of a directory without a sound checkpoint. What else the run holds may be sound: nothing is deleted."""
    return UserError(
        f"{directory} has no sound checkpoint left: restore one of them from a copy, or train into a new --workdir"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any exception into one sentence: Orbax and TensorStore report a full disk in many ways, with pages of log.

    Raises:
        UserError: in place of any exception.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        level = logging.CRITICAL  # Orbax's threads have yet to log it
        raise UserError(f"{what}: {_reason(error)}") from error
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Why something failed, in a few words: the system's, if it is the system that refused."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "tree structures do not match" in text:
        return "another version of mnist_flax wrote it; use that one, or train anew with --overwrite"
    # TensorStore's errors are no OSError, but end in the number of one.
    if number := getattr(error, "errno", None) or next(iter(re.findall(r"os_error_code='(\d+)'", text)), None):
        return os.strerror(int(number))
    return text[:300]
