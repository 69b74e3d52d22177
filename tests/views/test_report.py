import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.release import tables
from mnist_flax import data, report, train
from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier, metrics
from mnist_flax.presets import PRESETS
from mnist_flax.train import parse
from mnist_flax.training import messages, selection
from mnist_flax.training.run import Run
from mnist_flax.views import charts, plots, runs, sections
from mnist_flax.views.report import write_report

PICTURES = {
    *("learning-curves", "confusion-matrix", "reliability", "misclassified-images", "augmentation"),
    *("first-layer-filters", "activations"),
}
HOSTILE = '_<img src=x onerror=alert(1)> "$x^$ & '


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds that wrote its own report."""
    workdir = tmp_path_factory.mktemp("report") / "run"
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):  # as others may
        train.train(Config(dataset="digits", epochs=2, num_seeds=2, workdir=workdir))
    return workdir


@pytest.fixture(scope="module")
def page(run):
    return (run / "report/report.html").read_text()


def text(page):
    """What a reader sees."""
    return " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def copy(run, target, **changes):
    """A copy of a run without its report; a change of None deletes that file."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("report", "last"))
    for name, content in changes.items():
        file = target / f"{name}.json"
        file.unlink() if content is None else file.write_text(content)
    return target


def test_train_leaves_a_report_that_needs_no_other_file(run, page):
    assert {path.stem for path in (run / "report").glob("*.png")} == PICTURES
    assert re.findall(r'(?:src|href)="(.{5})', page)
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', page)
    assert not re.search(r"<(script|link|iframe|object)|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_results_at_a_glance(run, page):
    summary, shown = json.loads((run / "summary.json").read_text()), text(page)
    for figures in (
        f"Test accuracy, mean of 2 seeds {100 * summary['test_accuracy']:.2f} % standard deviation "
        f"{100 * summary['test_accuracy_std']:.2f} points Their ensemble "
        f"{100 * summary['ensemble']['test_accuracy']:.2f} %",
        "12,534 parameters, preset default",
        "digits: 1,319 training, 119 held-out and 359 test images",
        "by the accuracy on 119 held-out images",
        summary["devices"],
        f"jax {summary['versions']['jax']}",
        "python -m mnist_flax.train --dataset digits --epochs 2 --val-size 119 --num-seeds 2 --patience 20 "
        "--workdir runs/again",
    ):
        assert figures in shown
    for result in summary["seeds"]:
        low, high = metrics.accuracy_interval(round(result["test_accuracy"] * 359), 359)
        row = f"{100 * result['test_accuracy']:.2f} % {100 * low:.2f} % to {100 * high:.2f} % {result['test_loss']:.4f}"
        assert row in shown
    assert "test loss as trained" in shown
    network = classifier.load(run)
    assert f"on the test set; its logits are divided by a temperature, {network.temperature:.3f}." in shown


@pytest.mark.parametrize(("accuracies", "bounds"), [([0.2, 0.9], None), ([0.96, 0.97, 0.995], (0.93021, 1))])
def test_the_interval_of_a_mean_is_within_0_and_1_and_left_out_of_two_seeds(run, accuracies, bounds, tmp_path):
    """Wherever it is shown, also of runs of versions that recorded -117 % to 187 %."""
    finished = runs.read_run(run)
    results = [{**finished.results[0], "seed": i, "test_accuracy": x} for i, x in enumerate(accuracies)]
    summary = {**finished.summary, **selection.statistics_of(results), "seeds": results}
    assert summary["test_accuracy_ci95"] == (bounds and pytest.approx(bounds, abs=1e-5))
    trained = object.__new__(Run)
    vars(trained).update(config=Config(), dataset=SimpleNamespace(note=None))
    said = messages.closing(trained, summary)
    expected = ["95 % interval of the mean 93.02% to 100.00%"] if bounds else []
    assert [line.strip() for line in said if "interval" in line] == expected
    summary["test_accuracy_ci95"] = [-1.17, 1.87]
    shown = text(sections.scores(finished._replace(results=results, summary=summary), {"num_examples": 359}))
    assert ("of the mean 93.02 % to 100.00 % Their" in shown) == (bounds is not None)
    assert ("interval of the mean" in shown) == (bounds is not None)
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"config": Config(val_size=119).to_json(), "summary": summary}))
    row = tables.results([kept]).splitlines()[-1].split(" | ")
    assert row[4] == ("93.02 to 100.00" if bounds else "–")


