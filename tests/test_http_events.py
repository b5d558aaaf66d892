"""A session's frames as server-sent events: live, resumed, reset, and for slow readers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from http_peers import API, code_of, events, head, http, until
from msgspec.structs import replace
from peers import People, connect, guarded_config, hang_up, register, token_of
from rawsocket import RawSocket

from trunkline.config import LimitsConfig
from trunkline.history.memory import MemoryHistory
from trunkline.http import events as http_events
from trunkline.http.events import event
from trunkline.transports.websocket import WebSocketGateway

ADA = token_of("ada")
SLOW = token_of("slow")


async def say(client: Any, *texts: str, session: str = "tea") -> None:
    for text in texts:
        answer = await client.post(f"{API}/sessions/{session}/messages", json={"message": text})
        assert answer.status_code == 200, answer.text


@pytest.fixture
async def tea(ws_gateway):
    """A gateway with one session."""
    await ws_gateway.sessions.create_session("tea")
    return ws_gateway


def test_an_event_has_a_line_of_data_for_each_line_of_its_frame():
    """A client may have written line breaks between the tokens of its JSON."""
    assert event("chat", b'{"a":\r\n1,\n\r2}', "x:1") == (
        b'event: chat\nid: x:1\ndata: {"a":\ndata: 1,\ndata: \ndata: 2}\n\n'
    )


async def test_a_stream_is_one_of_the_http_connections():
    """Of which there are so many; a reload changes the number, and WebSockets are none of them."""
    limits = LimitsConfig(http_connections=1)
    async with WebSocketGateway(guarded_config(limits=limits), authenticator=People()) as gateway:
        await gateway.sessions.create_session("tea")
        async with http(gateway, ADA) as ada, events(ada, "tea"):
            full = await ada.get("/healthz")
            bob = await connect(gateway, token_of("bob"))
            gateway.reconfigure(replace(gateway.config, limits=LimitsConfig(http_connections=2)))
            again = await ada.get("/healthz")

        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert (await bob.ask("ping")).type == "pong"
        assert again.status_code == 200
        await hang_up(gateway)


async def test_frames_come_as_events_with_their_place_in_the_log(tea):
    """The type is the event's name; ephemeral ones have no id."""
    bob = await connect(tea, token_of("bob"))
    await bob.ask("session_join", {"sessionId": "tea"})
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        welcome = await stream.next()
        await bob.send("presence", {"sessionId": "tea", "status": "typing"})
        typing = await stream.next("presence")
        await say(ada, "hi")
        said = await stream.next()

    epoch = welcome.data["payload"]["epoch"]
    assert stream.answer.headers["content-type"] == "text/event-stream"
    assert stream.answer.headers["cache-control"] == "no-store"
    assert (welcome.name, welcome.id) == ("session_info", f"{epoch}:0")
    assert (typing.data["payload"]["status"], typing.id) == ("typing", None)
    assert (said.name, said.id, said.data["seq"]) == ("chat", f"{epoch}:1", 1)
    assert said.data["payload"]["message"] == "hi"


async def test_who_listens_is_a_member_that_others_see(tea):
    """Unlike who only publishes; it is gone when its connection is."""
    bob = await connect(tea, token_of("bob"))
    await bob.ask("session_join", {"sessionId": "tea"})
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        await stream.next()
        came = await bob.next("presence")
        listed = await ada.get(f"{API}/sessions/tea")
        members = listed.json()["members"]
    left = await bob.next("presence")

    assert (came.data()["status"], came.sender.user_id) == ("online", "ada")
    assert {member["userId"] for member in members} == {"ada", "bob"}
    assert left.data()["status"] == "offline"
    assert len(tea.clients) == 1


async def test_a_listener_goes_on_where_it_was(tea):
    """By the id of its last event, which wins over the query."""
    async with http(tea, ADA) as ada:
        async with events(ada, "tea") as stream:
            first = await stream.next()
            await say(ada, "1", "2")
            await stream.next("chat")
        await say(ada, "3")

        async with events(ada, "tea", first.id) as stream:
            resumed = [await stream.next("chat") for _ in range(3)]
        async with events(ada, "tea", first.id, Last_Event_ID=resumed[1].id) as stream:
            info = await stream.next()
            last = await stream.next("chat")

    assert [e.data["seq"] for e in resumed] == [1, 2, 3]
    assert (info.name, info.data["payload"]["recovery"]) == ("session_info", "resumed")
    assert last.data["seq"] == 3


