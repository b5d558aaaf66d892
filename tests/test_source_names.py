"""Every name of the source document exists here and does what the table says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import test_source_names_gateway  # its tests prove rows too
from source_table import PROVED, ROWS, heard, proves, resolve

import trunkline
from trunkline import (
    DEFAULT_GATEWAY_CONFIG,
    ConfigError,
    GatewayConfig,
    GatewayError,
    GatewayServer,
    Identity,
    WebSocketTransportConfig,
    create_message,
)
from trunkline.config import AuthConfig
from trunkline.events import EVENTS
from trunkline.messages import decode_message, encode
from trunkline.payloads import (
    CONTROL_TYPES,
    MESSAGE_TYPES,
    Auth,
    Chat,
    Connect,
    ErrorPayload,
    HelloOk,
    read,
)
from trunkline.settings import settings_table
from trunkline.testing import MemoryTransport, PeerClient

TOKEN = "a-token-for-this-test"
NODE = Identity(user_id="nora", roles=frozenset({"node"}))
OPEN = AuthConfig(mode="none")


@pytest.fixture
async def server():
    async with GatewayServer(GatewayConfig(auth=OPEN)) as gateway:
        yield gateway


# The table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}: {row.source}")
def test_what_a_row_names_exists(row):
    """The second column names something real."""
    if row.kind == "setting":
        assert row.here in settings_table()
    elif row.kind == "Events":
        assert row.here in EVENTS
    elif row.kind == "Message types":
        assert row.here in MESSAGE_TYPES
    else:
        assert resolve(row.here) is not None


def test_every_row_has_a_test_and_every_test_a_row():
    """What is not shown is not promised."""
    assert test_source_names_gateway.__name__ in {module for module, _ in PROVED.values()}
    assert set(PROVED) == {row.source for row in ROWS}


def test_the_table_has_every_event():
    """No event is left out but `audit`, which the source does not have."""
    assert {row.here for row in ROWS if row.kind == "Events"} == set(EVENTS) - {"audit"}


# Messages


@proves(
    "GatewayMessage",
    "GatewayMessage.type",
    "GatewayMessage.id",
    "GatewayMessage.sessionId",
    "GatewayMessage.payload",
    "GatewayMessage.timestamp",
    "createMessage",
)
def test_create_message_makes_a_whole_envelope():
    """Type, id, session, payload and time are on the wire under the source's names."""
    message = create_message("chat", Chat(message="hi"), "lobby")

    wire = msgspec.json.decode(encode(message))
    assert wire["type"] == "chat"
    assert wire["sessionId"] == "lobby"
    assert wire["payload"] == {"message": "hi"}
    assert wire["id"] == message.id
    assert wire["timestamp"] == message.timestamp > 0


@proves("createErrorMessage", "ErrorPayload")
def test_create_error_message_has_a_structured_payload():
    """Code, text and details reach the client."""
    message = trunkline.create_error_message("FORBIDDEN", "no", {"path": "$.a"})

    payload = read(message, ErrorPayload)
    assert (payload.code, payload.message, payload.details) == ("FORBIDDEN", "no", {"path": "$.a"})


@proves("ControlMessage", "createControlMessage")
def test_create_control_message_names_source_and_target_and_has_an_id():
    """A control message is an envelope like all others."""
    message = trunkline.create_control_message("route_request", "me", {"method": "sum"}, "helper")

    assert isinstance(message, trunkline.ControlMessage)
    assert (message.source, message.target) == ("me", "helper")
    assert message.id


@proves("GatewayMessageType", "ControlMessageType")
def test_the_message_types_are_sets_of_words():
    """Control types are some of all types."""
    assert {"connect", "chat", "error", "agent_register"} <= MESSAGE_TYPES
    assert {"agent_register", "route_request"} <= CONTROL_TYPES < MESSAGE_TYPES


@proves("ConnectPayload", "AuthPayload", "ChatPayload")
def test_the_payloads_read_the_sources_fields():
    """A frame written for the source document is understood."""
    connect = read(create_message("connect", {"deviceId": "d", "role": "control"}), Connect)
    auth = read(create_message("auth", {"token": "t", "password": "p"}), Auth)
    chat = read(create_message("chat", {"message": "hi"}), Chat)

    assert (connect.device_id, connect.role) == ("d", "control")
    assert (auth.token, auth.password) == ("t", "p")
    assert chat.message == "hi"


