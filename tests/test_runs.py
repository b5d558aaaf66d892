"""Runs: who answers, the text so far, and exactly one end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import details_of, error_of, person, register

from trunkline.config import AuthConfig, GatewayConfig, SessionsConfig
from trunkline.messages import GatewayMessage, create_message
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

OPEN = AuthConfig(mode="none")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def settled(peer: PeerClient) -> list[GatewayMessage]:
    """Everything that came, once nothing is queued for the peer any more."""
    last = peer.send("session_list")
    messages = []
    while not messages or messages[-1].reply_to != last:
        messages.append(await peer.next())
    return [m for m in messages[:-1] if m.type not in ("presence", "session_info")]


async def agent(gateway: GatewayServer, *agent_ids: str, user: str = "bots") -> PeerClient:
    """An agent's connection that is in the lobby."""
    peer = PeerClient(gateway, person(user, "node"))
    for agent_id in agent_ids:
        await register(peer, agent_id)
    await peer.ask("session_join", {"sessionId": "lobby"})
    return peer


async def lobby(gateway: GatewayServer, *agent_ids: str) -> tuple[PeerClient, PeerClient]:
    """A session with its owner ada and the agents' connection; both have read everything."""
    ada = PeerClient(gateway, person("ada"))
    await ada.ask("session_create", {"sessionId": "lobby"})
    bot = await agent(gateway, *(agent_ids or ("bot",)))
    await settled(ada)
    await settled(bot)
    return ada, bot


async def chat(peer: PeerClient, message: str = "hi", **more) -> GatewayMessage:
    answer = await peer.ask("chat", {"message": message, **more}, "lobby")
    assert answer.type == "ack", answer.data()
    return answer


async def patch(gateway: GatewayServer, **changes) -> None:
    root = PeerClient(gateway, person("root", "control", "session:admin"))
    payload = {"sessionId": "lobby", "patch": changes}
    assert (await root.ask("session_patch", payload)).type == "session_info"


def stream(peer: PeerClient, content: str, **more) -> str:
    return peer.send("chat_stream", {"content": content, **more}, "lobby")


async def complete(peer: PeerClient, content: str = "done", **more) -> GatewayMessage:
    return await peer.ask("chat_complete", {"content": content, **more}, "lobby")


def agents_of(ack: GatewayMessage) -> list[str]:
    return [run["agentId"] for run in ack.data()["runs"]]


# Whom a chat addresses


async def test_a_chat_opens_a_run_for_every_agent_of_the_session(gateway):
    """Its id is made of the chat's `seq` and the agent's id; the ack and the message say so."""
    ada, bot = await lobby(gateway, "bot", "cat")

    ack = await chat(ada)
    heard = await bot.next("chat")

    seq = ack.data()["seq"]
    assert ack.data()["runs"] == [
        {"runId": f"{seq}.bot", "agentId": "bot"},
        {"runId": f"{seq}.cat", "agentId": "cat"},
    ]
    assert heard.addressed == ["bot", "cat"]


async def test_a_chat_that_nobody_answers_says_so(gateway):
    """Both lists are there, and empty."""
    ada = PeerClient(gateway)
    bob = PeerClient(gateway)
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})

    ack = await chat(ada)
    heard = await bob.next("chat")

    assert (ack.data()["runs"], heard.addressed) == ([], [])


async def test_mentions_choose_among_the_agents_of_the_session(gateway):
    """Others that are named are left out."""
    ada, _ = await lobby(gateway, "bot", "cat")

    assert agents_of(await chat(ada, mentions=["cat", "nobody"])) == ["cat"]
    assert agents_of(await chat(ada, mentions=[])) == []


async def mute(gateway: GatewayServer, agent_id: str) -> PeerClient:
    """An agent in the lobby that only offers a tool."""
    peer = PeerClient(gateway, person("bots", "node"))
    capabilities = {"tools": ["add"], "custom": {"chat": "never"}}
    await peer.ask("agent_register", {"id": agent_id, "capabilities": capabilities})
    await peer.ask("session_join", {"sessionId": "lobby"})
    return peer


async def test_an_agent_that_does_not_chat_is_not_addressed(gateway):
    """Not by default, not by `mentions`, not by its name: nobody would end its run."""
    ada, _ = await lobby(gateway, "bot")
    await mute(gateway, "adder")

    always = await chat(ada)
    mentioned = await chat(ada, mentions=["adder"])
    await patch(gateway, activation="mention")
    named = await chat(ada, "@adder @bot")

    assert [agents_of(ack) for ack in (always, mentioned, named)] == [["bot"], [], ["bot"]]


