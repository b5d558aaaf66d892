"""The table of the source document's names, and which test shows what a row says."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trunkline import GatewayServer

TABLE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "source-names.md"


class Row(NamedTuple):
    """One row of the table."""

    source: str
    kind: str
    here: str


_ROW = re.compile(r"^\| `([^`]+)`( \(event\))? \| (setting )?`([^`]+)` \|", re.MULTILINE)


def read_table() -> list[Row]:
    sections = TABLE.read_text(encoding="utf-8").split("\n## ")
    return [
        Row(name + event, setting.strip() or section.partition("\n")[0], here)
        for section in sections[1:]
        for name, event, setting, here in _ROW.findall(section)
    ]


ROWS = read_table()
PROVED: dict[str, tuple[str, str]] = {}
"""Row to the module and name of the test that shows it."""
F = TypeVar("F", bound=Callable[..., Any])


def proves(*names: str) -> Callable[[F], F]:
    """Mark a test as the one that shows what rows of the table say."""

    def decorate(test: F) -> F:
        PROVED.update(dict.fromkeys(names, (test.__module__, test.__name__)))
        return test

    return decorate


def resolve(path: str) -> Any:
    """Import what a dotted path names."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(path)


def heard(gateway: GatewayServer, name: Any) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    gateway.on(name, lambda *args: calls.append(args))
    return calls