async def test_there_is_no_hole_between_what_was_and_what_comes(tea):
    """While others publish, again and again a listener resumes and misses nothing."""
    seen: list[int] = []
    place = f"{tea.sessions.get_session('tea').feed.epoch}:0"
    async with http(tea, ADA) as ada, http(tea, token_of("bob")) as bob:

        async def publish() -> None:
            for number in range(60):
                await say(bob, str(number))

        publishing = asyncio.create_task(publish())
        while len(seen) < 60:
            async with events(ada, "tea", place) as stream:
                for _ in range(min(7, 60 - len(seen))):
                    said = await stream.next("chat")
                    seen.append(said.data["seq"])
                    place = said.id
        await publishing

    assert seen == list(range(1, 61))


@pytest.mark.parametrize(("since", "reason"), [("other:1", "epoch"), ("{epoch}:99", "ahead")])
async def test_a_place_that_is_not_in_the_log_is_reset_first(tea, since, reason):
    """Then comes what the log has, with ids to go on from."""
    async with http(tea, ADA) as ada:
        await say(ada, "1")
        epoch = tea.sessions.get_session("tea").feed.epoch
        async with events(ada, "tea", since.format(epoch=epoch)) as stream:
            reset, info = await stream.next(), await stream.next()
            await say(ada, "2")
            said = await stream.next("chat")

    next = info.data["payload"]["next"]
    assert (reset.name, reset.data["reason"]) == ("reset", reason)
    assert reset.data == {"epoch": epoch, "head": 1, "next": next, "reason": reason}
    assert reset.id == info.id == f"{epoch}:{next - 1}"
    assert info.name == "session_info"
    assert said.id == f"{epoch}:{next}"


async def test_a_log_that_was_trimmed_is_reset_first():
    """What retention has deleted is not passed over in silence."""
    history = MemoryHistory(max_messages=3)
    async with WebSocketGateway(
        guarded_config(), authenticator=People(), history=history
    ) as gateway:
        await gateway.sessions.create_session("tea")
        async with http(gateway, ADA) as ada:
            await say(ada, *map(str, range(8)))
            epoch = gateway.sessions.get_session("tea").feed.epoch
            first = (await history.bounds("tea")).first
            async with events(ada, "tea", f"{epoch}:1") as stream:
                reset = await stream.next()
                said = await stream.next("chat")

    assert (reset.name, reset.data["reason"]) == ("reset", "trimmed")
    assert said.data["seq"] == reset.data["next"] >= first > 2


@pytest.mark.parametrize("since", ["1", "x", "x:", ":1", "x:-1", "x:01", "x:1:1", "x:" + "9" * 30])
async def test_a_place_that_is_none_is_refused(tea, since):
    """As JSON, before any event."""
    async with http(tea, ADA) as ada:
        answer = await ada.get(f"{API}/sessions/tea/events", params={"since": since})

    assert (answer.status_code, code_of(answer)) == (400, "INVALID_PAYLOAD")


async def test_a_listener_that_leaves_is_noticed(tea):
    """Although nothing is being sent to it."""
    async with await RawSocket.connect(tea.port) as peer:
        peer.send(head(tea.port, f"{API}/sessions/tea/events", f"Authorization: Bearer {ADA}"))
        await until(lambda: len(tea.sessions.get_clients("tea")) == 1)
    await until(lambda: not tea.sessions.get_clients("tea"))

    assert len(tea.clients) == 0


async def test_a_slow_listener_is_sent_away_and_costs_no_memory():
    """With 4008 once more waits than a connection may leave unread; others go on."""
    limits = LimitsConfig(max_buffered=100_000, lag_bytes=50_000)
    async with WebSocketGateway(guarded_config(limits=limits), authenticator=People()) as gateway:
        await gateway.sessions.create_session("tea")
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", gateway.port))
        slow.sendall(
            head(gateway.port, f"{API}/sessions/tea/events", f"Authorization: Bearer {SLOW}")
        )
        await until(lambda: gateway.sessions.get_clients("tea"))
        (reader,) = gateway.clients
        worst = 0
        async with http(gateway, ADA) as ada, events(ada, "tea") as stream:
            for number in range(400):
                await say(ada, f"{number} " + "x" * 20_000)
                worst = max(worst, reader.transport.buffered())
                if reader.transport.closed:
                    break
            assert reader.transport.closed[0] == 4008
            await say(ada, "last")
            while (await stream.next("chat")).data["payload"]["message"] != "last":
                pass
            await until(lambda: len(gateway.sessions.get_clients("tea")) == 1)
        slow.close()

    assert worst <= 100_000 + 21_000