async def test_an_update_makes_an_agent_chat(gateway):
    """What it can do is asked when a chat is stored."""
    ada, _ = await lobby(gateway, "bot")
    adder = await mute(gateway, "adder")

    await register(adder, "adder")

    assert agents_of(await chat(ada)) == ["adder", "bot"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hello", []),
        ("@bot hello", ["bot"]),
        ("hello @Bot!", ["bot"]),
        ("(@BOT)", ["bot"]),
        ("@bot, @cat: hi", ["bot", "cat"]),
        ("well, @bot.", ["bot"]),
        ("@robot", []),
        ("@bots", []),
        ("@bot-2", []),
        ("mail me@bot", []),
        ("bot", []),
    ],
)
async def test_with_activation_mention_only_whole_names_in_the_text_are_called(
    gateway, text, named
):
    """ASCII, case-folded; part of a word or of an address is no mention."""
    ada, _ = await lobby(gateway, "bot", "cat")
    await patch(gateway, activation="mention")

    assert agents_of(await chat(ada, text)) == named


async def test_every_member_gets_every_message_whomever_it_addresses(gateway):
    """Mentions decide who answers, not who hears."""
    ada, bot = await lobby(gateway, "bot")

    await chat(ada, mentions=["nobody"])

    assert (await bot.next("chat")).addressed == []


async def test_an_agents_chat_opens_runs_only_in_agents_that_it_names(gateway):
    """By `mentions` or in its text."""
    _, bot = await lobby(gateway, "bot")
    await agent(gateway, "cat")

    assert agents_of(await chat(bot, "to whom it may concern")) == []
    assert agents_of(await chat(bot, "@cat, please")) == ["cat"]
    assert agents_of(await chat(bot, "you", mentions=["cat"])) == ["cat"]


async def test_agents_make_each_other_answer_at_most_eight_deep(gateway):
    """Two that are polite to each other come to an end."""
    ada, bot = await lobby(gateway, "bot")
    cat = await agent(gateway, "cat")

    await chat(ada, mentions=["bot"])
    depth = 0
    speaker, other = (bot, "cat"), (cat, "bot")
    while agents_of(await chat(speaker[0], "after you", mentions=[speaker[1]])):
        depth += 1
        speaker, other = other, speaker
        assert depth < 20

    assert depth == 8


async def test_a_silenced_session_opens_no_runs(gateway):
    """Nobody will answer, and the ack says so."""
    ada, _ = await lobby(gateway)
    await patch(gateway, sendPolicy="off")

    assert agents_of(await chat(ada)) == []


# What an agent sends


async def test_chunks_and_the_whole_text_are_relayed_under_the_runs_id(gateway):
    """With the agent as the proven sender; the end is durable and acked."""
    ada, bot = await lobby(gateway)
    run_id = (await chat(ada)).data()["runs"][0]["runId"]

    stream(bot, "Hel", index=0)
    stream(bot, "lo", index=1, done=True)
    ack = await complete(bot, "Hello", usage={"tokens": 2})
    one, two, end = await settled(ada)

    assert [one.data()["content"], two.data()["content"]] == ["Hel", "lo"]
    assert [m.data()["runId"] for m in (one, two, end)] == [run_id] * 3
    assert (one.seq, end.seq, ack.data()["seq"]) == (None, 2, 2)
    assert (end.sender.agent_id, end.sender.kind) == ("bot", "agent")
    assert (end.data()["content"], end.data()["usage"]) == ("Hello", {"tokens": 2})


async def test_chunks_without_an_index_are_numbered(gateway):
    """The gateway stamps what an agent leaves out."""
    ada, bot = await lobby(gateway)
    await chat(ada)

    stream(bot, "a")
    stream(bot, "b")

    chunks = [await ada.next("chat_stream") for _ in range(2)]
    assert [c.data()["index"] for c in chunks] == [0, 1]


@pytest.mark.parametrize("index", [0, 2, 7])
async def test_a_gap_in_the_index_is_refused_with_what_is_expected(gateway, index):
    """So is a repeat; nothing of it is relayed."""
    ada, bot = await lobby(gateway)
    await chat(ada)
    stream(bot, "a", index=0)

    stream(bot, "b", index=index)
    error = await bot.next("error")
    await settled(bot)

    assert error_of(error) == "INVALID_PAYLOAD"
    assert details_of(error) == {"path": "$.index", "expected": 1}
    assert [m.data()["content"] for m in await settled(ada)] == ["a"]


