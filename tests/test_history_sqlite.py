"""The SQLite store beyond the contract: kills, damage, full disks, locks, versions, backups."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from trunkline.errors import ConfigError, ErrorCode, GatewayError
from trunkline.history import Append, Entry, Fenced, Outcome, Position, StorageFull, _database
from trunkline.history._files import Trace, TraceFile
from trunkline.history.sqlite import SqliteHistory
from trunkline.records import Conflict
from trunkline.records.sqlite import SqliteRecords

MUCH = 1 << 30
"""More messages or bytes than any test stores."""


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteHistory]:
    history = SqliteHistory(path, **options)
    await history.open()
    try:
        yield history
    finally:
        await history.close()


async def add(history: SqliteHistory, session: str, *bodies: bytes) -> Position:
    """Append messages to where the log ends."""
    outcome = await try_add(history, session, *bodies)
    assert isinstance(outcome, Position)
    return outcome


async def try_add(history: SqliteHistory, session: str, *bodies: bytes) -> Outcome:
    """Append messages to where the log ends, if that succeeds."""
    bounds = await history.bounds(session)
    entries = [Entry(f"key {n}", hashlib.sha256(b).digest(), b) for n, b in enumerate(bodies)]
    [outcome] = await history.append(
        [Append(session, entries, Position(bounds.epoch, bounds.head))]
    )
    return outcome


async def contents(history: SqliteHistory, session: str) -> dict[int, bytes]:
    """Read a log to its end."""
    return dict(await history.read(session, 0, MUCH, MUCH))


def as_after_kill(path: Path, to: Path) -> Path:
    """Copy the files of a store that is open: what a kill at this moment would leave."""
    to.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        if not file.name.endswith(("-shm", ".lock")):
            shutil.copy(file, to / file.name)
    return to / path.name


def run_sql(path: Path, statement: str, *values: Any) -> None:
    """Change a closed database behind the store's back."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement, values)
    db.close()


def rows_in(history: SqliteHistory) -> int:
    """Count the messages in the file, whether they are kept or not."""
    count: int
    (count,) = history.database.reader.execute("SELECT count(*) FROM entries").fetchone()
    return count


def write_junk(path: Path) -> None:
    """Put a file that is no database where the store's file belongs."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"junk" * 4096)


def flip_bit(path: Path, seed: int) -> None:
    """Change one bit of a file, somewhere."""
    data = bytearray(path.read_bytes())
    position = random.Random(seed).randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def cut_off(path: Path, seed: int) -> None:
    """Cut a file short, somewhere."""
    with path.open("r+b") as file:
        file.truncate(random.Random(seed).randrange(path.stat().st_size))


def run_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Store messages in another process until it kills itself; it prints what is acknowledged."""
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "log.db"


class TestRestart:
    @pytest.mark.parametrize("durability", ["process", "disk"])
    async def test_keeps_messages_ids_and_epoch(self, path: Path, durability: str) -> None:
        """A log goes on after a restart as if there had been none."""
        async with opened(path, durability=durability) as history:
            before = await add(history, "s", b"one", b"two")
            ids = await history.ids("s")

        async with opened(path, durability=durability) as history:
            bounds = await history.bounds("s")
            assert Position(bounds.epoch, bounds.head) == before
            assert await history.ids("s") == ids
            assert await contents(history, "s") == {1: b"one", 2: b"two"}
            assert (await add(history, "s", b"three")).seq == 3

    async def test_keeps_the_numbering_of_an_empty_log(self, path: Path) -> None:
        """A log that was trimmed to nothing does not begin anew."""
        async with opened(path) as history:
            before = await add(history, "s", b"one", b"two")
            await history.trim("s", 3)

        async with opened(path) as history:
            assert await history.bounds("s") == (before.epoch, 3, 2)

    async def test_keeps_records(self, path: Path) -> None:
        """Logs and records share one file and outlive the process together."""
        async with opened(path) as history:
            records = SqliteRecords(history.database)
            await records.open()
            await records.put("kind", "key", b"value", 0)
            await records.close()

        records = SqliteRecords(SqliteHistory(path).database)
        await records.open()
        assert (await records.scan("kind"))[0].value == b"value"
        await records.close()

    async def test_does_not_delete_what_a_kill_left_half_trimmed(
        self, path: Path, tmp_path: Path
    ) -> None:
        """Retention that had just deleted messages is not taken for damage."""
        async with opened(path, max_messages=10) as history:
            for number in range(40):
                await add(history, "s", b"%d" % number)
            await history.sweep()
            before = await history.bounds("s")
            copy = as_after_kill(path, tmp_path / "copy")

        async with opened(copy, max_messages=10) as history:
            assert await history.bounds("s") == before


