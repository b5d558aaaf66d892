"""A gateway that is killed at any moment loses nothing that it acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from e2e.conftest import Sizes
from e2e.trial import Report, Trial, trial
from trunkline.failpoints import POINTS

ON_THE_WAY = POINTS[:6]
"""The places that a message passes."""

CLIENTS = 50


async def kill_at_a_failpoint(running: Trial, point: str, rng: random.Random) -> None:
    """Let the gateway kill itself at a place that some message passes."""
    await running.gateway.kill()
    await running.gateway.start(f"{point}:{rng.randint(20, 80)}")
    await running.gateway.died()


async def kill_at_random(running: Trial, rng: random.Random) -> None:
    """Kill the gateway at any moment, while messages are under way."""
    await running.progress(rng.randint(20, 100))
    await running.gateway.kill()


async def test_nothing_is_lost_by_kills(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """50 clients publish and read while the gateway is killed again and again."""
    rng = random.Random(1)
    async with trial(tmp_path) as running:
        await running.add_load(CLIENTS)

        for number in range(sized(5, 20, 200)):
            await kill_at_random(running, rng)
            await running.gateway.start()
            if number < sized(6, 20, 200):
                await kill_at_a_failpoint(running, ON_THE_WAY[number % 6], rng)
                await running.gateway.start()
        report = await running.judge()

    figures(report)
    assert report.violations == []
    assert report.counts["joins reset"] == 0
    assert "Traceback" not in running.gateway.errors
