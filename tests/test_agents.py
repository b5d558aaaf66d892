"""The registry of agents: whose an id is, who speaks for it, what it can do."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import error_of, person, register

from trunkline.agents import capability_names
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.errors import GatewayError
from trunkline.messages import create_message, encode
from trunkline.ownership import KIND, Ownership
from trunkline.payloads import AgentCapabilities, AgentRegister
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

OPEN = AuthConfig(mode="none")
LATE = {"content": "It was me who answered."}


def node(gateway: GatewayServer, user: str = "bots", *scopes: str) -> PeerClient:
    return PeerClient(gateway, person(user, "node", *scopes))


def announced(agent_id: str, **more) -> AgentRegister:
    return AgentRegister(id=agent_id, **more)


# From Python


async def test_the_registry_registers_finds_and_forgets_agents(gateway):
    """`register`, `get_agent`, `get_all_agents`, `get_online_agents`, `unregister`."""
    peer = node(gateway)

    online = await gateway.agents.register(announced("one"), peer.client)
    offline = await gateway.agents.register(announced("two"))

    assert gateway.agents.get_agent("one") is online
    assert gateway.agents.get_all_agents() == [online, offline]
    assert gateway.agents.get_online_agents() == [online]
    assert [gateway.agents.unregister("one") for _ in range(2)] == [True, False]
    assert gateway.agents.get_agent("one") is None


async def test_agents_are_found_by_capability_and_by_type(gateway):
    """Every spelling of a capability finds the same agents; offline ones are not found."""
    peer = node(gateway)
    capabilities = AgentCapabilities(
        chat=True, tools=["add"], streaming=True, modes=["fast"], custom={"own": {}}
    )
    agent = await gateway.agents.register(
        announced("one", capabilities=capabilities, agent_type="pi"), peer.client
    )
    await gateway.agents.register(announced("two", capabilities=capabilities, agent_type="pi"))

    words = ["chat", "streaming", "add", "tools:add", "fast", "modes:fast", "own"]
    assert [gateway.agents.find_by_capability(word) for word in words] == [[agent]] * 7
    assert gateway.agents.find_by_capability("fly") == []
    assert gateway.agents.find_by_type("pi") == [agent]
    assert gateway.agents.find_by_type("cli") == []


def test_a_tool_may_be_described_or_only_named():
    """Both are found by the name."""
    capabilities = AgentCapabilities(tools=[{"name": "add"}, "mul"])  # type: ignore[list-item]
    read = AgentRegister(id="x", capabilities=capabilities)

    again = msgspec.json.decode(encode(read), type=AgentRegister)
    assert capability_names(again.capabilities) == {"add", "tools:add", "mul", "tools:mul"}


async def test_the_stats_count_agents_online_and_by_type(gateway):
    """`total`, `online`, `by_type`."""
    await gateway.agents.register(announced("one", agent_type="pi"), node(gateway).client)
    await gateway.agents.register(announced("two", agent_type="cli"))

    assert gateway.agents.get_stats() == {
        "total": 2,
        "online": 1,
        "by_type": {"pi": 1, "cli": 1},
    }


async def test_a_broadcast_to_agents_reaches_every_connection_once(gateway):
    """Even one that speaks for several; a filter chooses."""
    two, one = node(gateway), node(gateway)
    await register(two, "a")
    await register(two, "b")
    await register(one, "c")
    message = create_message("note", {"x": 1})

    everyone = gateway.agents.broadcast_to_agents(message)
    chosen = gateway.agents.broadcast_to_agents(message, lambda agent: agent.id == "c")

    assert (everyone, chosen) == (2, 1)
    assert len([m for m in two.received() if m.type == "note"]) == 1
    assert len([m for m in one.received() if m.type == "note"]) == 2


async def test_a_status_may_be_set_from_python(gateway):
    """`offline` takes the connection away; an unknown agent is an error."""
    peer = node(gateway)
    agent = await gateway.agents.register(announced("one"), peer.client)

    gateway.agents.update_status("one", "busy")
    busy = (agent.status, agent.online)
    gateway.agents.update_status("one", "offline")

    assert busy == ("busy", True)
    assert (agent.status, agent.online) == ("offline", False)
    assert peer.client.kind == "user"
    with pytest.raises(GatewayError, match="AGENT_NOT_FOUND"):
        gateway.agents.update_status("nobody", "online")


async def test_another_connection_may_be_given_an_agent_from_python(gateway):
    """The old one speaks for it no more."""
    old, new = node(gateway), node(gateway)
    agent = await gateway.agents.register(announced("one"), old.client)

    gateway.agents.update_status("one", "online", new.client)

    assert agent.client is new.client
    assert (old.client.kind, new.client.kind) == ("user", "agent")


async def test_the_events_tell_of_every_change(gateway):
    """Registered, status changed, offline, unregistered."""
    heard = []
    for name in ("registered", "status-changed", "offline", "unregistered"):
        gateway.on(f"agent:{name}", lambda agent, name=name: heard.append((name, agent.id)))
    first, second = node(gateway), node(gateway)

    await register(first, "one")
    await first.ask("agent_heartbeat", {"id": "one", "status": "busy"})
    first.disconnect()
    await register(second, "one")
    await second.ask("agent_unregister", {"id": "one"})

    assert [name for name, _ in heard] == [
        "registered", "status-changed", "status-changed", "offline", "registered", "unregistered",
    ]  # fmt: skip


# Over the wire


async def test_a_registration_is_answered_with_generation_and_lease(gateway):
    """Nothing waits for a new agent."""
    answer = await register(node(gateway), "one")

    assert answer.type == "agent_registered"
    assert answer.data() == {
        "agentId": "one",
        "generation": 1,
        "leaseMs": 60_000,
        "runs": [],
        "requests": [],
    }


async def test_registering_again_on_the_same_connection_is_an_update(gateway):
    """The generation stays, and what it can do is replaced."""
    peer = node(gateway)
    await register(peer, "one", "add")

    again = await register(peer, "one", "mul")

    assert again.data()["generation"] == 1
    assert gateway.agents.find_by_capability("add") == []
    assert len(gateway.agents.find_by_capability("mul")) == 1
    assert peer.transport.closed is None


async def test_a_newer_connection_of_the_same_user_takes_over(gateway):
    """With a higher generation; the older connection is closed with 4009."""
    old, new = node(gateway), node(gateway)
    await register(old, "one")

    answer = await register(new, "one")
    code, reason = await old.gone()

    assert answer.data()["generation"] == 2
    assert (code, reason[:12]) == (4009, "reconnect=no")
    assert gateway.agents.get_agent("one").client is new.client


async def test_what_the_older_connection_still_sends_is_refused(gateway):
    """It speaks for the agent no more, in the very moment of the take-over."""
    old, new, watcher = node(gateway), node(gateway), PeerClient(gateway)
    await watcher.ask("session_create", {"sessionId": "lobby"})
    await register(old, "one")
    await old.ask("session_join", {"sessionId": "lobby"})

    gateway.on("agent:registered", lambda agent: old.send("chat_complete", LATE, "lobby"))
    await register(new, "one")
    await watcher.ask("session_list")

    assert [m.type for m in watcher.received() if m.type == "chat_complete"] == []
    page = await watcher.ask("session_history", {"sessionId": "lobby"})
    assert page.data()["messages"] == []


async def test_an_id_belongs_to_the_user_that_first_registered_it(gateway):
    """Whether the agent is online or not; the owner is not disturbed."""
    ada = node(gateway, "ada")
    await register(ada, "one")

    while_online = await register(node(gateway, "eve"), "one")
    ada.disconnect()
    while_offline = await register(node(gateway, "eve"), "one")

    assert [error_of(a) for a in (while_online, while_offline)] == ["AGENT_ID_TAKEN"] * 2
    assert gateway.agents.get_agent("one").owner == "ada"


async def test_ids_that_differ_only_in_case_are_one_id(gateway):
    """A mention folds case, and must not call a stranger's agent."""
    await register(node(gateway, "ada"), "Helper")

    assert error_of(await register(node(gateway, "eve"), "hELPER")) == "AGENT_ID_TAKEN"


