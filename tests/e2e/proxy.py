"""A TCP proxy that may treat every connection badly, each in its own way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

CHUNK = 65536
"""Bytes that are read at once."""


class Fate(NamedTuple):
    """What befalls one direction of a connection."""

    kind: str
    """``cut``: a reset; ``stall``: nothing goes through any more; ``none``."""
    after: int
    """Bytes that go through before, to the byte: mostly the last frame is truncated."""
    delay: float
    """Seconds that every piece is held back."""
    piece: int
    """Bytes of a piece."""


def random_fate(rng: random.Random) -> Fate:
    """Draw what befalls one direction of a connection."""
    kind = rng.choices(["cut", "stall", "none"], [5, 1, 2])[0]
    delay = rng.choice([0.0, 0.0, rng.uniform(0, 0.05)])
    piece = rng.choice([1000, CHUNK]) if delay else rng.choice([7, 1000, CHUNK])
    return Fate(kind, int(rng.lognormvariate(9, 1.5)), delay, piece)


def no_fate() -> Fate:
    """Let everything through."""
    return Fate("none", 0, 0.0, CHUNK)


class Proxy:
    """
    Forwards connections to a local port.

    Args:
        draw: Decides what befalls a direction of a connection.
    """

    def __init__(self, draw: Callable[[], Fate] = no_fate) -> None:
        self.target = 0
        """The port to connect to."""
        self.up = asyncio.Event()
        """Whether there is somebody; until then new connections wait."""
        self.up.set()
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        for flowing in self._flowing.values():
            flowing.set()
        self._draw = draw
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self.counts: Counter[str] = Counter()
        """What befell the connections so far, by kind."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        return self

    def part(self, *ways: str) -> None:
        """Let nothing through: ``up``, from clients; ``down``, to them; nobody is told."""
        for way in ways:
            self._flowing[way].clear()

    def mend(self) -> None:
        """Let everything through again, and what was held back first."""
        for flowing in self._flowing.values():
            flowing.set()

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self._cut(*self._open)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @staticmethod
    def _cut(*writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.up.wait()
        try:
            there, away = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self._cut(writer)
            return
        self._open |= {writer, away}
        for way, source, sink in (("up", reader, away), ("down", there, writer)):
            flow = self._flowing[way]
            task = asyncio.create_task(self._forward(flow, source, sink, writer, away))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        flowing: asyncio.Event,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *ends: asyncio.StreamWriter,
    ) -> None:
        fate = self._draw()
        try:
            await self._pump(flowing, source, sink, fate)
        except OSError:
            pass
        finally:
            self._cut(*ends)
            self._open.difference_update(ends)

    async def _pump(
        self,
        flowing: asyncio.Event,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        fate: Fate,
    ) -> None:
        left = fate.after
        while data := await source.read(fate.piece):
            await flowing.wait()
            if fate.delay:
                await asyncio.sleep(fate.delay)
            if fate.kind != "none":
                data = data[:left]
                left -= len(data)
            sink.write(data)
            await sink.drain()
            if fate.kind != "none" and not left:
                self.counts[fate.kind] += 1
                if fate.kind == "cut":
                    return
                await asyncio.get_running_loop().create_future()  # until somebody gives up
        await flowing.wait()  # in a partition nobody hears of an end either
