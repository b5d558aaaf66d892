"""
The frames that a server writes (RFC 6455), and the close frames that it reads.

Server frames are not masked, so the same bytes serve every member of a
session. Nothing here opens a socket or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from trunkline.errors import CloseCode, Disconnect

# The first byte of an unfragmented frame: FIN and the opcode.
TEXT = 0x81
BINARY = 0x82
CLOSE = 0x88
PING = 0x89
PONG = 0x8A

DEFLATED = 0x40
"""RSV1: the payload is compressed."""

NO_STATUS = 1005
"""What stands for the code of an empty close frame; never on the wire."""

ABNORMAL = 1006
"""What stands for the code when no close frame came; never on the wire."""


_medium_header = Struct("!BBH").pack
_large_header = Struct("!BBQ").pack


def frame(first: int, payload: bytes) -> bytes:
    """Frame `payload`; `first` is FIN, the reserved bits and the opcode."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return _medium_header(first, 126, size) + payload
    return _large_header(first, 127, size) + payload


def frame_text(messages: Sequence[bytes]) -> bytes:
    """Frame whole messages as text, joined."""
    return b"".join([frame(TEXT, message) for message in messages])


def close_frame(code: int, reason: str = "") -> bytes:
    """Make a close frame; a reason above 123 bytes is cut."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)


def read_close(payload: bytes) -> tuple[int, str]:
    """
    Read the payload of a close frame.

    Returns:
        The code, 1005 if there is none, and the reason.

    Raises:
        Disconnect: The payload is not one that a peer may send.
    """
    if not payload:
        return NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not _may_be_sent(code):
        raise Disconnect(CloseCode.PROTOCOL_ERROR, "bad close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Disconnect(CloseCode.INVALID_UTF8, "the close reason is not UTF-8") from None


def _may_be_sent(code: int) -> bool:
    if code < 3000:
        return code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1014
    return code < 5000
