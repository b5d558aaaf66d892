"""Connections that end in every bad way lose nothing, and repeat nothing."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sizes import Sizes

from e2e.loader import Order
from e2e.processes import announce
from e2e.proxy import Proxy, random_fate
from e2e.trial import Report, peer, trial


async def test_nothing_is_lost_by_clients_that_leave(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """Clients close, reset, stop in the middle of a frame, and are killed, and all come back."""
    async with trial(tmp_path) as running:
        await running.add_load(25, leaving=0.1)
        for _ in range(sized(1, 5, 20)):
            killed = await running.add_load(25, leaving=0.1)
            await running.progress(sized(50, 500, 500))
            await running.order(Order(reset=True))
            await running.progress(sized(50, 500, 500))
            await running.kill_load(killed)
        report = await running.judge()

    figures(report)
    assert report.violations == []
    assert sum(report.counts[f"left by {way}"] for way in ("close", "reset", "truncate")) > 5
    assert report.counts["joins resumed"] > 25
    assert "Traceback" not in running.gateway.errors


async def test_nothing_is_lost_by_a_bad_network(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """What is between clients and the gateway cuts, delays, truncates and falls silent."""
    through = tmp_path / "proxy"
    settings = {"HEARTBEAT_INTERVAL": "0.5", "HEARTBEAT_TIMEOUT": "0.5"}
    async with (
        Proxy(partial(random_fate, random.Random(1))) as proxy,
        trial(tmp_path, settings | {"ORIGINS__ALLOWED_HOSTS": proxy.host}) as running,
    ):
        proxy.target = running.gateway.port
        announce(through, proxy.port)
        await running.add_load(sized(10, 20, 20))
        await running.add_load(sized(15, 30, 30), address=through, heartbeat=0.5)
        for _ in range(sized(1, 100, 1000)):
            await running.progress(50)
        while proxy.counts["cut"] < 10 or not proxy.counts["stall"]:
            await running.progress(10)
        announce(through, running.gateway.port)
        report = await running.judge()

    figures(report)
    assert report.violations == []
    assert "Traceback" not in running.gateway.errors


async def test_nothing_is_lost_when_everybody_comes_back_at_once(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """All clients are cut off, miss 100 messages each, and are up to date within ten seconds."""
    clients = sized(60, 500, 5000)
    async with trial(tmp_path, sessions=clients // sized(20, 100, 100)) as running:
        for _ in range(2):
            await running.add_load(clients // 2, pause=0)
        await running.order(Order(away=True))
        async with peer(running.gateway.url) as asking:
            for session in running.sessions:
                await asking.ask("session_join", session)
                for number in range(100):
                    await running.publish(asking, session, f"missed {number}")

        await running.order(Order(away=False, attached=True))
        report = await running.judge(patience=sized(10, 10, 120))

    figures(report)
    assert report.violations == []
    assert report.counts["joins resumed"] == clients
    assert report.counts["received"] == clients * 100
    assert report.counts["late readers"] == 0


async def test_nothing_is_lost_by_a_gateway_that_stands_still(tmp_path: Path) -> None:
    """Frozen between storing and acknowledging, left by its clients, it goes on as if nothing was."""
    async with trial(tmp_path, failpoint="after-append:50:freeze") as running:
        await running.add_load(20)
        await running.gateway.frozen()

        await running.order(Order(reset=True))
        running.gateway.send(signal.SIGCONT)
        await running.progress(50)
        report = await running.judge()

    assert report.violations == []
    assert report.counts["joins resumed"] >= 20
