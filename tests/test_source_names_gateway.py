"""The source document's names of the gateway with a listener, its agents, settings and events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from source_table import heard, proves
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

import trunkline
from trunkline import (
    DEFAULT_WS_CONFIG,
    ConfigError,
    GatewayConfig,
    GatewayServer,
    Identity,
    WebSocketGateway,
    WebSocketTransportConfig,
    create_message,
)
from trunkline.config import (
    AuthConfig,
    CompressionConfig,
    LimitsConfig,
    OriginConfig,
    ProxyConfig,
    convert_config,
)
from trunkline.messages import decode_message, encode
from trunkline.origins import HostPolicy, OriginPolicy, Refused, check_request
from trunkline.payloads import AgentCapabilities, AgentRegister
from trunkline.testing import PeerClient

TOKEN = "a-token-for-this-test"
NODE = Identity(user_id="nora", roles=frozenset({"node"}))
OPEN = AuthConfig(mode="none")
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def listening(**settings: Any) -> WebSocketTransportConfig:
    """A configuration on a free port, with a token unless it says otherwise."""
    return WebSocketTransportConfig(**{"port": 0, "auth": AuthConfig(token=TOKEN), **settings})


@pytest.fixture
async def gateway():
    async with WebSocketGateway(listening()) as running:
        yield running


@pytest.fixture
async def server():
    async with GatewayServer(GatewayConfig(auth=OPEN)) as running:
        yield running


def websocket(gateway: WebSocketGateway, **options: Any) -> Any:
    url = f"ws://127.0.0.1:{gateway.port}{gateway.config.path}"
    return open_websocket(url, **{"additional_headers": BEARER, **options})


async def receive(socket: Any) -> trunkline.GatewayMessage:
    return decode_message(await socket.recv())


async def welcomed(socket: Any) -> str:
    """Take the welcome; returns the connection's id."""
    return str((await receive(socket)).data()["sessionId"])


