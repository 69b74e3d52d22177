"""Files as `torch.save` writes them, made by PyTorch itself."""

import argparse
import collections
import contextlib
import io
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_flax.errors import UserError
from mnist_flax.inference import formats, interop, state_dicts, torch_files
from mnist_flax.inference.classifier import Classifier

torch = pytest.importorskip("torch")

ENTRIES = [None, "state_dict", "model", "model_state_dict", "net", "model_state", "weights"]
PREFIXES = ["", "module.", "_orig_mod.", "model.", "net.", "_orig_mod.module.", "module.model._orig_mod.module."]
DTYPES = ["float32", "float16", "bfloat16", "float64"]
NAMES = ["w.pth", "w.bin", "w.ckpt", "w.pth.tar", "W.PTH", "w", "w.safetensors"]
ADVICE = 'in the program that made it, torch.save(model.state_dict(), "weights.pth") writes a file that can be read'
DAMAGED = f"damaged, incomplete, or with objects that only their own code can read; {ADVICE}"


@pytest.fixture(scope="module")
def tensors(golden_weights):
    """The network's state dict in PyTorch."""
    arrays = interop.to_pytorch(golden_weights)
    counts = {f"{block}.1.num_batches_tracked": torch.tensor(7) for block in interop.BLOCKS}
    return {**{name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, **counts}


def save(path, content, **options):
    """`torch.save` by way of bytes: older versions open paths of their own accord."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    path.write_bytes(file.getvalue())
    return path


def check(path, tensors, dtype="float32"):
    """The file's weights are the tensors, rounded to the type."""
    found = interop.to_pytorch(interop.from_pytorch(state_dicts.read(path)))
    assert set(found) == {name for name in tensors if not name.endswith("tracked")}
    for name, value in found.items():
        expected = tensors[name].to(getattr(torch, dtype)).to(torch.float32).numpy()
        np.testing.assert_array_equal(value, expected, err_msg=name)


def refusal(path):
    """The sentence about a file, without its path."""
    with pytest.raises(UserError) as raised:
        interop.from_pytorch(state_dicts.read(path))
    sentence = str(raised.value)
    assert sentence.startswith(f"{path}: ")
    assert sentence.isprintable()
    return sentence.removeprefix(f"{path}: ")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_prefixes_types_names_and_formats(tensors, tmp_path, entry, prefix):
    for dtype, old, name in itertools.product(DTYPES, (False, True), NAMES):
        if (DTYPES.index(dtype) + old - NAMES.index(name)) % 4:  # every pair of two occurs
            continue
        part = {prefix + key: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for key, v in tensors.items()}
        optimizer = {"state": {0: {"exp_avg": tensors["block1.0.weight"]}}, "param_groups": [{"lr": 0.1}]}
        content = {"epoch": 3, entry: part, "optimizer": optimizer} if entry else collections.OrderedDict(part)
        check(save(tmp_path / name, content, _use_new_zipfile_serialization=not old), tensors, dtype)


@pytest.mark.parametrize("old", [False, True])
def test_parameters_and_tensors_of_every_layout(tensors, tmp_path, old):
    given = {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in tensors.items()}
    given["block2.0.weight"] = tensors["block2.0.weight"].to(memory_format=torch.channels_last)
    check(save(tmp_path / "w", given, _use_new_zipfile_serialization=not old), tensors)


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_other_devices(tensors, tmp_path, monkeypatch, device, old):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: device)
    path = save(tmp_path / "w", tensors, _use_new_zipfile_serialization=not old)
    assert device.encode() in path.read_bytes()
    check(path, tensors)


class Settings:
    """An object of a program that only this program knows."""

    def __init__(self):
        self.rate = 0.1


OTHERS = [
    np.float64(0.99),
    np.int64(3),
    np.arange(3.0),
    np.datetime64("2024-01-01"),
    argparse.Namespace(rate=0.1),
    Settings(),
    Path("a/b"),
    {"metrics": [np.float32(1)]},
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: type(other).__name__)
def test_other_objects_beside_the_weights_are_passed_over(tensors, tmp_path, monkeypatch, other, old):
    path = save(tmp_path / "w", {"model": tensors, "best": other}, _use_new_zipfile_serialization=not old)
    monkeypatch.setattr(np, "dtype", None)  # nothing of NumPy's is called for it either
    monkeypatch.setattr(Settings, "__setstate__", None, raising=False)
    content = torch_files.read(path)
    monkeypatch.undo()
    assert isinstance(content["best"], torch_files.StandIn | dict)
    check(path, tensors)


