"""
Many connections at once (security.md T-L1 to T-L3).

Sizes and durations are the battery's; `make test` runs each in miniature and
asserts no times.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import websockets
from sizes import BATTERY, Sizes
from websockets.asyncio.client import ClientConnection

from e2e.client import TOKEN, request
from e2e.processes import Gateway

KIB = 1024
MIB = 1024 * KIB

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def serving(folder: Path, **settings: str) -> AsyncIterator[Gateway]:
    limits = {"LIMITS__PRE_AUTH_CONNECTIONS": "2000", "LIMITS__PRE_AUTH_PER_ADDRESS": "2000"}
    gateway = Gateway(folder, limits | settings)
    await gateway.start()
    try:
        yield gateway
        assert "Traceback" not in gateway.errors
    finally:
        await gateway.kill()


class Crowd:
    """Connections that are open together."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.sockets: list[ClientConnection] = []
        self.waits: list[float] = []
        """Seconds from the connect to the welcome, of each."""
        self.refused = 0

    async def connect(self) -> ClientConnection | None:
        """Open one connection; None if the gateway had no room and said so."""
        started = time.monotonic()
        try:
            socket = await websockets.connect(
                self._gateway.url,
                additional_headers=BEARER,
                proxy=None,
                ping_interval=None,
                compression=None,
                open_timeout=30,
                max_queue=None,
            )
        except websockets.InvalidStatus as error:
            response = error.response
            if response.status_code != 503 or "Retry-After" not in response.headers:
                raise
            self.refused += 1
            return None
        await socket.recv()
        self.waits.append(time.monotonic() - started)
        self.sockets.append(socket)
        return socket

    async def grow(self, count: int, at_once: int = 50) -> None:
        """Open so many connections."""
        for first in range(0, count, at_once):
            await asyncio.gather(*(self.connect() for _ in range(min(at_once, count - first))))

    async def close(self) -> None:
        """Close them all."""
        await asyncio.gather(*(socket.close() for socket in self.sockets))


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of the others lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def ask(socket: ClientConnection, type: str, id: str, session: str, **payload: Any) -> Any:
    """Send a request and wait for what answers it."""
    await socket.send(request(type, id, session, **payload))
    while True:
        message = msgspec.json.decode(await socket.recv())
        if message.get("replyTo") == id:
            assert message["type"] != "error", message
            return message


