"""
The HTTP API: from a request to its endpoint, and from what that returns to an answer.

The order of checks: where the page comes from, the bearer, the path, the
method, the body; then the endpoint, which asks the same handlers as a
WebSocket does. Nothing below ``/api`` is told to who has not signed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.audit import audit_endpoints
from trunkline.http.callers import Callers, Entrance
from trunkline.http.devices import device_endpoints
from trunkline.http.events import disconnected
from trunkline.http.failures import HttpFailure, failure_response
from trunkline.http.metrics import Exporter
from trunkline.http.openapi import openapi
from trunkline.http.operate import operator_endpoints
from trunkline.http.requests import Requests
from trunkline.http.sessions import session_endpoints
from trunkline.http.table import (
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    Call,
    Endpoint,
    Stream,
    Table,
    read_query,
)
from trunkline.http.tokens import token_endpoints
from trunkline.messages import encode

if TYPE_CHECKING:
    from trunkline.server import GatewayServer

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_METHODS = "GET, POST, PATCH, DELETE"
_PREFLIGHT = {
    "Access-Control-Allow-Methods": _METHODS,
    "Access-Control-Allow-Headers": f"Authorization, Content-Type, {IDEMPOTENCY_KEY}, {LAST_EVENT_ID}",
    "Access-Control-Max-Age": "600",
}


Serve = Callable[[Request, Send], Awaitable[Response | None]]
"""Makes the answer to a request; None: it has sent it."""


class _Asgi:
    """Makes a bound method an application of its own, which Starlette takes for a handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Api:
    """
    The API as an ASGI application.

    Args:
        gateway: What is asked.
        entrance: Knows where requests come from.
    """

    def __init__(self, gateway: GatewayServer, entrance: Entrance) -> None:
        self._gateway = gateway
        self._callers = Callers(gateway, entrance)
        self.requests = Requests(self._callers, gateway.config.limits)
        self.table = Table(
            [
                *operator_endpoints(),
                *session_endpoints(),
                *self.requests.endpoints(),
                *token_endpoints(),
                *device_endpoints(),
                *audit_endpoints(),
            ]
        )
        self._openapi = encode(openapi(self.table))
        self._exporter = Exporter(gateway)

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the API and of its description."""
        return [
            Route("/openapi.json", self._describe, methods=["GET"]),
            Route("/api", self),
            Route("/api/{rest:path}", self),
            Route("/metrics", _Asgi(self._scrape)),
        ]

    def metrics_routes(self) -> list[BaseRoute]:
        """Return the routes of a port that is for metrics alone, where nobody signs in."""
        return [Route("/metrics", self._exporter.response, methods=["GET"])]

    async def _scrape(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Request(scope, receive), send, self._metrics)

    async def stop(self) -> None:
        """End what outlives its call."""
        await self.requests.jobs.stop()

    async def _describe(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._answer(Request(scope, receive), send, self._serve)

    async def _metrics(self, request: Request, send: Send) -> Response:
        identity, peer = await self._callers.identify(request)
        if request.method != "GET":
            raise HttpFailure(405, "only GET", {"Allow": "GET"})
        caller = self._callers.make(identity, peer, passing=True)
        try:
            caller.require("metrics")
            return await self._exporter.response(request)
        finally:
            caller.leave()

    async def _answer(self, request: Request, send: Send, serve: Serve) -> None:
        send = with_cors(request, send)
        try:
            check_site(request)
            if is_preflight(request):
                answer: Response | None = Response(status_code=204, headers=_PREFLIGHT)
            else:
                answer = await serve(request, send)
        except (GatewayError, HttpFailure) as failure:
            answer = failure_response(failure)
        except HTTPException as error:
            answer = failure_response(HttpFailure(error.status_code, error.detail))
        if answer is not None:
            await answer(request.scope, request.receive, send)

    async def _serve(self, request: Request, send: Send) -> Response | None:
        """Return the answer; None if it was a stream, and has been sent."""
        identity, peer = await self._callers.identify(request)
        endpoint, path = self._find(request)
        query = read_query(request.scope["query_string"].decode("latin-1"), endpoint.query)
        body = await read_body(request, taken=endpoint.body is not None)
        caller = self._callers.make(identity, peer, passing=endpoint.passing)
        try:
            result = await self._run(endpoint, Call(request, caller, path, query, body))
            if not isinstance(result, Stream):
                return _response(endpoint, result)
            await result.app(request.scope, request.receive, send)
            return None
        finally:
            caller.leave()

    def _find(self, request: Request) -> tuple[Endpoint, dict[str, str]]:
        found = self.table.find(request.scope["path"])
        if found is None:
            raise HttpFailure(404, "no such path")
        methods, path = found
        endpoint = methods.get(request.method)
        if endpoint is None:
            allowed = ", ".join(methods)
            raise HttpFailure(405, f"only {allowed}", {"Allow": allowed})
        return endpoint, path

    @staticmethod
    async def _run(endpoint: Endpoint, call: Call) -> Any:
        """Do it, unless the caller leaves before it is done."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(_awaited(endpoint, call))
        gone = loop.create_task(disconnected(call.request.receive))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise HttpFailure(400, "the caller has left")  # nobody reads it
            return work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _awaited(endpoint: Endpoint, call: Call) -> Any:
    return await endpoint.run(call)


def _response(endpoint: Endpoint, result: Any) -> Response:
    if result is None:
        return Response(status_code=endpoint.status)
    content = bytes(result) if isinstance(result, Raw) else encode(result)
    return Response(content, endpoint.status, media_type="application/json")


def check_site(request: Request) -> None:
    """
    Refuse what another site's page asks without saying so.

    A request with an Origin has been judged by it before; one without comes from
    no page, from a page of ours, or from one that hides.
    """
    site = request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none") and "origin" not in request.headers:
        raise HttpFailure(403, "this page is not of the gateway's own origin")


def is_preflight(request: Request) -> bool:
    """Whether a browser asks what a page of another origin may ask."""
    headers = request.headers
    return (
        request.method == "OPTIONS"
        and "origin" in headers
        and "access-control-request-method" in headers
    )


def with_cors(request: Request, send: Send) -> Send:
    """Let the page of an Origin read the answer: the listener has refused those not allowed."""
    origin = request.headers.get("origin")
    if origin is None:
        return send

    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "Retry-After"
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_origin


async def read_body(request: Request, *, taken: bool) -> dict[str, Raw] | None:
    """
    Read the body of a request: a JSON object.

    Args:
        taken: Whether the endpoint takes one.

    Returns:
        Its members, unread; None without a body.

    Raises:
        HttpFailure: It is of another type.
        GatewayError: ``PARSE_ERROR`` or ``INVALID_PAYLOAD``.
    """
    if request.method in SAFE_METHODS:
        return None
    kind = request.headers.get("content-type")
    data = await request.body()
    if kind is None and not data:
        return None
    if (kind or "").partition(";")[0].strip().lower() != "application/json":
        raise HttpFailure(415, "a body must be of type application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpFailure(415, "a body must not be compressed")
    if not data:
        return None
    members = _members(data)
    if not taken and members:
        raise GatewayError(ErrorCode.INVALID_PAYLOAD, "there is no body here")
    return members


def _members(data: bytes) -> dict[str, Raw]:
    try:
        data.decode()
        return msgspec.json.decode(data, type=dict[str, Raw])
    except msgspec.ValidationError:
        raise GatewayError(
            ErrorCode.INVALID_PAYLOAD, "the body must be a JSON object", details={"path": "$"}
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise GatewayError(ErrorCode.PARSE_ERROR, "not valid JSON") from None
