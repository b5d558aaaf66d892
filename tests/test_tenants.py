"""
Two tenants on one gateway, told apart by the patterns of their credentials.

Whatever a tenant's people send, of whatever role and with every scope: what
belongs to the other tenant looks exactly like what nobody has.
"""

from __future__ import annotations

from typing import Any

import pytest
from peers import error_of, person, register
from test_authorisation_matrix import PAYLOAD_OF, SESSION_TYPES, told

from trunkline.messages import GatewayMessage
from trunkline.payloads import PAYLOADS
from trunkline.rights import RIGHTS, ROLES
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

Payload = dict[str, Any]


def bounded(tenant: str, role: str, *scopes: str, name: str | None = None) -> Any:
    """The identity of one of a tenant's people."""
    patterns = (f"{tenant}-*",)
    return person(
        name or f"{tenant}-{role}",
        role,
        *(scopes or ("admin",)),
        session_patterns=patterns,
        agent_patterns=patterns,
    )


async def asked(peer: PeerClient, type: str, payload: Payload) -> GatewayMessage | None:
    """The answer to a message, or None if there is none by the time of the next answer."""
    request = peer.send(type.partition(":")[0], payload)
    marker = peer.send("session_list")
    while True:
        message = await peer.next()
        if message.reply_to == request:
            await peer.next(reply_to=marker)
            return message
        if message.reply_to == marker:
            return None


class Street:
    """A gateway with two tenants, each with a session, an agent and an open run."""

    def __init__(self, gateway: GatewayServer) -> None:
        self.gateway = gateway
        self.people: dict[str, PeerClient] = {}
        self.runs: dict[str, str] = {}

    async def furnish(self) -> Street:
        for tenant in ("acme", "globex"):
            bot = PeerClient(self.gateway, bounded(tenant, "node", name=f"{tenant}-bots"))
            await register(bot, f"{tenant}-bot", "shared-tool", f"{tenant}-tool")
            owner = PeerClient(self.gateway, bounded(tenant, "control", name=f"{tenant}-owner"))
            lobby = f"{tenant}-lobby"
            await owner.ask("session_create", {"sessionId": lobby, "agentId": f"{tenant}-bot"})
            ack = await owner.ask("chat", {"message": "hi"}, lobby)
            self.runs[lobby] = ack.data()["runs"][0]["runId"]
            self.people |= {f"{tenant}-bot": bot, f"{tenant}-owner": owner}
        return self

    def enter(self, role: str) -> PeerClient:
        """Let somebody of acme in, with every scope."""
        return PeerClient(self.gateway, bounded("acme", role))

    def about(self, type: str, session_id: str) -> Payload:
        """A valid payload of a type for a session."""
        make = PAYLOAD_OF.get(type, lambda session, run: {})
        run = self.runs.get(session_id, "1.globex-bot")
        return {"sessionId": session_id, **make(session_id, run)}


@pytest.fixture
async def street(guarded: GatewayServer) -> Street:
    return await Street(guarded).furnish()


# Sessions


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("type", SESSION_TYPES)
async def test_another_tenants_session_looks_like_none(street, type, role):
    """Byte for byte, and like one that is absent within one's own patterns."""
    peer = street.enter(role)
    if role == "node":
        await register(peer, "acme-other")

    other = await asked(peer, type, street.about(type, "globex-lobby"))
    absent = await asked(peer, type, street.about(type, "globex-none"))
    within = await asked(peer, type, street.about(type, "acme-none"))

    assert other is not None
    assert other.type == "error"
    assert told(other) == told(absent) == told(within)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("more", [{}, {"joinIfExists": True}, {"visibility": "private"}])
async def test_a_session_outside_of_the_patterns_cannot_be_made(street, role, more):
    """Nor can it be found out so whether there is one."""
    peer = street.enter(role)

    other = await asked(peer, "session_create", {"sessionId": "globex-lobby", **more})
    absent = await asked(peer, "session_create", {"sessionId": "globex-none", **more})

    assert error_of(other) == "FORBIDDEN"
    assert told(other) == told(absent)
    assert street.gateway.sessions.get_record("globex-none") is None


