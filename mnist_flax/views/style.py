"""Matplotlib in this package's own style, whatever the user's settings are."""

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def _matplotlib() -> ModuleType:
    """Import matplotlib; if it refuses the user's settings, as an unknown MPLBACKEND, without them."""
    try:
        return importlib.import_module("matplotlib")
    except ValueError:
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]
        spec: Any = importlib.util.find_spec("matplotlib")
        [directory] = spec.submodule_search_locations
        settings = {"MPLBACKEND": "agg", "MATPLOTLIBRC": f"{directory}/mpl-data/matplotlibrc"}
        users = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            return importlib.import_module("matplotlib")
        finally:
            for name, value in users.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


matplotlib = _matplotlib()

# isort: split
from matplotlib.figure import Figure as Figure  # noqa: E402

# The colours that report.html gives other values on a dark ground, by the names of its variables.
COLOURS = {
    "text": "#18202c",
    "muted": "#5a6574",
    "line": "#d5dae1",
    "raised": "#ffffff",
    "accent": "#0f6f8c",
    "series-1": "#b03a14",
    "series-2": "#6a4fb3",
    "series-3": "#2f7a2b",
    "series-4": "#a8327d",
    "series-5": "#8a6d00",
    "series-6": "#3a5fc4",
    "series-7": "#7a4a2e",
}
_SETTINGS = {
    **dict.fromkeys(("text.color", "axes.labelcolor"), COLOURS["text"]),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), COLOURS["muted"]),
    "grid.color": COLOURS["line"],
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar sign in a name is one
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # text stays text; the same names in every file
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


STYLE = _style()  # a decorator
