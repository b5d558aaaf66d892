"""
How long the proofs take: ``make test``, ``make battery-quick`` or ``make battery``.

The environment variable ``BATTERY`` is empty, ``quick`` or ``full``. What a
run found out is printed at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from e2e.trial import Report

BATTERY = os.environ.get("BATTERY", "")

_figures: list[str] = []


class Sizes:
    """Picks a number for the battery that runs."""

    def __call__(self, test: int, quick: int, full: int) -> int:
        """Return what to use in ``make test``, ``make battery-quick`` and ``make battery``."""
        return {"": test, "quick": quick, "full": full}[BATTERY]


@pytest.fixture
def sized() -> Sizes:
    return Sizes()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """Keeps a report's figures, to be printed at the end of the run."""

    def keep(report: Report) -> None:
        counts = " ".join(f"{name}={count}," for name, count in sorted(report.counts.items()))
        _figures.append(
            f"{request.node.name}: stored={report.stored}, {counts} "
            f"violations={len(report.violations)}"
        )

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures where a battery was asked for."""
    if BATTERY and _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
