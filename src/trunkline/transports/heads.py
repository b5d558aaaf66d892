"""
Request heads: read once, strictly.

A head that two readers could understand differently is refused, not repaired:
whoever stands before or behind the gateway then sees the same request that it
saw. Nothing here opens a socket or reads a clock.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from urllib.parse import unquote, unquote_to_bytes

import msgspec

MAX_HEAD = 16 * 1024
"""Bytes of a head, its blank line included."""

MAX_HEADERS = 64
"""Header lines of a head."""

MAX_TARGET = 8 * 1024
"""Bytes of a request target."""

SECRET_KEYS = frozenset({"token", "access_token", "api_key", "password", "auth", "code"})
"""Query keys that would put a credential where logs and histories keep it."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_request_line = re.compile(rb"(%b) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN).fullmatch
_header_lines = re.compile(rb"(?:%b:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*" % _TOKEN).fullmatch
_absolute = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE).fullmatch
_token_list = re.compile(rb"%b(?:[ \t]*,[ \t]*%b)*" % (_TOKEN, _TOKEN)).fullmatch
_length = re.compile(rb"[0-9]{1,18}").fullmatch

# An encoded letter, digit, "-", ".", "_", "~", "%", "/", ";" or "\" is another
# spelling of a path that has a plain one, and an encoded control byte has no
# business in any. They match no route.
_odd_spelling = re.compile(
    rb"%(?:[01][0-9a-f]|2[def5]|3[0-9b]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef])", re.IGNORECASE
).search
_bad_escape = re.compile(rb"%(?![0-9A-Fa-f]{2})").search

_SINGLE = frozenset(
    {
        b"host",
        b"authorization",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
    }
)


