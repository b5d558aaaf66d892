"""
An answer while it is written, and how much of it the gateway has. No I/O here.

The text of a run goes out in chunks with an index. After a lost connection the
gateway says which chunk it has last; everything behind that goes out again.
What a request is answered with has no index; there the gateway says how many
pieces it has.
"""

from __future__ import annotations

from collections import deque

from trunkline.messages import GatewayMessage

MAX_CHUNK = 64 * 1024
"""Characters in one chunk; even fully escaped it fits a message."""


class Answer:
    """The text of one run."""

    def __init__(self) -> None:
        self._sent: list[str] = []  # by index
        self._new: list[str] = []

    @property
    def text(self) -> str:
        """Everything that was written."""
        return "".join(self._sent + self._new)

    def write(self, text: str) -> None:
        """Add to the end."""
        self._new.append(text)

    def take(self) -> tuple[int, str] | None:
        """Return the next chunk and its index; None if all of it has gone out."""
        waiting = "".join(self._new)
        if not waiting:
            return None
        content, rest = waiting[:MAX_CHUNK], waiting[MAX_CHUNK:]
        self._sent.append(content)
        self._new = [rest] if rest else []
        return len(self._sent) - 1, content

    def rewind(self, index: int) -> None:
        """The gateway has the chunks up to `index` and no more; -1 is none."""
        self._new[:0] = self._sent[index + 1 :]
        del self._sent[index + 1 :]


MAX_KEPT = 1024 * 1024
"""Bytes of one request's answer that are kept; a lost connection has swallowed fewer."""


class Pieces:
    """
    What one request was answered with, kept in case it does not arrive.

    Attributes:
        count: Pieces so far, those that are not kept any more among them.
        size: Bytes of those that are.
        broken: Whether the last one says that a piece before it was lost.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self.broken = False
        self._kept: deque[GatewayMessage] = deque()

    def add(self, piece: GatewayMessage) -> None:
        """Keep a piece that has been sent; the oldest go when they are too many bytes."""
        self.count += 1
        self.size += len(piece.payload)
        self._kept.append(piece)
        while self.size > MAX_KEPT and len(self._kept) > 1:
            self.size -= len(self._kept.popleft().payload)

    def after(self, received: int) -> list[GatewayMessage] | None:
        """Return the pieces behind the first `received`; None if one of them is not kept."""
        missing = self.count - received
        if missing > len(self._kept):
            return None
        return list(self._kept)[len(self._kept) - missing :]

    def last(self) -> GatewayMessage:
        """Return the newest piece."""
        return self._kept[-1]
