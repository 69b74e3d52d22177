"""The command as a user runs it: a subprocess, on `digits`; in this process where it trains nothing."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import DIGITS, ODD_MODES, few_digits, rows, start, train, wait_for_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_flax.errors import UserError
from mnist_flax.inference.interop import to_pytorch
from mnist_flax.inference.weights import load_run
from mnist_flax.train import main
from mnist_flax.training.records import read_history
from mnist_flax.training.selection import best_epoch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of six epochs, never interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    status, out, err = train(*DIGITS, "--epochs", 6, "--workdir", workdir)
    assert status == 0, err
    assert err == ""
    return workdir, out


def test_what_it_prints(finished):
    _, out = finished
    lines = out.splitlines()
    assert lines[0] == "digits: 1,319 training, 119 validation, 359 test images"
    assert lines[1].startswith("12,534 parameters, seed 0, on ")
    assert lines[2].startswith("6 epochs of 21 steps of 64 images, into ")
    epochs = [line for line in lines if line.startswith("Epoch ")]
    assert len(epochs) == 6
    for line in epochs:
        assert all(part in line for part in (" - Loss: ", ", Accuracy: ", "%, Val: "))
    assert re.fullmatch(r"Test accuracy  [\d.]+% of 359 images, loss [\d.]+", lines[-4])
    assert re.fullmatch(r"Best epoch     \d of 6, validation accuracy [\d.]+% \(all epochs done\)", lines[-3])
    assert re.fullmatch(r"Time           [\d.]+ s, [\d,]+ images/s", lines[-2])
    assert lines[-1].startswith("Curves         tensorboard --logdir ")
    assert all(len(line) <= 80 for line in lines if "/" not in line)


def test_what_it_leaves(finished):
    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    required = {
        *("dataset", "preset", "seed", "num_params", "epochs_run", "best_epoch", "selection_split", "val_accuracy"),
        *("test_accuracy", "test_loss", "train_seconds", "images_per_second", "devices", "versions"),
    }
    assert required <= set(summary)
    assert (summary["dataset"], summary["num_params"], summary["epochs_run"]) == ("digits", 12_534, 6)
    assert summary["selection_split"] == "validation"
    history = rows(workdir)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert summary["best_epoch"] == best_epoch(history)
    assert summary["val_accuracy"] == history[summary["best_epoch"] - 1]["val_accuracy"]
    assert round(summary["test_accuracy"] * 359, 6) % 1 == 0
    for row in read_history(workdir):  # the images that fill up an epoch's last batch are not counted again
        assert row["images_per_second"] * row["seconds"] == pytest.approx(1319)
    config = json.loads((workdir / "config.json").read_text())
    assert (config["dataset"], config["epochs"], config["val_size"]) == ("digits", 6, 119)
    variables, card, _ = load_run(workdir)
    assert card["epoch"] == summary["best_epoch"]
    assert set(card["normalization"]) == {"mean", "std"}
    assert len(to_pytorch(variables)) == 8 * 5 + 1 + 2


def test_tensorboard_shows_it(finished):
    workdir, _ = finished
    events = EventAccumulator(str(workdir))
    events.Reload()
    tags = events.Tags()
    for name in ("loss/train", "loss/val", "accuracy/train", "accuracy/val", "learning_rate", "grad_norm"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4, 5, 6]
    assert tags["images"] == ["augmented"]
    assert [event.value for event in events.Scalars("accuracy/val")] == pytest.approx(
        [row["val_accuracy"] for row in rows(workdir)]
    )
    assert any((workdir / "hparams").iterdir())


def assert_same_records(workdir, reference):
    assert rows(workdir) == rows(reference)
    (ours, card, fitted), (theirs, expected_card, expected) = load_run(workdir), load_run(reference)
    for name, value in to_pytorch(theirs).items():
        np.testing.assert_array_equal(to_pytorch(ours)[name], value, err_msg=name)
    assert card["temperature"] == expected_card["temperature"]
    assert (fitted is None) == (expected is None)  # there may be too few images for one
    for part, value in zip(fitted or (), expected or (), strict=True):
        np.testing.assert_array_equal(part, value)
    events = EventAccumulator(str(workdir))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/val")] == [row["epoch"] for row in rows(workdir)]


def assert_same_run(workdir, reference):
    assert_same_records(workdir, reference)
    summary, expected = (json.loads((path / "summary.json").read_text()) for path in (workdir, reference))
    for name in ("best_epoch", "val_accuracy", "test_accuracy", "test_loss"):
        assert summary[name] == expected[name]


def test_asked_to_stop_it_saves_and_goes_on_bit_identically(finished, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*DIGITS, "--epochs", 6, "--workdir", workdir]
    for number, count, modes in ((signal.SIGTERM, 2, {}), (signal.SIGINT, 4, ODD_MODES)):
        process = start(*arguments, env=modes)
        wait_for_rows(process, workdir, count)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "Run the same command again" in out
        assert "Traceback" not in err
    assert train(*arguments)[0] == 0
    assert_same_run(workdir, finished[0])


def damage_newest(checkpoints):
    """Flip a bit in the newest checkpoint; returns its directory."""
    sums = sorted(checkpoints.glob("*/SHA256SUMS"), key=lambda path: int(path.parent.name))
    newest = sums[-1].parent
    array = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(content)
    return newest


def test_if_the_best_checkpoint_is_damaged_the_older_one_is_tested_and_that_is_said(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "summary.json").unlink()
    damage_newest(workdir / "best")
    kept = min(int(path.name) for path in (workdir / "best").iterdir()) // 21
    status, out, err = train(*DIGITS, "--epochs", 6, "--workdir", workdir, warnings="default")
    assert status == 0, err
    assert "is damaged" in err
    before, summary = (json.loads((path / "summary.json").read_text()) for path in (finished[0], workdir))
    assert f"epoch {before['best_epoch']} of seed 0 was better; its checkpoint is damaged" in out
    assert (summary["best_epoch"], summary["lost_epoch"]) == (kept, before["best_epoch"])
    assert summary["val_accuracy"] == rows(workdir)[kept - 1]["val_accuracy"] <= before["val_accuracy"]
    assert kept < before["best_epoch"]
    assert summary["test_loss"] != before["test_loss"]  # another network is tested
    assert "lost_epoch" not in before


def test_locked_left_at_once_and_damaged(finished, tmp_path):
    """One run through it all: no second process gets in, two Ctrl-C end it, and its newest checkpoint breaks."""
    workdir = tmp_path / "run"
    arguments = [*DIGITS, "--epochs", 6, "--checkpoint-every-seconds", 0.1, "--workdir", workdir]
    process = start(*arguments)
    wait_for_rows(process, workdir, 2)
    process.send_signal(signal.SIGSTOP)  # it would end before another process has started
    assert "is in use by another process" in refused(*arguments, "--overwrite", by=train)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err

    newest = damage_newest(workdir / "last")
    status, out, err = train(*arguments, warnings="default")
    assert status == 0, err
    assert (
        err == f"warning: {newest} is damaged (its files are not those that were saved) and set aside as damaged-"
        f"{newest.name}\n"
    )
    assert "Resuming after epoch" in out
    assert_same_run(workdir, finished[0])


def test_a_config_repeats_its_run_and_compiles_nothing_anew(finished, tmp_path):
    arguments = ["--config", finished[0] / "config.json", "--workdir", tmp_path / "again"]
    status, _, log = train(*arguments, env={"JAX_LOG_COMPILES": "1"})
    assert status == 0
    assert_same_run(tmp_path / "again", finished[0])
    assert "Persistent compilation cache hit for 'jit_train_replicas'" in log
    assert "to persistent compilation cache" not in log  # what was compiled anew is written there
    assert [line for line in log.splitlines() if not line.startswith("WARNING:jax._src.")] == []


def test_a_full_disk(finished, tmp_path):
    """A disk of 1.2 MB, in a mount namespace of its own; then there is room, and the run goes on."""
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, "mount -t tmpfs tmpfs /mnt"], check=False).returncode:
        pytest.skip("needs unshare and user namespaces, to mount a small disk")
    (tmp_path / "disk").mkdir()
    run = f'"$0" -m mnist_flax.train {" ".join(DIGITS)} --epochs 6 --no-report --workdir disk/run; echo "status $?"'
    script = f"mount -t tmpfs -o size=1200k tmpfs disk; {run}; ls disk/run/last disk/run/last/*; "
    script += f"mount -o remount,size=50m disk; {run}; cp -r disk/run ."
    done = subprocess.run(
        [*alone, script, sys.executable],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    _, second = done.stdout.split("status 2\n")
    assert "SHA256SUMS" in second
    assert re.fullmatch(
        "error: cannot write a checkpoint to disk/run/(last|best): No space left on device\n", done.stderr
    )
    assert "Resuming after epoch" in second
    assert second.endswith("status 0\n")
    assert_same_run(tmp_path / "run", finished[0])


def here(*arguments):
    """Exit status, output and errors of the command in this process: it starts six seconds sooner."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["--no-report", *map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
    return status, out.getvalue(), err.getvalue()


