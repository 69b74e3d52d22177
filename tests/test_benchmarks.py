import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import fresh_variables, normal
from scipy import stats

import mnist_flax
from benchmarks.compilers import precision
from benchmarks.release import ship, tables
from benchmarks.speed.compare import Row, main, measure, summarise, table
from benchmarks.speed.plain_flax import PlainNet
from benchmarks.speed.suite import SUITE, Benchmark
from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import MNISTNet

ROOT = Path(__file__).parents[1]
DEFAULT = tables.KEPT / "default.json"
KEPT = ("default", "best", "taught", "speedrun", "reference")  # the results that README shows


def test_ratio_is_the_median_of_each_rounds_own():
    rounds = [{"ours": 1.0, "peer": 3.0}, {"ours": 10.0, "peer": 20.0}, {"ours": 1.0, "peer": 4.0}]
    assert summarise(rounds) == [Row("ours", 1, 1, 10, 1), Row("peer", 4, 3, 20, 3)]


def test_table_shows_what_was_skipped():
    rows = [Row("ours", 12.345, 12, 13, 1), Row("flax-plain", 123456, 100000, 200000, 10000)]
    text = table("step", SUITE["step"], rows, {"torch": "torch is not installed"})
    assert "100,000–200,000" in text
    assert "skipped: torch is not installed" in text


