"""What the HTTP API answers where no message of the protocol does."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from trunkline.messages import Sender
from trunkline.payloads import RouteError


class Answer(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all answers."""


class AgentStats(Answer, kw_only=True):
    """The registered agents."""

    total: int
    online: int
    by_type: dict[str, int]


class Traffic(Answer, kw_only=True):
    """Messages by type since the start; custom types are ``other``."""

    received: dict[str, int] = msgspec.field(name="in")
    sent: dict[str, int] = msgspec.field(name="out")


class Stats(Answer, kw_only=True):
    """
    What goes on, as far as the caller may know of it.

    For a credential with patterns, what is there now is counted within them, and
    the counts since the start are absent: they are of everybody together.
    """

    uptime: float
    """Seconds."""
    version: str
    clients: int
    authenticated: int
    sessions: int
    agents: AgentStats
    open_requests: int
    buffered_bytes: int
    slow_clients: int
    connections: int
    loop_lag_ms: float
    """The longest of the last ten seconds."""
    requests: dict[str, int] | None = None
    """How requests ended: ``ok``, ``failed``, or an error code."""
    stray_responses: int | None = None
    deliveries: int | None = None
    messages: Traffic | None = None
    refused: int | None = None
    errors: dict[str, int] | None = None
    auth_failures: int | None = None
    state_version: int | None = None


class ClientEntry(Answer, kw_only=True):
    """One connection."""

    id: str
    user_id: str
    role: str | None
    device_id: str | None = None
    device_name: str | None = None
    client_type: str | None = None
    address: str
    connected_at: int
    """Milliseconds since the epoch."""
    sessions: list[str]
    agents: list[str]
    buffered: int
    lagging: bool


class ClientListing(Answer, kw_only=True):
    """Connections, the oldest first."""

    clients: list[ClientEntry]
    more: bool


class SessionDetail(Answer, kw_only=True):
    """One session."""

    session_id: str
    name: str | None
    owner: str
    visibility: str
    metadata: dict[str, Any]
    created_at: int
    epoch: str
    first: int
    """The oldest ``seq`` that the log still has."""
    head: int
    member_count: int
    members: list[Sender]
    """At most 100 of the members."""


class RequestAnswer(Answer, kw_only=True):
    """What became of a request."""

    request_id: str
    agent_id: str
    ok: bool
    result: Raw | None = None
    error: RouteError | None = None
    chunks: list[Raw] | None = None
    """What came before the end, if anything did."""


class OpenRequest(Answer, kw_only=True):
    """One request that is not answered yet."""

    id: str
    asker_id: str
    user_id: str
    capability: str | None = None
    agent_id: str | None = None
    """The agent that was asked for."""
    agent: str | None
    """The agent that is at it."""
    waiting: bool
    age: float
    """Seconds."""
    timeout_ms: int


class RequestListing(Answer, kw_only=True):
    """The open requests, the oldest first."""

    requests: list[OpenRequest]
