"""
From a frame to its handler, and from the handler's result to a reply.

The order of checks is the protocol's (section 2): JSON, envelope, signed in,
rate, right, payload, handler. A plain function runs at once; a coroutine runs
in the client's own queue, so that what a client pipelines is handled in order
and never delays anyone else, nor its own pings.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import structlog

from trunkline.clients import Client, Phase
from trunkline.config import GatewayConfig, LimitsConfig
from trunkline.errors import (
    CloseCode,
    Disconnect,
    ErrorCode,
    GatewayError,
    close_reason,
)
from trunkline.events import Events
from trunkline.fanout import storage_error
from trunkline.history import HistoryError
from trunkline.ids import random_id, valid_id, valid_type
from trunkline.limits import Rate
from trunkline.messages import (
    GatewayMessage,
    ReceivedMessage,
    Role,
    create_message,
    decode_received,
    error_message,
)
from trunkline.payloads import MESSAGE_TYPES, Payload
from trunkline.rights import RIGHTS, custom_roles, roles_for

log = structlog.get_logger(__name__)

Reply = Payload | dict[str, Any] | GatewayMessage | None
Result = Reply | Awaitable[Reply]
HandlerFunction = Callable[..., Result]
"""
``fn(client, message)``, or ``fn(client, message, payload)`` where a payload
type was named. It returns a payload to reply, None to stay silent, raises
`GatewayError` to fail the request or `Disconnect` to close.
"""

STREAM_TYPES = frozenset({"chat_stream", "tool_update", "route_response"})
"""Types that have a rate of their own."""

_ANONYMOUS = frozenset(t for t, right in RIGHTS.items() if right.anonymous)
_PATH = re.compile(r" - at `(\$[^`]*)`$")
_BRACE = ord("{")
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one message type."""

    type: str
    function: HandlerFunction
    decode: Callable[[msgspec.Raw], Any] | None = None
    roles: frozenset[str]
    """Who may send it."""
    concurrent: bool = False
    """Whether a coroutine runs beside the client's queue instead of in it."""
    builtin: bool = True


