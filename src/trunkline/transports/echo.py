"""
An echo server on the gateway's own transport, for conformance suites.

    python -m trunkline.transports.echo --port 9001 [--deflate]
"""

from __future__ import annotations

import argparse
import asyncio

from starlette.applications import Starlette

from trunkline.transport import Transport
from trunkline.transports.connection import Connection
from trunkline.transports.heads import RequestHead
from trunkline.transports.listener import Listener, ListenerOptions, Peer
from trunkline.transports.receiver import ConnectionOptions


class Echo:
    """Sends every message back, as it came."""

    def opened(self, transport: Transport, /) -> None:
        """Keep the way back."""
        assert isinstance(transport, Connection)
        self._connection = transport

    def received(self, text: str, /) -> None:
        """Send text back."""
        self._connection.write(text.encode())

    def received_bytes(self, data: bytes, /) -> None:
        """Send bytes back."""
        self._connection.write_bytes(data)

    def too_large(self, limit: int, /) -> None:
        """Leave it to the close code."""

    def lagging(self, yes: bool, /) -> None:
        """Read no more than the peer reads."""
        if yes:
            self._connection.pause_reading()
        else:
            self._connection.resume_reading()

    def closed(self, code: int, reason: str, /) -> None:
        """Nothing is left to do."""


def _accept(head: RequestHead, peer: Peer, tls: bool) -> Echo:
    return Echo()


async def start(port: int, *, deflate: bool, max_message: int = 16 * 1024 * 1024) -> Listener:
    """
    Serve the echo at ``/`` of a loopback port.

    Args:
        port: The port; 0 lets the kernel choose.
        deflate: Whether to grant permessage-deflate.
        max_message: Bytes of one message.
    """
    return await Listener.start(
        "127.0.0.1",
        port,
        on_head=_accept,
        http_app=Starlette(),
        listening=ListenerOptions(path="/"),
        options=ConnectionOptions(
            max_message=max_message,
            max_buffered=2 * max_message,
            max_fragments=1024 * 1024,
            control_burst=1000,
            compression=deflate,
            compress_min=64,
            binary=True,
        ),
    )


async def _serve(port: int, deflate: bool) -> None:
    listener = await start(port, deflate=deflate)
    print(f"listening on 127.0.0.1:{listener.port}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--deflate", action="store_true", help="grant permessage-deflate")
    arguments = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(arguments.port, arguments.deflate))
    else:
        uvloop.run(_serve(arguments.port, arguments.deflate))


if __name__ == "__main__":
    main()