async def test_idle_connections_are_cheap_and_stay(tmp_path: Path, sized: Sizes) -> None:
    """Connections that say nothing stay, and cost hardly any memory or processor time."""
    count, seconds = sized(100, 1_000, 10_000), sized(1, 60, 600)
    async with serving(tmp_path, HEARTBEAT_INTERVAL=str(sized(0, 25, 25) or 0.5)) as gateway:
        crowd = Crowd(gateway)
        await crowd.grow(sized(20, 50, 50))
        before = gateway.memory()
        await crowd.grow(count)
        grown = gateway.memory() - before
        used = gateway.cpu()

        # The pings of the gateway are answered by the library while this waits.
        done, _ = await asyncio.wait(
            [asyncio.create_task(socket.wait_closed()) for socket in crowd.sockets],
            timeout=seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        used = gateway.cpu() - used
        late = Crowd(gateway)
        await late.grow(20, at_once=1)

        assert not done
        assert not crowd.refused
        assert grown <= count * 40 * KIB
        if BATTERY:
            assert used <= seconds * 0.1
            assert percentile(late.waits, 0.99) < 0.1
        await late.close()
        await crowd.close()


async def test_members_that_stop_reading_harm_nobody(tmp_path: Path, sized: Sizes) -> None:
    """They are closed with 4008 and resume without a hole; the others miss nothing."""
    members, messages = sized(10, 200, 1_000), sized(100, 400, 1_200)
    # Large enough to fill the buffers of the system, megabytes each, within the test.
    size = sized(128, 64, 32) * KIB
    async with serving(tmp_path, LIMITS__MEMBERS_PER_SESSION="2000") as gateway:
        crowd = Crowd(gateway)
        await crowd.grow(members)
        speaker = await crowd.connect()
        assert speaker is not None
        await ask(speaker, "session_create", "create", "hall", sessionId="hall")
        for number, socket in enumerate(crowd.sockets[:-1]):
            await ask(socket, "session_join", f"join{number}", "hall")
        slow = crowd.sockets[: max(1, members // 20)]
        quick = crowd.sockets[len(slow) : -1]
        for socket in slow:
            socket.transport.pause_reading()
        before = gateway.memory()
        readers = [asyncio.create_task(read_chats(socket, messages)) for socket in quick]
        for number in range(messages):
            text = str(time.monotonic()) + "x" * size
            await ask(speaker, "chat", f"m{number}", "hall", message=text)
            await asyncio.sleep(sized(0, 50, 50) / 1000)
        read = await asyncio.gather(*readers)
        grown = gateway.memory() - before

        for seqs, _ in read:
            assert seqs == list(range(1, messages + 1))
        # Who reads nothing for long enough does not find the close frame either.
        codes = [await closed(socket) for socket in slow]
        assert set(codes) <= {4008, 1006}
        assert await sent_away(gateway) == len(slow)
        assert grown <= len(slow) * 2 * MIB + 64 * MIB
        again = await crowd.connect()
        assert again is not None
        await again.send(request("session_join", "again", "hall", tail=1000))
        seqs, _ = await read_chats(again, min(messages, 1000))
        assert seqs == list(range(messages - len(seqs) + 1, messages + 1))
        if BATTERY:
            waits = [wait for _, own in read for wait in own]
            assert percentile(waits, 0.99) <= 0.25
            assert percentile(waits, 0.999) <= 1.0
        await crowd.close()


async def read_chats(socket: ClientConnection, count: int) -> tuple[list[int], list[float]]:
    """Read so many chats; returns their numbers, and how long each was under way."""
    seqs: list[int] = []
    waits: list[float] = []
    async with asyncio.timeout(300):
        while len(seqs) < count:
            message = msgspec.json.decode(await socket.recv())
            if message["type"] == "chat":
                seqs.append(message["seq"])
                sent = float(message["payload"]["message"].rstrip("x"))
                waits.append(time.monotonic() - sent)
    return seqs, waits


async def sent_away(gateway: Gateway) -> int:
    """Return how many slow readers a gateway says it has closed with 4008."""
    url = f"http://127.0.0.1:{gateway.port}/metrics"
    async with httpx.AsyncClient(headers=BEARER) as http:
        text = (await http.get(url)).text
    found = re.search(r'^trunkline_drops_total\{reason="too_slow"\} ([0-9.]+)$', text, re.MULTILINE)
    assert found is not None, text[:500]
    return int(float(found[1]))


async def closed(socket: ClientConnection) -> int | None:
    """Read on, up to the end of a connection; returns the code."""
    socket.transport.resume_reading()
    async with asyncio.timeout(30):
        try:
            while True:
                await socket.recv()
        except websockets.ConnectionClosed:
            return socket.close_code


async def test_a_storm_of_connects_is_admitted_or_told_to_wait(
    tmp_path: Path, sized: Sizes
) -> None:
    """Whoever is admitted gets through; the others get 503 with a time; nobody live is harmed."""
    live, rate, seconds = sized(20, 200, 1_000), sized(50, 100, 1_000), sized(1, 30, 30)
    async with serving(tmp_path, LIMITS__MAX_CONNECTIONS="50000") as gateway:
        crowd, storm = Crowd(gateway), Crowd(gateway)
        await crowd.grow(live)
        tasks = []
        for _ in range(rate * seconds):
            tasks.append(asyncio.create_task(storm.connect()))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)

        assert len(storm.sockets) + storm.refused == rate * seconds
        for number, socket in enumerate(crowd.sockets):
            await ask(socket, "ping", f"p{number}", "")
        if BATTERY:
            assert percentile(storm.waits, 0.99) <= 1.0
        await storm.close()
        await crowd.close()