async def test_tool_messages_are_relayed_and_all_but_updates_are_durable(gateway):
    """In the agent's order, with the run's id."""
    ada, bot = await lobby(gateway)
    run_id = (await chat(ada)).data()["runs"][0]["runId"]

    bot.send("tool_start", {"tool": "add", "toolCallId": "t1", "args": {"a": 1}}, "lobby")
    bot.send("tool_update", {"toolCallId": "t1", "progress": 50, "message": "half"}, "lobby")
    bot.send("tool_result", {"toolCallId": "t1", "result": {"success": True}}, "lobby")
    await settled(bot)
    messages = await settled(ada)

    assert [m.type for m in messages] == ["tool_start", "tool_update", "tool_result"]
    assert [m.seq for m in messages] == [2, None, 3]
    assert {m.data()["runId"] for m in messages} == {run_id}
    assert messages[0].data()["args"] == {"a": 1}


@pytest.mark.parametrize("progress", [-1, 101])
async def test_progress_is_a_percentage(gateway, progress):
    """From 0 to 100."""
    _, bot = await lobby(gateway)

    answer = await bot.ask("tool_update", {"toolCallId": "t1", "progress": progress}, "lobby")

    assert details_of(answer) == {"path": "$.progress"}


async def test_a_run_is_found_by_the_chat_that_it_answers(gateway):
    """`replyTo` and the agent name it when several are open; an agent's `replyTo` is kept."""
    ada, bot = await lobby(gateway)
    first, second = create_message("chat", {"message": "1"}, "lobby"), await chat(ada, "0")
    ada.send_message(first)
    run_id = (await ada.next(reply_to=first.id)).data()["runs"][0]["runId"]

    message = create_message("chat_stream", {"content": "x"}, "lobby", reply_to=first.id)
    bot.send_message(message)
    chunk = await ada.next("chat_stream")

    assert second.data()["runs"][0]["runId"] != run_id
    assert (chunk.data()["runId"], chunk.reply_to) == (run_id, first.id)


async def test_an_agent_without_an_open_run_opens_one_of_its_own(gateway):
    """Its id says so; what follows belongs to it."""
    ada, bot = await lobby(gateway)

    stream(bot, "By the way")
    await complete(bot, "By the way, hello")
    chunk, end = await settled(ada)

    assert chunk.data()["runId"].startswith("x")
    assert chunk.data()["runId"].endswith(".bot")
    assert end.data()["runId"] == chunk.data()["runId"]


async def test_a_connection_with_several_agents_names_one_in_source(gateway):
    """Otherwise nobody knows who speaks."""
    ada, bot = await lobby(gateway, "bot", "cat")
    await chat(ada)

    unnamed = await complete(bot)
    message = create_message("chat_complete", {"content": "meow"}, "lobby")
    message.source = "cat"
    bot.send_message(message)
    end = await ada.next("chat_complete")

    assert error_of(unnamed) == "INVALID_MESSAGE"
    assert (end.sender.agent_id, end.data()["runId"]) == ("cat", "1.cat")


async def test_an_agent_cannot_write_to_another_agents_run(gateway):
    """Knowing its id gives nothing."""
    ada, _ = await lobby(gateway, "bot")
    cat = await agent(gateway, "cat", user="eve")
    run_id = (await chat(ada, mentions=["bot"])).data()["runs"][0]["runId"]

    assert error_of(await complete(cat, runId=run_id)) == "FORBIDDEN"


async def test_a_claimed_run_id_in_the_payload_is_never_relayed_unproven(gateway):
    """However the key is spelled."""
    ada, bot = await lobby(gateway, "bot")
    await chat(ada)

    bot.send_text(
        '{"type":"chat_stream","id":"1","sessionId":"lobby",'
        '"payload":{"content":"x","runI\\u0064":"1.eve"}}'
    )

    assert error_of(await bot.next("error")) == "RUN_ENDED"


async def test_who_is_no_agent_sends_nothing_of_a_run(gateway):
    """The role node is not enough."""
    await lobby(gateway)
    node = PeerClient(gateway, person("n", "node"))
    await node.ask("session_join", {"sessionId": "lobby"})

    assert error_of(await complete(node)) == "FORBIDDEN"


async def test_the_reply_to_of_a_user_is_dropped(gateway):
    """Or a member could pose as the answer to another's request."""
    ada, bot = await lobby(gateway)

    ada.send("chat", {"message": "hi"}, "lobby", reply_to="somebody's request")

    assert (await bot.next("chat")).reply_to is None


