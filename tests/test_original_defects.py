"""
The defects of the original that the source document describes: none exists here.

One test per row of the list (S1 to S18) that concerns the core and its socket,
and one per defect that was seen when a copy of it ran. Two real sockets, where
the original's tests had none.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
import websockets
from peers import (
    People,
    WebSocketPeer,
    connect,
    error_of,
    guarded_config,
    hang_up,
    open_config,
    raw,
    register,
    token_of,
)
from rawsocket import RawSocket, request

from trunkline.auth import SharedSecret
from trunkline.config import DEFAULT_WS_CONFIG, AuthConfig, LimitsConfig, WebSocketTransportConfig
from trunkline.errors import ConfigError
from trunkline.messages import create_message
from trunkline.origins import is_origin_allowed
from trunkline.transports.websocket import WebSocketGateway


async def pair(gateway: WebSocketGateway) -> tuple[WebSocketPeer, WebSocketPeer]:
    """Two members of one session, over two sockets."""
    ada, bob = await connect(gateway, token_of("ada")), await connect(gateway, token_of("bob"))
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})
    await ada.next("presence")
    return ada, bob


def client_id(peer: WebSocketPeer) -> str:
    """The gateway's name for a connection, from its welcome."""
    name: str = peer.heard[0].data()["sessionId"]
    return name


def test_s1_a_gateway_with_sign_in_and_no_way_to_verify_does_not_start():
    """Every token was accepted."""
    with pytest.raises(ConfigError, match="there is no token"):
        WebSocketGateway(WebSocketTransportConfig(port=0))


def test_s2_the_password_is_compared_by_digest_in_constant_time():
    """It was compared with ``!==``."""
    source = Path(SharedSecret.authenticate.__code__.co_filename).read_text(encoding="utf-8")

    assert "hmac.compare_digest(_digest(given), self._digest)" in source


async def test_s2_wrong_passwords_lock_the_address_out():
    """There was no limit of attempts."""
    config = guarded_config(auth=AuthConfig(mode="password", password="right"))
    async with WebSocketGateway(config) as gateway:
        peer = await connect(gateway)

        codes = [error_of(await peer.ask("auth", {"password": "wrong"})) for _ in range(12)]

        assert codes == ["AUTH_FAILED"] * 10 + ["AUTH_LOCKED"] * 2
        assert error_of(await peer.ask("auth", {"password": "right"})) == "AUTH_LOCKED"
        await hang_up(gateway)


async def test_s2_a_client_cannot_name_its_own_user(ws_gateway):
    """`payload.clientId` was the user id."""
    peer = await connect(ws_gateway)

    answer = await peer.ask("auth", {"token": token_of("eve"), "clientId": "ada", "userId": "ada"})

    assert answer.data()["userId"] == "eve"


async def test_s3_a_second_auth_cannot_bind_another_user(ws_gateway):
    """Identity was bound anew, and the metadata wiped."""
    peer = await connect(ws_gateway)
    await peer.ask("connect", {"deviceId": "phone", "deviceName": "Ada's"})
    await peer.ask("auth", {"token": token_of("ada")})

    again = await peer.ask("auth", {"token": token_of("eve")})
    info = ws_gateway.get_client_info(client_id(peer))

    assert error_of(again) == "ALREADY_AUTHENTICATED"
    assert (info.user_id, info.device_id, info.device_name) == ("ada", "phone", "Ada's")


async def test_s4_creating_a_session_never_joins_one_that_exists():
    """It joined silently, past the limit of clients."""
    config = guarded_config(limits=LimitsConfig(members_per_session=1))
    async with WebSocketGateway(config, authenticator=People()) as gateway:
        ada, eve = await connect(gateway, token_of("ada")), await connect(gateway, token_of("eve"))
        await ada.ask("session_create", {"sessionId": "lobby"})

        plain = await eve.ask("session_create", {"sessionId": "lobby"})
        joining = await eve.ask("session_create", {"sessionId": "lobby", "joinIfExists": True})

        assert (error_of(plain), error_of(joining)) == ("SESSION_EXISTS", "SESSION_FULL")
        assert gateway.sessions.get_clients("lobby") == [client_id(ada)]
        await hang_up(gateway)


