"""A client that sends exactly the bytes a test wants, and reads what comes back."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to `KEY`, as RFC 6455 section 1.3 gives it."""

PATIENCE = 10.0
"""Seconds after which an answer that a test waits for is missing."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Frame:
    """A frame that the server sent."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv1: bool = False

    @property
    def code(self) -> int:
        """The code of a close frame."""
        return int.from_bytes(self.payload[:2], "big")


def request(
    target: str = "/",
    *headers: str,
    method: str = "GET",
    version: str = "HTTP/1.1",
    host: str | None = "127.0.0.1",
) -> bytes:
    """Make a request head from whole header lines."""
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def upgrade(
    target: str = "/ws",
    *headers: str,
    connection: str = "Upgrade",
    version: str = "13",
    key: str = KEY,
) -> bytes:
    """Make the head of a WebSocket upgrade."""
    return request(
        target,
        "Upgrade: websocket",
        f"Connection: {connection}",
        f"Sec-WebSocket-Version: {version}",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    )


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Make a client's frame; `length` may lie about the payload."""
    size = len(payload) if length is None else length
    first, bit = (0x80 if fin else 0) | rsv << 4 | opcode, 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = b"\x11\x22\x33\x44"
    repeated = mask * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")
    return head + mask + number.to_bytes(len(payload), "big")


class RawSocket:
    """One TCP or TLS connection to a server under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, *, tls: ssl.SSLContext | None = None) -> RawSocket:
        """Connect to a port of loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    @classmethod
    async def websocket(
        cls, port: int, target: str = "/ws", *headers: str, tls: ssl.SSLContext | None = None
    ) -> RawSocket:
        """Connect, and upgrade to a WebSocket."""
        peer = await cls.connect(port, tls=tls)
        peer.send(upgrade(target, *headers))
        answer = await peer.head()
        assert answer.status == 101, answer
        return peer

    async def __aenter__(self) -> RawSocket:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut the connection, whatever its state, and wait until it is gone."""
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    def send_frame(self, opcode: int, payload: bytes = b"", **details: int) -> None:
        """Send one frame; see `client_frame`."""
        self.send(client_frame(opcode, payload, **details))  # type: ignore[arg-type]

    def send_text(self, text: str) -> None:
        """Send one whole text message."""
        self.send_frame(TEXT, text.encode())

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame."""
        self.send_frame(CLOSE, code.to_bytes(2, "big") + reason.encode())

    async def head(self) -> Answer:
        """Read an answer's head; its body stays unread."""
        async with asyncio.timeout(PATIENCE):
            data = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = data.decode("latin-1").split("\r\n")[:-2]
        fields = (line.split(":", 1) for line in lines)
        return Answer(int(status.split(" ")[1]), {n.lower(): v.strip() for n, v in fields}, b"")

    async def answer(self) -> Answer:
        """Read an answer and its body, of known length or up to the end."""
        head = await self.head()
        async with asyncio.timeout(PATIENCE):
            if "content-length" in head.headers:
                body = await self.reader.readexactly(int(head.headers["content-length"]))
            else:
                body = await self.reader.read()
        return Answer(head.status, head.headers, body)

    async def frame(self) -> Frame:
        """Read one frame."""
        async with asyncio.timeout(PATIENCE):
            first, size = await self.reader.readexactly(2)
            assert not size & 0x80, "a server's frames are not masked"
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            payload = await self.reader.readexactly(size)
        return Frame(first & 0x0F, payload, bool(first & 0x80), bool(first & 0x40))

    async def text(self) -> str:
        """Read one frame, which must be a whole text message."""
        frame = await self.frame()
        assert frame.opcode == TEXT, frame
        return frame.payload.decode()

    async def closing(self) -> Frame:
        """Read up to the close frame, and return it."""
        while (frame := await self.frame()).opcode != CLOSE:
            pass
        return frame

    async def rest(self) -> bytes:
        """Read up to the end of the connection; a reset is an end too."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""