# The end


async def test_a_run_ends_once(gateway):
    """Later frames are told so, by whichever name they call the run."""
    ada, bot = await lobby(gateway)
    question = create_message("chat", {"message": "?"}, "lobby")
    ada.send_message(question)
    run_id = (await ada.next(reply_to=question.id)).data()["runs"][0]["runId"]
    await complete(bot)

    by_id = await complete(bot, runId=run_id)
    late = create_message("chat_stream", {"content": "x"}, "lobby", reply_to=question.id)
    bot.send_message(late)
    by_chat = await bot.next(reply_to=late.id)

    assert [error_of(by_id), error_of(by_chat)] == ["RUN_ENDED"] * 2
    assert [m.type for m in await settled(ada)] == ["chat_complete"]


@pytest.mark.parametrize("apart", [False, True])
async def test_an_end_that_is_sent_again_is_acked_as_a_duplicate(gateway, apart):
    """An agent that missed the ack must not be told that its answer came too late."""
    ada, bot = await lobby(gateway)
    await chat(ada)
    end = create_message("chat_complete", {"content": "done"}, "lobby", reply_to="x")

    bot.send_message(end)
    if apart:
        await settled(bot)
        bot.send_message(end)
        acks = [await bot.next(reply_to=end.id)]
    else:
        bot.send_message(end)
        acks = [await bot.next(reply_to=end.id) for _ in range(2)]

    assert {a.type for a in acks} == {"ack"}
    assert (acks[-1].data()["seq"], acks[-1].data()["duplicate"]) == (2, True)
    assert len([m for m in await settled(ada) if m.type == "chat_complete"]) == 1


async def test_a_cancelled_run_ends_with_the_text_so_far(gateway):
    """The agent is told; what it still sends is refused."""
    ada, bot = await lobby(gateway)
    run_id = (await chat(ada)).data()["runs"][0]["runId"]
    stream(bot, "So f")
    stream(bot, "ar")

    ada.send("run_cancel", {"runId": run_id}, "lobby")
    told = await bot.next("run_cancel")
    end = await ada.next("chat_complete")

    assert told.data()["runId"] == run_id
    assert end.data()["runId"] == run_id
    assert (end.data()["status"], end.data()["content"]) == ("cancelled", "So far")
    assert end.sender.kind == "gateway"
    assert error_of(await complete(bot, runId=run_id)) == "RUN_ENDED"


async def test_who_asked_the_owner_and_control_may_cancel_and_nobody_else(gateway):
    """Control need not be a member."""
    ada, _ = await lobby(gateway)
    bob, eve = PeerClient(gateway, person("bob")), PeerClient(gateway, person("eve"))
    root = PeerClient(gateway, person("root", "control"))
    for peer in (bob, eve):
        await peer.ask("session_join", {"sessionId": "lobby"})

    for canceller in (bob, ada, root):
        run_id = (await chat(bob)).data()["runs"][0]["runId"]
        refusal = await eve.ask("run_cancel", {"runId": run_id}, "lobby")
        canceller.send("run_cancel", {"runId": run_id}, "lobby")
        end = await bob.next("chat_complete")

        assert error_of(refusal) == "FORBIDDEN"
        assert (end.data()["runId"], end.data()["status"]) == (run_id, "cancelled")


async def test_a_run_that_never_was_cannot_be_cancelled(gateway):
    """`RUN_ENDED`."""
    ada, _ = await lobby(gateway)

    assert error_of(await ada.ask("run_cancel", {"runId": "9.bot"}, "lobby")) == "RUN_ENDED"


async def test_silencing_a_session_ends_its_open_runs(gateway):
    """`sendPolicy: off`; what agents send is forbidden from then on."""
    ada, bot = await lobby(gateway)
    await chat(ada)
    stream(bot, "I was just")

    await patch(gateway, sendPolicy="off")
    end = await ada.next("chat_complete")
    refusals = [
        await complete(bot),
        await bot.ask("chat_stream", {"content": "x"}, "lobby"),
        await bot.ask("tool_start", {"tool": "t", "toolCallId": "1"}, "lobby"),
        await bot.ask("chat", {"message": "but"}, "lobby"),
    ]

    assert (end.data()["status"], end.data()["content"]) == ("cancelled", "I was just")
    assert [error_of(r) for r in refusals] == ["FORBIDDEN"] * 4
    assert (await ada.ask("chat", {"message": "peace"}, "lobby")).type == "ack"


