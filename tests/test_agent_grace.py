"""Agents whose connection breaks: their work waits for them, or ends, and nobody else gets it."""

from __future__ import annotations

import pytest
from peers import details_of, error_of, person, register

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.history.memory import MemoryHistory
from trunkline.messages import GatewayMessage, decode_message, encode
from trunkline.records.memory import MemoryRecords
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

OPEN = AuthConfig(mode="none")
LONG = 60_000
"""A grace time that no test waits for, in milliseconds."""


def node(gateway: GatewayServer, user: str = "bots") -> PeerClient:
    return PeerClient(gateway, person(user, "node"))


async def asked(peer: PeerClient) -> str:
    request_id: str = (await peer.next("route_request")).data()["requestId"]
    return request_id


async def answering(gateway: GatewayServer, **more) -> tuple[PeerClient, PeerClient, str, str]:
    """An agent with a request at work: its peer, the asker, the request's two ids."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot", "add", **more)
    mine = ada.send("route_request", {"capability": "add", "timeoutMs": 5_000})
    return bot, ada, mine, await asked(bot)


# Requests


async def test_a_returning_agent_is_told_its_requests_and_may_answer_them(gateway):
    """`resume` of the last generation, by the same user, within the grace time."""
    bot, ada, mine, theirs = await answering(gateway, grace_ms=LONG)

    bot.disconnect()
    again = node(gateway)
    registered = await register(again, "bot", "add", grace_ms=LONG, resume={"generation": 1})
    again.send("route_response", {"requestId": theirs, "result": 3})
    answer = await ada.next(reply_to=mine)

    assert registered.data()["requests"] == [theirs]
    assert registered.data()["generation"] == 2
    assert (answer.type, answer.data()["result"]) == ("route_response", 3)


async def test_an_agent_in_its_grace_time_is_offline_and_is_not_asked(gateway):
    """At once, although its work goes on."""
    bot, ada, _, _ = await answering(gateway, grace_ms=LONG)

    bot.disconnect()
    refused = await ada.ask("route_request", {"capability": "add"})

    assert (error_of(refused), details_of(refused)) == ("AGENT_NOT_FOUND", {"delivered": False})
    assert gateway.agents.get_agent("bot").status == "offline"
    assert len(gateway.router) == 1


async def test_the_work_of_an_agent_that_does_not_come_back_ends_after_the_grace_time(gateway):
    """`AGENT_LOST`: it was delivered, so its outcome is unknown."""
    bot, ada, mine, _ = await answering(gateway, grace_ms=20)

    bot.disconnect()
    waiting = len(gateway.router)
    end = await ada.next(reply_to=mine)

    assert waiting == 1
    assert (error_of(end), details_of(end)) == ("AGENT_LOST", {"delivered": True})


@pytest.mark.parametrize("resume", [None, {"generation": 7}, {}])
async def test_any_other_registration_ends_the_work_at_once(gateway, resume):
    """Without `resume`, or with that of another generation."""
    bot, ada, mine, theirs = await answering(gateway, grace_ms=LONG)

    bot.disconnect()
    again = node(gateway)
    registered = await register(again, "bot", "add", resume=resume)
    end = await ada.next(reply_to=mine)
    again.send("route_response", {"requestId": theirs, "result": "late"})

    assert registered.data()["requests"] == []
    assert error_of(end) == "AGENT_LOST"
    assert gateway.router.strays == 1


async def test_an_agent_that_unregisters_has_no_grace(gateway):
    """It has said that it goes."""
    bot, ada, mine, _ = await answering(gateway, grace_ms=LONG)

    bot.send("agent_unregister", {"id": "bot"})

    assert error_of(await ada.next(reply_to=mine)) == "AGENT_LOST"


async def test_the_deadline_goes_on_while_the_agent_is_away(gateway):
    """A request never lasts longer than its asker said."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot", grace_ms=LONG)
    mine = ada.send("route_request", {"agentId": "bot", "timeoutMs": 20})
    await asked(bot)

    bot.disconnect()
    end = await ada.next(reply_to=mine)

    assert (error_of(end), details_of(end)) == ("TIMEOUT", {"delivered": True})


