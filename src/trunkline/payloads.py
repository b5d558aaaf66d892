"""
Every payload of the protocol (protocol.md sections 3 to 6).

A payload class is documentation, schema and parser in one: the reference, the
JSON Schema and the AsyncAPI file are generated from this module. ``type`` is
the word on the wire; ``sent_by`` says who may send it: ``client`` (agents are
clients too), ``gateway``, or ``both`` where the gateway relays it as it came.

Fields that clients send have defaults; fields that only the gateway sends are
required or None, so that nothing that a reader needs is ever left out.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from trunkline.ids import ID_PATTERN
from trunkline.messages import GatewayMessage, Role, Sender

_END = r"(?![\s\S])"  # "$" would let a trailing newline pass
Id = Annotated[str, Meta(pattern=rf"^(?!\.\.?{_END}){ID_PATTERN}{_END}")]
Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Millis = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1, le=300)]

SentBy = Literal["client", "gateway", "both"]
AgentType = Literal["pi", "cli", "webchat", "companion", "channel", "custom"]
Visibility = Literal["shared", "private"]
Durability = Literal["memory", "process", "disk", "replicated"]
RunStatus = Literal["ok", "error", "cancelled", "lost"]


class Payload(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of every payload."""

    type: ClassVar[str] = ""
    """The word on the wire."""
    sent_by: ClassVar[SentBy] = "client"
    """Who sends it."""
    durable: ClassVar[bool] = False
    """Whether it goes into the session's log and so has a ``seq``."""


