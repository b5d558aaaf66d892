"""
Durable messages that the gateway has not yet answered for. No I/O here.

A message stays here, as the bytes that were first sent, until its ``ack`` or
``error`` comes. After a reconnect what was sent is sent again under the same
id, in order and before anything newer, and the gateway stores it once. Where
the log was reset the gateway can no longer tell: those are given back as
unknown and never sent twice.
"""

from __future__ import annotations

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

    def take(self, session: str) -> list[bytes]:
        """Return all frames of a session, in order; from now on they count as sent."""
        mine = [e for e in self._entries.values() if e.session == session]
        for entry in mine:
            entry.sent = True
        return [e.frame for e in mine]

    def send(self, id: str) -> bytes:
        """Return one frame; from now on it counts as sent."""
        entry = self._entries[id]
        entry.sent = True
        return entry.frame

    def forget_sent(self, session: str) -> list[Entry]:
        """Remove and return what may or may not have been stored before a reset."""
        lost = [e for e in self._entries.values() if e.session == session and e.sent]
        for entry in lost:
            del self._entries[entry.id]
        return lost

    def forget(self, session: str) -> list[Entry]:
        """Remove and return everything of a session that has ended."""
        gone = [e for e in self._entries.values() if e.session == session]
        for entry in gone:
            del self._entries[entry.id]
        return gone

    def entries(self) -> list[Entry]:
        """Return what waits, in order, to be stored by a state file."""
        return list(self._entries.values())
