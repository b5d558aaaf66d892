"""
The SQLite file that holds logs and records, and everything around it.

One connection writes, in one place at a time: on the loop's own thread where a
commit need not reach the disk, in a thread of its own where it must. Each step
of `sqlite3` gives up the interpreter lock and waits for it to come back, so
beside a busy loop a thread is far slower than its statements; hence also one
statement per commit wherever possible.

A second connection checkpoints and looks for old messages, in a thread. A
third one reads, on the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import structlog

from trunkline.errors import ConfigError
from trunkline.history._files import Lock, Trace, TraceFile, boot_id, create_private, sync_folder
from trunkline.ids import random_id

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

APPLICATION_ID = 0x54_4C_6F_67  # "TLog"
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""What is committed between two checkpoints, about."""
CHECKPOINT_PAGES = 8_192
"""Pages in the write-ahead log past which the writer itself checkpoints."""
PAGE = 8192
"""Bytes of a page in a new file. Logs grow side by side, which splits pages: large ones less often."""
ROWS = 128
"""Entries in one statement: few enough for every SQLite's limit on variables."""

MIGRATIONS = (
    (
        "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), commits INTEGER NOT NULL,"
        " generation TEXT NOT NULL, restored INTEGER NOT NULL)",
        "CREATE TABLE logs (id INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT UNIQUE,"
        " epoch TEXT NOT NULL, base INTEGER NOT NULL, head INTEGER NOT NULL,"
        " size INTEGER NOT NULL, checksum INTEGER NOT NULL)",
        "CREATE TABLE entries (place INTEGER PRIMARY KEY, stored_at INTEGER NOT NULL,"
        " checksum INTEGER NOT NULL, commit_number INTEGER, key BLOB NOT NULL,"
        " digest BLOB NOT NULL, body BLOB NOT NULL)",
        "CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,"
        " checksum INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID",
        # Counts an append in its own statement: BEGIN and COMMIT would be two more.
        "CREATE TRIGGER count_commit AFTER INSERT ON entries WHEN new.commit_number IS NOT NULL"
        " BEGIN UPDATE meta SET commits = new.commit_number; END",
    ),
)
"""Statements that lead from one version of the schema to the next."""


_RESTORE = "restore a backup in its place, or move it away to begin with an empty log"


