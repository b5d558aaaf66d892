"""The pipe of a client that speaks HTTP: what the core writes waits here to be read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from trunkline.config import LimitsConfig
from trunkline.errors import CloseCode, close_reason
from trunkline.transport import Batch


class Mailbox:
    """
    A `Transport` within the process.

    It holds no more than a connection may: once more than ``max_buffered`` bytes
    wait and another message comes, it closes with 4008 and forgets them.

    Args:
        limits: How much may wait, and from where on its reader is lagging.
        lagging: Told when its reader begins to lag, and when it has caught up.

    Attributes:
        closed: Code and reason once it is closed.
        gone: Set then.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        lagging: Callable[[bool], None] = lambda yes: None,
    ) -> None:
        self.closed: tuple[int, str] | None = None
        self._limits = limits
        self._lagging = lagging
        self.gone = asyncio.Event()
        self._lags = False
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._news = asyncio.Event()

    def write(self, message: bytes) -> None:
        """Keep one message."""
        if self.closed is not None:
            return
        if self._size > self._limits.max_buffered:
            self._frames.clear()
            self._size = 0
            self.close(CloseCode.TOO_SLOW, close_reason(CloseCode.TOO_SLOW, "too slow"))
            return
        self._frames.append(message)
        self._size += len(message)
        self._news.set()
        if not self._lags and self._size > self._limits.lag_bytes:
            self._lags = True
            self._lagging(True)

    def write_batch(self, batch: Batch) -> None:
        """Keep the messages of a batch."""
        for message in batch.messages:
            self.write(message)

    def close(self, code: int, reason: str) -> None:
        """Close; what waits can still be read, what is written afterwards is dropped."""
        if self.closed is None:
            self.closed = (code, reason)
            self._news.set()
            self.gone.set()

    def buffered(self) -> int:
        """Return the bytes that wait."""
        return self._size

    def pause_reading(self) -> None:
        """Do nothing: who asks waits for each answer."""

    def resume_reading(self) -> None:
        """Do nothing; see `pause_reading`."""

    def take(self) -> bytes | None:
        """Return the next message; None if nothing waits."""
        if not self._frames:
            self._news.clear()
            return None
        frame = self._frames.popleft()
        self._size -= len(frame)
        if self._lags and self._size <= self._limits.lag_bytes // 4:
            self._lags = False
            self._lagging(False)
        return frame

    async def next(self) -> bytes | None:
        """Wait for the next message; None once it is closed and read."""
        while (frame := self.take()) is None:
            if self.closed is not None:
                return None
            await self._news.wait()
        return frame
