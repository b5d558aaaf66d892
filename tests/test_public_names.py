"""The public names: what ``trunkline`` promises to keep."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trunkline
import trunkline.sdk

SOURCE = Path(trunkline.__file__)


def names_for_type_checkers() -> set[str]:
    """The names that the ``TYPE_CHECKING`` block imports."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    return set(output.stdout.split())


@pytest.mark.parametrize("name", trunkline.__all__)
def test_every_public_name_is_there(name):
    """What ``__all__`` lists can be imported, and is documented where Python allows it."""
    value = getattr(trunkline, name)

    assert value is not None
    if isinstance(value, type) or callable(value):
        assert value.__doc__


def test_type_checkers_see_the_names_that_the_interpreter_sees():
    """The names are listed twice, once for each; the lists are equal."""
    assert names_for_type_checkers() == set(trunkline.__all__)


def test_nothing_else_looks_public():
    """A name without an underscore is in ``__all__``, or a module of the package, or typing."""
    for name in trunkline.__all__:
        getattr(trunkline, name)
    helpers = {"annotations", "TYPE_CHECKING", "Any", "import_module"}
    modules = {path.stem for path in SOURCE.parent.iterdir()}

    public = {name for name in vars(trunkline) if not name.startswith("_")}

    assert public - helpers - modules == set(trunkline.__all__)


def test_the_sdk_is_public_as_a_whole():
    """Whoever uses the SDK needs no second import."""
    assert set(trunkline.sdk.__all__) <= set(trunkline.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    """Typing mistakes are told as Python tells them."""
    with pytest.raises(AttributeError, match="no attribute 'GatewaySrever'"):
        _ = trunkline.GatewaySrever


def test_importing_the_package_loads_nothing_of_it():
    """``import trunkline`` is quick: no module of it runs before a name is used."""
    loaded = modules_after("import trunkline")

    assert not {name for name in loaded if name.startswith("trunkline.")}
    assert not loaded & {"msgspec", "starlette", "uvicorn", "picows"}


def test_a_client_does_not_pay_for_the_gateway():
    """The SDK is imported without the server and its libraries."""
    loaded = modules_after("import trunkline; trunkline.connect, trunkline.Agent")

    assert not loaded & {"trunkline.server", "starlette", "uvicorn", "picows", "typer"}
