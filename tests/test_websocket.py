"""The gateway on a real socket: who gets in, what is carried, who is dropped, what is told."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from peers import (
    People,
    WebSocketPeer,
    connect,
    details_of,
    error_of,
    guarded_config,
    hang_up,
    host,
    open_config,
    raw,
    register,
    token_of,
    upgrade_to,
)
from rawsocket import BINARY, CLOSE, PING, PONG, TEXT, RawSocket, client_frame, request, upgrade

from trunkline.auth import Credential
from trunkline.clients import Identity
from trunkline.config import (
    AuthConfig,
    CompressionConfig,
    LimitsConfig,
    OriginConfig,
    ProxyConfig,
    TlsConfig,
    WebSocketTransportConfig,
)
from trunkline.errors import ConfigError
from trunkline.messages import create_message, decode_message
from trunkline.transports.websocket import DisconnectDetails, WebSocketGateway


@asynccontextmanager
async def running(
    config: WebSocketTransportConfig | None = None, authenticator: Any = None
) -> AsyncIterator[WebSocketGateway]:
    """A gateway with a configuration of its own; by default one without sign-in."""
    config = config or open_config()
    async with WebSocketGateway(config, authenticator=authenticator) as gateway:
        yield gateway
        await hang_up(gateway)


def next_event(gateway: WebSocketGateway, name: Any) -> asyncio.Future[tuple[Any, ...]]:
    """The arguments of the next event of a name."""
    future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
    gateway.on(name, lambda *args: future.done() or future.set_result(args))
    return future


async def answer(gateway: WebSocketGateway, head: bytes) -> Any:
    """What the gateway answers to a head."""
    async with await RawSocket.connect(gateway.port) as peer:
        peer.send(head)
        return await peer.answer()


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


async def refused(gateway: WebSocketGateway, *headers: str, target: str = "/ws") -> int:
    """The status with which an upgrade is refused; 101 if it is not."""
    async with await RawSocket.connect(gateway.port) as peer:
        peer.send(upgrade_to(gateway, *headers, target=target))
        return (await peer.head()).status


# One port for HTTP and WebSocket


async def test_the_flow_of_the_source_document_works(ws_gateway):
    """Welcome, connect, auth, as it describes them."""
    async with websockets.connect(f"ws://{host(ws_gateway)}/ws", proxy=None) as socket:
        welcome = decode_message(await socket.recv())
        peer = WebSocketPeer(socket)
        hello = await peer.ask("connect", {"deviceId": "phone", "role": "control"})
        signed_in = await peer.ask("auth", {"token": token_of("ada", "control")})

    assert (welcome.type, welcome.data()["status"]) == ("session_info", "connected")
    assert welcome.data()["authRequired"] is True
    assert (hello.type, hello.data()["authRequired"]) == ("hello_ok", True)
    assert (signed_in.type, signed_in.data()["userId"]) == ("auth_success", "ada")


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", b"ok"), ("/health", b"ok"), ("/readyz", b"ready")]
)
async def test_health_answers_strangers_on_the_same_port_and_tells_nothing_else(
    ws_gateway, path, status
):
    """No counts, no version."""
    reply = await answer(ws_gateway, request(path, host=host(ws_gateway)))

    assert reply.status == 200
    assert reply.body.replace(b" ", b"") == b'{"status":"%b"}' % status


async def test_readiness_is_refused_while_the_gateway_drains():
    """Then upgrades are refused with 503, too, and told when to come back."""
    async with running() as gateway:
        peer = await connect(gateway)
        draining = asyncio.ensure_future(gateway.drain(1))
        await peer.gone()
        await draining

        ready = await answer(gateway, request("/readyz", host=host(gateway)))
        again = await refused(gateway)

    assert (ready.status, again) == (503, 503)


@pytest.mark.parametrize(
    ("target", "status"),
    [("/ws", 426), ("/other", 404), ("/ws?token=x", 400), ("/healthz?access_token=x", 400)],
)
async def test_a_plain_get_is_answered_by_its_path(ws_gateway, target, status):
    """The WebSocket's path needs an upgrade; a credential does not belong into a URL."""
    assert (await answer(ws_gateway, request(target, host=host(ws_gateway)))).status == status


@pytest.mark.parametrize("target", ["/", "/WS", "/ws/", "//ws", "/%77s/x"])
async def test_an_upgrade_elsewhere_is_not_found(ws_gateway, target):
    """One path speaks WebSocket."""
    assert await refused(ws_gateway, target=target) == 404