# Message types


@proves("session_info", "connect", "hello_ok", "HelloOkPayload", "auth", "auth_success", "ping")
async def test_a_client_connects_and_signs_in_as_the_source_describes():
    """Welcome, greeting and sign-in have the source's types, in its order."""
    async with GatewayServer(GatewayConfig(auth=AuthConfig(token=TOKEN))) as server:
        peer = PeerClient(server)
        welcome = await peer.next()
        pong = await peer.ask("ping")
        hello = await peer.ask("connect", {"deviceId": "laptop", "role": "control"})
        success = await peer.ask("auth", {"token": TOKEN})

    assert (welcome.type, welcome.data()["authRequired"]) == ("session_info", True)
    assert pong.type == "pong"
    assert read(hello, HelloOk).auth_required
    assert success.type == "auth_success"


@proves("error")
async def test_a_refused_request_is_answered_by_an_error(server):
    """The error names the request."""
    answer = await PeerClient(server).ask("session_leave", {"sessionId": "nowhere"})

    assert answer.type == "error"
    assert answer.data()["code"] == "SESSION_NOT_FOUND"


@proves("session_create", "session_join", "session_patch", "session_leave")
async def test_sessions_are_created_joined_patched_and_left(server):
    """Each request is answered by a session_info that says what became of it."""
    ada, bob = PeerClient(server), PeerClient(server)

    statuses = [
        (await ada.ask("session_create", {"sessionId": "lobby"})).data()["status"],
        (await bob.ask("session_join", {"sessionId": "lobby"})).data()["status"],
        (await ada.ask("session_patch", {"sessionKey": "lobby", "patch": {"name": "L"}})).data()[
            "status"
        ],
        (await bob.ask("session_leave", {"sessionId": "lobby"})).data()["status"],
    ]
    again = await bob.ask("session_create", {"sessionId": "lobby"})

    assert statuses == ["created", "joined", "patched", "left"]
    assert again.data()["code"] == "SESSION_EXISTS"


@proves("presence", "chat")
async def test_members_hear_chat_and_presence_with_a_proven_sender(server):
    """What one member says reaches the other, stamped by the gateway."""
    ada, bob = PeerClient(server), PeerClient(server)
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})

    ack = await ada.ask("chat", {"message": "hi"}, "lobby")
    said = await bob.next("chat")
    ada.send("presence", {"status": "typing"}, "lobby")
    typing = await bob.next("presence")

    assert (ack.type, ack.data()["seq"], said.seq) == ("ack", 1, 1)
    assert said.sender is not None
    assert said.sender.client_id == ada.client.id
    assert typing.data()["status"] == "typing"


@proves("agent_register", "tool_start", "route_request")
async def test_an_agent_registers_answers_requests_and_shows_its_tools(server):
    """A request reaches the agent; its tool calls reach the session."""
    asker, agent = PeerClient(server), PeerClient(server, NODE)
    await asker.ask("session_create", {"sessionId": "lobby"})
    await agent.ask("agent_register", {"id": "helper", "capabilities": {"chat": True}})
    await agent.ask("session_join", {"sessionId": "lobby"})

    request = asker.send("route_request", {"capability": "chat", "method": "greet"})
    delivered = await agent.next("route_request")
    agent.send("route_response", {"requestId": delivered.data()["requestId"], "result": "hi"})
    response = await asker.next("route_response")
    await asker.ask("chat", {"message": "go"}, "lobby")
    await agent.next("chat")
    agent.send("tool_start", {"tool": "sum", "toolCallId": "1"}, "lobby")
    shown = await asker.next("tool_start")

    assert (response.reply_to, response.data()["result"]) == (request, "hi")
    assert shown.data()["runId"] == "1.helper"


# Clients and sessions


