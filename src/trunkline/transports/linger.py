"""Ending a connection so that the peer can read our last words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class _Sink(asyncio.BufferedProtocol):
    """
    Reads and forgets, until the peer closes.

    A socket closed with unread bytes resets the connection, and the peer may
    then never read our last words.
    """

    __slots__ = ("_lost",)

    _scrap = bytearray(64 * 1024)

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def get_buffer(self, hint: int) -> bytearray:
        return self._scrap

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()


def linger(transport: asyncio.Transport, lost: Callable[[], None]) -> None:
    """
    Send what is queued, say that no more comes, and wait for the peer to close.

    Without a deadline: the caller aborts `transport` when it has waited enough.
    TLS knows no half-closed connection, so there the socket closes at once.

    Args:
        transport: The connection to end.
        lost: Called when the socket has closed.
    """
    transport.set_protocol(_Sink(lost))
    if transport.can_write_eof():
        transport.write_eof()
        transport.resume_reading()
    else:
        transport.close()
