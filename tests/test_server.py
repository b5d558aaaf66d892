"""The core without a socket: its life, its events, and how it is driven and extended."""

from __future__ import annotations

import asyncio

import pytest
from peers import People, error_of, person, register, token_of

from trunkline.clients import Client, Peer
from trunkline.config import (
    DEFAULT_GATEWAY_CONFIG,
    AuthConfig,
    GatewayConfig,
    WebSocketTransportConfig,
)
from trunkline.events import EVENTS
from trunkline.history import Bounds
from trunkline.history.memory import MemoryHistory
from trunkline.messages import create_message, decode_message
from trunkline.server import GatewayServer
from trunkline.testing import MemoryTransport, PeerClient

OPEN = GatewayConfig(auth=AuthConfig(mode="none"))

SOURCE_TYPES = {
    "ping", "connect", "auth", "session_create", "session_join", "session_leave",
    "session_patch", "presence", "health", "chat", "chat_stream", "chat_complete",
    "tool_start", "tool_update", "tool_result", "agent_register", "agent_unregister",
    "agent_heartbeat", "agent_list", "route_request", "route_response", "route_cancel",
    "broadcast", "sync_state", "session_list", "session_history", "session_invite",
    "session_remove", "session_close", "run_cancel",
}  # fmt: skip


def listen(gateway: GatewayServer) -> list[str]:
    """Note the name of every event from now on, but for what the audit log is told."""
    heard: list[str] = []
    for name in EVENTS.keys() - {"audit"}:
        gateway.on(name, lambda *args, name=name: heard.append(name))
    return heard


# Life


async def test_starting_and_stopping_twice_is_harmless():
    """Each event comes once."""
    gateway = GatewayServer(OPEN)
    heard = listen(gateway)

    for _ in range(2):
        await gateway.start()
    assert gateway.ready
    for _ in range(2):
        await gateway.stop()

    assert not gateway.ready
    assert heard == ["started", "stopped"]


async def test_stopping_what_never_started_is_harmless():
    """Nothing happens."""
    gateway = GatewayServer(OPEN)
    heard = listen(gateway)

    await gateway.stop()

    assert heard == []


async def test_a_stopped_gateway_can_be_started_again():
    """With nothing left of what was in memory."""
    gateway = GatewayServer(OPEN)
    epochs = []

    for _ in range(2):
        async with gateway:
            peer = PeerClient(gateway)
            info = await peer.ask("session_create", {"sessionId": "lobby"})
            ack = await peer.ask("chat", {"message": "hi"}, "lobby")
            epochs.append(info.data()["epoch"])
            assert ack.data()["seq"] == 1

    assert epochs[0] != epochs[1]


async def test_stopping_sends_everybody_away_exactly_once():
    """With 1001, after what was queued has been stored and acked."""
    gateway = GatewayServer(OPEN)
    await gateway.start()
    peers = [PeerClient(gateway) for _ in range(3)]
    await peers[0].ask("session_create", {"sessionId": "lobby"})
    heard = listen(gateway)

    await gateway.stop()
    await asyncio.sleep(0)

    for peer in peers:
        assert peer.transport.closed[0] == 1001
        assert peer.transport.closed[1].startswith("reconnect=yes")
    assert heard.count("client:disconnect") == 3
    assert len(gateway.clients) == 0


async def test_draining_says_when_to_come_back_before_it_closes(gateway):
    """Between half a second and five; the close reason says the same."""
    peers = [PeerClient(gateway) for _ in range(5)]

    await gateway.drain(1)

    for peer in peers:
        (wait,) = [m.data()["reconnectInMs"] for m in peer.received() if m.type == "going_away"]
        assert 500 <= wait <= 5_000
        code, reason = peer.transport.closed
        assert (code, reason.split(";")[:2]) == (1001, ["reconnect=yes", f"afterMs={wait}"])


