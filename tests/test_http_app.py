"""The HTTP application, over a real port."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from certificates import write_certificate
from rawsocket import Answer, RawSocket, request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trunkline.http import app as http_app
from trunkline.http.app import HSTS, SECURITY_HEADERS, create_app
from trunkline.transports.listener import Listener, make_ssl_context


async def fail(request: Request) -> Response:
    raise RuntimeError("internals")


async def forbid(request: Request) -> Response:
    raise HTTPException(403, "not you", {"X-Reason": "test"})


async def read(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def page(request: Request) -> Response:
    headers = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    return PlainTextResponse("page", headers=headers)


class Teapot:
    """A middleware that answers by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/teapot":
            await JSONResponse({}, status_code=418)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


ROUTES = [
    Route("/fail", fail),
    Route("/forbid", forbid),
    Route("/read", read, methods=["POST"]),
    Route("/page", page),
]

Ask = Callable[..., "asyncio.Future[Answer]"]


@asynccontextmanager
async def serving(
    ready: Callable[[], bool] = lambda: True, tls: tuple[str, str] | None = None
) -> AsyncIterator[Ask]:
    listener = await Listener.start(
        "127.0.0.1",
        0,
        on_head=lambda *_: None,
        http_app=create_app(ready=ready, routes=ROUTES, middleware=[Middleware(Teapot)]),
        ssl=make_ssl_context(*tls) if tls else None,
    )
    trust = ssl.create_default_context(cafile=tls[0]) if tls else None

    async def ask(
        target: str, *headers: str, method: str = "GET", body: bytes = b"", **more: str
    ) -> Answer:
        async with await RawSocket.connect(listener.port, tls=trust) as peer:
            peer.send(request(target, *headers, method=method, **more) + body)
            return await (peer.head() if method == "HEAD" else peer.answer())

    try:
        yield ask  # type: ignore[misc]
    finally:
        await listener.stop()


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    async with serving() as ask:
        yield ask


@pytest.mark.parametrize("path", ["/healthz", "/health"])
async def test_health_says_ok_and_nothing_else(ask: Ask, path: str) -> None:
    """No version, no counts, no names."""
    answer = await ask(path)

    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    assert "server" not in answer.headers


async def test_readiness_is_asked_each_time() -> None:
    """200 while new connections are welcome, 503 while not."""
    ready = True
    async with serving(lambda: ready) as ask:
        first = await ask("/readyz")
        ready = False
        second = await ask("/readyz")

    assert (first.status, second.status) == (200, 503)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_an_unknown_path_is_404_whatever_the_method(ask: Ask, method: str) -> None:
    """What does not exist has no methods."""
    answer = await ask("/nothing", method=method)

    assert answer.status == 404
    assert msgspec.json.decode(answer.body) == {"error": {"status": 404, "message": "Not Found"}}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_a_known_path_without_the_method_is_405(ask: Ask, method: str) -> None:
    """And says which methods it has."""
    answer = await ask("/healthz", method=method)

    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD" or answer.headers["allow"] == "HEAD, GET"
    assert msgspec.json.decode(answer.body)["error"]["status"] == 405


@pytest.mark.parametrize("path", ["/healthz/", "//healthz", "/HEALTHZ", "/healthz;x", "/./healthz"])
async def test_another_spelling_is_another_path(ask: Ask, path: str) -> None:
    """Nothing redirects, nothing is normalised."""
    assert (await ask(path)).status == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/nothing", 404), ("/forbid", 403), ("/fail", 500), ("/teapot", 418)],
)
async def test_every_answer_has_the_security_headers(ask: Ask, path: str, status: int) -> None:
    """Errors, failures and answers of a middleware among them."""
    answer = await ask(path)

    assert answer.status == status
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert answer.headers["cache-control"] == "no-store"


async def test_a_route_may_set_its_own(ask: Ask) -> None:
    """A page that needs another policy says so, once."""
    answer = await ask("/page")

    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert answer.headers["cache-control"] == "max-age=60"


async def test_an_error_keeps_its_headers(ask: Ask) -> None:
    """What the route gave with it goes out with it."""
    answer = await ask("/forbid")

    assert msgspec.json.decode(answer.body) == {"error": {"status": 403, "message": "not you"}}
    assert answer.headers["x-reason"] == "test"


async def test_a_failure_tells_nothing(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500 without internals; the log has the traceback."""
    answer = await ask("/fail")

    assert answer.status == 500
    assert b"internals" not in answer.body
    assert "internals" in caplog.text


async def test_a_head_request_has_no_body(ask: Ask) -> None:
    """GET routes answer HEAD."""
    assert (await ask("/healthz", method="HEAD")).status == 200


class TestBodies:
    async def test_a_body_at_the_limit_is_read(self, ask: Ask) -> None:
        """1 MiB passes."""
        answer = await ask(
            "/read", f"Content-Length: {1 << 20}", method="POST", body=b"x" * (1 << 20)
        )

        assert answer.body == b"1048576"

    async def test_chunks_are_counted(self, ask: Ask) -> None:
        """A body that was not announced has the same limit."""
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

        answer = await ask(
            "/read", "Transfer-Encoding: chunked", method="POST", body=chunk * 17 + b"0\r\n\r\n"
        )

        assert answer.status == 413

    async def test_a_slow_body_is_given_up(self, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
        """The deadline is the body's."""
        monkeypatch.setattr(http_app, "BODY_TIMEOUT", 0.1)

        answer = await ask("/read", "Content-Length: 10", method="POST", body=b"x")

        assert answer.status == 408


@pytest.mark.parametrize("path", ["/healthz", "/forbid", "/fail", "/nowhere", "/teapot"])
async def test_browsers_are_held_to_tls_by_answers_over_tls_alone(
    tmp_path: Path, ask: Ask, path: str
) -> None:
    """A plain answer promises nothing, for whoever put a proxy before it decides."""
    plain = await ask(path)
    async with serving(tls=write_certificate(tmp_path)) as ask_by_tls:
        encrypted = await ask_by_tls(path)

    assert "strict-transport-security" not in plain.headers
    assert encrypted.headers["strict-transport-security"] == HSTS


async def test_a_certificate_for_localhost_binds_no_other_program_there(tmp_path: Path) -> None:
    """Browsers keep the promise for a name, whatever the port."""
    async with serving(tls=write_certificate(tmp_path)) as ask:
        answer = await ask("/healthz", host="LocalHost:8443")

    assert "strict-transport-security" not in answer.headers
