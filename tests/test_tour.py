"""docs/tour.ipynb runs from its first cell to its last, and is committed as such a run left it."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import mnist_flax

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"
MAX_BYTES = 400 * 1024
PICTURES = ("curves", "confusion", "mistakes", "draw", "score")
# A slash, "~" or drive at the start of a word, as in "/home/me", "~/runs" or "C:\Users".
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=:])(?:~?/|[A-Z]:\\)\w""")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook, name):
    """What the cell of that name printed."""
    [cell] = [cell for cell in notebook.cells if cell.id == name]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def kinds_of_output(cell):
    """Which kinds there are, not how many of each: how a command's lines are cut into outputs is a matter of timing."""
    return {(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs}


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def executed(folder):
    """The notebook after a run on `digits` in `folder`; a cell that raises is an error here."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [settings] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source += f"""
OPTIONS = "--dataset digits --epochs 6"
import sys
assert sys.executable == {sys.executable!r}
"""
    with pytest.MonkeyPatch.context() as patch:
        # The kernel, and the commands that it starts, import the package under test wherever they run.
        patch.setenv("PYTHONPATH", str(Path(mnist_flax.__file__).parents[1]))
        # Eight CPU devices, which conftest.py asks for, make every program slower to compile.
        patch.delenv("XLA_FLAGS", raising=False)
        # A user's own kernels and start-up files stay out of it.
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
        patch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def test_it_trains_and_evaluates(executed, folder):
    assert re.search(r"^Epoch 6 - Loss: ", printed(executed, "train"), re.MULTILINE)
    assert re.search(r"^accuracy +\d+\.\d\d% of 359 images", printed(executed, "evaluate"), re.MULTILINE)
    assert (folder / "runs/tour/summary.json").exists()


def test_it_reads_the_drawn_digit(executed):
    answer, *rows = printed(executed, "predict").splitlines()
    # Six epochs of `digits` make a poor judge: what it answers differs between machines.
    named, refused = r"(unclear, perhaps )?\d \(\d+\.\d%\)", r"not like a digit; the nearest is \d"
    assert re.match(rf"runs/tour/drawn\.png: ({named}|{refused})", answer)
    assert [len(row) for row in rows] == [28] * 14


def test_it_exports_what_it_trained(executed, folder):
    assert (folder / "runs/tour/mnist.stablehlo").stat().st_size > 0
    file, network = (line.partition(":")[2].split() for line in printed(executed, "call").splitlines())
    assert file == network


def test_the_committed_outputs_are_those_of_one_run_from_top_to_bottom(committed, executed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [kinds_of_output(cell) for cell in cells] == [kinds_of_output(cell) for cell in code_cells(executed)]
    assert {cell.id for cell in cells if any("image/png" in kind for kind in kinds_of_output(cell))} == {*PICTURES}


def test_the_committed_outputs_name_no_machine_and_are_small(committed):
    texts = [
        text
        for cell in code_cells(committed)
        for output in cell.outputs
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    ]
    assert not [text for text in texts if ABSOLUTE_PATH.search(text) or str(Path.home()) in text]
    assert NOTEBOOK.stat().st_size <= MAX_BYTES


def test_it_opens_with_any_python_3(committed):
    nbformat.validate(committed)
    assert committed.metadata.kernelspec.name == "python3"