async def test_while_draining_messages_are_taken_but_no_new_requests_or_runs(gateway):
    """`OVERLOADED`; and the gateway is not ready for new clients."""
    bot = PeerClient(gateway, person("bot", "node"))
    ada, bob = PeerClient(gateway, person("ada")), PeerClient(gateway, person("bob"))
    await register(bot, "helper", "add")
    await ada.ask("session_create", {"sessionId": "lobby", "agentId": "helper"})
    await bob.ask("session_create", {"sessionId": "quiet"})
    await ada.ask("chat", {"message": "keeps the drain waiting"}, "lobby")

    draining = asyncio.ensure_future(gateway.drain(5))
    await asyncio.sleep(0.05)
    asked = await ada.ask("route_request", {"capability": "add"})
    chatted = await ada.ask("chat", {"message": "one more?"}, "lobby")
    noted = await ada.ask("chat", {"message": "just a note", "mentions": []}, "lobby")
    ready = gateway.ready
    bot.send("chat_complete", {"content": "done", "runId": "2.helper"}, "lobby")
    await draining

    assert [error_of(asked), error_of(chatted)] == ["OVERLOADED"] * 2
    assert noted.type == "ack"
    assert not ready
    assert ada.transport.closed[0] == 1001


async def test_two_gateways_live_in_one_program():
    """Nothing is global."""
    async with GatewayServer(OPEN) as one, GatewayServer(OPEN) as two:
        await PeerClient(one).ask("session_create", {"sessionId": "lobby"})

        assert (
            error_of(await PeerClient(two).ask("session_join", {"sessionId": "lobby"}))
            == "SESSION_NOT_FOUND"
        )


# The transport's side


async def test_the_core_is_driven_by_connect_message_and_disconnect(gateway):
    """With nothing but a list in place of a socket."""
    transport = MemoryTransport()

    client = gateway.on_connect(transport, Peer("somewhere", "key", local=True))
    gateway.on_message(client, '{"type":"ping","id":"1"}')
    gateway.on_disconnect(client, 1000, "bye")

    assert isinstance(client, Client)
    assert [decode_message(frame).type for frame in transport.sent] == ["session_info", "pong"]
    assert (client.peer.address, client.peer.local) == ("somewhere", True)
    assert gateway.clients.get(client.id) is None


async def test_every_client_is_welcomed(guarded):
    """With its id, whether it must sign in, a challenge, and the limits."""
    stranger = PeerClient(guarded)
    known = PeerClient(guarded, person("ada"))

    welcome = (await stranger.next()).data()
    theirs = (await known.next()).data()

    assert (welcome["sessionId"], welcome["status"]) == (stranger.client.id, "connected")
    assert (welcome["authRequired"], theirs["authRequired"]) == (True, False)
    assert welcome["protocolVersion"] == 1
    assert welcome["limits"]["maxMessageSize"] == 1024 * 1024
    assert welcome["challengeNonce"] != theirs["challengeNonce"]
    assert len(welcome["challengeNonce"]) >= 22


async def test_messages_of_a_client_that_is_gone_are_ignored(gateway):
    """And a second disconnect does nothing."""
    heard = listen(gateway)
    peer = PeerClient(gateway)

    for _ in range(2):
        peer.disconnect()
    peer.send("ping")
    await asyncio.sleep(0)

    assert heard.count("client:disconnect") == 1
    assert [m.type for m in peer.received()] == ["session_info"]


@pytest.mark.parametrize("type", sorted(SOURCE_TYPES))
async def test_every_type_of_the_source_document_has_a_default_handler(gateway, type):
    """Registered by the constructor."""
    assert gateway.default_handler(type) is not None


async def test_health_tells_status_time_and_true_uptime(gateway):
    """Milliseconds since the start, and not since 1970."""
    report = (await PeerClient(gateway).ask("health")).data()

    assert report["status"] == "ok"
    assert report["checkedAt"] > 1_600_000_000_000
    assert 0 <= report["uptime"] < 60_000


async def test_pong_names_the_client(gateway):
    """`clientId`."""
    peer = PeerClient(gateway)

    assert (await peer.ask("ping")).data() == {"clientId": peer.client.id}


# Sending


