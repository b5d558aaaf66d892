"""
Signing in: who a client is, by its credential and never by its word.

An `Authenticator` turns a credential into an `Identity`. The `Chain` asks the
one that the credential's form names: stored tokens, users with passwords, or
the owner's secret. Attempts are counted by address before anything is compared.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from trunkline.clients import Client, Identity, Peer, Phase
from trunkline.config import AuthConfig, GatewayConfig
from trunkline.credentials import PREFIX, Credentials, StoredCredential
from trunkline.errors import CloseCode, Disconnect, ErrorCode, GatewayError
from trunkline.events import AuditEntry, Events
from trunkline.handlers import Handlers
from trunkline.ids import now_ms
from trunkline.limits import Lockout
from trunkline.messages import PROTOCOL_VERSION, GatewayMessage, Role
from trunkline.patterns import ANY
from trunkline.payloads import Auth, AuthSuccess, Connect, HelloOk
from trunkline.rights import ALL_SCOPES, pick_role
from trunkline.users import Users

OWNER = Identity(user_id="owner", scopes=ALL_SCOPES, own_quota=False)
"""Who signs in with the gateway's token or password."""
LOCAL = Identity(user_id="local", scopes=ALL_SCOPES, own_quota=False)
"""Everybody, where nobody has to sign in."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What a client proves itself with; never shown in a ``repr``."""

    token: str | None = None
    password: str | None = None
    user: str | None = None
    """Whose password it is; absent: the owner's."""

    def __repr__(self) -> str:
        return "Credential(***)"


USER_CREDENTIAL = "user:"
"""What the `Identity.credential_id` of who signed in as a user begins with."""

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

Granted = Identity | bool | None
"""True stands for the owner; False and None are refusals."""


class Authenticator(Protocol):
    """
    Knows credentials.

    `authenticate` may be a coroutine function. It compares in constant time,
    raises nothing for a wrong credential, and never trusts anything else that
    the client says.
    """

    def authenticate(self, credential: Credential) -> Granted | Awaitable[Granted]:
        """Return whose a credential is; None if it is wrong."""


class SharedSecret:
    """
    One secret, the owner's: a token or a password.

    Digests are compared, so that neither content nor length leaks by timing.
    """

    def __init__(self, config: AuthConfig) -> None:
        self._mode = config.mode
        secret = config.password if config.mode == "password" else config.token
        self._digest = _digest(secret) if secret else None

    @property
    def usable(self) -> bool:
        """Whether there is a secret at all."""
        return self._digest is not None

    def authenticate(self, credential: Credential) -> Identity | None:
        """Return the owner if the secret is right."""
        given, other = credential.token, credential.password
        if self._mode == "password":
            given, other = other, given
        if given is None or other is not None or self._digest is None:
            return None
        return OWNER if hmac.compare_digest(_digest(given), self._digest) else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class StoredTokens:
    """Knows the tokens that the gateway itself has made."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def authenticate(self, credential: Credential) -> Identity | None:
        """Return whom a token's record names."""
        stored = self._credentials.find(credential.token) if credential.token else None
        return identity_of(stored) if stored is not None else None


def identity_of(stored: StoredCredential) -> Identity:
    """Return what a stored credential grants."""
    return Identity(
        user_id=stored.user_id,
        roles=stored.roles,
        scopes=stored.scopes,
        expires_at=stored.expires_at,
        session_patterns=stored.session_patterns,
        agent_patterns=stored.agent_patterns,
        credential_id=stored.id,
        credential_version=stored.version,
        device_id=stored.device_id,
    )