async def test_s4_a_session_id_cannot_be_guessed(ws_gateway):
    """It was the time in milliseconds."""
    peer = await connect(ws_gateway, token_of("ada"))

    ids = [(await peer.ask("session_create", {})).data()["sessionId"] for _ in range(50)]

    assert len(set(ids)) == 50
    assert not any(str(int(time.time()))[:6] in session_id for session_id in ids)
    assert all(len(session_id) >= 22 for session_id in ids)


async def test_s5_a_session_is_patched_by_its_owner_and_with_known_keys_only(ws_gateway):
    """Anybody could patch any session, `elevated: true` included, with any keys."""
    ada, bob = await pair(ws_gateway)

    async def patch(peer: WebSocketPeer, **changes: object) -> str | None:
        answer = await peer.ask("session_patch", {"sessionId": "lobby", "patch": changes})
        return error_of(answer) if answer.type == "error" else None

    assert await patch(bob, name="Bob's") == "FORBIDDEN"
    assert await patch(ada, elevated=True) == "FORBIDDEN"
    assert await patch(ada, colour="red") == "INVALID_PAYLOAD"
    assert await patch(ada, metadata={"x": "x" * 100_000}) == "INVALID_PAYLOAD"
    assert await patch(ada, name="Ada's") is None


async def test_s6_presence_is_the_senders_own(ws_gateway):
    """The payload overwrote the sender's id."""
    ada, bob = await pair(ws_gateway)

    await bob.send("presence", {"status": "typing", "clientId": client_id(ada)}, "lobby")
    message = await ada.next("presence")

    assert message.sender.client_id == client_id(bob)
    assert "clientId" not in message.data()


async def test_s7_a_stranger_learns_of_nobody(ws_gateway):
    """`hello_ok` listed every device to everyone."""
    ada = await connect(ws_gateway, token_of("ada"))
    await ada.ask("connect", {"deviceId": "phone"})
    stranger, eve = await connect(ws_gateway), await connect(ws_gateway, token_of("eve"))

    told = [await peer.ask("connect", {"deviceId": "x"}) for peer in (stranger, eve)]

    assert told[0].data()["presence"] == []
    assert [p["deviceId"] for p in told[1].data()["presence"]] == ["x"]


async def test_s7_a_role_is_granted_and_not_claimed(ws_gateway):
    """It was taken from the payload."""
    peer = await connect(ws_gateway, token_of("ada", "observer"))

    claim = await peer.ask("connect", {"deviceId": "d", "role": "control"})

    assert error_of(claim) == "FORBIDDEN"
    assert error_of(await peer.ask("broadcast", {"message": 1})) == "FORBIDDEN"


async def test_s8_an_agent_cannot_be_overwritten_by_another_user(ws_gateway):
    """The newest registration simply won."""
    ada = await connect(ws_gateway, token_of("ada", "node"))
    eve = await connect(ws_gateway, token_of("eve", "node"))
    await register(ada, "helper", "add")

    theft = await register(eve, "helper", "add")
    asker = await connect(ws_gateway, token_of("bob"))
    await asker.send("route_request", {"capability": "add"})

    assert error_of(theft) == "AGENT_ID_TAKEN"
    assert (await ada.next("route_request")).target == "helper"


