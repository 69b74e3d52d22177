"""Training on a folder of images: from trained weights, with fewer classes than ten, and all that uses the network."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from runs import rows
from sklearn.datasets import load_digits

import mnist_flax
from benchmarks.reading import own_digits
from mnist_flax import evaluate, export, predict, report
from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier, weights
from mnist_flax.inference.transfer import initial_variables
from mnist_flax.presets import defaults, resolve
from mnist_flax.reading.folder import load
from mnist_flax.train import parse, train
from mnist_flax.training.signals import Interruption

NAMES = ("eins", "sieben")  # 1 and 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of each of two digits."""
    root, digits = tmp_path_factory.mktemp("own"), load_digits()
    for digit, name in zip((1, 7), NAMES, strict=True):
        (root / name).mkdir()
        for i, image in enumerate(digits.images[digits.target == digit][:12]):
            Image.fromarray(np.rint(255 * (1 - image / 16)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def config(folder, workdir, *options):
    arguments = ["--dataset", folder, "--epochs", 3, "--num-devices", 1, "--workdir", workdir, *options]
    return parse([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """A file of trained weights."""
    path = tmp_path_factory.mktemp("initial") / "w.safetensors"
    path.write_bytes(classifier.PRETRAINED.read_bytes())
    return path


@pytest.fixture(scope="module")
def finished(folder, initial, tmp_path_factory):
    """A run from trained weights, never interrupted, with its report."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.warns(match="recognises no digit"), pytest.warns(match="has no test split"):
        summary = train(config(folder, workdir, "--initial-weights", initial))
    return workdir, summary


pytestmark = [
    pytest.mark.filterwarnings("ignore:of .* the shipped network recognises no digit"),
    pytest.mark.filterwarnings("ignore:.* has no test split"),
]


def test_a_run_says_what_it_was_started_from(finished, folder, initial):
    workdir, summary = finished
    _, card, _ = weights.load_run(workdir)
    recorded = json.loads((workdir / "config.json").read_text())
    for place in (summary, recorded, card["config"]):
        assert place["initial_weights"] == str(initial)
    assert recorded["dataset"] == card["dataset"] == str(folder)
    assert (recorded["max_lr"], recorded["batch_size"], recorded["val_size"]) == (0.003, 16, 1)
    assert card["class_names"] == list(NAMES)
    assert card["epoch"] == 3  # one held-out image does not tell which is best


def test_resumed_it_ends_with_the_same_bits_and_without_its_initial_weights(finished, folder, initial, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(initial.read_bytes())
    options = config(folder, tmp_path / "run", "--initial-weights", path, "--no-report")
    stop = Interruption()
    stop.signal = signal.SIGTERM
    with pytest.raises(SystemExit):
        train(options, stop)
    path.unlink()
    with pytest.raises(UserError, match=r"--initial-weights was .*copy.safetensors.*, is now null"):
        train(config(folder, tmp_path / "run", "--max-lr", 0.003))
    image = folder / NAMES[0] / "0.png"
    moved = image.rename(folder / NAMES[1] / "moved.png")
    with pytest.raises(UserError, match="run holds a run on other images than there are now"):
        train(options)
    moved.rename(image)
    train(options)
    assert rows(tmp_path / "run") == rows(finished[0])
    ours, theirs = (weights.load_run(run)[0] for run in (tmp_path / "run", finished[0]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_it_starts_from_the_initial_weights(finished, initial):
    """Six steps at a low learning rate do not lead far away."""
    given, kept = initial_variables(str(initial), NAMES), weights.load_run(finished[0])[0]
    for before, after in zip(jax.tree.leaves(given["params"]), jax.tree.leaves(kept["params"]), strict=True):
        np.testing.assert_allclose(after, before, atol=0.03)


def run(command, capsys, *arguments):
    command.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_every_command_uses_its_classes(finished, folder, tmp_path, capsys):
    workdir, summary = finished
    figures = json.loads(run(evaluate, capsys, workdir, "--json"))
    assert figures["accuracy"] == summary["test_accuracy"]
    assert list(figures["per_class"]) == list(NAMES)
    assert np.shape(figures["confusion_matrix"]) == (2, 2)
    page = (workdir / "report/report.html").read_text()
    assert all(name in page for name in NAMES)
    assert str(tmp_path) in run(report, capsys, workdir, "--output", tmp_path / "again")
    answers = run(predict, capsys, *sorted(folder.glob("*/*.png")), "--checkpoint", workdir, "--json").splitlines()
    assert len(answers) == 24
    for line in answers:
        answer = json.loads(line)
        assert set(answer["probabilities"]) == set(NAMES)
        assert answer["digit"] in (*NAMES, None)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert "eins" in run(predict, capsys, folder / "eins/0.png", "--checkpoint", workdir)
    for file_format in ("safetensors", "stablehlo", "onnx"):  # each is read back and compared
        run(export, capsys, workdir, "--format", file_format, "--output", tmp_path / f"w.{file_format}")
    copy = mnist_flax.load(tmp_path / "w.safetensors")
    assert (copy.class_names, copy.predict(np.zeros((3, 28, 28), np.uint8))[1].shape) == (NAMES, (3, 2))
    with pytest.raises(SystemExit):
        evaluate.main([str(workdir), "--dataset", "digits"])
    assert "digits has a class 0, and the network only eins, sieben" in capsys.readouterr().err


def test_a_run_is_the_same_however_its_folder_is_spelled(finished, folder, initial, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    for spelling in (folder.name, f"./{folder.name}/", f"../{folder.parent.name}/{folder.name}"):
        train(config(spelling, finished[0], "--initial-weights", initial))
        assert "holds a finished run" in capsys.readouterr().out


def test_data_that_has_moved_is_named(finished, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workdir, summary = finished
    moved = folder.rename(tmp_path / "moved")
    try:
        for command in (evaluate, report):
            with pytest.raises(SystemExit):
                command.main([str(workdir)])
            assert f"{folder} is neither a file or folder here" in capsys.readouterr().err
        figures = json.loads(run(evaluate, capsys, workdir, "--dataset", "moved", "--json"))
        assert figures["accuracy"] == summary["test_accuracy"]
        page = run(report, capsys, workdir, "--dataset", "moved", "--output", "again").strip()
        assert "moved: 19 training" in (tmp_path / page).read_text()
        left_out = (moved / NAMES[0] / "0.png").rename(tmp_path / "0.png")
        with pytest.raises(SystemExit):
            report.main([str(workdir), "--dataset", "moved"])
        assert "--dataset moved is not the data that the run was trained on" in capsys.readouterr().err
        left_out.rename(moved / NAMES[0] / "0.png")
    finally:
        moved.rename(folder)


def test_classes_of_the_same_name_keep_their_outputs():
    network = mnist_flax.load()
    before, after = (
        v["params"]["final_conv"] for v in (network.variables, initial_variables("pretrained", ("0", "A", "7")))
    )
    assert after["kernel"].shape == before["kernel"].shape
    order = [0, 1, 7, 2, 3, 4, 5, 6, 8, 9]
    np.testing.assert_array_equal(after["kernel"], before["kernel"][..., order])
    np.testing.assert_array_equal(after["bias"], before["bias"][order])
    same = initial_variables("pretrained", network.class_names)
    jax.tree.map(np.testing.assert_array_equal, same, network.variables)


def test_the_shipped_network_is_evaluated_on_some_of_its_classes(folder, tmp_path, capsys):
    for name, digit in zip(NAMES, "17", strict=True):
        (tmp_path / digit).symlink_to(folder / name)
    figures = json.loads(run(evaluate, capsys, "--dataset", tmp_path, "--json"))
    assert figures["num_examples"] == 4
    assert np.array(figures["confusion_matrix"]).sum(1).tolist() == [0, 2, 0, 0, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("weights", ["nowhere", "pretrained.pth"])
def test_mistakes_are_answered_before_anything_is_written(folder, tmp_path, weights):
    (tmp_path / "pretrained.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=weights):
        train(config(folder, tmp_path / "run", "--initial-weights", tmp_path / weights))
    assert not (tmp_path / "run").exists()


def test_defaults_suit_what_is_trained():
    assert defaults("default", "mnist", None) == Config()
    own = defaults("default", "own", "pretrained")
    assert (own.batch_size, own.max_lr) == (16, 0.003)
    assert defaults("reference", "own", "pretrained").batch_size == 124  # the preset's own
    assert parse(["--dataset", "own", "--batch-size", "64"]).batch_size == 64
    tuned = dataclasses.replace(own, initial_weights="pretrained")
    small, large = (resolve(tuned, "own", size, 4) for size in (46, 46_000))
    assert (small.epochs, small.patience, large.epochs) == (200, 20, 10)
    scratch = resolve(defaults("default", "own", None), "own", 46, 4)
    assert (scratch.epochs, scratch.max_lr) == (500, 0.01)
    assert resolve(Config(epochs=3), "own", 46, 4).epochs == 3


def test_defaults_of_files_are_those_of_mnist(tmp_path):
    (tmp_path / "train.csv").touch()
    for path in (tmp_path / "train.csv", tmp_path):
        assert parse(["--dataset", str(path)]) == Config(dataset=str(path))
    finished = resolve(Config(), str(path), 55_000, 5_000)
    assert (finished.epochs, finished.patience) == (10, 5)


def test_the_benchmark_trains_as_the_command_does(finished, folder, initial, tmp_path):
    options = ["--initial-weights", str(initial), "--epochs", "3"]
    accuracy = own_digits.accuracy_of(load(str(folder), None, None), options, 0)
    assert accuracy == pytest.approx(finished[1]["test_accuracy"])
    own_digits.write(tmp_path / "drawn", 0, 5)
    assert [len(list((tmp_path / "drawn" / split).glob("*/*.png"))) for split in ("train", "test")] == [50, 849]
    assert "| 50.0 ± 14.1 | 40.0, 60.0 |" in own_digits.table([[1.0, 2.0, 40.0], [3.0, 4.0, 60.0]])
