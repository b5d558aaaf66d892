"""
Who may do what, made from the one table: every type, every role, every kind of object.

Four connections with one role each ask for a session of their own, one that they
were invited to, a private one of somebody else's, and one that is not there. What
somebody else has must look exactly like what nobody has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from peers import WebSocketPeer, connect, error_of, person, register, token_of

from trunkline.ids import now_ms
from trunkline.messages import GatewayMessage, Role, encode
from trunkline.payloads import PAYLOADS, SessionPayload
from trunkline.rights import RIGHTS, ROLES
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway

OBJECTS = ("owned", "joined", "other", "absent")
SESSION_TYPES = sorted(
    {p.type for p in PAYLOADS if issubclass(p, SessionPayload) and p.type in RIGHTS}
    - {"session_create"}
    | {"session_patch:admin", "broadcast"}
)
AGENT_TYPES = ["agent_heartbeat", "agent_register", "agent_unregister"]
OTHERS = sorted(set(RIGHTS) - set(SESSION_TYPES) - set(AGENT_TYPES))

Payload = dict[str, Any]

DIGEST = hashlib.sha256(b'{"args":null,"tool":"t"}').hexdigest()
"""Of the tool ``t`` without arguments, as RFC 8785 writes it."""

PAYLOAD_OF: dict[str, Callable[[str, str], Payload]] = {
    "session_invite": lambda session, run: {"userId": "somebody"},
    "session_remove": lambda session, run: {"userId": "somebody"},
    "session_patch": lambda session, run: {"patch": {"name": "Mine"}},
    "session_patch:admin": lambda session, run: {"patch": {"model": "large"}},
    "chat": lambda session, run: {"message": "hi"},
    "presence": lambda session, run: {"status": "typing"},
    "chat_stream": lambda session, run: {"content": "x"},
    "chat_complete": lambda session, run: {"content": "x"},
    "tool_start": lambda session, run: {"tool": "t", "toolCallId": "1", "args": {}},
    "tool_update": lambda session, run: {"toolCallId": "1"},
    "tool_result": lambda session, run: {"toolCallId": "1", "result": {"success": True}},
    "run_cancel": lambda session, run: {"runId": run},
    "broadcast": lambda session, run: {"message": 1, "to": "session"},
    "approval_request": lambda session, run: {
        "approvalId": "1", "tool": "t", "args": None, "digest": DIGEST,
        "expiresAt": now_ms() + 60_000,
    },
    "approval_response": lambda session, run: {
        "approvalId": "1", "decision": "allow", "digest": DIGEST,
    },
}  # fmt: skip


async def asked(peer: WebSocketPeer, type: str, payload: Payload) -> GatewayMessage | None:
    """The answer to a message, or None if there is none by the time of the next answer."""
    request = await peer.send(type.partition(":")[0], payload)
    marker = await peer.send("session_list")
    while True:
        message = await peer.next()
        if message.reply_to == request:
            await peer.next(reply_to=marker)
            return message
        if message.reply_to == marker:
            return None


def told(message: GatewayMessage | None) -> Any:
    """What an answer tells, without what differs from answer to answer."""
    fields = msgspec.json.decode(encode(message))
    for name in ("id", "replyTo", "timestamp"):
        fields.pop(name, None)
    return fields


def expected(type: str, role: Role, thing: str) -> str | None:
    """The error that the table demands for a session, or None."""
    condition = RIGHTS[type].condition(role)
    guarded = type == "session_patch:admin"
    if condition is None and not (guarded and RIGHTS["session_patch"].condition(role)):
        return "FORBIDDEN"
    if thing == "absent" or (thing == "other" and role != "control"):
        return "SESSION_NOT_FOUND"
    if thing == "other" and (condition in ("own", "approve") or type == "broadcast"):
        return "NOT_A_MEMBER"
    if guarded or condition == "approve":  # for both, a scope is needed that nobody here has
        return "FORBIDDEN"
    if thing == "joined" and condition in ("owner", "asker"):
        return "FORBIDDEN"
    return None


class House:
    """A gateway with the sessions, runs and people of the matrix."""

    def __init__(self, gateway: WebSocketGateway) -> None:
        self.gateway = gateway
        self.root = PeerClient(gateway, person("root", "control", "session:admin"))
        self.bot = PeerClient(gateway, person("bots", "node"))
        self.runs: dict[str, str] = {}

    async def furnish(self, role: Role) -> WebSocketPeer:
        """Make the sessions of a role, and a connection that has it."""
        peer = await connect(self.gateway, token_of(f"user-{role}", role))
        if self.bot.client.agents == {}:
            await register(self.bot, "bot")
        if role == "node":
            await register(peer, "agent-of-node")
        for thing in OBJECTS[:3]:
            owner = f"user-{role}" if thing == "owned" else "root"
            session_id = f"{thing}-{role}"
            await self.gateway.sessions.create_session(
                session_id, owner=owner, visibility="private"
            )
            if thing == "joined":
                invitation = {"sessionId": session_id, "userId": f"user-{role}"}
                await self.root.ask("session_invite", invitation)
            if thing != "other":
                await peer.ask("session_join", {"sessionId": session_id})
            self.gateway.sessions.add_client(session_id, self.bot.client)
            await self.root.ask("session_join", {"sessionId": session_id})
            chat = {"message": "@bot hi", "mentions": ["bot"]}
            ack = await self.root.ask("chat", chat, session_id)
            self.runs[session_id] = ack.data()["runs"][0]["runId"]
        return peer

    def payload(self, type: str, session_id: str) -> Payload:
        """A valid payload of a type for a session."""
        make = PAYLOAD_OF.get(type, lambda session, run: {})
        return {"sessionId": session_id, **make(session_id, self.runs.get(session_id, "1.bot"))}


@pytest.mark.parametrize("type", SESSION_TYPES)
async def test_a_type_is_allowed_exactly_where_the_table_allows_it(ws_gateway, type):
    """For every role: its own session, one that it joined, another's, and none."""
    house = House(ws_gateway)
    handled = type.partition(":")[0] in ws_gateway.handlers.types
    for role in ROLES:
        peer = await house.furnish(role)

        for thing in OBJECTS:
            answer = await asked(peer, type, house.payload(type, f"{thing}-{role}"))
            wanted = expected(type, role, thing)
            got = error_of(answer) if answer is not None and answer.type == "error" else None

            if handled or wanted == "FORBIDDEN":
                assert got == wanted, (role, thing)
            else:
                assert got == "UNKNOWN_TYPE", (role, thing)


