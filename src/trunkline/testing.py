"""
For tests of one's own handlers and agents: a gateway driven without a socket.

`MemoryTransport` is a list standing in for the wire; `PeerClient` speaks over
it as a client would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from trunkline.clients import Client, Identity, Peer
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.server import GatewayServer
from trunkline.transport import Batch


class MemoryTransport:
    """
    A pipe into a list.

    Attributes:
        sent: The messages that were written, encoded.
        closed: Code and reason once it is closed.
        stuck: Bytes that it claims are waiting, to play a slow reader.
        paused: Whether the gateway has stopped reading.

    Args:
        on_close: Called once with code and reason, from the loop, as a real
            pipe would: never from within the call that closes it.
    """

    def __init__(self, on_close: Callable[[int, str], object] | None = None) -> None:
        self.sent: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.stuck = 0
        self.paused = False
        self._news = asyncio.Event()
        self._on_close = on_close

    def write(self, message: bytes) -> None:
        """Keep one message."""
        if self.closed is None:
            self.sent.append(message)
            self._news.set()

    def write_batch(self, batch: Batch) -> None:
        """Keep the messages of a batch."""
        if self.closed is None:
            self.sent.extend(batch.messages)
            self._news.set()

    def close(self, code: int, reason: str) -> None:
        """Close; what is written afterwards is dropped."""
        if self.closed is None:
            self.closed = (code, reason)
            self._news.set()
            if self._on_close is not None:
                asyncio.get_running_loop().call_soon(self._on_close, code, reason)

    def buffered(self) -> int:
        """Return `stuck`."""
        return self.stuck

    def pause_reading(self) -> None:
        """Set `paused`."""
        self.paused = True

    def resume_reading(self) -> None:
        """Clear `paused`."""
        self.paused = False

    async def changed(self) -> None:
        """Wait until something was written, or the pipe was closed."""
        await self._news.wait()
        self._news.clear()


class PeerClient:
    """
    A client of a `GatewayServer`, without a socket.

    Args:
        gateway: A started gateway.
        identity: Who it is; None leaves the sign-in to the test.
        address: Where it claims to come from.
        patience: Seconds that `next` and `gone` wait before they raise `TimeoutError`.
    """

    def __init__(
        self,
        gateway: GatewayServer,
        identity: Identity | None = None,
        address: str = "memory",
        patience: float = 10.0,
    ) -> None:
        self.gateway = gateway
        self.transport = MemoryTransport(self._closed)
        self._patience = patience
        self.client: Client = gateway.on_connect(self.transport, Peer(address, address), identity)
        self._read = 0

    def send(self, type: str, payload: Any = None, session: str | None = None, **more: Any) -> str:
        """Send a message; returns its id."""
        message = create_message(type, payload, session, **more)
        return self.send_message(message)

    def send_message(self, message: GatewayMessage) -> str:
        """Send a message that was made already; returns its id."""
        self.send_text(encode(message).decode())
        return message.id

    def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        self.gateway.on_message(self.client, text)

    def received(self) -> list[GatewayMessage]:
        """Return the messages that came since the last call."""
        new = self.transport.sent[self._read :]
        self._read = len(self.transport.sent)
        return [decode_message(frame) for frame in new]

    async def next(self, type: str | None = None, reply_to: str | None = None) -> GatewayMessage:
        """
        Wait for the next message, of a type or answering a message; others are passed over.

        Raises:
            ConnectionError: The gateway closed the connection, and all was read.
            TimeoutError: Nothing fits that came in time.
        """
        async with asyncio.timeout(self._patience):
            while True:
                while self._read < len(self.transport.sent):
                    message = decode_message(self.transport.sent[self._read])
                    self._read += 1
                    if type in (None, message.type) and reply_to in (None, message.reply_to):
                        return message
                if self.transport.closed is not None:
                    raise ConnectionError(f"closed: {self.transport.closed}")
                await self.transport.changed()

    async def ask(
        self, type: str, payload: Any = None, session: str | None = None
    ) -> GatewayMessage:
        """Send a message and wait for the one that answers it."""
        return await self.next(reply_to=self.send(type, payload, session))

    async def gone(self) -> tuple[int, str]:
        """Wait until the gateway has closed the connection; returns code and reason."""
        async with asyncio.timeout(self._patience):
            while self.transport.closed is None:
                await self.transport.changed()
        return self.transport.closed

    def disconnect(self, code: int = 1006, reason: str = "") -> None:
        """Go away."""
        self.transport.close(code, reason)
        self.gateway.on_disconnect(self.client, code, reason)

    def _closed(self, code: int, reason: str) -> None:
        self.gateway.on_disconnect(self.client, code, reason)
