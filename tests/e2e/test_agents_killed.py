"""Agents that are killed at any moment: every request still ends once, within its deadline."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path

import websockets
from sizes import Sizes
from websockets.asyncio.client import ClientConnection

from e2e.client import TOKEN
from e2e.processes import PATIENCE, TESTS, Gateway, clean_environ
from e2e.worker import CAPABILITY
from trunkline.errors import ErrorCode
from trunkline.messages import create_message, decode_message, encode

ASKERS = 4
OPEN = 100
"""Requests of one asker that are open at a time."""

PROCESSES = 10
AGENTS = 10
"""In each process."""

TIMEOUT = 2.0
SLACK = 2.0
"""Seconds that an end may take to arrive on a machine that is busy."""

FAIR_ENDS = {"ok", ErrorCode.AGENT_LOST, ErrorCode.TIMEOUT, ErrorCode.AGENT_NOT_FOUND}


class Worker:
    """A process with agents, started again and again."""

    def __init__(self, url: str, number: int) -> None:
        grace_ms = 500 if number % 2 else 0
        self._arguments = (url, str(number * AGENTS), str(AGENTS), str(grace_ms))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until its agents are registered."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "e2e.worker", *self._arguments),
            cwd=TESTS,
            env=clean_environ(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await self._process.stdout.readline() == b"ready\n"

    async def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Asker:
    """One connection that asks, and writes down how everything ended."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._room = asyncio.Semaphore(OPEN)
        self._asked: dict[str, float] = {}
        self.ends: dict[str, list[str]] = {}
        self.late: list[float] = []
        """Seconds of requests that ended after their deadline."""

    async def ask(self, count: int) -> None:
        """Ask so many times, and wait for all the ends."""
        reading = asyncio.create_task(self._read())
        for number in range(count):
            await self._room.acquire()
            payload = {
                "capability": CAPABILITY,
                "timeoutMs": round(TIMEOUT * 1000),
                "idempotent": number % 2 == 0,
                "policy": "round_robin" if number % 3 == 0 else "least_busy",
            }
            message = create_message("route_request", payload)
            self.ends[message.id] = []
            self._asked[message.id] = asyncio.get_running_loop().time()
            await self._socket.send(encode(message).decode())
        async with asyncio.timeout(TIMEOUT + PATIENCE):
            for _ in range(OPEN):
                await self._room.acquire()
        # A second end would come before the answer to this.
        await self._socket.send(encode(create_message("ping", id="last")).decode())
        await reading

    async def _read(self) -> None:
        async for text in self._socket:
            message = decode_message(text)
            if message.reply_to == "last":
                return
            if message.reply_to in self.ends:
                self._ended(message.reply_to, message.type, message.data())

    def _ended(self, request: str, type: str, data: dict[str, object]) -> None:
        took = asyncio.get_running_loop().time() - self._asked[request]
        if took > TIMEOUT + SLACK:
            self.late.append(took)
        self.ends[request].append("ok" if type == "route_response" else str(data["code"]))
        self._room.release()


async def kill_at_random(workers: list[Worker], rng: random.Random, kills: Counter[str]) -> None:
    while True:
        worker = rng.choice(workers)
        await worker.kill()
        kills["kills"] += 1
        await worker.start()


async def test_every_request_ends_once_while_agents_are_killed(
    tmp_path: Path, sized: Sizes
) -> None:
    """100 agents in 10 processes, of which one is always being killed or coming back."""
    count = sized(10_000, 20_000, 100_000) // ASKERS
    rng, kills = random.Random(1), Counter[str]()
    gateway = Gateway(tmp_path)
    await gateway.start()
    workers = [Worker(gateway.url, number) for number in range(PROCESSES)]
    try:
        for worker in workers:
            await worker.start()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        sockets = [
            await websockets.connect(
                gateway.url, additional_headers=headers, compression=None, proxy=None
            )
            for _ in range(ASKERS)
        ]
        askers = [Asker(socket) for socket in sockets]

        killing = asyncio.create_task(kill_at_random(workers, rng, kills))
        await asyncio.gather(*(asker.ask(count) for asker in askers))
        killing.cancel()
        await asyncio.wait([killing])
        for socket in sockets:
            await socket.close()
    finally:
        for worker in workers:
            await worker.kill()
        await gateway.kill()

    ends = Counter(end for asker in askers for found in asker.ends.values() for end in found)
    numbers = Counter(len(found) for asker in askers for found in asker.ends.values())
    assert numbers == {1: count * ASKERS}
    assert [asker.late for asker in askers] == [[]] * ASKERS
    assert set(ends) <= FAIR_ENDS
    assert ends["ok"] > count
    assert ends[ErrorCode.AGENT_LOST] > 0
    assert kills["kills"] > 2
    assert "Traceback" not in gateway.errors
