"""The ASGI application: routes, errors as JSON, and the headers of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.http.health import health_routes

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer that does not set its own."""

HSTS = "max-age=31536000"
"""What a browser keeps in mind of an answer over TLS: for a year, come by TLS only."""

MAX_BODY = 1024 * 1024
"""Bytes of a request body."""

BODY_TIMEOUT = 10.0
"""Seconds that a request body may take, from the first time it is read."""


def create_app(
    *,
    ready: Callable[[], bool],
    routes: Sequence[BaseRoute] = (),
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """
    Make the gateway's HTTP application.

    Every error is JSON: ``{"error": {"status", "message"}}``. An unknown path is
    404 whatever the method, an unsupported method on a known path 405.

    Args:
        ready: Whether ``/readyz`` says 200.
        routes: What is served besides the health routes.
        middleware: Runs around the routes, outermost first; the headers and
            the limit on bodies are outside of it.
    """
    app = Starlette(
        routes=[*health_routes(ready), *routes],
        middleware=[Middleware(SecurityHeaders), Middleware(BodyLimit), *middleware],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
    )
    # "/healthz/" is another path, not a spelling of "/healthz".
    app.router.redirect_slashes = False
    return app


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Make an error as JSON: ``{"error": {"status", "message"}}``."""
    content = {"error": {"status": status, "message": message}}
    return JSONResponse(content, status_code=status, headers=headers)


class SecurityHeaders:
    """
    Adds `SECURITY_HEADERS`, and forbids to store answers that do not say otherwise.

    Answers over our own TLS get `HSTS` too; a proxy with TLS adds its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, its answer completed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message), scope)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses request bodies above `MAX_BODY` with 413, and slow ones with 408."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, with a body that ends."""
        if scope["type"] == "http":
            receive = _limited(receive)
        await self._app(scope, receive, send)


def _limited(receive: Receive) -> Receive:
    room = MAX_BODY
    deadline: float | None = None
    whole = False

    async def receive_limited() -> Message:
        nonlocal room, deadline, whole
        if whole:
            return await receive()
        now = asyncio.get_running_loop().time()
        deadline = deadline or now + BODY_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the request body did not come in time") from None
        room -= len(message.get("body", b""))
        if room < 0:
            raise HTTPException(413, "the request body is too large")
        whole = not message.get("more_body", False)
        return message

    return receive_limited


def _on_localhost(scope: Scope) -> bool:
    # There the promise would bind every other program with a port of this machine.
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return bool(host.partition(b":")[0].lower() == b"localhost")


def _add_headers(headers: MutableHeaders, scope: Scope) -> None:
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")
    if scope["scheme"] == "https" and not _on_localhost(scope):
        headers.setdefault("Strict-Transport-Security", HSTS)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return error_response(error.status_code, error.detail, headers)


async def _server_error(request: Request, error: Exception) -> Response:
    # Starlette answers this one outside of all middleware, then raises it
    # again, so that the server logs it.
    response = error_response(500, "the gateway failed")
    _add_headers(response.headers, request.scope)
    return response
