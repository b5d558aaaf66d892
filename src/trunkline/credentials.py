"""
Stored credentials: tokens that the gateway made, and only it can judge.

A secret has 256 random bits, is shown once, and is kept as its SHA-256. What
it grants stands in the gateway's record. The command line changes the same
file under a running gateway, so every attempt is judged by what the file says
at that moment, and `changed` tells when live connections must be looked at.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from msgspec.structs import asdict, replace

from trunkline.authdb import AuthDatabase
from trunkline.events import AuditEntry
from trunkline.grants import Grant, check_name, from_row, make_grant, to_row
from trunkline.ids import now_ms, random_id
from trunkline.patterns import ANY

Kind = Literal["token", "device", "session"]

ID_PREFIX = "k_"
"""What the id of every credential begins with."""

PREFIX = "tl_"
"""What every secret of ours begins with."""

PREFIXES: dict[Kind, str] = {"token": "tl_", "device": "tl_d_", "session": "tl_s_"}
"""What tells a reader, and a scanner for leaked secrets, what a string is."""

KEPT_AFTER_END = 3_600_000
"""Milliseconds for which an ended credential of the kind ``session`` stays in the file."""

_TABLE = """
CREATE TABLE IF NOT EXISTS credentials (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    name TEXT NOT NULL,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    roles TEXT NOT NULL,
    scopes TEXT NOT NULL,
    session_patterns TEXT NOT NULL,
    agent_patterns TEXT NOT NULL,
    device_id TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    last_used_at INTEGER
) STRICT
"""

_NO_DIGEST = bytes(32)


class StoredCredential(Grant, frozen=True, kw_only=True):
    """One stored credential; times are milliseconds since the epoch."""

    id: str
    name: str
    user_id: str
    kind: Kind
    device_id: str | None
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    version: int = 1
    """Counts its secrets."""

    def valid(self, now: int) -> bool:
        """Whether it lets anybody in."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class Change(NamedTuple):
    """What this process did to a credential."""

    action: Literal["create", "revoke", "rotate"]
    credential: StoredCredential
    by: str
    """The user who did it, as far as that is known."""

    def entry(self) -> AuditEntry:
        """Return what the audit log says of it."""
        stored = self.credential
        return AuditEntry(
            action=f"token.{self.action}",
            actor=self.by,
            target=stored.id,
            detail={"kind": stored.kind, "name": stored.name, "user": stored.user_id},
        )