class Damage(sqlite3.DatabaseError):
    """What was read is not what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def is_full(error: sqlite3.Error) -> bool:
    """Whether there was no room for what was to be written."""
    return getattr(error, "sqlite_errorcode", None) in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite found the file to be broken."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG)


def _connection(path: Path) -> sqlite3.Connection:
    # A short timeout: nobody else should hold the file, and the loop may be waiting.
    db = sqlite3.connect(path, timeout=0.25, isolation_level=None, check_same_thread=False)
    # A flipped bit can make text of bytes, and text that is not UTF-8 could not be read.
    db.text_factory = bytes
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA temp_store = memory")
    return db


def _migrate(db: sqlite3.Connection, version: int) -> None:
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")


def _schema(db: sqlite3.Connection) -> list[tuple[bytes, ...]]:
    return db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    ).fetchall()


def _insert_entries(rows: int) -> str:
    return f"INSERT INTO entries VALUES {','.join(['(?,?,?,?,?,?,?)'] * rows)}"


_INSERTS = [_insert_entries(rows) for rows in range(ROWS + 1)]


class Database:
    """
    One database file, held by one process.

    Args:
        path: The file; its folder is made if need be.
        durability: What a commit survives: ``process`` a kill, ``disk`` a power loss.
        failpoint: Called with ``before-commit``, ``after-commit``, ``after-count``,
            ``checkpoint`` and ``backup`` when it gets there; for tests that kill the
            process.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Literal["process", "disk"] = "process",
        failpoint: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.durability: Literal["process", "disk"] = durability
        self.generation = ""
        """Part of every epoch; a new one when acknowledged commits may be gone."""
        self.before_checkpoint: Callable[[], None] | None = None
        """Called where writing is allowed, before a checkpoint begins."""
        self._failpoint = failpoint or (lambda point: None)
        self._users = 0
        self._commits = 0
        self._begun = 0
        self._settled = 0
        self._covered = 0
        self._fresh = 0
        self._wal_pages = 0
        self._checkpoint: Future[None] | None = None

    # Beginning and end.

    async def open(self) -> None:
        """
        Begin, if no other user of this object has; call `close` as often.

        Raises:
            ConfigError: Another gateway holds the file, or it cannot be used.
        """
        if not self._users:
            self._open()
        self._users += 1

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ExitStack() as undo:
                self._lock = Lock(self._beside("lock"), self.path)
                undo.callback(self._lock.release)
                self._trace = TraceFile(self._beside("trace"))
                undo.callback(self._trace.close)
                os.close(create_private(self.path))
                self._connect(undo)
                self._begin_trace()
                undo.pop_all()
        except sqlite3.Error as error:
            raise self.unusable(error) from error
        except OSError as error:
            raise ConfigError(
                f"cannot use {self.path}: {error}; check its folder's rights and free room"
            ) from error
        self._aside = ThreadPoolExecutor(1, "trunkline-checkpoint")
        self._thread = ThreadPoolExecutor(1, "trunkline-log") if self.durability == "disk" else None

    def unusable(self, error: sqlite3.Error) -> ConfigError:
        """Say that the file cannot be used, and what to do."""
        remedy = "free some room" if is_full(error) else _RESTORE
        return ConfigError(f"cannot use {self.path}: {error}; {remedy}")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _connect(self, undo: ExitStack) -> None:
        self.writer = undo.enter_context(closing(_connection(self.path)))
        self.writer.execute(f"PRAGMA page_size = {PAGE}")
        if self.writer.execute("PRAGMA journal_mode = wal").fetchone() != (b"wal",):
            raise ConfigError(f"the file system of {self.path} cannot hold a write-ahead log")
        self._migrate()
        level = 2 if self.durability == "disk" else 1
        self.writer.execute(f"PRAGMA synchronous = {level}")
        if self.writer.execute("PRAGMA synchronous").fetchone() != (level,):
            raise ConfigError(f"this SQLite ignores PRAGMA synchronous for {self.path}")
        self.reader = undo.enter_context(closing(_connection(self.path)))
        self._side = undo.enter_context(closing(_connection(self.path)))

    def _migrate(self) -> None:
        db = self.writer
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise ConfigError(f"{self.path} is not a log of Trunkline: choose another data_dir")
        if version < 0:
            raise Damage("its version is damaged")
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"{self.path} was written by a newer Trunkline (schema {version}, this one "
                f"knows {len(MIGRATIONS)}): upgrade, or restore a backup from before"
            )
        _migrate(db, version)
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as pattern:
            pattern.text_factory = bytes
            _migrate(pattern, 0)
            if _schema(db) != _schema(pattern):
                raise Damage("its schema is damaged")
        db.execute("INSERT OR IGNORE INTO meta VALUES (1, 0, ?, 0)", (random_id(),))

    def _begin_trace(self) -> None:
        """Judge what the last user left behind, and begin a trace of our own."""
        row = self.writer.execute("SELECT commits, generation, restored FROM meta").fetchone()
        self._commits, generation, restored = row
        if not isinstance(self._commits, int) or not isinstance(generation, bytes):
            raise Damage("its meta table is damaged")
        self.generation = generation.decode(errors="replace")
        boot = boot_id()
        reason = self._suspicion(self._trace.left, bool(restored), boot)
        if reason:
            self.generation = random_id()
            self.writer.execute("UPDATE meta SET generation = ?, restored = 0", (self.generation,))
            log.warning("every session gets a new epoch", file=str(self.path), reason=reason)
        self._trace.write(Trace(self._commits, False, self.durability == "disk", boot))
        sync_folder(self.path)

    def _suspicion(self, left: Trace | None, restored: bool, boot: str) -> str | None:
        """Return why acknowledged commits may be gone, if they may."""
        if restored:
            return "it was restored from a backup"
        if left is None:
            return "the count of its commits is missing or damaged" if self._commits else None
        if self._commits < left.commits:
            return f"{left.commits - self._commits} commits are missing"
        if not left.clean and not left.disk and left.boot != boot:
            return 'the machine stopped unexpectedly while durability was "process"'
        return None

    async def close(self) -> None:
        """Let go when the last user does; everything is on the disk then."""
        self._users -= 1
        if self._users:
            return
        if self._checkpoint is not None:
            await asyncio.wait([asyncio.wrap_future(self._checkpoint)])
        await self.write(self._finish)
        self._aside.shutdown()
        if self._thread is not None:
            self._thread.shutdown()
        self._lock.release()

    def _finish(self) -> None:
        clean = False
        try:
            self.writer.execute("PRAGMA synchronous = FULL")
            (busy, _, _) = self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            clean = not busy
        except sqlite3.Error as error:
            # What was acknowledged is still in the write-ahead log.
            log.warning("the log could not be tidied up", file=str(self.path), error=str(error))
        for db in (self.reader, self._side, self.writer):
            db.close()
        self._trace.write(Trace(self._commits, clean, self.durability == "disk", boot_id()))
        self._trace.close()

    # Writing.

    async def write(self, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function where writing is allowed; does not suspend at ``process``."""

        def call() -> T:
            try:
                return run(*args, **kwargs)
            finally:
                if self._fresh >= CHECKPOINT_BYTES or self._wal_pages > CHECKPOINT_PAGES:
                    self.checkpoint()

        if self._thread is None:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def append(self, values: list[Any], size: int) -> None:
        """
        Commit entries, all or none; call it through `write`.

        Args:
            values: Seven for each row of ``entries``, one row after the other.
            size: Bytes that they hold, about.

        Raises:
            sqlite3.Error: Nothing was stored.
        """
        rows = len(values) // 7
        values[-4] = self._commits + 1
        self._begun += 1
        self._failpoint("before-commit")
        if rows <= ROWS:
            self.writer.execute(_INSERTS[rows], values)
        else:
            self._in_transaction(_insert_all, values)
        self._committed(size + PAGE)

    def transact(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """
        Commit what a function does, all or nothing; call it through `write`.

        Raises:
            sqlite3.Error: Nothing was stored.
        """
        self._begun += 1
        self._failpoint("before-commit")
        number = self._commits + 1

        def counted(db: sqlite3.Connection) -> T:
            result = run(db)
            db.execute("UPDATE meta SET commits = ?", (number,))
            return result

        result = self._in_transaction(counted)
        self._committed(4 * PAGE)
        return result

    def _in_transaction(self, run: Callable[..., T], *args: Any) -> T:
        db = self.writer
        db.execute("BEGIN IMMEDIATE")
        try:
            result = run(db, *args)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def _committed(self, size: int) -> None:
        self._failpoint("after-commit")
        self._commits += 1
        self._settled = self._begun
        self._trace.count(self._commits)
        self._failpoint("after-count")
        self._fresh += size

    # Checkpoints.

    def checkpoint(self) -> None:
        """
        Begin to move commits from the write-ahead log into the database proper.

        SQLite before 3.51.3 can lose commits if a checkpoint begins when there is
        nothing to move, just as a commit starts the write-ahead log anew. So none
        begins before a commit was made that began after the last one ended.
        """
        if self._settled <= self._covered or (self._checkpoint and not self._checkpoint.done()):
            return
        self._fresh = 0
        try:
            if self.before_checkpoint is not None:
                self.before_checkpoint()
        except sqlite3.Error as error:
            # Not the fault of the commit that made the checkpoint due.
            if not is_full(error):
                log.warning("bookkeeping failed", file=str(self.path), error=str(error))
        if self._wal_pages > CHECKPOINT_PAGES:
            # Commits outrun the thread; here none can come in between.
            self._move(self.writer)
        else:
            self._checkpoint = self._aside.submit(self._move, self._side)

    def _move(self, db: sqlite3.Connection) -> None:
        self._failpoint("checkpoint")
        begun = self._begun
        try:
            _, pages, moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            # With nothing left to move, the next commit writes from the start again.
            self._wal_pages = 0 if pages == moved and self._begun == begun else pages
        except sqlite3.Error as error:
            log.warning("checkpoint failed", file=str(self.path), error=str(error))
        self._covered = self._begun

    # Beside the writer.

    async def aside(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function that reads much, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, run, self._side)

    async def backup(self, path: str | Path) -> None:
        """
        Copy the database as it is at one moment, while it is in use.

        A gateway that starts with the copy gives every session a new epoch.

        Raises:
            FileExistsError: There is a file at `path`.
        """
        await asyncio.to_thread(copy_database, self.path, Path(path), self._failpoint)


def copy_database(
    source: Path, target: Path, failpoint: Callable[[str], None] = lambda name: None
) -> None:
    """
    Copy a database as it is at one moment, whoever uses it meanwhile.

    Raises:
        FileExistsError: There is a file at `target`.
        FileNotFoundError: There is none at `source`.
        sqlite3.Error: It cannot be read, or the copy not be written.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}")
    if target.exists():
        raise FileExistsError(f"there is a {target}")
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    os.close(create_private(partial))
    try:
        with closing(_connection(source)) as original, closing(_connection(partial)) as copy:
            original.backup(copy)
            copy.execute("PRAGMA journal_mode = delete")
            copy.execute("PRAGMA synchronous = FULL")
            copy.execute("UPDATE meta SET restored = 1")
        failpoint("backup")
        os.link(partial, target)  # unlike a rename, it replaces nothing
    finally:
        partial.unlink()
    sync_folder(target)


def _insert_all(db: sqlite3.Connection, values: Sequence[Any]) -> None:
    for start in range(0, len(values), ROWS * 7):
        part = values[start : start + ROWS * 7]
        db.execute(_INSERTS[len(part) // 7], part)