def test_every_seed_has_its_curves(run, page):
    assert re.findall(r'background:var\(--([^)]+)\)"></i>([^<]+)', page) == [
        ("accent", "seed-0"),
        ("series-1", "seed-1"),
    ]
    loss, error, rate = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    for picture, lines in ((loss, 2), (error, 2), (rate, 1)):
        for colour in ("accent", "series-1"):
            drawn = re.findall(
                rf'style="fill: none; stroke: var\(--{colour}\)|'
                rf'style="fill: none;[^"]*stroke: var\(--{colour}\)',
                picture,
            )
            assert len(drawn) == lines
    assert not re.search(r"(fill|stroke): #", page)  # each colour is one that a dark ground changes


def test_the_pages_colours_are_the_pictures(page):
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+)", part))
        for part in re.findall(r":root \{(.*?)\}", page, re.DOTALL)[::2][:2]
    )
    assert charts.COLOURS.items() <= light.items()
    assert dark.keys() == light.keys()
    assert not set(dark.items()) & set(light.items())


def test_one_network_of_a_run_has_the_interval_of_its_accuracy(run, tmp_path):
    shown = text(write_report([run / "seed-1"], tmp_path).read_text())
    result = json.loads((run / "summary.json").read_text())["seeds"][1]
    correct = round(359 * result["test_accuracy"])
    low, high = metrics.accuracy_interval(correct, 359)
    assert (
        f"Test accuracy {100 * correct / 359:.2f} % {correct} of 359 images 95 % interval {100 * low:.2f} % to "
        f"{100 * high:.2f} %" in shown
    )
    assert "ensemble" not in shown


def test_an_unfinished_run_says_how_far_it_has_come(run, tmp_path):
    changed = json.loads((run / "config.json").read_text()) | {"epochs": 7}
    unfinished = copy(run, tmp_path / "unfinished", summary=None, config=json.dumps(changed))
    shown = text(write_report([unfinished], tmp_path / "out").read_text())
    assert "This run is not finished: 2 of 7 epochs are done." in shown
    assert "Test accuracy so far" in shown


def test_a_network_selected_on_the_test_set_says_so(run, tmp_path):
    changed = json.loads((run / "config.json").read_text()) | {"val_size": 0}
    shown = text(write_report([copy(run, tmp_path / "run", config=json.dumps(changed))], tmp_path / "out").read_text())
    assert "selected on the test set itself" in shown
    assert "by the accuracy on the 359 test images" in shown


def test_several_runs(run, tmp_path):
    both = [runs.read_run(path) for path in (run, run / "seed-1")]
    assert [name for name, _ in runs.histories(both)] == [str(run), str(run), f"{run}/seed-1"]
    [legend] = charts.learning_curves(runs.histories(both)).legends
    assert [entry.get_text() for entry in legend.get_texts()] == [str(run), f"{run}/seed-1"]
    shown = text(write_report([run, run / "seed-1"], tmp_path).read_text())
    assert shown.count(f"{run} digits 2 2 ") == 1
    assert shown.count(f"{run}/seed-1 digits 1 2 ") == 1


OF_AN_EARLIER_VERSION = {"weight_decay": 0.02, "stretch": 0.15, "slant": 0.15}
UNKNOWN = "--weight-decay 0.02 --stretch 0.15 --slant 0.15"