def test_a_finished_run_is_not_redone(finished):
    workdir, _ = finished

    def times():  # but for the lock, which some versions of filelock write anew or remove
        return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}

    before = times()
    status, out, _ = here(*DIGITS, "--epochs", 6, "--workdir", workdir)
    assert status == 0
    assert "holds a finished run" in out
    assert "--overwrite" in out
    assert before == times()


def test_a_run_killed_before_it_was_calibrated_is_when_it_is_run_again(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "network.safetensors").unlink()
    status, out, err = here(*DIGITS, "--epochs", 6, "--workdir", workdir)
    assert (status, err) == (0, "")
    assert "holds a finished run" in out
    assert_same_run(workdir, finished[0])


def refused(*arguments, by=here):
    """The message of a command that must fail in one sentence with status 2."""
    status, _, err = by(*arguments)
    assert status == 2, err
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_changed_configuration_is_refused(finished):
    message = refused(*DIGITS, "--epochs", 7, "--seed", 3, "--workdir", finished[0])
    assert "--epochs was 6, is now 7" in message
    assert "--seed was 0, is now 3" in message


def test_mistakes_are_answered_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(*DIGITS, "--workdir", tmp_path / "file")
    assert "cannot be divided evenly among 7 devices" in refused(
        *DIGITS, "--num-devices", 7, "--workdir", tmp_path / "a/b"
    )
    assert not (tmp_path / "a").exists()
    assert "cifar is neither a file or folder here nor one of the data sets auto, mnist, " in refused(
        "--dataset", "cifar", "--workdir", tmp_path / "c"
    )
    assert not (tmp_path / "c").exists()