@pytest.mark.parametrize("role", ["webchat", "node", "control"])
async def test_a_session_without_a_name_gets_one_within_the_patterns(street, role):
    """With 128 random bits."""
    peer = street.enter(role)

    ids = [(await peer.ask("session_create", {})).data()["sessionId"] for _ in range(20)]

    assert len(set(ids)) == 20
    assert all(id.startswith("acme-") and len(id) == len("acme-") + 22 for id in ids)


async def test_a_credential_of_one_session_must_name_it(guarded):
    """There is nothing to make up."""
    peer = PeerClient(guarded, person("ada", session_patterns=("acme-lobby",)))

    unnamed = await peer.ask("session_create", {})
    named = await peer.ask("session_create", {"sessionId": "acme-lobby"})

    assert error_of(unnamed) == "FORBIDDEN"
    assert named.data()["status"] == "created"


async def test_an_invitation_does_not_reach_beyond_the_patterns(street):
    """Nor does being the owner."""
    globex = street.people["globex-owner"]
    invitation = {"sessionId": "globex-lobby", "userId": "acme-webchat"}
    await globex.ask("session_patch", {"sessionId": "globex-lobby", "patch": {"name": "x"}})
    await globex.ask("session_invite", invitation)
    await street.gateway.sessions.create_session("globex-mine", owner="acme-webchat")
    peer = street.enter("webchat")

    for session_id in ("globex-lobby", "globex-mine"):
        assert error_of(await peer.ask("session_join", {"sessionId": session_id})) == (
            "SESSION_NOT_FOUND"
        )
    assert (await peer.ask("session_list")).data()["sessions"] == []


# Agents


