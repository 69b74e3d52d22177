import contextlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

import mnist_flax
from mnist_flax import import_weights
from mnist_flax.errors import UserError
from mnist_flax.inference import interop, state_dicts

PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "module._orig_mod.model.",
    "model.module.module.",
    "teacher.",
]


@pytest.fixture(scope="module")
def plain(golden_weights):
    """The network's state dict."""
    return {name: np.ascontiguousarray(value) for name, value in interop.to_pytorch(golden_weights).items()}


TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "F8_E5M2": jnp.float8_e5m2}


def as_bytes(tensors, dtype):
    """A safetensors file with numbers of a type that the package's writer may not know."""
    header, data = {}, b""
    for name, value in tensors.items():
        part = value.astype(TYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), np.asarray(value, np.float32), err_msg=name)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", TYPES)
def test_safetensors_files(plain, tmp_path, prefix, dtype):
    for name in ("weights.safetensors", "weights.PTH", "weights"):
        (tmp_path / name).write_bytes(as_bytes({prefix + key: value for key, value in plain.items()}, dtype))
        same(state_dicts.read(tmp_path / name), {key: value.astype(TYPES[dtype]) for key, value in plain.items()})


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_of_every_type_are_imported(plain, dtype):
    given = {key: value.astype(TYPES[dtype]) for key, value in plain.items()}
    same(interop.to_pytorch(interop.from_pytorch(given)), given)


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "net", "model_state", "weights", "best"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_entry_beside_others(plain, entry, prefix):
    prefixed = {prefix + name: value for name, value in plain.items()}
    optimizer = {"state": {0: {"exp_avg": plain["block1.0.weight"]}}, "param_groups": [{"lr": 0.1}]}
    same(state_dicts.find({"epoch": 3, entry: prefixed, "optimizer": optimizer}), plain)
    same(state_dicts.find({"checkpoint": {entry: prefixed}, "epoch": 3}), plain)
    same(state_dicts.find([prefixed, 0.99]), plain)


def test_wrappers_inside_the_network_and_averages(plain):
    given = {name.replace("block3.", "block3._orig_mod."): value for name, value in plain.items()}
    averaged = {"n_averaged": np.array(3), **{f"module.{name}": value for name, value in given.items()}}
    same(interop.to_pytorch(interop.from_pytorch(state_dicts.find(averaged))), plain)


def test_of_several_the_usual_name_is_meant(plain):
    average = {name: value * 2 for name, value in plain.items()}
    same(state_dicts.find({"model_ema": average, "model": plain}), plain)
    with pytest.raises(ValueError, match="more than once, as 'ema' and 'best'; save one of them alone"):
        state_dicts.find({"ema": average, "best": plain})
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in plain.items()}
    with pytest.raises(ValueError, match=r"several networks \('block1.0.weight' occurs more than once\)"):
        state_dicts.find(both)


ADVICE = 'in the program that made it, torch.save(model.state_dict(), "weights.pth") writes a file that can be read'
NETWORK = "only a state dict of the reference network ('block1.0.weight', 'block1.1.weight' and so on) can be imported"
OTHER = {f"conv{i}.weight": np.zeros(3) for i in range(5)}
OTHERS_NAMES = "'conv0.weight', 'conv1.weight', 'conv2.weight' and 2 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OTHER, f"the tensors of another network ({OTHERS_NAMES}); {NETWORK}"),
        ({"model": OTHER, "epoch": 1}, f"the tensors of another network ({OTHERS_NAMES}); {NETWORK}"),
        ({"\x1b[1mred": np.zeros(3)}, rf"the tensors of another network ('\x1b[1mred'); {NETWORK}"),
        (
            {"epoch": 3, "args": "x"},
            f"no state dict of the reference network, but 'epoch' (int), 'args' (str); {ADVICE}",
        ),
        ({}, f"no state dict of the reference network, but nothing; {ADVICE}"),
        (7, f"no state dict, but int; {ADVICE}"),
        (
            {"params/block1/conv/kernel": np.zeros(3)},
            "already a file of this project; the other commands take it as it is",
        ),
    ],
)
def test_something_else_is_named(content, message):
    with pytest.raises(ValueError, match=r"network|state dict|project") as raised:
        state_dicts.find(content)
    assert str(raised.value) == message


def test_a_part_of_the_network_is_named(plain, tmp_path):
    part = {name: value for name, value in plain.items() if name != "final_conv.bias"}
    (tmp_path / "w").write_bytes(save(part))
    with pytest.raises(ValueError, match=r"missing \['final_conv.bias'\], unknown \[\]"):
        interop.from_pytorch(state_dicts.read(tmp_path / "w"))


def test_files_of_another_make(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(UserError, match=r"w.safetensors: neither a PyTorch file nor a sound safetensors file \("):
        state_dicts.read(tmp_path / "w.safetensors")
    for name in ("", "missing.pth"):
        with pytest.raises(OSError, match="directory"):
            state_dicts.read(tmp_path / name)


def test_commands_name_import_weights(plain, tmp_path, capsys):
    for name, content in (("a b.pth", b"PK\x03\x04"), ("old.bin", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pytorch.safetensors").write_bytes(save({f"module.{key}": value for key, value in plain.items()}))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=r"holds PyTorch weights; mnist-flax import-weights .*'? --output .*\.imp"):
            mnist_flax.load(path)
    with pytest.raises(
        UserError, match=r"import-weights '[^']*/a b.pth' --output '[^']*/a b.imported.safetensors' makes"
    ):
        mnist_flax.load(tmp_path / "a b.pth")
    imported = tmp_path / "pytorch imported.safetensors"
    import_weights.main([str(tmp_path / "pytorch.safetensors"), "--output", str(imported)])
    assert capsys.readouterr().out.endswith(f".evaluate '{imported}'\n")
    same(interop.to_pytorch(mnist_flax.load(imported).variables), plain)


NAMES = st.sampled_from(["model", "state_dict", "block1.0.weight", "module.block1.1.bias", "final_conv.weight", "a", 0])
LEAVES = st.none() | st.integers() | st.text(max_size=3) | st.just(np.zeros(8)) | st.just(np.zeros((8, 1, 3, 3)))
CONTENT = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(NAMES, some, max_size=4), max_leaves=20
)


@given(CONTENT)
def test_fuzz_what_state_dicts_are_in(content):
    with contextlib.suppress(ValueError):
        interop.from_pytorch(state_dicts.find(content))


@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8)), max_size=4))
def test_fuzz_safetensors_state_dicts(plain, tmp_path_factory, edits):
    data = save(plain)
    for position, noise in edits:
        data = data[:position] + noise + data[position + len(noise) :]
    path = tmp_path_factory.getbasetemp() / "edited-state-dict"
    path.write_bytes(data)
    with contextlib.suppress(UserError, ValueError):
        interop.from_pytorch(state_dicts.read(path))
