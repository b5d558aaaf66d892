"""Requests that wait, are asked again, or are asked on behalf of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import details_of, error_of, person, register

from trunkline.agents import AgentRegistry
from trunkline.clients import Client, Clients, Peer
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.events import Events
from trunkline.payloads import AgentCapabilities, AgentRegister
from trunkline.pools import MAX_POOLS, FairQueue, Pools, Wanted
from trunkline.records.memory import MemoryRecords
from trunkline.server import GatewayServer
from trunkline.testing import MemoryTransport, PeerClient

OPEN = AuthConfig(mode="none")


def node(gateway: GatewayServer, user: str = "bots") -> PeerClient:
    return PeerClient(gateway, person(user, "node"))


async def agent(gateway: GatewayServer, agent_id: str, *tools: str, **more) -> PeerClient:
    peer = node(gateway)
    await register(peer, agent_id, *tools, **more)
    return peer


def asker(gateway: GatewayServer, name: str = "ada") -> PeerClient:
    return PeerClient(gateway, person(name))


def ask(peer: PeerClient, **payload) -> str:
    return peer.send("route_request", {"capability": "add", **payload})


async def asked(peer: PeerClient) -> dict:
    delivery: dict = (await peer.next("route_request")).data()
    return delivery


def answer(peer: PeerClient, delivery: dict, **payload) -> str:
    return peer.send("route_response", {"requestId": delivery["requestId"], **payload})


# Waiting


async def test_a_waiting_request_goes_to_the_first_agent_that_is_free(gateway):
    """Also to one that registers meanwhile."""
    await agent(gateway, "one", "add", max_concurrent=1)
    ada = asker(gateway)
    ask(ada)
    ask(ada, params=2)

    late = await agent(gateway, "late", "add")

    assert (await asked(late))["params"] == 2


async def test_askers_take_turns(gateway):
    """Who asks a hundred times does not hold up who asks once."""
    bot = await agent(gateway, "bot", "add", max_concurrent=1)
    eager, ada = asker(gateway, "eager"), asker(gateway)
    for number in range(10):
        ask(eager, params=number)
    ask(ada, params="ada")

    order = []
    for _ in range(4):
        delivery = await asked(bot)
        order.append(delivery["params"])
        answer(bot, delivery)

    assert order == [0, 1, "ada", 2]


async def test_a_request_that_waits_too_long_was_not_delivered(gateway):
    """Its deadline goes on while it waits."""
    bot, ada = await agent(gateway, "bot", "add", max_concurrent=1), asker(gateway)
    ask(ada)
    delivery = await asked(bot)

    end = await ada.next(reply_to=ask(ada, timeoutMs=20))
    answer(bot, delivery)

    assert (error_of(end), details_of(end)) == ("TIMEOUT", {"delivered": False})
    assert [m.type for m in bot.received()] == []


async def test_a_waiting_request_can_be_cancelled(gateway):
    """No agent hears of it."""
    bot, ada = await agent(gateway, "bot", "add", max_concurrent=1), asker(gateway)
    ask(ada)
    delivery = await asked(bot)
    waiting = ask(ada)

    ada.send("route_cancel", {"requestId": waiting})
    end = await ada.next(reply_to=waiting)
    answer(bot, delivery)

    assert (error_of(end), details_of(end)) == ("CANCELLED", {"delivered": False})
    assert bot.received() == []


async def test_a_thousand_requests_wait_at_most():
    """Past that, `OVERLOADED` with the time to wait."""
    limits = LimitsConfig(requests_per_connection=2_000, publish_burst=5_000)
    async with GatewayServer(GatewayConfig(auth=OPEN, limits=limits)) as gateway:
        await agent(gateway, "bot", "add", max_concurrent=1)
        ada = asker(gateway)
        for _ in range(1_001):
            ask(ada)

        refusal = await ada.next(reply_to=ask(ada))

        assert (error_of(refusal), details_of(refusal)) == ("OVERLOADED", {"delivered": False})
        assert refusal.data()["retryAfterMs"] == 1_000
        assert len(gateway.router) == 1_001


async def test_requests_that_wait_for_agents_that_are_gone_end(gateway):
    """Nobody that fits is left, nor will come back."""
    bot, ada = await agent(gateway, "bot", "add", max_concurrent=1), asker(gateway)
    first, second = ask(ada), ask(ada)
    await asked(bot)

    bot.disconnect()
    ends = {m.reply_to: (error_of(m), details_of(m)) for m in ada.received() if m.type == "error"}

    assert ends == {
        first: ("AGENT_LOST", {"delivered": True}),
        second: ("AGENT_NOT_FOUND", {"delivered": False}),
    }


async def test_requests_wait_for_an_agent_in_its_grace_time(gateway):
    """It serves them when it comes back."""
    bot, ada = await agent(gateway, "bot", "add", max_concurrent=1, grace_ms=60_000), asker(gateway)
    ask(ada)
    ask(ada, params=2)
    first = await asked(bot)

    bot.disconnect()
    again = await agent(gateway, "bot", "add", max_concurrent=1, resume={"generation": 1})
    answer(again, first)

    assert (await asked(again))["params"] == 2


async def test_an_agent_that_says_it_is_busy_is_asked_last(gateway):
    """But it is asked before a request waits."""
    one = await agent(gateway, "one", "add", max_concurrent=1)
    two = await agent(gateway, "two", "add")
    await two.ask("agent_heartbeat", {"id": "two", "status": "busy"})
    ada = asker(gateway)

    ask(ada, params=1)
    ask(ada, params=2)

    assert ((await asked(one))["params"], (await asked(two))["params"]) == (1, 2)


# Asking again


async def test_an_idempotent_request_goes_to_another_agent(gateway):
    """As long as nothing was answered; its new agent knows it under another id."""
    ada = asker(gateway)
    one = await agent(gateway, "one", "add")
    request = ask(ada, idempotent=True)
    first = await asked(one)
    two = await agent(gateway, "two", "add")

    one.disconnect()
    second = await asked(two)
    answer(two, second, result="ok")

    assert first["requestId"] != second["requestId"]
    assert (await ada.next(reply_to=request)).data()["result"] == "ok"


@pytest.mark.parametrize("answered", [True, False])
async def test_what_is_not_idempotent_or_half_answered_is_never_repeated(gateway, answered):
    """Its outcome is unknown, and the asker is told so."""
    ada = asker(gateway)
    one = await agent(gateway, "one", "add")
    request = ask(ada, idempotent=answered)
    first = await asked(one)
    two = await agent(gateway, "two", "add")
    if answered:
        answer(one, first, chunk="half", done=False)
        await ada.next(reply_to=request)

    one.disconnect()
    end = await ada.next(reply_to=request)

    assert (error_of(end), details_of(end)) == ("AGENT_LOST", {"delivered": True})
    assert two.received() == []


# On behalf of another


async def test_a_chain_names_the_agents_that_a_request_has_passed_through(gateway):
    """And it has its parent's deadline, if that is earlier."""
    one, two = await agent(gateway, "one", "add"), await agent(gateway, "two", "mul")
    ask(asker(gateway), timeoutMs=1_000)
    parent = await asked(one)

    one.send(
        "route_request",
        {"capability": "mul", "parentId": parent["requestId"], "timeoutMs": 60_000},
    )
    child = await asked(two)

    assert (parent["chain"], child["chain"]) == ([], ["one"])
    assert abs(child["deadline"] - parent["deadline"]) < 100


