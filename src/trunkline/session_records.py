"""What is kept of a session while nobody is in it, and who may join it."""

from __future__ import annotations

from typing import Any

import msgspec

from trunkline.clients import Client

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
    created_at: int = 0


def may_join(record: SessionRecord, client: Client) -> bool:
    """Whether a client may join a session with this record."""
    return (
        record.visibility == "shared"
        or client.role == "control"
        or record.owner == client.user_id
        or client.user_id in record.invited
        or assigned(record, client)
    )


def assigned(record: SessionRecord, client: Client) -> bool:
    """Whether a connection speaks for an agent that is assigned to a session."""
    return bool(client.agents) and not client.agents.keys().isdisjoint(record.assigned)
