"""
The session log's store.

Order, numbering and dedupe belong to the one owner of a session, not to its
store: the owner tells the store where an entry goes, and the store refuses
what does not follow. Nothing is shown to anyone before it is stored.

Contract, held by every implementation (``tests/contracts/test_history.py``):

* One `Append` is all or nothing. Its entries get the numbers
  ``expected.seq + 1``, ``+ 2`` … without holes.
* `append` takes what several sessions produced in one turn of the loop, so a
  store can commit it at once. Each gets its own outcome, in the same order.
  Once `append` returns, what succeeded is stored at the store's durability
  class.
* Calls may overlap only if they concern different sessions. Cancelling a call
  leaves it unknown whether it happened.
* Bytes come back exactly as they were given, or not at all: a store that
  finds damage ends the log before it and changes the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from trunkline.payloads.base import Durability


class Position(NamedTuple):
    """A place in a session's log: `seq` is the last message before it."""

    epoch: str
    seq: int


class Bounds(NamedTuple):
    """What a session's log holds; ``first == head + 1`` when it is empty."""

    epoch: str
    first: int
    head: int


class Entry(msgspec.Struct, frozen=True):
    """One durable message on its way into the log."""

    key: str
    """Dedupe key: user, device and message id, joined by the owner."""
    digest: bytes
    """SHA-256 of what the client sent."""
    body: bytes
    """The whole frame as members get it."""


class Append(msgspec.Struct, frozen=True):
    """What one session adds to its log."""

    session: str
    entries: Sequence[Entry]
    expected: Position
    """Where the owner believes the log ends."""


class Stored(NamedTuple):
    """One message of the log."""

    seq: int
    body: bytes


class Known(NamedTuple):
    """A dedupe key that the retained log holds."""

    key: str
    digest: bytes
    seq: int


class HistoryError(Exception):
    """An append failed; nothing of it was stored."""


class Fenced(HistoryError):
    """The log does not end where the owner believes: there is another owner."""


class StorageFull(HistoryError):
    """There is no room; reads go on."""


Outcome = Position | HistoryError
"""Where a log ends after an append, or why the append failed."""


class History(Protocol):
    """A store of session logs; see the module for its contract."""

    durability: Durability
    """What an append that succeeded survives."""

    async def open(self) -> None:
        """Begin; raises `ConfigError` when the store cannot be used."""

    async def close(self) -> None:
        """Write what is left and let go; a second call does nothing."""

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Store entries of several sessions; one outcome per item, in order."""

    async def read(self, session: str, after: int, limit: int, max_bytes: int) -> Sequence[Stored]:
        """
        Read messages with ``seq > after``, oldest first, from the oldest kept.

        At most `limit` messages and about `max_bytes` bytes, but at least one
        where there is one. An unknown session has none.
        """

    async def bounds(self, session: str) -> Bounds:
        """Return what the log holds; an unknown session gets an epoch and is empty."""

    async def ids(self, session: str) -> Sequence[Known]:
        """Return the dedupe keys of the retained log, oldest first."""

    async def trim(self, session: str, before: int) -> None:
        """Delete messages with ``seq < before``; numbering goes on as it was."""

    async def delete(self, session: str) -> None:
        """Delete the log; if the session comes again, its epoch is another."""
