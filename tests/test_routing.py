"""Requests: one agent asked, exactly one end, and nobody else's answer is heard."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import details_of, error_of, person, register

from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.messages import GatewayMessage, create_message, decode_message
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

OPEN = AuthConfig(mode="none")


async def agent(gateway: GatewayServer, agent_id: str, *tools: str, **more) -> PeerClient:
    peer = PeerClient(gateway, person(f"user of {agent_id}", "node"))
    await register(peer, agent_id, *tools, **more)
    return peer


def asker(gateway: GatewayServer, name: str = "ada") -> PeerClient:
    return PeerClient(gateway, person(name))


async def asked(peer: PeerClient) -> str:
    """The gateway's id of the next request that an agent gets."""
    request_id: str = (await peer.next("route_request")).data()["requestId"]
    return request_id


def answer(peer: PeerClient, request_id: str, **payload) -> str:
    return peer.send("route_response", {"requestId": request_id, **payload})


# A request and its answer


async def test_an_agent_is_asked_and_its_answer_reaches_the_asker(gateway):
    """With `replyTo`, the agent as the proven sender, and the result byte for byte."""
    bot, ada = await agent(gateway, "bot", "add"), asker(gateway)

    request = ada.send(
        "route_request",
        {"capability": "tools:add", "method": "add", "params": {"a": 1.50}, "timeoutMs": 5_000},
    )
    asking = await bot.next("route_request")
    bot.send_text(
        '{"type":"route_response","id":"r1","payload":{"ok":true,"result":{"sum" : 2.50},'
        f'"done":true,"requestId":"{asking.data()["requestId"]}"}}}}'
    )
    answered = await ada.next(reply_to=request)

    data = asking.data()
    assert (data["capability"], data["method"], data["params"]) == ("tools:add", "add", {"a": 1.5})
    assert (data["stream"], data["chain"]) == (False, [])
    assert abs(data["deadline"] - (time.time() * 1000 + 5_000)) < 2_000
    assert (asking.sender.user_id, asking.source, asking.target) == ("ada", ada.client.id, "bot")
    assert b'{"sum" : 2.50}' in bytes(answered.payload)
    assert (answered.type, answered.data()["agentId"]) == ("route_response", "bot")
    assert (answered.sender.agent_id, answered.sender.kind) == ("bot", "agent")
    assert gateway.router.ends == {"ok": 1}


async def test_the_gateways_request_id_cannot_be_guessed(gateway):
    """128 random bits, and not the asker's own id."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)

    for _ in range(5):
        ada.send("route_request", {"agentId": "bot"}, id=None)
    ids = [await asked(bot) for _ in range(5)]

    assert len(set(ids)) == 5
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)


async def test_a_streamed_answer_has_chunks_and_one_end(gateway):
    """In the agent's order; what comes after the end is dropped and counted."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot", "stream": True})
    request_id = await asked(bot)

    answer(bot, request_id, chunk=1, done=False)
    answer(bot, request_id, chunk=2, done=False)
    answer(bot, request_id, result="all", done=True)
    answer(bot, request_id, chunk=3, done=False)
    parts = [await ada.next(reply_to=request) for _ in range(3)]

    assert [(p.data().get("chunk"), p.data()["done"]) for p in parts] == [
        (1, False), (2, False), (None, True),
    ]  # fmt: skip
    assert ada.received() == []
    assert gateway.router.strays == 1


async def test_an_agents_own_failure_is_an_end_too(gateway):
    """`ok: false` with the agent's error."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})

    answer(bot, await asked(bot), ok=False, error={"code": "NO", "message": "not today"})
    answered = await ada.next(reply_to=request)

    assert (answered.type, answered.data()["ok"]) == ("route_response", False)
    assert answered.data()["error"] == {"code": "NO", "message": "not today"}


async def test_a_request_may_name_its_agent_in_target(gateway):
    """As a control message does."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    message = create_message("route_request", {"method": "x"})
    message.target = "bot"

    ada.send_message(message)

    assert (await bot.next("route_request")).data()["method"] == "x"


# Who is asked


async def test_nobody_who_fits_is_agent_not_found(gateway):
    """Nothing was delivered."""
    ada = asker(gateway)
    await agent(gateway, "bot", "add")

    for wanted in (
        {"capability": "fly"},
        {"agentId": "nobody"},
        {"agentId": "bot", "capability": "fly"},
        {"capability": "add", "labels": {"room": "7"}},
    ):
        refusal = await ada.ask("route_request", wanted)
        assert error_of(refusal) == "AGENT_NOT_FOUND"
        assert details_of(refusal) == {"delivered": False}