class Passwords:
    """Knows the users that have a password."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def authenticate(self, credential: Credential) -> Identity | None:
        """Return the user whose password it is."""
        if credential.user is None or credential.password is None:
            return None
        user = await self._users.verify(credential.user, credential.password)
        if user is None:
            return None
        return Identity(
            user_id=user.id,
            roles=user.roles,
            scopes=user.scopes,
            session_patterns=user.session_patterns,
            agent_patterns=user.agent_patterns,
            credential_id=USER_CREDENTIAL + user.id,
            credential_version=user.version,
        )


class Chain:
    """
    Picks the one authenticator that a credential's form names.

    What that one refuses is refused: no other is asked. A form is special only
    if its authenticator is there.

    Args:
        owner: Knows whatever has no form of its own: the owner's secret.
        stored: Knows tokens that begin with ``tl_``.
        passwords: Knows users by name and password.
        jwts: Knows tokens of three base64url parts.
    """

    def __init__(
        self,
        owner: Authenticator,
        *,
        stored: Authenticator | None = None,
        passwords: Authenticator | None = None,
        jwts: Authenticator | None = None,
    ) -> None:
        self._owner = owner
        self._stored = stored
        self._passwords = passwords
        self._jwts = jwts

    def authenticate(self, credential: Credential) -> Granted | Awaitable[Granted]:
        """Return whose a credential is."""
        chosen = self.choose(credential)
        return chosen.authenticate(credential) if chosen is not None else None

    def choose(self, credential: Credential) -> Authenticator | None:
        """Return who judges a credential; None: nobody can."""
        token = credential.token
        if credential.user is not None:
            return self._passwords if token is None else None
        if token is not None and credential.password is None:
            if self._stored is not None and token.startswith(PREFIX):
                return self._stored
            if self._jwts is not None and is_jwt(token):
                return self._jwts
        return self._owner


def is_jwt(token: str) -> bool:
    """Whether a token has the form of a JWT: three parts of base64url."""
    return _JWT.fullmatch(token) is not None


def as_identity(granted: Granted) -> Identity | None:
    """Read an authenticator's answer: True stands for the owner, no role at all for nobody."""
    if granted is True:
        return OWNER
    return granted if granted and granted.roles else None


class Keys(Protocol):
    """Knows the devices that have a key of their own; see `trunkline.pairing`."""

    def prove(self, client: Client, payload: Connect) -> bytes | None:
        """Return the key that a ``connect`` proves, if it speaks of one."""

    def greet(self, client: Client, key: bytes) -> None:
        """Let in who proved a key that is paired; have others wait."""

    def describe(self, client: Client, hello: HelloOk) -> None:
        """Say in a ``hello_ok`` how the pairing stands."""


class Redeemed(NamedTuple):
    """What a sign-in code was worth."""

    identity: Identity
    token: str
    """The session's token, which is nowhere else."""


class Codes(Protocol):
    """Knows the sign-in codes; see `trunkline.codes`."""

    def redeem(self, code: str, peer: Peer) -> Redeemed | None:
        """Take a code; None if it is worth nothing."""

    def cancel(self, redeemed: Redeemed) -> None:
        """Undo what a code was taken for."""


RETRY_QUOTA = 30.0
"""Seconds after which a user with too many connections may try again."""


