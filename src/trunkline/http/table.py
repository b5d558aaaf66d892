"""The routes of the HTTP API as data: dispatch, rights, reference and OpenAPI come from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.types import ASGIApp

from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.callers import Caller, convert
from trunkline.ids import valid_id
from trunkline.rights import HTTP_RIGHTS, RIGHTS

BASE = "/api/v1"
"""What all paths of the API begin with."""

IDEMPOTENCY_KEY = "Idempotency-Key"
LAST_EVENT_ID = "Last-Event-ID"


class Stream(msgspec.Struct, frozen=True):
    """An answer that goes on: an ASGI application that sends it."""

    app: ASGIApp


class Call:
    """
    One call of an endpoint.

    Attributes:
        caller: The client that was made for it.
        path: The parts of the path by name.
        query: The parameters, already of their types, by their names on the wire.
        body: The members of the JSON body, unread; None where there was no body.
    """

    def __init__(
        self,
        request: Request,
        caller: Caller,
        path: dict[str, str],
        query: dict[str, Any],
        body: dict[str, Raw] | None,
    ) -> None:
        self.request = request
        self.caller = caller
        self.path = path
        self.query = query
        self.body = body

    def plain(self) -> dict[str, Any]:
        """Return the body as plain data."""
        return {name: msgspec.json.decode(value) for name, value in (self.body or {}).items()}

    @property
    def id(self) -> str:
        """The id in the path."""
        return self.path["id"]

    @property
    def key(self) -> str | None:
        """
        The ``Idempotency-Key``, with or without the quotes of a structured field.

        Raises:
            GatewayError: ``INVALID_MESSAGE``: it has not the grammar of an id.
        """
        key = self.request.headers.get(IDEMPOTENCY_KEY)
        if key is None:
            return None
        if len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if not valid_id(key):
            raise GatewayError(
                ErrorCode.INVALID_MESSAGE, f"{IDEMPOTENCY_KEY} has not the grammar of an id"
            )
        return key


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: str
    path: str
    """Below `BASE`, with ``{id}`` for an id."""
    right: str
    """The row of the table of rights that it follows."""
    run: Callable[[Call], Awaitable[Any]]
    """Does it; returns the answer, a `Stream`, or None for an empty one."""
    summary: str
    query: dict[str, Any] = {}
    """The parameters of the query: their types by name."""
    headers: tuple[str, ...] = ()
    """Request headers that mean something here."""
    body: type[msgspec.Struct] | None = None
    """What the body must fit; the handler of the message judges it, if there is one."""
    answer: type[msgspec.Struct] | None = None
    status: int = 200
    """The status of the answer where all went well."""
    stream: bool = False
    """Whether the answer is a stream of events."""
    passing: bool = True
    """Whether its client is only passing; see `Client.passing`."""


class Table:
    """
    All endpoints.

    Raises:
        ValueError: An endpoint follows no row of the table of rights, or two are the same.
    """

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self.endpoints = endpoints
        self._by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            if endpoint.right not in RIGHTS and endpoint.right not in HTTP_RIGHTS:
                raise ValueError(f"the table of rights has no row for {endpoint.right!r}")
            methods = self._by_path.setdefault(endpoint.path, {})
            if endpoint.method in methods:
                raise ValueError(f"{endpoint.method} {endpoint.path} is there twice")
            methods[endpoint.method] = endpoint
        self._patterns = [
            (re.compile(BASE + path.replace("{id}", "(?P<id>[^/]+)")), methods)
            for path, methods in self._by_path.items()
        ]

    def find(self, path: str) -> tuple[dict[str, Endpoint], dict[str, str]] | None:
        """Return the endpoints of a path by method, and the parts of the path."""
        for pattern, methods in self._patterns:
            if match := pattern.fullmatch(path):
                return methods, match.groupdict()
        return None


def read_query(text: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """
    Read a query.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``: a parameter is unknown, repeated or wrong.
    """
    found: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        path = f"$.{name}"[:64]
        if name not in kinds:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD, "there is no such parameter", details={"path": path}
            )
        if name in found:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD, "the parameter is repeated", details={"path": path}
            )
        found[name] = convert(value, kinds[name], path)
    return found


def query_of(kind: type[msgspec.Struct], *names: str) -> dict[str, Any]:
    """Return some fields of a payload as parameters of a query, by their names on the wire."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    return {name: fields[name] for name in names}
