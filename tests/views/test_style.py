"""Our pictures do not depend on a user's settings of matplotlib."""

import hashlib
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from mnist_flax.views import charts, plots

SETTINGS = {
    "LaTeX, which is not there": {"text.usetex": True},
    "a font that is not there": {"font.family": "Nope", "font.size": 40},
    "huge pictures": {"savefig.dpi": 10_000, "savefig.bbox": "tight", "figure.dpi": 3},
    "colours": {"axes.facecolor": "red", "savefig.facecolor": "blue", "image.cmap": "jet", "lines.linestyle": ":"},
}


def drawn(directory):
    row = dict.fromkeys(("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate"), 0.5)
    curve = charts.learning_curve("Loss", [("a $name", [{"epoch": 1, **row}])])
    picture = plots.save({"Confusion": plots.confusion(np.eye(2, dtype=int), ("a", "b"))}, directory)["Confusion"]
    return charts.svg(curve, "id"), picture.read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        return drawn(tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_change_no_picture(tmp_path, settings, expected):
    with matplotlib.rc_context(SETTINGS[settings]):
        assert drawn(tmp_path) == expected
        assert all(matplotlib.rcParams[name] in (value, [value]) for name, value in SETTINGS[settings].items())


DRAW = """
import hashlib, io, os
before = dict(os.environ)
from mnist_flax.views.style import STYLE, Figure
assert os.environ == before

@STYLE
def draw():
    figure, file = Figure(), io.BytesIO()
    figure.subplots().set_title("x")
    figure.savefig(file)
    return file.getvalue()

print(hashlib.sha256(draw()).hexdigest())
"""


def test_settings_that_matplotlib_refuses_are_left_out(tmp_path):
    file = tmp_path / "matplotlibrc"
    file.write_bytes(b"font.family: \xff\xfe\n")
    environments = {}, {"MPLBACKEND": "nonsense"}, {"MATPLOTLIBRC": str(file)}
    ran = [
        subprocess.run([sys.executable, "-c", DRAW], env=os.environ | each, capture_output=True, check=True)
        for each in environments
    ]
    assert len({process.stdout for process in ran}) == 1
    assert len(ran[0].stdout) > len(hashlib.sha256().hexdigest())
