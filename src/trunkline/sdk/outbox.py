"""
Durable messages that the gateway has not yet answered for. No I/O here.

A message stays here, as the bytes that were first sent, until its ``ack`` or
``error`` comes. After a reconnect what was sent is sent again under the same
id, in order and before anything newer, and the gateway stores it once. Where
the log was reset the gateway can no longer tell: those are given back as
unknown and never sent twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec


class Entry(msgspec.Struct):
    """One durable message on its way."""

    id: str
    """The message's id, under which the gateway answers."""
    session: str
    frame: bytes
    """The whole message, as sent."""
    sent: bool = False
    """Whether it may have reached the gateway."""


ROUNDED_RATE = 0.5
"""Messages per second where a gateway tells 0, because it rounds."""


class Pace:
    """
    How fast messages may go out: `burst` at once, then `rate` a second.

    Sending faster than the gateway takes them would have it refuse some and
    take others that were sent behind them.

    Args:
        rate: Messages per second; what is not above 0 was rounded by the gateway, and is slow.
        burst: Messages at once.
    """

    def __init__(self, rate: float = math.inf, burst: float = 1.0) -> None:
        self._interval = 1 / (rate if rate > 0 else ROUNDED_RATE)
        self._slack = max(0.0, burst - 1) * self._interval
        self._due = -math.inf

    def take(self, now: float) -> float:
        """Return 0.0 if a message may go out at `now`, in seconds; else how long to wait."""
        due = max(self._due, now - self._slack)
        if due > now:
            return due - now
        self._due = due + self._interval
        return 0.0


class Outbox:
    """Entries by id, in the order in which they were added."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        # What an earlier process left may have been sent, whatever it noted.
        self._entries = {e.id: Entry(e.id, e.session, e.frame, sent=True) for e in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def add(self, id: str, session: str, frame: bytes) -> None:
        """Keep a message until it is settled."""
        self._entries[id] = Entry(id, session, frame)

    def settle(self, id: str) -> Entry | None:
        """Remove and return what the gateway has answered for, if it is ours."""
        return self._entries.pop(id, None)

    def withdraw(self, id: str) -> bool:
        """Remove a message that never left; returns whether that was still possible."""
        entry = self._entries.get(id)
        if entry is None or entry.sent:
            return False
        del self._entries[id]
        return True

    def get(self, id: str) -> Entry | None:
        """Return a message that has no answer yet."""
        return self._entries.get(id)

    def of(self, session: str) -> list[Entry]:
        """Return what waits of a session, in order."""
        return [e for e in self._entries.values() if e.session == session]

    def forget_sent(self, session: str) -> list[Entry]:
        """Remove and return what may or may not have been stored before a reset."""
        lost = [e for e in self.of(session) if e.sent]
        for entry in lost:
            del self._entries[entry.id]
        return lost

    def forget(self, session: str) -> list[Entry]:
        """Remove and return everything of a session that has ended."""
        gone = self.of(session)
        for entry in gone:
            del self._entries[entry.id]
        return gone

    def entries(self) -> list[Entry]:
        """Return what waits, in order, to be stored by a state file."""
        return list(self._entries.values())