async def test_an_admin_may_release_an_id(gateway):
    """Then anybody may register it; generations go on, for they fence."""
    await register(node(gateway, "ada"), "one")
    admin = PeerClient(gateway, person("root", "control", "agent:admin"))

    released = await admin.ask("agent_unregister", {"id": "one"})
    taken = await register(node(gateway, "bob"), "one")

    assert released.data() == {"agentId": "one"}
    assert taken.data()["generation"] == 2
    assert gateway.agents.get_agent("one").owner == "bob"


async def test_releasing_needs_the_scope_and_an_id_that_somebody_owns(gateway):
    """The role control alone is not enough."""
    await register(node(gateway, "ada"), "one")
    root = PeerClient(gateway, person("root", "control"))
    admin = PeerClient(gateway, person("root", "control", "agent:admin"))

    assert error_of(await root.ask("agent_unregister", {"id": "one"})) == "FORBIDDEN"
    assert error_of(await admin.ask("agent_unregister", {"id": "two"})) == "AGENT_NOT_FOUND"
    assert gateway.agents.get_agent("one") is not None


async def old_ownership(gateway: GatewayServer, days: float) -> None:
    used_at = time.time() - days * 86_400
    await gateway.records.put(KIND, "one", encode(Ownership("ada", 7, used_at)), 0)