@proves(
    "ClientState",
    "ClientState.authenticated",
    "ClientState.userId",
    "ClientState.sessions",
    "ClientState.metadata",
)
async def test_the_state_of_a_client_tells_who_it_is_and_where(server):
    """One object holds it, and the transport has no other."""
    peer = PeerClient(server)
    await peer.ask("session_create", {"sessionId": "lobby"})
    await peer.ask("auth", {"clientId": "my-name"})

    state = peer.client
    assert isinstance(state, trunkline.ClientState)
    assert state.authenticated
    assert state.user_id == "local"
    assert list(state.sessions) == ["lobby"]
    assert state.metadata == {"clientId": "my-name"}


@proves("SessionManager", "Session", "SessionManager.createSession", "SessionManager.getSession")
async def test_a_session_is_created_and_found(server):
    """An id in use is an error, not a silent join."""
    session = await server.sessions.create_session("lobby", name="The lobby")

    assert isinstance(server.sessions, trunkline.SessionManager)
    assert server.sessions.get_session("lobby") is session
    assert session.record.name == "The lobby"
    with pytest.raises(GatewayError, match="SESSION_EXISTS"):
        await server.sessions.create_session("lobby")


@proves("SessionManager.addClient", "SessionManager.getClients", "SessionManager.removeClient")
async def test_clients_are_added_to_and_removed_from_a_session(server):
    """Membership may be arranged from Python too."""
    peer = PeerClient(server)
    await server.sessions.create_session("lobby")

    server.sessions.add_client("lobby", peer.client)
    inside = server.sessions.get_clients("lobby")
    removed = server.sessions.remove_client("lobby", peer.client)

    assert inside == [peer.client.id]
    assert removed
    assert server.sessions.get_clients("lobby") == []


@proves("SessionManager.cleanup", "SessionManager.getAllSessions")
async def test_cleanup_forgets_sessions_without_members():
    """A session that is still within its grace time, or has members, stays."""
    config = GatewayConfig(auth=OPEN, sessions=trunkline.config.SessionsConfig(grace=0))
    async with GatewayServer(config) as server:
        await server.sessions.create_session("empty")
        await PeerClient(server).ask("session_create", {"sessionId": "full"})

        forgotten = await server.sessions.cleanup()

        assert forgotten == 1
        assert [session.id for session in server.sessions.get_all_sessions()] == ["full"]


# GatewayServer


@proves("GatewayServer", "GatewayServer.constructor", "GatewayConfig", "DEFAULT_GATEWAY_CONFIG")
def test_the_constructor_takes_a_configuration_or_the_defaults():
    """The defaults want a token and have none, so they do not start by accident."""
    server = GatewayServer(GatewayConfig(auth=OPEN))

    assert server.config.auth is OPEN
    assert GatewayConfig() == DEFAULT_GATEWAY_CONFIG
    with pytest.raises(ConfigError, match="token"):
        GatewayServer()


@proves("GatewayServer.setupDefaultHandlers")
def test_the_default_handlers_are_there():
    """All types that the source handles by default are handled."""
    server = GatewayServer(GatewayConfig(auth=OPEN))

    sessions = {"session_create", "session_join", "session_leave", "session_patch"}
    assert {"ping", "connect", "auth", "presence"} | sessions <= server.handlers.types


@proves("GatewayServer.validateToken")
async def test_validate_token_may_be_overridden():
    """A subclass decides whose a token is."""

    class Own(GatewayServer):
        async def validate_token(self, token: str) -> Identity | None:
            return Identity(user_id="ada") if token == "open sesame" else None

    async with Own() as server:
        wrong = await PeerClient(server).ask("auth", {"token": "x"})
        right = await PeerClient(server).ask("auth", {"token": "open sesame"})

    assert wrong.data()["code"] == "AUTH_FAILED"
    assert right.data()["userId"] == "ada"


@proves("GatewayServer.registerHandler", "MessageHandler")
async def test_a_registered_handler_answers_its_type(server):
    """Plain functions and coroutine functions may be registered."""

    async def handler(client: Any, message: Any) -> dict[str, Any]:
        return {"hello": client.user_id}

    server.register_handler("my_custom_type", handler)

    answer = await PeerClient(server).ask("my_custom_type")
    assert answer.data() == {"hello": "local"}


