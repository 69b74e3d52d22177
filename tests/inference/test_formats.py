import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax import data, export
from mnist_flax.errors import UserError
from mnist_flax.files import SIGN
from mnist_flax.inference import formats, integers, interop, onnx_files, weights
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.onnx_files import Variant

DOCS = Path(__file__).parents[2] / "docs/deploy.md"


@pytest.fixture(scope="module")
def network(golden_weights, card):
    return Classifier(golden_weights, card)


@pytest.mark.parametrize(
    ("file_format", "name"),
    [
        ("safetensors", "w.safetensors"),
        ("pytorch", "w.safetensors"),
        ("pytorch", "w.pth"),
        ("pytorch", "w.ckpt"),
        ("stablehlo", "w.stablehlo"),
        ("onnx", "w.onnx"),
    ],
)
def test_written_files_agree(network, tmp_path, file_format, name):
    if name in ("w.pth", "w.ckpt"):
        pytest.importorskip("torch")
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    assert formats.export(network, file_format, tmp_path / name) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("file_format", export.PROGRAMS)
def test_probabilities_are_the_calibrated_ones(file_format, tmp_path, capsys):
    if file_format == "onnx":
        runtime = pytest.importorskip("onnxruntime")
    file, images = tmp_path / "w", data.load("digits", None, 0).test.images
    options = ["--format", file_format, "--output", str(file)]
    export.main([*options, "--probabilities", "--json"])
    assert json.loads(capsys.readouterr().out)["output_kind"] == "probabilities"
    if file_format == "onnx":
        session = runtime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
        probabilities = session.run(["probabilities"], {"images": images})[0]
    else:
        probabilities = jax.export.deserialize(bytearray(file.read_bytes())).call(images)
    np.testing.assert_allclose(probabilities, mnist_flax.load().predict(images)[1], atol=1e-5)
    export.main(options)
    assert ", returns logits; on 359 real digits no logit differs by more than " in capsys.readouterr().out


VARIANTS = [[], ["--input", "float"], ["--int8"], ["--int8", "--input", "float"]]


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_onnx_takes_what_it_is_asked_to_take(tmp_path, capsys, variant, batch):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file, network = tmp_path / "w.onnx", mnist_flax.load()
    fixed = ["--batch", str(batch)] if batch else []
    export.main(["--format", "onnx", "--output", str(file), "--probabilities", *variant, *fixed])
    printed = capsys.readouterr().out
    assert ("are named as in float32" if "--int8" in variant else "no probability differs by more than") in printed
    graph = onnx.load(file).graph
    shapes = [[list(a.ints) for a in node.attribute if a.name == "kernel_shape"] for node in graph.node]
    assert all(shape for shape, node in zip(shapes, graph.node, strict=True) if node.op_type in ("Conv", "MaxPool"))
    session = runtime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    images = data.load("digits", None, 0).test.images[: batch or 9]
    if "float" in variant:
        assert (taken.type, taken.shape[1:]) == ("tensor(float)", [1, 28, 28])
        given = (images[:, None] / 255).astype(np.float32)
    else:
        assert (taken.type, taken.shape[1:]) == ("tensor(uint8)", [28, 28])
        given = images
    assert taken.shape[0] == (batch or "n")
    (probabilities,) = session.run(["probabilities"], {"images": given})
    np.testing.assert_allclose(probabilities, network.predict(images)[1], atol=0.1 if "--int8" in variant else 1e-5)


def test_int8_onnx_holds_the_numbers_of_the_c_program(mnist_dir, tmp_path):
    """And is as good."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, file = mnist_flax.load(), tmp_path / "w.onnx"
    in_integers = integers.from_network(network)
    variant = Variant(integers=in_integers)
    formats.export(network, "onnx", file, variant=variant)
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(file).graph.initializer}
    for layer in in_integers.layers:
        weights = constants[f"{layer.name}.weight.quantized"]
        assert weights.dtype == np.uint8
        np.testing.assert_array_equal(weights.transpose(0, 2, 3, 1).astype(int) - 128, layer.weights)
    test = data.load("mnist", mnist_dir, 0).test
    labels = onnx_files.reader(file, variant)(test.images).argmax(-1)
    assert (labels == test.labels).mean() >= 0.996


@pytest.mark.parametrize("file_format", [name for name in export.FORMATS if name != "onnx"])
@pytest.mark.parametrize("option", [["--input", "float"], ["--batch", "1"], ["--int8"]], ids=" ".join)
def test_what_only_onnx_has_a_choice_of(file_format, option):
    with pytest.raises(UserError, match=f"^{option[0]} is for onnx: a {file_format} file has no such choice$"):
        export.parse(["--format", file_format, "--output", "w.c", *option])


@pytest.mark.parametrize("batch", [0, -1, 10_001])
def test_a_batch_that_cannot_be(batch):
    with pytest.raises(UserError, match=f"--batch is {batch}; it must be between 1 and 10,000"):
        export.parse(["--format", "onnx", "--output", "w.onnx", f"--batch={batch}"])


def test_stablehlo_says_how_long_it_can_be_read(network, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mnist_flax.inference.classifier.load", lambda _: network)
    export.main(["--format", "stablehlo", "--output", str(tmp_path / "w")])
    assert "six months: to keep the network, write safetensors or ONNX too\n" in capsys.readouterr().out


@pytest.mark.parametrize("file_format", ["safetensors", "pytorch"])
def test_a_file_of_weights_returns_no_probabilities(file_format):
    with pytest.raises(UserError, match=f"is for stablehlo and onnx: a {file_format} file holds only weights"):
        export.parse(["--format", file_format, "--output", "w", "--probabilities"])


def test_the_command_knows_every_format():
    assert (*formats.FORMATS, "c", "html") == export.FORMATS


@pytest.mark.parametrize("file_format", formats.FORMATS)
def test_every_format_predicts_mnist_as_the_checkpoint_does(mnist_dir, tmp_path, file_format):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    network, images = mnist_flax.load(), data.load("mnist", mnist_dir, 0).test.images
    run = formats.FORMATS[file_format](network, tmp_path / "w.safetensors", formats.LOGITS)  # reads the file back
    np.testing.assert_array_equal(run(images).argmax(-1), network.predict(images)[0])


def test_pytorch_predicts_mnist_as_the_checkpoint_does(mnist_dir, tmp_path, monkeypatch):
    """By the class that the docs show."""
    torch = pytest.importorskip("torch")
    (shown,) = re.findall("```python\n(import torch.*?)```", DOCS.read_text(), re.DOTALL)
    network, images = mnist_flax.load(), data.load("mnist", mnist_dir, 0).test.images
    formats.export(network, "pytorch", tmp_path / "mnist.pth")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(shown, names)
    with torch.no_grad():
        logits = names["logits"](torch.from_numpy(np.array(images))).numpy()
    np.testing.assert_array_equal(logits.argmax(-1), network.predict(images)[0])


def test_what_stablehlo_needs_comes_with_the_package():
    """The tests' own packages bring it too, so that only a plain installation would miss it."""
    plain = [name for name in metadata.requires("mnist-flax") or [] if "extra ==" not in name]
    assert any(name.startswith("flatbuffers") for name in plain)


