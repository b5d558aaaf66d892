"""One port: what becomes a WebSocket, what HTTP, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rawsocket import ACCEPT, BINARY, CLOSE, TEXT, RawSocket, request, upgrade
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trunkline.transports.connection import Connection
from trunkline.transports.heads import RequestHead
from trunkline.transports.listener import (
    Listener,
    ListenerOptions,
    Peer,
    Refusal,
    make_ssl_context,
)
from trunkline.transports.receiver import ConnectionOptions


class Loud:
    """A receiver that sends every message back, and keeps its connection."""

    def opened(self, transport: Connection) -> None:
        self.connection = transport

    def received(self, text: str) -> None:
        self.connection.write(text.encode())

    def too_large(self, limit: int) -> None:
        pass

    def lagging(self, yes: bool) -> None:
        pass

    def closed(self, code: int, reason: str) -> None:
        pass


async def body(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def path(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {request.url.path}?{request.url.query}")


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.1)
    return PlainTextResponse("at last")


async def large(request: Request) -> Response:
    return PlainTextResponse(b"x" * LARGE)


LARGE = 32 * 1024 * 1024
"""Bytes; more than any socket's buffers hold."""

APP = Starlette(
    routes=[
        Route("/large", large),
        Route("/path", path),
        Route("/body", body, methods=["POST"]),
        Route("/slow", slow),
    ]
)


class Server:
    """A listener whose `on_head` a test can choose."""

    def __init__(self) -> None:
        self.listener: Listener
        self.verdict: Callable[[RequestHead, Peer, bool], object] = lambda *_: Loud()
        self.heads: list[tuple[RequestHead, Peer, bool]] = []
        self.errors: list[BaseException] = []
        self.peers: list[RawSocket] = []

    def on_head(self, head: RequestHead, peer: Peer, tls: bool) -> object:
        self.heads.append((head, peer, tls))
        return self.verdict(head, peer, tls)

    async def connect(self, data: bytes = b"", **options: object) -> RawSocket:
        peer = await RawSocket.connect(self.listener.port, **options)  # type: ignore[arg-type]
        self.peers.append(peer)
        peer.send(data)
        return peer


@asynccontextmanager
async def serving(**options: object) -> AsyncIterator[Server]:
    server = Server()
    limits = {name: options.pop(name) for name in list(options) if name in LISTENING}
    server.listener = await Listener.start(
        "127.0.0.1",
        0,
        on_head=server.on_head,  # type: ignore[arg-type]
        http_app=APP,
        options=ConnectionOptions(close_timeout=0.2),
        listening=ListenerOptions(**limits),  # type: ignore[arg-type]
        on_error=server.errors.append,
        **options,  # type: ignore[arg-type]
    )
    try:
        yield server
    finally:
        for peer in server.peers:
            await peer.close()
        await server.listener.stop()


LISTENING = set(ListenerOptions.__struct_fields__)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


