"""
Server-sent events: a session's frames as they come, for who cannot speak WebSocket.

The client is a member like any other. Durable frames have ``epoch:seq`` as
their event's id, so that a browser's ``Last-Event-ID`` resumes without a hole.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

import structlog
from starlette.types import Receive, Scope, Send

from trunkline.errors import CloseCode, ErrorCode, GatewayError
from trunkline.http.callers import Caller
from trunkline.http.mailbox import Mailbox
from trunkline.http.table import LAST_EVENT_ID, Call, Stream
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.payloads import Cursor, SessionInfo, SessionJoin, read

KEEP_ALIVE = 20.0
"""Seconds of silence after which a comment shows that the connection lives."""

LAST_WORDS = 5.0
"""Seconds that a reader has for what waits once its client was closed."""

_CURSOR = re.compile(r"([A-Za-z0-9_-]{1,64}):(0|[1-9][0-9]{0,17})")
_NEWLINE = re.compile(rb"\r\n|\r|\n")

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    # nginx would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger(__name__)


def parse_cursor(text: str) -> Cursor:
    """
    Read ``epoch:seq``.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``.
    """
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise GatewayError(
            ErrorCode.INVALID_PAYLOAD,
            "a place in the log is written epoch:seq",
            details={"path": "$.since"},
        )
    return Cursor(epoch=match[1], seq=int(match[2]))


def event(name: str, data: bytes, id: str | None = None) -> bytes:
    """Encode one event; a line break in JSON is only ever between its tokens."""
    lines = [f"event: {name}".encode()]
    if id is not None:
        lines.append(f"id: {id}".encode())
    lines += [b"data: " + part for part in _NEWLINE.split(data)]
    return b"\n".join([*lines, b"", b""])


async def session_events(call: Call) -> Stream:
    """Join the session, then answer with its frames as events."""
    caller = call.caller
    place = call.request.headers.get(LAST_EVENT_ID) or call.query.get("since")
    since = parse_cursor(place) if place else None
    _check_room(caller)
    message = create_message("session_join", SessionJoin(since=since), call.id)
    caller.send(message)
    # What comes behind this answer stays in the mailbox for the stream.
    reply = await caller.answer(message.id)
    info = read(reply, SessionInfo)
    # Whoever comes back before the first message goes on from here.
    here = f"{info.epoch}:{(info.next or 1) - 1}"
    first = [event(reply.type, encode(reply), here)]
    if info.recovery == "reset":
        reset = {"epoch": info.epoch, "head": info.head, "next": info.next, "reason": info.reason}
        first.insert(0, event("reset", encode(reset), here))
    return Stream(EventStream(caller.mailbox, first, info.epoch))


def _check_room(caller: Caller) -> None:
    gateway = caller.gateway
    if len(gateway.clients.staying()) > gateway.config.limits.max_connections:
        raise GatewayError(ErrorCode.OVERLOADED, "the gateway has no room", retry_after=5.0)


class EventStream:
    """
    An ASGI application that sends a mailbox as events.

    It takes a frame only when the one before it has left, so what a slow reader
    has not read waits in the mailbox, whose limit ends it. When the client is
    closed, what waits and an event ``close`` with code and reason are sent, if
    that takes no longer than `LAST_WORDS`.

    Args:
        mailbox: What is sent.
        first: Events that go before it.
        epoch: The epoch of the session whose durable frames get an id; None: none do.
        until: The message whose final answer ends the stream.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        first: Iterable[bytes] = (),
        epoch: str | None = None,
        until: str | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._first = list(first)
        self._epoch = epoch
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the reader leaves or the client is closed."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._send(send))
        leaving = loop.create_task(disconnected(receive))
        closing = loop.create_task(self._closed())
        try:
            await asyncio.wait([sending, leaving, closing], return_when=asyncio.FIRST_COMPLETED)
            if closing.done() and not leaving.done():
                await asyncio.wait(
                    [sending, leaving], timeout=LAST_WORDS, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in (sending, leaving, closing):
                task.cancel()
            await asyncio.gather(sending, leaving, closing, return_exceptions=True)
        if sending.cancelled():
            # Nobody reads: what uvicorn still holds would wait for ever.
            abort = scope.get("state", {}).get("abort")
            if abort is not None:
                abort()
        elif (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        for data in self._first:
            await _write(send, data)
        while (frame := await self._next(send)) is not None:
            message = decode_message(frame)
            await _write(send, self._event(message, frame))
            if self._until is not None and _ends(message, self._until):
                await send({"type": "http.response.body"})
                return
        code, reason = self._mailbox.closed or (CloseCode.INTERNAL, "")
        await _write(send, event("close", encode({"code": int(code), "reason": reason})))
        await send({"type": "http.response.body"})

    async def _next(self, send: Send) -> bytes | None:
        while True:
            frame = self._mailbox.take()
            if frame is not None:
                return frame
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    return await self._mailbox.next()
            except TimeoutError:
                await _write(send, b": alive\n\n")

    def _event(self, message: GatewayMessage, frame: bytes) -> bytes:
        durable = self._epoch is not None and message.seq is not None
        return event(message.type, frame, f"{self._epoch}:{message.seq}" if durable else None)

    async def _closed(self) -> None:
        await self._mailbox.gone.wait()


async def disconnected(receive: Receive) -> None:
    """Wait until the other side of a request has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _ends(message: GatewayMessage, request_id: str) -> bool:
    if message.reply_to != request_id:
        return False
    return message.type == "error" or message.data().get("done", True)


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
