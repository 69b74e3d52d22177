import json
import re

import pytest

from mnist_flax import report, train
from mnist_flax.config import Config
from mnist_flax.errors import UserError

PICTURES = {
    *("learning-curves", "confusion-matrix", "reliability", "misclassified-test-images", "augmentation"),
    *("first-layer-filters", "activations"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds that drew its own report."""
    workdir = tmp_path_factory.mktemp("report") / "run"
    train.train(Config(dataset="digits", epochs=2, num_seeds=2, workdir=workdir, no_compilation_cache=True))
    return workdir


def test_train_leaves_a_report_that_needs_no_other_file(run):
    page = (run / "report/report.html").read_text()
    assert {path.stem for path in (run / "report").glob("*.png")} == PICTURES
    assert page.count('src="data:image/png;base64,') == len(PICTURES)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "accuracy" in page


def test_runs_overlaid(run, tmp_path):
    assert [path.name for path in report.expand([run])] == ["seed-0", "seed-1"]
    path = report.report([run / "seed-1", run / "seed-0"], tmp_path / "elsewhere")
    assert "seed-1" in path.read_text()


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        report.report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        report.report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has not finished an epoch"):
        report.report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    with pytest.raises(UserError, match="holds no checkpoint"):
        report.report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