class TestUpgrades:
    @pytest.mark.parametrize("connection", ["Upgrade", "keep-alive, Upgrade", "UPGRADE,close"])
    async def test_an_upgrade_is_granted(self, server: Server, connection: str) -> None:
        """The answer proves that the key was read; Firefox's Connection header passes too."""
        peer = await server.connect(upgrade(connection=connection))

        answer = await peer.head()
        peer.send_text("hello")

        assert answer.status == 101
        assert answer.headers["sec-websocket-accept"] == ACCEPT
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["connection"] == "Upgrade"
        assert "sec-websocket-protocol" not in answer.headers
        assert await peer.text() == "hello"

    @pytest.mark.parametrize(
        ("offered", "granted"),
        [("trunkline.v1", True), ("x, trunkline.v1", True), ("trunkline.v2", False)],
    )
    async def test_the_subprotocol_is_echoed(
        self, server: Server, offered: str, granted: bool
    ) -> None:
        """Only the one that is spoken, and only when it was offered."""
        peer = await server.connect(upgrade("/ws", f"Sec-WebSocket-Protocol: {offered}"))

        answer = await peer.head()

        assert answer.status == 101
        assert answer.headers.get("sec-websocket-protocol") == ("trunkline.v1" if granted else None)

    async def test_the_judge_sees_head_and_peer(self, server: Server) -> None:
        """It gets the parsed head, the peer's address, and whether there is TLS."""
        peer = await server.connect(upgrade("/ws?a=b", "X-Test: 1"))

        await peer.head()

        [(head, address, tls)] = server.heads
        assert (head.path, head.query, head.get(b"x-test")) == ("/ws", "a=b", b"1")
        assert address == peer.writer.get_extra_info("sockname")
        assert tls is False

    async def test_a_head_may_come_in_pieces(self, server: Server) -> None:
        """Even cut within the blank line."""
        data = upgrade()
        peer = await server.connect()

        for at in range(len(data)):
            peer.send(data[at : at + 1])
            await asyncio.sleep(0)
        answer = await peer.head()

        assert answer.status == 101

    async def test_no_verdict_is_404(self, server: Server) -> None:
        """The judge says None to have nothing to do with it."""
        server.verdict = lambda *_: None
        peer = await server.connect(upgrade())

        assert (await peer.answer()).status == 404

    async def test_a_refusal_is_an_answer_of_its_own(self, server: Server) -> None:
        """Status, reason and headers come from the judge, the rest is always the same."""
        server.verdict = lambda *_: Refusal(503, "draining", (("Retry-After", "5"),))
        peer = await server.connect(upgrade())

        answer = await peer.answer()

        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.body == b'{"error":{"status":503,"message":"draining"}}'
        assert answer.headers["connection"] == "close"
        assert await peer.rest() == b""

    async def test_a_failing_judge_is_an_error_of_ours(self, server: Server) -> None:
        """The client learns nothing of it, and whoever runs the gateway does."""
        failure = RuntimeError("a bug")

        def fail(*_: object) -> None:
            raise failure

        server.verdict = fail
        peer = await server.connect(upgrade())
        answer = await peer.answer()

        assert answer.status == 500
        assert b"bug" not in answer.body
        assert server.errors == [failure]


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "status", "header"),
        [
            pytest.param(request("/ws"), 426, ("upgrade", "websocket"), id="no upgrade"),
            pytest.param(request("/ws", method="POST"), 405, ("allow", "GET"), id="POST"),
            pytest.param(
                upgrade(version="8"), 426, ("sec-websocket-version", "13"), id="old version"
            ),
            pytest.param(upgrade(version=""), 426, ("upgrade", "websocket"), id="no version"),
            pytest.param(upgrade(key="short"), 400, None, id="short key"),
            pytest.param(upgrade(key="=" * 24), 400, None, id="no base64"),
            pytest.param(upgrade("/other"), 404, None, id="other path"),
            pytest.param(upgrade("/path"), 404, None, id="path of the application"),
            pytest.param(upgrade("/ws/"), 404, None, id="slash behind"),
            pytest.param(upgrade("//ws"), 404, None, id="two slashes"),
            pytest.param(upgrade("/WS"), 404, None, id="upper case"),
            pytest.param(upgrade("/%77s"), 404, None, id="encoded letter"),
            pytest.param(upgrade("/x/..%2fws"), 404, None, id="encoded slash"),
            pytest.param(upgrade("/ws;a=b"), 404, None, id="parameter"),
            pytest.param(request("/%70ath"), 404, None, id="encoded letter, HTTP"),
            pytest.param(request("/x%2f..%2fpath"), 404, None, id="encoded slash, HTTP"),
            pytest.param(request("//path"), 404, None, id="two slashes, HTTP"),
            pytest.param(request("/PATH"), 404, None, id="upper case, HTTP"),
            pytest.param(request("/path", version="HTTP/2.0"), 505, None, id="HTTP/2"),
            pytest.param(request("/path", "Host: b"), 400, None, id="two hosts"),
            pytest.param(request("/path", host=None), 400, None, id="no host"),
            pytest.param(request("/path", " folded"), 400, None, id="folded"),
            pytest.param(request("/path", *["X: y"] * 64), 431, None, id="65 headers"),
            pytest.param(request("/path", "X: " + "y" * 17_000), 431, None, id="17 kB"),
            pytest.param(b"GET /" + b"x" * 40_000, 431, None, id="no end in 40 kB"),
            pytest.param(request("/" + "x" * 9000), 414, None, id="long target"),
            pytest.param(
                request("/body", "Content-Length: 1048577", method="POST"),
                413,
                None,
                id="large body",
            ),
            pytest.param(
                upgrade("/ws", "Sec-WebSocket-Protocol: caf\xe9"), 400, None, id="subprotocol"
            ),
            pytest.param(b"GET /path HTTP/1.1\nHost: a\n\n", 400, None, id="bare LF"),
            pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, None, id="TLS"),
        ],
    )
    async def test_what_fits_no_route_is_told_so(
        self, server: Server, data: bytes, status: int, header: tuple[str, str] | None
    ) -> None:
        """A well-formed answer, then the end of the connection."""
        peer = await server.connect(data)

        answer = await peer.answer()

        assert answer.status == status
        if header is not None:
            assert answer.headers[header[0]] == header[1]
        assert await peer.rest() == b""
        assert server.heads == []

    @pytest.mark.parametrize("key", ["token", "access_token", "api_key", "password", "auth"])
    @pytest.mark.parametrize("head", [upgrade, request], ids=["upgrade", "HTTP"])
    async def test_a_credential_in_a_url_is_refused_and_not_logged(
        self,
        server: Server,
        caplog: pytest.LogCaptureFixture,
        head: Callable[[str], bytes],
        key: str,
    ) -> None:
        """On every route, and nothing of it appears anywhere."""
        caplog.set_level(logging.DEBUG)
        target = "/ws" if head is upgrade else "/path"
        peer = await server.connect(head(f"{target}?{key}=canary-4711"))

        answer = await peer.answer()

        assert answer.status == 400
        assert b"canary" not in answer.body
        assert "canary" not in caplog.text

    async def test_refusals_carry_the_security_headers(self, server: Server) -> None:
        """An error page is a page."""
        peer = await server.connect(request("/ws"))

        headers = (await peer.answer()).headers

        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"

    async def test_a_guard_judges_every_head(self) -> None:
        """Before routes are looked at, upgrade or not."""
        seen = []

        def guard(head: RequestHead, peer: Peer, local: Peer, tls: bool) -> Refusal | None:
            seen.append(head.path)
            return Refusal(421, "not this host") if head.get(b"host") != b"127.0.0.1" else None

        async with serving(guard=guard) as server:
            statuses = []
            for data in (
                request("/ws", host="evil"),
                request("/path", host="evil"),
                upgrade("/other"),
                request("/path"),
            ):
                peer = await server.connect(data)
                statuses.append((await peer.answer()).status)

        assert statuses == [421, 421, 404, 200]
        assert seen == ["/ws", "/path", "/other", "/path"]


