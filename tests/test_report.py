import json
import re

import numpy as np
import pytest

from mnist_flax import train
from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.report import main
from mnist_flax.views import plots, report

PICTURES = {
    *("learning-curves", "confusion-matrix", "reliability", "misclassified-images", "augmentation"),
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
    assert [name for name, _ in report.read_histories([run])] == [f"{run}/seed-0", f"{run}/seed-1"]
    both = report.read_histories([run, run / "seed-1"])
    assert [name for name, _ in both] == [str(run), str(run), f"{run}/seed-1"]
    [legend] = plots.learning_curves(both).legends
    assert [text.get_text() for text in legend.get_texts()] == [str(run), f"{run}/seed-1"]


def test_a_checkpoint_directory_stands_for_its_run(run, tmp_path, capsys):
    main([str(run / "seed-1/best"), "--output", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "out/report.html")}
    assert "seed-1" in (tmp_path / "out/report.html").read_text()


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        report.write_report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        report.write_report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has not finished an epoch"):
        report.write_report([tmp_path], tmp_path / "out")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    with pytest.raises(UserError, match="holds no checkpoint"):
        report.write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mistakes", "titles"), [(0, ["none"]), (3, ["0 → 1  90%"] * 3), (1200, ["0 → 1  90%"] * 1000)]
)
def test_mistakes_none_some_and_more_than_can_be_drawn(mistakes, titles):
    images, labels = np.zeros((mistakes + 5, 28, 28), np.uint8), np.ones(mistakes + 5, np.int32)
    labels[:mistakes] = 0
    log_probabilities = np.log(np.tile(np.float32([0.1, 0.9]), (mistakes + 5, 1)))
    figure = plots.misclassified(images, labels, log_probabilities, ("0", "1"))
    assert [text.get_text() for part in (figure, *figure.axes) for text in part.texts] == titles
