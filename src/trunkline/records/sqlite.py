"""Records in the SQLite file that also holds the session logs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, Protocol, TypeVar
from zlib import crc32

import structlog

from trunkline.errors import ErrorCode, GatewayError
from trunkline.records import Conflict, Record

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_SELECT = "SELECT key, value, version, checksum FROM records WHERE kind = ?"
_PUT = (
    "INSERT INTO records (kind, key, version, checksum, value) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET"
    " version = excluded.version, checksum = excluded.checksum, value = excluded.value"
)


class Database(Protocol):
    """What this module needs of the file: `trunkline.history.sqlite` has it."""

    reader: sqlite3.Connection
    """For reading on the loop's thread; gives text as bytes."""

    async def open(self) -> None:
        """Begin, if no other user has."""

    async def close(self) -> None:
        """Let go, when the last user does."""

    async def write(self, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function where writing is allowed."""

    def transact(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Commit what a function does, all or nothing."""


class SqliteRecords:
    """
    Small facts in an SQLite file, at the durability of its log.

    A record that was damaged is never returned and never replaced by a new one.

    Args:
        database: The file: ``SqliteHistory(...).database``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened = False

    async def open(self) -> None:
        """Begin; raises `ConfigError` when the file cannot be used."""
        await self._database.open()
        self._opened = True

    async def close(self) -> None:
        """Let go; a second call does nothing."""
        if self._opened:
            self._opened = False
            await self._database.close()

    async def get(self, kind: str, key: str) -> Record | None:
        """
        Return the record, if there is one.

        Raises:
            GatewayError: It is damaged, or the file cannot be read.
        """
        with _storage_errors():
            return _get(self._database.reader, kind, key)

    async def put(self, kind: str, key: str, value: bytes, expected: int) -> int:
        """
        Write a record at its expected version; see `Records.put`.

        Raises:
            Conflict: The version is another.
            GatewayError: ``STORAGE_FULL``, or the record or file is damaged.
        """

        def put(db: sqlite3.Connection) -> int:
            _check(db, kind, key, expected)
            version = expected + 1
            db.execute(_PUT, (kind, key, version, _checksum(kind, key, version, value), value))
            return version

        with _storage_errors():
            return await self._database.write(self._database.transact, put)

    async def delete(self, kind: str, key: str, expected: int) -> None:
        """
        Delete a record whose version is `expected`.

        Raises:
            Conflict: The version is another.
            GatewayError: ``STORAGE_FULL``, or the record or file is damaged.
        """

        def delete(db: sqlite3.Connection) -> None:
            _check(db, kind, key, expected)
            db.execute("DELETE FROM records WHERE kind = ? AND key = ?", (kind, key))

        with _storage_errors():
            await self._database.write(self._database.transact, delete)

    async def scan(self, kind: str) -> Sequence[Record]:
        """
        Return all records of a kind, by key; damaged ones are left out and logged.

        Raises:
            GatewayError: The file cannot be read.
        """
        found: list[Record] = []
        with _storage_errors():
            rows = self._database.reader.execute(f"{_SELECT} ORDER BY key", (kind,)).fetchall()
        for row in rows:
            record = _record(kind, row)
            if record is None:
                log.error("a record is damaged", kind=kind, key=row[0])
            else:
                found.append(record)
        return found


def _get(db: sqlite3.Connection, kind: str, key: str) -> Record | None:
    row = db.execute(f"{_SELECT} AND key = ?", (kind, key)).fetchone()
    if row is None:
        return None
    record = _record(kind, row)
    if record is None or record.key != key:
        raise sqlite3.DatabaseError(f"the record {kind} {key} is damaged")
    return record


def _record(kind: str, row: tuple[Any, ...]) -> Record | None:
    """Make a record of a row, unless the row is damaged."""
    key, value, version, checksum = row
    try:
        record = Record(key.decode(), value, version)
        intact = checksum == _checksum(kind, record.key, version, value)
    except (AttributeError, TypeError, ValueError):
        return None  # a flipped bit made another type of a value
    return record if intact else None


def _check(db: sqlite3.Connection, kind: str, key: str, expected: int) -> None:
    record = _get(db, kind, key)
    version = record.version if record else 0
    if version != expected:
        raise Conflict(f"{kind} {key} is at version {version}, not {expected}")


def _checksum(kind: str, key: str, version: int, value: bytes) -> int:
    return crc32(value, crc32(repr((kind, key, version)).encode()))


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise GatewayError(
                ErrorCode.STORAGE_FULL, "the gateway has no room", retry_after=5
            ) from error
        log.error("records failed", error=str(error))
        raise GatewayError(ErrorCode.HANDLER_ERROR, "the gateway's records failed") from error
