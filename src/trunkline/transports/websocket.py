"""
`WebSocketGateway`: the gateway with a listener, HTTP and WebSocket on one port.

It judges who may connect at all (Host, Origin, proxies, budgets, bearer), hands
every accepted connection to the core, and looks in one sweep which of them
still live.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from ssl import SSLContext
from typing import Any

import msgspec
import structlog
from starlette.requests import HTTPConnection

from trunkline.auth import RETRY_QUOTA, Authenticator, Credential
from trunkline.authdb import AuthDatabase
from trunkline.clients import Client, Identity, Peer, Phase
from trunkline.config import (
    DEFAULT_WS_CONFIG,
    GatewayConfig,
    JwtConfig,
    WebSocketTransportConfig,
    bind_address,
)
from trunkline.errors import (
    CloseCode,
    ConfigError,
    Disconnect,
    ErrorCode,
    GatewayError,
)
from trunkline.handlers import close_with
from trunkline.history import History
from trunkline.http.api import SAFE_METHODS, Api
from trunkline.http.app import create_app
from trunkline.http.console import console_routes
from trunkline.limits import Budget
from trunkline.messages import error_message
from trunkline.origins import HostPolicy, OriginPolicy, Refused, check_request
from trunkline.proxies import Attribution, BadForwarding, ProxyPolicy
from trunkline.records import Records
from trunkline.server import GatewayServer
from trunkline.transport import Transport
from trunkline.transports.connection import Connection, ConnectionOptions
from trunkline.transports.heads import RequestHead
from trunkline.transports.listener import Certificates, Listener, ListenerOptions, Refusal
from trunkline.transports.metrics import serve_metrics

log = structlog.get_logger(__name__)


class ClientInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is known of one connected client."""

    id: str
    user_id: str
    role: str | None
    phase: str
    device_id: str | None
    device_name: str | None
    client_type: str | None
    address: str
    connected_at: int
    """Milliseconds since the epoch."""
    sessions: list[str]
    agents: list[str]
    buffered: int
    """Bytes that wait for the client to read them."""


class DisconnectDetails(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection ended."""

    client: Client
    code: int
    reason: str
    uptime: float
    """Seconds that it was open."""


class _Visitor:
    """One accepted WebSocket: the listener's `Receiver`, and its heartbeat."""

    __slots__ = (
        "_gateway",
        "_proof",
        "client",
        "connection",
        "peer",
        "pinged_at",
        "quiet_since",
        "stranger",
    )

    def __init__(
        self,
        gateway: WebSocketGateway,
        peer: Peer,
        proof: Identity | Awaitable[Identity] | None,
        *,
        stranger: bool,
    ) -> None:
        self.stranger = stranger
        """Whether it takes a place among those that have not signed in."""
        self._gateway = gateway
        self._proof = proof
        self.peer = peer
        self.client: Client | None = None
        self.connection: Connection | None = None
        self.quiet_since = 0.0
        self.pinged_at: float | None = None

    def opened(self, transport: Transport) -> None:
        """The connection is open: tell the core."""
        assert isinstance(transport, Connection)
        self.connection = transport
        self.quiet_since = time.monotonic()
        identity = self._proof if isinstance(self._proof, Identity) else None
        self._gateway._opened(self, transport, identity)
        if identity is None and self._proof is not None:
            assert self.client is not None
            assert isinstance(self._proof, Awaitable)
            self._gateway._prove(self.client, self._proof)
        self._proof = None

    def received(self, text: str) -> None:
        """One message came."""
        client = self.client
        if client is None:
            return
        if client.phase is not Phase.READY and not self._affordable(client, text):
            return
        limit = self._gateway._soft_limit
        # A character has at most four bytes, so most messages need no counting.
        if len(text) * 4 > limit and len(text.encode()) > limit:
            self._refuse(client, limit)
            return
        self._gateway.on_message(client, text)

    def _affordable(self, client: Client, text: str) -> bool:
        client.received_bytes += len(text.encode())
        if client.received_bytes <= self._gateway.config.limits.pre_auth_bytes:
            return True
        close_with(client, CloseCode.POLICY, "too many bytes before sign-in")
        return False

    def too_large(self, limit: int) -> None:
        """A message was above the limit; the connection closes after this."""
        if self.client is not None:
            self._refuse(self.client, limit)

    @staticmethod
    def _refuse(client: Client, limit: int) -> None:
        error = GatewayError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"a message may have {limit} bytes",
            details={"limit": limit},
        )
        client.send(error_message(error))

    def lagging(self, yes: bool) -> None:
        """The client's buffer has grown long, or has been read."""
        if self.client is None:
            return
        if yes:
            self._gateway.on_lagging(self.client)
        else:
            self._gateway.on_drained(self.client)

    def closed(self, code: int, reason: str) -> None:
        """The connection is gone."""
        self._gateway._closed(self, code, reason)