async def test_the_subprotocol_is_echoed_when_offered(ws_gateway):
    """And only then."""
    offered = await connect(ws_gateway, subprotocols=["other", "trunkline.v1"])
    plain = await connect(ws_gateway)

    assert (offered.socket.subprotocol, plain.socket.subprotocol) == ("trunkline.v1", None)


# Who gets in


async def test_a_good_bearer_makes_the_connection_ready_at_once(ws_gateway):
    """The welcome says that no sign-in is needed."""
    peer = await connect(ws_gateway, token_of("ada"))

    assert peer.heard[0].data()["authRequired"] is False
    assert (await peer.ask("health")).type == "health"


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer ", "Basic x", "Bearer"])
async def test_a_bad_bearer_is_refused_before_101(ws_gateway, header):
    """With 401."""
    assert await refused(ws_gateway, f"Authorization: {header}") == 401


async def test_ten_bad_bearers_lock_the_address_out(ws_gateway):
    """429, also for the right one, and for `auth` frames from there."""
    for _ in range(10):
        assert await refused(ws_gateway, bearer("wrong")) == 401
    locked = await refused(ws_gateway, bearer(token_of("ada")))
    peer = await connect(ws_gateway)
    frame = await peer.ask("auth", {"token": token_of("ada")})

    assert locked == 429
    assert error_of(frame) == "AUTH_LOCKED"


class Slow:
    """An authenticator that has to wait for its answer."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.trouble: Exception | None = None

    async def authenticate(self, credential: Credential) -> Identity | None:
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        return People().authenticate(credential)


async def test_frames_wait_behind_a_bearer_whose_judgement_takes_time():
    """They are handled in order once the client is READY."""
    slow = Slow()
    async with running(guarded_config(), slow) as gateway:
        peer = await connect(gateway, token_of("ada"))
        created = await peer.send("session_create", {"sessionId": "lobby"})
        chat = await peer.send("chat", {"message": "hi"}, "lobby")

        await peer.ask("ping")
        slow.gate.set()

        assert (await peer.next(reply_to=created)).data()["status"] == "created"
        assert (await peer.next(reply_to=chat)).type == "ack"


@pytest.mark.parametrize(
    ("token", "trouble", "code"),
    [("wrong", None, 4003), (token_of("ada"), OSError("the directory is down"), 1011)],
)
async def test_a_bearer_that_is_refused_later_closes_the_connection(token, trouble, code, capsys):
    """Wrong: 4003; not to be judged: 1011, and the client comes back."""
    slow = Slow()
    slow.trouble = trouble
    async with running(guarded_config(), slow) as gateway:
        peer = await connect(gateway, token)

        slow.gate.set()

        assert (await peer.gone())[0] == code


async def test_a_page_of_another_origin_is_refused_before_101():
    """In every mode of sign-in; a client without an Origin is not a page."""
    allowed = OriginConfig(allowed_origins=("https://good.example",))
    for config in (guarded_config(origins=allowed), open_config(origins=allowed)):
        async with running(config, People()) as gateway:
            assert await refused(gateway, "Origin: https://evil.example") == 403
            assert await refused(gateway, "Origin: https://good.example") == 101
            assert await refused(gateway) == 101


async def test_a_foreign_host_name_is_misdirected(ws_gateway):
    """DNS rebinding: 421, for every request."""
    for head in (upgrade("/ws"), request("/healthz")):
        wrong = head.replace(b"Host: 127.0.0.1", b"Host: evil.example")
        assert (await answer(ws_gateway, wrong)).status == 421


async def test_forwarding_headers_of_an_untrusted_peer_are_ignored(ws_gateway):
    """The address is the socket's, and it is not local any more."""
    async with raw(ws_gateway, "X-Forwarded-For: 10.9.9.9"):
        (client,) = ws_gateway.clients

        assert (client.peer.address, client.peer.local) == ("127.0.0.1", False)


async def test_forwarding_headers_of_a_trusted_proxy_count():
    """The client's own address is the limits' key."""
    config = guarded_config(proxies=ProxyConfig(trusted=("127.0.0.0/8",)))
    async with running(config, People()) as gateway, raw(gateway, "X-Forwarded-For: 10.9.9.9"):
        (client,) = gateway.clients

        assert (client.peer.address, client.peer.local) == ("10.9.9.9", False)


