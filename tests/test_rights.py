"""The table of rights: what security.md section 5 says, row by row."""

from __future__ import annotations

import pytest

from trunkline.payloads import CLIENT_PAYLOADS
from trunkline.rights import RIGHTS, ROLES, custom_roles, pick_role, roles_for
from trunkline.server import GatewayServer

ALL = {"observer", "webchat", "node", "control"}
SPEAKERS = {"webchat", "node", "control"}
MAY = {
    **dict.fromkeys(
        [
            "connect", "auth", "ping", "health", "session_list", "session_history", "agent_list",
            "sync_state", "session_join", "session_leave", "presence",
        ],
        ALL,
    ),
    **dict.fromkeys(
        [
            "session_create", "session_invite", "session_remove", "session_close",
            "session_patch", "chat", "route_request", "route_cancel",
        ],
        SPEAKERS,
    ),
    **dict.fromkeys(
        [
            "chat_stream", "chat_complete", "tool_start", "tool_update", "tool_result",
            "approval_request", "agent_register", "agent_heartbeat", "route_response",
        ],
        frozenset({"node"}),
    ),
    "approval_response": {"webchat", "control"},
    "run_cancel": {"webchat", "control"},
    "agent_unregister": {"node", "control"},
    "route_explain": {"control"},
    "broadcast": {"control"},
    "session_patch:admin": {"webchat", "control"},
}  # fmt: skip


@pytest.mark.parametrize("type", sorted(RIGHTS))
def test_each_row_names_the_roles_that_the_design_names(type):
    """No role more and none less."""
    assert roles_for(type) == MAY[type]


def test_only_greeting_signing_in_and_ping_are_for_strangers():
    """Everything else needs a sign-in."""
    assert {t for t, right in RIGHTS.items() if right.anonymous} == {"connect", "auth", "ping"}


def test_every_type_that_clients_send_has_a_row():
    """A type without a row would be refused to everybody."""
    assert set(CLIENT_PAYLOADS) <= set(RIGHTS)


def test_every_handler_has_a_row(gateway: GatewayServer):
    """No row, no handler."""
    assert gateway.handlers.types <= set(RIGHTS)


def test_a_type_without_a_row_is_for_nobody():
    """The table is an allow-list."""
    assert roles_for("wobble") == frozenset()


def test_custom_types_are_for_all_but_observers_unless_declared():
    """What a handler declares is taken as it is."""
    assert custom_roles(None) == SPEAKERS
    assert custom_roles(["observer"]) == {"observer"}
    assert custom_roles([]) == frozenset()


def test_an_absent_role_is_the_first_granted_in_the_order_of_strength():
    """Control, webchat, node, observer."""
    assert ROLES == ("control", "webchat", "node", "observer")
    assert pick_role({"observer", "node"}) == "node"
    assert pick_role(ROLES) == "control"
