"""The house: which folder may import which, how long a file may be, what has a docstring, and that the examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("taskgraph", "autodiff", "workers", "scheduler_plugins", "deploy")
LONGEST = 500

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = sorted(
    found.name
    for package in PACKAGES
    for found in [
        pkgutil.ModuleInfo(None, package, True),  # type: ignore[arg-type]
        *pkgutil.walk_packages([str(ROOT / package)], f"{package}."),
    ]
    if not found.name.endswith("__main__")
)

#: What each package may import of ours, itself and the modules below these names; "" stands for everything.
MAY_IMPORT = {
    "taskgraph": ("taskgraph", "workers.backend", "workers.kernels", "workers.device_tile"),
    "autodiff": ("autodiff", "taskgraph"),
    "workers": ("workers",),
    # Beside data: who can reach a process, of which both preloads warn in the same words (it knows sockets, no worker).
    "scheduler_plugins": ("scheduler_plugins", "taskgraph.plan", "taskgraph.machine", "workers.listening"),
    "deploy": ("",),
}

#: Modules that stand for the world outside: they may use the facade, as a user does.
MAY_USE_FACADE = ("taskgraph.numpy_protocol",)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module of ours that the file imports, with the line; a name imported from a package may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            base = node.module or ""
            found = [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] in PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    package = name_of(path).split(".")[0]
    for line, name in imports(path):
        allowed = any(not a or name == a or name.startswith(f"{a}.") for a in MAY_IMPORT[package])
        assert allowed, f"{path.relative_to(ROOT)}:{line}: {package} must not import {name}"


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).split(".")[0] != "deploy"], ids=name_of)
def test_internal_code_imports_modules_not_the_facade(path: Path) -> None:
    """But for what only the facade's file holds: the version."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "taskgraph":
            names = [f"taskgraph.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            fine = name.split(".")[0] != "taskgraph" or (name != "taskgraph" and is_module(name))
            fine = fine or name == "taskgraph.__version__" or name_of(path) in MAY_USE_FACADE
            assert fine or _is_namespace(path, node), f"{path.relative_to(ROOT)}:{node.lineno}: facade ({name})"


def _is_namespace(path: Path, node: ast.Import | ast.ImportFrom) -> bool:
    """`Tensor.__array_namespace__` gives the facade to the array API's users: that is its purpose."""
    tree = ast.parse(path.read_text())
    return any(
        isinstance(f, ast.FunctionDef)
        and f.name == "__array_namespace__"
        and f.lineno <= node.lineno <= (f.end_lineno or 0)
        for f in ast.walk(tree)
    )


def test_the_upward_edge_is_one_map() -> None:
    """`taskgraph.upward` imports nothing of ours, and every name of its map is there."""
    from taskgraph.upward import WHERE, resolve

    assert not list(imports(ROOT / "taskgraph" / "upward.py"))
    for name in WHERE:
        assert callable(resolve(name)), name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_one_idea(path: Path) -> None:
    with tokenize.open(path) as text:
        length = len(text.readlines())
    assert length <= LONGEST, f"{path.relative_to(ROOT)} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if not tree.body and path.name == "__init__.py":
        return
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} does not say what it holds"
    assert not list(undocumented(tree.body)), path.relative_to(ROOT)


def undocumented(body: list[ast.stmt], owner: str = "") -> Iterator[str]:
    """Public functions and classes without a docstring. Properties alone may be said by their names."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{owner}{node.name}"
        if not ast.get_docstring(node) and not is_property(node):
            yield f"line {node.lineno}: {name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{name}.")


def is_property(node: ast.stmt) -> bool:
    """A property, or its setter."""
    return isinstance(node, ast.FunctionDef) and any(
        (isinstance(d, ast.Name) and d.id == "property") or (isinstance(d, ast.Attribute) and d.attr == "setter")
        for d in node.decorator_list
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not result.failed