def test_stablehlo_runs_without_this_package(network, tmp_path):
    formats.export(network, "stablehlo", tmp_path / "w")
    code = (
        "import sys, numpy as np, jax.export\n"
        f"call = jax.export.deserialize(bytearray(open({str(tmp_path / 'w')!r}, 'rb').read())).call\n"
        "print(call(np.full((3, 28, 28), 7, np.uint8)).shape, sorted({'flax', 'mnist_flax'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "(3, 10) []\n"


def test_folding_is_convolution_then_batch_norm():
    rng = np.random.RandomState(0)
    state_dict = {"b.0.weight": rng.standard_normal((4, 3, 1, 1)), "b.0.bias": rng.standard_normal(4)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state_dict[f"b.1.{name}"] = rng.random(4) + 0.5
    x = rng.standard_normal(3)
    convolved = state_dict["b.0.weight"][:, :, 0, 0] @ x + state_dict["b.0.bias"]
    normalised = (convolved - state_dict["b.1.running_mean"]) / np.sqrt(state_dict["b.1.running_var"] + 1e-5)
    kernel, bias = interop.fold_batch_norm(state_dict, "b")
    expected = normalised * state_dict["b.1.weight"] + state_dict["b.1.bias"]
    np.testing.assert_allclose(kernel[:, :, 0, 0] @ x + bias, expected, rtol=1e-5)


def test_a_file_that_does_not_agree_is_not_kept(network, tmp_path, monkeypatch):
    earlier = SIGN.encode()  # it is a file of ours, which may be replaced
    (tmp_path / "w").write_bytes(earlier)

    def write_wrong(network, path, kind):
        path.write_bytes(b"wrong")
        return lambda images: np.zeros((len(images), 10), np.float32)

    monkeypatch.setitem(formats.FORMATS, "stablehlo", write_wrong)
    with pytest.raises(UserError, match="differ by"):
        formats.export(network, "stablehlo", tmp_path / "w")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("w", earlier)]


def test_a_network_that_has_diverged_is_not_written_for_pytorch(network, tmp_path):
    variables = jax.tree.map(lambda x: x * np.nan, network.variables)
    with pytest.raises(UserError, match=r"cannot be written as pytorch: block1.0.weight: some of its numbers are NaN"):
        formats.export(Classifier(variables, network.card), "pytorch", tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", ["safetensors", "pytorch", "stablehlo", "onnx"])
def test_a_place_that_cannot_be_written_is_named(network, tmp_path, file_format):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"no/such/w.safetensors cannot be written \(No such file or directory\)"):
        formats.export(network, file_format, tmp_path / "no/such/w.safetensors")


def command(module, *arguments):
    run = [sys.executable, "-W", "error", "-m", f"mnist_flax.{module}", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def test_pytorch_weights_go_out_and_come_in(network, tmp_path, golden_weights):
    weights.save(tmp_path / "w.safetensors", golden_weights, network.card)
    out = command("export", tmp_path / "w.safetensors", "--format", "pytorch", "--output", tmp_path / "p.safetensors")
    assert out.returncode == 0, out.stderr
    assert "359 real digits" in out.stdout
    back = command("import_weights", tmp_path / "p.safetensors", "--output", tmp_path / "b.safetensors")
    assert back.returncode == 0, back.stderr
    loaded = mnist_flax.load(tmp_path / "b.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, golden_weights)
    images = data.load("digits", None, 0).test.images
    assert (loaded.predict(images)[0] == network.predict(images)[0]).all()


def test_state_dicts_that_cannot_be_read(tmp_path, golden_weights):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense" * 9)
    for name in ("bad.safetensors", "missing.safetensors"):
        failed = command("import_weights", tmp_path / name, "--output", tmp_path / "o.safetensors")
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
        assert len(failed.stderr.splitlines()) == 1
    from safetensors.numpy import save_file

    state_dict = {name: np.ascontiguousarray(value) for name, value in interop.to_pytorch(golden_weights).items()}
    del state_dict["block1.0.weight"]
    save_file(state_dict, tmp_path / "short.safetensors")
    failed = command("import_weights", tmp_path / "short.safetensors", "--output", tmp_path / "o.safetensors")
    assert failed.returncode == 2
    assert "missing ['block1.0.weight']" in failed.stderr
    assert not (tmp_path / "o.safetensors").exists()