async def test_a_message_can_be_sent_to_one_client(gateway):
    """False for one that is not there."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)

    sent = gateway.send_to_client(ada.client.id, create_message("note", {"x": 1}))
    lost = gateway.send_to_client("nobody", create_message("note"))

    assert (sent, lost) == (True, False)
    assert (await ada.next("note")).data() == {"x": 1}
    assert "note" not in {m.type for m in bob.received()}


async def test_a_message_can_be_sent_to_all_who_have_signed_in(guarded):
    """Or to those that a filter takes; strangers get nothing."""
    stranger = PeerClient(guarded)
    ada, bob = PeerClient(guarded, person("ada")), PeerClient(guarded, person("bob"))

    everyone = guarded.broadcast(create_message("note"))
    one = guarded.broadcast(create_message("note"), lambda client: client.user_id == "bob")

    assert (everyone, one) == (2, 1)
    counts = [sum(m.type == "note" for m in peer.received()) for peer in (stranger, ada, bob)]
    assert counts == [0, 1, 2]


async def test_a_client_can_be_kicked(gateway):
    """With 4004; the client is gone, once."""
    heard = listen(gateway)
    peer = PeerClient(gateway)

    kicked = [gateway.kick_client(peer.client.id, "spam"), gateway.kick_client("nobody")]
    await asyncio.sleep(0)

    assert kicked == [True, False]
    assert peer.transport.closed == (4004, "reconnect=no;spam")
    assert heard.count("client:disconnect") == 1
    assert gateway.clients.get(peer.client.id) is None


# Events


async def test_the_events_of_a_visit_come_in_order(guarded):
    """Connect, sign in, create, join, leave, disconnect: each once."""
    heard = listen(guarded)
    peer = PeerClient(guarded)
    await peer.ask("auth", {"token": token_of("ada")})
    await peer.ask("session_create", {"sessionId": "lobby"})
    peer.disconnect()

    assert heard == [
        "client:connect", "client:auth", "session:create", "session:join", "session:leave",
        "client:disconnect",
    ]  # fmt: skip


async def test_a_client_that_comes_with_a_credential_connects_before_it_is_signed_in(guarded):
    """The same order as for any other."""
    heard = listen(guarded)

    PeerClient(guarded, person("ada"))

    assert heard == ["client:connect", "client:auth"]


class BrokenHistory(MemoryHistory):
    """A log that stops telling what it holds."""

    broken = False

    async def bounds(self, session: str) -> Bounds:
        if self.broken:
            raise OSError("the disk is gone")
        return await super().bounds(session)


async def test_a_sweep_that_fails_reaches_the_error_event():
    """And the next one runs all the same."""
    errors: list[Exception] = []
    twice = asyncio.Event()
    history = BrokenHistory()
    async with GatewayServer(OPEN, history=history) as gateway:
        gateway.on("error", lambda error: (errors.append(error), len(errors) > 1 and twice.set()))
        peer = PeerClient(gateway)
        await peer.ask("session_create", {"sessionId": "lobby"})
        await peer.ask("chat", {"message": "hi"}, "lobby")

        history.broken = True
        async with asyncio.timeout(10):
            await twice.wait()

    assert {str(error) for error in errors} == {"the disk is gone"}


# Telling


async def test_the_stats_tell_what_goes_on(gateway):
    """Clients, sessions, agents, requests, deliveries, refusals."""
    bot = PeerClient(gateway, person("bot", "node"))
    ada = PeerClient(gateway, person("ada"))
    await register(bot, "helper", "add")
    await ada.ask("session_create", {"sessionId": "lobby"})
    await ada.ask("session_join", {"sessionId": "nowhere"})
    ada.send("route_request", {"capability": "add"})

    stats = gateway.get_stats()

    assert (stats["clients"], stats["authenticated"], stats["sessions"]) == (2, 2, 1)
    assert stats["agents"] == {"total": 1, "online": 1, "by_type": {"custom": 1}}
    assert (stats["open_requests"], stats["refused"]) == (1, 1)
    assert 0 <= stats["uptime"] < 60


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (GatewayConfig(), "127.0.0.1"),
        (GatewayConfig(bind="all"), "0.0.0.0"),
        (WebSocketTransportConfig(bind="tailscale"), "127.0.0.1"),
        (WebSocketTransportConfig(host="10.1.2.3"), "10.1.2.3"),
    ],
)
def test_the_bind_mode_decides_the_address(config, address):
    """`get_bind_address`."""
    gateway = GatewayServer(config, authenticator=People())

    assert gateway.get_bind_address() == address


def test_the_defaults_are_those_of_the_configuration():
    """A gateway without arguments needs only something to sign in with."""
    assert GatewayServer(authenticator=People()).config is DEFAULT_GATEWAY_CONFIG
