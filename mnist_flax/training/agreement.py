"""What all processes of a job must have in common: options, data, software, run directory, number of devices."""

import json
import secrets
import socket
from importlib.metadata import version
from pathlib import Path

import jax

from mnist_flax.config import Config, flag
from mnist_flax.data import Dataset
from mnist_flax.errors import UserError
from mnist_flax.files import code_digest
from mnist_flax.training.coordination import from_process_0, meet, state


def require_agreement(config: Config, dataset: Dataset) -> None:
    """Compare this process with process 0 before anything is written or computed.

    Raises:
        UserError: they differ; the message says in what.
    """
    _require_same_options(config, dataset)
    _require_same_directory(config.workdir)
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"{jax.local_device_count()} of the job's {jax.device_count()} devices are on {socket.gethostname()}; give "
            f"each of the {jax.process_count()} processes as many as the others"
        )
    meet("all agree")


def _require_same_options(config: Config, dataset: Dataset) -> None:
    ours = {flag(name): value for name, value in config.to_json().items() if name != "data_dir"}
    ours["SHA-256 of the images"] = dataset.digest
    ours |= {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")}
    ours["SHA-256 of mnist_flax"] = code_digest()[:8]
    theirs = json.loads(from_process_0("options", json.dumps(ours)))
    changed = [
        f"{name} is {json.dumps(ours.get(name))} instead of {json.dumps(theirs.get(name))}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if changed:
        raise UserError(
            f"this process, on {socket.gethostname()}, differs from process 0 ({'; '.join(changed)}): start all "
            "processes of a job with the same options and the same software"
        )
    meet("options agree")


def _require_same_directory(workdir: Path) -> None:
    """Process 0 makes a file under a new name, which no machine can have in its cache, and the others look for it."""
    name = from_process_0("token", f".shared-{secrets.token_hex(8)}")
    token, is_main = workdir / name, state().process_id == 0
    try:
        if is_main:
            token.touch()
        meet("token is there")
        found = token.exists()
        meet("token was looked for")
    finally:
        if is_main:
            token.unlink(missing_ok=True)
    meet("token is gone")
    if not found:
        raise UserError(
            f"--workdir {workdir} on {socket.gethostname()} is not the directory that process 0 has there; choose one "
            "on storage that all machines of the job share"
        )
