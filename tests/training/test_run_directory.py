"""Which files in a run directory are a run's own."""

import json

import pytest

from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.inference import weights
from mnist_flax.inference.classifier import PRETRAINED
from mnist_flax.training.contents import REPORT, read_recorded
from mnist_flax.training.run_directory import lock, require_free

ROW = json.dumps({"epoch": 1, "train_loss": 1.0, "val_accuracy": 0.5}) + "\n"
SUMMARY = json.dumps({"dataset": "digits", "num_params": 1, "versions": {}})


def started(workdir, **options):
    """A run directory with what a run of this configuration writes, but for checkpoints."""
    config = Config(workdir=workdir, **options)
    with lock(config):
        pass
    (workdir / "metrics.jsonl").write_text(ROW)
    weights.save(workdir / "network.safetensors", *weights.load(PRETRAINED))
    return config


NAMES = [
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "network.safetensors",
    ".lock",
    "best/3/x",
    "last/10/x",
    *REPORT,
]
NAMES += ["best", "last", "hparams", "report"]  # which are to be folders


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_run_writes_over_nothing(tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"architectures": ["ViT"]}')
    with pytest.raises(UserError, match=r"is in the way, and no run here wrote it|is not a run's config.json"):
        require_free(Config(workdir=tmp_path, overwrite=overwrite))
    require_free(Config(workdir=tmp_path / "new", overwrite=overwrite))


@pytest.mark.parametrize(
    "name", ["thesis.docx", "report/thesis.docx", "seed-1/data.txt", "best/x", "events.out.tfevents.1"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_in_the_way_is_not_asked_for(tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    config = started(tmp_path)
    config = Config(workdir=tmp_path, overwrite=overwrite)
    require_free(config)
    with lock(config):
        assert path.read_text() == "mine"
        assert (tmp_path / "metrics.jsonl").exists() != overwrite
        assert (tmp_path / "network.safetensors").exists() != overwrite


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_runs_own_is_in_the_way_of_it(tmp_path, overwrite):
    started(tmp_path)
    require_free(Config(workdir=tmp_path, overwrite=overwrite))
    for name in ("metrics.jsonl", "network.safetensors", "report/report.html"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        path.write_text("mine")
        with pytest.raises(UserError, match=f"{path} is in the way, and no run here wrote it: move it away"):
            require_free(Config(workdir=tmp_path, overwrite=overwrite))
        path.write_bytes(before)  # of the empty one nothing can be lost
        require_free(Config(workdir=tmp_path, overwrite=overwrite))


def test_a_finished_run_asks_for_nothing(tmp_path):
    started(tmp_path)
    (tmp_path / "summary.json").write_text(SUMMARY)
    (tmp_path / "metrics.jsonl").write_text("mine")
    require_free(Config(workdir=tmp_path))


@pytest.mark.parametrize("name", ["a", "group/a"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_runs_is_no_run_directory(tmp_path, name, overwrite):
    (tmp_path / name).mkdir(parents=True)
    started(tmp_path / name)
    with pytest.raises(
        UserError, match=f"{tmp_path} holds another run, {tmp_path / name}: choose a --workdir of its own"
    ):
        require_free(Config(workdir=tmp_path, overwrite=overwrite))


def test_a_config_of_another_program_is_called_that_and_one_of_another_version_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"architectures": ["ViT"], "seed": 3}')
    with pytest.raises(UserError, match=r"config.json is not a run's config.json \(it has no batch_size\)"):
        read_recorded(path)
    path.write_text(json.dumps({**Config(seed=3).to_json(), "optimizer": "lamb", "slant": 2}))
    config, unknown = read_recorded(path)
    assert (config.seed, unknown) == (3, {"optimizer": "lamb", "slant": 2})


@pytest.mark.parametrize(
    "error", [OSError(37, "No locks available"), OSError(95, "Not supported"), NotImplementedError("No flock")]
)
def test_a_file_system_without_locks(tmp_path, monkeypatch, error):
    def acquire(self, *_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(UserError) as refused, lock(Config(workdir=tmp_path)):
        pass
    assert str(refused.value).startswith(f"{tmp_path}/.lock cannot be locked (N")
    assert "choose a --workdir on a local disk" in str(refused.value)
    assert list(tmp_path.iterdir()) == []