async def test_a_lost_agent_ends_its_runs_with_the_text_so_far(gateway):
    """`lost`, at once where there is no grace time."""
    ada, bot = await lobby(gateway)
    await chat(ada)
    stream(bot, "I will be ri")
    await settled(bot)

    bot.disconnect()
    end = await ada.next("chat_complete")

    assert (end.data()["status"], end.data()["content"]) == ("lost", "I will be ri")


async def test_an_agent_that_unregisters_ends_its_runs(gateway):
    """Its connection stays a member."""
    ada, bot = await lobby(gateway)
    await chat(ada)

    await bot.ask("agent_unregister", {"id": "bot"})

    assert (await ada.next("chat_complete")).data()["status"] == "lost"
    assert agents_of(await chat(ada)) == []


async def test_a_run_without_output_for_ten_minutes_is_lost():
    """Any output begins the time anew."""
    clock = Clock()
    async with GatewayServer(GatewayConfig(auth=OPEN), clock=clock) as gateway:
        ada, bot = await lobby(gateway)
        await chat(ada)

        clock.now += 599
        bot.send("tool_start", {"tool": "t", "toolCallId": "1"}, "lobby")
        await settled(bot)
        clock.now += 599
        await bot.ask("ping")
        await gateway.tick()
        alive = [m.type for m in await settled(ada)]
        clock.now += 2
        await gateway.tick()
        end = await ada.next("chat_complete")

        assert "chat_complete" not in alive
        assert end.data()["status"] == "lost"


async def test_a_run_whose_text_grows_too_long_ends_with_an_error():
    """With the text that fitted; the agent is told."""
    config = GatewayConfig(auth=OPEN, sessions=SessionsConfig(max_run_bytes=10))
    async with GatewayServer(config) as gateway:
        ada, bot = await lobby(gateway)
        await chat(ada)

        stream(bot, "12345")
        stream(bot, "67890")
        stream(bot, "!")
        error = await bot.next("error")
        end = await ada.next("chat_complete")

        assert error_of(error) == "RUN_ENDED"
        assert (end.data()["status"], end.data()["content"]) == ("error", "1234567890")


@settings(max_examples=40, deadline=None)
@given(
    enders=st.lists(
        st.sampled_from(
            ["complete", "cancel", "silence", "unregister", "leave", "timeout", "turn"]
        ),
        min_size=1,
        max_size=6,
    )
)
async def test_whatever_ends_a_run_it_has_exactly_one_end(enders):
    """In every order, and however many at once."""
    clock = Clock()
    async with GatewayServer(GatewayConfig(auth=OPEN), clock=clock) as gateway:
        ada, bot = await lobby(gateway)
        root = PeerClient(gateway, person("root", "control", "session:admin"))
        run_id = (await chat(ada)).data()["runs"][0]["runId"]
        off = {"sessionId": "lobby", "patch": {"sendPolicy": "off"}}
        acts = {
            "complete": lambda: bot.send(
                "chat_complete", {"content": "", "runId": run_id}, "lobby"
            ),
            "cancel": lambda: ada.send("run_cancel", {"runId": run_id}, "lobby"),
            "silence": lambda: root.send("session_patch", off),
            "unregister": lambda: bot.send("agent_unregister", {"id": "bot"}),
            "leave": bot.disconnect,
            "timeout": lambda: setattr(clock, "now", clock.now + 601),
        }

        for ender in enders:
            if ender == "turn":
                await asyncio.sleep(0)
            elif not (bot.transport.closed and ender != "leave"):
                acts[ender]()
        clock.now += 601
        await gateway.tick()
        await settled(root)
        ends = [m for m in await settled(ada) if m.type == "chat_complete"]

        assert [e.data()["runId"] for e in ends] == [run_id]


# Late joiners and laggards


async def test_who_joins_while_an_answer_streams_gets_the_text_so_far_once(gateway):
    """One chunk from the first on, then the chunks after it."""
    ada, bot = await lobby(gateway)
    run_id = (await chat(ada)).data()["runs"][0]["runId"]
    stream(bot, "one ")
    stream(bot, "two ")
    await settled(bot)

    late = PeerClient(gateway)
    info = await late.ask("session_join", {"sessionId": "lobby"})
    stream(bot, "three")
    await settled(bot)
    first, second = [m for m in await settled(late) if m.type == "chat_stream"]

    assert info.data()["runs"] == [{"runId": run_id, "agentId": "bot", "index": 1}]
    assert first.data() == {"runId": run_id, "first": 0, "index": 1, "content": "one two "}
    assert first.sender.agent_id == "bot"
    assert (second.data()["index"], second.data()["content"]) == (2, "three")


