"""
A process full of clients, told by lines of JSON on its standard input.

The first line is a `Load`; each later one is an `Order`, answered by one line
with the counts so far.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from pathlib import Path

import msgspec
import uvloop

from e2e.client import LoadClient, Plan
from e2e.records import Recorder


class Load(msgspec.Struct, kw_only=True):
    """What a process does."""

    plans: list[Plan]
    record: str
    """The file of events."""


class Order(msgspec.Struct, kw_only=True):
    """What is asked of a running load, one thing at a time."""

    acked: int | None = None
    """Wait until so many messages are acknowledged in all."""
    attached: bool = False
    """Wait until every client is in its session."""
    publish: bool | None = None
    """Publish, or do not; either way, wait until nothing is without an answer."""
    stay: bool = False
    """Leave no more."""
    reset: bool = False
    """Cut all connections at once."""
    away: bool | None = None
    """Cut all connections at once, and stay away; or come back, all at once."""
    finish: dict[str, int] | None = None
    """Wait until everybody has read the logs up to these places; note how far they came."""
    patience: float = 5.0
    """Seconds that `finish` waits."""


class Loader:
    """All clients of this process."""

    def __init__(self, load: Load) -> None:
        self._recorder = Recorder(Path(load.record))
        self._counts: Counter[str] = Counter()
        self._clients = [LoadClient(plan, self._recorder, self._counts) for plan in load.plans]
        self._tasks = [asyncio.create_task(client.run()) for client in self._clients]

    async def obey(self, order: Order) -> Counter[str]:
        """Do what is asked; return the counts."""
        for client in self._clients:
            client.leaving = 0.0 if order.stay else client.leaving
            if order.publish is not None:
                client.publishing = order.publish
            if order.reset:
                client.reset()
            if order.away is not None:
                client.stay_away(order.away)
        await asyncio.gather(*self._waits(order))
        if order.acked is not None:
            # Many clients count, and none of them knows the sum.
            while self._counts["acked"] < order.acked:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        broken = [task for task in self._tasks if task.done()]
        if broken:
            await asyncio.gather(*broken)
        return self._counts

    def _waits(self, order: Order) -> list[asyncio.Task[object]]:
        waits: list[asyncio.Task[object]] = []
        for client in self._clients:
            if order.attached:
                waits.append(asyncio.create_task(client.attached.wait()))
            if order.publish is False:
                waits.append(asyncio.create_task(client.settled()))
            if order.finish is not None:
                head = order.finish[client.plan.session]
                waits.append(asyncio.create_task(client.reach(head, order.patience)))
        return waits


async def main() -> None:
    """Obey until the input ends."""
    lines = asyncio.StreamReader(limit=2**24)  # a line names thousands of clients
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    loader = Loader(msgspec.json.decode(await lines.readline(), type=Load))
    gc.freeze()
    while line := await lines.readline():
        counts = await loader.obey(msgspec.json.decode(line, type=Order))
        print(msgspec.json.encode(counts).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