def nested_deeper(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than `limit`."""
    if text.count("{") + text.count("[") <= limit:
        return False
    depth = 0
    for char in _STRINGS.sub("", text):
        if char in "{[":
            depth += 1
            if depth > limit:
                return True
        elif char in "}]":
            depth -= 1
    return False


def payload_error(error: msgspec.ValidationError) -> GatewayError:
    """Turn msgspec's complaint about a payload into ``INVALID_PAYLOAD`` with a path."""
    text = str(error)
    match = _PATH.search(text)
    path = match[1] if match else "$"
    sentence = text[: match.start()] if match else text
    return GatewayError(ErrorCode.INVALID_PAYLOAD, sentence, details={"path": path})


class Handlers:
    """The table of handlers, and the way of a frame through it."""

    def __init__(self, limits: LimitsConfig, events: Events) -> None:
        self._events = events
        self._table: dict[str, Handler] = {}
        self._defaults: dict[str, Handler] = {}
        self._set_limits(limits)
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors = 0
        """Requests refused so far."""

    def _set_limits(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._rate = Rate(limits.publish_rate, limits.publish_burst)
        self._stream_rate = Rate(limits.stream_rate, limits.stream_burst)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._set_limits(config.limits)

    # Registration

    def add(
        self, type: str, function: HandlerFunction, payload: type[Payload] | None = None
    ) -> None:
        """
        Add a built-in handler.

        Raises:
            ValueError: The table of rights has no row for the type.
        """
        if type not in RIGHTS:
            raise ValueError(f"the table of rights has no row for {type!r}")
        self._table[type] = self._defaults[type] = Handler(
            type=type,
            function=function,
            decode=msgspec.json.Decoder(payload).decode if payload else None,
            roles=roles_for(type),
        )

    def register(
        self,
        type: str,
        function: HandlerFunction,
        payload: type[Payload] | None = None,
        *,
        roles: Iterable[Role] | None = None,
        concurrent: bool = False,
    ) -> None:
        """
        Register a handler; one for a built-in type takes its place.

        A built-in type keeps its row in the table of rights.

        Raises:
            ValueError: The type has not the grammar of a message type.
        """
        if not valid_type(type):
            raise ValueError(f"{type!r} cannot be a message type")
        self._table[type] = Handler(
            type=type,
            function=function,
            decode=msgspec.json.Decoder(payload).decode if payload else None,
            roles=roles_for(type) if type in RIGHTS else custom_roles(roles),
            concurrent=concurrent,
            builtin=False,
        )

    def unregister(self, type: str) -> None:
        """Remove a registered handler; a built-in one comes back in its place."""
        default = self._defaults.get(type)
        if default is not None:
            self._table[type] = default
        else:
            self._table.pop(type, None)

    def default(self, type: str) -> HandlerFunction | None:
        """Return the built-in handler of a type."""
        handler = self._defaults.get(type)
        return handler.function if handler else None

    @property
    def types(self) -> frozenset[str]:
        """The types that have a handler."""
        return frozenset(self._table)

    # A frame's way

    def receive(self, client: Client, text: str) -> None:
        """
        Handle one frame of a client.

        Returns without waiting: a plain function has finished by then, a
        coroutine goes on in the client's queue. Never raises.
        """
        if client.phase is Phase.CLOSED:
            return
        if client.busy:
            self._defer(client, text)
        else:
            self._handle(client, text)

    def _handle(self, client: Client, text: str) -> None:
        message: ReceivedMessage | None = None
        try:
            message = self._read(client, text)
            handler = self._judge(client, message)
            if handler is None:
                self._unknown(client, message)
                return
            if handler.decode is not None:
                payload = handler.decode(message.payload)
                result = handler.function(client, message, payload)
            else:
                result = handler.function(client, message)
            if result is not None:
                self._answer(client, message, handler, result)
        except Exception as error:
            self._failed(client, message, error, text)

    def _read(self, client: Client, text: str) -> ReceivedMessage:
        """Decode a frame and check its envelope."""
        try:
            message = decode_received(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise self._unreadable(client, text, error) from None
        if text.count("{") + text.count("[") > self._limits.max_depth and nested_deeper(
            text, self._limits.max_depth
        ):
            raise self._parse_error(client, "nested too deeply")
        if not valid_id(message.id):
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "id has not the grammar of an id")
        if memoryview(message.payload)[0] != _BRACE:
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "payload must be an object")
        if message.type not in self._table and not valid_type(message.type):
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "type has not the grammar of a type")
        if message.session_id is not None and not valid_id(message.session_id):
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "sessionId has not the grammar of an id")
        return message

    def _judge(self, client: Client, message: GatewayMessage) -> Handler | None:
        """Check sign-in, rate and right; None if nobody handles the type."""
        type = message.type
        if client.phase is not Phase.READY:
            self._before_sign_in(client, message)
        else:
            now = time.monotonic()
            if type in STREAM_TYPES:
                client.stream_full_at = self._stream_rate.take(client.stream_full_at, now)
            else:
                client.full_at = self._rate.take(client.full_at, now)
        handler = self._table.get(type)
        if (
            handler is not None
            and client.role not in handler.roles
            and (client.phase is Phase.READY or type not in _ANONYMOUS)
        ):
            raise GatewayError(ErrorCode.FORBIDDEN, f"{client.role} may not send {type}")
        return handler

    def _before_sign_in(self, client: Client, message: GatewayMessage) -> None:
        client.received_messages += 1
        if client.received_messages > self._limits.pre_auth_messages:
            raise Disconnect(CloseCode.POLICY, "too many messages before sign-in")
        if message.type not in _ANONYMOUS:
            raise GatewayError(ErrorCode.AUTH_REQUIRED, "sign in first")

    def _unknown(self, client: Client, message: GatewayMessage) -> None:
        if message.type in MESSAGE_TYPES and client.role not in roles_for(message.type):
            raise GatewayError(ErrorCode.FORBIDDEN, f"{client.role} may not send {message.type}")
        if self._events.listened("message"):
            self._events.emit("message", client, message)
        else:
            raise GatewayError(ErrorCode.UNKNOWN_TYPE, "no handler knows this message type")

    # Results

    def _answer(
        self, client: Client, message: GatewayMessage, handler: Handler, result: Result
    ) -> None:
        if isinstance(result, Awaitable):
            self._spawn(client, message, handler, result)
        else:
            client.reply(_as_message(message, result))

    def _spawn(
        self,
        client: Client,
        message: GatewayMessage,
        handler: Handler,
        work: Awaitable[Reply],
    ) -> None:
        if not handler.concurrent:
            client.busy = True
        task = asyncio.get_running_loop().create_task(self._finish(client, message, handler, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(
        self,
        client: Client,
        message: GatewayMessage,
        handler: Handler,
        work: Awaitable[Reply],
    ) -> None:
        try:
            reply = await work
            if reply is not None:
                client.reply(_as_message(message, reply))
        except Exception as error:
            self._failed(client, message, error)
        finally:
            if not handler.concurrent:
                self.release(client)

    async def drain(self) -> None:
        """Wait until no coroutine handler is at work."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cancel the coroutine handlers that are at work."""
        for task in self._tasks:
            task.cancel()

    # The client's queue

    def _defer(self, client: Client, text: str) -> None:
        """Keep a frame until the handler before it has finished; pings go ahead."""
        if '"ping"' in text and len(text) < 1024 and self._is_ping(text):
            self._handle(client, text)
            return
        if client.inbox is None:
            client.inbox = deque()
        client.inbox.append(text)
        client.inbox_bytes += len(text)
        if self._inbox_full(client):
            client.transport.pause_reading()

    @staticmethod
    def _is_ping(text: str) -> bool:
        try:
            return decode_received(text).type == "ping"
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return False

    def _inbox_full(self, client: Client) -> bool:
        return client.inbox is not None and (
            len(client.inbox) >= self._limits.inbox_messages
            or client.inbox_bytes >= self._limits.inbox_bytes
        )

    def release(self, client: Client) -> None:
        """Go on with the frames that waited while a client was busy."""
        client.busy = False
        inbox = client.inbox
        if not inbox:
            return
        full = self._inbox_full(client)
        while inbox and not client.busy and client.phase is not Phase.CLOSED:
            text = inbox.popleft()
            client.inbox_bytes -= len(text)
            self._handle(client, text)
        if full and not self._inbox_full(client):
            client.transport.resume_reading()

    # Failures

    def _failed(
        self,
        client: Client,
        message: GatewayMessage | None,
        error: Exception,
        text: str | None = None,
    ) -> None:
        self.errors += 1
        if isinstance(error, Disconnect):
            client.transport.close(error.code, error.reason)
            return
        if isinstance(error, msgspec.ValidationError):
            error = payload_error(error)
        elif isinstance(error, (msgspec.DecodeError, RecursionError)):
            error = GatewayError(ErrorCode.INVALID_PAYLOAD, "the payload cannot be read")
        elif isinstance(error, HistoryError):
            error = storage_error(error)
        elif not isinstance(error, GatewayError):
            error = self._bug(client, message, error)
        reply_to = message.id if message is not None else _readable_id(text)
        client.reply(error_message(error, reply_to))

    def _bug(
        self, client: Client, message: GatewayMessage | None, error: Exception
    ) -> GatewayError:
        error_id = random_id("err_")
        log.error(
            "handler failed",
            error_id=error_id,
            client=client.id,
            type=message.type if message else None,
            exc_info=error,
        )
        return GatewayError(
            ErrorCode.HANDLER_ERROR,
            "the gateway failed to handle this message",
            details={"errorId": error_id},
        )

    def _unreadable(self, client: Client, text: str, error: Exception) -> GatewayError:
        if isinstance(error, msgspec.ValidationError):
            # The envelope is wrong, unless the rest is not JSON at all.
            try:
                msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError, UnicodeError):
                return self._parse_error(client, "not valid JSON")
            return GatewayError(ErrorCode.INVALID_MESSAGE, str(error))
        if isinstance(error, RecursionError):
            return self._parse_error(client, "nested too deeply")
        return self._parse_error(client, "not valid JSON")

    def _parse_error(self, client: Client, sentence: str) -> GatewayError:
        now = time.monotonic()
        if client.parse_errors is None:
            client.parse_errors = deque(maxlen=max(1, self._limits.max_parse_errors))
        times = client.parse_errors
        times.append(now)
        if len(times) == times.maxlen and now - times[0] < 60.0:
            raise Disconnect(CloseCode.POLICY, "too many unreadable messages")
        return GatewayError(ErrorCode.PARSE_ERROR, sentence)


def _readable_id(text: str | None) -> str | None:
    """Return the id of a frame that was refused before it became a message."""
    try:
        data = msgspec.json.decode(text or "")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    value = data.get("id") if isinstance(data, dict) else None
    return value if isinstance(value, str) and valid_id(value) else None


def _as_message(request: GatewayMessage, reply: Reply) -> GatewayMessage:
    if isinstance(reply, GatewayMessage):
        return reply
    if isinstance(reply, Payload):
        return create_message(reply.type, reply, request.session_id, reply_to=request.id)
    return create_message(request.type, reply, request.session_id, reply_to=request.id)


def close_with(
    client: Client, code: CloseCode, text: str = "", *, after: float | None = None
) -> None:
    """Close a client with a code and the reason that goes with it."""
    client.transport.close(code, close_reason(code, text, after=after))