async def test_a_take_over_with_resume_keeps_the_work_while_the_old_connection_lingers(gateway):
    """The agent may notice the break before the gateway does; the old one is closed with 4009."""
    bot, ada, mine, theirs = await answering(gateway, grace_ms=LONG)

    again = node(gateway)
    await register(again, "bot", "add", resume={"generation": 1})
    code, _ = await bot.gone()
    bot.client.phase = again.client.phase  # what was on its way when it was closed
    bot.send("route_response", {"requestId": theirs, "result": "old"})
    again.send("route_response", {"requestId": theirs, "result": "new"})

    assert code == 4009
    assert (await ada.next(reply_to=mine)).data()["result"] == "new"
    assert gateway.router.strays == 1


async def test_another_user_cannot_resume(gateway):
    """The id is not theirs."""
    bot, _, _, _ = await answering(gateway, grace_ms=LONG)

    bot.disconnect()
    refused = await register(node(gateway, "eve"), "bot", resume={"generation": 1})

    assert error_of(refused) == "AGENT_ID_TAKEN"
    assert len(gateway.router) == 1


# The lease


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_an_agent_whose_lease_ends_is_offline():
    """Any frame renews it; who sends nothing for sixty seconds is gone."""
    clock = Clock()
    async with GatewayServer(GatewayConfig(auth=OPEN), clock=clock) as gateway:
        bot = node(gateway)
        await register(bot, "bot", "add")
        clock.now += 59
        await bot.ask("ping")
        clock.now += 59
        await gateway.tick()
        renewed = gateway.agents.get_agent("bot").online

        clock.now += 2
        await gateway.tick()
        code, reason = await bot.gone()

        assert renewed
        assert not gateway.agents.get_agent("bot").online
        assert (code, reason.split(";")[0]) == (1001, "reconnect=yes")


async def test_an_agent_that_stays_for_days_keeps_its_id_in_use():
    """The thirty days count from when it was last there, not from when it registered."""
    clock = Clock()
    async with GatewayServer(GatewayConfig(auth=OPEN), clock=clock) as gateway:
        bot = node(gateway)
        await register(bot, "bot")
        before = await gateway.records.get("agent", "bot")

        clock.now += 86_401
        await bot.ask("ping")
        await gateway.tick()
        after = await gateway.records.get("agent", "bot")

        assert after.version == before.version + 1


# Ids


async def test_the_same_user_may_not_have_two_agents_that_differ_only_in_case(gateway):
    """The newer registration takes the older one's place."""
    old, new = node(gateway), node(gateway)
    await register(old, "Bot")

    registered = await register(new, "bot")

    assert registered.data()["generation"] == 2
    assert [a.id for a in gateway.agents.get_all_agents()] == ["bot"]
    assert (await old.gone())[0] == 4009


async def test_ids_stay_owned_over_a_restart():
    """They are in the records; generations go on, so that old connections are fenced off."""
    records = KeptRecords()
    async with GatewayServer(GatewayConfig(auth=OPEN), records=records) as gateway:
        await register(node(gateway, "ada"), "bot")
    async with GatewayServer(GatewayConfig(auth=OPEN), records=records) as gateway:
        stranger = await register(node(gateway, "eve"), "bot")
        owner = await register(node(gateway, "ada"), "bot")

        assert error_of(stranger) == "AGENT_ID_TAKEN"
        assert owner.data()["generation"] == 2


class KeptRecords(MemoryRecords):
    """Records that outlive the gateway, as those on a disk do."""

    async def close(self) -> None:
        pass


class KeptHistory(MemoryHistory):
    """A log that outlives the gateway, and says so."""

    durability = "process"

    async def close(self) -> None:
        pass


# Sessions


async def assigned(peer: PeerClient) -> dict:
    """What an agent is told when it is brought into a session."""
    while True:
        info = (await peer.next("session_info")).data()
        if info["status"] == "assigned" and "members" in info:
            return info


async def logged(peer: PeerClient) -> list[GatewayMessage]:
    """The whole log of the lobby."""
    page = await peer.ask("session_history", {"sessionId": "lobby"})
    return [decode_message(encode(m)) for m in page.data()["messages"]]