async def test_who_joins_before_the_first_chunk_gets_no_text_so_far(gateway):
    """There is none; the run is listed with index -1."""
    ada, bot = await lobby(gateway)
    await chat(ada)

    late = PeerClient(gateway)
    info = await late.ask("session_join", {"sessionId": "lobby"})
    stream(bot, "one")
    await settled(bot)

    assert info.data()["runs"][0]["index"] == -1
    assert [m.data()["content"] for m in await settled(late) if m.type == "chat_stream"] == ["one"]


def assembled(messages: list[GatewayMessage]) -> str:
    """The text as a reader puts it together; fails at a hole or a repeat."""
    text, index = "", -1
    for message in messages:
        data = message.data()
        if message.type != "chat_stream":
            continue
        if "first" in data:
            assert data["first"] == 0
            assert data["index"] >= index
            assert data["content"].startswith(text)
            text = data["content"]
        else:
            assert data["index"] == index + 1
            text += data["content"]
        index = data["index"]
    return text


@settings(max_examples=50, deadline=None)
@given(
    acts=st.lists(st.sampled_from(["chunk", "join", "lag", "drain", "turn", "leave"]), max_size=25)
)
async def test_the_text_that_a_reader_has_is_always_a_prefix(acts):
    """Whenever it joins, lags, drains, leaves and joins again."""
    async with GatewayServer(GatewayConfig(auth=OPEN)) as gateway:
        ada, bot = await lobby(gateway)
        await chat(ada)
        reader = PeerClient(gateway)
        count, inside = 0, False

        for act in acts:
            if act == "chunk":
                stream(bot, f"{count} ")
                count += 1
            elif act == "turn":
                await asyncio.sleep(0)
            elif act == "lag":
                gateway.on_lagging(reader.client)
            elif act == "drain":
                gateway.on_drained(reader.client)
            elif act == "join" and not inside:
                inside = True
                reader.send("session_join", {"sessionId": "lobby"})
            elif act == "leave" and inside:
                inside = False
                await reader.ask("session_leave", {"sessionId": "lobby"})
                await settled(reader)
                reader = PeerClient(gateway)
        if not inside:
            reader.send("session_join", {"sessionId": "lobby"})
        await settled(bot)
        heard = await settled(reader)
        gateway.on_drained(reader.client)
        heard += reader.received()

        assert assembled(heard) == "".join(f"{n} " for n in range(count))


async def test_a_lagging_reader_gets_everything_but_chunks(gateway):
    """Durable and control frames come, and drained, one chunk with the text so far."""
    ada, bot = await lobby(gateway)
    await chat(ada)

    gateway.on_lagging(ada.client)
    for number in range(3):
        stream(bot, f"{number} ")
    bot.send("tool_update", {"toolCallId": "t", "progress": 5}, "lobby")
    bot.send("tool_start", {"tool": "t", "toolCallId": "t"}, "lobby")
    await settled(bot)
    while_lagging = [m.type for m in await settled(ada)]
    gateway.on_drained(ada.client)
    caught_up = ada.received()
    stream(bot, "3")
    await settled(bot)

    assert while_lagging == ["tool_start"]
    assert [m.data()["content"] for m in caught_up] == ["0 1 2 "]
    assert assembled([*caught_up, *await settled(ada)]) == "0 1 2 3"


# After a restart


async def test_open_runs_are_found_in_the_log_and_go_to_the_agent_that_comes_back(gateway):
    """What was addressed and not completed waits for its agent."""
    ada, bot = await lobby(gateway)
    await chat(ada)
    await complete(bot, "answered")
    run_id = (await chat(ada)).data()["runs"][0]["runId"]
    history, records = gateway.history, gateway.records

    async with GatewayServer(gateway.config, history=history, records=records) as again:
        bot = PeerClient(again, person("bots", "node"))
        back = await register(bot, "bot")
        for _ in range(20):
            if back.data()["runs"]:
                break
            back = await register(bot, "bot")
        await bot.ask("session_join", {"sessionId": "lobby"})
        ack = await complete(bot, "late but here", runId=run_id)

        (run,) = back.data()["runs"]
        assert (run["runId"], run["index"]) == (run_id, -1)
        assert ack.data()["seq"] == 4
