"""Session logs in an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import structlog

from trunkline.errors import ConfigError
from trunkline.history import (
    Append,
    Bounds,
    Fenced,
    HistoryError,
    Known,
    Outcome,
    Position,
    StorageFull,
    Stored,
)
from trunkline.history import _rows as rows
from trunkline.history._database import Damage, Database, copy_database, is_damage, is_full
from trunkline.history._files import holder_of
from trunkline.history._rows import PAGE_BYTES, PAGE_ROWS, SEQ_BITS, SEQ_MAX, Log
from trunkline.payloads.base import Durability

logger = structlog.get_logger(__name__)

Staged = dict[Log, tuple[int, int]]
"""Where logs will end, and the bytes that they will have grown by."""


def steady_clock() -> Callable[[], float]:
    """Make a clock of seconds since the Unix epoch that jumps of the system's do not move."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()


class SqliteHistory:
    """
    Session logs in one SQLite file, which a single process holds.

    Every message carries a checksum, which is compared whenever it is read: a
    log ends before the first message that was damaged or lost, and goes on from
    there under a new epoch. The limits hold for each session by itself; what is
    beyond them is deleted little by little. Reading takes place on the loop's
    thread, and so does writing at ``process``.

    All methods but `open`, `close` and `backup` raise `HistoryError` when the
    file cannot be read or written.

    Args:
        path: The file; its folder is made if need be.
        durability: ``process``: what was stored survives a kill of the process;
            ``disk``: a power loss too, at the price of waiting for the disk.
        max_messages: Messages kept.
        max_age: Seconds that a message is kept; looked at once in a hundredth of it,
            but at least once an hour.
        max_bytes: Bytes of frames kept, about.
        clock: Seconds since the Unix epoch; must not go backwards.
        failpoint: See `Database`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Literal["process", "disk"] = "process",
        max_messages: int = 10_000,
        max_age: float = 7 * 86_400.0,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] | None = None,
        failpoint: Callable[[str], None] | None = None,
    ) -> None:
        self.durability: Durability = durability
        self.database = Database(path, durability=durability, failpoint=failpoint)
        """The file, for `SqliteRecords` to share."""
        self._max_messages = max_messages
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._slack = max(1, min(max_messages // 16, PAGE_ROWS))
        self._clock = clock or steady_clock()
        self._logs: dict[str, Log] = {}
        self._waste: dict[int, Log | None] = {}
        """By number, logs with messages to delete; None: all of them."""
        self._full = False
        self._wake = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin; raises `ConfigError` when the file cannot be used."""
        await self.database.open()
        try:
            self._waste.update(dict.fromkeys(rows.retired_logs(self.database.reader)))
        except sqlite3.Error as error:
            await self.database.close()
            raise self.database.unusable(error) from error
        self.database.before_checkpoint = self._save
        self._wake.set()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_often())

    async def close(self) -> None:
        """Write what is left and let go; a second call does nothing."""
        if self._sweeper is None:
            return
        sweeper, self._sweeper = self._sweeper, None
        sweeper.cancel()
        await asyncio.wait([sweeper])
        with suppress(sqlite3.Error):  # without it, less damage is noticed later
            await self.database.write(self._save)
        self.database.before_checkpoint = None
        await self.database.close()
        self._logs.clear()
        self._waste.clear()

    async def backup(self, path: str | Path) -> None:
        """
        Copy the file, with the records in it, while it is in use.

        Every session gets a new epoch when a gateway starts with the copy.

        Raises:
            FileExistsError: There is a file at `path`.
        """
        await self.database.backup(path)

    # Adding.

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        """Store entries of several sessions; one outcome per item, in order."""
        outcomes = await self.database.write(self._append, batch)
        for item, outcome in zip(batch, outcomes, strict=True):
            log = self._logs.get(item.session)
            if log is not None and isinstance(outcome, Position):
                log.end = outcome.seq
        if self._waste:
            self._wake.set()
        return outcomes

    def _append(self, batch: Sequence[Append]) -> list[Outcome]:
        values: list[Any] = []
        staged: Staged = {}
        now = int(self._clock() * 1000)
        outcomes = [self._stage(item, now, values, staged) for item in batch]
        if not values:
            return outcomes
        try:
            self.database.append(values, sum(size for _, size in staged.values()))
        except sqlite3.Error as error:
            failure = self._failed(error, staged)
            return [failure if isinstance(o, Position) else o for o in outcomes]
        if self._full:
            self._full = False
            logger.info("the log has room again", file=str(self.database.path))
        for log, (head, size) in staged.items():
            log.head = head
            log.size += size
            log.dirty = True
            self._limit(log)
        return outcomes

    def _stage(self, item: Append, now: int, values: list[Any], staged: Staged) -> Outcome:
        """Add the rows of one item to `values`."""
        try:
            log = self._find(item.session)
        except sqlite3.Error as error:
            return _failure(error)
        if log is None or log in staged or item.expected != (self._epoch(log), log.head):
            return Fenced(f"the log of {item.session} does not end at {item.expected}")
        place = log.origin + log.head
        size = 0
        for entry in item.entries:
            place += 1
            values += log.entry_row(place, now, entry)
            size += len(entry.body)
        staged[log] = (place - log.origin, size)
        return Position(item.expected.epoch, place - log.origin)

    def _failed(self, error: sqlite3.Error, staged: Staged) -> HistoryError:
        failure = _failure(error)
        if not isinstance(failure, StorageFull):
            logger.error("append failed", file=str(self.database.path), error=str(error))
            for log in staged:
                self._logs.pop(log.session, None)  # to be read anew
            return failure
        if not self._full:
            self._full = True
            logger.error("the log has no room", file=str(self.database.path))
        self.database.checkpoint()  # which may make some
        return failure

    # Reading.

    async def read(self, session: str, after: int, limit: int, max_bytes: int) -> Sequence[Stored]:
        """Read messages with ``seq > after``, oldest first; see `History.read`."""
        with _storage_errors():
            page = await self._page(session, after, limit, max_bytes)
        return [Stored(row.seq, row.body) for row in page]

    async def ids(self, session: str) -> Sequence[Known]:
        """Return the dedupe keys of the retained log, oldest first."""
        found: list[Known] = []
        with _storage_errors():
            while page := await self._page(session, found[-1].seq if found else 0):
                found += [Known(row.key.decode(), row.digest, row.seq) for row in page]
                await asyncio.sleep(0)
        return found

    async def _page(
        self, session: str, after: int, limit: int = PAGE_ROWS, max_bytes: int = PAGE_BYTES
    ) -> list[rows.Row]:
        """Read kept messages; where some are damaged or missing, end the log before them."""
        while True:
            log = await self._known(session)
            if log is None:
                return []
            start = max(after, log.base)
            page, whole = rows.read_page(
                self.database.reader, log, start, log.end, limit, max_bytes
            )
            if whole:
                return page
            if log.base <= start and self._logs.get(session) is log:
                await self.database.write(self._repair, session, log.number)
                return page
            # Not damaged: another thread deleted them in this very moment.

    async def bounds(self, session: str) -> Bounds:
        """Return what the log holds; an unknown session gets an epoch and is empty."""
        with _storage_errors():
            return await self.database.write(self._bounds, session)

    def _bounds(self, session: str) -> Bounds:
        log = self._find(session)
        if log is None:
            log = self.database.transact(lambda db: rows.new_log(db, session, 0, 0))
            self._logs[session] = log
        self._expire(log)
        log.end = log.head  # an append that was cancelled may have moved it
        return Bounds(self._epoch(log), log.base + 1, log.head)

    def _epoch(self, log: Log) -> str:
        return f"{self.database.generation}.{log.mark}"

    async def _known(self, session: str) -> Log | None:
        """Return what is known of a log; only who may write reads it from the file."""
        log = self._logs.get(session)
        if log is None:
            log = await self.database.write(self._find, session)
        return log

    def _find(self, session: str) -> Log | None:
        """Return what is known of a log, or read it from the file."""
        log = self._logs.get(session)
        if log is None:
            try:
                log = self._load(session)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                self._repair(session)
                log = self._load(session)
            if log is not None:
                self._logs[session] = log
                self._limit(log)
        return log

    def _load(self, session: str) -> Log | None:
        log, sound = rows.read_log(self.database.writer, session)
        if log is not None:
            if not sound:
                raise Damage("what the file says of the log is damaged")
            rows.find_ends(self.database.writer, log)
        return log

    def _repair(self, session: str, number: int | None = None) -> None:
        """
        End a log before its first damaged or missing message, under a new epoch.

        Args:
            number: The log that is meant, if the session has another one by now.
        """
        db = self.database.writer
        log, sound = rows.read_log(db, session)
        if log is None or number not in (None, log.number):
            return
        cached = self._logs.get(session)
        if not sound:
            log.base = (rows.first_row(db, log) or 1) - 1
        elif cached is not None:
            log.base = max(log.base, cached.base)
        kept = rows.last_intact(db, log)
        self._logs.pop(session, None)
        self.database.transact(lambda db: rows.copy_log(db, log, kept))
        self._waste[log.number] = None
        logger.warning(
            "a log is damaged: it ends before the damage, under a new epoch",
            file=str(self.database.path),
            session=session,
            kept=kept - log.base,
        )

    # Deleting.

    async def trim(self, session: str, before: int) -> None:
        """Delete messages with ``seq < before``; numbering goes on as it was."""
        with _storage_errors():
            await self.database.write(self._trim, session, before)
        self._wake.set()

    def _trim(self, session: str, before: int) -> None:
        log = self._find(session)
        if log is not None:
            self._drop(log, min(before - 1, log.head))
            self.database.transact(lambda db: rows.save_logs(db, [log]))

    async def delete(self, session: str) -> None:
        """Delete the log; if the session comes again, its epoch is another."""
        with _storage_errors():
            await self.database.write(self._delete, session)
        self._wake.set()

    def _delete(self, session: str) -> None:
        log = self._find(session)
        if log is not None:
            self.database.transact(lambda db: rows.retire_log(db, log.number))
            del self._logs[session]
            self._waste[log.number] = None

    def _drop(self, log: Log, base: int) -> None:
        """Stop keeping messages up to `base`; deleting them comes later, many at a time."""
        if base > log.base:
            log.base = base
            log.dirty = True
            self._waste[log.number] = log

    def _limit(self, log: Log) -> None:
        """Stop keeping what is too much."""
        log.base = max(log.base, log.head - self._max_messages)
        if log.base - log.floor >= self._slack or log.size > self._max_bytes:
            self._waste[log.number] = log

    def _expire(self, log: Log) -> None:
        """Stop keeping what is too old."""
        young = rows.first_young(self.database.writer, log, self._cutoff())
        self._drop(log, log.head if young is None else young - 1)

    def _cutoff(self) -> int:
        return int((self._clock() - self._max_age) * 1000)

    async def _sweep_often(self) -> None:
        """Delete what is beyond the limits, as long as the store is open."""
        loop = asyncio.get_running_loop()
        pause = max(1.0, min(self._max_age / 100, 3600.0))
        due = loop.time() + pause
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                due = loop.time() + pause
                await self._try(self.sweep())
            else:
                self._wake.clear()
                await self._try(self._clear_waste())

    async def _try(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StorageFull:
            pass  # said already; tried again at the next append
        except HistoryError as error:
            logger.warning("old messages cannot be deleted", error=str(error))

    async def sweep(self) -> None:
        """Delete what is beyond the limits; happens by itself too."""
        with _storage_errors():
            cutoff = self._cutoff()
            old = await self.database.aside(lambda db: rows.sessions_with_old(db, cutoff))
            for session in old:
                await self.database.write(self._expire_session, session)
                await asyncio.sleep(0)
            await self._clear_waste()

    def _expire_session(self, session: str) -> None:
        log = self._find(session)
        if log is not None:
            self._expire(log)
            self._waste[log.number] = log

    async def _clear_waste(self) -> None:
        with _storage_errors():
            for number in list(self._waste):
                more = True
                while more:
                    more = await self.database.write(self._clear_some, number)
                    await asyncio.sleep(0)

    def _clear_some(self, number: int) -> bool:
        """Delete a few messages of a log; return whether to go on with it."""
        if number not in self._waste:
            return False
        log = self._waste[number]
        try:
            more = self._delete_some(number, log) or (log is not None and self._shorten(log))
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            logger.warning("old messages cannot be deleted", log=number, error=str(error))
            more = False
        if not more:
            self._waste.pop(number, None)
        return more

    def _delete_some(self, number: int, log: Log | None) -> bool:
        """Delete a few messages that are not kept; return whether there were any."""
        origin = number << SEQ_BITS
        end = origin + (log.base if log else SEQ_MAX)
        last, size = rows.measure(self.database.writer, origin, end, PAGE_BYTES)
        if last is None:
            if log is None:
                self.database.transact(lambda db: rows.forget_log(db, number))
            return False

        def delete(db: sqlite3.Connection) -> None:
            rows.delete_rows(db, origin, last)
            if log is not None:
                # Or else, after a kill, the file would seem to have lost them.
                rows.save_logs(db, [log])

        self.database.transact(delete)
        if log is not None:
            log.floor = last - origin
            log.size -= size
            log.dirty = True
        return True

    def _shorten(self, log: Log) -> bool:
        """Stop keeping a few of the oldest messages of a log that takes too many bytes."""
        excess = log.size - self._max_bytes
        if excess <= 0:
            return False
        # Somewhat more than need be, so that this is not done at every append.
        excess = min(excess + self._max_bytes // 16, PAGE_BYTES)
        start, end = log.origin + log.base, log.origin + log.head - 1
        last, _ = rows.measure(self.database.writer, start, end, excess)
        if last is None:
            return False
        self._drop(log, last - log.origin)
        return True

    def _save(self) -> None:
        """
        Write down how far each log goes, before messages leave the write-ahead log.

        There they are guarded by the count of commits. Afterwards a lost last
        message shows only because its log is known to go further.
        """
        logs = list(self._logs.values())
        dirty = [log for log in logs if log.dirty]
        if dirty:
            self.database.transact(lambda db: rows.save_logs(db, dirty))
        for log in logs:
            if not log.dirty and log.number not in self._waste:
                del self._logs[log.session]  # nobody has used it since the last time
            log.dirty = False


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _failure(error) from error


def _failure(error: sqlite3.Error) -> HistoryError:
    if is_full(error):
        return StorageFull("the log has no room")
    return HistoryError(f"the log cannot be used: {error}")


def backup_file(source: Path, target: Path) -> None:
    """
    Copy a log file that a gateway may be using, from another process.

    Every session gets a new epoch when a gateway starts with the copy.

    Raises:
        FileExistsError: There is a file at `target`.
        FileNotFoundError: There is none at `source`.
        ConfigError: The file cannot be read as one of ours.
    """
    try:
        copy_database(source, target)
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be copied: {error}") from error


def holder(path: Path) -> str | None:
    """Return the id of the process that holds a log file at this moment, if one does."""
    return holder_of(path.with_name(f"{path.name}.lock"))