class Part(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of what stands inside payloads."""


class SessionPayload(Payload):
    """Base of payloads that belong to a session; the envelope may name it instead."""

    session_id: Id | None = None
    """The session, if the envelope does not name it."""
    session_key: Id | None = None
    """Another spelling of `session_id`."""


# --- A connection's life -------------------------------------------------------------------------


class Connect(Payload):
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


class PresenceEntry(Part):
    """One device that is signed in."""

    device_id: str | None
    role: str
    connected_at: int


class Health(Part):
    """How the gateway does."""

    status: Literal["ok", "draining", "degraded"]
    checked_at: int


class Pairing(Part):
    """A pairing request that waits for approval."""

    request_id: str
    expires_at: int


class HelloOk(Payload):
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
    limits: dict[str, int]
    """The limits that a client should know; sizes in bytes, times in milliseconds."""
    heartbeat_interval_ms: int
    pairing: Pairing | None = None


class Auth(Payload):
    """A client signs in; answered by ``auth_success`` or ``error``."""

    type = "auth"
    token: str | None = None
    password: str | None = None
    code: str | None = None
    """A single-use sign-in code."""
    client_id: str | None = None
    """A name that the client gives itself; kept as metadata, never believed."""
    client_type: Literal["terminal", "web", "ide", "api", "node"] | None = None


class AuthSuccess(Payload):
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


class AuthError(Payload):
    """What older gateways send instead of ``error``; ours never sends it."""

    type = "auth_error"
    sent_by = "gateway"
    code: str = "AUTH_FAILED"
    message: str = ""


class AuthExpiring(Payload):
    """The credential ends within a minute; sign in again with a fresh one."""

    type = "auth_expiring"
    sent_by = "gateway"
    expires_at: int


class DeviceApproved(Payload):
    """The pairing was approved; sent once."""

    type = "device_approved"
    sent_by = "gateway"
    device_token: str
    scopes: list[str]


class Ping(Payload):
    """Are you there? Answered by ``pong``, before sign-in too."""

    type = "ping"


class Pong(Payload):
    """The answer to ``ping``."""

    type = "pong"
    sent_by = "gateway"
    client_id: str


class HealthRequest(Payload):
    """How does the gateway do?"""

    type = "health"


class HealthReport(Payload):
    """The answer to ``health``."""

    type = "health"
    sent_by = "gateway"
    status: Literal["ok", "draining", "degraded"]
    checked_at: int
    uptime: int
    """Milliseconds since the gateway started."""


class GoingAway(Payload):
    """The gateway is about to close this connection; come back."""

    type = "going_away"
    sent_by = "gateway"
    reconnect_in_ms: int


class ErrorPayload(Payload):
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


# --- Sessions ------------------------------------------------------------------------------------


class Cursor(Part):
    """A place in a session's log: everything up to `seq` is known."""

    epoch: Annotated[str, Meta(max_length=64)]
    seq: Annotated[int, Meta(ge=0)]


class SessionCreate(SessionPayload):
    """Make a session and join it; the creator owns it."""

    type = "session_create"
    name: Name | None = None
    agent_type: AgentType | None = None
    """Assign an online agent of this type."""
    agent_id: Id | None = None
    """Assign this agent."""
    capability: Name | None = None
    """Assign an online agent that can do this."""
    metadata: dict[str, Any] | None = None
    visibility: Visibility = "shared"
    join_if_exists: bool = False
    """An id in use is then a join, not an error."""


class SessionJoin(SessionPayload):
    """Join a session, and replay what was missed."""

    type = "session_join"
    since: Cursor | None = None
    """Replay everything after this place."""
    tail: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """Without `since`, or where it is void: replay the last so many messages."""


class SessionLeave(SessionPayload):
    """Leave a session."""

    type = "session_leave"


class Patch(
    msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, forbid_unknown_fields=True
):
    """What may be changed of a session; null clears."""

    thinking_level: Annotated[str, Meta(max_length=64)] | UnsetType | None = UNSET
    verbose: bool | Annotated[str, Meta(max_length=64)] | UnsetType | None = UNSET
    model: Annotated[str, Meta(max_length=256)] | UnsetType | None = UNSET
    elevated: bool | UnsetType | None = UNSET
    activation: Literal["mention", "always"] | UnsetType = UNSET
    """When agents answer: only when mentioned, or always."""
    send_policy: Literal["on", "off", "inherit"] | UnsetType = UNSET
    """``off`` silences the session's agents."""
    name: Name | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    """Merged one level deep; null deletes a key."""
    visibility: Visibility | UnsetType = UNSET


class SessionPatch(SessionPayload):
    """Change a session's settings."""

    type = "session_patch"
    patch: Patch


class SessionInvite(SessionPayload):
    """Let a user into a private session."""

    type = "session_invite"
    user_id: Name


class SessionRemove(SessionPayload):
    """Take a user's invitation back and remove their connections."""

    type = "session_remove"
    user_id: Name


class SessionClose(SessionPayload):
    """End a session."""

    type = "session_close"
    delete: bool = False
    """Remove the record and the log too."""


class SessionList(Payload):
    """Which sessions are there for me?"""

    type = "session_list"
    after: Id | None = None
    """Go on after this session id."""
    limit: Limit = 100


class SessionEntry(Part):
    """One session in a list."""

    session_id: str
    name: str | None
    member_count: int
    head: int
    created_at: int


class SessionListing(Payload):
    """The answer to ``session_list``, in the order of the ids."""

    type = "session_list"
    sent_by = "gateway"
    sessions: list[SessionEntry]
    more: bool


class SessionHistory(SessionPayload):
    """Read a page of the log without joining anew."""

    type = "session_history"
    after: Annotated[int, Meta(ge=0)] | None = None
    """Read forward from the message after this ``seq``."""
    before: Annotated[int, Meta(ge=1)] | None = None
    """Read the page that ends before this ``seq``."""
    limit: Limit = 50


class HistoryPage(Payload):
    """The answer to ``session_history``, oldest first."""

    type = "session_history"
    sent_by = "gateway"
    messages: list[Raw]
    """The stored frames, as they were delivered."""
    first: int
    """The oldest ``seq`` that the log still has."""
    head: int
    epoch: str
    more: bool
    """Whether there is more in the direction of reading."""


class RunState(Part):
    """An open run, as ``session_info`` lists it."""

    run_id: str
    agent_id: str
    index: int
    """The index of the last chunk; -1 before the first."""


class SessionInfo(Payload):
    """What became of a connection or of a session; the answer to most ``session_*`` requests."""

    type = "session_info"
    sent_by = "gateway"
    session_id: str
    """The session; in the welcome, the connection's own id."""
    status: Literal[
        "connected",
        "created",
        "joined",
        "left",
        "patched",
        "invited",
        "removed",
        "assigned",
        "unassigned",
        "closed",
    ]
    auth_required: bool | None = None
    protocol_version: int | None = None
    challenge_nonce: str | None = None
    limits: dict[str, int] | None = None
    name: str | None = None
    metadata: dict[str, Any] | None = None
    visibility: Visibility | None = None
    epoch: str | None = None
    head: int | None = None
    """The last ``seq`` in the log; 0 in an empty one."""
    next: int | None = None
    """The first ``seq`` to come; what is not above `head` is replay."""
    members: list[Sender] | None = None
    """At most 100 of the members."""
    member_count: int | None = None
    """Connections, not users."""
    runs: list[RunState] | None = None
    approvals: list[Raw] | None = None
    """Open approval requests, as they were delivered."""
    recovery: Literal["fresh", "resumed", "reset"] | None = None
    reason: str | None = None
    """Why the recovery is a reset: ``epoch``, ``trimmed`` or ``ahead``."""
    user_id: str | None = None
    """Whom an invitation or removal concerns."""
    agent_id: str | None = None
    """Which agent was assigned or unassigned."""


class RunRef(Part):
    """A run that a message opened."""

    run_id: str
    agent_id: str


class Ack(Payload):
    """A durable message is stored; or: a broadcast went out."""

    type = "ack"
    sent_by = "gateway"
    session_id: str | None = None
    seq: int | None = None
    epoch: str | None = None
    durability: Durability | None = None
    duplicate: bool | None = None
    """The message was stored before; `seq` is where."""
    runs: list[RunRef] | None = None
    """On a ``chat``: who will answer."""
    delivered: int | None = None
    """On a ``broadcast``: to how many connections."""


class Head(Payload):
    """Where a quiet session's log ends, so that a lost tail is noticed."""

    type = "head"
    sent_by = "gateway"
    session_id: str
    epoch: str
    head: int
    member_count: int | None = None


class Presence(SessionPayload):
    """Tell the session's other members how one is."""

    type = "presence"
    sent_by = "both"
    device_id: Id | None = None
    status: Literal["online", "offline", "away", "typing"]


# --- Chat and runs -------------------------------------------------------------------------------


class Chat(SessionPayload):
    """Say something in a session."""

    type = "chat"
    sent_by = "both"
    durable = True
    message: str
    context: dict[str, Any] | None = None
    stream: bool | None = None
    """Whether the answer should come in chunks."""
    mentions: list[Id] | None = None
    """The agents that are to answer; absent: as the session's ``activation`` says."""


class RunPayload(SessionPayload):
    """Base of what an agent sends in a run."""

    run_id: Id | None = None
    """The run; absent: the one that `replyTo` names, or the only open one."""


class ChatStream(RunPayload):
    """One chunk of an answer."""

    type = "chat_stream"
    sent_by = "both"
    content: str
    done: bool = False
    index: Annotated[int, Meta(ge=0)] = 0
    """The chunk's number, from 0, without gaps."""
    first: int | None = None
    """On a joined chunk: the first index that it holds."""


class ChatComplete(RunPayload):
    """The whole answer; it ends the run and replaces the chunks."""

    type = "chat_complete"
    sent_by = "both"
    durable = True
    content: str
    status: RunStatus = "ok"
    usage: dict[str, Any] | None = None
    error: str | dict[str, Any] | None = None


class ToolResultData(Part):
    """How a tool call ended."""

    success: bool
    output: Any = None
    error: str | None = None


class ToolStart(RunPayload):
    """A tool call begins."""

    type = "tool_start"
    sent_by = "both"
    durable = True
    tool: Name
    tool_call_id: Id
    args: Raw | None = None


class ToolUpdate(RunPayload):
    """A tool call goes on."""

    type = "tool_update"
    sent_by = "both"
    tool: Name | None = None
    tool_call_id: Id
    progress: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Percent."""
    message: str | None = None


class ToolResult(RunPayload):
    """A tool call has ended."""

    type = "tool_result"
    sent_by = "both"
    durable = True
    tool: Name | None = None
    tool_call_id: Id
    result: ToolResultData


class RunCancel(SessionPayload):
    """Stop a run."""

    type = "run_cancel"
    sent_by = "both"
    run_id: Id


class ApprovalRequest(RunPayload):
    """An agent asks whether it may run a tool."""

    type = "approval_request"
    sent_by = "both"
    durable = True
    approval_id: Id
    tool: Name
    args: Raw | None = None
    digest: Annotated[str, Meta(max_length=128)]
    """SHA-256 of the canonical JSON (RFC 8785) of ``{tool, args}``, in hex."""
    expires_at: int


class ApprovalResponse(SessionPayload):
    """A member answers an approval request."""

    type = "approval_response"
    sent_by = "both"
    durable = True
    approval_id: Id
    decision: Literal["allow", "deny"]
    digest: Annotated[str, Meta(max_length=128)]
    reason: Text | None = None


# --- Agents and requests -------------------------------------------------------------------------


class ToolSpec(Part):
    """A tool that an agent offers."""

    name: Name
    description: Text | None = None
    input_schema: dict[str, Any] | None = None
    """JSON Schema of the arguments."""


class AgentCapabilities(Part):
    """What an agent can do."""

    chat: bool = False
    tools: list[Name | ToolSpec] = []
    streaming: bool = False
    modes: list[Name] = []
    custom: dict[str, Any] | None = None


class AgentRegister(Payload):
    """An agent announces itself; again on the same connection is an update."""

    type = "agent_register"
    id: Id
    agent_type: AgentType = msgspec.field(name="type", default="custom")
    name: Name = ""
    capabilities: AgentCapabilities = msgspec.field(default_factory=AgentCapabilities)
    metadata: dict[str, Any] | None = None
    max_concurrent: Annotated[int, Meta(ge=0)] = 0
    """Requests at a time; 0 is unlimited."""
    labels: dict[str, str] | None = None
    grace_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    """How long runs and requests outlive a lost connection."""
    resume: dict[str, int] | None = None
    """``{generation}`` of the registration to take over."""


class ResumedRun(Part):
    """A run that an agent takes over again."""

    run_id: str
    index: int


class AgentRegistered(Payload):
    """The registration stands."""

    type = "agent_registered"
    sent_by = "gateway"
    agent_id: str
    generation: int
    """Grows with every registration; a fencing token."""
    lease_ms: int
    runs: list[ResumedRun]
    requests: list[str]


class AgentHeartbeat(Payload):
    """An agent is alive, and this busy."""

    type = "agent_heartbeat"
    id: Id
    status: Literal["online", "busy"] | None = None
    load: Annotated[float, Meta(ge=0)] | None = None


class AgentHeartbeatOk(Payload):
    """The lease is renewed."""

    type = "agent_heartbeat_ok"
    sent_by = "gateway"
    lease_ms: int


class AgentUnregister(Payload):
    """An agent goes."""

    type = "agent_unregister"
    id: Id


class AgentUnregistered(Payload):
    """The agent is gone."""

    type = "agent_unregistered"
    sent_by = "gateway"
    agent_id: str


class AgentList(Payload):
    """Which agents are there?"""

    type = "agent_list"
    capability: Name | None = None
    agent_type: AgentType | None = msgspec.field(name="type", default=None)
    status: Literal["online", "busy", "offline"] | None = None


class AgentEntry(Part):
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


class AgentListing(Payload):
    """The answer to ``agent_list``."""

    type = "agent_list"
    sent_by = "gateway"
    agents: list[AgentEntry]


class RouteRequest(Payload):
    """Ask an agent; answered by ``route_response`` messages or one ``error``."""

    type = "route_request"
    capability: Name | None = None
    agent_id: Id | None = None
    method: Name | None = None
    params: Raw | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 60_000
    stream: bool = False
    idempotent: bool = False
    """The request may be given to another agent if nothing has been answered yet."""
    policy: Literal["least_busy", "round_robin"] | None = None
    labels: dict[str, str] | None = None
    """The agent must have all of these."""
    parent_id: Id | None = None
    """The request or run that the asker is serving."""


class RouteDelivery(Payload):
    """A request, as the agent gets it."""

    type = "route_request"
    sent_by = "gateway"
    request_id: str
    """The gateway's own id; the answer must name it."""
    capability: str | None
    method: str | None
    params: Raw | None
    stream: bool
    deadline: int
    """Milliseconds since the epoch."""
    chain: list[str]
    """The agents that this request has passed through."""


class RouteError(Part):
    """Why the agent could not do it."""

    code: str
    message: str


class RouteResponse(Payload):
    """An agent's answer, or a chunk of it."""

    type = "route_response"
    sent_by = "both"
    request_id: str | None = None
    ok: bool = True
    result: Raw | None = None
    error: RouteError | None = None
    chunk: Raw | None = None
    done: bool = True
    agent_id: str | None = None


class RouteCancel(Payload):
    """Stop a request; the request's own end says how it went."""

    type = "route_cancel"
    sent_by = "both"
    request_id: Id


class RouteExplain(RouteRequest):
    """Whom would this request reach, and why?"""

    type = "route_explain"


class RouteCandidate(Part):
    """One agent in a routing decision."""

    agent_id: str
    chosen: bool
    reason: str


class RouteExplained(Payload):
    """The answer to ``route_explain``."""

    type = "route_explain"
    sent_by = "gateway"
    candidates: list[RouteCandidate]


class Broadcast(Payload):
    """Tell many connections at once; nothing is stored."""

    type = "broadcast"
    message: Raw
    to: Literal["clients", "agents", "session"] = "clients"
    capability: Name | None = None
    """With ``to: agents``: only agents that can do this."""
    session_id: Id | None = None


class BroadcastDelivery(Payload):
    """A broadcast, as its targets get it."""

    type = "broadcast"
    sent_by = "gateway"
    message: Raw
    to: Literal["clients", "agents", "session"]


class SyncState(Payload):
    """Tell me the public state."""

    type = "sync_state"


class StateSnapshot(Payload):
    """The answer to ``sync_state``, filtered to what one may see."""

    type = "sync_state"
    sent_by = "gateway"
    state_version: int
    sessions: list[SessionEntry]
    agents: list[AgentEntry]
    presence: list[PresenceEntry]


def _leaves(base: type[Payload]) -> list[type[Payload]]:
    found = [base] if base.type else []
    for sub in base.__subclasses__():
        found += _leaves(sub)
    return found


PAYLOADS: tuple[type[Payload], ...] = tuple(_leaves(Payload))
"""Every payload class."""

MESSAGE_TYPES: frozenset[str] = frozenset(p.type for p in PAYLOADS)
"""Every message type that the protocol knows (the source's ``GatewayMessageType``)."""

CONTROL_TYPES: frozenset[str] = frozenset(
    t
    for t in MESSAGE_TYPES
    if t.startswith(("agent_", "route_")) or t in ("broadcast", "sync_state")
)
"""The message types that coordinate the gateway and its agents (``ControlMessageType``)."""

CLIENT_PAYLOADS: dict[str, type[Payload]] = {
    p.type: p for p in PAYLOADS if p.sent_by in ("client", "both")
}
"""What a client may send, by type."""

GATEWAY_PAYLOADS: dict[str, type[Payload]] = {
    p.type: p for p in PAYLOADS if p.sent_by in ("gateway", "both")
}
"""What the gateway may send, by type."""

DURABLE_TYPES: frozenset[str] = frozenset(p.type for p in PAYLOADS if p.durable)
"""Client types that go into the session's log."""

_READERS: dict[type[Payload], msgspec.json.Decoder[Any]] = {
    p: msgspec.json.Decoder(p) for p in PAYLOADS
}


P = TypeVar("P", bound=Payload)


def read(message: GatewayMessage, kind: type[P]) -> P:
    """
    Read a message's payload as `kind`.

    Raises:
        msgspec.ValidationError: The payload does not fit; the text names the path.
    """
    payload: P = _READERS[kind].decode(message.payload)
    return payload
