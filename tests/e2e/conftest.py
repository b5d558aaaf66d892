"""What a run of the proofs found out, printed at its end where a battery was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sizes import BATTERY

from e2e.trial import Report

_figures: list[str] = []


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
