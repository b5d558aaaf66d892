"""What is kept of a session while nobody is in it, who may know of it, and how it is named."""

from __future__ import annotations

from typing import Any

import msgspec

from trunkline.clients import Client
from trunkline.errors import ErrorCode, GatewayError
from trunkline.messages import GatewayMessage
from trunkline.patterns import ANY
from trunkline.payloads import SessionPayload

KIND = "session"


class SessionRecord(msgspec.Struct, kw_only=True):
    """What is kept of a session while nobody is in it."""

    session_id: str
    owner: str
    name: str | None = None
    visibility: str = "shared"
    invited: list[str] = []
    metadata: dict[str, Any] = {}
    assigned: list[str] = []
    """Agents that belong to the session whoever is in it."""
    capability: str | None = None
    """What its agent was chosen for, so that another may take its place."""
    agent_type: str | None = None
    """The same, by type."""
    agent_patterns: tuple[str, ...] = ANY
    """Which agents its creator may give it."""
    created_at: int = 0


def may_join(record: SessionRecord, client: Client) -> bool:
    """Whether a client may join a session with this record."""
    return client.allows_session(record.session_id) and (
        record.visibility == "shared"
        or client.role == "control"
        or record.owner == client.user_id
        or client.user_id in record.invited
        or assigned_to(record, client)
    )


def listed(record: SessionRecord, client: Client) -> bool:
    """Whether a client finds a session with this record in lists."""
    return client.allows_session(record.session_id) and (
        client.role == "control"
        or record.session_id in client.sessions
        or record.owner == client.user_id
        or client.user_id in record.invited
    )


def assigned_to(record: SessionRecord, client: Client) -> bool:
    """Whether a connection speaks for an agent that is assigned to a session."""
    return bool(client.agents) and not client.agents.keys().isdisjoint(record.assigned)


def not_found() -> GatewayError:
    """Make the one error for what is not there and for what one may not know of."""
    return GatewayError(ErrorCode.SESSION_NOT_FOUND, "no such session")


def named_session(message: GatewayMessage, payload: SessionPayload | None) -> str | None:
    """
    Return the session that a message names, in the envelope or the payload.

    Raises:
        GatewayError: ``INVALID_MESSAGE``: it names two different ones.
    """
    names = {message.session_id} if message.session_id is not None else set()
    if payload is not None:
        names |= {n for n in (payload.session_id, payload.session_key) if n is not None}
    if len(names) > 1:
        raise GatewayError(ErrorCode.INVALID_MESSAGE, "the message names two different sessions")
    return names.pop() if names else None


def need_session(message: GatewayMessage, payload: SessionPayload | None) -> str:
    """Return the session that a message names; ``INVALID_MESSAGE`` if it names none."""
    session_id = named_session(message, payload)
    if session_id is None:
        raise GatewayError(ErrorCode.INVALID_MESSAGE, "the message names no session")
    return session_id