async def test_who_does_not_sign_in_in_time_is_closed_with_4001():
    """Absolutely: pings do not help."""
    config = guarded_config(auth=AuthConfig(token="t", timeout=0.2))
    async with running(config) as gateway:
        peer = await connect(gateway)
        await peer.ask("ping")

        await gateway.tick()
        await asyncio.sleep(0.25)
        await gateway.tick()

        code, reason = await peer.gone()
        assert (code, reason[:12]) == (4001, "reconnect=no")


async def test_so_many_strangers_of_one_address_may_wait_for_sign_in():
    """Who signs in, or goes, makes room for another."""
    limits = LimitsConfig(pre_auth_per_address=2)
    async with running(guarded_config(limits=limits), People()) as gateway:
        first, second = await connect(gateway), await connect(gateway)
        full = await refused(gateway)
        known = await connect(gateway, token_of("bob"))

        await first.ask("auth", {"token": token_of("ada")})
        third = await connect(gateway)
        full_again = await refused(gateway)
        left = next_event(gateway, "client:disconnect")
        await second.close()
        await left
        room = await refused(gateway)

        assert (full, full_again, room) == (503, 503, 101)
        assert (await known.ask("ping")).type == (await third.ask("ping")).type == "pong"


async def test_so_many_connections_are_open_at_most():
    """The next is refused with 503 until one has gone."""
    async with running(open_config(limits=LimitsConfig(max_connections=2))) as gateway:
        peers = [await connect(gateway) for _ in range(2)]
        full = await refused(gateway)
        left = next_event(gateway, "client:disconnect")
        await peers[0].close()
        await left

        assert (full, await refused(gateway)) == (503, 101)


async def test_a_stranger_may_send_only_small_messages_and_few_bytes():
    """16 KiB a message, 64 KiB in all, until it has signed in."""
    async with running(guarded_config(), People()) as gateway:
        large, chatty, known = [await connect(gateway) for _ in range(3)]

        await large.send("ping", {"x": "x" * 17_000})
        for _ in range(5):
            await chatty.send("ping", {"x": "x" * 15_000})
        await known.ask("auth", {"token": token_of("ada")})
        pong = await known.ask("ping", {"x": "x" * 500_000})

        assert (await large.gone())[0] == 1009
        assert (await chatty.gone())[0] == 1008
        assert pong.type == "pong"


# What is carried


async def test_a_message_over_the_limit_is_told_and_then_closed():
    """`MESSAGE_TOO_LARGE` with the limit in bytes, then 1009."""
    async with running(open_config(limits=LimitsConfig(max_message_size=10_000))) as gateway:
        peer = await connect(gateway)

        await peer.send_text("x" * 10_001)

        assert (await peer.gone())[0] == 1009
        assert error_of(peer.heard[-1]) == "MESSAGE_TOO_LARGE"
        assert details_of(peer.heard[-1]) == {"limit": 10_000}


async def test_the_limit_counts_bytes_and_not_characters():
    """Below the hard cap the connection survives."""
    limits = LimitsConfig(max_message_size=10_000)
    async with running(open_config(limits=limits, max_payload=100_000)) as gateway:
        peer = await connect(gateway)

        within = await peer.ask("ping", {"x": "x" * 9_000})
        await peer.send("ping", {"x": "é" * 6_000})
        over = await peer.next("error")

        assert within.type == "pong"
        assert error_of(over) == "MESSAGE_TOO_LARGE"
        assert (await peer.ask("ping")).type == "pong"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (client_frame(BINARY, b"{}"), 1003),
        (client_frame(TEXT, b'{"type":"ping","id":"\xff"}'), 1007),
        (client_frame(TEXT, b"{}", masked=False), 1002),
        (client_frame(TEXT, b"{}", rsv=4), 1002),
        (client_frame(CLOSE, b""), 1000),
    ],
)
async def test_what_is_no_text_message_closes_with_its_code(frame, code):
    """RFC 6455, and the protocol's own rules."""
    async with running() as gateway, raw(gateway) as peer:
        peer.send(frame)

        assert (await peer.closing()).code == code


async def test_ten_unreadable_messages_close_with_1008():
    """Nine are answered."""
    async with running() as gateway:
        peer = await connect(gateway)

        for _ in range(10):
            await peer.send_text("junk")

        assert (await peer.gone())[0] == 1008
        assert [error_of(m) for m in peer.heard[1:]] == ["PARSE_ERROR"] * 9