async def test_a_request_that_names_nobody_is_invalid(gateway):
    """It needs a capability or an agent."""
    assert error_of(await asker(gateway).ask("route_request", {})) == "INVALID_PAYLOAD"


async def test_labels_choose_among_agents(gateway):
    """All of them must fit."""
    await agent(gateway, "one", "add", labels={"room": "1", "floor": "2"})
    two = await agent(gateway, "two", "add", labels={"room": "2", "floor": "2"})

    wanted = {"capability": "add", "labels": {"room": "2", "floor": "2"}}
    asker(gateway).send("route_request", wanted)

    assert (await two.next("route_request")).target == "two"


@pytest.mark.parametrize("policy", ["least_busy", "round_robin", None])
async def test_equal_agents_share_the_work(gateway, policy):
    """With every policy each gets its part."""
    bots = [await agent(gateway, f"bot{n}", "add") for n in range(3)]
    ada = asker(gateway)

    for _ in range(9):
        ada.send("route_request", {"capability": "add", "policy": policy})

    counts = [sum(m.type == "route_request" for m in bot.received()) for bot in bots]
    assert counts == [3, 3, 3]


async def test_the_least_busy_agent_is_asked(gateway):
    """The one with the fewest requests at work."""
    one, two = await agent(gateway, "one", "add"), await agent(gateway, "two", "add")
    ada = asker(gateway)
    for _ in range(2):
        ada.send("route_request", {"agentId": "one"})

    for _ in range(2):
        ada.send("route_request", {"capability": "add"})

    assert len([m for m in one.received() if m.type == "route_request"]) == 2
    assert len([m for m in two.received() if m.type == "route_request"]) == 2


async def test_an_agent_gets_no_more_than_it_takes_at_a_time(gateway):
    """`maxConcurrent`; the next one waits until a request has ended."""
    bot, ada = await agent(gateway, "bot", "add", max_concurrent=1), asker(gateway)
    ada.send("route_request", {"capability": "add"})
    request_id = await asked(bot)

    ada.send("route_request", {"capability": "add"})
    meanwhile = [m.type for m in bot.received()]
    answer(bot, request_id)

    assert meanwhile == []
    assert await asked(bot) != request_id


async def test_a_connection_has_so_many_open_requests_at_most():
    """Past it, `OVERLOADED` before anything is delivered."""
    config = GatewayConfig(auth=OPEN, limits=LimitsConfig(requests_per_connection=2))
    async with GatewayServer(config) as gateway:
        await agent(gateway, "bot")
        ada = asker(gateway)
        for _ in range(2):
            ada.send("route_request", {"agentId": "bot"})

        refusal = await ada.ask("route_request", {"agentId": "bot"})

        assert (error_of(refusal), details_of(refusal)) == ("OVERLOADED", {"delivered": False})


async def test_an_open_requests_id_cannot_be_used_again(gateway):
    """`ID_CONFLICT`; the open one goes on."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    ada.send("route_request", {"agentId": "bot"}, id="q")

    ada.send("route_request", {"agentId": "bot"}, id="q")
    refusal = await ada.next("error")
    answer(bot, await asked(bot))

    assert error_of(refusal) == "ID_CONFLICT"
    assert (await ada.next(reply_to="q")).type == "route_response"


@pytest.mark.parametrize("timeout", [0, -1, 3_600_001, "soon"])
async def test_a_deadline_is_between_a_millisecond_and_an_hour(gateway, timeout):
    """The path names the field."""
    await agent(gateway, "bot")

    refusal = await asker(gateway).ask("route_request", {"agentId": "bot", "timeoutMs": timeout})

    assert details_of(refusal) == {"path": "$.timeoutMs"}


# Ends


async def test_a_request_that_is_not_answered_in_time_ends_so(gateway):
    """It was delivered, so the outcome is unknown; the agent is told to stop."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)

    end = await ada.ask("route_request", {"agentId": "bot", "timeoutMs": 10})
    request_id = await asked(bot)
    told = await bot.next("route_cancel")
    answer(bot, request_id)

    assert (error_of(end), details_of(end)) == ("TIMEOUT", {"delivered": True})
    assert told.data()["requestId"] == request_id
    assert gateway.router.strays == 1
    assert ada.received() == []


