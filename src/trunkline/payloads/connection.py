"""A connection's life: greeting, signing in, health, the end (protocol.md section 3)."""

from __future__ import annotations

from typing import Any, Literal

from trunkline.messages import Role
from trunkline.payloads.base import (
    Id,
    Name,
    Part,
    Payload,
)


class Connect(Payload, kw_only=True):
    """A client says what it is; answered by ``hello_ok``."""

    type = "connect"
    device_id: Id
    """The device, chosen by the client and stable across connections."""
    device_name: Name | None = None
    """The device's name for people."""
    role: Role | None = None
    """Which of the credential's roles this connection takes; absent: the first granted."""
    protocol_version: int | None = None
    """The version that the client speaks; absent: 1."""
    public_key: str | None = None
    """Ed25519 public key of a paired device, base64url."""
    challenge_response: str | None = None
    """Signature over the challenge, base64url."""


class PresenceEntry(Part, kw_only=True):
    """One device that is signed in."""

    device_id: str | None
    role: str
    connected_at: int


class Health(Part, kw_only=True):
    """How the gateway does."""

    status: Literal["ok", "draining", "degraded"]
    checked_at: int


class Pairing(Part, kw_only=True):
    """A pairing request that waits for approval."""

    request_id: str
    expires_at: int


class HelloOk(Payload, kw_only=True):
    """The gateway's answer to ``connect``."""

    type = "hello_ok"
    sent_by = "gateway"
    paired: bool
    """Whether this device proved a paired key."""
    challenge_nonce: str | None = None
    """What a device signs to prove its key."""
    uptime: int
    """Milliseconds since the gateway started."""
    state_version: int
    """Changes of the public state so far."""
    presence: list[PresenceEntry]
    """Who is signed in; empty until this connection is."""
    health: Health
    auth_required: bool
    """Whether this connection still has to sign in."""
    protocol_version: int
    server_version: str
    client_id: str
    """The gateway's name for this connection."""
    features: list[str]
    limits: dict[str, int | float]
    """The limits that a client should know; sizes in bytes, rates per second, times in milliseconds."""
    heartbeat_interval_ms: int
    pairing: Pairing | None = None
    role: str | None = None
    """The role that this connection has, once it is signed in."""
    scopes: list[str] | None = None
    """The scopes that this connection was granted, once it is signed in."""


class Auth(Payload, kw_only=True):
    """A client signs in; answered by ``auth_success`` or ``error``."""

    type = "auth"
    token: str | None = None
    password: str | None = None
    user: str | None = None
    """Whose password it is; absent: the owner's."""
    code: str | None = None
    """A single-use sign-in code."""
    client_id: str | None = None
    """A name that the client gives itself; kept as metadata, never believed."""
    client_type: Literal["terminal", "web", "ide", "api", "node"] | None = None


class AuthSuccess(Payload, kw_only=True):
    """The credential is good."""

    type = "auth_success"
    sent_by = "gateway"
    client_id: str
    user_id: str
    role: str
    scopes: list[str]
    expires_at: int | None = None
    """When the credential ends, milliseconds since the epoch."""
    token: str | None = None
    """A short-lived token, in exchange for a ``code``."""
    session_patterns: list[str] | None = None
    """Patterns of the sessions that the credential may know of; absent: all."""
    agent_patterns: list[str] | None = None
    """Patterns of the agents that the credential may know of; absent: all."""


class AuthError(Payload, kw_only=True):
    """What older gateways send instead of ``error``; ours never sends it."""

    type = "auth_error"
    sent_by = "gateway"
    code: str = "AUTH_FAILED"
    message: str = ""


class AuthExpiring(Payload, kw_only=True):
    """The credential ends within a minute; sign in again with a fresh one."""

    type = "auth_expiring"
    sent_by = "gateway"
    expires_at: int


class DeviceApproved(Payload, kw_only=True):
    """The pairing was approved; sent once."""

    type = "device_approved"
    sent_by = "gateway"
    device_token: str
    scopes: list[str]


class Ping(Payload, kw_only=True):
    """Are you there? Answered by ``pong``, before sign-in too."""

    type = "ping"


class Pong(Payload, kw_only=True):
    """The answer to ``ping``."""

    type = "pong"
    sent_by = "gateway"
    client_id: str


class HealthRequest(Payload, kw_only=True):
    """How does the gateway do?"""

    type = "health"


class HealthReport(Payload, kw_only=True):
    """The answer to ``health``."""

    type = "health"
    sent_by = "gateway"
    status: Literal["ok", "draining", "degraded"]
    checked_at: int
    uptime: int
    """Milliseconds since the gateway started."""


class GoingAway(Payload, kw_only=True):
    """The gateway is about to close this connection; come back."""

    type = "going_away"
    sent_by = "gateway"
    reconnect_in_ms: int


class ErrorPayload(Payload, kw_only=True):
    """A request was refused."""

    type = "error"
    sent_by = "gateway"
    code: str
    """One of the error codes."""
    message: str
    """A sentence for people."""
    details: dict[str, Any] | None = None
    """Facts for programs."""
    retryable: bool | None = None
    """Whether the same request may succeed later."""
    retry_after_ms: int | None = None