async def test_pipelined_frames_are_handled_in_order(ws_gateway):
    """Sent in one piece, answered one by one."""
    peer = await connect(ws_gateway)
    messages = [
        create_message("auth", {"token": token_of("ada")}),
        create_message("session_create", {"sessionId": "s1"}),
        create_message("session_create", {"sessionId": "s2"}),
        create_message("chat", {"message": "1"}, "s1"),
        create_message("chat", {"message": "2"}, "s2"),
        create_message("chat", {"message": "3"}, "s1"),
        create_message("session_list"),
        create_message("session_leave", {"sessionId": "s1"}),
    ]

    for message in messages:
        await peer.send_message(message)
    answers = []
    while len(answers) < len(messages):
        answers.append(await peer.next())

    assert [a.reply_to for a in answers] == [m.id for m in messages]


async def test_two_members_get_each_others_messages_exactly_once(ws_gateway):
    """The sender gets the ack, the other the message with its stamp."""
    ada, bob = (
        await connect(ws_gateway, token_of("ada")),
        await connect(ws_gateway, token_of("bob")),
    )
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})

    ack = await ada.ask("chat", {"message": "hi"}, "lobby")
    chat = await bob.next("chat")

    assert (ack.data()["seq"], chat.seq, chat.sender.user_id) == (1, 1, "ada")
    assert [m.type for m in await bob.left() if m.type != "presence"] == []
    assert [m.type for m in await ada.left() if m.type != "presence"] == []


async def test_an_answer_streams_over_sockets(ws_gateway):
    """A chat, its run, chunks and the end; then a request to the agent's tool and back."""
    ada, bot = (
        await connect(ws_gateway, token_of("ada")),
        await connect(ws_gateway, token_of("bots", "node")),
    )
    await register(bot, "helper", "add")
    await ada.ask("session_create", {"sessionId": "lobby", "agentId": "helper"})

    ack = await ada.ask("chat", {"message": "hi"}, "lobby")
    asked = await bot.next("chat")
    run_id = ack.data()["runs"][0]["runId"]
    for word in ("Hello", " you"):
        await bot.send("chat_stream", {"content": word, "runId": run_id}, "lobby")
    done = await bot.ask("chat_complete", {"content": "Hello you", "runId": run_id}, "lobby")
    heard = [await ada.next("chat_stream"), await ada.next("chat_stream")]
    end = await ada.next("chat_complete")
    request_id = await ada.send("route_request", {"capability": "add", "params": [1, 2]})
    work = await bot.next("route_request")
    await bot.send("route_response", {"requestId": work.data()["requestId"], "result": 3})
    answered = await ada.next(reply_to=request_id)

    assert asked.addressed == ["helper"]
    assert "".join(m.data()["content"] for m in heard) == "Hello you" == end.data()["content"]
    assert done.data()["seq"] == end.seq
    assert (answered.data()["result"], answered.data()["agentId"]) == (3, "helper")


async def test_a_slow_handler_stops_neither_pings_nor_others():
    """Pings of the protocol and of WebSocket are answered meanwhile."""
    async with running() as gateway:
        gate = asyncio.Event()

        async def slow(client, message):
            await gate.wait()
            return {}

        gateway.register_handler("slow", slow)
        peer, other = await connect(gateway), await connect(gateway)

        slow_id = await peer.send("slow")
        pong = await peer.ask("ping")
        async with asyncio.timeout(5):
            await (await peer.socket.ping())
        health = await other.ask("health")
        gate.set()

        assert (pong.type, health.type) == ("pong", "health")
        assert (await peer.next(reply_to=slow_id)).type == "slow"


async def test_compression_is_used_where_it_is_configured_and_offered():
    """The same messages come out."""
    config = open_config(compression=CompressionConfig(enabled=True, min_size=100))
    async with running(config) as gateway:
        ada, bob = await connect(gateway), await connect(gateway)
        socket = await websockets.connect(f"ws://{host(gateway)}/ws", proxy=None)
        carl = WebSocketPeer(socket)
        await ada.ask("session_create", {"sessionId": "lobby"})
        for peer in (bob, carl):
            await peer.ask("session_join", {"sessionId": "lobby"})

        await ada.send("chat", {"message": "x" * 5_000}, "lobby")

        for peer in (bob, carl):
            assert (await peer.next("chat")).data()["message"] == "x" * 5_000
        assert "permessage-deflate" in str(socket.response.headers)
        await carl.close()