async def test_a_cancelled_request_ends_so(gateway):
    """The agent is told with the gateway's id; the cancel itself is not answered."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})
    request_id = await asked(bot)
    ada.received()

    ada.send("route_cancel", {"requestId": request})
    messages = ada.received()

    assert [(error_of(m), m.reply_to) for m in messages] == [("CANCELLED", request)]
    assert (await bot.next("route_cancel")).data()["requestId"] == request_id


async def test_cancelling_an_unknown_request_is_ignored(gateway):
    """So is cancelling another's."""
    bot, ada, eve = await agent(gateway, "bot"), asker(gateway), asker(gateway, "eve")
    request = ada.send("route_request", {"agentId": "bot"})
    request_id = await asked(bot)
    eve.received()

    for guess in (request, request_id, "whatever"):
        eve.send("route_cancel", {"requestId": guess})

    assert eve.received() == []
    assert len(gateway.router) == 1


async def test_a_lost_agent_ends_its_requests(gateway):
    """The outcome is unknown."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})

    bot.disconnect()
    end = await ada.next(reply_to=request)

    assert (error_of(end), details_of(end)) == ("AGENT_LOST", {"delivered": True})


async def test_a_take_over_ends_the_requests_of_the_older_connection(gateway):
    """The newer one may not answer what it was not asked."""
    old, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})
    request_id = await asked(old)

    new = await agent(gateway, "bot")
    end = await ada.next(reply_to=request)
    answer(new, request_id, result="mine")

    assert error_of(end) == "AGENT_LOST"
    assert gateway.router.strays == 1
    assert ada.received() == []


async def test_an_asker_that_goes_away_cancels_what_it_asked(gateway):
    """The agent is told; its slot is free again."""
    bot, ada = await agent(gateway, "bot", max_concurrent=1), asker(gateway)
    ada.send("route_request", {"agentId": "bot"})
    request_id = await asked(bot)

    ada.disconnect()

    assert (await bot.next("route_cancel")).data()["requestId"] == request_id
    assert len(gateway.router) == 0
    assert gateway.agents.get_agent("bot").active == 0


@settings(max_examples=60, deadline=None)
@given(
    acts=st.lists(
        st.sampled_from(["done", "chunk", "fail", "cancel", "lost", "timeout", "again"]),
        min_size=1,
        max_size=7,
    )
)
async def test_whatever_happens_a_request_has_exactly_one_end(acts):
    """In every order; afterwards nothing is open and no slot is taken."""
    async with GatewayServer(GatewayConfig(auth=OPEN)) as gateway:
        bot, ada = await agent(gateway, "bot"), asker(gateway)
        request = ada.send("route_request", {"agentId": "bot"})
        request_id = await asked(bot)
        steps = {
            "done": lambda: answer(bot, request_id),
            "chunk": lambda: answer(bot, request_id, chunk=1, done=False),
            "fail": lambda: answer(bot, request_id, ok=False),
            "cancel": lambda: ada.send("route_cancel", {"requestId": request}),
            "lost": bot.disconnect,
            "timeout": lambda: [
                gateway.router._timed_out(r.id) for r in list(ada.client.requests.values())
            ],
            "again": lambda: answer(bot, request_id, result=2),
        }

        for act in acts:
            if bot.transport.closed is None or act in ("cancel", "timeout"):
                steps[act]()
        bot.disconnect()
        messages = [m for m in ada.received() if m.reply_to == request]
        ends = [m for m in messages if m.type == "error" or m.data()["done"]]

        assert len(ends) == 1
        assert messages[-1] is ends[0]
        assert (len(gateway.router), gateway.agents.get_agent("bot").active) == (0, 0)
        assert ada.client.requests == {}


# Who may answer


async def test_only_the_connection_that_was_asked_may_answer(gateway):
    """Another agent that knows the id is not heard, and counted."""
    bot, eve, ada = await agent(gateway, "bot"), await agent(gateway, "eve"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})
    request_id = await asked(bot)

    answer(eve, request_id, result="spoofed")
    answer(eve, "0" * 32, result="guessed")
    answer(bot, request_id, result="true")
    answered = await ada.next(reply_to=request)

    assert answered.data()["result"] == "true"
    assert gateway.router.strays == 2
    assert ada.received() == []


async def test_an_answer_cannot_claim_another_agent(gateway):
    """`agentId` is the gateway's."""
    bot, ada = await agent(gateway, "bot"), asker(gateway)
    request = ada.send("route_request", {"agentId": "bot"})

    answer(bot, await asked(bot), agentId="eve")

    assert (await ada.next(reply_to=request)).data()["agentId"] == "bot"