CHILD = """
import asyncio, os, signal, sys
from trunkline.history import Append, Entry, Position
from trunkline.history.sqlite import SqliteHistory

path, durability, point, hit = sys.argv[1:]
left = int(hit)

def failpoint(name):
    global left
    if name == point:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    history = SqliteHistory(path, durability=durability, failpoint=failpoint)
    await history.open()
    bounds = await history.bounds("s")
    end = Position(bounds.epoch, bounds.head)
    for number in range(1000):
        entry = Entry(f"key {number}", b"d" * 32, b"message %d" % number)
        [end] = await history.append([Append("s", [entry], end)])
        print(end.epoch, end.seq, flush=True)

asyncio.run(main())
"""


class TestKill:
    @pytest.mark.parametrize("durability", ["process", "disk"])
    @pytest.mark.parametrize("point", ["before-commit", "after-commit", "after-count"])
    async def test_loses_nothing_acknowledged(
        self, path: Path, durability: str, point: str
    ) -> None:
        """Whatever moment the process dies at, what it acknowledged is there, and the epoch."""
        child = run_child(str(path), durability, point, "20")
        acks = [line.split() for line in child.stdout.splitlines()]

        async with opened(path, durability=durability) as history:
            bounds = await history.bounds("s")
            found = await contents(history, "s")

        assert child.returncode == -signal.SIGKILL, child.stderr
        assert len(acks) == 18
        assert {epoch for epoch, _ in acks} == {bounds.epoch}
        # The one that was being stored is there or not; nobody was told.
        assert bounds.head in (18, 19)
        assert found == {seq: b"message %d" % (seq - 1) for seq in range(1, bounds.head + 1)}

    async def test_lets_the_next_process_in(self, path: Path) -> None:
        """A lock dies with its holder."""
        run_child(str(path), "process", "before-commit", "1")

        async with opened(path) as history:
            assert (await add(history, "s", b"one")).seq == 1


class TestEpoch:
    async def test_changes_when_commits_are_missing(self, path: Path, tmp_path: Path) -> None:
        """A write-ahead log that lost its end is noticed, although SQLite opens it."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
            await add(history, "s", b"two")
            copy = as_after_kill(path, tmp_path / "copy")
        wal = copy.with_name("log.db-wal")
        with wal.open("r+b") as file:
            file.truncate(wal.stat().st_size - 5000)

        with capture_logs() as logs:
            async with opened(copy) as history:
                bounds = await history.bounds("s")
                found = await contents(history, "s")

        assert bounds.epoch != before.epoch
        assert found == {1: b"one"}
        assert [line["reason"] for line in logs] == ["1 commits are missing"]

    async def test_changes_when_the_count_of_commits_is_missing(self, path: Path) -> None:
        """Without the count nobody can tell whether the log is complete."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
        path.with_name("log.db.trace").unlink()

        async with opened(path) as history:
            bounds = await history.bounds("s")

        assert bounds.epoch != before.epoch
        assert bounds.head == 1

    async def test_changes_when_the_count_of_commits_is_damaged(self, path: Path) -> None:
        """A count that contradicts itself is as good as none."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
        trace = path.with_name("log.db.trace")
        data = bytearray(trace.read_bytes())
        data[9] ^= 4
        trace.write_bytes(data)

        async with opened(path) as history:
            assert (await history.bounds("s")).epoch != before.epoch

    @pytest.mark.parametrize(
        ("clean", "disk", "boot", "kept"),
        [
            (False, False, "another", False),
            (False, True, "another", True),
            (True, False, "another", True),
        ],
    )
    async def test_survives_a_stop_of_the_machine_only_if_promised(
        self, path: Path, clean: bool, disk: bool, boot: str, kept: bool
    ) -> None:
        """After a power loss, messages stored at ``process`` may be gone."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
        trace = TraceFile(path.with_name("log.db.trace"))
        assert trace.left is not None
        trace.write(Trace(trace.left.commits, clean, disk, boot))
        trace.close()

        async with opened(path) as history:
            bounds = await history.bounds("s")

        assert (bounds.epoch == before.epoch) is kept

    async def test_stays_when_nothing_was_ever_stored(self, path: Path) -> None:
        """A first start is no reason for alarm."""
        with capture_logs() as logs:
            async with opened(path):
                pass

        assert logs == []