class Listening(ClientConnection):
    """A client that notes when it is pinged."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pinged = asyncio.Event()

    def process_event(self, event: Any) -> None:
        if getattr(event, "opcode", None) is Opcode.PING:
            self.pinged.set()
        super().process_event(event)


# WebSocketGateway


@proves("WebSocketGateway", "WebSocketGateway.constructor", "WebSocketTransportConfig")
@proves("DEFAULT_WS_CONFIG")
def test_the_gateway_is_the_server_with_a_listener():
    """It takes the same arguments, and its own configuration or the defaults."""
    gateway = WebSocketGateway(listening(path="/talk"))

    assert isinstance(gateway, GatewayServer)
    assert gateway.config.path == "/talk"
    assert (DEFAULT_WS_CONFIG.port, DEFAULT_WS_CONFIG.path) == (18789, "/ws")


@proves("WebSocketGateway.start", "WebSocketGateway.stop")
@proves("WebSocketGateway.startHeartbeat", "WebSocketGateway.stopHeartbeat", "heartbeatInterval")
async def test_a_started_gateway_listens_and_beats_until_it_stops():
    """A quiet client that answers pings stays; after the stop nobody can connect."""
    gateway = WebSocketGateway(listening(heartbeat_interval=0.02, heartbeat_timeout=0.1))
    await gateway.start()
    await gateway.start()
    async with websocket(gateway, create_connection=Listening) as socket:
        await socket.pinged.wait()
        answered = await (await socket.ping())
        await gateway.stop()
        await gateway.stop()

    assert answered >= 0
    with pytest.raises(OSError, match="Connect call failed"):
        async with websocket(gateway):
            pass


@proves("WebSocketGateway.verifyClient")
def test_the_names_of_a_request_are_judged_before_the_upgrade():
    """A page that is not listed is refused with 403."""
    hosts, origins = HostPolicy("127.0.0.1", 18789, ()), OriginPolicy(["https://ok.example"])
    ours = {"host": [b"127.0.0.1:18789"]}

    check_request(hosts, origins, origin=[b"https://ok.example"], **ours)
    with pytest.raises(Refused) as refused:
        check_request(hosts, origins, origin=[b"https://evil.example"], **ours)

    assert refused.value.status == 403


@proves("corsOrigins")
async def test_a_page_connects_only_from_a_listed_origin():
    """The decision is made on the wire too."""
    config = listening(origins=OriginConfig(allowed_origins=("https://ok.example",)))
    async with WebSocketGateway(config) as gateway:
        async with websocket(gateway, origin="https://ok.example") as socket:
            assert await welcomed(socket)
        with pytest.raises(InvalidStatus, match="403"):
            async with websocket(gateway, origin="https://evil.example"):
                pass


@proves("isOriginAllowed")
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://a.example.com", True),
        ("https://a.b.example.com", False),
        ("https://example.com.evil.net", False),
        (None, True),
    ],
)
def test_a_wildcard_stands_for_one_label(origin, allowed):
    """Patterns admit what they say and nothing near it."""
    assert trunkline.is_origin_allowed(origin, ["https://*.example.com"]) is allowed


@proves("WebSocketGateway.handleConnection", "WebSocketGateway.handleMessage")
@proves("WebSocketGateway.handleDisconnect", "WebSocketClient", "client:disconnect:details")
async def test_a_socket_is_welcomed_heard_and_let_go(gateway):
    """The end is told once, with code, reason and how long it lasted."""
    details = heard(gateway, "client:disconnect:details")
    over = heard(gateway, "client:disconnect")

    async with websocket(gateway) as socket:
        client = gateway.clients.get(await welcomed(socket))
        await socket.send('{"type":"ping","id":"1"}')
        pong = await receive(socket)
    async with websocket(gateway) as socket:
        await welcomed(socket)

    assert isinstance(client, trunkline.Client)
    assert pong.reply_to == "1"
    assert over[0] == (client,)
    assert (details[0][0].client, details[0][0].code) == (client, 1000)
    assert details[0][0].uptime >= 0


@proves("WebSocketGateway.sendToClient", "WebSocketGateway.broadcast")
async def test_messages_are_sent_to_one_or_to_all_that_a_filter_takes(gateway):
    """The count says to how many."""
    async with websocket(gateway) as first, websocket(gateway) as second:
        one, two = await welcomed(first), await welcomed(second)
        told = gateway.send_to_client(one, create_message("news", {"n": 1}))
        count = gateway.broadcast(create_message("news", {"n": 2}), lambda c: c.id == two)

        assert (told, count) == (True, 1)
        assert (await receive(first)).data() == {"n": 1}
        assert (await receive(second)).data() == {"n": 2}


@proves("WebSocketGateway.broadcastToSession")
async def test_a_session_hears_what_is_broadcast_to_it(gateway):
    """Two real sockets; the one that is left out hears nothing of it."""
    async with websocket(gateway) as first, websocket(gateway) as second:
        one, _ = await welcomed(first), await welcomed(second)
        for socket, type in ((first, "session_create"), (second, "session_join")):
            await socket.send(encode(create_message(type, {"sessionId": "lobby"})).decode())
            await receive(socket)

        count = gateway.broadcast_to_session("lobby", create_message("news", {}), one)

        assert count == 1
        assert (await receive(second)).type == "news"


@proves("WebSocketGateway.getWebSocketStats", "WebSocketGateway.getClientInfo")
async def test_the_stats_and_infos_are_those_of_the_sockets(gateway):
    """The uptime is a duration, and the address the peer's."""
    async with websocket(gateway) as socket:
        client_id = await welcomed(socket)
        stats, info = gateway.get_websocket_stats(), gateway.get_client_info(client_id)

    assert stats["connections"] == 1
    assert 0 < stats["uptime"] < 60
    assert info is not None
    assert (info.user_id, info.address) == ("owner", "127.0.0.1")
    assert gateway.get_client_info("nobody") is None


@proves("WebSocketGateway.kickClient")
async def test_a_kicked_client_is_closed_with_4004(gateway):
    """The reason reaches it, and tells it not to come back by itself."""
    async with websocket(gateway) as socket:
        kicked = gateway.kick_client(await welcomed(socket), "bye")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()

    assert kicked
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4004, "reconnect=no;bye")


# AgentRegistry


def helper(**more: Any) -> AgentRegister:
    able = AgentCapabilities(chat=True, tools=["sum"])
    return AgentRegister(id="helper", agent_type="pi", capabilities=able, **more)


@proves("AgentRegistry", "RegisteredAgent", "AgentRegistry.register", "AgentRegistry.getAgent")
@proves("agent:registered")
async def test_an_agent_is_registered_and_found(server):
    """Every gateway has a registry, and says when an agent comes."""
    registered = heard(server, "agent:registered")

    agent = await server.agents.register(helper(), PeerClient(server, NODE).client)

    assert isinstance(server.agents, trunkline.AgentRegistry)
    assert isinstance(agent, trunkline.RegisteredAgent)
    assert server.agents.get_agent("helper") is agent
    assert registered == [(agent,)]


