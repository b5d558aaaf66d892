"""People that speak HTTP: a client with their token, and a reader of events."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import msgspec
from peers import PATIENCE
from rawsocket import request

from trunkline.transports.websocket import WebSocketGateway

API = "/api/v1"

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak plain HTTP: each would read all certificates of the system otherwise."""


def http(gateway: WebSocketGateway, token: str | None = None, **headers: str) -> httpx.AsyncClient:
    """Make an HTTP client of a gateway; with a token it sends it as its bearer."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{gateway.port}",
        headers=headers,
        trust_env=False,
        verify=PLAIN,
        timeout=PATIENCE,
    )


def code_of(answer: httpx.Response) -> str:
    """Return the code of a refusal; fails if it is none."""
    error = answer.json()["error"]
    assert error["status"] == answer.status_code
    code: str = error["code"]
    return code


def head(port: int, target: str, *headers: str, name: str | None = None) -> bytes:
    """Make the head of a GET for a port, its Host the right one or `name`."""
    named = name or f"127.0.0.1:{port}"
    made = request("/", *headers).replace(b"Host: 127.0.0.1\r\n", f"Host: {named}\r\n".encode())
    return made.replace(b"GET / ", b"GET " + target.encode() + b" ")


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    data: Any
    id: str | None


class Events:
    """Reads the events of one answer, one after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.comments = 0
        self._lines = answer.aiter_lines()

    async def next(self, name: str | None = None) -> Event:
        """Wait for the next event, of a name."""
        async with asyncio.timeout(PATIENCE):
            while True:
                event = await self._one()
                if name in (None, event.name):
                    return event

    async def _one(self) -> Event:
        fields: dict[str, str] = {}
        data: list[str] = []
        async for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            elif line:
                key, _, value = line.partition(": ")
                fields[key] = value
            elif fields:
                decoded = msgspec.json.decode("\n".join(data))
                return Event(fields["event"], decoded, fields.get("id"))
        raise EOFError("the events are over")

    async def over(self) -> None:
        """Wait for the end of the answer."""
        async with asyncio.timeout(PATIENCE):
            async for _ in self._lines:
                pass


@asynccontextmanager
async def events(
    client: httpx.AsyncClient, session: str, since: str | None = None, **headers: str
) -> AsyncIterator[Events]:
    """Listen to a session's events."""
    query = {"since": since} if since is not None else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    target = f"{API}/sessions/{session}/events"
    async with client.stream("GET", target, params=query, headers=named) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Events(answer)