async def test_an_id_unused_for_thirty_days_is_anybodys_again(gateway):
    """Not a day earlier."""
    await old_ownership(gateway, 29.9)
    early = await register(node(gateway, "eve"), "one")
    await gateway.records.delete(KIND, "one", 1)
    await old_ownership(gateway, 30.1)
    late = await register(node(gateway, "eve"), "one")

    assert error_of(early) == "AGENT_ID_TAKEN"
    assert late.data()["generation"] == 8


async def test_an_agent_that_is_online_for_months_keeps_its_id(gateway):
    """Being there is use."""
    await register(node(gateway, "ada"), "one")
    record = await gateway.records.get(KIND, "one")
    old = encode(Ownership("ada", 1, time.time() - 100 * 86_400))
    await gateway.records.put(KIND, "one", old, record.version)

    assert error_of(await register(node(gateway, "eve"), "one")) == "AGENT_ID_TAKEN"


@settings(max_examples=30, deadline=None)
@given(
    script=st.lists(st.tuples(st.sampled_from(["ada", "eve"]), st.booleans()), max_size=12),
    first=st.sampled_from(["ada", "eve"]),
)
async def test_no_race_of_registrations_changes_hands(script, first):
    """Two users, any number of connections: the first keeps the id, generations only grow."""
    async with GatewayServer(GatewayConfig(auth=OPEN)) as gateway:
        await register(node(gateway, first), "one")
        generations = [1]

        asked = []
        for user, wait in script:
            peer = node(gateway, user)
            asked.append((user, peer, peer.send("agent_register", announced("one"))))
            if wait:
                await asyncio.sleep(0)
        for user, peer, request in asked:
            answer = await peer.next(reply_to=request)
            if user == first:
                generations.append(answer.data()["generation"])
            else:
                assert error_of(answer) == "AGENT_ID_TAKEN"

        assert generations == sorted(set(generations))
        agent = gateway.agents.get_agent("one")
        assert (agent.owner, agent.generation) == (first, generations[-1])


async def test_a_disconnect_marks_the_agent_offline_at_once(gateway):
    """It is listed, and not found any more."""
    peer = node(gateway)
    await register(peer, "one", "add")

    peer.disconnect()

    assert gateway.agents.find_by_capability("add") == []
    listed = (await PeerClient(gateway).ask("agent_list")).data()["agents"]
    assert [(a["id"], a["status"]) for a in listed] == [("one", "offline")]


