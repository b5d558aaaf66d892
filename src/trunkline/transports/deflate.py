"""
permessage-deflate (RFC 7692), without context takeover.

Each message is compressed by itself: no connection keeps a window, and what
a session produced in one turn is compressed once for all its members.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

from trunkline.transport import Framer
from trunkline.transports.frames import DEFLATED, TEXT, frame
from trunkline.transports.heads import tokens

WINDOW_BITS = 11
"""Base-two logarithm of the window that the gateway compresses with."""

_LEVEL = 1
_TAIL = b"\x00\x00\xff\xff"
_ANSWER = (
    b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    b"; server_max_window_bits=%d" % WINDOW_BITS
)


class InflateError(Exception):
    """The compressed data is damaged."""


class Inflater:
    """Undoes the compression of one message, fragment by fragment."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def inflate(self, data: bytes, room: int, *, last: bool) -> bytes:
        """
        Return the text of the next fragment, at most `room` + 1 bytes of it.

        One byte more than `room` tells the caller that the message is too
        large; whatever else the fragment would have become is never made.

        Raises:
            InflateError: The data is not what deflate makes.
        """
        try:
            return self._stream.decompress(data + _TAIL if last else data, room + 1)
        except zlib.error as error:
            raise InflateError from error


def negotiate(offers: list[bytes]) -> bytes | None:
    """
    Choose from the offers of ``Sec-WebSocket-Extensions``.

    Returns:
        The header's value for the answer, or None to go without compression.
    """
    for offer in tokens(offers):
        name, *parameters = [part.strip(b" \t") for part in offer.split(b";")]
        if name == b"permessage-deflate" and _acceptable(parameters):
            return _ANSWER
    return None


def _acceptable(parameters: list[bytes]) -> bool:
    names = [parameter.partition(b"=")[0].rstrip(b" \t") for parameter in parameters]
    if len(set(names)) != len(names):
        return False
    return all(map(_acceptable_parameter, parameters))


def _acceptable_parameter(parameter: bytes) -> bool:
    name, equals, value = parameter.partition(b"=")
    value = value.strip(b' \t"')
    match name.rstrip(b" \t"):
        case b"server_no_context_takeover" | b"client_no_context_takeover":
            return not equals
        case b"client_max_window_bits":
            return not equals or _window_bits(value) is not None
        case b"server_max_window_bits":
            bits = _window_bits(value)
            return bits is not None and bits >= WINDOW_BITS
    return False


def _window_bits(value: bytes) -> int | None:
    return int(value) if value in (b"8", b"9", *(b"%d" % n for n in range(10, 16))) else None


def compress(message: bytes) -> bytes:
    """Compress one message into the payload of a frame that has RSV1 set."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS)
    return (stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


@lru_cache(maxsize=8)
def deflating(compress_min: int) -> Framer:
    """
    Return the framer that compresses messages of `compress_min` bytes or more.

    The same minimum gives the same function, so that connections share what a
    batch was framed to.
    """

    def framer(messages: Sequence[bytes]) -> bytes:
        return b"".join(
            [
                frame(TEXT | DEFLATED, compress(message))
                if len(message) >= compress_min
                else frame(TEXT, message)
                for message in messages
            ]
        )

    return framer