class TestHttp:
    async def test_a_plain_request_reaches_the_application(self, server: Server) -> None:
        """With its method, path and query."""
        peer = await server.connect(request("/path?x=%20y", "Upgrade: h2c", "Connection: Upgrade"))

        answer = await peer.answer()

        assert (answer.status, answer.body) == (200, b"GET /path?x=%20y")

    async def test_an_http_1_0_request_is_answered(self, server: Server) -> None:
        """Some proxies speak nothing else to what is behind them."""
        peer = await server.connect(request("/path", version="HTTP/1.0"))

        assert (await peer.answer()).status == 200

    @pytest.mark.parametrize(
        ("header", "data"),
        [
            ("Content-Length: 11", b"hello world"),
            ("Transfer-Encoding: chunked", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        ],
    )
    async def test_a_body_is_read(self, server: Server, header: str, data: bytes) -> None:
        """Announced or in chunks, with the head or behind it."""
        peer = await server.connect(request("/body", header, method="POST") + data[:7])
        await asyncio.sleep(0.01)

        peer.send(data[7:])

        assert (await peer.answer()).body == b"hello world"

    async def test_a_damaged_body_is_refused(self, server: Server) -> None:
        """What is not a chunk ends the connection, with the usual headers."""
        head = request("/body", "Transfer-Encoding: chunked", method="POST")
        peer = await server.connect(head + b"zz\r\nhello\r\n")

        answer = await peer.answer()

        assert answer.status == 400
        assert answer.headers["x-frame-options"] == "DENY"

    @pytest.mark.parametrize(
        "first",
        [
            request("/path", "Connection: keep-alive"),
            request("/slow"),
            request("/body", "Content-Length: 2", method="POST") + b"hi",
            request("/body", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n",
        ],
    )
    async def test_a_connection_carries_one_request(self, server: Server, first: bytes) -> None:
        """What follows is never read as a second one, so nothing can be smuggled."""
        peer = await server.connect(first + request("/path?smuggled"))

        answer = await peer.answer()
        rest = await peer.rest()

        assert answer.headers["connection"] == "close"
        assert b"smuggled" not in answer.body + rest
        assert b"HTTP/1.1" not in rest


class TestDeadlines:
    async def test_a_slow_head_is_cut_off(self) -> None:
        """The deadline is absolute: bytes that trickle in do not move it."""
        async with serving(head_timeout=0.2) as server:
            started = time.monotonic()
            peers = [await server.connect() for _ in range(20)]

            async def trickle(peer: RawSocket) -> int:
                async def send() -> None:
                    for byte in upgrade():
                        peer.send(bytes([byte]))
                        await asyncio.sleep(0.02)

                task = asyncio.create_task(send())
                status = (await peer.answer()).status
                task.cancel()
                return status

            slow = asyncio.gather(*map(trickle, peers))
            await asyncio.sleep(0.05)
            good = await server.connect(upgrade())
            status = (await good.head()).status
            counted = len(server.listener.pending)

            assert status == 101
            assert counted == 20
            assert set(await slow) == {408}
            assert 0.19 < time.monotonic() - started < 5

    async def test_a_silent_client_is_cut_off(self) -> None:
        """Connecting and saying nothing holds a socket for no longer."""
        async with serving(head_timeout=0.1) as server:
            peer = await server.connect()

            assert (await peer.answer()).status == 408
            assert await peer.rest() == b""

    async def test_pending_heads_are_limited(self) -> None:
        """More sockets without a head than allowed get 503, and those before them stay."""
        async with serving(max_pending=3) as server:
            early = [await server.connect() for _ in range(3)]

            late = await server.connect()
            answer = await late.answer()
            early[0].send(upgrade())

            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert (await early[0].head()).status == 101

    async def test_a_flood_of_connections_without_heads_is_cut(self) -> None:
        """Those that are told why hold sockets too, so that they are counted as well."""
        async with serving(max_pending=1, max_refused=1) as server:
            first, second = await server.connect(), await server.connect()
            told = await second.head()

            third = await server.connect()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await third.head()
            first.send(upgrade())

            assert told.status == 503
            assert (await first.head()).status == 101

    async def test_plain_requests_are_limited(self) -> None:
        """More than allowed get 503, and WebSockets are none of them."""
        async with serving(max_http=2) as server:
            early = [await server.connect(request("/large")) for _ in range(2)]
            for peer in early:
                await peer.head()

            late = await server.connect(request("/path"))
            answer = await late.answer()
            other = await server.connect(upgrade())

            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert (await other.head()).status == 101

    async def test_a_plain_request_that_has_ended_makes_room(self) -> None:
        """However it ended."""
        async with serving(max_http=1) as server:
            early = await server.connect(request("/large"))
            await early.head()
            await early.close()
            async with asyncio.timeout(10):
                while server.listener.http_connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)

            late = await server.connect(request("/path"))

            assert (await late.answer()).status == 200

    async def test_a_head_that_is_whole_is_no_longer_pending(self, server: Server) -> None:
        """Open WebSockets are counted by themselves, and leave when they end."""
        peer = await server.connect(upgrade())
        await peer.head()
        counts = len(server.listener.pending), len(server.listener.connections)

        peer.send_close()
        await peer.rest()
        async with asyncio.timeout(10):
            while server.listener.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert counts == (0, 1)

    async def test_an_answer_that_is_read_by_drops_is_cut(self) -> None:
        """Who takes a little now and then holds no connection for ever."""
        async with serving(answer_timeout=0.3) as server:
            peer = await server.connect(request("/large"))
            await peer.head()
            read = 0
            while data := await peer.reader.read(1_000):
                read += len(data)
                await asyncio.sleep(0.002)
                if not server.listener.http_connections:
                    break

            assert read < LARGE / 2
            assert server.listener.http_connections == 0

    async def test_an_answer_that_is_read_in_time_is_whole(self) -> None:
        """However large it is."""
        async with serving(answer_timeout=30.0) as server:
            peer = await server.connect(request("/large"))

            assert len((await peer.answer()).body) == LARGE


class TestStopping:
    async def test_stop_ends_everything(self) -> None:
        """WebSockets close with 1001, answers under way finish, heads are cut."""
        async with serving() as server:
            socket = await server.connect(upgrade())
            await socket.head()
            head = await server.connect(b"GET")
            answer = await server.connect(request("/slow"))
            port = server.listener.port
            async with asyncio.timeout(10):
                listener = server.listener
                while len(listener.pending) != 1 or not listener.http_connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)

            stop = asyncio.create_task(server.listener.stop())
            closing = await socket.closing()
            socket.send_close(1001)

            assert (closing.code, closing.payload[2:]) == (1001, b"reconnect=yes")
            assert (await answer.answer()).body == b"at last"
            assert await head.rest() == b""
            await stop
            assert not server.listener.connections
            with pytest.raises(OSError, match=r"(?i)refused|connect"):
                await RawSocket.connect(port)

    async def test_stop_waits_no_longer_than_its_deadlines(self) -> None:
        """A peer that does not answer, and an application that does not end, are cut off."""
        async with serving(stop_timeout=0.05) as server:
            socket = await server.connect(upgrade())
            await socket.head()
            await server.connect(request("/slow"))
            await asyncio.sleep(0.02)

            async with asyncio.timeout(5):
                await server.listener.stop()

            assert server.listener.http_connections == 0

    async def test_stopping_to_accept_keeps_what_is_open(self, server: Server) -> None:
        """A draining gateway serves those it has."""
        peer = await server.connect(upgrade())
        await peer.head()

        server.listener.stop_accepting()
        peer.send_text("still here")

        assert await peer.text() == "still here"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


