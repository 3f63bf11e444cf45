"""The house as CONTRIBUTING.md draws it: imports point down, functions and files stay small, every yaml file loads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from paddlevit.config import get_config, variant_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted(path for path in (ROOT / "paddlevit").rglob("*.py") if "configs" not in path.parts)
FAMILIES = {"hvt", "cvt", "hrformer", "pit", "regnet"}
# Rooms by level; a room may import what is below its own level.
LEVELS = (
    {"errors"},
    {"paddle_internals"},
    {"views", "runtime", "schema", "safe_pickle", "linear_probe", "calibration", "metrics"},
    {"layers", "config"},
    FAMILIES | {"training", "data", "weights", "report", "serve", "export", "attention_maps", "flops"},
    {"models"},
    {"run", "classifier"},
    {"commands"},
    {"__main__"},
)
OF_A_FAMILY = {"layers", "views", "config", "paddle_internals", "errors"}


def room(path: Path) -> str:
    """The first part of a module's name below the package: 'data' for paddlevit/data/loader.py."""
    part = path.relative_to(ROOT / "paddlevit").parts[0]
    return part[:-3] if part.endswith(".py") else part


def imported_rooms(path: Path) -> set:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "paddlevit":
                names |= {f"paddlevit.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    assert not any(name.split(".")[0] in ("torch", "torchvision", "timm") for name in names), f"{path} imports torch"
    return {name.split(".")[1] for name in names if name.startswith("paddlevit.")}


def allowed(of: str) -> set:
    if of in FAMILIES:
        return OF_A_FAMILY | {of}
    if of == "__init__":
        return {"classifier", "commands", "models", "runtime"}
    level = next(i for i, rooms in enumerate(LEVELS) if of in rooms)
    return set().union(*LEVELS[:level], {of}) - (set() if of == "models" else FAMILIES)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    assert imported_rooms(path) <= allowed(room(path))


def test_the_engine_is_handed_what_it_trains():
    assert not imported_rooms(ROOT / "paddlevit" / "training" / "engine.py") & {"config", "data", *FAMILIES}


# Public in spite of the underscore: named tuples, os; and the unpickler in Python, the only one that can be restricted.
OF_THE_LIBRARY = {"_replace", "_asdict", "_exit", "_Unpickler"}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_the_files_own(path):
    """What Paddle keeps private is asked for in one place; a module's own private names stay in it too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            mine = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
            (own if mine else used).add(node.attr)
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert room(path) == "paddle_internals" or private <= own | OF_THE_LIBRARY


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 40, f"{path}:{node.lineno} {node.name}"
            prints = any(isinstance(inner, ast.Name) and inner.id == "print" for inner in ast.walk(node))
            assert room(path) == "commands" or not prints, f"{path}:{node.lineno} {node.name} prints"


def test_the_package_does_not_grow():
    """A feature pays for its lines: what it adds is taken out elsewhere. Lower this when the package is smaller."""
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in PACKAGE) <= 16_750


def test_tools_and_scripts_only_call():
    for path in (ROOT / "tools").glob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 15, path
    for path in (ROOT / "run_scripts").glob("*.sh"):
        run, _, _ = path.read_text(encoding="utf-8").partition("<<END\n")
        assert run.count("\n") <= 10, path


@pytest.mark.parametrize("name", variant_names())
def test_every_shipped_yaml_loads(name):
    config = get_config(name)
    assert name == config.MODEL.NAME
    assert config.is_frozen()
    first = next((ROOT / "configs").glob(f"*/{name}.yaml")).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# python tools/"), "the header says how to run it"