class Credentials:
    """
    The credentials of a database; one such object for each open database.

    Args:
        database: Where they are kept.
        clock: Milliseconds since the epoch.
    """

    def __init__(self, database: AuthDatabase, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock
        self._by_id: dict[str, StoredCredential] = {}
        self._by_digest: dict[bytes, str] = {}
        self._digests: dict[str, bytes] = {}
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._used: dict[str, int] = {}
        self.changed: list[Callable[[Change], None]] = []
        """Called after this process has made, revoked or rotated a credential."""
        database.create(_TABLE)
        self._seen = database.version()
        self.refresh()

    # Making

    def create(
        self,
        *,
        name: str,
        user_id: str,
        roles: Iterable[str],
        scopes: Iterable[str] = frozenset(),
        session_patterns: Iterable[str] = ANY,
        agent_patterns: Iterable[str] = ANY,
        expires_at: int | None = None,
        kind: Kind = "token",
        device_id: str | None = None,
        created_by: str = "",
    ) -> tuple[StoredCredential, str]:
        """
        Make a credential.

        Args:
            name: What people call it.
            user_id: Who signs in with it.
            expires_at: When it ends; absent: never.

        Returns:
            The credential, and its secret, which is nowhere else.

        Raises:
            ValueError: The sentence says what cannot be granted so.
        """
        now = self._clock()
        grant = make_grant(roles, scopes, session_patterns, agent_patterns)
        if expires_at is not None and expires_at <= now:
            raise ValueError("the credential would have expired already")
        stored = StoredCredential(
            id=random_id(ID_PREFIX),
            name=check_name("name", name),
            user_id=check_name("user id", user_id),
            kind=kind,
            device_id=device_id,
            created_at=now,
            created_by=created_by,
            expires_at=expires_at,
            revoked_at=None,
            last_used_at=None,
            **asdict(grant),
        )
        secret = _make_secret(kind)
        self._insert(stored, _digest(secret))
        self._tell("create", stored, created_by)
        return stored, secret

    def _insert(self, stored: StoredCredential, digest: bytes) -> None:
        row = {**to_row(stored), "digest": digest}
        columns, marks = ", ".join(row), ", ".join("?" for _ in row)
        self._database.write(f"INSERT INTO credentials ({columns}) VALUES ({marks})", *row.values())
        self._keep(stored, digest)

    def revoke(self, id: str, by: str = "") -> bool:
        """End a credential; False if there is none with this id, or it was revoked before."""
        stored = self._current(id)
        if stored is None or stored.revoked_at is not None:
            return False
        now = self._clock()
        self._database.write("UPDATE credentials SET revoked_at = ? WHERE id = ?", now, id)
        revoked = self._by_id[id] = replace(stored, revoked_at=now)
        self._tell("revoke", revoked, by)
        return True

    def revoke_user(self, user_id: str, by: str = "") -> int:
        """End all credentials of a user; returns how many."""
        self._keep_up()
        return sum(self.revoke(c.id, by) for c in self.list() if c.user_id == user_id)

    def rotate(self, id: str, by: str = "") -> tuple[StoredCredential, str]:
        """
        Give a credential another secret; the old one is dead from then on.

        Raises:
            ValueError: There is none with this id, or it has ended.
        """
        stored = self._current(id)
        if stored is None or not stored.valid(self._clock()):
            raise ValueError("no living credential has this id")
        secret = _make_secret(stored.kind)
        rotated = replace(stored, version=stored.version + 1)
        self._database.write(
            "UPDATE credentials SET digest = ?, version = ? WHERE id = ?",
            *(_digest(secret), rotated.version, id),
        )
        self._keep(rotated, _digest(secret))
        self._tell("rotate", rotated, by)
        return rotated, secret

    def _tell(
        self, action: Literal["create", "revoke", "rotate"], stored: StoredCredential, by: str
    ) -> None:
        for listener in self.changed:
            listener(Change(action, stored, by))

    # Finding

    def find(self, secret: str) -> StoredCredential | None:
        """Return the valid credential of a secret, and note that it was used."""
        self._keep_up()
        given, now = _digest(secret), self._clock()
        id = self._by_digest.get(given, "")
        stored = self._by_id.get(id)
        right = hmac.compare_digest(self._digests.get(id, _NO_DIGEST), given)
        if stored is None or not right or not stored.valid(now):
            return None
        self._used[id] = now
        return stored

    def look_up(self, secret: str) -> StoredCredential | None:
        """Return the credential of a secret, ended or not, without letting anybody in."""
        self._keep_up()
        stored = self._by_id.get(self._by_digest.get(_digest(secret), ""))
        return self._with_use(stored) if stored is not None else None

    def get(self, id_or_name: str) -> StoredCredential | None:
        """Return a credential by its id, or by its name if only one living has it."""
        self._keep_up()
        stored = self._by_id.get(id_or_name)
        if stored is None:
            named = [c for c in self._by_id.values() if c.name == id_or_name]
            living = [c for c in named if c.valid(self._clock())]
            found = living or named
            stored = found[0] if len(found) == 1 else None
        return self._with_use(stored) if stored is not None else None

    def list(self) -> list[StoredCredential]:
        """Return all credentials, ended ones too, the oldest first."""
        self._keep_up()
        found = sorted(self._by_id.values(), key=lambda stored: (stored.created_at, stored.id))
        return [self._with_use(stored) for stored in found]

    def holds(self, id: str, version: int) -> bool:
        """Whether what was granted when a secret was shown is still granted."""
        stored = self._by_id.get(id)
        return stored is not None and stored.version == version and stored.valid(self._clock())

    def _current(self, id: str) -> StoredCredential | None:
        self._keep_up()
        return self._by_id.get(id)

    def _with_use(self, stored: StoredCredential) -> StoredCredential:
        used = self._used.get(stored.id)
        return replace(stored, last_used_at=used) if used is not None else stored

    # Keeping up with the file

    def _keep_up(self) -> None:
        if self._database.version() != self._seen:
            self.refresh()

    def refresh(self) -> None:
        """Read again what another process may have written."""
        self._seen = self._database.version()
        before, known = self._rows, self._by_id
        self._by_id, self._by_digest, self._digests, self._rows = {}, {}, {}, {}
        for row in self._database.rows("SELECT * FROM credentials"):
            # Most rows are as they were, and to compare one is much quicker than to read it.
            id, values = row["id"], tuple(row)
            same = id in known and before.get(id) == values
            self._keep(known[id] if same else from_row(row, StoredCredential), row["digest"])
            self._rows[id] = values

    def _keep(self, stored: StoredCredential, digest: bytes) -> None:
        self._by_digest.pop(self._digests.get(stored.id, b""), None)
        self._by_id[stored.id] = stored
        self._by_digest[digest] = stored.id
        self._digests[stored.id] = digest

    def flush(self) -> None:
        """Write when credentials were used last, and forget short-lived ones that have ended."""
        used, self._used = self._used, {}
        if used:
            with self._database.transaction():
                for id, at in used.items():
                    sql = "UPDATE credentials SET last_used_at = ? WHERE id = ?"
                    self._database.write(sql, at, id)
                    if id in self._by_id:
                        self._by_id[id] = replace(self._by_id[id], last_used_at=at)
        self._prune(self._clock() - KEPT_AFTER_END)

    def _prune(self, before: int) -> None:
        sql = (
            "DELETE FROM credentials WHERE kind = 'session' AND (expires_at < ? OR revoked_at < ?)"
        )
        if self._database.write(sql, before, before):
            self.refresh()


def _make_secret(kind: Kind) -> str:
    random = secrets.token_urlsafe(32)
    while random.startswith(("d_", "s_")):  # it would look like another kind
        random = secrets.token_urlsafe(32)
    return PREFIXES[kind] + random


def kind_of(secret: str) -> Kind | None:
    """Tell by its prefix which kind of credential a secret is; None: none of ours."""
    if not secret.startswith(PREFIX):
        return None
    for kind in ("device", "session"):
        if secret.startswith(PREFIXES[kind]):
            return kind
    return "token"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
