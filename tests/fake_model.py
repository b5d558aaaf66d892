"""A local server that speaks the chat completions API, as a script tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def text(*pieces: str) -> list[dict[str, Any]]:
    """The events of an answer."""
    return [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]


def call(name: str, arguments: str, id: str = "call_1") -> list[dict[str, Any]]:
    """The events of one function call, its arguments in two pieces."""
    begin = {"index": 0, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    deltas = [
        begin,
        *({"index": 0, "function": {"arguments": part}} for part in (arguments[:3], arguments[3:])),
    ]
    return [{"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]} for delta in deltas]


class FakeModel:
    """
    Answers each request with the next of `turns`: events, or a status.

    `requests` has the bodies that came, `keys` their credentials; a turn goes
    on past an event only while `gate` is set.
    """

    def __init__(self) -> None:
        self.turns: list[list[dict[str, Any]] | int] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def complete(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        turn = self.turns.pop(0)
        if isinstance(turn, int):
            return JSONResponse({"error": {"message": "internal detail"}}, turn)
        return StreamingResponse(self._events(turn), media_type="text/event-stream")

    async def _events(self, turn: list[dict[str, Any]]) -> AsyncIterator[str]:
        yield ": a comment\n\n"
        for event in turn:
            yield f"data: {json.dumps(event)}\n\n"
            await self.gate.wait()
        yield "data: [DONE]\n\n"


@asynccontextmanager
async def serving() -> AsyncIterator[FakeModel]:
    """Serve on a free port of loopback."""
    model = FakeModel()
    app = Starlette(routes=[Route("/v1/chat/completions", model.complete, methods=["POST"])])
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        model.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        await server.startup(sockets=[listening])
        try:
            yield model
        finally:
            await server.shutdown(sockets=[listening])