class Calls:
    """A pickle that runs code when it is read."""

    def __init__(self, function, *arguments):
        self.result = function, arguments

    def __reduce__(self):
        return self.result


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, Path.mkdir, np.save, getattr])
def test_no_code_is_run(tensors, tmp_path, function, old):
    target = tmp_path / "made"
    argument = {os.system: f"mkdir {target}", eval: f"__import__('os').mkdir({str(target)!r})"}.get(
        function, str(target)
    )
    content = {"model": tensors, "more": Calls(function, argument)}
    path = save(tmp_path / "w", content, _use_new_zipfile_serialization=not old)
    with contextlib.suppress(UserError):
        check(path, tensors)
    assert list(tmp_path.iterdir()) == [path]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)


def whole(name):
    return f"a whole model (an object of class {name}), which only its own code can read; {ADVICE}"


BAD = {
    "model": (lambda: Net(), whole(f"{__name__}.Net")),
    "sequential": (lambda: torch.nn.Sequential(Net()), whole("torch.nn.modules.container.Sequential")),
    "model in an entry": (
        lambda: {"model": Net(), "epoch": 3},
        f"no state dict of the reference network, but 'model' (an object of class {__name__}.Net), 'epoch' (int); "
        + ADVICE,
    ),
    "optimizer": (
        lambda: {"epoch": 3, "lr": 0.1, "best": np.float64(3), "more": None},
        "no state dict of the reference network, but 'epoch' (int), 'lr' (float), 'best' (an object of class "
        f"{np.float64(3).__reduce__()[0].__module__}.scalar) and 1 more; {ADVICE}",
    ),
    "tensor": (lambda: torch.ones(3), f"no state dict, but Tensor; {ADVICE}"),
    "another network": (
        lambda: Net().state_dict(),
        "the tensors of another network ('conv.weight', 'conv.bias'); only a state dict of the reference network "
        "('block1.0.weight', 'block1.1.weight' and so on) can be imported",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_something_else_is_named(tmp_path, name):
    make, message = BAD[name]
    assert refusal(save(tmp_path / "w.pth", make())) == message


@pytest.mark.filterwarnings("ignore")  # an old format for whole models, and TorchScript
def test_what_cannot_be_read(tensors, tmp_path):
    cut = save(tmp_path / "w.pth", tensors)
    cut.write_bytes(cut.read_bytes()[:-100])
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    files = [cut, tmp_path / "script.pt", save(tmp_path / "p4", tensors, pickle_protocol=4)]
    files.append(save(tmp_path / "old", Net(), _use_new_zipfile_serialization=False))
    for path in files:
        assert refusal(path) == DAMAGED
    (tmp_path / "w.pickle").write_bytes(pickle.dumps({"a": 1}))
    assert refusal(tmp_path / "w.pickle").startswith("neither a PyTorch file nor a sound safetensors file (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * float("nan"), "some of its numbers are NaN or infinite"),
        (lambda value: value.to(torch.complex64), "numbers of type complex64, expected floating-point numbers"),
        (lambda value: value.to(torch.int32), "numbers of type int32, expected floating-point numbers"),
        (lambda value: value.to_sparse(), "not a plain tensor"),
        (lambda value: value.to("meta"), "not a plain tensor"),
        (lambda value: value[:1].expand(10**9), r"shape \(1000000000,\), expected \(8,\)"),
        (lambda value: 0.5, r"shape \(\), expected \(8,\)"),
    ],
)
def test_entries_that_are_no_weights_are_named(tensors, tmp_path, change, message):
    given = {**tensors, "block1.1.bias": change(tensors["block1.1.bias"])}
    with pytest.raises(ValueError, match=rf"^block1\.1\.bias: {message}$"):
        interop.from_pytorch(state_dicts.read(save(tmp_path / "w", given)))


def test_a_pytorch_that_is_too_old_is_named(tensors, tmp_path, monkeypatch):
    path = save(tmp_path / "w.pth", tensors)
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    with pytest.raises(UserError, match=r"is too old to read w.pth: pip install 'torch>=2.6'"):
        state_dicts.read(path)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.ckpt", "w"])
def test_exported_files_are_what_torch_load_reads(golden_weights, card, tensors, tmp_path, name):
    formats.FORMATS["pytorch"](Classifier(golden_weights, card), tmp_path / name, formats.LOGITS)
    loaded = torch.load(tmp_path / name, weights_only=True)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items() if not key.endswith("tracked"))


EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=8)), max_size=4)


@given(EDITS, st.booleans(), st.integers(1, 2**20))
def test_fuzz_pytorch_files(tensors, tmp_path_factory, edits, old, length):
    file = io.BytesIO()
    torch.save({"model": tensors, "best": np.float64(1)}, file, _use_new_zipfile_serialization=not old)
    data = file.getvalue()[:length]
    for position, noise in edits:
        position %= min(len(data), 9000)  # the pickle and its neighbourhood
        data = data[:position] + noise + data[position + len(noise) :]
    path = tmp_path_factory.getbasetemp() / "edited.pth"
    path.write_bytes(data)
    with contextlib.suppress(UserError, ValueError):
        interop.from_pytorch(state_dicts.read(path))