class BadHead(Exception):
    """
    The head cannot be accepted.

    Args:
        status: The HTTP status that tells the client.
        reason: A sentence for people; quotes nothing of the request.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(status, reason)


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The head of one HTTP request, known to be unambiguous."""

    method: str
    """Case-sensitive, as sent."""
    target: bytes
    """The request target, as sent."""
    path: str
    """The target's path, percent-decoded once; routes match it exactly."""
    query: str
    """What follows ``?`` in the target, not decoded."""
    headers: tuple[tuple[bytes, bytes], ...]
    """Names in lower case, values without surrounding blanks, in order."""
    version: str
    """``1.1`` or ``1.0``."""
    is_upgrade: bool
    """Whether the client asks for a WebSocket."""

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of the header `name` (lower case), if any."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        """Return all values of the header `name` (lower case), in order."""
        return [value for key, value in self.headers if key == name]


def parse_head(data: bytes) -> RequestHead:
    """
    Read a request head.

    Args:
        data: The head, from the request line to the blank line, both included.

    Raises:
        BadHead: It is malformed, ambiguous, too large, or of another HTTP
            version. Nothing else is ever raised.
    """
    if len(data) > MAX_HEAD:
        raise BadHead(431, "the head is too large")
    first, _, rest = data.partition(b"\r\n")
    method, target, version = _parse_request_line(first)
    headers = _parse_headers(rest)
    names = _check_names(headers)
    _check_body(names, version)
    local = _local_target(target, names[b"host"])
    raw_path, _, query = local.partition(b"?")
    return RequestHead(
        method=method,
        target=target,
        path=_decode_path(raw_path),
        query=query.decode("ascii"),
        headers=headers,
        version=version,
        is_upgrade=_asks_for_websocket(method, version, headers, names),
    )


def secret_in_query(query: str) -> bool:
    """Whether `query` has a key that names a credential, in any spelling."""
    if not query:
        return False
    for pair in re.split("[&;]", query):
        key = unquote(pair.partition("=")[0].replace("+", " "))
        if key.strip().lower() in SECRET_KEYS:
            return True
    return False


def tokens(values: list[bytes]) -> list[bytes]:
    """Split comma-separated header values into tokens, in lower case."""
    parts = b",".join(values).lower().split(b",")
    return [token for part in parts if (token := part.strip(b" \t"))]


def is_websocket_key(value: bytes | None) -> bool:
    """Whether `value` is a ``Sec-WebSocket-Key``: 16 bytes in base64."""
    if value is None or len(value) != 24:
        return False
    try:
        return len(b64decode(value, validate=True)) == 16
    except Base64Error:
        return False


def _parse_request_line(line: bytes) -> tuple[str, bytes, str]:
    match = _request_line(line)
    if match is None:
        raise BadHead(400, "the request line is malformed")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise BadHead(505, "the HTTP version is not supported")
    if len(target) > MAX_TARGET:
        raise BadHead(414, "the request target is too long")
    return method.decode("ascii"), target, f"1.{minor.decode('ascii')}"


def _parse_headers(block: bytes) -> tuple[tuple[bytes, bytes], ...]:
    # The pattern admits neither folding, nor a blank before the colon, nor a
    # lone CR or LF, nor a control byte; so splitting at CRLF is safe after it.
    if not block.endswith(b"\r\n") or _header_lines(block, 0, len(block) - 2) is None:
        raise BadHead(400, "a header line is malformed")
    lines = block.split(b"\r\n")[:-2]
    if len(lines) > MAX_HEADERS:
        raise BadHead(431, "there are too many headers")
    return tuple(
        (name.lower(), value.strip(b" \t"))
        for name, _, value in [line.partition(b":") for line in lines]
    )


def _check_names(headers: tuple[tuple[bytes, bytes], ...]) -> dict[bytes, bytes]:
    names: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in names and name in _SINGLE:
            raise BadHead(400, "a header that must be single is repeated")
        names[name] = value
        if name == b"sec-websocket-protocol" and _token_list(value) is None:
            raise BadHead(400, "Sec-WebSocket-Protocol is malformed")
    if b"host" not in names:
        raise BadHead(400, "the Host header is missing")
    return names


def _check_body(names: dict[bytes, bytes], version: str) -> None:
    length = names.get(b"content-length")
    coding = names.get(b"transfer-encoding")
    if length is not None and _length(length) is None:
        raise BadHead(400, "Content-Length is malformed")
    if coding is None:
        return
    if length is not None:
        raise BadHead(400, "Content-Length and Transfer-Encoding exclude each other")
    if coding.lower() != b"chunked" or version == "1.0":
        raise BadHead(400, "Transfer-Encoding is not supported")


def _local_target(target: bytes, host: bytes) -> bytes:
    if target.startswith(b"/") and b"#" not in target:
        return target
    match = _absolute(target)
    if match is None or b"#" in target:
        raise BadHead(400, "the request target is malformed")
    authority, rest = match.groups()
    if authority.lower() != host.lower():
        raise BadHead(400, "the request target and Host disagree")
    return rest if rest.startswith(b"/") else b"/" + bytes(rest)


def _decode_path(raw: bytes) -> str:
    if b"%" not in raw:
        return raw.decode("ascii")
    if _bad_escape(raw):
        raise BadHead(400, "the path is not percent-encoded correctly")
    if _odd_spelling(raw):
        raise BadHead(404, "no such path")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise BadHead(400, "the path is not UTF-8") from None


def _asks_for_websocket(
    method: str,
    version: str,
    headers: tuple[tuple[bytes, bytes], ...],
    names: dict[bytes, bytes],
) -> bool:
    upgrade = names.get(b"upgrade")
    if upgrade is None or method != "GET" or version != "1.1":
        return False
    connection = tokens([value for name, value in headers if name == b"connection"])
    if b"upgrade" not in connection or b"websocket" not in tokens([upgrade]):
        return False
    # What follows the head of an upgrade is frames; a body would be read as such.
    if names.get(b"content-length", b"0").strip(b"0") or b"transfer-encoding" in names:
        raise BadHead(400, "an upgrade has no body")
    return True
