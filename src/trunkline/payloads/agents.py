"""Agents and the requests that they answer (protocol.md section 5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from trunkline.payloads.base import (
    NULL,
    AgentType,
    Count,
    Id,
    Name,
    Part,
    Payload,
    RoutePolicy,
    Text,
)
from trunkline.payloads.connection import PresenceEntry
from trunkline.payloads.sessions import SessionEntry


class ToolSpec(Part, kw_only=True):
    """A tool that an agent offers."""

    name: Name
    description: Text | None = None
    input_schema: dict[str, Any] | None = None
    """JSON Schema of the arguments."""


class AgentCapabilities(Part, kw_only=True):
    """What an agent can do."""

    chat: bool = False
    tools: list[Name | ToolSpec] = []
    streaming: bool = False
    modes: list[Name] = []
    custom: dict[str, Any] | None = None


class AgentRegister(Payload, kw_only=True):
    """An agent announces itself; again on the same connection is an update."""

    type = "agent_register"
    id: Id
    agent_type: AgentType = msgspec.field(name="type", default="custom")
    name: Name = ""
    capabilities: AgentCapabilities = msgspec.field(default_factory=AgentCapabilities)
    metadata: dict[str, Any] | None = None
    max_concurrent: Count = 0
    """Requests at a time; 0 is unlimited."""
    labels: dict[str, str] | None = None
    grace_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    """How long runs and requests outlive a lost connection."""
    resume: dict[str, int] | None = None
    """``{generation}`` of the registration to take over."""


class ResumedRun(Part, kw_only=True):
    """A run that an agent takes over again."""

    session_id: str | None = None
    """The session; a run's id is unique only there."""
    run_id: str
    index: int


class AgentRegistered(Payload, kw_only=True):
    """The registration stands."""

    type = "agent_registered"
    sent_by = "gateway"
    agent_id: str
    generation: int
    """Grows with every registration; a fencing token."""
    lease_ms: int
    runs: list[ResumedRun]
    requests: list[str]
    """Open requests of this agent, by the gateway's ids."""
    received: dict[str, int] | None = None
    """How many ``route_response`` of these requests have arrived, where any have: the next is due."""


class AgentHeartbeat(Payload, kw_only=True):
    """An agent is alive, and this busy."""

    type = "agent_heartbeat"
    id: Id
    status: Literal["online", "busy"] | None = None
    load: Annotated[float, Meta(ge=0)] | None = None


class AgentHeartbeatOk(Payload, kw_only=True):
    """The lease is renewed."""

    type = "agent_heartbeat_ok"
    sent_by = "gateway"
    lease_ms: int


class AgentUnregister(Payload, kw_only=True):
    """An agent goes."""

    type = "agent_unregister"
    id: Id


class AgentUnregistered(Payload, kw_only=True):
    """The agent is gone."""

    type = "agent_unregistered"
    sent_by = "gateway"
    agent_id: str


class AgentList(Payload, kw_only=True):
    """Which agents are there?"""

    type = "agent_list"
    capability: Name | None = None
    agent_type: AgentType | None = msgspec.field(name="type", default=None)
    status: Literal["online", "busy", "offline"] | None = None


class AgentEntry(Part, kw_only=True):
    """One agent in a list."""

    id: str
    agent_type: str = msgspec.field(name="type")
    name: str
    capabilities: AgentCapabilities
    status: Literal["online", "busy", "offline"]
    generation: int
    load: float | None = None
    labels: dict[str, str] | None = None
    metadata: dict[str, Any] | None = None


class AgentListing(Payload, kw_only=True):
    """The answer to ``agent_list``."""

    type = "agent_list"
    sent_by = "gateway"
    agents: list[AgentEntry]


class RouteRequest(Payload, kw_only=True):
    """Ask an agent; answered by ``route_response`` messages or one ``error``."""

    type = "route_request"
    capability: Name | None = None
    agent_id: Id | None = None
    method: Name | None = None
    params: Raw = NULL
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 60_000
    stream: bool = False
    idempotent: bool = False
    """The request may be given to another agent if nothing has been answered yet."""
    policy: RoutePolicy | None = None
    labels: dict[str, str] | None = None
    """The agent must have all of these."""
    parent_id: Id | None = None
    """The request or run that the asker is serving."""


class RouteDelivery(Payload, kw_only=True):
    """A request, as the agent gets it."""

    type = "route_request"
    sent_by = "gateway"
    request_id: str
    """The gateway's own id; the answer must name it."""
    capability: str | None
    method: str | None
    params: Raw
    stream: bool
    deadline: int
    """Milliseconds since the epoch."""
    chain: list[str]
    """The agents that this request has passed through."""


class RouteError(Part, kw_only=True):
    """Why the agent could not do it."""

    code: str
    message: str


class RouteResponse(Payload, kw_only=True):
    """An agent's answer, or a chunk of it."""

    type = "route_response"
    request_id: str
    """The gateway's id of the request."""
    ok: bool = True
    """Whether the agent could do it."""
    result: Raw = NULL
    error: RouteError | None = None
    chunk: Raw = NULL
    done: bool = True
    """Whether this is the request's end."""


class RouteAnswer(Payload, kw_only=True):
    """An agent's answer, as the asker gets it; the envelope's ``replyTo`` names the request."""

    type = "route_response"
    sent_by = "gateway"
    request_id: str
    ok: bool
    result: Raw = NULL
    error: RouteError | None = None
    chunk: Raw = NULL
    done: bool
    agent_id: str


class RouteCancel(Payload, kw_only=True):
    """Stop a request; the request's own end says how it went."""

    type = "route_cancel"
    sent_by = "both"
    request_id: Id


class RouteExplain(RouteRequest, kw_only=True):
    """Whom would this request reach, and why?"""

    type = "route_explain"


class RouteCandidate(Part, kw_only=True):
    """One agent in a routing decision."""

    agent_id: str
    chosen: bool
    reason: str


class RouteExplained(Payload, kw_only=True):
    """The answer to ``route_explain``."""

    type = "route_explain"
    sent_by = "gateway"
    candidates: list[RouteCandidate]


class Broadcast(Payload, kw_only=True):
    """Tell many connections at once; nothing is stored."""

    type = "broadcast"
    message: Raw
    to: Literal["clients", "agents", "session"] = "clients"
    capability: Name | None = None
    """With ``to: agents``: only agents that can do this."""
    session_id: Id | None = None


class BroadcastDelivery(Payload, kw_only=True):
    """A broadcast, as its targets get it."""

    type = "broadcast"
    sent_by = "gateway"
    message: Raw
    to: Literal["clients", "agents", "session"]


class SyncState(Payload, kw_only=True):
    """Tell me the public state."""

    type = "sync_state"


class StateSnapshot(Payload, kw_only=True):
    """The answer to ``sync_state``, filtered to what one may see."""

    type = "sync_state"
    sent_by = "gateway"
    state_version: int
    sessions: list[SessionEntry]
    agents: list[AgentEntry]
    presence: list[PresenceEntry]
