"""Who did what: an append-only log that notices changes, floods and full disks."""

import asyncio
import contextlib
import sqlite3

import pytest
import uvloop
from loglines import lines_of_structlog

from trunkline.audit import ROWS_PER_KIND, ROWS_PER_WINDOW, WINDOW, Audit
from trunkline.authdb import AuthDatabase
from trunkline.config import AuditConfig
from trunkline.events import AuditEntry

FAILED = AuditEntry(action="auth.failed", outcome="refused", address="192.0.2.1")


class Clock:
    def __init__(self):
        self.seconds = 1_000.0

    def __call__(self):
        return self.seconds

    def now(self):
        return round(self.seconds * 1000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "auth.db"


@pytest.fixture
def database(path):
    with contextlib.closing(AuthDatabase(path)) as database:
        yield database


@pytest.fixture
def audit(database, clock):
    return Audit(database, now=clock.now, clock=clock)


def did(action, **fields):
    return AuditEntry(action=action, **fields)


async def written(database):
    """Wait until entries are written by the event loop's own turn."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    before = database.row("SELECT count(*) FROM audit")[0]

    def look():
        if database.row("SELECT count(*) FROM audit")[0] > before:
            news.set()
        else:
            loop.call_later(0.01, look)

    look()
    async with asyncio.timeout(20):
        await news.wait()


def actions(audit, **filters):
    return [entry.action for entry in audit.entries(**filters)]


def test_entries_that_come_at_once_are_kept_on_the_loop_of_the_gateway(tmp_path):
    """Its timers are not those of asyncio."""
    database = AuthDatabase(tmp_path / "auth.db")
    audit = Audit(database)

    async def append() -> None:
        audit.append(AuditEntry(action="first"))
        audit.append(AuditEntry(action="second"))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(append())
    audit.close()

    assert actions(audit) == ["second", "first"]
    database.close()


def tampered(path, *statements):
    """Change the file as somebody would who may write it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)


class TestEntries:
    def test_keep_everything_that_was_said(self, audit):
        """An entry is read as it was written, with a number and the time."""
        entry = did(
            "session.patch",
            actor="ada",
            target="s1",
            outcome="refused",
            address="::1",
            detail={"keys": "model"},
        )

        audit.append(entry)

        (stored,) = audit.entries()
        assert (stored.seq, stored.at) == (1, 1_000_000)
        assert (stored.action, stored.actor, stored.target) == ("session.patch", "ada", "s1")
        assert (stored.outcome, stored.address) == ("refused", "::1")
        assert stored.detail == {"keys": "model"}

    def test_come_newest_first_a_page_at_a_time(self, audit):
        """`limit` bounds a page and `before` begins the next one."""
        for number in range(5):
            audit.append(did(f"a.{number}"))

        first = audit.entries(limit=2)

        assert [entry.action for entry in first] == ["a.4", "a.3"]
        assert actions(audit, before=first[-1].seq, limit=2) == ["a.2", "a.1"]

    def test_are_found_by_time_user_and_action(self, audit, clock):
        """Filters hold together; a star ends an action that stands for several."""
        audit.append(did("auth.ok", actor="ada"))
        clock.seconds += 10
        audit.append(did("auth.failed", actor="ada"))
        audit.append(did("token.create", actor="ada"))
        audit.append(did("auth.ok", actor="bob"))

        assert actions(audit, since=1_010_000, user="ada") == ["token.create", "auth.failed"]
        assert actions(audit, action="auth.*", user="ada") == ["auth.failed", "auth.ok"]
        assert actions(audit, action="auth.ok", user="bob") == ["auth.ok"]
        assert actions(audit, action="auth.") == []

    def test_that_are_rare_are_found_page_by_page(self, audit, monkeypatch):
        """A page looks at so many entries; it says where the next one goes on until there is none."""
        monkeypatch.setattr("trunkline.audit.LOOKED_AT", 4)
        for number in range(10):
            audit.append(did("a.rare" if number in (0, 7) else f"a.{number}"))

        pages = [audit.page(action="a.rare")]
        while pages[-1].next is not None:
            pages.append(audit.page(action="a.rare", before=pages[-1].next))

        assert [[entry.seq for entry in page.entries] for page in pages] == [[8], [], [1]]
        assert [page.next for page in pages] == [7, 3, None]

    def test_beyond_the_wanted_time_are_not_looked_for(self, audit, clock, monkeypatch):
        """There is no next page when all that is older is too old."""
        monkeypatch.setattr("trunkline.audit.LOOKED_AT", 4)
        for _ in range(10):
            audit.append(did("a.b"))
            clock.seconds += 1

        recent = audit.page(since=1_006_000, action="none")
        older = audit.page(since=1_005_000, action="none")

        assert (recent.entries, recent.next) == ([], None)
        assert (older.entries, older.next) == ([], 7)

    def test_that_fill_a_page_end_it(self, audit):
        """The next page begins behind the last of them; there is none behind the oldest."""
        for number in range(4):
            audit.append(did(f"a.{number}"))

        first = audit.page(limit=2)
        second = audit.page(limit=2, before=first.next)

        assert [entry.action for entry in first.entries] == ["a.3", "a.2"]
        assert [entry.action for entry in second.entries] == ["a.1", "a.0"]
        assert (first.next, second.next) == (3, None)

    def test_of_two_processes_make_one_log(self, audit, path, clock):
        """The gateway and its command line write rows of one chain."""
        with contextlib.closing(AuthDatabase(path)) as second:
            other = Audit(second, now=clock.now, clock=clock)
            audit.append(did("a"))
            other.append(did("b"))
            audit.append(did("c"))

        assert [e.seq for e in audit.entries()] == [3, 2, 1]
        assert audit.verify().fault is None

    def test_hold_strange_text_within_bounds(self, audit):
        """A field has at most 256 bytes, whatever a stranger sent."""
        audit.append(did("x", target="é" * 1000, detail={"k": "\ud800\n"}))

        (entry,) = audit.entries()
        assert len(entry.target.encode()) == 256
        assert entry.detail == {"k": "?\n"}
        assert audit.verify().fault is None


