"""
What the gateway keeps of credentials and users, and what their end does.

Whatever ends a credential, in this process or on the command line, closes the
connections that it opened: at once, or when `Access.poll` sees the change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

import structlog

from trunkline.auth import USER_CREDENTIAL, Authenticator, Chain, Passwords, StoredTokens
from trunkline.authdb import AuthDatabase
from trunkline.clients import Client, Clients, Identity
from trunkline.credentials import ID_PREFIX, Change, Credentials
from trunkline.errors import CloseCode
from trunkline.events import Events
from trunkline.handlers import close_with
from trunkline.ids import now_ms
from trunkline.messages import create_message
from trunkline.payloads import AuthExpiring
from trunkline.users import UserChange, Users

POLL_INTERVAL = 0.5
"""Seconds between two looks at what other processes have written."""

FLUSH_ROUNDS = 120
"""Looks between two notes of when credentials were used last."""

EXPIRY_NOTICE = 60_000
"""Milliseconds before the end of a credential at which its client is told."""

log = structlog.get_logger(__name__)


class Access:
    """
    The credentials and users of one gateway.

    Args:
        database: Where they are kept; None: there are none.
        clients: Whose connections end with their credentials.
        events: Where changes are told for the audit log.
        ended: Lets a closed connection go.

    Attributes:
        credentials: The stored credentials, if there is a database.
        users: The users with passwords, if there is a database.
    """

    def __init__(
        self,
        database: AuthDatabase | None,
        clients: Clients,
        events: Events,
        ended: Callable[[Client, int, str], None],
    ) -> None:
        self.database = database
        self.credentials = Credentials(database) if database is not None else None
        self.users = Users(database) if database is not None else None
        self.refreshed: list[Callable[[], None]] = []
        """Called after another process has written to the database."""
        self._clients = clients
        self._events = events
        self._ended = ended
        if self.credentials is not None and self.users is not None:
            self.credentials.changed.append(self._credential_changed)
            self.users.changed.append(self._user_changed)

    def chain(self, owner: Authenticator, jwts: Authenticator | None) -> Chain:
        """Return what judges all credentials, with `owner` for those without a form."""
        return Chain(
            owner,
            stored=StoredTokens(self.credentials) if self.credentials is not None else None,
            passwords=Passwords(self.users) if self.users is not None else None,
            jwts=jwts,
        )

    def holds(self, identity: Identity) -> bool:
        """Whether what an identity was made from still stands, apart from its expiry."""
        id, version = identity.credential_id, identity.credential_version
        if id is None or self.credentials is None or self.users is None:
            return True
        if id.startswith(USER_CREDENTIAL):
            return self.users.holds(id.removeprefix(USER_CREDENTIAL), version)
        # The host's own authenticator may name credentials that are not ours.
        return not id.startswith(ID_PREFIX) or self.credentials.holds(id, version)

    def poll(self) -> None:
        """Look whether another process has written, and act on it."""
        if self.database is not None and self.database.changed():
            for keeper in (self.credentials, self.users):
                if keeper is not None:
                    keeper.refresh()
            for callback in self.refreshed:
                callback()
            self.enforce()

    async def watch(self) -> None:
        """See within a second that a credential has ended, whoever has ended it."""
        rounds = count(1)
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                self.poll()
                self.check_expiries()
                if next(rounds) % FLUSH_ROUNDS == 0:
                    self.flush()
            except Exception as error:
                log.exception("the credentials cannot be looked at")
                self._events.emit("error", error)

    def check_expiries(self) -> None:
        """Close every connection whose credential has expired, and warn those whose will soon."""
        now = now_ms()
        for client in self._clients:
            if client.expires_at is None:
                continue
            if client.expires_at <= now:
                self.end(client, "the credential has expired")
            elif client.expires_at - now <= EXPIRY_NOTICE and client.warned_of != client.expires_at:
                client.warned_of = client.expires_at
                expiring = AuthExpiring(expires_at=client.expires_at)
                client.send(create_message("auth_expiring", expiring))

    def enforce(self) -> None:
        """Close every connection whose credential has ended."""
        for client in self._clients:
            if client.identity is not None and not self.holds(client.identity):
                self.end(client, "the credential has ended")

    def end(self, client: Client, text: str) -> None:
        """Close a connection with 4003; nothing is delivered to it any more."""
        close_with(client, CloseCode.REVOKED, text)
        self._ended(client, CloseCode.REVOKED, text)

    def flush(self) -> None:
        """Write when credentials were used last."""
        if self.credentials is not None:
            self.credentials.flush()

    def close(self) -> None:
        """Write what is left, and end the threads; the database stays open."""
        self.flush()
        if self.users is not None:
            self.users.close()

    def _credential_changed(self, change: Change) -> None:
        if change.action != "create":
            self.enforce()
        self._events.emit("audit", change.entry())

    def _user_changed(self, change: UserChange) -> None:
        self.enforce()
        self._events.emit("audit", change.entry())
