"""
How far one has read a session's log: exactly once, in order. No I/O here.

The gateway numbers durable messages from 1 without holes. The next number is
new, a lower one was seen before, a higher one means that something is
missing; then one joins again with `position`, and the gateway replays.
"""

from __future__ import annotations

from enum import Enum

from trunkline.payloads import Cursor, SessionInfo


class Place(Enum):
    """Where a numbered message stands, as the reader sees it."""

    NEXT = "next"
    SEEN = "seen"
    AHEAD = "ahead"


class LogCursor:
    """The last message read, and the last known to exist."""

    def __init__(self, position: Cursor | None = None) -> None:
        self.epoch = position.epoch if position else None
        self.last = position.seq if position else 0
        self._known = self.last

    @property
    def position(self) -> Cursor | None:
        """Where to resume; None before the first join."""
        return None if self.epoch is None else Cursor(epoch=self.epoch, seq=self.last)

    @property
    def behind(self) -> bool:
        """Whether messages are known to exist that have not been read."""
        return self._known > self.last

    def joined(self, info: SessionInfo) -> str | None:
        """
        Take the answer to a join.

        Returns:
            None if what was read is still a prefix of the log; else why it is
            not (``epoch``, ``trimmed``, ``ahead``): reading begins anew.
        """
        known = self.epoch is not None
        if known and info.recovery == "resumed" and info.epoch == self.epoch:
            return None
        reason = None
        if known:
            reason = info.reason or ("epoch" if info.epoch != self.epoch else "trimmed")
        self.epoch = info.epoch
        self.last = (info.head or 0) if info.next is None else info.next - 1
        self._known = self.last
        return reason

    def place(self, seq: int) -> Place:
        """Tell whether the message is next, was seen, or is ahead of a hole."""
        self._known = max(self._known, seq)
        if seq == self.last + 1:
            return Place.NEXT
        return Place.SEEN if seq <= self.last else Place.AHEAD

    def advance(self) -> None:
        """The next message has been read."""
        self.last += 1

    def saw_head(self, epoch: str, head: int) -> None:
        """The gateway says where the log ends."""
        # Another epoch's numbers mean nothing here, but there is something to fetch.
        self._known = max(self._known, head if epoch == self.epoch else self.last + 1)