# Broadcast


def control(gateway: GatewayServer) -> PeerClient:
    return PeerClient(gateway, person("root", "control"))


def broadcasts(peer: PeerClient) -> list[GatewayMessage]:
    return [m for m in peer.received() if m.type == "broadcast"]


async def test_a_broadcast_reaches_every_client_but_its_sender(gateway):
    """With the proven sender; the ack tells how many connections it went to."""
    root, ada, bob = control(gateway), asker(gateway), asker(gateway, "bob")

    ack = await root.ask("broadcast", {"message": {"text": "hear!"}, "to": "clients"})

    assert (ack.type, ack.data()) == ("ack", {"delivered": 2})
    assert broadcasts(root) == []
    for peer in (ada, bob):
        (message,) = broadcasts(peer)
        assert message.data() == {"message": {"text": "hear!"}, "to": "clients"}
        assert (message.sender.user_id, message.seq) == ("root", None)


async def test_a_broadcast_may_go_to_agents_that_can_do_something(gateway):
    """Or to all agents; to nobody else."""
    root, ada = control(gateway), asker(gateway)
    one, two = await agent(gateway, "one", "add"), await agent(gateway, "two")

    some = await root.ask("broadcast", {"message": 1, "to": "agents", "capability": "add"})
    every = await root.ask("broadcast", {"message": 2, "to": "agents"})

    assert (some.data(), every.data()) == ({"delivered": 1}, {"delivered": 2})
    assert [m.data()["message"] for m in broadcasts(one)] == [1, 2]
    assert [m.data()["message"] for m in broadcasts(two)] == [2]
    assert broadcasts(ada) == []


async def test_a_broadcast_to_a_session_needs_membership(gateway):
    """It goes to the other members, through the session's queue, and into no log."""
    root, ada, bob = control(gateway), asker(gateway), asker(gateway, "bob")
    await ada.ask("session_create", {"sessionId": "lobby"})

    outside = await root.ask("broadcast", {"message": 1, "to": "session", "sessionId": "lobby"})
    await root.ask("session_join", {"sessionId": "lobby"})
    inside = await root.ask("broadcast", {"message": 2, "to": "session", "sessionId": "lobby"})
    message = await ada.next("broadcast")

    assert error_of(outside) == "NOT_A_MEMBER"
    assert inside.data() == {"delivered": 1}
    assert (message.data()["message"], message.session_id, message.seq) == (2, "lobby", None)
    assert broadcasts(bob) == []


async def test_a_broadcast_to_a_session_names_exactly_one(gateway):
    """None, or two different ones, are invalid."""
    root = control(gateway)
    await root.ask("session_create", {"sessionId": "lobby"})

    none = await root.ask("broadcast", {"message": 1, "to": "session"})
    two = await root.ask("broadcast", {"message": 1, "to": "session", "sessionId": "x"}, "lobby")

    assert [error_of(none), error_of(two)] == ["INVALID_MESSAGE"] * 2


async def test_many_requests_in_flight_all_find_their_asker(gateway):
    """Whatever the order of the answers."""
    bot = await agent(gateway, "bot")
    askers = [asker(gateway, f"user{n}") for n in range(10)]
    sent = {p.send("route_request", {"agentId": "bot", "params": n}): (p, n)
            for n, p in enumerate(askers * 5)}  # fmt: skip

    deliveries = [await bot.next("route_request") for _ in sent]
    for delivery in sorted(deliveries, key=lambda d: d.data()["requestId"]):
        answer(bot, delivery.data()["requestId"], result=delivery.data()["params"])

    for request, (peer, number) in sent.items():
        messages = [m for m in map(decode_message, peer.transport.sent) if m.reply_to == request]
        assert [m.data()["result"] for m in messages] == [number]


async def test_requests_are_told_apart_by_asker_although_their_ids_are_equal(gateway):
    """Two askers may number alike."""
    bot, ada, bob = await agent(gateway, "bot"), asker(gateway), asker(gateway, "bob")
    for number, peer in enumerate((ada, bob)):
        peer.send("route_request", {"agentId": "bot", "params": number}, id="1")

    for delivery in [await bot.next("route_request") for _ in range(2)]:
        answer(bot, delivery.data()["requestId"], result=delivery.data()["params"])
    await asyncio.sleep(0)

    assert [(await peer.next(reply_to="1")).data()["result"] for peer in (ada, bob)] == [0, 1]
