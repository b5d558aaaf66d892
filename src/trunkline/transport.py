"""
The seam between the core and whatever carries its messages.

The core hands over whole messages, already encoded. A `Batch` holds what a
session produced in one turn of the loop: every member that gets all of it
shares one batch, so a carrier that frames messages frames and joins them
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Framer = Callable[[Sequence[bytes]], bytes]
"""Joins whole messages into the bytes that a carrier writes."""


class Batch:
    """Messages that go to several peers in one write each."""

    __slots__ = ("_framed", "messages", "size")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.messages = messages
        self.size = sum(map(len, messages))
        self._framed: dict[Framer, bytes] = {}

    def framed(self, framer: Framer) -> bytes:
        """Return the messages joined by `framer`, which runs once per batch."""
        data = self._framed.get(framer)
        if data is None:
            data = self._framed[framer] = framer(self.messages)
        return data


class Transport(Protocol):
    """
    A pipe to one peer.

    Implementations never block and never raise: once the peer is gone, writes
    drop their argument and `close` does nothing. Messages leave in the order
    in which they were written; nothing leaves after a close.
    """

    def write(self, message: bytes) -> None:
        """Queue one whole message."""

    def write_batch(self, batch: Batch) -> None:
        """Queue all messages of a batch, in one piece."""

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close with a WebSocket close code."""

    def buffered(self) -> int:
        """Return the bytes that wait for the peer to read them."""

    def pause_reading(self) -> None:
        """Take no more messages from the peer until `resume_reading`."""

    def resume_reading(self) -> None:
        """Take messages again."""
