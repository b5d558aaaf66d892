"""
What a server has to make of a client's bytes: RFC 6455, read slowly and plainly.

It shares nothing with the server, so where the two disagree one of them is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
CONTROL = 0x8

PROTOCOL_ERROR, UNSUPPORTED, INVALID, TOO_LARGE = 1002, 1003, 1007, 1009


@dataclass
class Outcome:
    """What becomes of a stream of bytes."""

    texts: list[str] = field(default_factory=list)
    """The messages that the server takes."""
    codes: set[int] = field(default_factory=set)
    """The close codes that are right, if the connection is to end by one."""
    whole: bool = True
    """Whether the frame that ends it came whole; half a frame need not be judged."""
    pings: list[bytes] = field(default_factory=list)
    """The payloads of the pings that came before the end."""


@dataclass
class _Frame:
    fin: bool
    rsv: int
    opcode: int
    masked: bool
    minimal: bool
    size: int
    payload: bytes | None


def outcome(data: bytes, max_message: int) -> Outcome:
    """Return what becomes of `data`, sent behind the handshake."""
    result = Outcome()
    parts: bytearray | None = None
    while (read := _read(data)) is not None:
        frame, data = read
        codes = _faults(frame, parts is not None)
        codes |= _size_faults(frame, parts, max_message)
        if frame.payload is None:
            result.codes, result.whole = codes, False
            return result
        if codes:  # a frame may be wrong in several ways, and any of them may be told
            result.codes = codes | _content_faults(frame.opcode, frame.payload)
            return result
        if frame.opcode == CLOSE:
            result.codes = _close_codes(frame.payload)
            return result
        if frame.opcode == PING:
            result.pings.append(frame.payload)
        elif frame.opcode != PONG:
            parts = (parts or bytearray()) + frame.payload
            if not _may_be_text(parts, last=frame.fin):
                result.codes = {INVALID}
                return result
            if frame.fin:
                result.texts.append(parts.decode())
                parts = None
    result.whole = not data  # what is left is half a head, whose first byte may be wrong already
    return result


def _read(data: bytes) -> tuple[_Frame, bytes] | None:
    """Read one frame; its payload is None where it is not all there. None: not even a head."""
    if len(data) < 2:
        return None
    first, second = data[0], data[1]
    size, head = second & 0x7F, 2
    minimal = True
    if size >= 126:
        wide = 2 if size == 126 else 8
        if len(data) < 2 + wide:
            return None
        size = int.from_bytes(data[2 : 2 + wide], "big")
        minimal = size >= (126 if wide == 2 else 65536) and size < 2**63
        head += wide
    masked = bool(second & 0x80)
    if masked:
        if len(data) < head + 4:
            return None
        mask, head = data[head : head + 4], head + 4
    payload: bytes | None = None
    if len(data) >= head + size:
        payload = data[head : head + size]
        if masked:
            payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    opcode, rsv = first & 0x0F, first >> 4 & 7
    frame = _Frame(bool(first & 0x80), rsv, opcode, masked, minimal, size, payload)
    return frame, data[head + size :]


def _faults(frame: _Frame, continued: bool) -> set[int]:
    codes: set[int] = set()
    if frame.rsv or not frame.masked or not frame.minimal:
        codes.add(PROTOCOL_ERROR)
    if frame.opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        codes.add(PROTOCOL_ERROR)
    if frame.opcode & CONTROL and (frame.size > 125 or not frame.fin):
        codes.add(PROTOCOL_ERROR)
    if frame.opcode == CONTINUATION and not continued:
        codes.add(PROTOCOL_ERROR)
    if frame.opcode in (TEXT, BINARY) and continued:
        codes.add(PROTOCOL_ERROR)
    if frame.opcode == BINARY:
        codes.add(UNSUPPORTED)
    return codes


def _size_faults(frame: _Frame, parts: bytearray | None, limit: int) -> set[int]:
    size = frame.size + (0 if frame.opcode & CONTROL else len(parts or b""))
    return {TOO_LARGE} if size > limit else set()


def _content_faults(opcode: int, payload: bytes) -> set[int]:
    if opcode == CLOSE:
        return _close_codes(payload) & {PROTOCOL_ERROR, INVALID}
    return set() if _may_be_text(payload, last=True) else {INVALID}


def _close_codes(payload: bytes) -> set[int]:
    """Return the codes with which a server may answer a close frame."""
    if not payload:
        return {1000}
    code, faults = int.from_bytes(payload[:2], "big"), set[int]()
    allowed = code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1014 or 3000 <= code < 5000
    if len(payload) == 1 or not allowed:
        faults.add(PROTOCOL_ERROR)
    if not _may_be_text(payload[2:], last=True):
        faults.add(INVALID)
    return faults or {code}


def _may_be_text(data: bytes | bytearray, *, last: bool) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and error.end == len(data)
        return cut and not last
    return True
