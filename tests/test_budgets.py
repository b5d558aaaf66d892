"""The size of things: modules, functions, and what every function says of itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "trunkline"
MODULES = sorted(SOURCE.rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(module: Path) -> int:
    return len(module.read_text(encoding="utf-8").splitlines())


def functions(module: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def body_lines(function: Function) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def name_of(module: Path) -> str:
    return str(module.relative_to(SOURCE))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_module_is_longer_than_600_lines(module):
    """A module that outgrows its subject is split."""
    assert lines_of(module) <= 600


def test_the_median_module_has_at_most_200_lines():
    """Most modules are read in one sitting."""
    assert median(lines_of(m) for m in MODULES if lines_of(m) > 1) <= 200


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_function_body_is_longer_than_60_lines(module):
    """A function fits on a screen."""
    long = {f.name: body_lines(f) for f in functions(module) if body_lines(f) > 60}

    assert long == {}


def test_the_median_function_body_has_at_most_8_lines():
    """Functions do one thing."""
    assert median(body_lines(f) for m in MODULES for f in functions(m)) <= 8


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_function_says_what_it_returns(module):
    """A return type stands everywhere but on ``__init__``, which returns nothing."""
    silent = [f.name for f in functions(module) if f.returns is None and f.name != "__init__"]

    assert silent == []
