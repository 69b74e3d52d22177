"""The house rules that a program can check: imports go one way, private names stay at home, files stay small."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from mnist_flax.__main__ import COMMANDS

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the ground up: a part of the package imports only parts that stand before its own line.
FLOORS = [
    {"errors"},
    {"files"},
    {"ops"},
    {"config", "data", "augment"},
    {"model", "presets"},
    {"packed"},
    {"optim", "state"},
    {"step"},
    {"distillation"},
    {"training"},
    {"inference"},
    {"reading"},
    {"views"},
    {"cli"},
    {name.replace("-", "_") for name in COMMANDS},
    {"__main__"},
]


def module_of(path: Path) -> str:
    """ "mnist_flax/data/dataset.py" is "mnist_flax.data.dataset"."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:  # of a package either a module, or what its own __init__ offers
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(MODULES)) - {"mnist_flax", module_of(path)}


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if module.split(".")[1] in floor)


def test_every_part_of_the_package_has_a_floor():
    assert {module.split(".")[1] for module in MODULES if module != "mnist_flax"} == set().union(*FLOORS)


def test_the_docs_say_what_every_part_is_for():
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    modules = [f"`{path.name}`" for path in PACKAGE.glob("[!_]*.py")]
    folders = [f"`mnist_flax/{path.parent.name}/`" for path in PACKAGE.glob("*/__init__.py")]
    assert [part for part in modules + folders if part not in page] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != "mnist_flax"])
def test_imports_go_down(module):
    for imported in imports(MODULES[module]):
        same_part = module.split(".")[1] == imported.split(".")[1]
        assert same_part or floor_of(imported) < floor_of(module), f"{module} imports {imported}"


def test_no_circle():
    list(graphlib.TopologicalSorter({module: imports(path) for module, path in MODULES.items()}).static_order())


def definitions(path: Path) -> dict[str, int]:
    """Functions and classes by name, with their number of lines."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "name") and hasattr(node, "body")]
    return {f"{type(n).__name__} {n.name}": n.end_lineno - n.lineno + 1 for n in nodes if hasattr(n, "end_lineno")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_files_classes_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 250
    for name, lines in definitions(path).items():
        assert lines <= (120 if name.startswith("ClassDef") else 65), name


SOURCES = [*FILES, *Path(__file__).parent.rglob("*.py"), *(PACKAGE.parent / "benchmarks").rglob("*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_private_names_are_used_in_their_own_module(path):
    tree = ast.parse(path.read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mnist_flax", "benchmarks"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"]
            modules |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            public = not node.attr.startswith("_") or node.attr in {"_fields", "_asdict", "_replace"}  # of a NamedTuple
            assert public or node.attr.startswith("__"), f"{node.value.id}.{node.attr}"


def test_private_names_of_jax_are_imported_in_one_place():
    """`training/distributed.py` says why."""
    private = re.compile(r"(from|import) (jax\._src|jaxlib)|config\.values")
    found = [path.name for path in FILES for _ in private.finditer(path.read_text())]
    assert found == ["distributed.py"]


def test_the_platform_is_a_property_of_the_mesh():
    for path in SOURCES:
        assert path == Path(__file__) or "default_backend" not in path.read_text(), path


PLATFORMS = {f"mnist_flax.ops.{name}" for name in ("cpu", "gpu", "tpu", "native")}


def test_operations_choose_their_platform_in_one_place():
    assert [path for path in FILES if "platform_dependent" in path.read_text()] == [PACKAGE / "ops/__init__.py"]


@pytest.mark.parametrize("module", sorted(PLATFORMS))
def test_a_platforms_operations_can_be_dropped_alone(module):
    importing = {name for name, path in MODULES.items() if module in imports(path)}
    assert importing == {"mnist_flax.ops"}