async def test_an_agent_that_registers_after_its_connection_is_gone_is_offline(gateway):
    """A slow registration does not bring a ghost online."""
    peer = node(gateway)

    peer.send("agent_register", announced("one"))
    peer.disconnect()
    await gateway.handlers.drain()

    agent = gateway.agents.get_agent("one")
    assert agent is None or not agent.online


async def test_a_heartbeat_is_answered_and_tells_status_and_load(gateway):
    """Only the connection that registered the agent may send it."""
    peer = node(gateway)
    await register(peer, "one")

    answer = await peer.ask("agent_heartbeat", {"id": "one", "status": "busy", "load": 2.5})
    stranger = await node(gateway, "eve").ask("agent_heartbeat", {"id": "one"})
    entry = (await peer.ask("agent_list")).data()["agents"][0]

    assert (answer.type, answer.data()) == ("agent_heartbeat_ok", {"leaseMs": 60_000})
    assert error_of(stranger) == "AGENT_NOT_FOUND"
    assert (entry["status"], entry["load"]) == ("busy", 2.5)


async def test_only_its_own_connection_unregisters_an_agent(gateway):
    """Another's is as absent as none."""
    await register(node(gateway, "ada"), "one")
    eve = node(gateway, "eve")

    others = await eve.ask("agent_unregister", {"id": "one"})
    absent = await eve.ask("agent_unregister", {"id": "two"})

    assert others.data() == absent.data()
    assert gateway.agents.get_agent("one") is not None


async def test_the_list_can_be_filtered(gateway):
    """By capability, type and status."""
    peer = node(gateway)
    await register(peer, "one", "add", agent_type="pi")
    await register(peer, "two", agent_type="cli")
    await peer.ask("agent_heartbeat", {"id": "two", "status": "busy"})

    async def listed(**wanted) -> list[str]:
        answer = await peer.ask("agent_list", wanted)
        return [agent["id"] for agent in answer.data()["agents"]]

    assert await listed() == ["one", "two"]
    assert await listed(capability="tools:add") == ["one"]
    assert await listed(type="cli") == ["two"]
    assert await listed(status="busy") == ["two"]


async def test_a_user_has_so_many_agents_at_most():
    """Those it has may come back at the limit."""
    config = GatewayConfig(auth=OPEN, limits=LimitsConfig(agents_per_user=2))
    async with GatewayServer(config) as gateway:
        first, second = node(gateway), node(gateway)
        await register(first, "one")
        await register(first, "two")

        third = await register(second, "three")
        back = await register(second, "one")

        assert error_of(third) == "OVERLOADED"
        assert back.data()["generation"] == 2


async def test_whoever_speaks_for_an_agent_is_stamped_so(gateway):
    """`kind` agent with the agent's id, and user again afterwards."""
    peer, other = node(gateway), PeerClient(gateway)
    await other.ask("session_create", {"sessionId": "lobby"})
    await peer.ask("session_join", {"sessionId": "lobby"})

    stamps = []
    for act in (None, "agent_register", "agent_unregister"):
        if act:
            await peer.ask(act, {"id": "one"})
        await peer.ask("chat", {"message": "hi"}, "lobby")
        sender = (await other.next("chat")).sender
        stamps.append((sender.kind, sender.agent_id))

    assert stamps == [("user", None), ("agent", "one"), ("user", None)]


async def test_sync_state_shows_sessions_agents_and_presence(gateway):
    """And the number of changes of the public state, which only grows."""
    ada = PeerClient(gateway, person("ada"))
    await ada.ask("connect", {"deviceId": "phone"})
    before = (await ada.ask("sync_state")).data()
    await ada.ask("session_create", {"sessionId": "lobby"})
    await register(node(gateway), "one")

    after = (await ada.ask("sync_state")).data()

    assert after["stateVersion"] > before["stateVersion"]
    assert [s["sessionId"] for s in after["sessions"]] == ["lobby"]
    assert [a["id"] for a in after["agents"]] == ["one"]
    assert [p["deviceId"] for p in after["presence"]] == ["phone"]