async def test_a_returning_agent_is_back_in_its_sessions_with_the_end_of_the_log(gateway):
    """Without asking: it is told so, and gets what it missed."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot")
    payload = {"sessionId": "lobby", "agentId": "bot", "visibility": "private"}
    await ada.ask("session_create", payload)
    await assigned(bot)
    bot.disconnect()
    await ada.ask("chat", {"message": "anybody?"}, "lobby")

    again = node(gateway)
    await register(again, "bot")
    info = await assigned(again)
    missed = await again.next("chat")
    ack = await ada.ask("chat", {"message": "hello"}, "lobby")

    assert (info["agentId"], info["recovery"]) == ("bot", "fresh")
    assert missed.data()["message"] == "anybody?"
    assert [run["agentId"] for run in ack.data()["runs"]] == ["bot"]


async def test_after_a_restart_an_agent_is_brought_into_a_session_that_comes_to_life():
    """Sessions that nobody is in stay asleep."""
    records, history = KeptRecords(), KeptHistory()
    async with GatewayServer(GatewayConfig(auth=OPEN), records=records, history=history) as gateway:
        bot, ada = node(gateway), PeerClient(gateway, person("ada"))
        await register(bot, "bot")
        await ada.ask("session_create", {"sessionId": "lobby", "agentId": "bot"})
        await assigned(bot)
    async with GatewayServer(GatewayConfig(auth=OPEN), records=records, history=history) as gateway:
        bot, ada = node(gateway), PeerClient(gateway, person("ada"))
        await register(bot, "bot")
        asleep = gateway.sessions.get_session("lobby")

        joined = await ada.ask("session_join", {"sessionId": "lobby"})
        info = await assigned(bot)

        assert asleep is None
        assert joined.data()["memberCount"] == 2
        assert info["sessionId"] == "lobby"


async def test_a_session_with_nobody_but_its_agent_is_forgotten_after_the_grace_time():
    """The agent does not keep it alive; a join brings both back."""
    clock = Clock()
    async with GatewayServer(
        GatewayConfig(auth=OPEN), clock=clock, history=KeptHistory()
    ) as gateway:
        bot, ada = node(gateway), PeerClient(gateway, person("ada"))
        await register(bot, "bot")
        await ada.ask("session_create", {"sessionId": "lobby", "agentId": "bot"})
        await assigned(bot)
        await ada.ask("session_leave", {"sessionId": "lobby"})

        clock.now += 601
        await bot.ask("ping")
        await gateway.tick()
        asleep = gateway.sessions.get_session("lobby")
        await ada.ask("session_join", {"sessionId": "lobby"})

        assert asleep is None
        assert (await assigned(bot))["sessionId"] == "lobby"


# Runs


async def talking(
    gateway: GatewayServer, grace_ms: int, **asked_for
) -> tuple[PeerClient, PeerClient]:
    """An agent assigned to ada's session, in which she has just asked something."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot", grace_ms=grace_ms)
    await ada.ask("session_create", {"sessionId": "lobby", **(asked_for or {"agentId": "bot"})})
    await assigned(bot)
    await ada.ask("chat", {"message": "hi"}, "lobby")
    await bot.next("chat")
    return bot, ada


async def test_a_returning_agent_goes_on_with_its_run_where_the_text_ended(gateway):
    """It is told the last index that the gateway has."""
    bot, ada = await talking(gateway, LONG)
    bot.send("chat_stream", {"content": "Hel", "index": 0}, "lobby")
    run_id = (await ada.next("chat_stream")).data()["runId"]

    bot.disconnect()
    again = node(gateway)
    registered = await register(again, "bot", resume={"generation": 1})
    await assigned(again)
    again.send("chat_stream", {"content": "lo", "index": 1, "runId": run_id}, "lobby")
    chunk = await ada.next("chat_stream")

    (adopted,) = registered.data()["runs"]
    assert (adopted["runId"], adopted["index"]) == (run_id, 0)
    assert (chunk.data()["content"], chunk.data()["index"]) == ("lo", 1)


async def test_after_its_first_output_a_run_ends_lost_with_the_text_so_far(gateway):
    """Although another agent would fit: nothing is repeated blindly."""
    bot, ada = await talking(gateway, 20, capability="chat")
    await register(node(gateway), "spare")
    bot.send("chat_stream", {"content": "half"}, "lobby")
    await ada.next("chat_stream")

    bot.disconnect()
    end = await ada.next("chat_complete")

    assert (end.data()["status"], end.data()["content"]) == ("lost", "half")


async def test_before_its_first_output_a_run_goes_to_another_agent_that_fits(gateway):
    """In a session that was created by capability; the log says to whom, and it answers."""
    bot, ada = await talking(gateway, 20, capability="chat")
    spare = node(gateway)
    await register(spare, "spare")

    bot.disconnect()
    info = await assigned(spare)
    chat = await spare.next("chat")
    (run,) = info["runs"]
    await spare.ask("chat_complete", {"runId": run["runId"], "content": "hello"}, "lobby")
    end = await ada.next("chat_complete")

    assert (run["agentId"], run["index"], chat.seq) == (
        "spare",
        -1,
        int(run["runId"].split(".")[0]),
    )
    assert (end.data()["runId"], end.data()["content"]) == (run["runId"], "hello")
    assert end.sender.agent_id == "spare"
    assert gateway.sessions.get_record("lobby").assigned == ["spare"]


