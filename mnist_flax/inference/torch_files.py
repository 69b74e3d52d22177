"""Reads weights files of unknown origin: PyTorch's old and new formats, and safetensors. Runs no code from the file."""

import io
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mnist_flax.errors import UserError, require

ADVICE = 'in the program that made it, torch.save(model.state_dict(), "weights.pth") writes a file that can be read'

_ZIP = b"PK\x03\x04"  # since PyTorch 1.6
_OLD = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # before: a pickle of this number comes first, after its protocol
_FLOATS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
# The pickle opcode GLOBAL, which names a class or a function.
_GLOBAL = re.compile(rb"c([\w.]+)\n([\w.]+)\n")


class StandIn:
    """Stands for an object whose class is not PyTorch's own. It keeps nothing of the object but its class's name."""

    def __new__(cls, *_: object) -> "StandIn":
        """Take the object's arguments, whatever they are."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """Take the object's state, whatever it is."""


def is_pytorch(head: bytes) -> bool:
    """Whether a file with this beginning was written by `torch.save`."""
    return head.startswith(_ZIP) or _OLD in head[:32]


def refuse_pytorch(path: Path) -> None:
    """Raise an error that names `import-weights` if a file was written by `torch.save`.

    Raises:
        UserError: it was.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if is_pytorch(file.read(32)):
            raise UserError(needs_import(path))


def needs_import(path: Path) -> str:
    """The sentence for a file with PyTorch's weights where one of this project's is needed."""
    output = shlex.quote(str(path.with_suffix(".imported.safetensors")))
    command = f"mnist-flax import-weights {shlex.quote(str(path))} --output {output}"
    return f"{path} holds PyTorch weights; {command} makes a file that can be used here"


def read(path: Path) -> object:
    """What a file holds: dictionaries and lists of tensors and other values; of a safetensors file a flat dictionary.

    The content decides what kind of file it is, not the name.

    Raises:
        UserError: it is neither, is damaged, or cannot be read without running code from it.
        OSError: it cannot be opened.
    """
    data = path.read_bytes()
    return _read_pytorch(path, data) if is_pytorch(data[:32]) else _read_safetensors(path, data)


def _read_pytorch(path: Path, data: bytes) -> Any:
    torch = require("torch", f"to read {path.name}")
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # new in 2.6, as named `safe_globals` are
        raise UserError(f"PyTorch {torch.__version__} is too old to read {path.name}: pip install 'torch>=2.6'")
    # PyTorch looks a name up among those it trusts first, so only the others get a stand-in. Whatever `data` names,
    # nothing but stand-ins is called for it: not even NumPy's own scalars, whose state could damage NumPy's types.
    names = {b".".join(found).decode() for found in _GLOBAL.findall(data)}
    stand_ins = [(type(name, (StandIn,), {}), name) for name in sorted(names)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # it raises what the file makes it raise, in paragraphs
        reason = "damaged, incomplete, or with objects that only their own code can read"
        raise UserError(f"{path}: {reason}; {ADVICE}") from error
    if isinstance(loaded, StandIn):
        raise UserError(f"{path}: a whole model ({describe(loaded)}), which only its own code can read; {ADVICE}")
    return loaded


def _read_safetensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        return {
            name: np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in deserialize(data)
            if tensor["dtype"] in _FLOATS
        }
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: neither a PyTorch file nor a sound safetensors file ({error}); {ADVICE}") from error


def describe(value: object) -> str:
    """The kind of a value, in words for a message."""
    return f"an object of class {type(value).__name__}" if isinstance(value, StandIn) else type(value).__name__
