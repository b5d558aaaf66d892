"""
Small facts that outlive a connection: sessions, owners of agent ids.

A record is bytes under a kind and a key, with a version that grows by one at
every change. Contract (``tests/contracts/test_records.py``): `put` and
`delete` happen only if the version is the expected one (compare-and-set), and
are stored at the store's durability class once they return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Record(NamedTuple):
    """One stored fact."""

    key: str
    value: bytes
    version: int
    """1 for a new record; grows by one at every change."""


class Conflict(Exception):
    """The record is not at the expected version."""


class Records(Protocol):
    """A store of small facts; see the module for its contract."""

    async def open(self) -> None:
        """Begin; raises `ConfigError` when the store cannot be used."""

    async def close(self) -> None:
        """Write what is left and let go; a second call does nothing."""

    async def get(self, kind: str, key: str) -> Record | None:
        """Return the record, if there is one."""

    async def put(self, kind: str, key: str, value: bytes, expected: int) -> int:
        """
        Write a record whose version is `expected` (0: it must not exist).

        Returns:
            The new version.

        Raises:
            Conflict: The version is another.
        """

    async def delete(self, kind: str, key: str, expected: int) -> None:
        """Delete a record whose version is `expected`; raises `Conflict`."""

    async def scan(self, kind: str) -> Sequence[Record]:
        """Return all records of a kind, by key."""
