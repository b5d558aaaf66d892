"""What every store of session logs promises. Another store is one more line in HISTORIES."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trunkline.history import Append, Entry, Fenced, History, Known, Position, Stored
from trunkline.history.memory import MemoryHistory
from trunkline.history.sqlite import SqliteHistory


def memory(path: Path, **limits: Any) -> History:
    return MemoryHistory(**limits)


def sqlite(durability: Any, path: Path, **limits: Any) -> History:
    return SqliteHistory(path, durability=durability, **limits)


HISTORIES: dict[str, Callable[..., History]] = {
    "memory": memory,
    "sqlite-process": partial(sqlite, "process"),
    "sqlite-disk": partial(sqlite, "disk"),
}

MUCH = 1 << 30
"""More messages or bytes than any test stores."""


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A store, and what tests do with it again and again."""

    def __init__(self, history: History) -> None:
        self.history = history

    async def add(self, session: str, *names: str, size: int = 0) -> Position:
        """Append one message per name to where the log ends."""
        bounds = await self.history.bounds(session)
        expected = Position(bounds.epoch, bounds.head)
        entries = [entry(name, size) for name in names]
        [outcome] = await self.history.append([Append(session, entries, expected)])
        assert isinstance(outcome, Position)
        return outcome

    async def names(self, session: str, after: int = 0) -> list[str]:
        """Read the names of all messages after a place."""
        rows = await self.history.read(session, after, MUCH, MUCH)
        return [row.body.rstrip(b".").decode() for row in rows]


def entry(name: str, size: int = 0) -> Entry:
    body = name.encode().ljust(size, b".")
    return Entry(f"key of {name}", hashlib.sha256(name.encode()).digest(), body)


