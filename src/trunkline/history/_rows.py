"""The rows of session logs: how they are laid out, checked and found."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from zlib import crc32

from trunkline.history import Entry
from trunkline.history._database import ROWS, Damage, is_damage
from trunkline.ids import random_id

SEQ_BITS = 36
SEQ_MAX = (1 << SEQ_BITS) - 1

PAGE_ROWS = 256
PAGE_BYTES = 512 * 1024
"""What is checked or deleted in one go, so that the loop is not held up for long."""

_PAGE = (
    "SELECT place, stored_at, checksum, key, digest, body FROM entries"
    " WHERE place > ? AND place <= ? ORDER BY place LIMIT ?"
)
_FIRST = "SELECT place FROM entries WHERE place > ? AND place <= ? ORDER BY place LIMIT 1"
_LAST = "SELECT place FROM entries WHERE place > ? AND place <= ? ORDER BY place DESC LIMIT 1"
_YOUNG = (
    "SELECT place FROM entries WHERE place > ? AND place <= ? AND stored_at >= ?"
    " ORDER BY place LIMIT 1"
)
_SIZES = (
    "SELECT place, length(body) FROM entries WHERE place > ? AND place <= ? ORDER BY place LIMIT ?"
)
_OLD = (
    "SELECT session FROM logs WHERE session IS NOT NULL AND (SELECT stored_at FROM entries"
    f" WHERE place > (id << {SEQ_BITS}) AND place <= (id << {SEQ_BITS} | {SEQ_MAX})"
    " ORDER BY place LIMIT 1) < ?"
)


class Row(NamedTuple):
    """One message in the file."""

    place: int
    stored_at: int
    checksum: int
    key: bytes
    digest: bytes
    body: bytes

    @property
    def seq(self) -> int:
        """The message's number."""
        return self.place & SEQ_MAX


class Log:
    """What is known of one session's log."""

    __slots__ = (
        "base",
        "dirty",
        "end",
        "floor",
        "head",
        "mark",
        "number",
        "origin",
        "salt",
        "session",
        "size",
    )

    def __init__(
        self, session: str, number: int, mark: str, base: int, head: int, size: int
    ) -> None:
        self.session = session
        self.salt = crc32(session.encode())
        self.number = number
        """The log's own number, never used again."""
        self.origin = number << SEQ_BITS
        """Plus ``seq``: the key of a row, so that a log's rows lie together."""
        self.mark = mark
        """This log's part of the epoch."""
        self.base = base
        """The last message that is not kept."""
        self.floor = base
        """The last message that is deleted; those up to `base` will be."""
        self.head = head
        self.end = head
        """`head` as the last append that returned left it."""
        self.size = size
        """Bytes of frames in the file, about."""
        self.dirty = False
        """Whether the file does not know all of this."""

    def row(self) -> tuple[int, str, str, int, int, int, int]:
        """Return this log's row in the file; the last value is its checksum."""
        fields = (self.number, self.session, self.mark, self.base, self.head, self.size)
        return (*fields, crc32(repr(fields).encode()))

    def entry_row(self, place: int, now: int, entry: Entry) -> tuple[Any, ...]:
        """Return a new message's row in the file."""
        key, digest, body = entry.key, entry.digest, entry.body
        proof = checksum(self.salt, place, key.encode(), digest, body)
        return (place, now, proof, None, key, digest, body)


def checksum(salt: int, place: int, key: bytes, digest: bytes, body: bytes) -> int:
    """Return the checksum of a message; `salt` is that of the session's id."""
    return crc32(body, crc32(digest, crc32(b"%d %s\0" % (place, key), salt)))


def _intact(row: Sequence[Any], salt: int) -> bool:
    place, _, expected, key, digest, body = row
    try:
        return bool(expected == checksum(salt, place, key, digest, body))
    except TypeError:
        return False  # a flipped bit made another type of a value


def read_page(
    db: sqlite3.Connection, log: Log, after: int, end: int, limit: int, max_bytes: int
) -> tuple[list[Row], bool]:
    """
    Read messages that follow `after` one by one and are intact.

    Returns:
        At most `limit` messages and about `max_bytes` bytes, at least one where
        there is one; and whether all that should be there was there.
    """
    found: list[Row] = []
    if after >= end:
        return found, True
    place = log.origin + after
    try:
        with closing(db.execute(_PAGE, (place, log.origin + end, limit))) as rows:
            for row in rows:
                place += 1
                if row[0] != place or not _intact(row, log.salt):
                    return found, False
                found.append(Row._make(row))
                max_bytes -= len(row[5])
                if max_bytes <= 0:
                    return found, True
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return found, False
    return found, len(found) == min(limit, end - after)


def last_intact(db: sqlite3.Connection, log: Log) -> int:
    """Return the last message up to which all kept ones are there and intact."""
    last = log.base
    while True:
        rows, _ = read_page(db, log, last, SEQ_MAX, PAGE_ROWS, PAGE_BYTES)
        if not rows:
            return last
        last = rows[-1].seq


def first_row(db: sqlite3.Connection, log: Log) -> int | None:
    """Return the ``seq`` of the first row in the file, kept or not."""
    row = db.execute(_FIRST, (log.origin, log.origin + SEQ_MAX)).fetchone()
    return None if row is None else row[0] - log.origin