async def test_no_agent_is_asked_twice_in_a_chain(gateway):
    """Two agents cannot ask each other for ever."""
    one = await agent(gateway, "one", "add")
    ask(asker(gateway))
    parent = await asked(one)

    refusal = await one.ask("route_request", {"capability": "add", "parentId": parent["requestId"]})

    assert (error_of(refusal), details_of(refusal)) == ("AGENT_NOT_FOUND", {"delivered": False})


async def test_a_chain_has_at_most_eight_agents(gateway):
    """The ninth may not ask on."""
    bots = [await agent(gateway, f"bot{n}") for n in range(10)]
    request = asker(gateway).send("route_request", {"agentId": "bot0"})
    deliveries = []
    for number in range(9):
        delivery = await asked(bots[number])
        deliveries.append(delivery)
        payload = {"agentId": f"bot{number + 1}", "parentId": delivery["requestId"]}
        request = bots[number].send("route_request", payload)

    refusal = await bots[8].next(reply_to=request)

    assert len(deliveries[-1]["chain"]) == 8
    assert error_of(refusal) == "FORBIDDEN"


async def test_a_parent_must_be_what_this_connection_is_serving(gateway):
    """Knowing the id of another's request is not enough."""
    one, two = await agent(gateway, "one", "add"), await agent(gateway, "two", "mul")
    ask(asker(gateway))
    parent = await asked(one)

    refusal = await two.ask("route_request", {"agentId": "one", "parentId": parent["requestId"]})

    assert error_of(refusal) == "INVALID_PAYLOAD"
    assert details_of(refusal)["path"] == "$.parentId"