AGENT_QUESTIONS: dict[str, tuple[Payload, Payload, Payload]] = {
    "route_request": (
        {"agentId": "globex-bot"}, {"agentId": "globex-none"}, {"agentId": "acme-none"}
    ),
    "route_request by capability": (
        {"capability": "globex-tool"}, {"capability": "no-tool"}, {"capability": "no-tool"}
    ),
    "route_explain": (
        {"agentId": "globex-bot"}, {"agentId": "globex-none"}, {"agentId": "acme-none"}
    ),
    "route_explain by capability": (
        {"capability": "globex-tool"}, {"capability": "no-tool"}, {"capability": "no-tool"}
    ),
    "agent_list by capability": (
        {"capability": "globex-tool"}, {"capability": "no-tool"}, {"capability": "no-tool"}
    ),
    "agent_heartbeat": ({"id": "globex-bot"}, {"id": "globex-none"}, {"id": "acme-none"}),
    "agent_unregister": ({"id": "globex-bot"}, {"id": "globex-none"}, {"id": "acme-none"}),
    "session_create for an agent": (
        {"agentId": "globex-bot"}, {"agentId": "globex-none"}, {"agentId": "acme-none"}
    ),
    "session_create for a capability": (
        {"capability": "globex-tool"}, {"capability": "no-tool"}, {"capability": "no-tool"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("question", AGENT_QUESTIONS)
async def test_another_tenants_agent_looks_like_none(street, question, role):
    """Wherever an agent may be named or wished for."""
    peer = street.enter(role)
    if role == "node":
        await register(peer, "acme-other")
    type = question.partition(" ")[0]

    answers = [await asked(peer, type, payload) for payload in AGENT_QUESTIONS[question]]

    assert answers[0] is not None
    assert told(answers[0]) == told(answers[1]) == told(answers[2])
    assert street.gateway.agents.get_agent("globex-bot").online


async def test_an_agent_outside_of_the_patterns_cannot_be_registered(street):
    """Whether there is one or not."""
    peer = street.enter("node")

    other, absent = [
        await asked(peer, "agent_register", {"id": id}) for id in ("globex-bot", "globex-new")
    ]

    assert error_of(other) == "FORBIDDEN"
    assert told(other) == told(absent)
    assert street.gateway.agents.get_agent("globex-bot").owner == "globex-bots"


@pytest.mark.parametrize("role", ROLES)
async def test_lists_hold_nothing_of_another_tenant(street, role):
    """Sessions, agents and presence, also for control."""
    for person_ in (*street.people.values(), peer := street.enter(role)):
        await person_.ask("connect", {"deviceId": f"of-{person_.client.user_id}"})

    hello = await peer.ask("connect", {"deviceId": f"of-acme-{role}"})
    answers = [hello] + [
        await peer.ask(type) for type in ("session_list", "agent_list", "sync_state", "health")
    ]

    assert all("globex" not in str(answer.data()) for answer in answers)
    assert {a["id"] for a in answers[2].data()["agents"]} == {"acme-bot"}
    if role == "control":
        assert {s["sessionId"] for s in answers[1].data()["sessions"]} == {"acme-lobby"}
        devices = {entry["deviceId"] for entry in hello.data()["presence"]}
        assert devices == {"of-acme-bots", "of-acme-owner", "of-acme-control"}


async def test_a_capability_that_both_have_finds_ones_own_agent(street):
    """Requests, explanations and new sessions."""
    peer = street.enter("control")
    bot = street.people["acme-bot"]

    for _ in range(3):
        peer.send("route_request", {"capability": "shared-tool"})
        asked_for = await bot.next("route_request")
        bot.send("route_response", {"requestId": asked_for.data()["requestId"], "result": 1})
    explained = await peer.ask("route_explain", {"capability": "shared-tool"})
    await peer.ask("session_create", {"capability": "shared-tool"})
    assigned = await peer.next("session_info")

    assert [c["agentId"] for c in explained.data()["candidates"]] == ["acme-bot"]
    assert (assigned.data()["status"], assigned.data()["agentId"]) == ("assigned", "acme-bot")


async def test_an_agent_that_takes_over_is_within_the_creators_patterns(street):
    """The session's log says who was lost; nobody of the other tenant steps in."""
    peer = street.enter("webchat")
    await peer.ask("session_create", {"sessionId": "acme-new", "capability": "shared-tool"})
    await peer.ask("chat", {"message": "hi"}, "acme-new")

    street.people["acme-bot"].disconnect()

    end = await peer.next("chat_complete")
    assert end.data()["status"] == "lost"
    assert street.gateway.sessions.get_record("acme-new").assigned == ["acme-bot"]


async def test_nobody_gets_an_answer_of_an_agent_that_they_may_not_know_of(street):
    """Even if it is in the session: neither by default nor by a mention."""
    root = PeerClient(street.gateway, person("root", "node"))
    await register(root, "house-bot")
    await root.ask("session_join", {"sessionId": "acme-lobby"})
    owner = street.people["acme-owner"]

    for chat in ({"message": "hi"}, {"message": "x", "mentions": ["house-bot", "acme-bot"]}):
        ack = await owner.ask("chat", chat, "acme-lobby")

        assert [run["agentId"] for run in ack.data()["runs"]] == ["acme-bot"]


async def test_an_agent_is_not_brought_where_its_own_credential_does_not_reach(street):
    """An operator may ask for it, but gets none."""
    root = PeerClient(street.gateway, person("root", "control"))

    made = await root.ask("session_create", {"sessionId": "acme-x", "agentId": "globex-bot"})

    assert error_of(made) == "AGENT_NOT_FOUND"


# Telling many


@pytest.mark.parametrize("to", ["clients", "agents"])
async def test_a_tenants_broadcast_stays_within_the_tenant(street, to):
    """The operator's reaches all, and a tenant's not the operator."""
    root = PeerClient(street.gateway, person("root", "control"))

    mine = await street.people["acme-owner"].ask("broadcast", {"message": "mine", "to": to})
    everyones = await root.ask("broadcast", {"message": "all", "to": to})

    heard = {
        name: [m.data()["message"] for m in peer.received() if m.type == "broadcast"]
        for name, peer in {**street.people, "root": root}.items()
    }
    assert mine.data()["delivered"] == 1
    assert everyones.data()["delivered"] == {"clients": 4, "agents": 2}[to]
    assert heard["acme-bot"] == ["mine", "all"]
    assert heard["globex-bot"] == ["all"]
    assert heard["root"] == []


# Everything


def test_no_type_that_names_a_session_or_an_agent_is_left_out():
    """A new type must be added to the questions above."""
    agents = {question.partition(" ")[0] for question in AGENT_QUESTIONS}
    covered = {*SESSION_TYPES, *agents, "session_create", "agent_register", "session_list"}
    others = {"connect", "auth", "ping", "health", "sync_state", "route_cancel", "route_response"}

    assert set(RIGHTS) <= covered | others
    assert {p.type for p in PAYLOADS if p.sent_by != "gateway"} - set(RIGHTS) == set()