async def test_s9_an_answer_is_taken_only_from_the_agent_that_was_asked(ws_gateway):
    """There was no correlation at all."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    eve = await connect(ws_gateway, token_of("eve", "node"))
    ada = await connect(ws_gateway, token_of("ada"))
    await register(bot, "helper")
    await register(eve, "evil")
    asked = await ada.send("route_request", {"agentId": "helper"})
    request_id = (await bot.next("route_request")).data()["requestId"]

    for guess in (request_id, asked, "0" * 32):
        await eve.send("route_response", {"requestId": guess, "result": "spoofed"})
    await eve.ask("ping")
    await bot.send("route_response", {"requestId": request_id, "result": "true"})

    assert (await ada.next(reply_to=asked)).data()["result"] == "true"
    assert ws_gateway.get_stats()["stray_responses"] == 3


async def test_s10_the_size_is_judged_in_bytes_and_before_the_message_is_read():
    """It was judged after parsing, and in UTF-16 units."""
    async with WebSocketGateway(
        open_config(limits=LimitsConfig(max_message_size=3_000))
    ) as gateway:
        peer = await connect(gateway)

        await peer.send_text('{"broken' + "é" * 1_600)

        assert (await peer.gone())[0] == 1009
        assert error_of(peer.heard[-1]) == "MESSAGE_TOO_LARGE"


async def test_s10_what_a_handler_says_when_it_fails_is_not_echoed(capsys):
    """The client saw internals."""
    async with WebSocketGateway(open_config()) as gateway:

        def broken(client: object, message: object) -> None:
            raise RuntimeError("password=hunter2")

        gateway.register_handler("broken", broken)
        answer = await (await connect(gateway)).ask("broken")

        assert error_of(answer) == "HANDLER_ERROR"
        assert "hunter2" not in str(answer.data())
        await hang_up(gateway)


def listening(port: int) -> set[str]:
    """The addresses on which this machine listens on a port, from the kernel's own table."""
    found = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, hex_port = local.split(":")
        if state == "0A" and int(hex_port, 16) == port:
            found.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
async def test_s11_loopback_means_loopback(ws_gateway):
    """It was bound to 0.0.0.0 while the configuration said otherwise."""
    assert listening(ws_gateway.port) == {"127.0.0.1"}
    assert ws_gateway.get_bind_address() == "127.0.0.1"


async def test_s12_a_message_to_a_session_reaches_the_other_member_once(ws_gateway):
    """There were two states per client, and it reached nobody."""
    ada, bob = await pair(ws_gateway)

    ack = await ada.ask("chat", {"message": "hi"}, "lobby")
    chat = await bob.next("chat")
    await ada.ask("session_list")

    assert (ack.data()["seq"], chat.seq) == (1, 1)
    assert [m.type for m in await bob.left()] == []
    assert [m.type for m in await ada.left()] == []


async def test_s13_nothing_is_dropped_from_the_middle_of_a_stream(ws_gateway):
    """A reader that cannot keep up loses the connection, not messages."""
    ada, bob = await pair(ws_gateway)

    for number in range(300):
        await ada.send("chat", {"message": f"{number}" + "x" * 2_000}, "lobby")
    got = [(await bob.next("chat")).seq for _ in range(300)]

    assert got == list(range(1, 301))


async def test_s14_a_client_that_is_given_up_loses_its_socket_too():
    """It was forgotten, and its socket stayed open."""
    config = open_config(heartbeat_interval=0.1, heartbeat_timeout=0.2)
    async with WebSocketGateway(config) as gateway:
        async with raw(gateway) as frozen:
            closing = await frozen.closing()
            frozen.send_close(closing.code)

            assert await frozen.rest() == b""
        assert len(gateway.clients) == 0


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/stats", "/clients", "/anything"])
async def test_s15_http_tells_nothing(ws_gateway, method, path):
    """Any path and method answered with the number of clients and sessions."""
    async with await RawSocket.connect(ws_gateway.port) as peer:
        peer.send(request(path, method=method, host=f"127.0.0.1:{ws_gateway.port}"))
        answer = await peer.answer()

    console = path == "/"  # a page that is the same for everybody, or word of how to build it
    assert answer.status in ((200, 404, 405) if console else (404,))
    assert not any(word in answer.body for word in (b"clients", b"sessions", b"count"))


@pytest.mark.parametrize(
    ("origin", "pattern"),
    [
        ("https://a.b.example.com", "https://*.example.com"),
        ("https://.example.com", "https://*.example.com"),
        ("https://app.evil.com", "https://app.example.com"),
    ],
)
def test_s17_a_wildcard_is_one_label(origin, pattern):
    """It admitted more than it said."""
    assert not is_origin_allowed(origin, [pattern])