@pytest.mark.parametrize("end", ["answer", "cancel", "gone"])
async def test_children_end_with_their_parent(gateway, end):
    """However it ends; their agents are told."""
    one, two = await agent(gateway, "one", "add"), await agent(gateway, "two", "mul")
    ada = asker(gateway)
    request = ask(ada)
    parent = await asked(one)
    child = one.send("route_request", {"agentId": "two", "parentId": parent["requestId"]})
    grandchild = await asked(two)

    if end == "answer":
        answer(one, parent)
    elif end == "cancel":
        ada.send("route_cancel", {"requestId": request})
    else:
        ada.disconnect()

    assert error_of(await one.next(reply_to=child)) == "CANCELLED"
    assert (await two.next("route_cancel")).data()["requestId"] == grandchild["requestId"]
    assert len(gateway.router) == 0


async def test_what_is_asked_for_a_run_ends_with_the_run(gateway):
    """The run is named by session and id, for other sessions may have one of the same id."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    calc = await agent(gateway, "calc", "add")
    for session in ("lobby", "attic"):
        await ada.ask("session_create", {"sessionId": session})
        await bot.ask("session_join", {"sessionId": session})
        await ada.ask("chat", {"message": "hi"}, session)
    run = {"capability": "add", "parentId": "1.bot"}

    ambiguous = await bot.ask("route_request", run)
    child = bot.send("route_request", run, "attic")
    delivery = await asked(calc)
    bot.send("chat_complete", {"content": "done", "runId": "1.bot"}, "attic")
    end = await bot.next(reply_to=child)

    assert details_of(ambiguous)["path"] == "$.parentId"
    assert delivery["chain"] == ["bot"]
    assert error_of(end) == "CANCELLED"


# Explaining


async def test_the_explanation_names_every_candidate_and_why(gateway):
    """Nobody is asked."""
    free = await agent(gateway, "free", "add", labels={"zone": "a"})
    await agent(gateway, "other", "add", labels={"zone": "b"})
    full = await agent(gateway, "full", "add", labels={"zone": "a"}, max_concurrent=1)
    (await agent(gateway, "away", "add")).disconnect()
    ada = asker(gateway)
    ada.send("route_request", {"agentId": "full"})
    root = PeerClient(gateway, person("root", "control"))

    reply = await root.ask("route_explain", {"capability": "add", "labels": {"zone": "a"}})
    candidates = {c["agentId"]: (c["chosen"], c["reason"]) for c in reply.data()["candidates"]}

    assert candidates == {
        "free": (True, "it is the one to ask: 0 requests at work"),
        "other": (False, "its label zone is not a"),
        "full": (False, "it has no room: 1 requests at work of at most 1"),
        "away": (False, "it is offline"),
    }
    assert free.received() == []
    assert len(full.received()) == 1


async def test_explanations_are_for_control(gateway):
    """They tell of agents that one may not ask."""
    assert error_of(await asker(gateway).ask("route_explain", {"capability": "x"})) == "FORBIDDEN"


# The parts


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 999)), unique=True, max_size=30))
def test_a_fair_queue_serves_each_asker_in_order_and_all_in_turn(items):
    """No asker is served twice while another, that was there before, waits."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for item in items:
        queue.add(item[0], item)

    served = []
    while (item := queue.take(lambda _: True)) is not None:
        served.append(item)

    assert len(queue) == 0
    for name in "abc":
        assert [i for i in served if i[0] == name] == [i for i in items if i[0] == name]
    rounds = [sum(other[0] == item[0] for other in served[:n]) for n, item in enumerate(served)]
    assert rounds == sorted(rounds)


def test_an_item_that_does_not_fit_does_not_hold_up_those_behind_it():
    """It keeps its place."""
    queue: FairQueue[int] = FairQueue()
    for item in (1, 2, 3):
        queue.add("ada", item)

    assert queue.take(lambda item: item == 2) == 2
    assert queue.items() == [1, 3]