async def test_compression_is_off_by_default(ws_gateway):
    """Although a client offers it."""
    socket = await websockets.connect(f"ws://{host(ws_gateway)}/ws", proxy=None)

    assert "Sec-WebSocket-Extensions" not in socket.response.headers
    await socket.close()


async def test_a_reader_that_stopped_is_closed_with_4008_and_costs_little_memory():
    """Twenty thousand messages of 8 kB to one; the others lose nothing."""
    async with running() as gateway:
        details = next_event(gateway, "client:disconnect:details")
        reader = await connect(gateway)
        await reader.ask("session_create", {"sessionId": "lobby"})
        async with raw(gateway) as stuck:
            stuck.send_text('{"type":"session_join","id":"1","payload":{"sessionId":"lobby"}}')
            await reader.next("presence")
            stuck.writer.transport.pause_reading()
            message = create_message("note", {"x": "x" * 8_000})
            count, most = 0, 0
            for _ in range(200):
                for _ in range(100):
                    gateway.broadcast_to_session("lobby", message)
                for _ in range(100):
                    await reader.next("note")
                    count += 1
                most = max(most, gateway.get_websocket_stats()["buffered_bytes"])

            (told,) = await details

        assert count == 20_000
        assert (told.code, told.reason) == (4008, "reconnect=yes")
        assert most < 3 * 1024 * 1024


async def test_a_lagging_reader_gets_all_that_is_durable_and_then_the_text_so_far():
    """No chunk while its buffer is long, no hole in the text afterwards."""
    limits = LimitsConfig(max_buffered=64 * 1024 * 1024, lag_bytes=64 * 1024)
    async with running(open_config(limits=limits)) as gateway:
        bot = await connect(gateway)
        await bot.ask("connect", {"deviceId": "bot", "role": "node"})
        await register(bot, "helper")
        ada = await connect(gateway)
        await ada.ask("session_create", {"sessionId": "lobby", "agentId": "helper"})
        async with raw(gateway) as slow:
            slow.send_text('{"type":"session_join","id":"1","payload":{"sessionId":"lobby"}}')
            await ada.next("presence")
            slow.writer.transport.pause_reading()
            run = (await ada.ask("chat", {"message": "go"}, "lobby")).data()["runs"][0]["runId"]
            client = next(c for c in gateway.clients if c.sessions and c.id not in {
                ada.heard[0].data()["sessionId"], bot.heard[0].data()["sessionId"]})  # fmt: skip
            count = 0
            while not client.lagging:
                gateway.broadcast_to_session("lobby", create_message("note", {"x": "x" * 100_000}))
                await bot.send("chat_stream", {"content": f"{count} ", "runId": run}, "lobby")
                count += 1
                await ada.next("chat_stream")
            for _ in range(20):
                await bot.send("chat_stream", {"content": f"{count} ", "runId": run}, "lobby")
                count += 1
            await bot.ask("tool_start", {"tool": "t", "toolCallId": "t", "runId": run}, "lobby")

            slow.writer.transport.resume_reading()
            text, index, types = "", -1, []
            while index < count - 1 or "tool_start" not in types:
                message = decode_message(await slow.text())
                types.append(message.type)
                if message.type == "chat_stream":
                    data = message.data()
                    if "first" in data:
                        assert data["content"].startswith(text)
                        text = data["content"]
                    else:
                        assert data["index"] == index + 1
                        text += data["content"]
                    index = data["index"]

        assert text == "".join(f"{n} " for n in range(count))
        assert types.count("tool_start") == 1


# Who lives


BRISK = {"heartbeat_interval": 0.15, "heartbeat_timeout": 0.5}


async def test_a_quiet_client_that_answers_pings_stays():
    """A pong is life."""
    async with running(open_config(**BRISK)) as gateway, raw(gateway) as peer:
        for _ in range(4):
            frame = await peer.frame()
            assert frame.opcode == PING
            peer.send_frame(PONG, frame.payload)

        peer.send_text('{"type":"ping","id":"1"}')
        assert decode_message(await peer.text()).type == "pong"
        assert len(gateway.clients) == 1


async def test_a_client_that_talks_is_not_pinged():
    """Any frame is life."""
    async with running(open_config(**BRISK)) as gateway, raw(gateway) as peer:
        for number in range(20):
            peer.send_text(f'{{"type":"ping","id":"{number}"}}')
            assert (await peer.frame()).opcode == TEXT
            await asyncio.sleep(0.03)


