"""
A bounded queue between the connection's reader and the application.

A consumer that is a little slow holds the reader back, and so the socket.
One that has stopped does not: after a moment the queue refuses, because the
same socket carries everybody else's messages, and the answers that the
consumer itself may be waiting for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds that the reader waits for a slow consumer."""


class Mailbox(Generic[T]):
    """
    First in, first out, up to a number of items and bytes.

    Args:
        max_items: Above so many it is full.
        max_bytes: Above so many it is full.
    """

    def __init__(self, max_items: int = 1_000, max_bytes: int = 8 * 1024 * 1024) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._end: Exception | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether it takes no more now."""
        return len(self._items) >= self._max_items or self._bytes >= self._max_bytes

    @property
    def half_empty(self) -> bool:
        """Whether there is room for a good many."""
        return len(self._items) <= self._max_items // 2 and self._bytes <= self._max_bytes // 2

    async def room(self, patience: float = PATIENCE) -> bool:
        """Wait for room, at most `patience` seconds; returns whether there is."""
        if not self.full:
            return True
        try:
            async with asyncio.timeout(patience):
                while self.full:
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            return False
        return True

    def put(self, item: T, size: int = 0) -> None:
        """Add an item of `size` bytes; who must not overfill it asks `full` first."""
        self._items.append((item, size))
        self._bytes += size
        self._arrived.set()

    async def get(self) -> T:
        """
        Wait for the next item and take it.

        Cancelling is safe: nothing is lost.

        Raises:
            Exception: What `end` was given, once everything has been taken.
        """
        while not self._items:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        item, size = self._items.popleft()
        self._bytes -= size
        self._taken.set()
        return item

    def end(self, error: Exception) -> None:
        """Nothing more will come; who waits gets `error`."""
        self._end = self._end or error
        self._arrived.set()
        self._taken.set()