class TestDamage:
    @pytest.fixture
    async def whole(self, path: Path) -> dict[str, tuple[str, dict[int, bytes]]]:
        """A closed store with some sessions: their epochs and messages."""
        sessions = {}
        async with opened(path) as history:
            for session in ("a", "b", "c"):
                bodies = [b"%s %d " % (session.encode(), n) + b"." * 200 for n in range(40)]
                end = await add(history, session, *bodies)
                sessions[session] = (end.epoch, dict(enumerate(bodies, 1)))
        return sessions

    async def test_of_a_message_ends_its_log_before_it(
        self, path: Path, whole: dict[str, tuple[str, dict[int, bytes]]]
    ) -> None:
        """The messages before a changed one stay, under a new epoch; other sessions' stay."""
        run_sql(path, "UPDATE entries SET body = replace(body, 'b 20', 'B 20')")

        with capture_logs() as logs:
            async with opened(path) as history:
                found = await contents(history, "b")
                bounds = await history.bounds("b")
                other = await history.bounds("a")
                after = await add(history, "b", b"new")
                again = await contents(history, "b")

        epoch, messages = whole["b"]
        assert found == {seq: messages[seq] for seq in range(1, 21)}
        assert bounds.epoch != epoch
        assert (bounds.first, bounds.head) == (1, 20)
        assert after == Position(bounds.epoch, 21)
        assert again == {**found, 21: b"new"}
        assert other.epoch == whole["a"][0]
        assert [(line["session"], line["kept"]) for line in logs] == [("b", 20)]

    @pytest.mark.parametrize(
        ("damage", "kept"),
        [
            ("DELETE FROM entries WHERE CAST(body AS TEXT) LIKE 'b 0 %'", 0),
            ("DELETE FROM entries WHERE CAST(body AS TEXT) LIKE 'b 20 %'", 20),
            ("DELETE FROM entries WHERE CAST(body AS TEXT) LIKE 'b 39 %'", 39),
            ("UPDATE entries SET key = 'another' WHERE CAST(body AS TEXT) LIKE 'b 5 %'", 5),
            ("UPDATE entries SET key = 7 WHERE CAST(body AS TEXT) LIKE 'b 39 %'", 39),
            ("UPDATE logs SET base = 3 WHERE session = 'b'", 40),
            ("UPDATE logs SET epoch = 'x' WHERE session = 'b'", 40),
        ],
    )
    async def test_is_noticed_wherever_it_is(
        self,
        path: Path,
        whole: dict[str, tuple[str, dict[int, bytes]]],
        damage: str,
        kept: int,
    ) -> None:
        """A lost first, middle or last message, another key, another start: all change the epoch."""
        run_sql(path, damage)

        async with opened(path) as history:
            await history.ids("b")
            bounds = await history.bounds("b")
            found = await contents(history, "b")

        epoch, messages = whole["b"]
        assert bounds.epoch != epoch
        assert found == {seq: messages[seq] for seq in range(1, kept + 1)}

    async def test_of_ids_ends_the_log_too(
        self, path: Path, whole: dict[str, tuple[str, dict[int, bytes]]]
    ) -> None:
        """Reading the dedupe keys finds a changed message as well."""
        run_sql(path, "UPDATE entries SET body = replace(body, 'b 20', 'B 20')")

        async with opened(path) as history:
            known = await history.ids("b")
            bounds = await history.bounds("b")

        assert [k.seq for k in known] == list(range(1, 21))
        assert bounds.head == 20

    async def test_found_by_a_reader_fences_the_owner(
        self, path: Path, whole: dict[str, tuple[str, dict[int, bytes]]]
    ) -> None:
        """An owner that has not heard of the damage cannot write behind it."""
        async with opened(path) as history:
            bounds = await history.bounds("b")
            history.database.writer.execute(
                "UPDATE entries SET body = replace(body, 'b 20', 'B 20')"
            )
            await history.read("b", 0, MUCH, MUCH)

            [outcome] = await history.append(
                [Append("b", [Entry("k", b"d" * 32, b"x")], Position(bounds.epoch, bounds.head))]
            )

        assert isinstance(outcome, Fenced)

    @pytest.mark.parametrize("seed", range(25))
    async def test_by_one_flipped_bit_never_changes_a_message(
        self, path: Path, whole: dict[str, tuple[str, dict[int, bytes]]], seed: int
    ) -> None:
        """With any bit of the file flipped, a log is whole, or its epoch is new, or it is refused."""
        flip_bit(path, seed)

        await check_honest(path, whole)

    @pytest.mark.parametrize("seed", range(15))
    async def test_of_the_write_ahead_log_never_changes_a_message(
        self, path: Path, tmp_path: Path, seed: int
    ) -> None:
        """After a kill, a cut or flipped write-ahead log is noticed."""
        sessions = {}
        async with opened(path) as history:
            for session in ("a", "b"):
                bodies = [b"%s %d" % (session.encode(), n) for n in range(10)]
                for body in bodies:
                    end = await add(history, session, body)
                sessions[session] = (end.epoch, dict(enumerate(bodies, 1)))
            copy = as_after_kill(path, tmp_path / "copy")
        damage = flip_bit if seed % 2 else cut_off
        damage(copy.with_name("log.db-wal"), seed)

        await check_honest(copy, sessions)

    async def test_of_the_whole_file_is_refused_with_a_remedy(self, path: Path) -> None:
        """A file that is no database at all stops the start, in a clear sentence."""
        write_junk(path)

        with pytest.raises(ConfigError, match=r"log\.db: .*restore a backup .*move it away"):
            await SqliteHistory(path).open()

    async def test_of_the_schema_is_refused(self, path: Path) -> None:
        """A database without the tables that it must have stops the start."""
        async with opened(path):
            pass
        run_sql(path, "ALTER TABLE entries RENAME COLUMN body TO bidy")

        with pytest.raises(ConfigError, match=r"schema is damaged.*restore a backup"):
            await SqliteHistory(path).open()

    async def test_of_a_record_is_never_served(self, path: Path) -> None:
        """A changed record is not returned, not listed, and not free to be taken."""
        async with opened(path) as history:
            records = SqliteRecords(history.database)
            await records.open()
            await records.put("kind", "good", b"owner: ada", 0)
            await records.put("kind", "key", b"owner: ada", 0)
            await records.close()
        run_sql(path, "UPDATE records SET value = CAST('owner: eve' AS BLOB) WHERE key = 'key'")

        records = SqliteRecords(SqliteHistory(path).database)
        await records.open()

        with pytest.raises(GatewayError):
            await records.get("kind", "key")
        with pytest.raises((GatewayError, Conflict)):
            await records.put("kind", "key", b"owner: eve", 0)
        assert [record.key for record in await records.scan("kind")] == ["good"]
        await records.close()


