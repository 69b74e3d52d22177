"""Finds the network's weights in files of other programs: beside other entries, under names with prefixes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.inference import interop, torch_files
from mnist_flax.model import BLOCKS

_LAYERS = {*BLOCKS, "final_conv"}
# Put into names by DataParallel and DistributedDataParallel, torch.compile, Fabric and FSDP, also inside the network.
_WRAPPER_PARTS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What the entry with the weights is usually called; the first is taken if there are several.
_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "model_state", "weights")


def read(path: Path) -> dict[str, Any]:
    """The network's state dict, as `interop.from_pytorch` takes it, in a PyTorch or safetensors file.

    Raises:
        UserError: the file cannot be read, or holds no state dict of this network.
        OSError: it cannot be opened.
    """
    content = torch_files.read(path)
    try:
        return find(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def find(content: object) -> dict[str, Any]:
    """The network's state dict in what a file holds, under the names that `interop.from_pytorch` takes.

    It may be an entry beside others, such as an optimizer's state, and its names may have prefixes.

    Raises:
        ValueError: there is none, or there are several and nothing says which one is meant.
    """
    found = [(where, _without_prefixes(entry)) for where, entry in _dictionaries(content)]
    known = [len(interop.names().keys() & _tensors(entry)) for _, entry in found]
    if not any(known):
        raise ValueError(_what_else(content))
    best = [entry for entry, count in zip(found, known, strict=True) if count == max(known)]
    chosen = next(([entry] for name in _ENTRIES for entry in best if entry[0] == name), best)
    if len(chosen) > 1:
        names = " and ".join(repr(where) for where, _ in chosen)
        raise ValueError(f"weights of the network more than once, as {names}; save one of them alone")
    return chosen[0][1]


def _dictionaries(content: object, where: str = "", depth: int = 3) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The dictionaries in what a file holds, each with the name of its entry."""
    if isinstance(content, dict):
        yield where, content
    if depth and isinstance(content, dict | list | tuple):
        for name, entry in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _dictionaries(entry, str(name), depth - 1)


def _tensors(entry: dict[Any, Any]) -> list[Any]:
    """The names of a dictionary's tensors."""
    return [name for name, value in entry.items() if hasattr(value, "shape")]


def _without_prefixes(entry: dict[Any, Any]) -> dict[str, Any]:
    """A dictionary with "model.module.block1._orig_mod.0.weight" as "block1.0.weight", and other names as they are.

    Raises:
        ValueError: two entries get the same name.
    """
    plain: dict[str, Any] = {}
    for name, value in entry.items():
        parts = str(name).split(".")
        first = next((i for i, part in enumerate(parts) if part in _LAYERS), None)
        short = str(name) if first is None else ".".join(part for part in parts[first:] if part not in _WRAPPER_PARTS)
        if short in plain:
            raise ValueError(f"several networks ({short!r} occurs more than once); save one of them alone")
        plain[short] = value
    return plain


def _what_else(content: object) -> str:
    """The message about a file without weights of this network."""
    dictionaries = [entry for _, entry in _dictionaries(content)]
    others = _tensors(max(dictionaries, key=lambda entry: len(_tensors(entry)), default={}))
    if any(str(name).startswith("params/block1/") for name in others):
        return "already a file of this project; the other commands take it as it is"
    if others:
        expected = ", ".join(map(repr, list(interop.names())[:2]))
        return (
            f"the tensors of another network ({_listed(map(repr, others))}); only a state dict of the reference "
            f"network ({expected} and so on) can be imported"
        )
    if isinstance(content, dict):
        entries = _listed(f"{name!r} ({torch_files.describe(value)})" for name, value in content.items())
        return f"no state dict of the reference network, but {entries or 'nothing'}; {torch_files.ADVICE}"
    return f"no state dict, but {torch_files.describe(content)}; {torch_files.ADVICE}"


def _listed(words: Iterator[str]) -> str:
    """The first of the words, each cut short."""
    shown = [word if len(word) <= 80 else f"{word[:80]}…" for word in words]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
