"""Who imports whom, read off the sources: no package of the repository has a circle at the top of its modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"seqconv": ROOT / "seqconv", "seqconv.kernels": ROOT / "kernels", "benchmarks": ROOT / "benchmarks"}


def modules(folders: dict[str, Path]) -> dict[str, Path]:
    """Return the modules' files by their dotted names; a package's is its ``__init__``."""
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] != "kernels":  # where the package is linked: it is known by its own folder
                found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST, package: str, deferred: bool = False) -> Iterator[tuple[str, str | None, bool]]:
    """Yield what a ``package``'s module imports: a module, the name taken from it, and whether a function does it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((one.name, None, deferred) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*near, *([node.module] if node.module else [])])
            yield from ((module, one.name, deferred) for one in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, package, deferred or inside)


def graphs(folders: dict[str, Path]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return which modules each one imports at its top, and in its functions besides."""
    known = modules(folders)
    top: dict[str, set[str]] = {name: set() for name in known}
    later: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for module, taken, deferred in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            target = f"{module}.{taken}" if f"{module}.{taken}" in known else module
            if target in known and target != name:
                (later if deferred else top)[name].add(target)
    return top, later


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Return a circle of a graph, from a module to itself, or ``None``."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_there_is_no_circle_at_the_top_of_modules():
    top, later = graphs(FOLDERS)
    assert len(top) > 100
    found = circle(top)
    assert found is None, " <- ".join(found or [])
    both = {name: top[name] | later[name] for name in top}
    print("a circle through functions:", " <- ".join(circle(both) or ["none"]))


def test_benchmarks_have_none_in_functions_either():
    top, later = graphs({"benchmarks": FOLDERS["benchmarks"]})
    found = circle({name: top[name] | later[name] for name in top})
    assert found is None, " <- ".join(found or [])


@pytest.mark.parametrize(("second", "at_top", "in_functions"), [
    ("import package.first", True, True),
    ("from . import first", True, True),
    ("from .first import x", True, True),
    ("from package import first", True, True),
    ("def f():\n    from package.first import x", False, True),
    ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.first", False, False),
    ("try:\n    import package.first\nexcept ImportError:\n    pass", True, True),
])  # fmt: skip
def test_a_circle_is_found(tmp_path, second, at_top, in_functions):
    tmp_path.joinpath("__init__.py").touch()
    tmp_path.joinpath("first.py").write_text("from package.second import y")
    tmp_path.joinpath("second.py").write_text(second)
    top, later = graphs({"package": tmp_path})
    assert bool(circle(top)) == at_top
    assert bool(circle({name: top[name] | later[name] for name in top})) == in_functions