async def check_honest(path: Path, sessions: dict[str, tuple[str, dict[int, bytes]]]) -> None:
    """Check that a store tells the truth about its logs, or refuses to open them."""
    history = SqliteHistory(path)
    try:
        await history.open()
    except ConfigError:
        return
    try:
        for session, (epoch, messages) in sessions.items():
            await check_log(history, session, epoch, messages)
    finally:
        await history.close()


async def check_log(
    history: SqliteHistory, session: str, epoch: str, messages: dict[int, bytes]
) -> None:
    await history.ids(session)
    found = await contents(history, session)
    bounds = await history.bounds(session)

    assert found.items() <= messages.items()
    assert sorted(found) == list(range(bounds.first, bounds.head + 1))
    if bounds.epoch == epoch:
        assert found == messages


class TestFullDisk:
    async def test_refuses_appends_and_goes_on_reading(self, path: Path) -> None:
        """Without room an append fails as such; what is stored can be read."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
            limit_pages(history, 0)

            full = await try_add(history, "s", b"x" * 100_000)

            assert isinstance(full, StorageFull)
            assert await contents(history, "s") == {1: b"one"}
            bounds = await history.bounds("s")
            assert Position(bounds.epoch, bounds.head) == before

    async def test_appends_again_once_there_is_room(self, path: Path) -> None:
        """Nothing needs to be restarted when room comes back."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
            limit_pages(history, 0)
            await try_add(history, "s", b"x" * 100_000)

            limit_pages(history, 1000)
            after = await add(history, "s", b"two")

            assert after == Position(before.epoch, 2)

    async def test_is_said_once_and_when_it_is_over(self, path: Path) -> None:
        """The operator hears of it without being flooded."""
        async with opened(path) as history:
            await history.bounds("s")
            with capture_logs() as logs:
                limit_pages(history, 0)
                for _ in range(3):
                    await try_add(history, "s", b"x" * 100_000)
                limit_pages(history, 1000)
                await add(history, "s", b"two")

        assert [line["event"] for line in logs] == [
            "the log has no room",
            "the log has room again",
        ]

    async def test_makes_room_by_retention(self, path: Path) -> None:
        """A full store that deletes old messages takes new ones in their place."""
        async with opened(path, max_messages=5) as history:
            for _ in range(5):
                await add(history, "s", b"x" * 10_000)
            limit_pages(history, 12)

            outcomes = []
            for _ in range(40):
                outcomes.append(await try_add(history, "s", b"y" * 10_000))
                await history.sweep()

            assert isinstance(outcomes[-1], Position)
            assert set((await contents(history, "s")).values()) == {b"y" * 10_000}

    async def test_is_a_retryable_error_of_records(self, path: Path) -> None:
        """A record that has no room is refused in the words of the protocol."""
        async with opened(path) as history:
            records = SqliteRecords(history.database)
            await records.open()
            limit_pages(history, 0)

            with pytest.raises(GatewayError) as caught:
                await records.put("kind", "key", b"x" * 100_000, 0)

            await records.close()
        assert caught.value.code == ErrorCode.STORAGE_FULL
        assert caught.value.retryable


