"""
One WebSocket: picows parses, everything else is decided here.

picows sits between two pieces of ours. Below it `Wire` hands it the bytes of
the socket and keeps it from writing any; above it `Connection` takes its
frames, holds the peer to RFC 6455 and to the limits, and writes. This is the
only module that knows picows.

    socket <-> uvloop <-> Wire -> picows -> Connection <-> Receiver
                  ^-----------------------------'
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from picows import (
    WSAutoPingStrategy,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # not in its public names

from trunkline.errors import CloseCode, Disconnect, close_reason
from trunkline.transport import Batch, Framer
from trunkline.transports.assembly import Assembly
from trunkline.transports.deflate import deflating
from trunkline.transports.frames import (
    ABNORMAL,
    BINARY,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
    frame_text,
    read_close,
)
from trunkline.transports.linger import linger
from trunkline.transports.receiver import ConnectionOptions as ConnectionOptions
from trunkline.transports.receiver import Receiver

log = logging.getLogger(__name__)


_READ_MAX = 64 * 1024
"""Bytes of one read; picows doubles its buffer whenever a read fills it."""

_HEAD = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
"""picows gets this in place of the client's head, which has been judged already."""

_ACCEPTED = WSUpgradeResponse.create_101_response()


class _ParserLog:
    """What picows logs to; not a `logging.Logger`, of which it would make a child each time."""

    def isEnabledFor(self, level: int) -> bool:
        return False

    def log(self, *args: object) -> None:
        pass

    debug = info = warning = error = log

    def exception(self, message: str, *args: object) -> None:
        log.exception(message, *args)


class _NoSocket:
    """Stands for the socket, so that picows makes no system calls on it."""

    def fileno(self) -> int:
        return -1

    def getsockopt(self, *args: int) -> int:
        return 0

    def setsockopt(self, *args: int) -> None:
        pass


_PARSER_LOG = _ParserLog()
_NO_SOCKET = _NoSocket()


