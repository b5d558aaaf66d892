"""
Who may send what: the one table (security.md section 5, normative).

A row gives the condition under which each role may send a type. No row, or no
condition for a role, is a refusal. Roles are checked before a handler runs;
conditions are the handler's duty and named here so that tests and docs are
made from the same table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from trunkline.messages import Role

ROLES: tuple[Role, ...] = get_args(Role)
"""All roles, strongest first; the order in which an absent ``connect.role`` is filled."""

SCOPES: tuple[str, ...] = (
    "session:admin",
    "agent:admin",
    "credential:admin",
    "config:admin",
    "approve",
)
"""Rights beyond the roles; ``admin`` is all of them."""

ALL_SCOPES = frozenset({*SCOPES, "admin"})
"""Every scope that can be granted."""

Condition = Literal[
    "always",
    "own",
    "seen",
    "quota",
    "joinable",
    "owner",
    "asker",
    "own run",
    "own id",
    "approve",
    "patterns",
    "asked once",
    "agent:admin",
    "session:admin",
    "declared",
]
"""
Under which condition a role may send a type.

``own``: in a session one is in, or an agent or request of this connection;
``seen``: the answer is filtered to what one may see; ``owner``: the session's;
``asker``: who opened the run, or the session's owner.
"""


class Right(msgspec.Struct, frozen=True, kw_only=True):
    """One row: the condition for each role, None where it may not."""

    anonymous: Condition | None = None
    observer: Condition | None = None
    webchat: Condition | None = None
    node: Condition | None = None
    control: Condition | None = None

    def condition(self, role: Role) -> Condition | None:
        """Return the condition for a role."""
        found: Condition | None = getattr(self, role)
        return found


def _all(condition: Condition, *, anonymous: Condition | None = None) -> Right:
    return Right(
        anonymous=anonymous,
        observer=condition,
        webchat=condition,
        node=condition,
        control=condition,
    )


def _speakers(condition: Condition) -> Right:
    return Right(webchat=condition, node=condition, control=condition)


def _seen() -> Right:
    return Right(observer="seen", webchat="seen", node="seen", control="always")


def _owner() -> Right:
    return Right(webchat="owner", node="owner", control="always")


_JOIN = Right(observer="joinable", webchat="joinable", node="joinable", control="always")
_RUN = Right(node="own run")

RIGHTS: dict[str, Right] = {
    "connect": _all("always", anonymous="always"),
    "auth": _all("always", anonymous="always"),
    "ping": _all("always", anonymous="always"),
    "health": _all("always"),
    "session_list": _seen(),
    "session_history": _seen(),
    "agent_list": _seen(),
    "sync_state": _seen(),
    "session_create": Right(webchat="quota", node="quota", control="always"),
    "session_join": _JOIN,
    "session_leave": _all("own"),
    "session_invite": _owner(),
    "session_remove": _owner(),
    "session_close": _owner(),
    "session_patch": _owner(),
    "session_patch:admin": Right(webchat="session:admin", control="session:admin"),
    "chat": _speakers("own"),
    "presence": _all("own"),
    "chat_stream": _RUN,
    "chat_complete": _RUN,
    "tool_start": _RUN,
    "tool_update": _RUN,
    "tool_result": _RUN,
    "approval_request": _RUN,
    "approval_response": Right(webchat="approve", control="approve"),
    "run_cancel": Right(webchat="asker", control="always"),
    "agent_register": Right(node="own id"),
    "agent_heartbeat": Right(node="own id"),
    "agent_unregister": Right(node="own id", control="agent:admin"),
    "route_request": _speakers("patterns"),
    "route_cancel": _speakers("own"),
    "route_response": Right(node="asked once"),
    "route_explain": Right(control="always"),
    "broadcast": Right(control="always"),
}
"""Every type that a client may send. ``session_patch:admin`` stands for the guarded patch keys."""

ADMIN_PATCH_KEYS: frozenset[str] = frozenset({"model", "send_policy", "elevated"})
"""Keys of a patch that need ``session:admin``."""

CUSTOM_ROLES: tuple[Role, ...] = ("control", "webchat", "node")
"""Who may send a custom type unless its handler says otherwise."""


def roles_for(type: str) -> frozenset[str]:
    """Return the roles that may send a type at all."""
    right = RIGHTS.get(type)
    if right is None:
        return frozenset()
    return frozenset(role for role in ROLES if right.condition(role))


def custom_roles(roles: Iterable[Role] | None) -> frozenset[str]:
    """Return the roles of a custom type as its handler declares them."""
    return frozenset(CUSTOM_ROLES if roles is None else roles)


def pick_role(granted: Iterable[Role]) -> Role:
    """Return the role that a connection gets if it asks for none."""
    return min(granted, key=ROLES.index)
