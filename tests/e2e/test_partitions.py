"""
Networks that stop carrying, one way or both, and clients that stop living (T-F3, T-F9).

Nobody is told: there is no reset and no end of a stream. The gateway and its
clients have to notice by the silence, and nothing may be lost meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sizes import BATTERY, Sizes

from e2e.processes import announce
from e2e.proxy import Proxy
from e2e.trial import Peer, Report, Trial, peer, trial

SCALE = {"": 0.02, "quick": 0.1, "full": 1.0}[BATTERY]
"""How long everything takes, as a part of what it takes where the defaults hold."""

INTERVAL, ANSWER = max(0.5, 25.0 * SCALE), max(0.5, 8.0 * SCALE)
"""Seconds of silence until a client is pinged, and until its answer is missing."""

CLIENTS = 10


class Observer:
    """A member of all sessions that hears who is there."""

    def __init__(self, asking: Peer) -> None:
        self._asking = asking
        self.online: set[str] = set()

    async def hear(self, done: Callable[[set[str]], bool]) -> None:
        """Wait until those who are there are as wanted."""
        while not done(self.online):
            news = await self._asking.next(lambda message: message.type == "presence")
            device = news.data()["deviceId"]
            there = news.data()["status"] != "offline"
            (self.online.add if there else self.online.discard)(device)


@asynccontextmanager
async def observed(running: Trial) -> AsyncIterator[Observer]:
    """An observer who is there before the clients."""
    async with peer(running.gateway.url) as asking:
        for session in running.sessions:
            await asking.ask("session_join", session)

        async def stay_alive() -> None:
            while True:
                await asyncio.sleep(0.3)
                await asking.send('{"type":"ping","id":"alive"}')

        heartbeat = asyncio.create_task(stay_alive())
        try:
            yield Observer(asking)
        finally:
            heartbeat.cancel()


@asynccontextmanager
async def scene(folder: Path, proxy: Proxy) -> AsyncIterator[tuple[Trial, Observer]]:
    """A trial whose clients come through a proxy, and one who watches them."""
    settings = {
        "HEARTBEAT_INTERVAL": str(INTERVAL),
        "HEARTBEAT_TIMEOUT": str(ANSWER),
        "ORIGINS__ALLOWED_HOSTS": proxy.host,
    }
    async with trial(folder, settings) as running, observed(running) as watching:
        proxy.target = running.gateway.port
        announce(folder / "proxy", proxy.port)
        # They notice by themselves, too, when nothing comes to them.
        await running.add_load(CLIENTS, address=folder / "proxy", heartbeat=INTERVAL / 2)
        await watching.hear(lambda online: len(online) == CLIENTS)
        yield running, watching


@pytest.mark.parametrize("ways", [("up",), ("down",), ("up", "down")], ids="-".join)
async def test_nothing_is_lost_by_a_network_that_carries_nothing(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None], ways: tuple[str, ...]
) -> None:
    """Once until everybody is known to be gone, then for moments, again and again."""
    dice = random.Random(1)
    async with Proxy() as proxy, scene(tmp_path, proxy) as (running, watching):
        began = time.monotonic()
        proxy.part(*ways)
        await watching.hear(lambda online: not online)
        took = time.monotonic() - began
        proxy.mend()
        await watching.hear(lambda online: len(online) == CLIENTS)
        for _ in range(sized(2, 4, 34)):
            proxy.part(*ways)
            await asyncio.sleep(dice.uniform(1, 40) * SCALE)
            proxy.mend()
            await running.progress(CLIENTS)
        report = await running.judge(patience=20)

    figures(report)
    assert report.violations == []
    assert report.counts["joins resumed"] >= CLIENTS
    assert "Traceback" not in running.gateway.errors
    if BATTERY:
        assert took < INTERVAL + ANSWER + 1


async def test_clients_that_stand_still_are_gone_and_come_back(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """A stopped process keeps its sockets open; the others hear soon that its clients are gone."""
    async with Proxy() as proxy, scene(tmp_path, proxy) as (running, watching):
        for _ in range(sized(1, 2, 5)):
            began = time.monotonic()
            running.loaders[0].send(signal.SIGSTOP)
            try:
                await watching.hear(lambda online: not online)
            finally:
                running.loaders[0].send(signal.SIGCONT)
            took = time.monotonic() - began
            await watching.hear(lambda online: len(online) == CLIENTS)
            await running.progress(CLIENTS)
        report = await running.judge(patience=20)

    figures(report)
    assert report.violations == []
    assert report.counts["joins resumed"] >= CLIENTS
    if BATTERY:
        assert took < INTERVAL + ANSWER + 2