def of_an_earlier_version(run, target, **changes):
    config = json.loads((run / "config.json").read_text()) | OF_AN_EARLIER_VERSION | changes
    return copy(run, target, config=json.dumps(config))


def test_a_run_of_an_earlier_version_has_a_report_that_names_the_options_that_are_gone(run, tmp_path):
    old = of_an_earlier_version(run, tmp_path / "old", epochs=7)
    shown = text(write_report([old], tmp_path / "out").read_text())
    assert f"options that this version does not have: {UNKNOWN} . The command leaves them out, so it may" in shown
    assert "--dataset digits --epochs 7 --val-size 119 --num-seeds 2 --patience 20 --workdir runs/again" in shown
    assert "Train it again" not in shown
    assert "--config" not in shown  # `train` refuses that file
    assert "Drawn with the options that this version has" in shown
    with pytest.raises(UserError, match=r'--config .* \(there is no option "slant"\)'):
        parse(["--config", str(old / "config.json")])


def test_runs_of_two_versions_side_by_side(run, page, tmp_path):
    old = of_an_earlier_version(run, tmp_path / "old")
    shown = text(write_report([run, old], tmp_path / "out").read_text())
    assert shown.count(f"--patience 20 not in this version: {UNKNOWN} ") == 1
    for of_this_version in (shown, text(page)):  # they are the other run's
        assert "Train it again" in of_this_version
        assert "Drawn with" not in of_this_version


def test_unknown_options_are_text_whatever_they_are(run, tmp_path):
    old = of_an_earlier_version(run, tmp_path / "old", **{HOSTILE: [HOSTILE], "\ud800": None})
    page = write_report([old], tmp_path / "out").read_text()
    assert "<img src=x" not in page
    assert html.escape(HOSTILE) in page


def test_a_run_without_its_config_names_no_file_that_is_not_there(run, tmp_path):
    shown = text(write_report([copy(run, tmp_path / "run", config=None)], tmp_path / "out").read_text())
    assert "Train it again with the options that differ from the preset python -m mnist_flax.train --dataset" in shown


def test_a_value_that_is_not_of_its_options_type_is_refused(run, tmp_path):
    for value in ("ten", 1.5, [], True):
        wrong = of_an_earlier_version(run, tmp_path / f"run-{value}", epochs=value)
        reason = f"epochs is {json.dumps(value)}; an integer or null was expected"
        message = f"{wrong}/config.json is not a run's config.json ({reason})"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            write_report([wrong], tmp_path / "out")


def test_names_are_text_whatever_they_are(run, tmp_path, monkeypatch):
    names = tuple(f"{HOSTILE}{i}" for i in range(10))  # as folders of images may be called

    def load(path):
        network = classifier_load(path)
        network.class_names = names
        return network

    classifier_load = classifier.load
    monkeypatch.setattr(classifier, "load", load)
    monkeypatch.chdir(tmp_path)
    hostile = [copy(run, Path(f"{HOSTILE}{i}")) for i in range(2)]
    dataset = dataclasses.replace(data.load("digits", None, None), class_names=names)
    page = write_report(hostile, Path("out"), dataset=dataset).read_text()
    assert "<img src=x" not in page
    assert page.count(html.escape(hostile[0].name)) >= 4  # title, heading, legend, table
    assert html.escape(f"{HOSTILE}9") in page


def test_a_checkpoint_directory_stands_for_its_run(run, tmp_path, capsys):
    report.main([str(run / "seed-1/best"), "--output", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "out/report.html")}
    assert "seed-1" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (None, "is not a run directory"),
        ("{", "is damaged"),
        ("", "has not finished an epoch"),
        ("3\n", "is damaged"),
        (json.dumps({"epoch": 1}) + "\n", "is damaged .it has no number for learning_rate"),
    ],
)
def test_what_is_no_run_is_refused(rows, reason, tmp_path):
    if rows is not None:
        (tmp_path / "metrics.jsonl").write_text(rows)
    with pytest.raises(UserError, match=reason):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("summary", ["{", "[]", "{}", '{"seeds": [{"seed": "one"}]}', '{"seeds": 3}'])
