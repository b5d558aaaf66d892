"""What every store of records promises. Another store is one more line in RECORDS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from trunkline.history.sqlite import SqliteHistory
from trunkline.records import Conflict, Record, Records
from trunkline.records.memory import MemoryRecords
from trunkline.records.sqlite import SqliteRecords

RECORDS: dict[str, Callable[[Path], Records]] = {
    "memory": lambda path: MemoryRecords(),
    "sqlite-process": lambda path: SqliteRecords(SqliteHistory(path).database),
    "sqlite-disk": lambda path: SqliteRecords(SqliteHistory(path, durability="disk").database),
}


@pytest.fixture(params=RECORDS)
async def records(request: Any, tmp_path: Path) -> AsyncIterator[Records]:
    records = RECORDS[request.param](tmp_path / "log.db")
    await records.open()
    yield records
    await records.close()


async def test_returns_what_was_put(records: Records) -> None:
    """A new record has version 1 and the bytes that were given."""
    version = await records.put("kind", "key", b"\x00value", 0)

    assert version == 1
    assert await records.get("kind", "key") == Record("key", b"\x00value", 1)


async def test_counts_changes(records: Records) -> None:
    """Each change makes the version one higher."""
    await records.put("kind", "key", b"one", 0)

    version = await records.put("kind", "key", b"two", 1)

    assert version == 2
    assert await records.get("kind", "key") == Record("key", b"two", 2)


async def test_has_nothing_under_an_unknown_key(records: Records) -> None:
    """Neither another key nor another kind has the record."""
    await records.put("kind", "key", b"value", 0)

    assert await records.get("kind", "other") is None
    assert await records.get("other", "key") is None


@pytest.mark.parametrize("expected", [0, 2])
async def test_refuses_to_change_another_version(records: Records, expected: int) -> None:
    """Who did not see the last change cannot overwrite it."""
    await records.put("kind", "key", b"one", 0)

    with pytest.raises(Conflict):
        await records.put("kind", "key", b"two", expected)

    assert await records.get("kind", "key") == Record("key", b"one", 1)


async def test_refuses_to_change_what_is_not_there(records: Records) -> None:
    """A record that was deleted meanwhile does not come back by a change."""
    with pytest.raises(Conflict):
        await records.put("kind", "key", b"value", 1)

    assert await records.get("kind", "key") is None


async def test_deletes_the_expected_version(records: Records) -> None:
    """After a deletion the key is free again, from version 1."""
    await records.put("kind", "key", b"one", 0)

    await records.delete("kind", "key", 1)

    assert await records.get("kind", "key") is None
    assert await records.put("kind", "key", b"two", 0) == 1


@pytest.mark.parametrize("expected", [0, 2])
async def test_refuses_to_delete_another_version(records: Records, expected: int) -> None:
    """Who did not see the last change cannot delete it."""
    await records.put("kind", "key", b"one", 0)

    with pytest.raises(Conflict):
        await records.delete("kind", "key", expected)

    assert await records.get("kind", "key") == Record("key", b"one", 1)


async def test_scans_one_kind_by_key(records: Records) -> None:
    """All records of a kind come in the order of their keys, and no others."""
    for key in ("b", "c", "a"):
        await records.put("kind", key, key.encode(), 0)
    await records.put("other", "d", b"d", 0)

    found = await records.scan("kind")

    assert list(found) == [Record("a", b"a", 1), Record("b", b"b", 1), Record("c", b"c", 1)]
    assert list(await records.scan("none")) == []


async def test_a_second_close_does_nothing(records: Records) -> None:
    """Closing is safe to repeat."""
    await records.close()
    await records.close()