def test_peer_without_its_package_is_skipped(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    benchmark = Benchmark("title", "s", 1.0, {"torch": "torch_peers.step"})
    assert measure("step", benchmark, 1) == ([], {"torch": "torch is not installed"})


def test_failing_worker_is_one_sentence():
    benchmark = Benchmark("title", "s", 1.0, {"peer": "ours.no_such_function"})
    with pytest.raises(UserError, match=r"^measuring peer in name failed: AttributeError.*no_such_function'$"):
        measure("name", benchmark, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "error: there is no benchmark 'nonsense'; choose from step, "),
        (["step", "--rounds", "0"], "error: --rounds is 0; it must be at least 1"),
        (["step", "--plot", "figure.png"], "error: --plot draws the benchmark `scaling`"),
        (["step", "--json", "no/such/directory/file.json"], "error: no/such/directory/file.json: No such file"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_rounding_operands_changes_what_a_network_says_by_little_and_not_rounding_them_by_nothing():
    network, images = mnist_flax.load(), data.load("digits", None, 0).test.images[:50]
    exact = precision.outputs(network, images, precision.FLOAT32)
    for ours, expected in zip(exact, network.judge(images), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    for ours, expected in zip(precision.outputs(network, images, 7), exact, strict=True):
        assert 1e-4 < np.abs(ours - expected).max() < 0.1
    with pytest.raises(UserError, match="has no reference"):
        precision.outputs(Classifier(network.variables, network.card), images, 7)


def test_plain_flax_is_the_same_network():
    variables = fresh_variables(0)
    images = normal(1, 4, 28, 28, 1)

    @jax.jit
    def both(variables):
        return [
            net.apply(variables, images, train=train, mutable=["batch_stats"])[0]
            for net in (MNISTNet(), PlainNet())
            for train in (False, True)
        ]

    ours, ours_training, plain, plain_training = both(variables)
    np.testing.assert_allclose(plain, ours, atol=1e-5)
    np.testing.assert_allclose(plain_training, ours_training, atol=1e-4)


def test_benchmark_runs_and_records(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "augment", "--rounds", "1", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "augment: augmentation of 124 images" in result.stdout
    recorded = json.loads(path.read_text())
    assert recorded["machine"]["jax"] == jax.__version__
    [figures] = recorded["benchmarks"]["augment"]["rounds"]
    assert list(figures) == ["ours", "map-coordinates", "pillow"]
    assert all(value > 0 for value in figures.values())


def test_what_is_kept_of_a_run_makes_the_same_tables(tmp_path, monkeypatch):
    """Without the paths of the machine that it ran on; what is no run is refused in a sentence."""
    run = tmp_path / "mine"
    run.mkdir()
    config = json.loads(DEFAULT.read_text())["config"] | {"workdir": str(run), "data_dir": "/data"}
    seeds = [{"seed": seed, "val_accuracy": 0.99 + seed / 1000, "test_accuracy": 0.99} for seed in range(2)]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="mine is not a finished run"):
        tables.keep([run])
    summary = {"num_seeds": 2, "preset": "default", "epochs_run": 3, "selection_split": "validation", "seeds": seeds}
    (run / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(tables, "KEPT", tmp_path / "results")
    assert "mine.json: 2 seeds" in tables.keep([run])
    kept = tmp_path / "results/mine.json"
    assert str(tmp_path) not in kept.read_text()
    for make in (tables.recipes, tables.results):
        assert make([kept]) == make([run])


def test_tables_in_pages_are_made_anew(tmp_path):
    """Those of kept results, wherever they are out of date; what else the pages say stays."""
    pages = []
    for name in ("recipes.md", "results.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        for command in re.findall(r"^python -m \S+tables (?:recipes|results) [^`]*```\n\n", text, re.MULTILINE):
            head = text.index("\n", text.index(command) + len(command))
            text = f"{text[: head - 1]}| another column |{text[head:]}"
        pages.append(tmp_path / name)
        pages[-1].write_text(text, encoding="utf-8")
        assert "another column" in text
    tables.update(pages)
    for page in pages:
        assert page.read_text(encoding="utf-8") == (ROOT / "docs" / page.name).read_text(encoding="utf-8")
    assert tables.update(pages) == "nothing has changed"


def test_recipes_of_two_versions_name_the_options_that_only_one_has(tmp_path):
    """Whichever is the baseline: what only the other has is a difference too."""
    kept = json.loads(DEFAULT.read_text())
    paths = [tmp_path / "old.json", DEFAULT]
    paths[0].write_text(json.dumps(kept | {"config": kept["config"] | {"weight_decay": 0.0, "slant": 0.15}}))
    [_, _, *rows], [_, _, *reversed_rows] = (tables.recipes(runs).splitlines() for runs in (paths, paths[::-1]))
    assert [row.split(" | ")[0] for row in (rows[1], reversed_rows[1])] == [
        "| no `--weight-decay` no `--slant`",
        "| `--weight-decay 0.0` `--slant 0.15`",
    ]
    assert "weight-decay" not in reversed_rows[0]


def test_a_run_on_another_device_is_marked_and_compared_without_pairs(tmp_path):
    kept = json.loads(DEFAULT.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(kept | {"summary": kept["summary"] | {"devices": "1 x cpu (2 cores)"}}))
    row = tables.recipes([DEFAULT, other]).splitlines()[-1]
    seeds = [result["val_accuracy"] for result in kept["summary"]["seeds"]]
    margin = stats.t.ppf(0.975, 2 * len(seeds) - 2) * 100 * np.std(seeds, ddof=1) * (2 / len(seeds)) ** 0.5
    assert row.endswith(f"| +0.000 ± {margin:.3f}, not paired: on 1 x cpu (2 cores) |")
    same = tables.recipes([DEFAULT] * 2).splitlines()[-1]
    assert same.endswith("| +0.000 ± 0.000 |")


def test_a_result_names_every_option_that_makes_it_another_than_its_presets():
    names = [
        row.split(" | ")[0] for row in tables.results([tables.KEPT / f"{name}.json" for name in KEPT]).splitlines()
    ]
    assert names[2:] == [
        "| `default` `--val-size 10000` `--patience 0` `--target-accuracy 1.0`",
        "| `best`",
        "| `best` `--teacher runs/best` `--augmentation-fade 0.6`",
        "| `speedrun`",
        "| `reference`",
    ]


def test_the_card_of_a_network_names_the_options_that_are_gone():
    config = {"preset": "speedrun", "epochs": 3}
    command = ship.training(config)
    assert command.startswith("```bash\npython -m mnist_flax.train --preset speedrun --epochs 3 ")
    assert command.endswith("\n```")
    gone = "\n\nand options that this version does not have (`--weight-decay 0.02`),"
    assert ship.training(config | {"weight_decay": 0.02}) == command + gone
