"""Modules, functions and names stay within the bounds that keep them readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.source import PACKAGE, ROOT, modules, tree

MODULE_LINES = 400
FUNCTION_LINES = 50
CLASS_METHODS = 25
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

PYTHON = sorted(modules().values())
COMPILED = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxi")])


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*PYTHON, *COMPILED], ids=_id)
def test_a_module_fits_in_400_lines(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES, f"{lines} lines: which second purpose lives here?"


@pytest.mark.parametrize("path", PYTHON, ids=_id)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(tree(path))
    assert docstring and docstring.split("\n\n")[0].endswith((".", ":", "?")), docstring


@pytest.mark.parametrize("path", PYTHON, ids=_id)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    long = {
        f"{node.name}, line {node.lineno}": size
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long


@pytest.mark.parametrize("path", PYTHON, ids=_id)
def test_a_class_has_a_bounded_number_of_methods(path: Path) -> None:
    large = {
        node.name: size
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and (size := sum(map(_is_method, node.body))) > CLASS_METHODS
    }
    assert not large


def _is_method(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("__")


@pytest.mark.parametrize("path", PYTHON, ids=_id)
def test_nothing_is_global_and_changed(path: Path) -> None:
    found = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]
    assert not found


@pytest.mark.parametrize("path", PYTHON, ids=_id)
def test_no_exception_is_swallowed_without_a_word(path: Path) -> None:
    found = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert not found


def test_no_module_is_a_drawer_for_everything() -> None:
    named = {name.rpartition(".")[2].strip("_") for name in modules()}
    assert not named & NO_NAMES