class _Wire(asyncio.BufferedProtocol):
    """
    To the event loop a protocol, to picows a transport.

    picows would write three things by itself: the answer to the upgrade, the
    close frame after a broken frame, and the one after an exception. None of
    them reaches the socket; the close frames are how we learn of the errors.

    picows looks one frame ahead: it finds the broken frame before it hands
    over the good one in front of it. So what it says of a broken frame is kept
    until it has handed over everything.
    """

    __slots__ = ("_broken", "_connection", "_parser", "_unfinished")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection = connection
        self._broken = 0
        self._unfinished = 0
        self.renew()

    def renew(self) -> None:
        """Start with a small parser again: picows never gives memory back."""
        options = self._connection.options
        self._parser = WSProtocol(
            None,
            None,
            False,
            self._accept,
            _PARSER_LOG,
            True,
            None,
            False,
            0,
            0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,
            options.max_message,
            None,
            options.read_buffer,
        )
        self._parser.connection_made(self)
        self.feed(_HEAD)
        self._unfinished = 0

    def feed(self, data: bytes) -> None:
        """Parse bytes that were read elsewhere."""
        while data and not self._broken:
            buffer = self.get_buffer(-1)
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.buffer_updated(count)
            data = data[count:]

    def _accept(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        return WSUpgradeResponseWithListener(_ACCEPTED, self._connection)

    # The event loop's side

    def get_buffer(self, hint: int) -> memoryview:
        buffer: memoryview = self._parser.get_buffer(hint)
        return buffer if len(buffer) <= _READ_MAX else buffer[:_READ_MAX]

    def buffer_updated(self, count: int) -> None:
        if self._connection.limited:
            self._count_unfinished(count)
        else:
            self._parser.buffer_updated(count)
        if self._broken:
            self._connection.parser_failed(self._broken)

    def _count_unfinished(self, count: int) -> None:
        # picows has one limit for all, and for good. Below it, count what is
        # here of a frame that is not whole yet; `heard` tells of whole ones.
        connection = self._connection
        heard, connection.heard = connection.heard, False
        self._parser.buffer_updated(count)
        if connection.heard:
            self._unfinished = 0
        else:
            connection.heard = heard
            self._unfinished += count
            connection.unfinished(self._unfinished)

    def shrink(self) -> None:
        """Renew a parser that has grown; all it was given must have been read."""
        if len(self._parser.get_buffer(-1)) > self._connection.options.read_buffer:
            self.renew()

    def release(self) -> None:
        """Break the circles of references, so that no collection is needed."""
        del self._parser, self._connection

    def eof_received(self) -> bool:
        self._connection.peer_left()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.lost()

    def pause_writing(self) -> None:
        self._connection.lag(True)

    def resume_writing(self) -> None:
        self._connection.lag(False)

    # picows' side

    def get_extra_info(self, name: str) -> object:
        return _NO_SOCKET if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        # Above zero picows hands its bytes to `write` instead of to the kernel.
        return 1

    def write(self, data: bytes) -> None:
        if not data.startswith(b"\x88"):
            return
        code = int.from_bytes(data[2:4], "big")
        if code == CloseCode.INTERNAL:
            self._connection.parser_failed(code)
        else:
            self._broken = code

    def close(self) -> None:
        """picows closes shortly after an error; the connection does that itself."""

    abort = close


def _drop(data: bytes) -> None:
    """What writes go to once a connection has ended."""


_ENDED = Assembly(text=False, deflated=False, max_size=0, max_fragments=0)
"""Stands in `Connection._assembly` once no more messages are taken."""

_QUICK = 32 * 1024
"""Bytes of a message up to which nothing special is done."""


class Outbox:
    """
    Joins what connections are told one message at a time, until the loop's next turn.

    A system call costs more than everything else that is done for a message,
    so replies to pipelined requests leave together.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Flush a connection before the loop waits again."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


class Connection(WSListener):
    """
    One open WebSocket; a `trunkline.transport.Transport` for its receiver.

    Args:
        receiver: Who hears it.
        options: Limits and deadlines.
        deflate: Whether permessage-deflate was negotiated.
        outbox: Flushes the connection once a turn; shared by a listener's connections.
        ended: Called when the socket has closed, after everything else.
    """

    __slots__ = (
        "_assembly",
        "_ended",
        "_framer",
        "_max_message",
        "_outbox",
        "_queued",
        "_quick",
        "_receiver",
        "_send",
        "_timer",
        "_tokens",
        "_tokens_at",
        "_transport",
        "_wire",
        "heard",
        "limited",
        "options",
        "peername",
    )

    def __init__(
        self,
        receiver: Receiver,
        options: ConnectionOptions,
        *,
        deflate: bool,
        outbox: Outbox,
        ended: Callable[[Connection], None],
    ) -> None:
        self.options = options
        self.heard = False
        """Set by every frame that comes, pongs among them; whoever sweeps resets it."""
        self.peername: Any = None
        """The peer's address, as the socket has it."""
        self._receiver = receiver
        self._ended = ended
        self._outbox = outbox
        self._queued: list[bytes] = []
        self._framer: Framer = deflating(options.compress_min) if deflate else frame_text
        self._assembly: Assembly | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tokens = float(options.control_burst)
        self._tokens_at = 0.0
        self.limited = False
        """Whether `max_message` is below what the options, and so the parser, allow."""
        self._max_message = options.max_message
        self._quick = min(_QUICK, options.max_message)
        self._send: Callable[[bytes], None] = _drop

    def open(self, transport: asyncio.Transport, answer: bytes, rest: bytes) -> None:
        """
        Take a socket over, whose client has asked for a WebSocket.

        Args:
            transport: The socket.
            answer: The whole 101 answer.
            rest: What the client sent behind its head.
        """
        self.peername = transport.get_extra_info("peername")
        self._transport = transport
        transport.set_write_buffer_limits(self.options.lag_bytes, self.options.lag_bytes // 4)
        self._wire = wire = _Wire(self)
        transport.set_protocol(wire)
        transport.write(answer)
        self._send = transport.write
        self._receiver.opened(self)
        wire.feed(rest)

    # Transport

    def write(self, message: bytes) -> None:
        """Queue one whole message as a text frame."""
        if self._framer is frame_text:
            self._queue(frame(TEXT, message))
        else:
            self._queue(self._framer((message,)))

    def write_bytes(self, message: bytes) -> None:
        """Queue one whole message as a binary frame, uncompressed."""
        self._queue(frame(BINARY, message))

    def write_batch(self, batch: Batch) -> None:
        """Queue all messages of a batch, in one piece, which goes out at once."""
        if self._queued:
            self.flush()
        self._send(batch.framed(self._framer))

    def ping(self) -> None:
        """Queue a ping; the pong sets `heard`."""
        self._queue(frame(PING, b""))

    def flush(self) -> None:
        """Give what is queued to the socket."""
        queued = self._queued
        if queued:
            self._queued = []
            self._send(queued[0] if len(queued) == 1 else b"".join(queued))

    def _queue(self, data: bytes) -> None:
        if not self._queued:
            self._outbox.add(self)
        self._queued.append(data)

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close; the socket is cut after ``close_timeout``."""
        if self._assembly is not _ENDED:
            self._end(code, reason, close_frame(code, reason))
            self._transport.resume_reading()

    def buffered(self) -> int:
        """Return the bytes that wait for the peer to read them."""
        return 0 if self._assembly is _ENDED else self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Take no more from the socket; what was read already still comes (64 KiB at most)."""
        if self._assembly is not _ENDED:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take messages again."""
        if self._assembly is not _ENDED:
            self._transport.resume_reading()

    @property
    def max_message(self) -> int:
        """Bytes of one incoming message; at most what the options say."""
        return self._max_message

    @max_message.setter
    def max_message(self, limit: int) -> None:
        self._max_message = min(limit, self.options.max_message)
        self._quick = min(_QUICK, limit)
        self.limited = limit < self.options.max_message

    # What picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Free what picows keeps of the upgrade."""
        transport.request.headers.clear()

    def on_ws_frame(self, transport: WSTransport, incoming: WSFrame) -> None:
        """Take one frame; what is not a small, whole text goes the long way."""
        self.heard = True
        if (
            incoming.msg_type is WSMsgType.TEXT
            and incoming.payload_size <= self._quick
            and self._assembly is None
            and incoming.fin
            and not (incoming.rsv1 or incoming.rsv2 or incoming.rsv3)
        ):
            try:
                text = incoming.get_payload_as_utf8_text()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_UTF8, "the message is not UTF-8")
            else:
                self._receiver.received(text)
        else:
            self._take(incoming)

    def _take(self, incoming: WSFrame) -> None:
        try:
            if incoming.rsv2 or incoming.rsv3:
                raise Disconnect(CloseCode.PROTOCOL_ERROR, "reserved bits")
            match incoming.msg_type:
                case WSMsgType.CLOSE:
                    self._take_close(incoming)
                case WSMsgType.PING | WSMsgType.PONG:
                    self._take_control(incoming)
                case _:
                    self._take_data(incoming)
        except Disconnect as error:
            if error.code == CloseCode.TOO_LARGE:
                self._receiver.too_large(self._max_message)
            self._fail(error.code, error.text)

    def _take_close(self, incoming: WSFrame) -> None:
        if incoming.rsv1:
            raise Disconnect(CloseCode.PROTOCOL_ERROR, "reserved bits")
        code, reason = read_close(incoming.get_payload_as_bytes())
        if self._assembly is not _ENDED:
            answer = CloseCode.NORMAL if code == NO_STATUS else code
            self._end(code, reason, close_frame(answer))
        self._transport.close()

    def _take_control(self, incoming: WSFrame) -> None:
        if self._assembly is _ENDED:
            return
        if incoming.rsv1:
            raise Disconnect(CloseCode.PROTOCOL_ERROR, "reserved bits")
        now = time.monotonic()
        gained = (now - self._tokens_at) * self.options.control_rate
        self._tokens = min(self._tokens + gained, self.options.control_burst) - 1
        self._tokens_at = now
        if self._tokens < 0:
            raise Disconnect(CloseCode.POLICY, "too many control frames")
        if incoming.msg_type is WSMsgType.PING:
            self._queue(frame(PONG, incoming.get_payload_as_bytes()))
        else:
            self._shrink(incoming)

    def _take_data(self, incoming: WSFrame) -> None:
        if self._assembly is _ENDED:
            return
        if incoming.payload_size > self._max_message:
            raise Disconnect(CloseCode.TOO_LARGE, "the message is too large")
        assembly = self._assembly_of(incoming)
        whole = assembly.add(incoming.get_payload_as_bytes(), last=bool(incoming.fin))
        if whole is None:
            return
        self._assembly = None
        self._stop_timer()
        if assembly.text:
            self._receiver.received(whole.decode())
        else:
            self._receiver.received_bytes(whole)  # type: ignore[attr-defined]
        if incoming.payload_size > _QUICK:
            self._shrink(incoming)

    def _shrink(self, incoming: WSFrame) -> None:
        if incoming.last_in_buffer and not incoming.tail_size and self._assembly is not _ENDED:
            self._wire.shrink()

    def _assembly_of(self, incoming: WSFrame) -> Assembly:
        kind = incoming.msg_type
        if (kind is WSMsgType.CONTINUATION) != (self._assembly is not None):
            raise Disconnect(CloseCode.PROTOCOL_ERROR, "a fragment out of order")
        if incoming.rsv1 and (self._assembly is not None or self._framer is frame_text):
            raise Disconnect(CloseCode.PROTOCOL_ERROR, "reserved bits")
        if self._assembly is not None:
            return self._assembly
        if kind is WSMsgType.BINARY and not self.options.binary:
            raise Disconnect(CloseCode.UNSUPPORTED_DATA, "only text is understood")
        assembly = Assembly(
            text=kind is WSMsgType.TEXT,
            deflated=bool(incoming.rsv1),
            max_size=self._max_message,
            max_fragments=self.options.max_fragments,
        )
        if not incoming.fin:
            self._assembly = assembly
            self._start_timer(
                self.options.fragment_deadline,
                self._fail,
                CloseCode.POLICY,
                "the message took too long",
            )
        return assembly

    # What the wire calls

    def parser_failed(self, code: int) -> None:
        """End the connection because of a frame that picows refuses, or a bug of ours."""
        if code == CloseCode.TOO_LARGE and self._assembly is not _ENDED:
            self._receiver.too_large(self._max_message)
        self._fail(code, "bad frame" if code != CloseCode.INTERNAL else "")

    def unfinished(self, size: int) -> None:
        """Judge a frame of which `size` bytes are here, and not all."""
        if size > self._max_message + 14 and self._assembly is not _ENDED:
            self._receiver.too_large(self._max_message)
            self._fail(CloseCode.TOO_LARGE, "the message is too large")

    def lag(self, yes: bool) -> None:
        """Note that the unread output rose above its high mark, or fell below its low one."""
        if self._assembly is not _ENDED:
            self._send = self._send_lagging if yes else self._transport.write
            self._receiver.lagging(yes)

    def peer_left(self) -> None:
        """Note that the peer sends no more, and said no word of it."""
        if self._assembly is not _ENDED:
            self._end(ABNORMAL, "", b"")

    def lost(self) -> None:
        """Note that the socket has closed."""
        self._stop_timer()
        if self._assembly is not _ENDED:
            self._assembly = _ENDED
            self._send = _drop
            self._queued = []
            self._receiver.closed(ABNORMAL, "")
        self._wire.release()
        self._ended(self)

    # How it ends

    def _send_lagging(self, data: bytes) -> None:
        if self._transport.get_write_buffer_size() > self.options.max_buffered:
            reason = close_reason(CloseCode.TOO_SLOW)
            self._end(CloseCode.TOO_SLOW, reason, close_frame(CloseCode.TOO_SLOW, reason))
        else:
            self._transport.write(data)

    def _fail(self, code: int, text: str) -> None:
        if self._assembly is not _ENDED:
            reason = close_reason(code, text)
            self._end(code, reason, close_frame(code, reason))
        linger(self._transport, self.lost)

    def _end(self, code: int, reason: str, last_words: bytes) -> None:
        if code != CloseCode.TOO_SLOW:
            self.flush()
            if self._assembly is _ENDED:  # what was queued was too much for a slow reader
                return
        self._queued = []
        self._transport.write(last_words)
        self._send = _drop
        self._assembly = _ENDED
        self._start_timer(self.options.close_timeout, self._transport.abort)
        asyncio.get_running_loop().call_soon(self._receiver.closed, code, reason)

    def _start_timer(self, seconds: float, then: Callable[..., object], *args: object) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then, *args)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