async def test_the_log_says_which_agent_was_replaced_before_it_says_by_whom(gateway):
    """Both are changes of the session, from the gateway and with a place in the log."""
    bot, ada = await talking(gateway, 0, capability="chat")
    spare = node(gateway)
    await register(spare, "spare")

    bot.disconnect()
    await assigned(spare)
    changes = [m for m in await logged(ada) if m.type == "session_info"]

    assert [(m.data()["status"], m.data()["agentId"]) for m in changes] == [
        ("assigned", "bot"), ("unassigned", "bot"), ("assigned", "spare"),
    ]  # fmt: skip
    assert all(m.sender.kind == "gateway" and m.seq for m in changes)


async def test_an_agent_whose_id_is_released_is_unassigned_and_sent_out(gateway):
    """The members see it in the log; chats are not addressed to it any more."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot")
    payload = {"sessionId": "lobby", "agentId": "bot", "visibility": "private"}
    await ada.ask("session_create", payload)
    await assigned(bot)
    admin = PeerClient(gateway, person("root", "control", "agent:admin"))

    await admin.ask("agent_unregister", {"id": "bot"})
    told = [m for m in await logged(ada) if m.type == "session_info"][-1]
    ack = await ada.ask("chat", {"message": "anybody?"}, "lobby")
    refused = await bot.ask("chat", {"message": "me"}, "lobby")

    assert (told.data()["status"], told.data()["agentId"]) == ("unassigned", "bot")
    assert told.sender.kind == "gateway"
    assert ack.data()["runs"] == []
    assert error_of(refused) == "SESSION_NOT_FOUND"
    assert gateway.sessions.get_record("lobby").assigned == []


async def test_who_takes_over_an_id_is_in_no_session_of_the_agent_before(gateway):
    """Thirty days unused, the id is anybody's; the private session is not."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot")
    payload = {"sessionId": "lobby", "agentId": "bot", "visibility": "private"}
    await ada.ask("session_create", payload)
    await assigned(bot)
    bot.disconnect()
    record = await gateway.records.get("agent", "bot")
    value = record.value.replace(b'"used_at":', b'"used_at":0.0,"x":')
    await gateway.records.put("agent", "bot", value, record.version)

    eve = node(gateway, "eve")
    taken = await register(eve, "BOT")
    refused = await eve.ask("session_join", {"sessionId": "lobby"})

    assert taken.type == "agent_registered"
    assert error_of(refused) == "SESSION_NOT_FOUND"
    assert gateway.sessions.get_record("lobby").assigned == []


async def test_an_agent_that_only_stops_stays_assigned(gateway):
    """It is back in the session when it registers again."""
    bot, ada = node(gateway), PeerClient(gateway, person("ada"))
    await register(bot, "bot")
    await ada.ask("session_create", {"sessionId": "lobby", "agentId": "bot"})
    await assigned(bot)

    await bot.ask("agent_unregister", {"id": "bot"})
    again = node(gateway)
    await register(again, "bot")

    assert (await assigned(again))["sessionId"] == "lobby"


async def test_a_session_created_for_one_agent_gets_no_other(gateway):
    """The client asked for this one."""
    bot, ada = await talking(gateway, 0)
    await register(node(gateway), "spare")

    bot.disconnect()

    assert (await ada.next("chat_complete")).data()["status"] == "lost"


async def test_a_run_that_was_handed_over_is_the_new_agents_after_a_restart():
    """The log tells whose it is."""
    records, history = KeptRecords(), KeptHistory()
    config = GatewayConfig(auth=OPEN)
    gateway = GatewayServer(config, records=records, history=history)
    await gateway.start()
    bot, _ada = await talking(gateway, 0, capability="chat")
    spare = node(gateway)
    await register(spare, "spare", grace_ms=LONG)
    bot.disconnect()
    (run,) = (await assigned(spare))["runs"]
    await spare.next("session_info")
    await gateway.stop()

    async with GatewayServer(config, records=records, history=history) as gateway:
        await PeerClient(gateway, person("ada")).ask("session_join", {"sessionId": "lobby"})
        registered = await register(node(gateway), "spare")

        (adopted,) = registered.data()["runs"]
        assert (adopted["runId"], adopted["index"]) == (run["runId"], -1)
