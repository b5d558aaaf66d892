"""
``auth.db``: what the gateway and its command line both write.

Credentials, devices and the audit log live in one SQLite file beside the
sessions' logs, but apart from them: the gateway holds those alone, while this
file is changed from the command line under a running gateway. Whoever keeps
rows here asks `AuthDatabase.changed` now and then.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from trunkline.errors import ConfigError

AUTH_FILE = "auth.db"
"""The file's name in the data folder."""

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that is writing."""


class AuthDatabase:
    """
    The open file. Not for several threads.

    Writes are small and rare, so they are done on the caller's thread.

    Args:
        path: The file, made for its owner alone if there is none; absent: a
            database in memory, gone with this object.

    Raises:
        ConfigError: The file is damaged, cannot be used, or others may read it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        try:
            if path is not None:
                _prepare(path)
            self._db = sqlite3.connect(
                path or ":memory:", timeout=BUSY_TIMEOUT, isolation_level=None
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._check()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot use {path}: {error}") from None
        self._seen = self.version()

    def _check(self) -> None:
        # A damaged file must never be read as one without revocations.
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise ConfigError(f"{self.path} is damaged ({found}): restore it from a backup")

    def create(self, script: str) -> None:
        """Make the tables of a module that keeps rows here; ``IF NOT EXISTS`` throughout."""
        self._db.executescript(script)
        self._seen = self.version()

    def rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Return what a query finds."""
        return self._db.execute(sql, values).fetchall()

    def iterate(self, sql: str, *values: object) -> Iterator[sqlite3.Row]:
        """Return what a query finds, row by row, as it was when the query began."""
        return self._db.execute(sql, values)

    def row(self, sql: str, *values: object) -> sqlite3.Row | None:
        """Return the first row that a query finds."""
        found: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return found

    def write(self, sql: str, *values: object) -> int:
        """Change rows, on the disk when this returns; returns how many."""
        return self._db.execute(sql, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do several writes, all or none, with nobody else writing between them."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise

    def changed(self) -> bool:
        """Whether another process has written since this was asked last."""
        version = self.version()
        changed, self._seen = version != self._seen, version
        return changed

    def version(self) -> int:
        """Return a number that is another one whenever another process has written."""
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        return version

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        self._db.close()


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others may read {path}: run chmod 600 {path}")


def copy_auth(source: Path, target: Path) -> None:
    """
    Copy the file as it is at one moment, whoever writes to it meanwhile.

    Args:
        source: The file.
        target: A new file in a folder for its owner alone.

    Raises:
        ConfigError: The file is damaged, or cannot be copied.
    """
    if damage := damage_of(source):
        raise ConfigError(f"{source} is damaged ({damage})")
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with (
            closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT)) as original,
            closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
            copy.execute("PRAGMA journal_mode = delete")  # one file, and not three
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be copied: {error}") from None


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a file of SQLite, without changing it; None if nothing is."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)
        ) as db:
            found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    return None if found == "ok" else found
