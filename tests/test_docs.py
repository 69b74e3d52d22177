"""README and docs: links lead somewhere, files and modules that are named exist, commands shown are accepted."""

import dataclasses
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.release import tables
from mnist_flax.__main__ import module_of
from mnist_flax.config import Config
from mnist_flax.errors import UserError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "mnist_flax/inference/pretrained.md"]
DIRECTORIES = ("mnist_flax", "tests", "benchmarks", "docs")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FILE = re.compile(rf"(?:{'|'.join(DIRECTORIES)}|\.ci|\.github)/[\w./-]*|[\w./-]+\.py")
NAME = re.compile(r"\b(?:mnist_flax|benchmarks|tests)(?:\.[A-Za-z_]\w*)+")
# Between backticks this is the name of a command, which may need arguments to run.
COMMAND_NAME = re.compile(r"mnist-flax \w+|python -m [\w.]+")
# Words that a reader replaces, and values to try in their place.
PLACEHOLDERS = {"PRESET": "best", "N": "3", "RUN": "runs/run", "NAME": "name", "OPTIONS": ""}


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def blocks(text: str, wanted: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [block for language, block in FENCE.findall(text) if language == wanted]


def code_in(text: str) -> list[str]:
    """The code between backticks, and the blocks of Python."""
    return CODE.findall(prose(text)) + blocks(text, "python")


def links_in(text: str) -> list[str]:
    """The targets of links and images, except those on other sites."""
    return [link for link in LINK.findall(CODE.sub("", prose(text))) if "://" not in link]


def anchors_in(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(prose(text))}


def files_in(text: str) -> list[str]:
    """The repository's files and directories that are named."""
    return [code for code in code_in(text) if FILE.fullmatch(code)]


def names_in(text: str) -> list[str]:
    """The modules, and what they contain, that are named."""
    return [name for code in code_in(text) for name in NAME.findall(code)]


def commands_in(text: str) -> list[str]:
    """The project's commands in bash blocks and between backticks, without what launches them."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [f"{code} --help" if COMMAND_NAME.fullmatch(code) else code for code in CODE.findall(prose(text))]
    relevant = [line for line in lines if re.search("mnist-flax|-m (mnist_flax|benchmarks|tests)", line)]
    return [shlex.join(command) for line in relevant for command in commands_in_line(line)]


def commands_in_line(line: str) -> Iterator[list[str]]:
    """The words of each of the project's commands in a line of shell: `mnist-flax ...` or `-m module ...`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if word.startswith("--command="):  # gcloud's, for another machine
            yield from commands_in_line(word.removeprefix("--command="))
        elif not set(word) <= set(";&|<>()"):
            command.append(word)
        else:
            for i, part in enumerate(command):
                if Path(part).name == "mnist-flax" or (part == "-m" and NAME.match(f"{command[i + 1]}.py")):
                    yield command[i:]
                    break
            command = []


def filled_in(words: list[str]) -> Iterator[str]:
    """The words with placeholders replaced; "…" is an option's value, or else more of the same and left out."""
    previous = ""
    for word in words:
        value = re.sub(rf"\b({'|'.join(PLACEHOLDERS)})\b(\.\.\.)?", lambda found: PLACEHOLDERS[found[1]], word)
        if word == "…":
            value = "value" if previous.startswith("--") else ""
        if value:
            yield value
        previous = word


def parse(command: str) -> None:
    """Let a command's own parser take its arguments; raises what the parser raises."""
    program, *arguments = filled_in(shlex.split(command))
    module = arguments.pop(0) if program == "-m" else "mnist_flax"
    if module == "mnist_flax":
        if arguments in ([], ["--version"]):
            return
        found = module_of(arguments.pop(0))
    else:
        found = importlib.import_module(f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module)
    try:
        found.parse(arguments)
    except SystemExit as stopped:
        if stopped.code:  # --help ends with 0
            raise


def resolve(name: str) -> None:
    """Import the module, or find the name in its module."""
    first, *parts = name.split(".")
    found = importlib.import_module(first)
    for i, part in enumerate(parts, 1):
        if not hasattr(found, part):
            importlib.import_module(".".join([first, *parts[:i]]))
        found = getattr(found, part)


def in_all_pages(find):
    """A test case for each thing that `find` finds in a page."""
    return [
        pytest.param(page, found, id=f"{page.name}: {found}")
        for page in PAGES
        for found in dict.fromkeys(find(page.read_text(encoding="utf-8")))
    ]


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_hooks_run_what_ci_runs():
    hooks = re.findall(r"entry: ([^,]+),", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    ci = [line.removesuffix(" &") for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()]
    assert hooks == [line for line in ci if line.startswith(("ruff", "basedpyright"))]


def test_every_option_of_train_is_listed():
    rows = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs/training.md").read_text(encoding="utf-8"), re.MULTILINE)
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
    assert set(re.findall("--[a-z-]+", " ".join(rows))) == options | {"--config"}


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_page_is_linked_from_the_readme(page):
    assert page.relative_to(ROOT).as_posix() in links_in(README.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("page", "link"), in_all_pages(links_in))
def test_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    assert not anchor or anchor in anchors_in(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("page", "name"), in_all_pages(files_in))
def test_named_file_exists(page, name):
    found = [ROOT / name] if "/" in name else [path for top in DIRECTORIES for path in (ROOT / top).rglob(name)]
    assert any(path.exists() for path in found)


@pytest.mark.parametrize(("page", "name"), in_all_pages(names_in))
def test_named_module_exists(page, name):
    resolve(name)


@pytest.mark.parametrize(("page", "command"), in_all_pages(commands_in))
def test_command_is_accepted(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # parsers may read a run's configuration, and make the files to be written
    run = tmp_path / "runs/mnist_training"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(Config().to_json()))
    parse(command)


def tables_in(text: str) -> list[str]:
    return [command for command in commands_in(text) if "/results/" in command]


@pytest.mark.parametrize(("page", "command"), in_all_pages(tables_in))
def test_a_table_of_kept_results_is_what_its_command_prints(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = tables.parse(command.split()[2:])
    assert tables.TABLES[options.table](options.runs) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("shown", "commands"),
    [
        ("`mnist-flax`, `mnist-flax predict`", ["mnist-flax", "mnist-flax predict --help"]),
        ("```bash\na && .venv/bin/mnist-flax train   # b\n```", [".venv/bin/mnist-flax train"]),
        ("```bash\nX=1 python -m benchmarks step \\\n  --rounds 3 | c\n```", ["-m benchmarks step --rounds 3"]),
        ("`mpirun -n 8 mnist-flax predict - < a.png`", ["mnist-flax predict -"]),
        ('`gcloud ssh --command="mnist-flax train --seed 1" NAME`', ["mnist-flax train --seed 1"]),
        ("`python -m venv a && pip install 'mnist-flax[onnx]'`, `mnist_flax/train.py`, `python -m pytest`", []),
        ("```\nimported.safetensors: try python -m mnist_flax.evaluate\n```", []),
    ],
)
def test_commands_are_found_however_they_are_shown(shown, commands):
    assert commands_in(shown) == commands


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("mnist-flax trian", UserError),
        ("mnist-flax train --epoch 3", UserError),
        ("-m benchmarks.release.tables result RUN", UserError),
    ],
)
def test_wrong_commands_are_refused(command, error):
    with pytest.raises(error):
        parse(command)
