"""
Sign-in codes: a link may hold one where it must not hold a token.

A code is worth one sign-in, on this machine, within two minutes. What it is
exchanged for is a session's token: revocable, short-lived, and never worth
more than what its maker had. The gateway and the command line both make them;
only the gateway takes them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import msgspec

from trunkline.auth import Redeemed, identity_of
from trunkline.authdb import AuthDatabase
from trunkline.clients import Identity, Peer
from trunkline.credentials import Change, Credentials
from trunkline.grants import check_name
from trunkline.ids import now_ms
from trunkline.rights import ALL_SCOPES

LIFETIME = 120_000
"""Milliseconds that a code is valid."""

SESSION_LIFETIME = 12 * 3_600_000
"""Milliseconds that the token is valid for which a code is exchanged."""

KEPT = 256
"""Codes that are kept at most; the oldest go first."""

PREFIX = "tl_c_"
"""What every code begins with; no kind of token does."""

_TABLES = """
CREATE TABLE IF NOT EXISTS codes (
    digest BLOB PRIMARY KEY,
    identity TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS code_sessions (
    credential_id TEXT PRIMARY KEY,
    maker TEXT NOT NULL
) STRICT;
"""


class SignInCodes:
    """
    The codes that were made and not used. Not for several threads.

    Args:
        database: Where they are, by their digests.
        credentials: Where the sessions' tokens are.
        holds: Tells whether what somebody signed in with still stands;
            only who redeems has to know.
    """

    def __init__(
        self,
        database: AuthDatabase,
        credentials: Credentials,
        holds: Callable[[Identity], bool] = lambda identity: True,
    ) -> None:
        self._db = database
        self._credentials = credentials
        self._holds = holds
        credentials.changed.append(self._changed)
        database.create(_TABLES)

    def create(self, identity: Identity) -> tuple[str, int]:
        """
        Make a code with which somebody signs in once more.

        Returns:
            The code, and when it ends in milliseconds since the epoch.

        Raises:
            ValueError: No stored credential can be made for such a user.
        """
        check_name("user id", identity.user_id)
        code = PREFIX + secrets.token_urlsafe(32)
        now = now_ms()
        ends = min(now + LIFETIME, identity.expires_at or now + LIFETIME)
        with self._db.transaction():
            self._db.write("DELETE FROM codes WHERE expires_at <= ?", now)
            self._db.write(
                "INSERT INTO codes VALUES (?, ?, ?)",
                *(_digest(code), msgspec.json.encode(identity).decode(), ends),
            )
            self._db.write(
                "DELETE FROM codes WHERE rowid NOT IN"
                " (SELECT rowid FROM codes ORDER BY rowid DESC LIMIT ?)",
                KEPT,
            )
        return code, ends

    def redeem(self, code: str, peer: Peer) -> Redeemed | None:
        """
        Take a code, and make the token of a session for it.

        Of two who come with the same code, in two processes even, one gets it.

        Args:
            peer: Who comes with it; from elsewhere than this machine, or
                through a proxy, the code is not looked at, and stays valid.

        Returns:
            None: wrong, used, too old, made by a credential that has ended
            since, or not from this machine.
        """
        if not peer.local:
            return None
        taken = self._db.rows("DELETE FROM codes WHERE digest = ? RETURNING *", _digest(code))
        if not taken or taken[0]["expires_at"] <= now_ms():
            return None
        maker = msgspec.json.decode(taken[0]["identity"], type=Identity)
        return self._session(maker) if self._holds(maker) else None

    def _session(self, maker: Identity) -> Redeemed:
        ends = now_ms() + SESSION_LIFETIME
        stored, token = self._credentials.create(
            name="sign-in link",
            user_id=maker.user_id,
            roles=maker.roles,
            scopes=maker.scopes & ALL_SCOPES,  # a host's own words are worth nothing here
            session_patterns=maker.session_patterns,
            agent_patterns=maker.agent_patterns,
            expires_at=min(ends, maker.expires_at or ends),
            kind="session",
            created_by=maker.user_id,
        )
        if maker.credential_id is not None:
            self._db.write(
                "INSERT INTO code_sessions VALUES (?, ?)",
                *(stored.id, msgspec.json.encode(maker).decode()),
            )
        return Redeemed(identity_of(stored), token)

    def cancel(self, redeemed: Redeemed) -> None:
        """End the session of a code again: its client could not be let in."""
        if redeemed.identity.credential_id is not None:
            self._credentials.revoke(redeemed.identity.credential_id, by="gateway")

    def _changed(self, change: Change) -> None:
        if change.action != "create":
            self.refresh()

    def refresh(self) -> None:
        """End the sessions of makers whose own credentials have ended."""
        for row in self._db.rows("SELECT * FROM code_sessions"):
            session = self._credentials.get(row["credential_id"])
            over = session is None or not session.valid(now_ms())
            if over or not self._holds(msgspec.json.decode(row["maker"], type=Identity)):
                self._credentials.revoke(row["credential_id"], by="gateway")
                self._db.write(
                    "DELETE FROM code_sessions WHERE credential_id = ?", row["credential_id"]
                )


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).digest()
