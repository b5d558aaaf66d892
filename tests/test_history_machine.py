"""Any sequence of calls, on every store, against a model of what a session log is."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trunkline.history import Append, Entry, Fenced, History, Position
from trunkline.history.memory import MemoryHistory
from trunkline.history.sqlite import SqliteHistory

T = TypeVar("T")

KEPT = 12
SESSIONS = st.sampled_from(["a", "b", "a.b"])
BODIES = st.lists(st.binary(max_size=20), max_size=KEPT + 3)


class Model(msgspec.Struct):
    """One session's log as the contract has it."""

    epoch: str
    first: int = 1
    bodies: list[bytes] = []

    @property
    def head(self) -> int:
        return self.first + len(self.bodies) - 1

    def append(self, bodies: list[bytes]) -> None:
        self.bodies = self.bodies + bodies
        self.trim(self.head - KEPT + 1)

    def trim(self, before: int) -> None:
        gone = max(0, min(before, self.head + 1) - self.first)
        self.bodies = self.bodies[gone:]
        self.first += gone

    def after(self, seq: int) -> list[tuple[int, bytes]]:
        return [(n, b) for n, b in enumerate(self.bodies, self.first) if n > seq]


class LogMachine(RuleBasedStateMachine):
    """Calls in any order; after each, the store holds what the model holds."""

    history: History
    survives = True
    """Whether logs outlive the store's object."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.logs: dict[str, Model] = {}
        self.past: set[str] = set()
        self.lives = 0
        self.start()

    def make(self) -> History:
        raise NotImplementedError

    def start(self) -> None:
        self.history = self.make()
        self.run(self.history.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def log(self, session: str) -> Model:
        """Return a session's model; the store says only what its epoch is."""
        if session not in self.logs:
            epoch = self.run(self.history.bounds(session)).epoch
            assert epoch not in self.past
            self.past.add(epoch)
            self.logs[session] = Model(epoch)
        return self.logs[session]

    @rule(batch=st.dictionaries(SESSIONS, BODIES, min_size=1))
    def append(self, batch: dict[str, list[bytes]]) -> None:
        logs = {session: self.log(session) for session in batch}
        appends = [
            Append(session, entries(bodies), Position(logs[session].epoch, logs[session].head))
            for session, bodies in batch.items()
        ]

        outcomes = self.run(self.history.append(appends))

        for (session, bodies), outcome in zip(batch.items(), outcomes, strict=True):
            log = logs[session]
            assert outcome == Position(log.epoch, log.head + len(bodies))
            log.append(bodies)

    @rule(session=SESSIONS, offset=st.integers(-3, 3), epoch=st.booleans())
    def append_elsewhere(self, session: str, offset: int, epoch: bool) -> None:
        log = self.log(session)
        expected = Position(log.epoch if epoch else "another", log.head + offset)
        if expected == (log.epoch, log.head):
            return

        [outcome] = self.run(self.history.append([Append(session, entries([b"x"]), expected)]))

        assert isinstance(outcome, Fenced)

    @rule(session=SESSIONS, before=st.integers(0, 40))
    def trim(self, session: str, before: int) -> None:
        log = self.log(session)

        self.run(self.history.trim(session, before))

        log.trim(before)

    @rule(session=SESSIONS)
    def delete(self, session: str) -> None:
        self.run(self.history.delete(session))

        self.logs.pop(session, None)

    @rule(session=SESSIONS, after=st.integers(0, 40), limit=st.integers(1, 9))
    def read_page(self, session: str, after: int, limit: int) -> None:
        page = self.run(self.history.read(session, after, limit, 1 << 20))

        assert list(page) == (
            self.logs[session].after(after)[:limit] if session in self.logs else []
        )

    @rule()
    def restart(self) -> None:
        self.run(self.history.close())
        if not self.survives:
            self.logs.clear()
        self.start()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        for session, log in self.logs.items():
            bounds = self.run(self.history.bounds(session))
            known = self.run(self.history.ids(session))
            assert bounds == (log.epoch, log.first, log.head)
            assert list(self.run(self.history.read(session, 0, 1000, 1 << 20))) == log.after(0)
            assert [(k.seq, k.digest) for k in known] == log.after(0)

    def teardown(self) -> None:
        self.run(self.history.close())
        self.runner.close()
        shutil.rmtree(self.folder)


def entries(bodies: list[bytes]) -> list[Entry]:
    return [Entry(f"key {number}", body, body) for number, body in enumerate(bodies)]


class MemoryMachine(LogMachine):
    survives = False

    def make(self) -> History:
        return MemoryHistory(max_messages=KEPT)


class SqliteMachine(LogMachine):
    def make(self) -> History:
        return SqliteHistory(self.folder / "log.db", max_messages=KEPT)

    @rule()
    def kill(self) -> None:
        """Go on with a copy of the files as they are in the middle of everything."""
        self.lives += 1
        copy = self.folder.with_name(f"{self.folder.name}.{self.lives}")
        copy.mkdir()
        for name in ("log.db", "log.db-wal", "log.db.trace"):
            shutil.copy(self.folder / name, copy / name)
        self.run(self.history.close())
        shutil.rmtree(self.folder)
        self.folder = copy
        self.start()

    @rule()
    def sweep(self) -> None:
        assert isinstance(self.history, SqliteHistory)
        self.run(self.history.sweep())


class DiskMachine(SqliteMachine):
    def make(self) -> History:
        return SqliteHistory(self.folder / "log.db", durability="disk", max_messages=KEPT)


FEW = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

TestMemory = MemoryMachine.TestCase
TestMemory.settings = FEW
TestSqlite = SqliteMachine.TestCase
TestSqlite.settings = FEW
TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(FEW, max_examples=5)
