"""
The audit log: who did what to what, when, and from where.

It lives in ``auth.db``, so that the gateway and its command line write one log.
Rows are only ever added. Each holds the SHA-256 of the row before it and of
itself, so a row that was changed or taken out shows; retention alone deletes,
from the old end, and says so in an entry of its own.

Nothing waits for this log, and nothing fails because of it: entries are
written together, soon after they were made, and a disk that is full costs
entries, which are counted, but never somebody's sign-in.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import structlog
from msgspec.structs import replace

from trunkline.authdb import BUSY_TIMEOUT, AuthDatabase
from trunkline.config import AuditConfig
from trunkline.events import AuditEntry
from trunkline.ids import now_ms

FLUSH_INTERVAL = 0.1
"""Seconds between two writes at least; what comes meanwhile is one transaction."""

WINDOW = 10.0
"""Seconds over which entries of one kind are counted."""

ROWS_PER_KIND = 10
"""Entries of one kind that a window keeps one by one."""

ROWS_PER_WINDOW = 500
"""Entries of one action, of all kinds, that a window keeps one by one."""

COUNTED = ("auth.", "session.", "approval.")
"""
What begins the actions that strangers and users can cause at will, so that a flood becomes a
count. Everything else is an operator's deed, and has an entry of its own whatever goes on.
"""

RETRY = 0.5
"""Seconds until the next attempt when another process is writing."""

TRIM_INTERVAL = 600.0
"""Seconds between two looks for entries that are too old or too many."""

TRIM_ROWS = 5_000
"""Entries that one look deletes at most, so that nobody has to wait for it."""

LOOKED_AT = 20_000
"""Entries that one page looks at, so that the event loop is not held up by a rare one."""

FIELD_BYTES = 256
"""Bytes of UTF-8 that one field of an entry may have."""

_TABLES = """
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    target TEXT NOT NULL,
    outcome TEXT NOT NULL,
    address TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS audit_by_time ON audit (at);