@proves("AgentRegistry.unregister", "agent:unregistered")
async def test_an_unregistered_agent_is_gone(server):
    """False says that there was none."""
    gone = heard(server, "agent:unregistered")
    agent = await server.agents.register(helper())

    first, second = server.agents.unregister("helper"), server.agents.unregister("helper")

    assert (first, second) == (True, False)
    assert gone == [(agent,)]


@proves("AgentRegistry.updateStatus", "agent:status-changed")
async def test_a_status_is_updated_and_told(server):
    """An agent may be busy, and still be asked."""
    changes = heard(server, "agent:status-changed")
    agent = await server.agents.register(helper(), PeerClient(server, NODE).client)

    server.agents.update_status("helper", "busy")

    assert agent.status == "busy"
    assert changes == [(agent,)]


@proves("AgentRegistry.getAllAgents", "AgentRegistry.getOnlineAgents", "agent:offline")
async def test_an_agent_whose_connection_ends_is_offline(server):
    """It stays in the list of all, and nobody has to say it."""
    offline = heard(server, "agent:offline")
    peer = PeerClient(server, NODE)
    agent = await server.agents.register(helper(), peer.client)
    before = server.agents.get_online_agents()

    peer.disconnect()

    assert before == [agent]
    assert server.agents.get_online_agents() == []
    assert server.agents.get_all_agents() == [agent]
    assert offline == [(agent,)]


@proves("AgentRegistry.findByCapability", "AgentRegistry.findByType")
async def test_agents_are_found_by_what_they_can_do_and_are(server):
    """Tools are capabilities, with and without the prefix."""
    agent = await server.agents.register(helper(), PeerClient(server, NODE).client)

    for capability in ("chat", "sum", "tools:sum"):
        assert server.agents.find_by_capability(capability) == [agent]
    assert server.agents.find_by_type("pi") == [agent]
    assert server.agents.find_by_type("webchat") == []


@proves("AgentRegistry.broadcastToAgents", "AgentRegistry.getStats")
async def test_agents_are_told_and_counted(server):
    """A filter chooses among the online ones."""
    peer = PeerClient(server, NODE)
    await server.agents.register(helper(), peer.client)

    none = server.agents.broadcast_to_agents(create_message("news", {}), lambda agent: False)
    one = server.agents.broadcast_to_agents(create_message("news", {}))

    assert (none, one) == (0, 1)
    assert (await peer.next("news")).type == "news"
    assert server.agents.get_stats() == {"total": 1, "online": 1, "by_type": {"pi": 1}}


# Configuration


@proves("authEnabled", "authMode", "authPassword")
async def test_clients_sign_in_as_the_configuration_says():
    """With a password, with a token, or not at all."""
    for auth, credential in (
        (AuthConfig(mode="password", password="open sesame"), {"password": "open sesame"}),
        (AuthConfig(token=TOKEN), {"token": TOKEN}),
        (AuthConfig(enabled=False), {}),
    ):
        async with GatewayServer(GatewayConfig(auth=auth)) as server:
            peer = PeerClient(server)
            welcome = await peer.next()
            answer = await peer.ask("auth", credential)

        assert welcome.data()["authRequired"] is auth.required
        assert answer.type == "auth_success"


@proves("connectionTimeoutMs")
async def test_a_client_that_does_not_sign_in_in_time_is_closed():
    """The time is seconds, and the close code 4001."""
    auth = AuthConfig(token=TOKEN, timeout=0)
    async with GatewayServer(GatewayConfig(auth=auth)) as server:
        peer = PeerClient(server)
        peer.client.connected_at -= 1

        await server.tick()

    assert peer.transport.closed is not None
    assert peer.transport.closed[0] == 4001


@proves("maxMessageSize", "maxPayload")
async def test_a_message_above_the_limit_is_an_error_and_above_the_cap_the_end():
    """``max_message_size`` refuses one message, ``max_payload`` closes with 1009."""
    limits = LimitsConfig(max_message_size=1000)
    config = listening(limits=limits, max_payload=2000)
    async with WebSocketGateway(config) as gateway, websocket(gateway) as socket:
        await welcomed(socket)
        await socket.send("x" * 1001)
        refused = await receive(socket)
        await socket.send("x" * 2001)
        await receive(socket)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()

    assert refused.data()["code"] == "MESSAGE_TOO_LARGE"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@proves("trustedProxies")
