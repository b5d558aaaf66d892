"""
Catching up: pages of the log, pulled only as fast as the reader reads them.

While a reader catches up, live messages are not pushed to it: they are read
from the log like the rest. Once nothing is left, it becomes a member in the
same step, so there is no hole and no repeat at the seam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from trunkline.clients import Client, Phase
from trunkline.errors import CloseCode, close_reason
from trunkline.fanout import Feed
from trunkline.history import History, Stored
from trunkline.payloads import Cursor
from trunkline.transport import Batch

log = structlog.get_logger(__name__)

PAGE_MESSAGES = 300
"""Messages read in one turn."""

PAGE_BYTES = 256 * 1024
"""Bytes read in one turn, about."""


def find_start(feed: Feed, since: Cursor | None, tail: int | None) -> tuple[str, str | None, int]:
    """
    Decide how a join continues.

    Returns:
        The recovery, the reason of a reset, and the last ``seq`` that is not sent.
    """
    oldest = feed.first - 1
    reason = None
    if since is not None:
        if since.epoch != feed.epoch:
            reason = "epoch"
        elif since.seq > feed.head:
            reason = "ahead"
        elif since.seq < oldest:
            reason = "trimmed"
        else:
            return "resumed", None, since.seq
    if tail is None:
        tail = 0 if since is None else feed.head
    after = max(oldest, feed.head - tail)
    return ("fresh" if since is None else "reset"), reason, after


class Replay:
    """
    One connection catching up with one session.

    Args:
        after: The last ``seq`` that the connection has.
        max_buffered: The connection's limit; above half of it the replay waits.
        live: Called in the step in which the connection becomes a member.
    """

    __slots__ = ("_after", "_client", "_epoch", "_feed", "_half", "_history", "_live", "_task")

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
        self._epoch = feed.epoch
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

    async def ended(self) -> None:
        """Wait until the connection has caught up, or will not."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._catch_up()
        except Exception:
            log.exception("replay failed", session=self._feed.session_id)
            self._close(CloseCode.INTERNAL, "the log cannot be read")

    async def _catch_up(self) -> None:
        feed = self._feed
        while self._after < feed.head:
            await self._drained()
            page = await self._history.read(feed.session_id, self._after, PAGE_MESSAGES, PAGE_BYTES)
            if self._client.phase is Phase.CLOSED:
                return
            if feed.epoch != self._epoch:
                break
            if not page or page[0].seq != self._after + 1:
                # Retention overtook a slow reader: it must see the reset.
                self._close(CloseCode.TOO_SLOW, "trimmed")
                return
            # What is stored but not delivered yet will come live.
            self._write([stored for stored in page if stored.seq <= feed.head])
            await asyncio.sleep(0)  # others have their turn, and the transport writes
        if feed.epoch != self._epoch:
            # The log was found damaged: the reader must see the reset.
            self._close(CloseCode.TOO_SLOW, "the log has changed")
            return
        self._live(self._client)

    def _close(self, code: CloseCode, text: str) -> None:
        self._client.transport.close(code, close_reason(code, text))

    def _write(self, page: Sequence[Stored]) -> None:
        for stored in page:
            self._client.measures.wrote(stored.body)
        self._client.transport.write_batch(Batch([stored.body for stored in page]))
        self._after = page[-1].seq

    async def _drained(self) -> None:
        client = self._client
        while client.transport.buffered() > self._half and client.phase is not Phase.CLOSED:
            drained = asyncio.Event()
            client.wakeup.append(drained)
            await drained.wait()