async def test_a_slow_listener_resumes_without_a_hole(tea):
    """What it had not read is in the log, and read from there as fast as it reads."""
    async with http(tea, ADA) as ada:
        await say(ada, *("x" * 60_000 for _ in range(60)))
        epoch = tea.sessions.get_session("tea").feed.epoch
        async with events(ada, "tea", f"{epoch}:0") as stream:
            seqs = [(await stream.next("chat")).data["seq"] for _ in range(60)]

    assert seqs == list(range(1, 61))


async def test_a_quiet_stream_shows_that_it_lives(tea, monkeypatch):
    """By comments, which readers pass over."""
    monkeypatch.setattr(http_events, "KEEP_ALIVE", 0.02)
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        await stream.next()
        reading = asyncio.create_task(stream.next("chat"))
        await until(lambda: stream.comments >= 2)
        await say(ada, "hi")
        said = await reading

    assert said.data["payload"]["message"] == "hi"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
async def test_a_listener_that_vanished_without_a_word_is_not_waited_for(tea):
    """What it does not acknowledge ends its connection; its comments make sure there is some."""
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        await stream.next()
        (answer,) = tea._listener._http.state.connections  # the kernel alone can tell
        option = answer.transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
        )

    assert http_events.KEEP_ALIVE * 1000 < option == 30_000


async def test_a_stream_ends_with_the_reason_when_its_client_is_closed(tea):
    """A kick is 4004, the gateway's end 1001; both say whether to come again."""
    async with http(tea, ADA) as ada:
        async with events(ada, "tea") as stream:
            await stream.next()
            (client,) = tea.clients
            tea.kick_client(client.id, "enough")
            kicked = await stream.next("close")
            await stream.over()
        async with events(ada, "tea") as stream:
            await stream.next()
            stopping = asyncio.create_task(tea.stop())
            stopped = await stream.next("close")
            await stream.over()
            await stopping

    assert kicked.data == {"code": 4004, "reason": "reconnect=no;enough"}
    assert stopped.data["code"] == 1001
    assert stopped.data["reason"].startswith("reconnect=yes")


async def test_who_is_removed_from_a_session_hears_no_more_of_it(tea):
    """Over events as over a WebSocket."""
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        await stream.next()
        boss = await connect(tea, token_of("boss", "control"))
        await boss.ask("session_join", {"sessionId": "tea"})
        await boss.ask("session_remove", {"sessionId": "tea", "userId": "ada"})
        removed = await stream.next("session_info")
        while removed.data["payload"]["status"] != "removed":
            removed = await stream.next("session_info")
        await boss.ask("chat", {"message": "alone"}, "tea")
        await boss.ask("broadcast", {"message": 1, "to": "clients"})
        told = await stream.next()

    assert told.name == "broadcast"


async def test_a_user_has_only_so_many_streams():
    """They count as connections do."""
    limits = LimitsConfig(connections_per_user=2)
    async with WebSocketGateway(guarded_config(limits=limits), authenticator=People()) as gateway:
        await gateway.sessions.create_session("tea")
        async with http(gateway, ADA) as ada, events(ada, "tea"), events(ada, "tea"):
            answer = await ada.get(f"{API}/sessions/tea/events")
            await say(ada, "calls that pass are none")
        async with http(gateway, ADA) as ada:
            await until(lambda: len(gateway.clients) == 0)
            async with events(ada, "tea") as stream:
                await stream.next()

    assert (answer.status_code, code_of(answer)) == (429, "RATE_LIMITED")


async def test_an_answer_streams_into_events(tea):
    """Chunks of a run have no id; its end has."""
    bot = await connect(tea, token_of("bots", "node"))
    await register(bot, "bot")
    await bot.ask("session_join", {"sessionId": "tea"})
    async with http(tea, ADA) as ada, events(ada, "tea") as stream:
        await ada.post(
            f"{API}/sessions/tea/messages", json={"message": "@bot", "mentions": ["bot"]}
        )
        run = (await stream.next("chat")).data["seq"]
        await bot.next("chat")
        await bot.send("chat_stream", {"runId": f"{run}.bot", "content": "h"}, "tea")
        await bot.send("chat_complete", {"runId": f"{run}.bot", "content": "hi"}, "tea")
        chunk, end = await stream.next("chat_stream"), await stream.next("chat_complete")

    assert (chunk.data["payload"]["content"], chunk.id) == ("h", None)
    assert end.id is not None
