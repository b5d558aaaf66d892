"""A system clock that jumps changes neither order nor identity, and sends nobody away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sizes import Sizes

from e2e.processes import Gateway
from e2e.trial import Report, Trial

HOUR = 3600
DAY = 24 * HOUR

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def jump(file: Path, seconds: int) -> None:
    """Move the clock of who reads `file` away from the true one."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}")
    os.replace(new, file)


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed")
async def test_a_jumping_clock_changes_nothing(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """An hour on and back, ten years on, a day back: no disconnects, order and dedupe right."""
    clock = tmp_path / "clock"
    jump(clock, 0)
    environ = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    running = Trial(tmp_path, Gateway(tmp_path, environ=environ))
    try:
        await running.begin()
        await running.add_load(20)
        for seconds in (HOUR, -HOUR, 3650 * DAY, -DAY, 0):
            jump(clock, seconds)
            await running.progress(sized(20, 1000, 10_000))
        report = await running.judge()
    finally:
        await running.end()

    figures(report)
    assert report.violations == []
    assert [name for name in report.counts if name.startswith("close")] == []
    assert report.counts["joins resumed"] == 0
    assert "Traceback" not in running.gateway.errors