@proves("GatewayServer.onConnect", "GatewayServer.onMessage", "GatewayServer.onDisconnect")
@proves("client:connect", "client:disconnect")
async def test_a_transport_drives_the_server(server):
    """Any carrier can: it hands in a pipe, then frames, and says when it ends."""
    connected, gone = heard(server, "client:connect"), heard(server, "client:disconnect")
    transport = MemoryTransport()

    client = server.on_connect(transport)
    server.on_message(client, '{"type":"ping","id":"1"}')
    server.on_disconnect(client)
    server.on_disconnect(client)

    assert [decode_message(frame).type for frame in transport.sent] == ["session_info", "pong"]
    assert (connected, gone) == ([(client,)], [(client,)])


@proves("GatewayServer.broadcastToSession")
async def test_broadcast_to_session_leaves_one_out(server):
    """Every member but the excluded one gets the message."""
    ada, bob = PeerClient(server), PeerClient(server)
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})

    count = server.broadcast_to_session("lobby", create_message("news", {}), ada.client.id)
    await bob.next("news")

    assert count == 1
    assert "news" not in [message.type for message in ada.received()]


@proves("GatewayServer.sendToClient")
async def test_send_to_client_reaches_one(server):
    """An unknown client is told by False."""
    peer = PeerClient(server)

    sent = server.send_to_client(peer.client.id, create_message("news", {}))

    assert sent
    assert (await peer.next("news")).type == "news"
    assert not server.send_to_client("nobody", create_message("news", {}))


@proves("GatewayServer.start", "GatewayServer.stop", "started", "stopped")
async def test_start_and_stop_are_told_and_harmless_twice():
    """Each happens once, however often it is asked for."""
    server = GatewayServer(GatewayConfig(auth=OPEN))
    started, stopped = heard(server, "started"), heard(server, "stopped")

    for call in (server.start, server.start, server.stop, server.stop):
        await call()

    assert (len(started), len(stopped)) == (1, 1)


@proves("GatewayServer.getBindAddress", "bind")
@pytest.mark.parametrize(("mode", "address"), [("loopback", "127.0.0.1"), ("all", "0.0.0.0")])
def test_the_bind_address_follows_the_mode(mode, address):
    """``loopback`` is this machine, ``all`` every address."""
    server = GatewayServer(GatewayConfig(bind=mode, auth=AuthConfig(token=TOKEN)))

    assert server.get_bind_address() == address


@proves("GatewayServer.getStats")
async def test_the_stats_count_clients_and_sessions(server):
    """Clients, sessions and agents are counted."""
    await PeerClient(server).ask("session_create", {"sessionId": "lobby"})

    stats = server.get_stats()

    assert (stats["clients"], stats["sessions"], stats["agents"]["total"]) == (1, 1, 0)


@proves("EventEmitter.on", "EventEmitter.emit", "GatewayEvents")
def test_listeners_hear_events_until_they_stop():
    """A listener that raises harms no other, and an unknown event is an error."""
    server = GatewayServer(GatewayConfig(auth=OPEN))
    server.on("error", lambda error: 1 / 0)
    calls: list[object] = []
    stop = server.on("error", calls.append)

    server.events.emit("error", "first")
    stop()
    server.events.emit("error", "second")

    assert calls == ["first"]
    with pytest.raises(ValueError, match="no event"):
        server.on("client:conect", print)


@proves("getGatewayServer", "resetGatewayServer", "getWebSocketGateway", "resetWebSocketGateway")
async def test_the_singletons_are_made_once_until_reset():
    """Asking again with another configuration is an error, not silence."""
    config = WebSocketTransportConfig(port=0, auth=OPEN)
    server = trunkline.get_gateway_server(config)
    gateway = trunkline.get_websocket_gateway(config)
    try:
        assert trunkline.get_gateway_server() is server
        assert trunkline.get_websocket_gateway(config) is gateway
        with pytest.raises(ConfigError):
            trunkline.get_websocket_gateway(WebSocketTransportConfig(port=1, auth=OPEN))
    finally:
        await trunkline.reset_gateway_server()
        await trunkline.reset_websocket_gateway()
    assert trunkline.get_gateway_server(config) is not server
    await trunkline.reset_gateway_server()
