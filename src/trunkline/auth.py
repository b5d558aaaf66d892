"""
Signing in: who a client is, by its credential and never by its word.

An `Authenticator` turns a credential into an `Identity`. The one here knows
the owner's token or password. Attempts are counted by address before anything
is compared.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from trunkline.clients import Client, Identity, Peer, Phase
from trunkline.config import AuthConfig, GatewayConfig
from trunkline.errors import CloseCode, Disconnect, ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.handlers import Handlers
from trunkline.ids import now_ms
from trunkline.limits import Lockout
from trunkline.messages import PROTOCOL_VERSION, GatewayMessage, Role
from trunkline.payloads import Auth, AuthSuccess, Connect, HelloOk
from trunkline.rights import SCOPES, pick_role

ALL_SCOPES = frozenset({*SCOPES, "admin"})
OWNER = Identity(user_id="owner", scopes=ALL_SCOPES, own_quota=False)
"""Who signs in with the gateway's token or password."""
LOCAL = Identity(user_id="local", scopes=ALL_SCOPES, own_quota=False)
"""Everybody, where nobody has to sign in."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What a client proves itself with; never shown in a ``repr``."""

    token: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return "Credential(***)"


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
        given = credential.password if self._mode == "password" else credential.token
        if given is None or self._digest is None:
            return None
        return OWNER if hmac.compare_digest(_digest(given), self._digest) else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def as_identity(granted: Granted) -> Identity | None:
    """Read an authenticator's answer: True stands for the owner, no role at all for nobody."""
    if granted is True:
        return OWNER
    return granted if granted and granted.roles else None


class Door:
    """Lets clients in: the handlers of ``connect`` and ``auth``, and the attempt limit."""

    def __init__(
        self,
        config: AuthConfig,
        verify: Callable[[Credential], Granted | Awaitable[Granted]],
        hello: Callable[[Client], HelloOk],
        events: Events,
    ) -> None:
        self._config = config
        self._verify = verify
        self._hello = hello
        self._events = events
        self._lockout = Lockout(config.max_failures, config.failure_window, config.lockout)
        self.failures = 0
        """Wrong credentials so far."""

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = auth = config.auth
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
        if identity is None or _expired(identity):
            self.failures += 1
            self._lockout.failed(peer.key, time.monotonic())
            raise GatewayError(ErrorCode.AUTH_FAILED, "the credential is wrong")
        self._lockout.take_back(peer.key)
        return identity

    def admit(self, client: Client, identity: Identity) -> None:
        """
        Make a client READY as `identity`.

        Raises:
            GatewayError: ``FORBIDDEN``: the role that it asked for is not granted.
        """
        if client.phase is Phase.CLOSED:
            raise Disconnect(CloseCode.NORMAL, "gone")
        role = client.role or pick_role(identity.roles)
        if role not in identity.roles:
            raise GatewayError(ErrorCode.FORBIDDEN, f"the role {role} is not granted")
        client.identity = identity
        client.user_id = identity.user_id
        client.roles = identity.roles
        client.role = role
        client.scopes = identity.scopes
        client.expires_at = identity.expires_at
        client.advance("auth")
        client.refresh_sender()
        self._events.emit("client:auth", client)

    def _on_connect(self, client: Client, message: GatewayMessage, payload: Connect) -> HelloOk:
        version = payload.protocol_version
        if version is not None and version != PROTOCOL_VERSION:
            raise GatewayError(
                ErrorCode.UNSUPPORTED_PROTOCOL,
                "this gateway speaks another version",
                details={"supported": [PROTOCOL_VERSION]},
            )
        self._check_device(client, payload)
        self._bind_role(client, payload.role)
        client.device_id = payload.device_id
        client.advance("connect")
        if payload.device_name is not None:
            client.device_name = payload.device_name
        client.refresh_sender()
        return self._hello(client)

    def _check_device(self, client: Client, payload: Connect) -> None:
        if client.device_id is not None and client.device_id != payload.device_id:
            raise GatewayError(
                ErrorCode.ALREADY_AUTHENTICATED, "this connection belongs to another device"
            )

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
        credential = Credential(token=payload.token, password=payload.password)
        checked = self.check(credential, client.peer)
        identity = await checked if isinstance(checked, Awaitable) else checked
        if client.identity is not None:
            self._refresh(client, identity)
        else:
            self.admit(client, identity)
        return self._welcome(client, payload, identity)

    def _refresh(self, client: Client, identity: Identity) -> None:
        if client.user_id != identity.user_id:
            raise GatewayError(
                ErrorCode.ALREADY_AUTHENTICATED, "this connection belongs to another user"
            )
        if client.role not in identity.roles:
            raise GatewayError(ErrorCode.FORBIDDEN, f"the role {client.role} is not granted")
        # A weaker credential must not prolong what only a stronger one granted.
        client.roles &= identity.roles
        client.scopes &= identity.scopes
        client.identity = identity
        client.expires_at = identity.expires_at

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
        )


def _expired(identity: Identity) -> bool:
    return identity.expires_at is not None and identity.expires_at <= now_ms()