@pytest.mark.parametrize(
    ("trusted", "address"), [(("127.0.0.0/8",), "203.0.113.7"), ((), "127.0.0.1")]
)
async def test_only_a_trusted_proxy_tells_who_the_client_is(trusted, address):
    """From a trusted peer the forwarded address counts, from others nothing does."""
    config = listening(proxies=ProxyConfig(trusted=trusted))
    headers = {**BEARER, "X-Forwarded-For": "203.0.113.7"}
    async with (
        WebSocketGateway(config) as gateway,
        websocket(gateway, additional_headers=headers) as socket,
    ):
        info = gateway.get_client_info(await welcomed(socket))

    assert info is not None
    assert info.address == address


@proves("path")
async def test_the_websocket_has_one_path():
    """Another path is 404."""
    async with WebSocketGateway(listening(path="/talk")) as gateway:
        async with websocket(gateway) as socket:
            assert await welcomed(socket)
        with pytest.raises(InvalidStatus, match="404"):
            async with open_websocket(f"ws://127.0.0.1:{gateway.port}/ws"):
                pass


@proves("perMessageDeflate")
@pytest.mark.parametrize("enabled", [False, True])
async def test_compression_is_negotiated_only_where_it_is_switched_on(enabled):
    """The client offers it; the answer depends on the setting."""
    config = listening(compression=CompressionConfig(enabled=enabled))
    async with WebSocketGateway(config) as gateway, websocket(gateway) as socket:
        extensions = socket.response.headers.get("Sec-WebSocket-Extensions", "")

    assert ("permessage-deflate" in extensions) is enabled


@proves("clientTimeout")
def test_the_client_timeout_is_the_interval_and_the_wait_for_an_answer():
    """A client is gone after so many silent seconds."""
    config = listening(heartbeat_interval=10, heartbeat_timeout=3)

    assert config.client_timeout == 13


def test_the_bare_star_is_refused_as_an_origin():
    """Whoever wants every page to connect has to say so in so many words."""
    with pytest.raises(ConfigError, match="dangerously_allow_any_origin"):
        WebSocketGateway(listening(origins=OriginConfig(allowed_origins=("*",))))


def test_an_unknown_setting_is_an_error_with_its_path():
    """A typing mistake is not a default."""
    with pytest.raises(ConfigError, match=r"\$\.limits"):
        convert_config({"limits": {"max_mesage_size": 1}})


# Events


@proves("client:auth")
async def test_a_sign_in_is_told():
    """With the client, once it is who it says."""
    async with GatewayServer(GatewayConfig(auth=AuthConfig(token=TOKEN))) as server:
        signed_in = heard(server, "client:auth")
        peer = PeerClient(server)
        await peer.ask("auth", {"token": TOKEN})

    assert signed_in == [(peer.client,)]


@proves("session:create", "session:join", "session:leave")
async def test_the_life_of_a_session_is_told(server):
    """Its making, and everybody's coming and going."""
    created, joined = heard(server, "session:create"), heard(server, "session:join")
    left = heard(server, "session:leave")
    peer = PeerClient(server)

    await peer.ask("session_create", {"sessionId": "lobby"})
    session = server.sessions.get_session("lobby")
    await peer.ask("session_leave", {"sessionId": "lobby"})

    assert created == [(session,)]
    assert joined == left == [(session, peer.client)]


@proves("message")
async def test_a_type_that_nobody_handles_goes_to_the_message_event(server):
    """Without a listener it is answered by an error."""
    peer = PeerClient(server)
    refused = await peer.ask("my_type")
    messages = heard(server, "message")

    peer.send("my_type", {"n": 1})

    assert refused.data()["code"] == "UNKNOWN_TYPE"
    assert [(client, message.type) for client, message in messages] == [(peer.client, "my_type")]


@proves("error (event)")
async def test_a_failure_outside_of_any_request_is_told():
    """What goes wrong in the gateway's own sweep, which runs every second, is no secret."""
    failure = RuntimeError("the sweep failed")
    told = asyncio.get_running_loop().create_future()

    class Failing(GatewayServer):
        async def tick(self) -> None:
            raise failure

    async with Failing(GatewayConfig(auth=OPEN)) as server:
        server.on("error", told.set_result)
        error = await told

    assert error is failure
