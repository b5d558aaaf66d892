"""A gateway that is killed at any moment loses nothing that it acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sizes import Sizes

from e2e.trial import Report, trial
from trunkline.failpoints import POINTS

ON_THE_WAY = POINTS[:6]
"""The places that a message passes."""

CLIENTS = 50


def fault(number: int, rng: random.Random) -> str:
    """Return where a round's kill happens: every seventh time at any moment, from outside."""
    place = number % 7
    return f"{ON_THE_WAY[place - 1]}:{rng.randint(20, 80)}" if place else ""


@pytest.mark.parametrize("durability", ["process", "disk"])
async def test_nothing_is_lost_by_kills(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None], durability: str
) -> None:
    """50 clients publish and read while the gateway is killed again and again."""
    rng = random.Random(1)
    rounds = sized(7, 20, 200) if durability == "process" else sized(1, 7, 50)
    async with trial(tmp_path, {"HISTORY__DURABILITY": durability}) as running:
        await running.add_load(CLIENTS)

        for number in range(rounds):
            if number % 7 == 0:
                await running.progress(rng.randint(20, 100))
                await running.gateway.kill()
            else:
                await running.gateway.died()
            following = number + 1
            await running.gateway.start(fault(following, rng) if following < rounds else "")
        report = await running.judge()

    figures(report)
    assert report.violations == []
    assert report.counts["joins reset"] == 0
    assert "Traceback" not in running.gateway.errors
