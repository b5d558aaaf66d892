"""Records in memory: gone when the process ends."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline.records import Conflict, Record


class MemoryRecords:
    """Small facts that live as long as the process; no method ever suspends."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Record]] = {}

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Forget everything."""
        self._kinds.clear()

    async def get(self, kind: str, key: str) -> Record | None:
        """Return the record, if there is one."""
        return self._kinds.get(kind, {}).get(key)

    async def put(self, kind: str, key: str, value: bytes, expected: int) -> int:
        """Write a record at its expected version; see `Records.put`."""
        records = self._kinds.setdefault(kind, {})
        _check(records.get(key), kind, key, expected)
        records[key] = Record(key, value, expected + 1)
        return expected + 1

    async def delete(self, kind: str, key: str, expected: int) -> None:
        """Delete a record whose version is `expected`; raises `Conflict`."""
        records = self._kinds.get(kind, {})
        _check(records.get(key), kind, key, expected)
        records.pop(key, None)

    async def scan(self, kind: str) -> Sequence[Record]:
        """Return all records of a kind, by key."""
        return sorted(self._kinds.get(kind, {}).values())


def _check(record: Record | None, kind: str, key: str, expected: int) -> None:
    version = record.version if record else 0
    if version != expected:
        raise Conflict(f"{kind} {key} is at version {version}, not {expected}")