async def test_s17_a_program_without_an_origin_gets_in(ws_gateway):
    """It was refused, so no command line and no agent could connect."""
    peer = await connect(ws_gateway, token_of("ada"))

    assert (await peer.ask("health")).type == "health"


def test_s18_the_defaults_are_careful():
    """Compression was on, messages had 10 MiB, and nothing had a limit in number or time."""
    config = DEFAULT_WS_CONFIG

    assert config.compression.enabled is False
    assert config.max_frame == 1024 * 1024
    assert config.limits.max_connections > 0
    assert config.limits.pre_auth_connections > 0
    assert 0 < config.auth.timeout <= 10


# Seen in a running copy


async def test_a_single_frame_does_not_kill_the_process(ws_gateway):
    """An `auth` without a payload did."""
    peer = await connect(ws_gateway)

    await peer.send_text('{"type":"auth","id":"1"}')

    assert error_of(await peer.next(reply_to="1")) == "AUTH_REQUIRED"
    assert (await peer.ask("ping")).type == "pong"


async def test_a_quiet_client_that_answers_pings_stays_registered():
    """It was unregistered after a minute although its socket was open."""
    config = open_config(heartbeat_interval=0.1, heartbeat_timeout=1.0)
    async with WebSocketGateway(config) as gateway:
        peer = await connect(gateway)

        await asyncio.sleep(0.5)

        assert gateway.get_client_info(client_id(peer)) is not None
        assert (await peer.ask("ping")).type == "pong"
        await hang_up(gateway)


async def test_a_broadcast_to_agents_reaches_agents(ws_gateway):
    """An agent's id was used as a session's."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "helper")

    assert ws_gateway.agents.broadcast_to_agents(create_message("note")) == 1
    assert (await bot.next("note")).type == "note"


async def test_replies_name_their_request(ws_gateway):
    """None did."""
    peer = await connect(ws_gateway, token_of("ada"))

    for type in ("ping", "health", "session_list", "agent_list", "sync_state", "wobble"):
        request_id = await peer.send(type)
        assert (await peer.next()).reply_to == request_id


async def test_pipelined_frames_do_not_race(ws_gateway):
    """Handlers were not awaited."""
    peer = await connect(ws_gateway)

    await peer.send("auth", {"token": token_of("ada")})
    await peer.send("session_create", {"sessionId": "lobby"})
    chat = await peer.send("chat", {"message": "hi"}, "lobby")

    assert (await peer.next(reply_to=chat)).type == "ack"


async def test_a_connection_is_announced_once(ws_gateway):
    """`client:connect` and `client:disconnect` fired twice."""
    heard: list[str] = []
    gone = asyncio.Event()
    ws_gateway.on("client:connect", lambda client: heard.append("connect"))
    ws_gateway.on("client:disconnect", lambda client: heard.append("disconnect"))
    ws_gateway.on("client:disconnect:details", lambda details: gone.set())

    peer = await connect(ws_gateway)
    await peer.close()
    async with asyncio.timeout(5):
        await gone.wait()

    assert heard == ["connect", "disconnect"]


async def test_the_uptime_is_a_duration(ws_gateway):
    """It was the epoch."""
    peer = await connect(ws_gateway, token_of("ada"))

    hello = (await peer.ask("connect", {"deviceId": "d"})).data()

    assert 0 <= hello["uptime"] < 60_000


async def test_rejoining_at_the_limit_is_fine():
    """It said `SESSION_FULL`."""
    config = open_config(limits=LimitsConfig(members_per_session=1))
    async with WebSocketGateway(config) as gateway:
        peer = await connect(gateway)
        await peer.ask("session_create", {"sessionId": "lobby"})

        again = await peer.ask("session_join", {"sessionId": "lobby"})

        assert again.data()["status"] == "joined"
        await hang_up(gateway)


async def test_a_plain_client_of_another_library_gets_in(ws_gateway):
    """Whatever it sends as Origin, Host and extensions."""
    url = f"ws://127.0.0.1:{ws_gateway.port}/ws"
    async with websockets.connect(url, proxy=None) as client:
        assert '"session_info"' in str(await client.recv())