def limit_pages(history: SqliteHistory, more: int) -> None:
    """Let the file grow by so many pages and no further."""
    db = history.database.writer
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + more}")


class TestLock:
    async def test_keeps_a_second_gateway_out(self, path: Path) -> None:
        """The error says who holds the file and what to do."""
        async with opened(path):
            with pytest.raises(ConfigError, match=r"another gateway \(process \d+\).*data_dir"):
                await SqliteHistory(path).open()

    async def test_is_let_go_at_close(self, path: Path) -> None:
        """After an orderly end the next gateway gets the file."""
        async with opened(path):
            pass

        async with opened(path) as history:
            assert (await add(history, "s", b"one")).seq == 1

    async def test_is_let_go_when_the_start_fails(self, path: Path) -> None:
        """A file that cannot be opened is not held either."""
        write_junk(path)
        with pytest.raises(ConfigError):
            await SqliteHistory(path).open()
        shutil.move(path, path.with_name("junk"))

        async with opened(path) as history:
            assert (await add(history, "s", b"one")).seq == 1


class TestFile:
    async def test_is_for_its_owner_alone(self, path: Path) -> None:
        """Other users of the machine can read none of the files."""
        async with opened(path) as history:
            await add(history, "s", b"secret")
            modes = {file.name: file.stat().st_mode & 0o077 for file in path.parent.iterdir()}

        assert set(modes) >= {"log.db", "log.db-wal", "log.db.trace"}
        assert set(modes.values()) == {0}
        assert path.parent.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(("durability", "level"), [("process", 1), ("disk", 2)])
    async def test_has_the_promised_synchronous_setting(
        self, path: Path, durability: str, level: int
    ) -> None:
        """NORMAL for ``process``, FULL for ``disk``."""
        async with opened(path, durability=durability) as history:
            found = history.database.writer.execute("PRAGMA synchronous").fetchone()

        assert found == (level,)

    async def test_of_a_newer_schema_is_refused(self, path: Path) -> None:
        """An older gateway does not touch what it does not understand."""
        async with opened(path):
            pass
        run_sql(path, "PRAGMA user_version = 99")

        with pytest.raises(ConfigError, match="newer Trunkline"):
            await SqliteHistory(path).open()

    async def test_of_another_program_is_refused(self, path: Path) -> None:
        """A database with other tables is left as it is."""
        path.parent.mkdir()
        run_sql(path, "CREATE TABLE theirs (x)")

        with pytest.raises(ConfigError, match="not a log of Trunkline"):
            await SqliteHistory(path).open()

    async def test_in_an_unusable_place_is_refused(self, tmp_path: Path) -> None:
        """The error names the file."""
        (tmp_path / "data").write_text("not a folder")

        with pytest.raises(ConfigError, match=r"log\.db"):
            await SqliteHistory(tmp_path / "data" / "log.db").open()