class TestAppendOnly:
    @pytest.mark.parametrize("sql", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
    def test_rows_cannot_be_changed_or_deleted(self, audit, path, sql):
        """The database itself refuses both."""
        audit.append(did("a"))

        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            tampered(path, sql)

    @pytest.mark.parametrize(
        ("statement", "fault"),
        [
            ("UPDATE audit SET actor = 'x' WHERE seq = 2", "entry 2 is not as it was"),
            ("UPDATE audit SET detail = '{}' WHERE seq = 1", "entry 1 is not as it was"),
            ("DELETE FROM audit WHERE seq = 2", "behind entry 1 something is missing"),
            ("DELETE FROM audit WHERE seq = 1", "behind entry 0 something is missing"),
            ("UPDATE audit SET seq = seq + 10 WHERE seq = 3", "behind entry 2"),
            ("DELETE FROM audit_start", "the start of the log is missing"),
        ],
    )
    def test_a_change_by_force_is_found(self, audit, path, statement, fault):
        """Whoever removes the triggers first cannot hide what was done."""
        for action in ("a", "b", "c"):
            audit.append(did(action, detail={"k": "v"}))

        tampered(path, "DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete", statement)

        assert fault in audit.verify().fault

    def test_a_log_that_was_cut_or_written_anew_is_found_by_its_digest(self, audit, path):
        """An earlier digest, kept elsewhere, shows what the chain alone cannot."""
        audit.append(did("a"))
        audit.append(did("b"))
        seen = audit.verify()
        kept = (seen.seq, seen.digest)
        audit.append(did("c"))
        assert audit.verify(kept).fault is None

        tampered(path, "DROP TRIGGER audit_no_delete", "DELETE FROM audit WHERE seq > 1")

        assert audit.verify().fault is None
        assert "which was seen, is not there" in audit.verify(kept).fault
        audit.append(did("other"))
        assert "not the one that was seen" in audit.verify(kept).fault


class TestRetention:
    def test_deletes_what_is_too_old_and_says_so(self, database, clock):
        """Old entries go, one entry tells how many, and the chain still holds."""
        audit = Audit(database, AuditConfig(max_age=100.0), now=clock.now, clock=clock)
        audit.append(did("a"))
        audit.append(did("b"))
        clock.seconds += 1_000
        audit.append(did("c"))

        assert actions(audit) == ["audit.trimmed", "c"]
        assert audit.entries()[0].detail == {"entries": "2", "upTo": "2"}
        assert audit.verify().fault is None

    def test_keeps_the_newest_of_too_many(self, database, clock):
        """The number of entries is bounded as well."""
        audit = Audit(database, AuditConfig(max_entries=3), now=clock.now, clock=clock)
        for number in range(6):
            audit.append(did(f"a.{number}"))
        clock.seconds += 1_000
        audit.append(did("last"))

        assert actions(audit) == ["audit.trimmed", "last", "a.5", "a.4"]
        assert audit.verify().fault is None


class TestFloods:
    def test_become_a_count(self, audit, clock):
        """Of many equal entries the first are kept, and one that counts the rest."""
        for _ in range(1_000):
            audit.append(FAILED)
        clock.seconds += WINDOW
        audit.append(did("next"))

        found = audit.entries(limit=1_000, action="auth.failed")
        assert len(found) == ROWS_PER_KIND + 1
        assert found[0].detail == {"more": str(1_000 - ROWS_PER_KIND)}
        assert found[0].address == FAILED.address

    def test_from_everywhere_are_bounded_too(self, audit, clock):
        """Ten thousand addresses do not make ten thousand rows, and none goes uncounted."""
        for number in range(10_000):
            audit.append(did("auth.failed", address=f"10.0.{number >> 8}.{number & 255}"))
        audit.close()

        found = audit.entries(limit=10_000)
        assert len(found) == ROWS_PER_WINDOW + 1
        assert found[0].detail == {"more": str(10_000 - ROWS_PER_WINDOW)}

    def test_hide_no_deed_of_an_operator(self, audit):
        """A hundred tokens made at once are a hundred entries, flood or not."""
        for number in range(10_000):
            audit.append(did("auth.failed", address=f"10.0.{number >> 8}.{number & 255}"))
        for number in range(100):
            audit.append(did("token.create", actor="owner", target=f"k_{number}"))

        found = audit.entries(limit=1_000, action="token.create")
        assert [e.target for e in found] == [f"k_{n}" for n in reversed(range(100))]

    def test_of_one_session_do_not_hide_what_happens_to_another(self, audit):
        """What was done to which session is kept, up to a bound."""
        for number in range(100):
            audit.append(did("session.delete", actor="ada", target=f"s{number}"))

        assert len(audit.entries(limit=1_000)) == 100

    def test_of_one_kind_hide_no_other(self, audit):
        """What happens once during a flood has its own entry."""
        for _ in range(100):
            audit.append(FAILED)
        audit.append(did("token.create", actor="owner"))

        assert actions(audit, limit=1) == ["token.create"]

    async def test_cost_one_transaction_a_turn(self, audit, database):
        """In an event loop entries wait for each other and are written together."""
        for number in range(50):
            audit.append(did(f"a.{number}"))

        assert database.rows("SELECT * FROM audit") == []
        await written(database)
        assert len(database.rows("SELECT * FROM audit")) == 50

    async def test_end_in_a_count_even_if_nothing_follows(self, database, monkeypatch):
        """The count is written when the window ends, without another entry."""
        monkeypatch.setattr("trunkline.audit.WINDOW", 0.05)
        audit = Audit(database)
        for _ in range(100):
            audit.append(FAILED)

        await written(database)
        await written(database)
        assert audit.entries(limit=1)[0].detail == {"more": str(100 - ROWS_PER_KIND)}


class TestFailures:
    def test_a_full_disk_is_said_once_and_costs_entries_only(self, audit, database):
        """Nothing raises; when there is room again, the log tells what it lost."""
        pages = database.row("PRAGMA page_count")[0]
        database.rows(f"PRAGMA max_page_count = {pages}")
        with lines_of_structlog() as lines:
            for number in range(300):
                audit.append(did(f"a.{number}", target="x" * 200))
        kept = len(database.rows("SELECT seq FROM audit"))
        database.rows("PRAGMA max_page_count = 1000000")

        audit.append(did("after"))

        assert [line["event"] for line in lines].count(
            "the audit log cannot be written: entries are lost"
        ) == 1
        newest = audit.entries(limit=2)
        assert [entry.action for entry in newest] == ["after", "audit.lost"]
        assert newest[1].detail == {"entries": str(300 - kept)}
        assert audit.verify().fault is None

    async def test_another_process_that_writes_does_not_hold_the_loop_up(self, audit, path):
        """A locked database is tried again later; nothing is lost."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            audit.append(did("a"))
            audit.flush()
            assert audit.lost == 0
            other.execute("ROLLBACK")

        assert actions(audit) == ["a"]
        audit.close()

    def test_a_log_can_be_read_while_another_process_writes(self, audit, path):
        """Reading needs no lock."""
        audit.append(did("a"))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with contextlib.closing(AuthDatabase(path)) as second:
                assert actions(Audit(second)) == ["a"]