class Door:
    """
    Lets clients in: the handlers of ``connect`` and ``auth``, and the attempt limit.

    Args:
        per_user: Connections of one user.
        verify: Judges a credential.
        holds: Tells whether a stored credential still grants what it granted when it was judged.
        hello: Answers ``connect``.
    """

    def __init__(
        self,
        config: AuthConfig,
        per_user: int,
        verify: Callable[[Credential], Granted | Awaitable[Granted]],
        holds: Callable[[Identity], bool],
        hello: Callable[[Client], HelloOk],
        events: Events,
    ) -> None:
        self._config = config
        self._per_user = per_user
        self._verify = verify
        self._holds = holds
        self._hello = hello
        self._events = events
        self._lockout = Lockout(config.max_failures, config.failure_window, config.lockout)
        self._connections: dict[str, set[Client]] = {}
        self.keys: Keys | None = None
        """Knows the devices' keys; None: they are not looked at."""
        self.codes: Codes | None = None
        """Knows the sign-in codes; None: there are none."""
        self.failures = 0
        """Wrong credentials so far."""
        self.over_quota = 0
        """Connections refused because their user had too many."""

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = auth = config.auth
        self._per_user = config.limits.connections_per_user
        self._lockout.reconfigure(auth.max_failures, auth.failure_window, auth.lockout)

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("connect", self._on_connect, Connect)
        handlers.add("auth", self._on_auth, Auth)

    def check(self, credential: Credential, peer: Peer) -> Identity | Awaitable[Identity]:
        """
        Judge a credential from an address; at once, unless the authenticator must wait.

        Raises:
            GatewayError: ``AUTH_LOCKED`` or ``AUTH_FAILED``.
        """
        self._lockout.attempt(peer.key, time.monotonic())
        try:
            granted = self._verify(credential)
        except BaseException:
            self._lockout.take_back(peer.key)
            raise
        if isinstance(granted, Awaitable):
            return self._checked_later(granted, peer)
        return self._checked(granted, peer)

    async def _checked_later(self, granted: Awaitable[Granted], peer: Peer) -> Identity:
        try:
            outcome = await granted
        except BaseException:
            self._lockout.take_back(peer.key)
            raise
        return self._checked(outcome, peer)

    def _checked(self, granted: Granted, peer: Peer) -> Identity:
        identity = as_identity(granted)
        if identity is None or not self.holds(identity):
            self._failed(peer)
            raise GatewayError(ErrorCode.AUTH_FAILED, "the credential is wrong")
        self._lockout.take_back(peer.key)
        return identity

    def _refused(self, action: str, peer: Peer) -> None:
        entry = AuditEntry(action=action, outcome="refused", address=peer.address)
        self._events.emit("audit", entry)

    def _failed(self, peer: Peer) -> None:
        self.failures += 1
        self._refused("auth.failed", peer)
        if self._lockout.failed(peer.key, time.monotonic()):
            self._refused("auth.locked", peer)

    @contextmanager
    def attempt(self, peer: Peer) -> Iterator[None]:
        """
        Count what is done within as one attempt to sign in; a `GatewayError` makes it a wrong one.

        Raises:
            GatewayError: ``AUTH_LOCKED``, before anything is done within.
        """
        self._lockout.attempt(peer.key, time.monotonic())
        wrong = False
        try:
            yield
        except GatewayError:
            wrong = True
            raise
        finally:
            if wrong:
                self._failed(peer)
            else:
                self._lockout.take_back(peer.key)

    def admit(self, client: Client, identity: Identity) -> None:
        """
        Make a client READY as `identity`.

        Raises:
            GatewayError: ``FORBIDDEN``: the role that it asked for is not granted, or
                the credential is another device's.
            Disconnect: The credential has ended since it was judged, or the user
                has too many connections.
        """
        if client.phase is Phase.CLOSED:
            raise Disconnect(CloseCode.NORMAL, "gone")
        if not self.holds(identity):
            raise Disconnect(CloseCode.REVOKED, "the credential has ended")
        role = client.role or pick_role(identity.roles)
        if role not in identity.roles:
            raise GatewayError(ErrorCode.FORBIDDEN, f"the role {role} is not granted")
        _check_owner(identity, client.device_id)
        if identity.own_quota and not client.passing:
            self._count(client, identity)
        client.identity = identity
        client.user_id = identity.user_id
        client.roles = identity.roles
        client.role = role
        client.scopes = identity.scopes
        client.expires_at = identity.expires_at
        client.advance("auth")
        client.refresh_sender()
        if not client.passing:
            self._events.emit("client:auth", client)
            if self._config.required:
                self._events.emit("audit", client.did("auth.ok", client.id, role=role))

    def holds(self, identity: Identity) -> bool:
        """Whether an identity still stands: neither expired nor revoked."""
        return not _expired(identity) and self._holds(identity)

    def has_room(self, identity: Identity) -> bool:
        """Whether the user may have one more connection; a refusal is counted."""
        held = len(self._connections.get(identity.user_id, ()))
        if not identity.own_quota or held < self._per_user:
            return True
        self.over_quota += 1
        return False

    def _count(self, client: Client, identity: Identity) -> None:
        if not self.has_room(identity):
            raise Disconnect(
                CloseCode.OVER_QUOTA, "this user has too many connections", after=RETRY_QUOTA
            )
        self._connections.setdefault(identity.user_id, set()).add(client)

    def disconnected(self, client: Client) -> None:
        """Note that a connection is gone."""
        mates = self._connections.get(client.user_id)
        if mates is not None:
            mates.discard(client)
            if not mates:
                del self._connections[client.user_id]

    def _on_connect(self, client: Client, message: GatewayMessage, payload: Connect) -> HelloOk:
        version = payload.protocol_version
        if version is not None and version != PROTOCOL_VERSION:
            raise GatewayError(
                ErrorCode.UNSUPPORTED_PROTOCOL,
                "this gateway speaks another version",
                details={"supported": [PROTOCOL_VERSION]},
            )
        self._check_device(client, payload)
        key = self.keys.prove(client, payload) if self.keys is not None else None
        self._bind_role(client, payload.role)
        client.device_id = payload.device_id
        client.advance("connect")
        if payload.device_name is not None:
            client.device_name = payload.device_name
        client.refresh_sender()
        if self.keys is None:
            return self._hello(client)
        if key is not None:
            self.keys.greet(client, key)
        hello = self._hello(client)
        self.keys.describe(client, hello)
        return hello

    def _check_device(self, client: Client, payload: Connect) -> None:
        if client.device_id is not None and client.device_id != payload.device_id:
            raise GatewayError(
                ErrorCode.ALREADY_AUTHENTICATED, "this connection belongs to another device"
            )
        if client.identity is not None:
            _check_owner(client.identity, payload.device_id)

    def _bind_role(self, client: Client, role: Role | None) -> None:
        ready = client.phase is Phase.READY
        first = client.device_id is None
        if role is not None and role != client.role:
            if client.role is not None and not (ready and first):
                raise GatewayError(
                    ErrorCode.ALREADY_AUTHENTICATED, "this connection has another role"
                )
            if ready and role not in client.roles:
                raise GatewayError(ErrorCode.FORBIDDEN, f"the role {role} is not granted")
            client.role = role

    async def _on_auth(self, client: Client, message: GatewayMessage, payload: Auth) -> AuthSuccess:
        if not self._config.required and client.identity is not None:
            return self._welcome(client, payload, client.identity)
        if payload.token is None and payload.password is None and payload.code is None:
            raise GatewayError(ErrorCode.AUTH_REQUIRED, "there is no credential in it")
        if payload.code is not None:
            return self._on_code(client, payload, payload.code)
        credential = Credential(token=payload.token, password=payload.password, user=payload.user)
        checked = self.check(credential, client.peer)
        identity = await checked if isinstance(checked, Awaitable) else checked
        self._enter(client, identity)
        return self._welcome(client, payload, client.identity or identity)

    def _enter(self, client: Client, identity: Identity) -> None:
        if client.identity is not None:
            self._refresh(client, identity)
        else:
            self.admit(client, identity)

    def _on_code(self, client: Client, payload: Auth, code: str) -> AuthSuccess:
        alone = payload.token is None and payload.password is None
        with self.attempt(client.peer):
            taken = self.codes.redeem(code, client.peer) if self.codes and alone else None
            if taken is None:
                raise GatewayError(ErrorCode.AUTH_FAILED, "the code is wrong")
        try:
            self._enter(client, taken.identity)
        except BaseException:
            assert self.codes is not None
            self.codes.cancel(taken)
            raise
        welcome = self._welcome(client, payload, client.identity or taken.identity)
        welcome.token = taken.token
        return welcome

    def _refresh(self, client: Client, identity: Identity) -> None:
        if client.user_id != identity.user_id:
            raise GatewayError(
                ErrorCode.ALREADY_AUTHENTICATED, "this connection belongs to another user"
            )
        if client.role not in identity.roles:
            raise GatewayError(ErrorCode.FORBIDDEN, f"the role {client.role} is not granted")
        _check_owner(identity, client.device_id)
        before = client.identity
        if before is None or not identity.covers(before):
            raise GatewayError(
                ErrorCode.FORBIDDEN, "the credential does not reach as far as this connection"
            )
        # A weaker credential must not prolong what only a stronger one granted, nor a stronger
        # one widen what a connection was opened with.
        client.roles &= identity.roles
        client.scopes &= identity.scopes
        client.identity = replace(
            identity,
            roles=client.roles,
            scopes=client.scopes,
            session_patterns=before.session_patterns,
            agent_patterns=before.agent_patterns,
        )
        client.expires_at = identity.expires_at
        self._events.emit("audit", client.did("auth.refresh", client.id))

    def _welcome(self, client: Client, payload: Auth, identity: Identity) -> AuthSuccess:
        if payload.client_type is not None:
            client.client_type = payload.client_type
        if payload.client_id is not None:
            client.metadata["clientId"] = payload.client_id[:256]
        return AuthSuccess(
            client_id=client.id,
            user_id=client.user_id,
            role=client.role or "",
            scopes=sorted(client.scopes),
            expires_at=identity.expires_at,
            session_patterns=_bounds(identity.session_patterns),
            agent_patterns=_bounds(identity.agent_patterns),
        )


def _check_owner(identity: Identity, device_id: str | None) -> None:
    """Refuse a device's token to a connection that calls itself another device."""
    if device_id is not None and identity.device_id not in (None, device_id):
        raise GatewayError(ErrorCode.FORBIDDEN, "the token belongs to another device")


def _bounds(patterns: tuple[str, ...]) -> list[str] | None:
    return None if patterns == ANY else list(patterns)


def _expired(identity: Identity) -> bool:
    return identity.expires_at is not None and identity.expires_at <= now_ms()
