"""Options that take a path: what is expanded, and what is refused before anything is made."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from mnist_flax import cli
from mnist_flax.__main__ import COMMANDS, module_of
from mnist_flax.config import PATHS, Config, flag
from mnist_flax.errors import UserError
from mnist_flax.files import expanded, local_path
from mnist_flax.train import parse, train

# What each command needs beside the option, and its options that take a path; "" is an argument.
OPTIONS = [
    ("train", [], [*map(flag, PATHS), "--config"]),
    ("evaluate", [], ["", "--dataset", "--data-dir", "--save-plots"]),
    ("predict", ["image.png"], ["", "--checkpoint", "--annotate"]),
    ("demo", [], ["--checkpoint"]),
    ("report", ["run"], ["", "--output", "--dataset", "--data-dir"]),
    ("export", ["--format", "onnx", "--output=a"], ["", "--output", "--data-dir"]),
    ("import-weights", ["a.pth"], ["--output"]),
    ("import-weights", ["--output=a.safetensors"], [""]),
    ("summary", [], []),
]
CASES = [(command, needed, option) for command, needed, options in OPTIONS for option in options]
REFUSED = {
    "gs://bucket/run": "is an address, not a path",
    "s3://bucket/run": "is an address, not a path",
    "https://example.org/run": "is an address, not a path",
    "C:\\runs\\m": "is a path of Windows",
    "D:/runs/m": "is a path of Windows",
    "C:runsm": "is a path of Windows",  # what a shell makes of the first
    "\\\\server\\share": "is a path of Windows",
    "~nobody there/run": "is in a home directory that is not known",
}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"train"}))
def test_every_option_that_takes_a_path_is_tried(command, monkeypatch):
    parsers = []
    monkeypatch.setattr(cli.ArgumentParser, "parse_args", lambda parser, *_: parsers.append(parser) or parser.exit())
    with pytest.raises(SystemExit):
        module_of(command).parse([])
    actions = parsers[0]._actions
    assert Path not in {action.type for action in actions}
    taken = [action for action in actions if action.type in (local_path, expanded)]
    names = {name for action in taken for name in action.option_strings or [""]}
    assert names == {option for other, _, option in CASES if other == command}


def test_every_path_of_train_is_tried():
    assert {field.name for field in dataclasses.fields(Config) if "Path" in str(field.type)} <= set(PATHS)


@pytest.mark.parametrize(("command", "needed", "option"), CASES)
def test_a_home_directory_is_expanded_and_other_places_are_refused(command, needed, option, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").write_text("{}")
    before = list(tmp_path.iterdir())

    def parsed(path):
        return module_of(command).parse([*needed, f"{option}={path}" if option else path])

    options = parsed("~/x.safetensors")  # of --config it is read
    assert option == "--config" or f"{tmp_path}/x.safetensors" in str(vars(options))
    for path, reason in REFUSED.items():
        with pytest.raises(UserError, match=reason) as raised:
            parsed(path)
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", PATHS)
def test_from_python_and_a_config_file_too(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    kind = Path if name in ("workdir", "data_dir") else str
    for config in (Config.from_json({name: "~/x"}), Config(**{name: kind("~/x")})):
        assert getattr(config, name) == kind("/home/me/x")
    for path, reason in REFUSED.items():
        with pytest.raises(UserError, match=reason):
            Config.from_json({name: path})


def test_what_is_a_path_here_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C:old").mkdir()
    for path in (
        "runs/x",
        "./digits",
        "digits",
        "a~b",
        "./~x",
        "-",
        "ab:c/d",
        "runs/C:x",
        "..",
        "/",
        "C:old",
        "runs/x/",
    ):
        assert expanded(path) == path


@pytest.mark.parametrize("inside", ["", "sub", ".."])
def test_a_run_is_not_written_among_the_data(tmp_path, inside, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "01":
        (tmp_path / "data/own" / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for dataset, workdir in itertools.product(("data/own", tmp_path / "data/own"), (f"data/own/{inside}",)):
        with pytest.raises(UserError, match="one contains the other; choose a --workdir elsewhere"):
            train(parse(["--dataset", str(dataset), "--workdir", workdir]))
    assert sorted(tmp_path.rglob("*")) == before