def test_damaged_run_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refused(*DIGITS, "--workdir", tmp_path)


def test_divergence_stops_with_the_step_and_keeps_the_last_checkpoint(tmp_path):
    arguments = [*DIGITS, "--epochs", 2, "--max-lr", "1e30", "--debug-nans", "--num-seeds", 2]
    message = refused(*arguments, "--workdir", tmp_path / "run", by=train)
    assert "gradient norm nan in step 1 of seed 0 (epoch 1, learning rate 5.7" in message
    assert "lower --max-lr" in message
    variance = "`variance = jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)` (model.py:"
    assert f"invalid value (nan) encountered in sub: {variance}" in message
    assert '`x: Any = block("block1")(images, train=train)' in message


def test_selecting_on_the_test_set_is_said_wherever_a_number_is(tmp_path):
    arguments = [*DIGITS, "--epochs", 1, "--val-size", 0, "--num-devices", 4, "--workdir", tmp_path]
    status, out, err = train(*arguments)
    assert (status, err) == (0, "")
    assert "models are selected on the test set" in out
    assert "Val (the test set):" in out
    assert "the best epoch was selected on the test set itself" in out
    assert json.loads((tmp_path / "summary.json").read_text())["selection_split"] == "test"
    assert not (tmp_path / "network.safetensors").exists()  # nothing was held out to fit it to
    assert json.loads((tmp_path / "summary.json").read_text())["devices"].startswith("4 x")


def test_checkpoints_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        load_run(tmp_path)


def test_several_seeds(tmp_path):
    """Each stops on its own; and so it does in a run that was killed."""
    options = ["--epochs", 30, "--max-lr", 0.02, "--patience", 2, "--num-seeds", 3, "--seed", 4, "--val-size", 100]
    arguments = ["--dataset", few_digits(tmp_path / "digits.npz"), *options]
    status, out, err = train(*arguments, "--workdir", tmp_path / "whole")
    assert (status, err) == (0, "")
    assert "(3 seeds: " in out
    assert "mean of 3 seeds" in out
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    accuracies = [result["test_accuracy"] for result in summary["seeds"]]
    assert [result["seed"] for result in summary["seeds"]] == [4, 5, 6]
    assert summary["test_accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert summary["test_accuracy_std"] == pytest.approx(statistics.stdev(accuracies))
    margin = 4.3027 * statistics.stdev(accuracies) / 3**0.5  # Student's t
    bounds = statistics.mean(accuracies) - margin, min(1, statistics.mean(accuracies) + margin)
    assert summary["test_accuracy_ci95"] == pytest.approx(bounds, rel=1e-4)
    assert 0 < summary["ensemble"]["test_accuracy"] <= 1
    for result in summary["seeds"]:
        history = rows(tmp_path / f"whole/seed-{result['seed']}")
        accuracies = [row["val_accuracy"] for row in history]
        assert result["epochs_run"] == len(accuracies) < 30
        assert 1 + accuracies.index(max(accuracies)) == len(accuracies) - 2
        assert result["best_epoch"] == best_epoch(history)

    process = start(*arguments, "--workdir", tmp_path / "killed")
    wait_for_rows(process, tmp_path / "killed/seed-6", 2)
    process.kill()
    process.communicate()
    status, out, _ = train(*arguments, "--workdir", tmp_path / "killed")
    assert status == 0
    assert "Resuming after epoch" in out
    assert json.loads((tmp_path / "killed/summary.json").read_text())["seeds"] == summary["seeds"]
    for seed in (4, 5, 6):
        assert_same_records(tmp_path / f"killed/seed-{seed}", tmp_path / f"whole/seed-{seed}")
    (tmp_path / "whole").rename(tmp_path / "best")  # a run may be called what its checkpoints are
    _, card, _ = load_run(tmp_path / "best")
    assert card["val_accuracy"] == max(result["val_accuracy"] for result in summary["seeds"])
    assert card["seed"] in (4, 5, 6)


def test_a_second_ctrl_c_ends_a_run_that_is_about_to_end():
    """The first has been acted on, and the interpreter is on its way out: no traceback of whatever it was doing."""
    program = """
import os, signal, time
from mnist_flax.training import signals
try:
    with signals.answered(60) as interruption, interruption.note():
        os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as stopped:
    assert stopped.signal == signal.SIGINT
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in ended.stderr
