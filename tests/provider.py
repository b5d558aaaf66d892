"""The https server on which an identity provider publishes its keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from certificates import write_certificate
from tokens import jwk

from trunkline.transports.listener import make_ssl_context


class Provider:
    """An https server with keys, which counts who asks."""

    def __init__(self, folder: Path) -> None:
        self.asked = 0
        self.hosts: list[str] = []
        self.keys: list[dict[str, Any]] = [jwk("RS256", "rsa"), jwk("ES256", "ec")]
        self.head = "200 OK"
        self.body: bytes | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.cert, self._key = write_certificate(folder)

    @asynccontextmanager
    async def serving(self, tls: bool = True) -> AsyncIterator[Provider]:
        context = make_ssl_context(self.cert, self._key) if tls else None
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/keys"
        try:
            yield self
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            self.hosts += [
                line[6:].decode() for line in head.split(b"\r\n") if line.startswith(b"Host: ")
            ]
            await self.gate.wait()
            body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
            length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(f"HTTP/1.1 {self.head}\r\n{length}".encode() + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
