"""The notebooks in docs/ run from the first cell to the last, and are committed as such a run left them."""

import functools
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import mnist_flax

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("tour", "inside")
MAX_BYTES = 400 * 1024
PICTURES = {"tour": {"curves", "confusion", "mistakes", "draw", "score"}, "inside": {"batch"}}
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


def committed(name):
    return nbformat.read(DOCS / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def executed(folder):
    """Notebooks by name after a run on `digits` in `folder`; a cell that raises is an error here."""

    @functools.cache
    def execute(name):
        notebook = committed(name)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += f"""
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

    return execute


def test_it_trains_and_evaluates(executed, folder):
    assert re.search(r"^Epoch 6 - Loss: ", printed(executed("tour"), "train"), re.MULTILINE)
    assert re.search(r"^accuracy +\d+\.\d\d% of 359 images", printed(executed("tour"), "evaluate"), re.MULTILINE)
    assert (folder / "runs/tour/summary.json").exists()


def test_it_reads_the_drawn_digit(executed):
    answer, *rows = printed(executed("tour"), "predict").splitlines()
    # Six epochs of `digits` make a poor judge: what it answers differs between machines.
    named, refused = r"(unclear, perhaps )?\d \(\d+\.\d%\)", r"not like a digit; the nearest is \d"
    assert re.match(rf"runs/tour/drawn\.png: ({named}|{refused})", answer)
    assert [len(row) for row in rows] == [28] * 14


def test_it_exports_what_it_trained(executed, folder):
    assert (folder / "runs/tour/mnist.stablehlo").stat().st_size > 0
    file, network = (line.partition(":")[2].split() for line in printed(executed("tour"), "call").splitlines())
    assert file == network


def test_what_is_called_by_hand_gives_what_a_run_gives(executed):
    """The notebook asserts that bits are the same; on four devices floats are added in another order."""
    one, four = (
        re.search(r"loss (\d\.\d{3})", printed(executed("inside"), name)) for name in ("epoch", "four-devices")
    )
    assert float(one[1]) == pytest.approx(float(four[1]), abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_outputs_are_those_of_one_run_from_top_to_bottom(name, executed):
    cells = code_cells(committed(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [kinds_of_output(cell) for cell in cells] == [kinds_of_output(cell) for cell in code_cells(executed(name))]
    pictures = {cell.id for cell in cells if any("image/png" in kind for kind in kinds_of_output(cell))}
    assert pictures == PICTURES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_outputs_name_no_machine_and_are_small(name):
    texts = [
        text
        for cell in code_cells(committed(name))
        for output in cell.outputs
        for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    ]
    assert not [text for text in texts if ABSOLUTE_PATH.search(text) or str(Path.home()) in text]
    assert (DOCS / f"{name}.ipynb").stat().st_size <= MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_any_python_3(name):
    nbformat.validate(committed(name))
    assert committed(name).metadata.kernelspec.name == "python3"