async def test_a_frozen_peer_is_dropped_once_and_its_socket_closed():
    """Within the interval and the time to answer; presence follows at once."""
    async with running(open_config(**BRISK)) as gateway, raw(gateway) as frozen:
        gone = []
        gateway.on("client:disconnect", gone.append)
        details = next_event(gateway, "client:disconnect:details")
        began = time.monotonic()

        (told,) = await details
        took = time.monotonic() - began
        closing = await frozen.closing()

        assert 0.6 < took < 3
        assert isinstance(told, DisconnectDetails)
        assert (told.code, len(gone), len(gateway.clients)) == (1001, 1, 0)
        assert closing.payload[2:].startswith(b"reconnect=yes")


async def test_a_client_whose_frames_we_hold_back_is_not_taken_for_dead():
    """Its pong may wait behind what we do not read."""
    limits = LimitsConfig(inbox_messages=2)
    async with running(open_config(limits=limits, **BRISK)) as gateway, raw(gateway) as peer:
        gate = asyncio.Event()

        async def slow(client, message):
            await gate.wait()
            return {"slow": True}

        gateway.register_handler("slow", slow)
        for number in range(5):
            peer.send_text(f'{{"type":"slow","id":"{number}"}}')

        await asyncio.sleep(1.0)
        gate.set()

        while (frame := await peer.frame()).opcode != TEXT:
            peer.send_frame(PONG, frame.payload)
        assert decode_message(frame.payload).data() == {"slow": True}


async def test_a_disconnect_is_told_once_with_code_reason_and_uptime():
    """`client:disconnect` and `client:disconnect:details`."""
    async with running() as gateway:
        gone = []
        gateway.on("client:disconnect", gone.append)
        details = next_event(gateway, "client:disconnect:details")
        peer = await connect(gateway)

        await peer.socket.close(4_321, "that was all")
        (told,) = await details

        assert (told.code, told.reason) == (4_321, "that was all")
        assert 0 <= told.uptime < 10
        assert gone == [told.client]


async def test_a_connection_that_is_cut_is_told_as_1006():
    """There was no close frame."""
    async with running() as gateway:
        details = next_event(gateway, "client:disconnect:details")
        async with raw(gateway) as peer:
            peer.writer.transport.abort()
            (told,) = await details

        assert told.code == 1006


# Telling and sending


async def test_a_broadcast_reaches_those_that_the_filter_takes(ws_gateway):
    """Strangers never."""
    ada, bob = (
        await connect(ws_gateway, token_of("ada")),
        await connect(ws_gateway, token_of("bob")),
    )
    stranger = await connect(ws_gateway)

    everyone = ws_gateway.broadcast(create_message("note", {"n": 1}))
    one = ws_gateway.broadcast(create_message("note", {"n": 2}), lambda c: c.user_id == "bob")

    assert (everyone, one) == (2, 1)
    assert [m.data() for m in await ada.left()] == [{"n": 1}]
    assert [m.data() for m in await bob.left()] == [{"n": 1}, {"n": 2}]
    assert await stranger.left() == []


async def test_a_broadcast_to_a_session_reaches_its_members_but_one(ws_gateway):
    """One state per client: who joined is reached."""
    ada, bob = (
        await connect(ws_gateway, token_of("ada")),
        await connect(ws_gateway, token_of("bob")),
    )
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})
    await ada.next("presence")
    ada_id = ada.heard[0].data()["sessionId"]

    count = ws_gateway.broadcast_to_session("lobby", create_message("note"), ada_id)

    assert count == 1
    assert (await bob.next("note")).session_id == "lobby"
    assert await ada.left() == []


async def test_a_kicked_client_is_closed_with_4004(ws_gateway):
    """The socket too, not only the state."""
    peer = await connect(ws_gateway, token_of("ada"))
    gone = next_event(ws_gateway, "client:disconnect")

    kicked = ws_gateway.kick_client(peer.heard[0].data()["sessionId"], "spam")

    assert kicked is True
    assert await peer.gone() == (4004, "reconnect=no;spam")
    await gone
    assert ws_gateway.kick_client(peer.heard[0].data()["sessionId"]) is False


