"""
Catching up: pages of the log, pulled only as fast as the reader reads them.

While a reader catches up, live messages are not pushed to it: they are read
from the log like the rest. Once nothing is left, it becomes a member in the
same step, so there is no hole and no repeat at the seam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trunkline.clients import Client, Phase
from trunkline.errors import CloseCode, close_reason
from trunkline.fanout import Feed
from trunkline.history import History, Stored
from trunkline.transport import Batch

PAGE_MESSAGES = 300
"""Messages read in one turn."""

PAGE_BYTES = 256 * 1024
"""Bytes read in one turn, about."""


class Replay:
    """
    One connection catching up with one session.

    Args:
        after: The last ``seq`` that the connection has.
        max_buffered: The connection's limit; above half of it the replay waits.
        live: Called in the step in which the connection becomes a member.
    """

    __slots__ = ("_after", "_client", "_feed", "_half", "_history", "_live", "_task")

    def __init__(
        self,
        feed: Feed,
        client: Client,
        history: History,
        after: int,
        max_buffered: int,
        live: Callable[[Client], None],
    ) -> None:
        self._feed = feed
        self._client = client
        self._history = history
        self._after = after
        self._half = max_buffered // 2
        self._live = live
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; in the same step if there is nothing to catch up with."""
        if self._after >= self._feed.head:
            self._live(self._client)
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Stop catching up; the connection does not become a member."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._after < self._feed.head:
            await self._drained()
            page = await self._history.read(
                self._feed.session_id, self._after, PAGE_MESSAGES, PAGE_BYTES
            )
            if self._client.phase is Phase.CLOSED:
                return
            if not page or page[0].seq != self._after + 1:
                # Retention overtook a slow reader: it must see the reset.
                code = CloseCode.TOO_SLOW
                self._client.transport.close(code, close_reason(code, "trimmed"))
                return
            self._write(page)
        self._live(self._client)

    def _write(self, page: Sequence[Stored]) -> None:
        self._client.transport.write_batch(Batch([stored.body for stored in page]))
        self._after = page[-1].seq

    async def _drained(self) -> None:
        client = self._client
        while client.transport.buffered() > self._half and client.phase is not Phase.CLOSED:
            drained = asyncio.Event()
            client.wakeup.append(drained)
            await drained.wait()
