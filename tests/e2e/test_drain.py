"""A gateway that is asked to stop sends everybody away in good order, and loses nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sizes import Sizes
from websockets.exceptions import InvalidStatus

from e2e.client import dial
from e2e.trial import Report, Trial, agent, peer, trial


async def status(port: int, path: str) -> int:
    """Return the status of an HTTP answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def full_trial(running: Trial, clients: int) -> None:
    """Connect many clients, a few of which publish."""
    await running.add_load(20, pause=0.05)
    await running.add_load(clients - 20, pause=2.0)


async def test_drain_loses_nothing(
    tmp_path: Path, sized: Sizes, figures: Callable[[Report], None]
) -> None:
    """Clients under load get going_away and 1001; nobody new is let in; the exit code is 0."""
    clients = sized(80, 200, 2000)
    async with trial(tmp_path) as running:
        await full_trial(running, clients)
        await running.progress(20)
        port = running.gateway.port

        running.gateway.send(signal.SIGTERM)
        while (ready := await status(port, "/readyz")) == 200:
            pass
        with pytest.raises(InvalidStatus) as refused:
            await dial(running.gateway.url, "late")
        code = await running.gateway.died()
        await running.gateway.start()
        report = await running.judge()

    figures(report)
    answer = refused.value.response
    assert (ready, answer.status_code, code) == (503, 503, 0)
    assert int(answer.headers["Retry-After"]) > 0
    assert report.violations == []
    assert report.counts["going_away"] == report.counts["close 1001"] == clients
    assert "Traceback" not in running.gateway.errors


async def test_a_second_signal_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Who cannot wait for the drain gets a quick end, and still nothing acknowledged is gone."""
    async with trial(tmp_path, {"DRAIN_TIMEOUT": "60"}) as running:
        await full_trial(running, 60)
        async with peer(running.gateway.url) as asking:
            await asking.ask("session_create", sessionId="held")
            async with agent(running.gateway.url, "held"):
                # An answer that never ends holds the drain up.
                await asking.ask("chat", "held", message="tell me")
                await running.progress(20)

                running.gateway.send(signal.SIGTERM)
                while await status(running.gateway.port, "/readyz") == 200:
                    pass
                running.gateway.send(signal.SIGTERM)
                code = await running.gateway.died()
        await running.gateway.start()
        report = await running.judge()

    assert code == 128 + signal.SIGTERM
    assert report.violations == []
