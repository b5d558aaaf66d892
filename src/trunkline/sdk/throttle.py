"""
Sends durable messages in their order, as fast as the gateway takes them.

One that was refused behind which another was taken would change their order.
So what is sent stays below the gateway's limits; what it refuses all the same
goes out again after the time that it asks for, and then one by one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from trunkline.sdk.outbox import Entry, Outbox, Pace

BURST_SHARE = 0.5
"""How much of the gateway's burst goes out at once; the rest is for requests."""

WINDOW_SHARE = 0.4
"""
How much of the burst may be without an answer; with the share above below 1, so
that nothing is refused even where a stall makes all that was sent arrive together.
"""


class Throttle:
    """
    What waits to be sent, and what is on its way, over all sessions of a connection.

    Args:
        outbox: Holds what has no answer; what has left it is not sent.
        post: Writes a frame.
    """

    def __init__(self, outbox: Outbox, post: Callable[[bytes], None]) -> None:
        self._outbox = outbox
        self._post = post
        self._pace = Pace()
        self._window = math.inf
        self._waiting: deque[str] = deque()
        self._in_flight: set[str] = set()
        self._one_by_one = False
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, rate: float, burst: float) -> None:
        """Take what the gateway said of its limits: messages per second, and at once."""
        self._pace = Pace(rate, burst * BURST_SHARE)
        self._window = max(1, burst * WINDOW_SHARE // 1)

    def clear(self) -> None:
        """The connection is gone; what has no answer waits for the next."""
        self._stop_timer()
        self._waiting.clear()
        self._in_flight.clear()
        self._one_by_one = False

    def flush(self, session_id: str) -> None:
        """Send what of a session has no answer and is not on its way."""
        busy = self._in_flight.union(self._waiting)
        mine = self._outbox.of(session_id)
        self._waiting.extend(entry.id for entry in mine if entry.id not in busy)
        self._pump()

    def send(self, id: str) -> None:
        """Send a message behind those that wait."""
        self._waiting.append(id)
        self._pump()

    def settled(self, id: str) -> None:
        """The gateway has answered for a message, or nobody waits for its answer."""
        self._in_flight.discard(id)
        self._pump()

    def refused(self, id: str, seconds: float) -> None:
        """The gateway wants a message again in a while, before those that were made after it."""
        self._in_flight.discard(id)
        again = {id, *self._waiting}
        self._waiting = deque(entry.id for entry in self._outbox.entries() if entry.id in again)
        self._one_by_one = True
        self._pause(seconds)

    def _pump(self) -> None:
        while self._waiting and self._timer is None:
            if len(self._in_flight) >= (1 if self._one_by_one else self._window):
                return
            entry = self._outbox.get(self._waiting[0])
            wait = 0.0 if entry is None else self._pace.take(time.monotonic())
            if wait:
                self._pause(wait)
                return
            self._waiting.popleft()
            if entry is not None:
                self._write(entry)
        if not self._waiting:
            self._one_by_one = False

    def _write(self, entry: Entry) -> None:
        entry.sent = True
        self._in_flight.add(entry.id)
        self._post(entry.frame)

    def _pause(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