@pytest.fixture(params=HISTORIES)
async def make(request: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """A function that opens a store, with the limits that the test gives."""
    opened: list[History] = []

    async def make(**limits: Any) -> Store:
        history = HISTORIES[request.param](tmp_path / "log.db", **limits)
        await history.open()
        opened.append(history)
        return Store(history)

    yield make
    for history in opened:
        await history.close()


@pytest.fixture
async def store(make: Callable[..., Any]) -> Store:
    store: Store = await make()
    return store


class TestAppend:
    async def test_numbers_messages_from_one_without_holes(self, store: Store) -> None:
        """The first message of a log is 1, and each append goes on where the last one ended."""
        first = await store.add("s", "a", "b")
        second = await store.add("s", "c")

        assert (first.seq, second.seq) == (2, 3)
        assert await store.history.read("s", 0, 10, MUCH) == [
            Stored(1, b"a"),
            Stored(2, b"b"),
            Stored(3, b"c"),
        ]

    async def test_keeps_the_epoch(self, store: Store) -> None:
        """An append ends in the epoch that it was told."""
        bounds = await store.history.bounds("s")

        position = await store.add("s", "a")

        assert position.epoch == bounds.epoch

    async def test_takes_several_sessions_at_once(self, store: Store) -> None:
        """Each session of a batch gets its own outcome, in the order of the batch."""
        await store.add("b", "old")
        epochs = {s: (await store.history.bounds(s)).epoch for s in "abc"}

        outcomes = await store.history.append(
            [
                Append("a", [entry("1"), entry("2")], Position(epochs["a"], 0)),
                Append("b", [entry("3")], Position(epochs["b"], 1)),
                Append("c", [entry("4")], Position(epochs["c"], 0)),
            ]
        )

        assert outcomes == [
            Position(epochs["a"], 2),
            Position(epochs["b"], 2),
            Position(epochs["c"], 1),
        ]
        assert await store.names("a") == ["1", "2"]
        assert await store.names("b") == ["old", "3"]
        assert await store.names("c") == ["4"]

    async def test_takes_more_than_fits_one_statement(self, store: Store) -> None:
        """A batch may be as large as it likes."""
        names = [str(number) for number in range(1000)]

        position = await store.add("s", *names)

        assert position.seq == 1000
        assert await store.names("s") == names

    async def test_of_nothing_changes_nothing(self, store: Store) -> None:
        """A batch without entries succeeds where the log ends."""
        before = await store.add("s", "a")

        after = await store.add("s")

        assert after == before
        assert await store.history.append([]) == []

    async def test_returns_bytes_as_they_were_given(self, store: Store) -> None:
        """Any bytes come back the same."""
        bounds = await store.history.bounds("s")
        body = bytes(range(256)) * 40

        await store.history.append(
            [Append("s", [Entry("k", b"d" * 32, body)], Position(bounds.epoch, 0))]
        )

        assert await store.history.read("s", 0, 1, MUCH) == [Stored(1, body)]

    @pytest.mark.parametrize("offset", [-1, 1])
    async def test_elsewhere_than_the_end_is_fenced(self, store: Store, offset: int) -> None:
        """An owner that is wrong about the end stores nothing."""
        end = await store.add("s", "a", "b")

        [outcome] = await store.history.append(
            [Append("s", [entry("c")], Position(end.epoch, end.seq + offset))]
        )

        assert isinstance(outcome, Fenced)
        assert await store.names("s") == ["a", "b"]

    async def test_in_another_epoch_is_fenced(self, store: Store) -> None:
        """The right number in the wrong epoch stores nothing."""
        await store.add("s", "a")

        [outcome] = await store.history.append([Append("s", [entry("b")], Position("other", 1))])

        assert isinstance(outcome, Fenced)
        assert await store.names("s") == ["a"]

    async def test_to_a_session_never_asked_for_is_fenced(self, store: Store) -> None:
        """Nobody can know the epoch of a log that has none yet."""
        [outcome] = await store.history.append([Append("s", [entry("a")], Position("", 0))])

        assert isinstance(outcome, Fenced)
        assert await store.names("s") == []

    async def test_that_is_fenced_harms_no_other_session(self, store: Store) -> None:
        """One session's failure is its own."""
        bounds = await store.history.bounds("good")
        await store.history.bounds("bad")

        bad, good = await store.history.append(
            [
                Append("bad", [entry("a")], Position("other", 0)),
                Append("good", [entry("b")], Position(bounds.epoch, 0)),
            ]
        )

        assert isinstance(bad, Fenced)
        assert good == Position(bounds.epoch, 1)
        assert await store.names("good") == ["b"]


class TestRead:
    async def test_begins_after_the_given_message(self, store: Store) -> None:
        """The message that the reader has is not read again."""
        await store.add("s", "a", "b", "c")

        assert await store.names("s", after=1) == ["b", "c"]

    async def test_at_the_end_finds_nothing(self, store: Store) -> None:
        """Neither at the head nor beyond it is there a message."""
        await store.add("s", "a")

        assert await store.names("s", after=1) == []
        assert await store.names("s", after=9) == []

    async def test_of_an_unknown_session_finds_nothing(self, store: Store) -> None:
        """A session that never was has no messages and no ids."""
        assert list(await store.history.read("s", 0, 10, MUCH)) == []
        assert list(await store.history.ids("s")) == []

    async def test_stops_at_the_limit_of_messages(self, store: Store) -> None:
        """A page has at most as many messages as asked for."""
        await store.add("s", "a", "b", "c")

        page = await store.history.read("s", 0, 2, MUCH)

        assert [row.seq for row in page] == [1, 2]

    async def test_stops_at_the_limit_of_bytes(self, store: Store) -> None:
        """A page ends with the message that reaches the limit of bytes."""
        await store.add("s", "a", "b", "c", size=100)

        page = await store.history.read("s", 0, 10, 150)

        assert [row.seq for row in page] == [1, 2]

    async def test_gives_one_message_however_large(self, store: Store) -> None:
        """A page is never empty where there is a message, or a reader would not get on."""
        await store.add("s", "a", "b", size=100)

        page = await store.history.read("s", 0, 10, 1)

        assert [row.seq for row in page] == [1]

    async def test_sees_only_its_own_session(self, store: Store) -> None:
        """Sessions with similar names do not mix."""
        await store.add("s", "a")
        await store.add("s2", "b")
        await store.add("S", "c")

        assert [await store.names(s) for s in ("s", "s2", "S")] == [["a"], ["b"], ["c"]]


class TestBounds:
    async def test_of_an_unknown_session_are_empty_and_stay(self, store: Store) -> None:
        """A new session's epoch is the one that its first message gets."""
        bounds = await store.history.bounds("s")
        again = await store.history.bounds("s")
        position = await store.add("s", "a")

        assert (bounds.first, bounds.head) == (1, 0)
        assert again == bounds
        assert position.epoch == bounds.epoch

    async def test_tell_the_first_and_last_message(self, store: Store) -> None:
        """What bounds say is what can be read."""
        await store.add("s", "a", "b", "c")

        bounds = await store.history.bounds("s")

        assert (bounds.first, bounds.head) == (1, 3)

    async def test_have_an_epoch_that_fits_the_wire(self, store: Store) -> None:
        """Epochs differ between sessions and have at most 64 characters."""
        one, two = await store.history.bounds("one"), await store.history.bounds("two")

        assert one.epoch != two.epoch
        assert 0 < len(one.epoch) <= 64


class TestIds:
    async def test_are_those_of_the_log_oldest_first(self, store: Store) -> None:
        """Keys and digests come back with the number of their message."""
        await store.add("s", "a", "b")

        assert await store.history.ids("s") == [
            Known("key of a", hashlib.sha256(b"a").digest(), 1),
            Known("key of b", hashlib.sha256(b"b").digest(), 2),
        ]

    async def test_keep_every_character_of_a_key(self, store: Store) -> None:
        """A user's name may have any letters."""
        bounds = await store.history.bounds("s")
        item = Entry("Zoë\x1f\x1fid", b"d" * 32, b"{}")

        await store.history.append([Append("s", [item], Position(bounds.epoch, 0))])

        assert [known.key for known in await store.history.ids("s")] == ["Zoë\x1f\x1fid"]

    async def test_go_with_their_messages(self, store: Store) -> None:
        """What is no longer kept is no longer known."""
        await store.add("s", "a", "b", "c")

        await store.history.trim("s", 3)

        assert [known.seq for known in await store.history.ids("s")] == [3]

    async def test_of_a_long_log_are_complete(self, store: Store) -> None:
        """All keys of the log are known, however many there are."""
        await store.add("s", *map(str, range(600)))

        assert [known.seq for known in await store.history.ids("s")] == list(range(1, 601))


class TestTrim:
    async def test_deletes_what_is_before(self, store: Store) -> None:
        """A reader from before begins at the oldest message kept."""
        await store.add("s", "a", "b", "c")

        await store.history.trim("s", 3)

        bounds = await store.history.bounds("s")
        assert (bounds.first, bounds.head) == (3, 3)
        assert await store.names("s") == ["c"]

    async def test_keeps_epoch_and_numbering(self, store: Store) -> None:
        """A log that is empty after a trim goes on as if nothing had happened."""
        before = await store.add("s", "a", "b")

        await store.history.trim("s", 99)
        bounds = await store.history.bounds("s")
        after = await store.add("s", "c")

        assert bounds == (before.epoch, 3, 2)
        assert after == Position(before.epoch, 3)
        assert await store.history.read("s", 0, 10, MUCH) == [Stored(3, b"c")]

    async def test_never_brings_messages_back(self, store: Store) -> None:
        """Trimming less than before does nothing."""
        await store.add("s", "a", "b", "c")
        await store.history.trim("s", 3)

        await store.history.trim("s", 1)

        assert await store.names("s") == ["c"]

    async def test_of_an_unknown_session_does_nothing(self, store: Store) -> None:
        """There is nothing to delete, and nothing comes into being."""
        await store.history.trim("s", 5)

        assert (await store.history.bounds("s")).head == 0


class TestDelete:
    async def test_empties_the_log_and_changes_the_epoch(self, store: Store) -> None:
        """The session's next log begins at 1, under another epoch."""
        before = await store.add("s", "a", "b")

        await store.history.delete("s")

        bounds = await store.history.bounds("s")
        assert bounds.epoch != before.epoch
        assert (bounds.first, bounds.head) == (1, 0)
        assert await store.names("s") == []
        assert list(await store.history.ids("s")) == []

    async def test_fences_whoever_did_not_notice(self, store: Store) -> None:
        """An append for the old log does not end up in the new one."""
        before = await store.add("s", "a")
        await store.history.delete("s")

        [outcome] = await store.history.append([Append("s", [entry("b")], before)])

        assert isinstance(outcome, Fenced)

    async def test_leaves_other_sessions_alone(self, store: Store) -> None:
        """Only the one log is gone."""
        await store.add("s", "a")
        await store.add("t", "b")

        await store.history.delete("s")

        assert await store.names("t") == ["b"]

    async def test_of_an_unknown_session_does_nothing(self, store: Store) -> None:
        """There is nothing to delete."""
        await store.history.delete("s")

        assert await store.names("s") == []


class TestRetention:
    async def test_keeps_the_newest_messages(self, make: Callable[..., Any]) -> None:
        """No more messages than the limit, and exactly the newest of them."""
        store = await make(max_messages=10)

        for number in range(25):
            await store.add("s", str(number))

        bounds = await store.history.bounds("s")
        assert (bounds.first, bounds.head) == (16, 25)
        assert await store.names("s") == [str(number) for number in range(15, 25)]
        assert [known.seq for known in await store.history.ids("s")] == list(range(16, 26))

    async def test_applies_to_each_session_by_itself(self, make: Callable[..., Any]) -> None:
        """A busy session does not push out a quiet one's messages."""
        store = await make(max_messages=10)
        await store.add("quiet", "a")

        for number in range(25):
            await store.add("busy", str(number))

        assert await store.names("quiet") == ["a"]

    async def test_forgets_old_messages(self, make: Callable[..., Any]) -> None:
        """What is older than the limit is gone; what is younger stays."""
        clock = Clock()
        store = await make(max_age=100.0, clock=clock)
        await store.add("s", "old")
        clock.now += 60
        await store.add("s", "young", "and young")

        clock.now += 60
        bounds = await store.history.bounds("s")

        assert (bounds.first, bounds.head) == (2, 3)
        assert await store.names("s") == ["young", "and young"]

    async def test_forgets_all_messages_of_a_quiet_session(self, make: Callable[..., Any]) -> None:
        """A log may become empty by age; its numbering goes on."""
        clock = Clock()
        store = await make(max_age=100.0, clock=clock)
        before = await store.add("s", "a", "b")

        clock.now += 200
        bounds = await store.history.bounds("s")
        after = await store.add("s", "c")

        assert bounds == (before.epoch, 3, 2)
        assert after == Position(before.epoch, 3)

    async def test_keeps_the_bytes_within_their_limit(self, make: Callable[..., Any]) -> None:
        """A log of large messages is cut to about the limit, at its old end."""
        store = await make(max_bytes=10_000)
        for number in range(40):
            await store.add("s", str(number), size=1000)

        if isinstance(store.history, SqliteHistory):
            await store.history.sweep()

        names = await store.names("s")
        assert names == [str(number) for number in range(40 - len(names), 40)]
        assert 8 <= len(names) <= 10

    async def test_keeps_the_newest_message_whatever_its_size(
        self, make: Callable[..., Any]
    ) -> None:
        """A message larger than the limit can still be read by those who missed it."""
        store = await make(max_bytes=100)
        await store.add("s", "a", size=1000)
        await store.add("s", "b", size=1000)

        if isinstance(store.history, SqliteHistory):
            await store.history.sweep()

        assert await store.names("s") == ["b"]


async def test_a_second_close_does_nothing(make: Callable[..., Any]) -> None:
    """Closing is safe to repeat."""
    store = await make()

    await store.history.close()
    await store.history.close()
