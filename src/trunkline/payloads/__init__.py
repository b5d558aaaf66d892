"""
Every payload of the protocol (protocol.md sections 3 to 6).

A payload class is documentation, schema and parser in one: the reference, the
JSON Schema and the AsyncAPI file are generated from this package. ``type`` is
the word on the wire; ``sent_by`` says who may send it: ``client`` (agents are
clients too), ``gateway``, or ``both`` where the gateway relays it as it came.

Fields that clients send have defaults; fields that only the gateway sends are
required or None, so that nothing that a reader needs is ever left out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trunkline.messages import GatewayMessage
from trunkline.payloads.agents import (
    AgentCapabilities,
    AgentEntry,
    AgentHeartbeat,
    AgentHeartbeatOk,
    AgentList,
    AgentListing,
    AgentRegister,
    AgentRegistered,
    AgentUnregister,
    AgentUnregistered,
    Broadcast,
    BroadcastDelivery,
    ResumedRun,
    RouteAnswer,
    RouteCancel,
    RouteCandidate,
    RouteDelivery,
    RouteError,
    RouteExplain,
    RouteExplained,
    RouteRequest,
    RouteResponse,
    StateSnapshot,
    SyncState,
    ToolSpec,
)
from trunkline.payloads.base import (
    AgentType,
    Durability,
    Id,
    Name,
    Part,
    Payload,
    RoutePolicy,
    RunStatus,
    SessionPayload,
    Visibility,
)
from trunkline.payloads.connection import (
    Auth,
    AuthError,
    AuthExpiring,
    AuthSuccess,
    Connect,
    DeviceApproved,
    ErrorPayload,
    GoingAway,
    Health,
    HealthReport,
    HealthRequest,
    HelloOk,
    Pairing,
    Ping,
    Pong,
    PresenceEntry,
)
from trunkline.payloads.runs import (
    ApprovalRequest,
    ApprovalResponse,
    Chat,
    ChatComplete,
    ChatStream,
    RunCancel,
    RunPayload,
    ToolResult,
    ToolResultData,
    ToolStart,
    ToolUpdate,
)
from trunkline.payloads.sessions import (
    Ack,
    Cursor,
    Head,
    HistoryPage,
    Patch,
    Presence,
    RunRef,
    RunState,
    SessionClose,
    SessionCreate,
    SessionEntry,
    SessionHistory,
    SessionInfo,
    SessionInvite,
    SessionJoin,
    SessionLeave,
    SessionList,
    SessionListing,
    SessionPatch,
    SessionRemove,
)


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


__all__ = [
    "CLIENT_PAYLOADS",
    "CONTROL_TYPES",
    "DURABLE_TYPES",
    "GATEWAY_PAYLOADS",
    "MESSAGE_TYPES",
    "PAYLOADS",
    "Ack",
    "AgentCapabilities",
    "AgentEntry",
    "AgentHeartbeat",
    "AgentHeartbeatOk",
    "AgentList",
    "AgentListing",
    "AgentRegister",
    "AgentRegistered",
    "AgentType",
    "AgentUnregister",
    "AgentUnregistered",
    "ApprovalRequest",
    "ApprovalResponse",
    "Auth",
    "AuthError",
    "AuthExpiring",
    "AuthSuccess",
    "Broadcast",
    "BroadcastDelivery",
    "Chat",
    "ChatComplete",
    "ChatStream",
    "Connect",
    "Cursor",
    "DeviceApproved",
    "Durability",
    "ErrorPayload",
    "GoingAway",
    "Head",
    "Health",
    "HealthReport",
    "HealthRequest",
    "HelloOk",
    "HistoryPage",
    "Id",
    "Name",
    "Pairing",
    "Part",
    "Patch",
    "Payload",
    "Ping",
    "Pong",
    "Presence",
    "PresenceEntry",
    "ResumedRun",
    "RouteAnswer",
    "RouteCancel",
    "RouteCandidate",
    "RouteDelivery",
    "RouteError",
    "RouteExplain",
    "RouteExplained",
    "RoutePolicy",
    "RouteRequest",
    "RouteResponse",
    "RunCancel",
    "RunPayload",
    "RunRef",
    "RunState",
    "RunStatus",
    "SessionClose",
    "SessionCreate",
    "SessionEntry",
    "SessionHistory",
    "SessionInfo",
    "SessionInvite",
    "SessionJoin",
    "SessionLeave",
    "SessionList",
    "SessionListing",
    "SessionPatch",
    "SessionPayload",
    "SessionRemove",
    "StateSnapshot",
    "SyncState",
    "ToolResult",
    "ToolResultData",
    "ToolSpec",
    "ToolStart",
    "ToolUpdate",
    "Visibility",
    "read",
]
