"""
How frames travel to a gateway: the seam below `Connection`, and the WebSocket behind it.

A test puts something else there: `Options.dial` takes any function that opens
a `Socket`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import websockets.asyncio.client as ws_client
from websockets.typing import Subprotocol

from trunkline.messages import SUBPROTOCOL, Role, create_message, encode

MAX_FRAME = 2 * 1024 * 1024
"""Bytes; the gateway's own frames are never larger."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for opening a socket, and again for signing in."""

QUIET = 24.0
"""Seconds without a frame after which the gateway is asked whether it is there."""

PONG_TIMEOUT = 8.0
"""Seconds that it then has to answer."""


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect, and as whom."""

    url: str
    device_id: str
    token: str | None = None
    password: str | None = None
    user: str | None = None
    device_name: str | None = None
    role: Role | None = None
    ssl: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"SignIn(url={self.url!r}, device_id={self.device_id!r})"


class Socket(Protocol):
    """
    An open pipe of whole frames.

    `recv` and `send` raise ``websockets.ConnectionClosed`` once it has ended.
    One `recv` at a time, and no `recv` or `send` from another thread.
    """

    async def recv(self) -> bytes:
        """Wait for the next frame; `TimeoutError` if the gateway has fallen silent."""

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits while the gateway does not read."""

    async def close(self) -> None:
        """Close in order, with 1000."""

    def abort(self) -> None:
        """Drop what is left of it; may be called at any time and more than once."""


Dial = Callable[[SignIn], Awaitable[Socket]]
"""Opens a socket; raises `OSError`, `TimeoutError` or ``websockets.InvalidHandshake``."""


class WebSocket:
    """A `Socket` over the network."""

    def __init__(self, ws: ws_client.ClientConnection) -> None:
        self._ws = ws

    async def recv(self) -> bytes:
        """Wait for the next frame; a quiet gateway is asked whether it is there."""
        try:
            async with asyncio.timeout(QUIET):
                return await self._ws.recv(decode=False)
        except TimeoutError:
            await self.send(encode(create_message("ping")))
        async with asyncio.timeout(PONG_TIMEOUT):
            return await self._ws.recv(decode=False)

    async def send(self, frame: bytes) -> None:
        """Send a frame."""
        await self._ws.send(frame, text=True)

    async def close(self) -> None:
        """Close with 1000, and wait for the other side's close."""
        await self._ws.close()

    def abort(self) -> None:
        """Drop the TCP connection."""
        self._ws.transport.abort()


class _Opening(ws_client.connect):
    """An upgrade that goes to the given address or nowhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow nothing: a redirect must not choose who gets the credential."""
        return exc


async def dial(me: SignIn) -> WebSocket:
    """Open a WebSocket on the calling loop; see `Dial`."""
    headers = {} if me.token is None else {"Authorization": f"Bearer {me.token}"}
    secure = me.url.startswith("wss:")
    ws = await _Opening(
        me.url,
        ssl=me.ssl if secure else None,
        additional_headers=headers,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        # A proxy of the environment may carry TLS; it must not read plain credentials.
        proxy=True if secure else None,
        open_timeout=HANDSHAKE_TIMEOUT,
        # A sign of life even while a slow application holds the reader back;
        # whether the gateway lives is judged by `recv`, from what is read.
        ping_timeout=None,
        close_timeout=2,
        max_size=MAX_FRAME,
    )
    return WebSocket(ws)