class TestDeleting:
    async def test_removes_what_is_beyond_the_limit(self, path: Path) -> None:
        """Messages that are not kept leave the file too."""
        async with opened(path, max_messages=100) as history:
            for _ in range(10):
                await add(history, "s", *[b"x"] * 100)

            await history.sweep()

            assert rows_in(history) == 100

    async def test_removes_deleted_logs(self, path: Path) -> None:
        """The messages of a deleted log leave the file, and only those."""
        async with opened(path) as history:
            await add(history, "gone", *[b"x"] * 1000)
            await add(history, "kept", b"y")
            await history.delete("gone")

            await history.sweep()

            assert rows_in(history) == 1

    async def test_goes_on_after_a_kill(self, path: Path, tmp_path: Path) -> None:
        """A log that was deleted but not yet removed is removed at the next start."""
        async with opened(path) as history:
            await add(history, "gone", *[b"x"] * 1000)
            await history.delete("gone")
            copy = as_after_kill(path, tmp_path / "copy")

        async with opened(copy) as history:
            await history.sweep()
            assert rows_in(history) == 0

    async def test_removes_old_messages_of_sessions_nobody_uses(self, path: Path) -> None:
        """Age is noticed without anyone asking for the session."""
        now = 1_000_000.0
        async with opened(path, max_age=100.0, clock=lambda: now) as history:
            await add(history, "s", b"old")

        now += 200
        async with opened(path, max_age=100.0, clock=lambda: now) as history:
            await history.sweep()
            assert rows_in(history) == 0
            assert (await history.bounds("s")).first == 2


