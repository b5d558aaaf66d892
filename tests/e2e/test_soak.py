"""
Hours of churn (security.md T-L6).

Many connections come and go and publish without a pause, in rounds. In the
middle of each the gateway is killed; at its end the checker judges it, and
what the gateway then has in memory and open is measured. So all measures are
of a gateway of the same age, and what grows is what it keeps.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from sizes import BATTERY, Sizes

from e2e.processes import PATIENCE, Gateway
from e2e.trial import Report, Trial

MIB = 1024 * 1024

LIMITS = (
    "CONNECTIONS_PER_USER",
    "PRE_AUTH_CONNECTIONS",
    "PRE_AUTH_PER_ADDRESS",
    "SESSIONS_PER_CONNECTION",
)
"""What must not be in the way of a thousand clients of one user."""


class Measure(NamedTuple):
    """What a gateway has when nobody is connected."""

    memory: int
    """Bytes."""
    files: int


class Plan(NamedTuple):
    """The sizes of a soak."""

    clients: int
    rounds: int
    seconds: float
    """How long a round takes, without its beginning and its end."""
    pause: float
    """Seconds between two messages of a client."""
    leaving: float
    """The chance that a client leaves after a message."""


def slope(values: list[int]) -> float:
    """Return by how much the values grow from one to the next: the line of least squares."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((n - middle) * (value - mean) for n, value in enumerate(values))
    return above / sum((n - middle) ** 2 for n in range(len(values)))


async def at_rest(gateway: Gateway, most: int) -> Measure:
    """Measure a gateway once the sockets of those who have gone are closed."""
    async with asyncio.timeout(PATIENCE):
        # Nobody tells of a socket that another process closes.
        while gateway.files() > most:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return Measure(gateway.memory(), gateway.files())


async def churned(folder: Path, gateway: Gateway, plan: Plan) -> Report:
    """Run one round; returns the judgement."""
    running = Trial(folder, gateway, sessions=plan.clients // 4)
    try:
        await running.create_sessions()
        for _ in range(2):
            await running.add_load(
                plan.clients // 2,
                address=gateway.address,
                pause=plan.pause,
                leaving=plan.leaving,
            )
        await asyncio.sleep(plan.seconds / 2)
        await gateway.kill()
        await gateway.start()
        await asyncio.sleep(plan.seconds / 2)
        report = await running.judge(patience=30)
        await running.delete_sessions()
        return report
    finally:
        await running.leave()


@pytest.mark.skipif(not BATTERY, reason="takes minutes or hours: make battery-quick, make battery")
@pytest.mark.timeout(10 * 3600)
async def test_hours_of_churn_leave_nothing_behind(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """No message is lost, and neither memory nor the number of open files grows."""
    plan = Plan(
        clients=sized(0, 200, 2_000),
        rounds=sized(0, 4, 48),
        seconds=sized(0, 30, 600),
        pause=sized(0, 2, 10),
        leaving=sized(0, 5, 10) / 100,
    )
    gateway = Gateway(tmp_path, {f"LIMITS__{name}": "10000" for name in LIMITS})
    await gateway.start()
    try:
        idle = gateway.files()
        measures: list[Measure] = []
        for number in range(plan.rounds):
            folder = tmp_path / f"round{number}"
            folder.mkdir()
            report = await churned(folder, gateway, plan)
            measure = await at_rest(gateway, idle + 8)
            shown = Counter({"KiB": measure.memory // 1024, "open files": measure.files})
            figures(report._replace(counts=report.counts + shown))
            assert report.violations == []
            assert report.counts["joins reset"] == 0
            measures.append(measure)
            shutil.rmtree(folder)  # the events of eight hours fill a disk
        assert "Traceback" not in gateway.errors
    finally:
        await gateway.kill()

    # The first round, or hour, is for what is made once.
    settled = measures[sized(0, 1, 6) :]
    grown = slope([measure.memory for measure in settled])
    assert max(m.files for m in settled) - min(m.files for m in settled) <= 4
    # Minutes say nothing of an hour: what is judged there is what a round leaves behind.
    assert grown <= sized(0, 2 * MIB, MIB // 6), measures
