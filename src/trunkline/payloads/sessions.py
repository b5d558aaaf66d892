"""Sessions, their log and who is in them (protocol.md section 4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from trunkline.messages import Sender
from trunkline.payloads.base import (
    MAX_COUNT,
    AgentType,
    Count,
    Durability,
    Id,
    Limit,
    Name,
    Part,
    Payload,
    SessionPayload,
    Visibility,
)


class Cursor(Part, kw_only=True):
    """A place in a session's log: everything up to `seq` is known."""

    epoch: Annotated[str, Meta(max_length=64)]
    seq: Count


class SessionCreate(SessionPayload, kw_only=True):
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


class SessionJoin(SessionPayload, kw_only=True):
    """Join a session, and replay what was missed."""

    type = "session_join"
    since: Cursor | None = None
    """Replay everything after this place."""
    tail: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """Without `since`, or where it is void: replay the last so many messages."""


class SessionLeave(SessionPayload, kw_only=True):
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


class SessionPatch(SessionPayload, kw_only=True):
    """Change a session's settings."""

    type = "session_patch"
    patch: Patch


class SessionInvite(SessionPayload, kw_only=True):
    """Let a user into a private session."""

    type = "session_invite"
    user_id: Name


class SessionRemove(SessionPayload, kw_only=True):
    """Take a user's invitation back and remove their connections."""

    type = "session_remove"
    user_id: Name


class SessionClose(SessionPayload, kw_only=True):
    """End a session."""

    type = "session_close"
    delete: bool = False
    """Remove the record and the log too."""


class SessionList(Payload, kw_only=True):
    """Which sessions are there for me?"""

    type = "session_list"
    after: Id | None = None
    """Go on after this session id."""
    limit: Limit = 100


class SessionEntry(Part, kw_only=True):
    """One session in a list."""

    session_id: str
    name: str | None
    member_count: int
    head: int
    created_at: int


class SessionListing(Payload, kw_only=True):
    """The answer to ``session_list``, in the order of the ids."""

    type = "session_list"
    sent_by = "gateway"
    sessions: list[SessionEntry]
    more: bool


class SessionHistory(SessionPayload, kw_only=True):
    """Read a page of the log without joining anew."""

    type = "session_history"
    after: Count | None = None
    """Read forward from the message after this ``seq``."""
    before: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    """Read the page that ends before this ``seq``."""
    limit: Limit = 50


class HistoryPage(Payload, kw_only=True):
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


class RunState(Part, kw_only=True):
    """An open run, as ``session_info`` lists it."""

    run_id: str
    agent_id: str
    index: int
    """The index of the last chunk; -1 before the first."""


class SessionInfo(Payload, kw_only=True):
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
    limits: dict[str, int | float] | None = None
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


class RunRef(Part, kw_only=True):
    """A run that a message opened."""

    run_id: str
    agent_id: str


class Ack(Payload, kw_only=True):
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


class Head(Payload, kw_only=True):
    """Where a quiet session's log ends, so that a lost tail is noticed."""

    type = "head"
    sent_by = "gateway"
    session_id: str
    epoch: str
    head: int
    member_count: int | None = None


class Presence(SessionPayload, kw_only=True):
    """Tell the session's other members how one is."""

    type = "presence"
    sent_by = "both"
    device_id: Id | None = None
    status: Literal["online", "offline", "away", "typing"]
