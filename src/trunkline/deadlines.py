"""
Deadlines of what usually ends before them: one timer for all.

A timer of its own for each request would cost more than the request's way
through the core. So deadlines stand in a heap; what has ended meanwhile is
left there, as no more than its id, until such entries are the larger part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

SLACK = 1_000
"""Entries above which the heap may be swept."""


class Deadlines:
    """
    Calls back for each id whose time has come and that is still open.

    Args:
        is_open: Whether what has this id has not ended yet.
        expired: Called with an id that is open at its deadline, from the loop.
        clock: Seconds, from any start; goes on as the loop's does.
    """

    def __init__(
        self,
        is_open: Callable[[str], bool],
        expired: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._is_open = is_open
        self._expired = expired
        self._clock = clock
        self._heap: list[tuple[float, str]] = []
        self._limit = SLACK
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at: float, id: str) -> None:
        """Wait for an open id until `at`, by the clock."""
        heap = self._heap
        heappush(heap, (at, id))
        if self._timer is None or at < self._due:
            self._arm(at)
        if len(heap) > self._limit:
            self._sweep()

    def _sweep(self) -> None:
        """Drop what has ended. Until the next time the heap may double, so that each add costs little."""
        self._heap = [entry for entry in self._heap if self._is_open(entry[1])]
        heapify(self._heap)
        self._limit = 2 * len(self._heap) + SLACK

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = at
        wait = max(0.0, at - self._clock())
        self._timer = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            _, id = heappop(self._heap)
            if self._is_open(id):
                self._expired(id)
        if self._heap and self._timer is None:
            self._arm(self._heap[0][0])