CREATE TABLE IF NOT EXISTS audit_start (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
INSERT OR IGNORE INTO audit_start VALUES (1, 0, x'');
CREATE TRIGGER IF NOT EXISTS audit_no_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_no_delete BEFORE DELETE ON audit
WHEN OLD.seq > (SELECT seq FROM audit_start)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
"""

_WHOLE = """
SELECT seq, -1 AS at, '' AS action, '' AS actor, '' AS target, '' AS outcome, '' AS address,
    '' AS detail, hash FROM audit_start
UNION ALL SELECT * FROM audit ORDER BY seq
"""

_END = 2**63 - 1
"""Above every number."""

_MADE = "SELECT count(*) FROM sqlite_schema WHERE name IN ('audit', 'audit_no_delete')"

log = structlog.get_logger(__name__)


class StoredEntry(AuditEntry, frozen=True, kw_only=True):
    """An entry as it stands in the log."""

    seq: int
    """Its number; one more than that of the entry before."""
    at: int
    """Milliseconds since the epoch."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of the whole log found."""

    entries: int
    """How many entries are there."""
    seq: int
    """The last entry's number."""
    digest: str
    """The last entry's digest in hexadecimal; it stands for the whole log up to there."""
    fault: str | None = None
    """What is wrong, if anything."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some entries, the newest first."""

    entries: list[StoredEntry]
    next: int | None
    """What `before` is to be for older ones; None: there are none."""


class _Flood(msgspec.Struct):
    kind: AuditEntry
    rows: int = 0
    more: int = 0


class Audit:
    """
    The audit log in an open database. Not for several threads.

    Args:
        database: Where it is kept.
        config: For how long.
        now: Milliseconds since the epoch.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        database: AuthDatabase,
        config: AuditConfig | None = None,
        *,
        now: Callable[[], int] = now_ms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = database
        self._config = config or AuditConfig()
        self._now = now
        self._clock = clock
        self._queue: list[tuple[int, AuditEntry]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flushed_at = float("-inf")
        self._trimmed_at = float("-inf")
        self._window_end = float("-inf")
        self._kinds: dict[tuple[str, ...], _Flood] = {}
        self._rows: dict[str, int] = {}
        self.lost = 0
        """Entries that could not be written and are not yet told of in the log."""
        # Reading an existing log must not need the right to write.
        found = database.row(_MADE)
        if found is None or found[0] < 2:
            database.create(_TABLES)

    # Writing

    def append(self, entry: AuditEntry) -> None:
        """
        Add an entry. Never raises, and waits for nothing in a running event loop.

        In a loop it is written within `FLUSH_INTERVAL`, with whatever else came;
        without one it is written when this returns. Of many entries of one kind
        (the same action, outcome, actor and address, but for sign-ins the same
        target too), the first ones of a `WINDOW` are kept, and one that counts
        the rest; see `COUNTED`.
        """
        now = self._clock()
        if now >= self._window_end:
            self._end_window()
            self._window_end = now + WINDOW
        if not self._kept(entry):
            self._schedule(self._window_end - now)
            return
        self._queue.append((self._now(), entry))
        self._schedule(max(0.0, self._flushed_at + FLUSH_INTERVAL - now))

    def _kept(self, entry: AuditEntry) -> bool:
        """Whether an entry gets a row of its own; otherwise it is counted."""
        if not entry.action.startswith(COUNTED):
            return True
        target = "" if entry.action.startswith("auth.") else entry.target
        key: tuple[str, ...] = (entry.action, entry.outcome, entry.actor, entry.address, target)
        rows = self._rows.get(entry.action, 0)
        flood = self._kinds.get(key)
        if flood is None and rows < ROWS_PER_WINDOW:
            kind = replace(entry, target=target, detail={})
            flood = self._kinds[key] = _Flood(kind)
        elif flood is None:  # from everywhere at once: count by what was done
            key = (entry.action, entry.outcome)
            anybody = AuditEntry(action=entry.action, outcome=entry.outcome)
            flood = self._kinds.setdefault(key, _Flood(anybody, ROWS_PER_KIND))
        if flood.rows >= ROWS_PER_KIND or rows >= ROWS_PER_WINDOW:
            flood.more += 1
            return False
        flood.rows += 1
        self._rows[entry.action] = rows + 1
        return True

    def _end_window(self) -> None:
        """Turn what was only counted into entries."""
        kinds, self._kinds, self._rows = self._kinds, {}, {}
        for flood in kinds.values():
            if flood.more:
                summary = replace(flood.kind, detail={"more": str(flood.more)})
                self._queue.append((self._now(), summary))

    def _schedule(self, wait: float) -> None:
        loop = _running_loop()
        if loop is None:
            self.flush()
            return
        when = loop.time() + wait
        if self._timer is not None and not self._timer.cancelled():
            if self._timer_at <= when:
                return
            self._timer.cancel()
        # The timer is not asked when it is due: uvloop's does not know if that is now.
        self._timer, self._timer_at = loop.call_at(when, self._due), when

    def _due(self) -> None:
        self._timer = None
        now = self._clock()
        if now >= self._window_end:
            self._end_window()
        self.flush()
        if any(flood.more for flood in self._kinds.values()):
            self._schedule(self._window_end - now)

    def flush(self) -> None:
        """Write what waits. Never raises: what cannot be written is counted and logged once."""
        now = self._flushed_at = self._clock()
        if not self._queue:
            return
        self._write(self._queue)
        if now - self._trimmed_at >= TRIM_INTERVAL:
            self._trimmed_at = now
            self._trim()

    def _write(self, queue: list[tuple[int, AuditEntry]]) -> None:
        try:
            with self._impatient(), self._db.transaction():
                if self.lost:
                    detail = {"entries": str(self.lost)}
                    self._insert(queue[0][0], AuditEntry(action="audit.lost", detail=detail))
                for at, entry in queue:
                    self._insert(at, entry)
        except sqlite3.Error as error:
            if _busy(error) and len(queue) < ROWS_PER_WINDOW:
                self._schedule(RETRY)
                return
            if not self.lost:
                log.error("the audit log cannot be written: entries are lost", error=str(error))
            self.lost += len(queue)
        else:
            self.lost = 0
        self._queue = []

    @contextmanager
    def _impatient(self) -> Iterator[None]:
        """In an event loop, do not wait for another process that writes: come back later."""
        if _running_loop() is None:
            yield
            return
        self._db.rows("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self._db.rows(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT * 1000)}")

    def _insert(self, at: int, entry: AuditEntry) -> None:
        last = self._last()
        seq = last["seq"] + 1
        row = (seq, at, *_texts(entry))
        self._db.write(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row, _digest(last["hash"], row)
        )

    def _last(self) -> sqlite3.Row:
        row = self._db.row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        row = row or self._db.row("SELECT seq, hash FROM audit_start")
        if row is None:
            raise sqlite3.DatabaseError("the start of the audit log is missing")
        return row

    def close(self) -> None:
        """Write what waits, the counts included; the database stays open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_window()
        self.flush()

    # Retention

    def _trim(self) -> None:
        """Delete what is too old or too much, and tell of it in the log itself."""
        try:
            with self._impatient(), self._db.transaction():
                last = self._too_old()
                if last is None:
                    return
                self._db.write("UPDATE audit_start SET seq = ?, hash = ?", last[0], last[1])
                gone = self._db.write("DELETE FROM audit WHERE seq <= ?", last[0])
                detail = {"entries": str(gone), "upTo": str(last[0])}
                self._insert(self._now(), AuditEntry(action="audit.trimmed", detail=detail))
        except sqlite3.Error as error:
            log.error("the audit log cannot be trimmed", error=str(error))
            return
        if gone == TRIM_ROWS:  # there may be more
            self._trimmed_at = float("-inf")

    def _too_old(self) -> sqlite3.Row | None:
        """Return the last of the entries to delete."""
        oldest = self._now() - round(self._config.max_age * 1000)
        return self._db.row(
            "SELECT seq, hash FROM (SELECT seq, hash, at FROM audit ORDER BY seq LIMIT ?)"
            " WHERE at < ? OR seq <= (SELECT max(seq) FROM audit) - ? ORDER BY seq DESC LIMIT 1",
            *(TRIM_ROWS, oldest, self._config.max_entries),
        )

    # Reading

    def entries(
        self,
        *,
        since: int | None = None,
        user: str | None = None,
        action: str | None = None,
        before: int | None = None,
        behind: int = 0,
        limit: int = 100,
    ) -> list[StoredEntry]:
        """
        Return entries, the newest first; looks at all of them if it must.

        Args:
            since: Only those at or after this time, in milliseconds since the epoch.
            user: Only those of this actor.
            action: Only those of this action; ``auth.*`` stands for all that begin so.
            before: Only those with a number below this one: the next page.
            behind: Only those with a number above this one.
            limit: At most so many.
        """
        self.flush()
        exact, prefix = (None, action[:-1]) if action and action.endswith("*") else (action, None)
        rows = self._db.rows(
            "SELECT * FROM audit WHERE (?1 IS NULL OR at >= ?1) AND (?2 IS NULL OR actor = ?2)"
            " AND (?3 IS NULL OR action = ?3)"
            " AND (?4 IS NULL OR substr(action, 1, length(?4)) = ?4)"
            " AND seq < ?5 AND seq > ?6 ORDER BY seq DESC LIMIT ?7",
            *(since, user, exact, prefix, _END if before is None else before, behind, limit),
        )
        return [_stored(row) for row in rows]

    def page(
        self,
        *,
        since: int | None = None,
        user: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Page:
        """Return what `entries` does, but look at `LOOKED_AT` entries at most."""
        self.flush()
        top = self._last()["seq"] + 1
        top = top if before is None else min(top, before)
        behind = max(0, top - 1 - LOOKED_AT)
        found = self.entries(
            since=since, user=user, action=action, before=top, behind=behind, limit=limit + 1
        )
        if len(found) > limit:
            return Page(entries=found[:limit], next=found[limit - 1].seq)
        return Page(entries=found, next=behind + 1 if self._reaches(behind, since) else None)

    def _reaches(self, seq: int, since: int | None) -> bool:
        """Whether an entry of this number or a lower one is no older than `since`."""
        # Time may have been set back now and then, so one look at the oldest is not enough.
        row = self._db.row(
            "SELECT min(seq) FROM (SELECT seq FROM audit WHERE at >= ? ORDER BY at LIMIT ?)",
            *(since or 0, LOOKED_AT),
        )
        return row is not None and row[0] is not None and row[0] <= seq

    def verify(self, seen: tuple[int, str] | None = None) -> Verdict:
        """
        Check every row against the one before it.

        Args:
            seen: Number and digest of an entry, as an earlier check returned
                them. Nobody can have rewritten the log up to there if it still
                has that digest.
        """
        self.flush()
        seq, digest, found, fault = 0, b"", -1, None
        for row in self._db.iterate(_WHOLE):  # one statement: nobody writes in between
            if found >= 0:
                fault = fault or _fault(row, seq, digest)
            elif row["at"] != -1:
                fault = "the start of the log is missing"
            seq, digest, found = int(row["seq"]), bytes(row["hash"]), found + 1
            fault = fault or _unlike(seen, seq, digest)
        if found < 0:
            fault = "the start of the log is missing"
        elif seen is not None and seen[0] > seq:
            fault = fault or f"entry {seen[0]}, which was seen, is not there"
        return Verdict(entries=max(0, found), seq=seq, digest=digest.hex(), fault=fault)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code == sqlite3.SQLITE_BUSY and _running_loop() is not None


def _fault(row: sqlite3.Row, seq: int, digest: bytes) -> str | None:
    if row["seq"] != seq + 1:
        return f"behind entry {seq} something is missing"
    if _digest(digest, tuple(row)[:-1]) != row["hash"]:
        return f"entry {row['seq']} is not as it was written"
    return None


def _unlike(seen: tuple[int, str] | None, seq: int, digest: bytes) -> str | None:
    if seen is not None and seen[0] == seq and seen[1].lower() != digest.hex():
        return f"the log up to entry {seq} is not the one that was seen"
    return None


def _texts(entry: AuditEntry) -> tuple[str, ...]:
    detail = {_short(key): _short(value) for key, value in sorted(entry.detail.items())}
    return (
        _short(entry.action),
        _short(entry.actor),
        _short(entry.target),
        entry.outcome,
        _short(entry.address),
        msgspec.json.encode(detail).decode(),
    )


def _short(text: str) -> str:
    return text.encode("utf-8", "replace")[:FIELD_BYTES].decode("utf-8", "ignore")


def _digest(before: bytes, row: tuple[object, ...]) -> bytes:
    return hashlib.sha256(before + msgspec.json.encode(row)).digest()


def _stored(row: sqlite3.Row) -> StoredEntry:
    return StoredEntry(
        seq=row["seq"],
        at=row["at"],
        action=row["action"],
        actor=row["actor"],
        target=row["target"],
        outcome=row["outcome"],
        address=row["address"],
        detail=msgspec.json.decode(row["detail"], type=dict[str, str]),
    )