def test_a_damaged_summary_is_refused(run, tmp_path, summary):
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        write_report([copy(run, tmp_path / "run", summary=summary)], tmp_path / "out")


def test_a_run_without_checkpoints_is_refused(run, tmp_path):
    shutil.copy(run / "seed-0/metrics.jsonl", tmp_path)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        write_report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_options_make_the_same_run(preset):
    for config in (
        PRESETS[preset],
        Config.from_json({**PRESETS[preset].to_json(), "dataset": "kmnist", "epochs": 7, "seed": 3, "max_lr": 1e-05}),
    ):
        assert parse(runs.arguments(config)) == config
    assert runs.arguments(PRESETS[preset]) == ([] if preset == "default" else ["--preset", preset])


@pytest.mark.parametrize("mistakes", [0, 3, 1200])
def test_mistakes_none_some_and_more_than_can_be_looked_at(mistakes, monkeypatch):
    images, labels = np.zeros((mistakes + 5, 28, 28), np.uint8), np.ones(mistakes + 5, np.int32)
    labels[:mistakes] = 0
    log_probabilities = np.log(np.tile(np.float32([0.1, 0.9]), (mistakes + 5, 1)))
    given, tiled = [], plots.tiled
    monkeypatch.setattr(plots, "tiled", lambda *tiles, **above: given.append(above) or tiled(*tiles, **above))
    picture = plots.misclassified(images, labels, log_probabilities, ("0", "1"))
    assert given == [{"captions": ["0 → 1  90%"] * min(mistakes, 1000)}]
    assert np.unique(np.asarray(picture)).size > 2  # letters are drawn, with smooth edges


def test_tiles_are_enlarged_by_whole_numbers_under_their_column():
    grey, coloured = np.arange(16, dtype=np.uint8).reshape(4, 4), np.full((3, 5, 3), (200, 0, 0), np.uint8)
    picture = np.asarray(plots.tiled([grey, coloured, grey], 2, 20))
    assert picture.shape == (2 * 21, 2 * 21, 3)
    np.testing.assert_array_equal(picture[:20, :20, 0], np.repeat(np.repeat(grey, 5, 0), 5, 1))
    assert (picture[:21, 21:].sum(-1) == 200).sum() == 12 * 20
    assert (picture[21:, 21:] == 255).all()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_page_fits_its_window(run, chromium, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get((run / "report/report.html").as_uri())
    assert chromium.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth") == width
    background, colour = chromium.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", value)[:3])) for value in (background, colour)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert chromium.get_log("browser") == []


@pytest.mark.parametrize("error", [RuntimeError("no latex"), OSError(28, "No space left"), UserError("no data")])
def test_a_report_that_fails_is_a_sentence_and_is_drawn_by_the_same_command(run, tmp_path, monkeypatch, capsys, error):
    """The run itself stays as it is."""
    arguments = ["--dataset", "digits", "--epochs", "2", "--num-seeds", "2", "--workdir"]
    arguments.append(str(copy(run, tmp_path / "run")))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def fail(*_):
        raise error

    monkeypatch.setattr("mnist_flax.views.report.write_report", fail)
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "holds a finished run" in printed.out
    assert printed.err.startswith("error: the report could not be drawn (")
    assert str(error) in printed.err
    assert "run the same command again" in printed.err
    assert printed.err.count("\n") == 1

    monkeypatch.setattr("mnist_flax.views.report.write_report", lambda paths, output, *_: output / "report.html")
    train.main(arguments)
    assert capsys.readouterr().out.endswith(f"Report         {tmp_path}/run/report/report.html\n")
    assert {path: path.read_bytes() for path in before} == before