@pytest.mark.parametrize("type", SESSION_TYPES)
@pytest.mark.parametrize("role", ["observer", "webchat", "node"])
async def test_what_another_has_looks_like_what_nobody_has(ws_gateway, type, role):
    """The whole answer, without its id, `replyTo` and time."""
    house = House(ws_gateway)
    peer = await house.furnish(role)

    other = await asked(peer, type, house.payload(type, f"other-{role}"))
    absent = await asked(peer, type, house.payload(type, f"absent-{role}"))

    assert other is not None
    assert told(other) == told(absent)


@pytest.mark.parametrize("type", sorted(RIGHTS))
async def test_a_stranger_may_send_only_what_the_table_gives_it(ws_gateway, type):
    """Everything else is `AUTH_REQUIRED`, whatever it is about."""
    house = House(ws_gateway)
    await house.furnish("webchat")
    stranger = await connect(ws_gateway)

    answer = await stranger.ask(type.partition(":")[0], house.payload(type, "owned-webchat"))

    allowed = RIGHTS[type].anonymous is not None
    code = error_of(answer) if answer.type == "error" else None
    assert (code == "AUTH_REQUIRED" and type != "auth") is not allowed


# Agents and requests


@pytest.mark.parametrize("type", AGENT_TYPES)
async def test_an_agent_is_handled_only_by_its_own_connection(ws_gateway, type):
    """Another's is as absent as none; registering it is `AGENT_ID_TAKEN`."""
    stranger = await connect(ws_gateway, token_of("stranger", "node"))
    await register(stranger, "theirs")
    for role in ROLES:
        peer = await connect(ws_gateway, token_of(f"user-{role}", role))
        if role == "node":
            await register(peer, "mine")

        answers = {
            agent_id: await peer.ask(type, {"id": agent_id})
            for agent_id in ("theirs", "absent", "mine")
        }

        codes = [error_of(a) if a.type == "error" else None for a in answers.values()]
        if role != "node":
            assert codes == ["FORBIDDEN"] * 3
        elif type == "agent_register":
            assert codes == ["AGENT_ID_TAKEN", None, None]
        else:
            assert codes == ["AGENT_NOT_FOUND", "AGENT_NOT_FOUND", None]
            assert told(answers["theirs"]) == told(answers["absent"])
    assert ws_gateway.agents.get_agent("theirs").online


@pytest.mark.parametrize("type", ["route_cancel", "route_response"])
async def test_another_askers_request_is_as_absent_as_none(ws_gateway, type):
    """Neither is answered, and the request goes on."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "bot")
    ada = await connect(ws_gateway, token_of("ada"))
    request = await ada.send("route_request", {"agentId": "bot"})
    request_id = (await bot.next("route_request")).data()["requestId"]
    for role in ROLES:
        peer = await connect(ws_gateway, token_of(f"user-{role}", role))

        for guess in (request, request_id, "absent"):
            answer = await asked(peer, type, {"requestId": guess, "result": "spoofed"})

            if RIGHTS[type].condition(role):
                assert answer is None
            else:
                assert error_of(answer) == "FORBIDDEN"
    await bot.send("route_response", {"requestId": request_id, "result": "true"})

    assert (await ada.next(reply_to=request)).data()["result"] == "true"


REQUESTS: dict[str, Payload] = {
    "connect": {"deviceId": "d"},
    "auth": {"token": "x/webchat"},
    "route_request": {"agentId": "nobody"},
    "route_explain": {"capability": "x"},
}


@pytest.mark.parametrize("type", OTHERS)
async def test_what_concerns_no_object_is_for_the_roles_of_the_table(ws_gateway, type):
    """The others are `FORBIDDEN`."""
    for role in ROLES:
        peer = await connect(ws_gateway, token_of(f"user-{role}", role))

        answer = await asked(peer, type, REQUESTS.get(type, {"requestId": "r"}))

        forbidden = (
            answer is not None and answer.type == "error" and (error_of(answer) == "FORBIDDEN")
        )
        assert forbidden is (RIGHTS[type].condition(role) is None), role


@pytest.mark.parametrize("role", ["observer", "webchat", "node"])
async def test_lists_show_nothing_of_anothers_sessions(ws_gateway, role):
    """Neither `session_list` nor `sync_state`; control sees all."""
    house = House(ws_gateway)
    peer = await house.furnish(role)
    everything = await connect(ws_gateway, token_of("boss", "control"))

    mine = [await peer.ask("session_list"), await peer.ask("sync_state")]
    all_of_them = (await everything.ask("session_list")).data()["sessions"]

    for answer in mine:
        assert {s["sessionId"] for s in answer.data()["sessions"]} == {
            f"owned-{role}",
            f"joined-{role}",
        }
    assert f"other-{role}" in {s["sessionId"] for s in all_of_them}
