"""A TCP proxy for tests that breaks connections when it is told to."""

from __future__ import annotations

import asyncio


class LossyLine:
    """
    Forwards to a local port; `cut` resets what is open, `stall` stops what flows to clients,
    `swallow` loses what they send.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._swallowing = False
        self._tries = asyncio.Semaphore(0)

    async def __aenter__(self) -> LossyLine:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every open connection; what was under way is lost."""
        self._swallowing = False
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def swallow(self) -> None:
        """Lose what clients send from now on, until `cut`."""
        self._swallowing = True

    def refuse(self) -> None:
        """Cut, and reset every new connection until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        self._refusing = False

    def redirect(self, port: int) -> None:
        """Forward to another port from now on, and accept."""
        self._target = port
        self._refusing = False

    async def tried(self, times: int) -> None:
        """Wait until somebody has connected `times` more times."""
        for _ in range(times):
            await self._tries.acquire()

    def stall(self) -> None:
        """Deliver nothing to clients until `flow`; what they send goes on."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tries.release()
        if self._refusing:
            writer.transport.abort()
            return
        there, away = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, away}
        for work in (self._pump(reader, away), self._pump(there, writer, hold=True)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, hold: bool = False
    ) -> None:
        try:
            while data := await reader.read(65536):
                if hold:
                    await self._flowing.wait()
                elif self._swallowing:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
            self._open.discard(writer)
