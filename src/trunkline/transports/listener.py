"""
One listening port for HTTP and WebSocket.

A small protocol reads the head of each connection's first request. An upgrade
goes on as a `Connection`; anything else goes to an ASGI application, on a
connection that carries that one request and then closes, so that no second
head is ever read by other rules than the first.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import socket
import ssl as tls
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from trunkline.errors import CloseCode, close_reason
from trunkline.messages import SUBPROTOCOL
from trunkline.transports.connection import Connection, Outbox
from trunkline.transports.deflate import negotiate
from trunkline.transports.heads import (
    MAX_HEAD,
    BadHead,
    RequestHead,
    is_websocket_key,
    parse_head,
    secret_in_query,
    tokens,
)
from trunkline.transports.linger import linger
from trunkline.transports.receiver import ConnectionOptions, Receiver

log = logging.getLogger(__name__)

STALLED = 30.0
"""Seconds for which a reader of an HTTP answer may take nothing, before its connection is cut."""

Peer = tuple[Any, ...]
"""A socket's address, as Python spells it: host and port first."""


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer that ends the connection before anything began."""

    status: int
    """The HTTP status, 400 or above."""
    reason: str
    """A sentence for people; holds no secrets."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers besides the usual ones."""

    def encode(self) -> bytes:
        """Return the whole answer."""
        phrase = HTTPStatus(self.status).phrase
        body = msgspec.json.encode({"error": {"status": self.status, "message": self.reason}})
        lines = [f"HTTP/1.1 {self.status} {phrase}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (*_REFUSAL_HEADERS, *self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


_REFUSAL_HEADERS = (
    ("Content-Type", "application/json"),
    ("Connection", "close"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

_CROWDED = Refusal(503, "too many connections", (("Retry-After", "1"),))

OnHead = Callable[[RequestHead, Peer, bool], Receiver | Refusal | None]
"""Judges an upgrade: its head, the peer's address, whether it came by TLS. None is a 404."""

Guard = Callable[[RequestHead, Peer, Peer, bool], Refusal | None]
"""
Judges every head, before any route is looked at: the peer's address, the one
of ours that it reached, whether it came by TLS.
"""


class ListenerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and deadlines before a connection is open."""

    path: str = "/ws"
    """Where WebSockets are accepted."""
    head_timeout: float = 5.0
    """Seconds from accept to the end of the head; for TLS, the handshake has as many before."""
    max_body: int = 1024 * 1024
    """Bytes of a request body, as announced."""
    answer_timeout: float = 60.0
    """Seconds that a whole HTTP answer may take to be read once it was made."""
    max_pending: int = 1024
    """Connections whose head has not come yet; more are refused with 503."""
    max_refused: int = 128
    """Connections past `max_pending` that are told so; more are cut without a word."""
    max_http: int = 512
    """Connections with a plain request, streams of events among them; more are refused with 503."""
    backlog: int = 1024
    """Connections that the kernel keeps while the gateway is busy."""
    stop_timeout: float = 5.0
    """Seconds that open HTTP answers have when the listener stops."""


def make_ssl_context(cert: str, key: str) -> tls.SSLContext:
    """
    Make a server's TLS context: 1.2 or newer.

    Args:
        cert: Path of the certificate chain, in PEM.
        key: Path of its private key, in PEM.

    Raises:
        OSError: A file cannot be read; `ssl.SSLError` is one too.
    """
    context = tls.SSLContext(tls.PROTOCOL_TLS_SERVER)
    context.minimum_version = tls.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Certificates:
    """
    A certificate and its key, which can be read anew under open connections.

    Args:
        cert: Path of the certificate chain, in PEM.
        key: Path of its private key, in PEM.

    Raises:
        OSError: A file cannot be read; `ssl.SSLError` is one too.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key
        self.context = self._current = self.read()
        """What a listener is started with."""
        # Files cannot be loaded into a context in use: if the second of them is wrong, the
        # first is there already. So each handshake is handed to the newest whole context.
        self.context.sni_callback = self._hand_over

    def read(self) -> tls.SSLContext:
        """
        Read the files as they are now, for `use`.

        Raises:
            OSError: They cannot be read, or do not belong together.
        """
        return make_ssl_context(self._cert, self._key)

    def use(self, context: tls.SSLContext) -> None:
        """Show new connections another certificate; open ones keep theirs."""
        self._current = context

    def _hand_over(self, handshake: tls.SSLObject, name: str | None, _: tls.SSLContext) -> None:
        handshake.context = self._current


class Listener:
    """
    A port that is being listened on; made by `start`.

    Attributes:
        pending: Sockets whose head has not come yet.
        connections: The open WebSockets.
    """

    def __init__(
        self,
        *,
        on_head: OnHead,
        http_app: Any,
        options: ConnectionOptions,
        listening: ListenerOptions,
        guard: Guard | None,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.on_head = on_head
        self.options = options
        self.listening = listening
        self.guard = guard
        self.on_error = on_error
        self.pending: set[OnePort] = set()
        self.connections: set[Connection] = set()
        self._http = _Http(http_app, listening.answer_timeout)
        self._outbox = Outbox()
        self._idle = asyncio.Event()

    @classmethod
    async def start(
        cls,
        host: str | list[str],
        port: int,
        *,
        on_head: OnHead,
        http_app: Any,
        options: ConnectionOptions | None = None,
        listening: ListenerOptions | None = None,
        guard: Guard | None = None,
        ssl: tls.SSLContext | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> Listener:
        """
        Listen on `host` and `port`; port 0 lets the kernel choose.

        Args:
            on_head: Judges each upgrade on the path of `listening`.
            http_app: The ASGI application for everything else.
            options: Limits of each WebSocket.
            listening: Limits before that.
            guard: Judges every head, upgrades among them, before its route.
            ssl: What `make_ssl_context` made, or None for plain TCP.
            on_error: Hears of failures that no client can be told of.

        Raises:
            OSError: The address cannot be listened on.
        """
        listener = cls(
            on_head=on_head,
            http_app=http_app,
            options=options or ConnectionOptions(),
            listening=listening or ListenerOptions(),
            guard=guard,
            on_error=on_error or _log_error,
        )
        await listener._listen(host, port, ssl)
        return listener

    async def _listen(self, host: str | list[str], port: int, ssl: tls.SSLContext | None) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: OnePort(self),
            host,
            port,
            backlog=self.listening.backlog,
            ssl=ssl,
            ssl_handshake_timeout=None if ssl is None else self.listening.head_timeout,
        )

    @property
    def addresses(self) -> list[Peer]:
        """The addresses that are listened on."""
        return [listening.getsockname() for listening in self._server.sockets]

    @property
    def port(self) -> int:
        """The first port that is listened on."""
        return int(self.addresses[0][1])

    @property
    def http_connections(self) -> int:
        """How many connections have a plain request, answered or not."""
        return len(self._http.state.connections)

    def stop_accepting(self) -> None:
        """Take no new connections; those that are open stay."""
        self._server.close()

    async def stop(self) -> None:
        """Stop listening, close every connection, and wait until all are gone."""
        self.stop_accepting()
        for head in list(self.pending):
            head.abort()
        for connection in list(self.connections):
            connection.close(CloseCode.GOING_AWAY, close_reason(CloseCode.GOING_AWAY))
        await self._http.stop(self.listening.stop_timeout)
        self._idle.clear()
        self._check_idle()
        await self._idle.wait()

    # What the connections call

    def accept(
        self, transport: asyncio.Transport, head: RequestHead, receiver: Receiver, rest: bytes
    ) -> None:
        """Make a socket whose upgrade was granted a `Connection`."""
        extension = None
        if self.options.compression:
            extension = negotiate(head.all(b"sec-websocket-extensions"))
        connection = Connection(
            receiver,
            self.options,
            deflate=extension is not None,
            outbox=self._outbox,
            ended=self._connection_ended,
        )
        self.connections.add(connection)
        connection.open(transport, _switching(head, extension), rest)

    def answer(self, transport: asyncio.Transport, head: RequestHead, rest: bytes) -> None:
        """Hand a socket with a plain request over to the application."""
        self._http.take(transport, _one_request(head) + rest, self._check_idle)

    def head_ended(self, head: OnePort) -> None:
        """Note that a socket is past its head, one way or another."""
        self.pending.discard(head)
        self._check_idle()

    def _connection_ended(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._check_idle()

    def _check_idle(self) -> None:
        if not (self.pending or self.connections or self._http.state.connections):
            self._idle.set()


class OnePort(asyncio.Protocol):
    """Reads the head of a new connection, then hands the socket over and is gone."""

    __slots__ = ("_listener", "_received", "_timer", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._received = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head's deadline."""
        self._transport = transport
        listener = self._listener
        self._start_timer(listener.listening.head_timeout, self._too_late)
        listener.pending.add(self)
        over = len(listener.pending) - listener.listening.max_pending
        if over > listener.listening.max_refused:
            transport.abort()
        elif over > 0:
            self._refuse(_CROWDED)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection: its client left before the head was whole."""
        self._finish()

    def data_received(self, data: bytes) -> None:
        """Collect the head; judge it when it is whole."""
        received = self._received
        start = max(0, len(received) - 3)
        received += data
        end = received.find(b"\r\n\r\n", start) + 4
        if end < 4:
            self._check_unfinished()
            return
        try:
            self._route(parse_head(bytes(received[:end])), bytes(received[end:]))
        except BadHead as error:
            self._refuse(Refusal(error.status, error.reason))
        except Exception as error:
            self._listener.on_error(error)
            self._refuse(Refusal(500, "the gateway failed"))

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def _check_unfinished(self) -> None:
        received = self._received
        if len(received) > MAX_HEAD:
            self._refuse(Refusal(431, "the head is too large"))
        elif not _could_be_http(received):
            self._refuse(Refusal(400, "the request is malformed"))

    def _route(self, head: RequestHead, rest: bytes) -> None:
        verdict = self._judge(head)
        if isinstance(verdict, Refusal):
            self._refuse(verdict)
            return
        listener = self._listener
        if verdict is None and listener.http_connections >= listener.listening.max_http:
            self._refuse(_CROWDED)
            return
        self._finish()
        if verdict is None:
            listener.answer(self._transport, head, rest)
        else:
            listener.accept(self._transport, head, verdict, rest)

    def _judge(self, head: RequestHead) -> Receiver | Refusal | None:
        """Say who takes an upgrade, or why nobody does; None leaves it to the application."""
        listener = self._listener
        if secret_in_query(head.query):
            return Refusal(400, "a credential does not belong into a URL")
        peer = self._transport.get_extra_info("peername")
        local = self._transport.get_extra_info("sockname")
        is_tls = self._transport.get_extra_info("ssl_object") is not None
        if listener.guard is not None and (refusal := listener.guard(head, peer, local, is_tls)):
            return refusal
        refusal = _misplaced(head, listener.listening)
        if refusal is not None or not head.is_upgrade:
            return refusal
        return listener.on_head(head, peer, is_tls) or Refusal(404, "no such path")

    def _refuse(self, refusal: Refusal) -> None:
        # It stays pending until its socket has closed, so that a flood of bad
        # heads is counted like any other.
        self._transport.write(refusal.encode())
        self._start_timer(self._listener.options.close_timeout, self._transport.abort)
        linger(self._transport, self._finish)

    def _too_late(self) -> None:
        self._refuse(Refusal(408, "the head did not come in time"))

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        timer = getattr(self, "_timer", None)
        if timer is not None:
            timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _finish(self) -> None:
        self._timer.cancel()
        self._listener.head_ended(self)


class _Http:
    """uvicorn's HTTP protocol, without its server."""

    def __init__(self, app: Any, answer_timeout: float) -> None:
        self._answer_timeout = answer_timeout
        self._config = Config(
            app,
            http=_OneAnswer,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._config.load()
        self.state = ServerState()

    def take(self, transport: asyncio.Transport, data: bytes, lost: Callable[[], None]) -> None:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A reader that is gone without a word, or never reads, is not waited for.
            milliseconds = round(STALLED * 1000)
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds
            )
        protocol = _OneAnswer(self._config, self.state, lost, transport.abort, self._answer_timeout)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def stop(self, timeout: float) -> None:
        for protocol in list(self.state.connections):
            protocol.shutdown()
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks), timeout=timeout)
        for task in list(self.state.tasks):
            task.cancel()
        for protocol in list(self.state.connections):
            assert isinstance(protocol, _OneAnswer)
            protocol.transport.abort()


class _OneAnswer(HttpToolsProtocol):
    """One request and its answer; the application may cut it by ``abort`` of its state."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        lost: Callable[[], None],
        abort: Callable[[], None],
        timeout: float,
    ) -> None:
        super().__init__(config, state, {"abort": abort})
        self._abort = abort
        self._lost = lost
        self._deadline: asyncio.TimerHandle | None = None
        self._timeout = timeout

    def on_response_complete(self) -> None:
        """Give the reader so long for what is left: a byte now and then keeps no connection."""
        super().on_response_complete()
        self._deadline = self.loop.call_later(self._timeout, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)
        self._lost()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(Refusal(400, "the request is malformed").encode())
        self.transport.close()


def _misplaced(head: RequestHead, listening: ListenerOptions) -> Refusal | None:
    """Refuse an upgrade elsewhere, a plain request where only upgrades are, and bad ones."""
    if not head.is_upgrade:
        if head.path != listening.path:
            return _too_big(head, listening.max_body)
        if head.method != "GET":
            return Refusal(405, "only GET, with an upgrade", (("Allow", "GET"),))
        return Refusal(426, "this path speaks WebSocket", (("Upgrade", "websocket"),))
    if head.path != listening.path:
        return Refusal(404, "no such path")
    if head.get(b"sec-websocket-version") != b"13":
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
        return Refusal(426, "only version 13 of WebSocket is spoken", headers)
    if not is_websocket_key(head.get(b"sec-websocket-key")):
        return Refusal(400, "Sec-WebSocket-Key is malformed")
    return None


def _too_big(head: RequestHead, max_body: int) -> Refusal | None:
    if int(head.get(b"content-length") or 0) > max_body:
        return Refusal(413, "the request body is too large")
    return None


def _could_be_http(data: bytearray) -> bool:
    # Tells a TLS handshake on a plain port, and lines that end in a lone LF,
    # at once instead of at the deadline.
    newline = data.find(b"\n")
    return data[:1].isupper() and newline != 0 and (newline < 0 or data[newline - 1] == 13)


def _switching(head: RequestHead, extension: bytes | None) -> bytes:
    key = head.get(b"sec-websocket-key") or b""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest),
    ]
    subprotocol = SUBPROTOCOL.encode()
    if subprotocol in tokens(head.all(b"sec-websocket-protocol")):
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol)
    if extension is not None:
        lines.append(b"Sec-WebSocket-Extensions: " + extension)
    return b"\r\n".join([*lines, b"", b""])


_HOP_BY_HOP = frozenset(
    {b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"upgrade"}
)


def _one_request(head: RequestHead) -> bytes:
    """Write the head anew, as its reader understood it, for a connection that then closes."""
    first = b"%b %b HTTP/%b" % (head.method.encode(), head.target, head.version.encode())
    lines = [b"%b: %b" % field for field in head.headers if field[0] not in _HOP_BY_HOP]
    return b"\r\n".join([first, *lines, b"connection: close", b"", b""])


def _log_error(error: BaseException) -> None:
    log.error("the listener failed", exc_info=error)