class TestCheckpoint:
    async def test_keeps_the_write_ahead_log_short(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However much is stored, the write-ahead log begins anew from time to time."""
        monkeypatch.setattr(_database, "CHECKPOINT_PAGES", 500)
        async with opened(path, max_messages=100) as history:
            for _ in range(600):
                await add(history, "s", b"x" * 50_000)
            size = path.with_name("log.db-wal").stat().st_size

        assert size < 15_000_000

    async def test_happens_beside_appends(self, path: Path) -> None:
        """Messages move into the database proper while others are stored."""
        points: list[str] = []
        async with opened(path, failpoint=points.append) as history:
            for _ in range(100):
                await add(history, "s", b"x" * 100_000)
            found = await contents(history, "s")

        assert "checkpoint" in points
        assert len(found) == 100

    async def test_never_begins_with_nothing_to_move(self, path: Path) -> None:
        """Two checkpoints without a commit between them could lose one, in older SQLites."""
        points: list[str] = []
        async with opened(path, failpoint=points.append) as history:
            for _ in range(2):
                await add(history, "s", b"one")
                for _ in range(3):
                    await history.database.write(history.database.checkpoint)
                    await history.database.aside(lambda db: None)  # behind the checkpoint

        assert points.count("checkpoint") == 2


class TestBackup:
    async def test_has_everything_and_a_new_epoch(self, path: Path, tmp_path: Path) -> None:
        """A restored backup holds the log of that moment, as another log."""
        async with opened(path) as history:
            before = await add(history, "s", b"one", b"two")
            await history.backup(tmp_path / "backup.db")
            await add(history, "s", b"three")

        with capture_logs() as logs:
            async with opened(tmp_path / "backup.db") as history:
                bounds = await history.bounds("s")
                found = await contents(history, "s")

        assert found == {1: b"one", 2: b"two"}
        assert bounds.epoch != before.epoch
        assert [line["reason"] for line in logs] == ["it was restored from a backup"]

    async def test_restored_in_place_has_a_new_epoch(self, path: Path, tmp_path: Path) -> None:
        """It makes no difference that the count of commits is still there."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
            await history.backup(tmp_path / "backup.db")
        shutil.copy(tmp_path / "backup.db", path)

        async with opened(path) as history:
            epoch = (await history.bounds("s")).epoch
        async with opened(path) as history:
            again = (await history.bounds("s")).epoch

        assert epoch != before.epoch
        assert again == epoch

    async def test_changes_nothing_for_the_running_gateway(
        self, path: Path, tmp_path: Path
    ) -> None:
        """The log that was copied keeps its epoch."""
        async with opened(path) as history:
            before = await add(history, "s", b"one")
            await history.backup(tmp_path / "backup.db")

        async with opened(path) as history:
            assert (await history.bounds("s")).epoch == before.epoch

    async def test_overwrites_nothing(self, path: Path, tmp_path: Path) -> None:
        """A file that is there stays as it is."""
        (tmp_path / "backup.db").write_text("precious")

        async with opened(path) as history:
            with pytest.raises(FileExistsError):
                await history.backup(tmp_path / "backup.db")

        assert (tmp_path / "backup.db").read_text() == "precious"
        assert sorted(os.listdir(tmp_path)) == ["backup.db", "data"]


class TestConcurrency:
    @pytest.mark.parametrize("durability", ["process", "disk"])
    async def test_of_sessions_mixes_nothing_up(self, path: Path, durability: str) -> None:
        """Many sessions that append, read and trim at once each keep their own log."""

        async def use(history: SqliteHistory, session: str) -> None:
            for number in range(20):
                await add(history, session, b"%s %d" % (session.encode(), number))
                await history.read(session, 0, 5, MUCH)
            await history.trim(session, 6)

        sessions = [f"s{number}" for number in range(10)]
        async with opened(path, durability=durability, max_messages=17) as history:
            await asyncio.gather(*[use(history, session) for session in sessions])
            found = {session: await contents(history, session) for session in sessions}

        for session in sessions:
            assert found[session] == {
                seq: b"%s %d" % (session.encode(), seq - 1) for seq in range(6, 21)
            }

    async def test_with_a_cancelled_append_keeps_order(self, path: Path) -> None:
        """Whether a cancelled append happened shows in the bounds, and appends go on from there."""
        async with opened(path, durability="disk") as history:
            await add(history, "s", b"one")
            task = asyncio.create_task(add(history, "s", b"two"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

            bounds = await history.bounds("s")
            after = await add(history, "s", b"three")

            assert after == Position(bounds.epoch, bounds.head + 1)
            assert list(await contents(history, "s")) == list(range(1, bounds.head + 2))
