"""The import floors hold, and there is no import cycle between modules, imports inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.architecture.source import ROOT, modules, tree


def test_the_import_floors_and_doors_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter), "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: _imports(name, path) for name, path in modules().items()}
    assert len(graph) > 50, "the modules of the package were found"
    assert _cycle(graph) == []


def test_a_circle_is_seen_even_through_a_lazy_import(tmp_path: Path) -> None:
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    module = tmp_path / "lazy.py"
    module.write_text("def f():\n    from greenq import model\n    import greenq.config\n")
    assert _imports("greenq.lazy", module) == {"greenq.model", "greenq.config"}


def _imports(name: str, path: Path) -> set[str]:
    """The modules of the package that `path` imports anywhere but under TYPE_CHECKING."""
    known = modules()
    found: set[str] = set()
    for node in _run_time_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` needs that module, `from module import name` the one named first.
            found |= {full if full in known else node.module for full in inner}
    return {target for target in found if target in known and target != name}


def _run_time_nodes(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return [inner for child in node.orelse for inner in _run_time_nodes(child)]
    nodes = [node]
    for child in ast.iter_child_nodes(node):
        nodes += _run_time_nodes(child)
    return nodes


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of the graph, its first node repeated at the end; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*way, node]):
                return found
        done.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []
