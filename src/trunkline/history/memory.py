"""Session logs in memory: fast, and gone when the process ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from trunkline.history import Append, Bounds, Entry, Fenced, Known, Outcome, Position, Stored
from trunkline.ids import random_id
from trunkline.payloads.base import Durability


class _Log:
    """One session's messages: ``entries[0]`` has the number `first`."""

    __slots__ = ("entries", "epoch", "first", "head", "marks", "size")

    def __init__(self) -> None:
        self.epoch = random_id()
        self.first = 1
        self.head = 0
        self.size = 0
        self.entries: deque[Entry] = deque()
        self.marks: deque[tuple[float, int]] = deque()
        """When which message came; the ones up to the next mark came little later."""

    def drop(self) -> None:
        """Forget the oldest message."""
        self.size -= len(self.entries.popleft().body)
        self.first += 1


class MemoryHistory:
    """
    Session logs that live as long as the process.

    No method ever suspends. The limits hold for each session by itself and are
    applied whenever its log is used; the newest message stays whatever its size.

    Args:
        max_messages: Messages kept.
        max_age: Seconds that a message is kept, give or take a hundredth.
        max_bytes: Bytes of frames kept.
        clock: Seconds, from any start; must not go backwards.
    """

    durability: Durability = "memory"

    def __init__(
        self,
        *,
        max_messages: int = 10_000,
        max_age: float = 7 * 86_400.0,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_messages = max_messages
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._clock = clock
        self._logs: dict[str, _Log] = {}

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Forget everything."""
        self._logs.clear()

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Store entries of several sessions; one outcome per item, in order."""
        now = self._clock()
        return [self._append(item, now) for item in batch]

    def _append(self, item: Append, now: float) -> Outcome:
        log = self._logs.get(item.session)
        if log is None or item.expected != (log.epoch, log.head):
            return Fenced(f"the log of {item.session} does not end at {item.expected}")
        # One mark a hundredth of max_age apart is enough to find what is too old.
        marks = log.marks
        if not marks or now - marks[-1][0] > self._max_age / 100:
            marks.append((now, log.head + 1))
        entries = item.entries
        log.entries += entries
        log.head += len(entries)
        for entry in entries:
            log.size += len(entry.body)
        if (
            log.head - log.first >= self._max_messages
            or log.size > self._max_bytes
            or now - marks[0][0] > self._max_age
        ):
            self._retain(log, now)
        return Position(log.epoch, log.head)

    def _retain(self, log: _Log, now: float) -> None:
        """Forget what is too old or too much."""
        keep = log.head - self._max_messages + 1
        marks = log.marks
        while marks and now - marks[0][0] > self._max_age:
            marks.popleft()
            keep = max(keep, marks[0][1] if marks else log.head + 1)
        while log.first < keep or (log.size > self._max_bytes and log.first < log.head):
            log.drop()

    def _log(self, session: str) -> _Log | None:
        """Return a session's log, as its limits leave it now."""
        log = self._logs.get(session)
        if log is not None and log.marks:
            self._retain(log, self._clock())
        return log

    async def read(self, session: str, after: int, limit: int, max_bytes: int) -> Sequence[Stored]:
        """Read messages with ``seq > after``, oldest first; see `History.read`."""
        log = self._log(session)
        if log is None:
            return ()
        start = max(after + 1 - log.first, 0)
        found: list[Stored] = []
        for seq, entry in enumerate(islice(log.entries, start, start + limit), log.first + start):
            found.append(Stored(seq, entry.body))
            max_bytes -= len(entry.body)
            if max_bytes <= 0:
                break
        return found

    async def bounds(self, session: str) -> Bounds:
        """Return what the log holds; an unknown session gets an epoch and is empty."""
        log = self._log(session) or self._logs.setdefault(session, _Log())
        return Bounds(log.epoch, log.first, log.head)

    async def ids(self, session: str) -> Sequence[Known]:
        """Return the dedupe keys of the retained log, oldest first."""
        log = self._log(session)
        if log is None:
            return ()
        return [Known(e.key, e.digest, seq) for seq, e in enumerate(log.entries, log.first)]

    async def trim(self, session: str, before: int) -> None:
        """Delete messages with ``seq < before``; numbering goes on as it was."""
        log = self._logs.get(session)
        while log is not None and log.entries and log.first < before:
            log.drop()

    async def delete(self, session: str) -> None:
        """Delete the log; if the session comes again, its epoch is another."""
        self._logs.pop(session, None)