class TestTls:
    async def test_both_protocols_work_over_tls(self, certificate: tuple[str, str]) -> None:
        """And the judge is told of it."""
        trust = ssl.create_default_context(cafile=certificate[0])
        async with serving(ssl=make_ssl_context(*certificate)) as server:
            socket = await server.connect(upgrade(), tls=trust)
            await socket.head()
            socket.send_text("x" * 300_000)
            plain = await server.connect(request("/path"), tls=trust)

            assert await socket.text() == "x" * 300_000
            assert server.heads[0][2] is True
            assert (await plain.answer()).body == b"GET /path?"
            socket.send_frame(BINARY, b"x")
            assert (await socket.closing()).code == 1003

    async def test_a_reader_that_stopped_is_closed_over_tls_too(
        self, certificate: tuple[str, str]
    ) -> None:
        """The send queue's limit does not depend on what carries it."""
        trust = ssl.create_default_context(cafile=certificate[0])
        ended = asyncio.Event()
        loud = Loud()

        def closed(code: int, reason: str) -> None:
            if code == 4008:
                ended.set()

        loud.closed = closed  # type: ignore[method-assign]
        async with serving(ssl=make_ssl_context(*certificate)) as server:
            server.verdict = lambda *_: loud
            socket = await server.connect(upgrade(), tls=trust)
            await socket.head()
            socket.writer.transport.pause_reading()  # type: ignore[attr-defined]

            for _ in range(5000):
                loud.connection.write(b"x" * 8000)
                await asyncio.sleep(0)
                if ended.is_set():
                    break

            assert ended.is_set()

    async def test_old_versions_are_refused(self, certificate: tuple[str, str]) -> None:
        """TLS 1.2 is the oldest."""
        context = make_ssl_context(*certificate)

        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        trust = ssl.create_default_context(cafile=certificate[0])
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        async with serving(ssl=context) as server:
            peer = await server.connect(request("/path"), tls=trust)
            assert (await peer.answer()).status == 200

    async def test_a_silent_handshake_is_cut_off(self, certificate: tuple[str, str]) -> None:
        """Before TLS is up the same deadline holds."""
        async with serving(ssl=make_ssl_context(*certificate), head_timeout=0.2) as server:
            peer = await server.connect()

            assert await peer.rest() == b""