async def test_what_is_known_of_a_client_can_be_asked(ws_gateway):
    """`get_client_info`; None for one that is not there."""
    peer = await connect(ws_gateway, token_of("bots", "node"))
    await peer.ask("connect", {"deviceId": "box", "deviceName": "The box"})
    await peer.ask("auth", {"token": token_of("bots", "node"), "clientType": "node"})
    await peer.ask("session_create", {"sessionId": "lobby"})
    await register(peer, "helper")
    client_id = peer.heard[0].data()["sessionId"]

    info = ws_gateway.get_client_info(client_id)

    assert (info.id, info.user_id, info.role, info.phase) == (client_id, "bots", "node", "ready")
    assert (info.device_id, info.device_name, info.client_type) == ("box", "The box", "node")
    assert (info.address, info.sessions, info.agents) == ("127.0.0.1", ["lobby"], ["helper"])
    assert abs(info.connected_at - time.time() * 1000) < 60_000
    assert ws_gateway.get_client_info("nobody") is None


async def test_the_websocket_stats_tell_true_numbers(ws_gateway):
    """The uptime is the gateway's, in seconds, and not the epoch."""
    await connect(ws_gateway, token_of("ada"))
    await connect(ws_gateway)

    stats = ws_gateway.get_websocket_stats()

    assert (stats["connections"], stats["waiting_for_sign_in"]) == (2, 1)
    assert 0 <= stats["uptime"] < 60
    assert stats["buffered_bytes"] == 0
    assert stats["address"] == f"http://127.0.0.1:{ws_gateway.port}"


# Life


async def test_starting_and_stopping_twice_is_harmless():
    """And afterwards it can be started again."""
    gateway = WebSocketGateway(open_config())
    for _ in range(2):
        await gateway.start()
        port = gateway.port
        await gateway.start()
        assert gateway.port == port
        peer = await connect(gateway)
        await gateway.stop()
        await gateway.stop()

        code, reason = await peer.gone()
        assert (code, reason[:13]) == (1001, "reconnect=yes")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_in_use_is_an_error_and_leaves_nothing_behind():
    """The core is stopped again, and may be started elsewhere."""
    async with running() as first:
        second = WebSocketGateway(
            WebSocketTransportConfig(port=first.port, auth=AuthConfig(mode="none"))
        )

        with pytest.raises(OSError, match="in use"):
            await second.start()

        assert not second.ready
    async with second:
        assert second.ready


async def test_errors_of_the_listener_reach_the_error_event(monkeypatch):
    """The request is answered with 500, and others are not disturbed."""

    class Broken:
        def authenticate(self, credential):
            raise OSError("the directory is down")

    async with running(guarded_config(), Broken()) as gateway:
        error = next_event(gateway, "error")

        status = await refused(gateway, bearer("x"))
        (reported,) = await error

        assert status == 500
        assert str(reported) == "the directory is down"
        assert await refused(gateway) == 101


async def test_the_gateway_is_reached_on_loopback_only(ws_gateway):
    """The default bind."""
    (address,) = ws_gateway._listener.addresses

    assert address[0] == "127.0.0.1"


def test_a_gateway_open_to_all_without_sign_in_does_not_start():
    """Unless it is meant."""
    with pytest.raises(ConfigError, match="without sign-in"):
        WebSocketGateway(open_config(bind="all"))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder: Path = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


async def test_the_gateway_speaks_tls_with_a_certificate_and_key(certificate):
    """WebSocket and HTTP, on the one port; its address says https."""
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    config = guarded_config(tls=TlsConfig(cert=cert, key=key))
    async with running(config, People()) as gateway:
        socket = await websockets.connect(
            f"wss://{host(gateway)}/ws",
            ssl=trust,
            proxy=None,
            additional_headers={"Authorization": f"Bearer {token_of('ada')}"},
        )
        peer = WebSocketPeer(socket)
        health = await peer.ask("health")
        async with await RawSocket.connect(gateway.port, tls=trust) as plain:
            plain.send(request("/healthz", host=host(gateway)))
            healthz = await plain.answer()
        await peer.close()

        assert (health.type, healthz.status) == ("health", 200)
        assert gateway.address == f"https://127.0.0.1:{gateway.port}"


async def test_a_missing_certificate_is_an_error_before_anything_starts(tmp_path):
    """The core is not left running."""
    gone = str(tmp_path / "gone.pem")
    gateway = WebSocketGateway(open_config(tls=TlsConfig(cert=gone, key=gone)))

    with pytest.raises(FileNotFoundError):
        await gateway.start()

    assert not gateway.ready