def last_row(db: sqlite3.Connection, log: Log) -> int | None:
    """Return the ``seq`` of the last row in the file."""
    row = db.execute(_LAST, (log.origin, log.origin + SEQ_MAX)).fetchone()
    return None if row is None else row[0] - log.origin


def first_young(db: sqlite3.Connection, log: Log, cutoff: int) -> int | None:
    """Return the ``seq`` of the first kept message stored at `cutoff` or later."""
    span = (log.origin + log.base, log.origin + log.head, cutoff)
    row = db.execute(_YOUNG, span).fetchone()
    return None if row is None else row[0] - log.origin


def sessions_with_old(db: sqlite3.Connection, cutoff: int) -> list[str]:
    """Return the sessions whose first message was stored before `cutoff`."""
    return [row[0].decode(errors="replace") for row in db.execute(_OLD, (cutoff,)).fetchall()]


def measure(db: sqlite3.Connection, after: int, end: int, max_bytes: int) -> tuple[int | None, int]:
    """Return the place of the last of a few rows with about `max_bytes`, and their bytes."""
    last, total = None, 0
    for place, size in db.execute(_SIZES, (after, end, PAGE_ROWS)).fetchall():
        last, total = place, total + size
        if total >= max_bytes:
            break
    return last, total


def delete_rows(db: sqlite3.Connection, after: int, end: int) -> None:
    """Delete the rows whose places are above `after` and up to `end`."""
    db.execute("DELETE FROM entries WHERE place > ? AND place <= ?", (after, end))


def read_log(db: sqlite3.Connection, session: str) -> tuple[Log | None, bool]:
    """Read what the file says of a log; return it and whether its checksum fits."""
    row = db.execute(
        "SELECT id, epoch, base, head, size, checksum FROM logs WHERE session = ?", (session,)
    ).fetchone()
    if row is None:
        return None, True
    number, mark, *numbers, expected = row
    if not isinstance(mark, bytes) or not all(isinstance(n, int) for n in numbers):
        return Log(session, number, "", 0, 0, 0), False
    log = Log(session, number, mark.decode(errors="replace"), *numbers)
    return log, log.row()[-1] == expected


def find_ends(db: sqlite3.Connection, log: Log) -> None:
    """
    Find where a log begins and ends, from what `read_log` returned.

    Raises:
        Damage: Rows are missing at an end, or the last one is not intact.
    """
    first, last = first_row(db, log), last_row(db, log)
    head = log.base if last is None else max(last, log.base)
    floor = head if first is None else first - 1
    if head < log.head or floor > log.base:
        raise Damage("messages are missing")
    log.head = log.end = head
    log.floor = floor
    if not read_page(db, log, max(head - 1, log.base), head, 1, 1)[1]:
        raise Damage("the last message is damaged")


def new_log(db: sqlite3.Connection, session: str, base: int, head: int) -> Log:
    """Add a log, under a number that was never used."""
    mark = random_id()
    added = db.execute("INSERT INTO logs VALUES (NULL, ?, ?, 0, 0, 0, 0)", (session, mark))
    assert added.lastrowid is not None
    log = Log(session, added.lastrowid, mark, base, head, 0)
    save_logs(db, [log])
    return log


def save_logs(db: sqlite3.Connection, logs: Sequence[Log]) -> None:
    """Write down what is known of logs that still belong to their sessions."""
    for start in range(0, len(logs), ROWS):
        part = logs[start : start + ROWS]
        values = ",".join(["(?,?,?,?,?,?,?)"] * len(part))
        db.execute(
            "UPDATE logs SET base = column4, head = column5, size = column6, checksum = column7"
            f" FROM (VALUES {values}) WHERE id = column1 AND session = column2",
            [value for log in part for value in log.row()],
        )


def retire_log(db: sqlite3.Connection, number: int) -> None:
    """Take a log away from its session; its messages remain to be deleted."""
    db.execute("UPDATE logs SET session = NULL WHERE id = ?", (number,))


def retired_logs(db: sqlite3.Connection) -> list[int]:
    """Return the numbers of the logs whose messages remain to be deleted."""
    return [number for (number,) in db.execute("SELECT id FROM logs WHERE session IS NULL")]


def forget_log(db: sqlite3.Connection, number: int) -> None:
    """Delete the last trace of a retired log."""
    db.execute("DELETE FROM logs WHERE id = ? AND session IS NULL", (number,))


def copy_log(db: sqlite3.Connection, old: Log, head: int) -> None:
    """Give a session another log, which holds what its old one has up to `head`."""
    db.execute("REINDEX logs")
    retire_log(db, old.number)
    new = new_log(db, old.session, old.base, head)
    after = old.base
    while after < head:
        rows, _ = read_page(db, old, after, head, PAGE_ROWS, PAGE_BYTES)
        if not rows:
            raise Damage("a message was lost while the log was repaired")
        _insert_copies(db, rows, old, new)
        after = rows[-1].seq
    save_logs(db, [new])


def _insert_copies(db: sqlite3.Connection, rows: Iterable[Row], old: Log, new: Log) -> None:
    for place, stored_at, _, key, digest, body in rows:
        place += new.origin - old.origin
        values = (place, stored_at, checksum(new.salt, place, key, digest, body), key, digest, body)
        db.execute("INSERT INTO entries VALUES (?, ?, ?, NULL, ?, ?, ?)", values)
        new.size += len(body)