async def test_a_port_in_use_is_an_error(server: Server) -> None:
    """Two listeners cannot share an address."""
    with pytest.raises(OSError, match=r"(?i)address.*in use"):
        await Listener.start(
            "127.0.0.1",
            server.listener.port,
            on_head=server.on_head,  # type: ignore[arg-type]
            http_app=APP,
        )


async def test_addresses_are_those_that_were_asked_for(server: Server) -> None:
    """Loopback means loopback."""
    assert server.listener.addresses == [("127.0.0.1", server.listener.port)]


@pytest.mark.parametrize("arguments", [[], ["--deflate"]])
async def test_the_echo_server_runs(arguments: list[str]) -> None:
    """`python -m trunkline.transports.echo` sends text and bytes back."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trunkline.transports.echo", "--port", "0", *arguments),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        port = int(line.decode().rsplit(":", 1)[1])
        async with await RawSocket.websocket(
            port, "/", "Sec-WebSocket-Extensions: permessage-deflate"
        ) as peer:
            peer.send_text("text")
            peer.send_frame(BINARY, b"\xff\x00")
            frames = [await peer.frame(), await peer.frame()]
            peer.send_close()
            frames.append(await peer.frame())
    finally:
        process.terminate()
        await process.wait()

    assert [(frame.opcode, frame.payload) for frame in frames] == [
        (TEXT, b"text"),
        (BINARY, b"\xff\x00"),
        (CLOSE, b"\x03\xe8"),
    ]
