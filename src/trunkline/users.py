"""
Users with passwords.

Passwords are kept as argon2id. To judge one takes memory and time on purpose,
so it is done in a few threads with a short queue, and costs the same for a
user that does not exist.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import argon2
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec.structs import asdict

from trunkline.authdb import AuthDatabase
from trunkline.errors import ErrorCode, GatewayError
from trunkline.events import AuditEntry
from trunkline.grants import Grant, check_name, from_row, make_grant, to_row
from trunkline.ids import now_ms
from trunkline.patterns import ANY

WORKERS = 4
"""Passwords that are judged at the same time."""

QUEUE = 32
"""Passwords that wait to be judged; the next is refused with ``OVERLOADED``."""

RESERVED = frozenset({"owner", "local", "gateway"})
"""Users that the gateway itself makes."""

_hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

_NOBODY = f"$argon2id$v=19$m={19 * 1024},t=2,p=1${'A' * 22}${'A' * 43}"
"""The hash of no password; it costs as much as any."""

_TABLE = """
CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    password TEXT NOT NULL,
    roles TEXT NOT NULL,
    scopes TEXT NOT NULL,
    session_patterns TEXT NOT NULL,
    agent_patterns TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT
"""


class StoredUser(Grant, frozen=True, kw_only=True):
    """One user; times are milliseconds since the epoch."""

    id: str
    version: int
    """Another one after every change."""
    created_at: int


class UserChange(NamedTuple):
    """What this process did to a user."""

    action: Literal["add", "remove", "passwd"]
    user_id: str
    by: str
    """The user who did it, as far as that is known."""

    def entry(self) -> AuditEntry:
        """Return what the audit log says of it."""
        return AuditEntry(action=f"user.{self.action}", actor=self.by, target=self.user_id)


class PasswordPool:
    """The threads that judge passwords."""

    def __init__(self, workers: int = WORKERS, queue: int = QUEUE) -> None:
        self._workers = workers
        self._threads: ThreadPoolExecutor | None = None
        self._places = threading.Semaphore(workers + queue)

    async def run(self, function: Callable[..., bool], *args: Any) -> bool:
        """
        Call a function in one of the threads.

        Raises:
            GatewayError: ``OVERLOADED``: too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise GatewayError(
                ErrorCode.OVERLOADED, "too many passwords wait to be judged", retry_after=1.0
            )
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="password")
        future = self._threads.submit(function, *args)
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def _left(self, future: Future[bool]) -> None:
        self._places.release()

    def close(self) -> None:
        """Forget what waits, and end the threads; a later `run` makes new ones."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


class Users:
    """
    The users of a database; one such object for each open database.

    Args:
        database: Where they are kept.
        clock: Milliseconds since the epoch.
    """

    def __init__(self, database: AuthDatabase, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock
        self._by_id: dict[str, StoredUser] = {}
        self._hashes: dict[str, str] = {}
        self._pool = PasswordPool()
        self.changed: list[Callable[[UserChange], None]] = []
        """Called after this process has made, changed or removed a user."""
        database.create(_TABLE)
        self._seen = database.version()
        self.refresh()

    def add(
        self,
        id: str,
        password: str,
        *,
        roles: Iterable[str] = ("webchat",),
        scopes: Iterable[str] = (),
        session_patterns: Iterable[str] = ANY,
        agent_patterns: Iterable[str] = ANY,
        by: str = "",
    ) -> StoredUser:
        """
        Make a user.

        Raises:
            ValueError: There is one with this id, or something of it cannot be.
        """
        self._keep_up()
        if check_name("user id", id) in RESERVED:
            raise ValueError(f"the user id {id} is the gateway's own")
        if id in self._by_id:
            raise ValueError(f"there is a user {id} already")
        grant = make_grant(roles, scopes, session_patterns, agent_patterns)
        user = StoredUser(
            id=id, version=self._next_version(id), created_at=self._clock(), **asdict(grant)
        )
        hashed = _hash(password)
        row = to_row(user)
        columns, marks = ", ".join(row), ", ".join("?" for _ in row)
        self._database.write(
            f"INSERT INTO users ({columns}, password) VALUES ({marks}, ?)", *row.values(), hashed
        )
        self._by_id[id], self._hashes[id] = user, hashed
        self._tell(UserChange("add", id, by))
        return user

    def set_password(self, id: str, password: str, by: str = "") -> bool:
        """Give a user another password, which ends what the old one opened; False: no such user."""
        self._keep_up()
        hashed, version = _hash(password), self._next_version(id)
        sql = "UPDATE users SET password = ?, version = ? WHERE id = ?"
        return self._changed(
            self._database.write(sql, hashed, version, id), UserChange("passwd", id, by)
        )

    def remove(self, id: str, by: str = "") -> bool:
        """Remove a user; False if there is none. `Credentials.revoke_user` ends the tokens."""
        rows = self._database.write("DELETE FROM users WHERE id = ?", id)
        return self._changed(rows, UserChange("remove", id, by))

    def _changed(self, rows: int, change: UserChange) -> bool:
        if rows:
            self.refresh()
            self._tell(change)
        return rows > 0

    def _tell(self, change: UserChange) -> None:
        for listener in self.changed:
            listener(change)

    def _next_version(self, id: str) -> int:
        # A user who was removed and made again must not get the old one's connections.
        known = self._by_id.get(id)
        return max(self._clock(), known.version + 1 if known is not None else 0)

    def get(self, id: str) -> StoredUser | None:
        """Return a user."""
        self._keep_up()
        return self._by_id.get(id)

    def list(self) -> list[StoredUser]:
        """Return all users in the order of their ids."""
        self._keep_up()
        return [self._by_id[id] for id in sorted(self._by_id)]

    def holds(self, id: str, version: int) -> bool:
        """Whether a user is still as it was when it signed in."""
        user = self._by_id.get(id)
        return user is not None and user.version == version

    async def verify(self, id: str, password: str) -> StoredUser | None:
        """
        Return the user whose password this is.

        Raises:
            GatewayError: ``OVERLOADED``: too many passwords wait to be judged.
        """
        self._keep_up()
        user, hashed = self._by_id.get(id), self._hashes.get(id)
        right = await self._pool.run(_matches, hashed or _NOBODY, password)
        return user if right else None

    def _keep_up(self) -> None:
        if self._database.version() != self._seen:
            self.refresh()

    def refresh(self) -> None:
        """Read again what another process may have written."""
        self._seen = self._database.version()
        self._by_id.clear()
        self._hashes.clear()
        for row in self._database.rows("SELECT * FROM users"):
            self._hashes[row["id"]] = row["password"]
            self._by_id[row["id"]] = from_row(row, StoredUser)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()


def _hash(password: str) -> str:
    if not password:
        raise ValueError("the password is empty")
    return _hasher.hash(password)


def _matches(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except (VerificationError, InvalidHashError, UnicodeError):
        return False