async def test_a_pool_knows_the_least_busy_agent_whatever_happens():
    """Also when agents leave, fill up, or change what they can do."""
    client = Client("c", MemoryTransport(), Peer())
    registry = AgentRegistry(Clients(), Events(), MemoryRecords(), LimitsConfig())
    pools: Pools[object] = Pools(registry)
    can_add = AgentCapabilities(tools=["add"])
    agents = [
        await registry.register(
            AgentRegister(id=f"a{n}", capabilities=can_add, max_concurrent=3), client
        )
        for n in range(3)
    ]
    pool = pools.find(Wanted("add"))
    for one, requests in zip(agents, (2, 1, 3), strict=True):
        one.requests = dict.fromkeys(map(str, range(requests)))
        pools.finished(one)

    assert pool.choose() is agents[1]
    assert pool.choose(None, ("a1",)) is agents[0]
    assert pool.choose(None, ("a0", "a1")) is None
    for one in agents:
        one.requests = {}
    registry.unregister("a1")
    await registry.register(AgentRegister(id="a0"), client)

    pools.finished(agents[2])
    assert pool.choose() is agents[2]
    assert len(pool) == 1


async def test_a_pool_that_nobody_needs_is_forgotten():
    """When its last agent has left."""
    client = Client("c", MemoryTransport(), Peer())
    registry = AgentRegistry(Clients(), Events(), MemoryRecords(), LimitsConfig())
    pools: Pools[object] = Pools(registry)
    can_add = AgentRegister(id="bot", capabilities=AgentCapabilities(tools=["add"]))
    await registry.register(can_add, client)
    pool = pools.find(Wanted("add"))

    registry.unregister("bot")
    await registry.register(can_add, client)

    assert pools.find(Wanted("mul")) is None
    assert pools.find(Wanted("add")) is not pool


async def test_the_pool_that_was_not_asked_for_longest_makes_room():
    """What askers make up cannot make the gateway grow."""
    client = Client("c", MemoryTransport(), Peer())
    registry = AgentRegistry(Clients(), Events(), MemoryRecords(), LimitsConfig())
    pools: Pools[object] = Pools(registry)
    labels = {f"l{n}": "x" for n in range(MAX_POOLS + 1)}
    bot = await registry.register(AgentRegister(id="bot", labels=labels), client)

    for name in labels:
        pools.find(Wanted(agent_id="bot", labels=((name, "x"),)))

    assert len(bot.pools) == MAX_POOLS


async def test_a_set_that_shrinks_to_one_agent_and_grows_again_counts_right(gateway):
    """Of a lone agent nothing is noted; what it has at work counts once there is another."""
    ada = asker(gateway)
    await agent(gateway, "first", "add")
    for _ in range(3):
        ask(ada)
    second = await agent(gateway, "second", "add")

    for _ in range(3):
        ask(ada)
    counts = [gateway.agents.get_agent(a).active for a in ("first", "second")]
    await second.ask("agent_unregister", {"id": "second"})
    ask(ada)

    assert counts == [3, 3]
    assert gateway.agents.get_agent("first").active == 4


acts = st.lists(st.tuples(st.sampled_from(["ask", "turn", "end", "away"]), st.integers(0, 9)))


@given(acts=acts, limits=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4))
async def test_a_pool_never_chooses_a_busier_agent_than_it_must(acts, limits):
    """Compared with a look at every agent, in any order of asking, ending, leaving and coming."""
    client = Client("c", MemoryTransport(), Peer())
    registry = AgentRegistry(Clients(), Events(), MemoryRecords(), LimitsConfig())
    pools: Pools[object] = Pools(registry)
    can_add = AgentCapabilities(tools=["add"])
    agents = [
        await registry.register(
            AgentRegister(id=f"a{n}", capabilities=can_add, max_concurrent=limit), client
        )
        for n, limit in enumerate(limits)
    ]
    for act, number in acts:
        one = agents[number % len(agents)]
        pool = pools.find(Wanted("add"))
        if act in ("ask", "turn"):
            chain = (one.id,) if number > 6 else ()
            policy = "round_robin" if act == "turn" else None
            free = [a for a in agents if a.has_room and a.id not in chain]
            chosen = pool.choose(policy, chain) if pool is not None else None
            assert (chosen is None) == (not free)
            if chosen is not None:
                assert chosen in free
                assert act == "turn" or chosen.active == min(a.active for a in free)
                pool.took_turn(chosen)
                chosen.requests[str(len(chosen.requests))] = object()
        elif act == "end" and one.requests:
            one.requests.popitem()
            pools.finished(one)
        elif act == "away":
            registry.update_status(one.id, "offline" if one.online else "online", client)