class WebSocketGateway(GatewayServer):
    """
    The gateway with a listener.

    ``async with WebSocketGateway(config) as gateway:`` and `start` / `stop` are
    the same thing.

    Args:
        config: The configuration; the defaults if absent.
        authenticator: Knows credentials; see `GatewayServer`.
        history: Where the sessions' logs live; absent: in memory.
        records: Where small facts live; absent: in memory.
        authdb: Where stored credentials and users live; see `GatewayServer`.
        failpoint: See `trunkline.fanout.Pump`.

    Raises:
        ConfigError: The configuration is unsafe or contradicts itself.
    """

    config: WebSocketTransportConfig

    def __init__(
        self,
        config: WebSocketTransportConfig | None = None,
        *,
        authenticator: Authenticator | None = None,
        history: History | None = None,
        records: Records | None = None,
        authdb: AuthDatabase | None = None,
        failpoint: Callable[[str], None] | None = None,
    ) -> None:
        config = config or DEFAULT_WS_CONFIG
        super().__init__(
            config,
            authenticator=authenticator,
            history=history,
            records=records,
            authdb=authdb,
            failpoint=failpoint,
        )
        self._origins, self._proxies = _policies(config)
        self._hosts = self._host_policy(config, config.port or 1)
        limits = config.limits
        self._strangers = Budget(limits.pre_auth_connections, limits.pre_auth_per_address)
        self._soft_limit = limits.max_message_size
        self._listener: Listener | None = None
        self._metrics: Listener | None = None
        self._certificates: Certificates | None = None
        self._visitors: dict[str, _Visitor] = {}
        self._heart: asyncio.Task[None] | None = None
        self._proofs: set[asyncio.Task[None]] = set()
        self.api = Api(self, self)
        """The HTTP API."""
        self.on("client:auth", self._signed_in)
        if self.pairing is not None:
            self.pairing.waits_now.append(self._waits)

    def _jwt_verifier(self, config: JwtConfig) -> Authenticator | None:
        if not config.enabled:
            return None
        from trunkline.jwts import JwtVerifier  # slow to import, and few gateways need it

        return JwtVerifier(config)

    @staticmethod
    def _host_policy(config: WebSocketTransportConfig, port: int) -> HostPolicy:
        return HostPolicy(bind_address(config), port, config.origins.allowed_hosts)

    def reconfigure(self, config: GatewayConfig) -> None:
        """
        Go by another configuration, and read the certificate anew.

        Connections that are open keep their certificate and the limits of their buffers. What
        cannot change while the gateway runs must be as it was; see `trunkline.reloads`.

        Raises:
            ConfigError: It is unsafe or contradicts itself; nothing has changed.
        """
        assert isinstance(config, WebSocketTransportConfig)
        # All that can fail comes first.
        origins, proxies = _policies(config)
        hosts = self._host_policy(config, self.port or 1)
        context = self._read_certificate()
        super().reconfigure(config)
        self._origins, self._proxies, self._hosts = origins, proxies, hosts
        if self._certificates is not None and context is not None:
            self._certificates.use(context)
        limits = config.limits
        self._strangers.reconfigure(limits.pre_auth_connections, limits.pre_auth_per_address)
        self._soft_limit = limits.max_message_size
        if self._listener is not None:
            self._listener.options = self._connection_options()
            self._listener.listening = self._listener_options()

    def _read_certificate(self) -> SSLContext | None:
        try:
            return None if self._certificates is None else self._certificates.read()
        except OSError as error:
            tls = self.config.tls
            raise ConfigError(f"{tls.cert} and {tls.key} do not work: {error}") from None

    # Life

    async def start(self) -> None:
        """
        Start the core and listen; a second call does nothing.

        Raises:
            OSError: The address cannot be listened on, or a TLS file not be read.
        """
        if self._listener is not None:
            return
        tls = self.config.tls
        self._certificates = Certificates(tls.cert, tls.key) if tls.cert and tls.key else None
        await super().start()
        try:
            self._listener = await Listener.start(
                self.get_bind_address(),
                self.config.port,
                on_head=self._on_head,
                http_app=create_app(
                    ready=lambda: self.ready, routes=[*console_routes(), *self.api.routes()]
                ),
                options=self._connection_options(),
                listening=self._listener_options(),
                guard=self._guard,
                ssl=None if self._certificates is None else self._certificates.context,
                on_error=self._listener_failed,
            )
            self._metrics = await serve_metrics(
                self.config.metrics,
                self.api.metrics_routes(),
                ready=lambda: self.ready,
                on_error=self._listener_failed,
            )
        except BaseException:
            if self._listener is not None:
                listener, self._listener = self._listener, None
                await listener.stop()
            await super().stop()
            raise
        self._hosts = self._host_policy(self.config, self._listener.port)
        self._heart = asyncio.get_running_loop().create_task(self._beat_forever())

    @property
    def metrics_port(self) -> int | None:
        """The port of the metrics; None where they have none."""
        return self._metrics.port if self._metrics is not None else None

    def _listener_options(self) -> ListenerOptions:
        most = self.config.limits.http_connections
        return ListenerOptions(path=self.config.path, max_http=most)

    def _connection_options(self) -> ConnectionOptions:
        config = self.config
        return ConnectionOptions(
            max_message=config.max_frame,
            lag_bytes=config.limits.lag_bytes,
            max_buffered=config.limits.max_buffered,
            compression=config.compression.enabled,
            compress_min=config.compression.min_size,
        )

    async def stop(self) -> None:
        """Stop listening, close every connection, stop the core; a second call does nothing."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.stop_accepting()
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.wait([self._heart])
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            await metrics.stop()
        await super().stop()
        await self.api.stop()
        await listener.stop()

    @property
    def port(self) -> int:
        """The port that is listened on; the configured one while stopped."""
        return self._listener.port if self._listener is not None else self.config.port

    @property
    def address(self) -> str:
        """Where the gateway is reached, as a URL."""
        scheme = "https" if self.config.tls.cert else "http"
        host = self.get_bind_address()
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _listener_failed(self, error: BaseException) -> None:
        log.error("listener failed", error=repr(error))
        self.events.emit("error", error)

    # Who may connect

    def _guard(self, head: RequestHead, address: Any, local: Any, tls: bool) -> Refusal | None:
        """Judge the Host, the Origin and the proxies of any request."""
        try:
            told = self._proxies.attribute(address[0], head.headers)
            self._check_names(head, told, local[0], tls)
        except (Refused, BadForwarding) as refused:
            return Refusal(refused.status, refused.reason)
        return None

    def _check_names(self, head: RequestHead, told: Attribution, local: str, tls: bool) -> None:
        scheme = told.scheme or ("https" if tls else "http")
        host: list[bytes | str] = [told.host] if told.host is not None else [*head.all(b"host")]
        origin = head.all(b"origin")
        if not head.is_upgrade and head.method in SAFE_METHODS and not origin:
            self._hosts.check(host, scheme=scheme, local_address=local)
            return
        check_request(
            self._hosts,
            self._origins,
            host=host,
            origin=origin,
            scheme=scheme,
            local_address=local,
            sec_fetch_site=head.get(b"sec-fetch-site") is not None,
            ambient_credential=told.user is not None or head.get(b"cookie") is not None,
        )

    def _on_head(self, head: RequestHead, address: Any, tls: bool) -> _Visitor | Refusal:
        """Judge an upgrade whose names are right: budgets, then the bearer."""
        if not self.ready:
            return Refusal(503, "the gateway is stopping", (("Retry-After", "5"),))
        if len(self._visitors) >= self.config.limits.max_connections:
            return Refusal(503, "the gateway has no room", (("Retry-After", "5"),))
        told = self._proxies.attribute(address[0], head.headers)
        peer = _peer(told)
        proof: Identity | Awaitable[Identity] | None = None
        bearer = head.get(b"authorization")
        if bearer is not None and self.config.auth.required:
            try:
                proof = self._judge_bearer(bearer, peer)
            except GatewayError as error:
                return _unauthorized(error)
        if isinstance(proof, Identity) and not self.door.has_room(proof):
            wait = str(round(RETRY_QUOTA))
            return Refusal(429, "this user has too many connections", (("Retry-After", wait),))
        stranger = self.config.auth.required and not isinstance(proof, Identity)
        if stranger and not self._strangers.take(peer.key):
            return Refusal(503, "too many wait for sign-in", (("Retry-After", "5"),))
        return _Visitor(self, peer, proof, stranger=stranger)

    def peer_of(self, request: HTTPConnection) -> Peer:
        """Return where a plain request comes from; its head was judged by `_guard`."""
        address = request.client.host if request.client is not None else ""
        return _peer(self._proxies.attribute(address, request.headers.raw))

    def _judge_bearer(self, header: bytes, peer: Peer) -> Identity | Awaitable[Identity]:
        scheme, _, token = header.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise GatewayError(ErrorCode.AUTH_FAILED, "Authorization must be: Bearer TOKEN")
        return self.door.check(Credential(token=token.strip()), peer)

    def _prove(self, client: Client, proof: Awaitable[Identity]) -> None:
        """Finish a bearer that its authenticator has to wait for; frames queue behind it."""
        client.busy = True

        async def finish() -> None:
            try:
                self.door.admit(client, await proof)
            except GatewayError as error:
                client.send(error_message(error))
                close_with(client, CloseCode.REVOKED, "the credential is wrong")
            except Disconnect as error:
                client.transport.close(error.code, error.reason)
            except Exception:
                log.exception("authenticator failed", client=client.id)
                close_with(client, CloseCode.INTERNAL, "the credential cannot be judged")
            finally:
                self.handlers.release(client)

        task = asyncio.get_running_loop().create_task(finish())
        self._proofs.add(task)
        task.add_done_callback(self._proofs.discard)

    # A connection's life

    def _opened(self, visitor: _Visitor, connection: Connection, identity: Identity | None) -> None:
        if identity is None and self.config.auth.required:
            connection.max_message = self.config.limits.pre_auth_message_size
        visitor.client = client = self.on_connect(connection, visitor.peer, identity)
        self._visitors[client.id] = visitor

    def _signed_in(self, client: Client) -> None:
        visitor = self._visitors.get(client.id)
        if visitor is not None and visitor.connection is not None:
            visitor.connection.max_message = self.config.max_frame
            self._known(visitor)

    def _waits(self, client: Client) -> None:
        # Those that wait for their pairing have a budget of their own.
        visitor = self._visitors.get(client.id)
        if visitor is not None:
            self._known(visitor)

    def _known(self, visitor: _Visitor) -> None:
        """Free the place of a visitor that is no stranger any more."""
        if visitor.stranger:
            visitor.stranger = False
            self._strangers.give(visitor.peer.key)

    def _closed(self, visitor: _Visitor, code: int, reason: str) -> None:
        self._known(visitor)
        client = visitor.client
        if client is None or self._visitors.pop(client.id, None) is None:
            return
        self.on_disconnect(client, code, reason)
        details = DisconnectDetails(
            client=client,
            code=code,
            reason=reason,
            uptime=time.monotonic() - client.opened_at,
        )
        self.events.emit("client:disconnect:details", details)

    # The heartbeat

    async def _beat_forever(self) -> None:
        while True:
            # Three sweeps decide on a silent peer; all may be late by one interval.
            await asyncio.sleep(min(0.25, self.config.heartbeat_timeout / 4))
            self._beat(time.monotonic())

    def _beat(self, now: float) -> None:
        """Ping those that are quiet, drop those that do not answer: one sweep for all."""
        quiet = now - self.config.heartbeat_interval
        overdue = now - self.config.heartbeat_timeout
        for visitor in list(self._visitors.values()):
            connection = visitor.connection
            if connection is None:
                continue
            if connection.heard or self._held_back(visitor):
                connection.heard = False
                visitor.quiet_since = now
                visitor.pinged_at = None
                if visitor.client is not None:
                    self.note_life(visitor.client)
            elif visitor.pinged_at is not None:
                if visitor.pinged_at <= overdue and visitor.client is not None:
                    close_with(visitor.client, CloseCode.GOING_AWAY, "no answer to a ping")
            elif visitor.quiet_since <= quiet:
                visitor.pinged_at = now
                connection.ping()

    @staticmethod
    def _held_back(visitor: _Visitor) -> bool:
        """Whether we do not listen ourselves: reading may be paused behind a slow handler."""
        client = visitor.client
        return client is not None and client.busy and bool(client.inbox)

    # Telling

    def get_client_info(self, client_id: str) -> ClientInfo | None:
        """Return what is known of a client; None if it is not connected."""
        client = self.clients.get(client_id)
        if client is None:
            return None
        return ClientInfo(
            id=client.id,
            user_id=client.user_id,
            role=client.role,
            phase=client.phase.value,
            device_id=client.device_id,
            device_name=client.device_name,
            client_type=client.client_type,
            address=client.peer.address,
            connected_at=client.connected_at,
            sessions=sorted(client.sessions),
            agents=sorted(client.agents),
            buffered=client.transport.buffered(),
        )

    def get_websocket_stats(self) -> dict[str, Any]:
        """Return what goes on at the sockets; ``uptime`` in seconds."""
        listener = self._listener
        return {
            "uptime": self.uptime,
            "connections": len(self._visitors),
            "waiting_for_sign_in": self._strangers.count,
            "pending_heads": len(listener.pending) if listener else 0,
            "buffered_bytes": sum(c.transport.buffered() for c in self.clients),
            "address": self.address,
        }


def _peer(told: Attribution) -> Peer:
    return Peer(told.client_ip, told.key, told.local)


def _policies(config: WebSocketTransportConfig) -> tuple[OriginPolicy, ProxyPolicy]:
    required = config.auth.required
    origins = OriginPolicy(
        config.origins.allowed_origins,
        allow_any=config.origins.dangerously_allow_any_origin,
        strict=config.origins.strict,
        ambient=not required,
    )
    proxies = ProxyPolicy(
        config.proxies.trusted,
        family=config.proxies.family,
        use_forwarded_host=config.proxies.use_forwarded_host,
        auth_required=required,
    )
    return origins, proxies


def _unauthorized(error: GatewayError) -> Refusal:
    if error.code == ErrorCode.AUTH_LOCKED:
        wait = str(max(1, round(error.retry_after or 1)))
        return Refusal(429, error.message, (("Retry-After", wait),))
    return Refusal(401, error.message, (("WWW-Authenticate", "Bearer"),))
