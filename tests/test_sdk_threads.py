"""The socket that lives in a thread of its own, against a plain WebSocket server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from trunkline.messages import SUBPROTOCOL
from trunkline.sdk import threads
from trunkline.sdk.sockets import SignIn
from trunkline.sdk.threads import dial_in_thread


class Server:
    """Keeps what comes, and does with each connection what the test says."""

    def __init__(self) -> None:
        self.received: list[str | bytes] = []
        self.url = ""
        self.closed = asyncio.Event()
        self.greet: list[str] = []
        self.hang_up = False

    async def handle(self, connection: ServerConnection) -> None:
        for frame in self.greet:
            await connection.send(frame)
        if not self.hang_up:
            async for frame in connection:
                self.received.append(frame)
        self.closed.set()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with serve(server.handle, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL]) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        server.url = f"ws://127.0.0.1:{port}"
        yield server


def sign_in(url: str) -> SignIn:
    return SignIn(url=url, device_id="d")


def socket_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "trunkline-socket"]


async def test_what_was_sent_before_the_close_arrives(server, monkeypatch):
    """Closing sends everything first, in order, also where senders had to wait."""
    monkeypatch.setattr(threads, "MAX_UNSENT", 1_000)
    socket = await dial_in_thread(sign_in(server.url))
    frames = [f"{n:05}" for n in range(2_000)]

    for frame in frames:
        await socket.send(frame.encode())
    await socket.close()
    await server.closed.wait()

    assert server.received == frames


async def test_what_came_before_the_end_is_read(server):
    """The end is told only after the last frame."""
    server.greet, server.hang_up = [str(n) for n in range(100)], True
    socket = await dial_in_thread(sign_in(server.url))
    await server.closed.wait()

    frames = [await socket.recv() for _ in range(100)]
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    with pytest.raises(ConnectionClosed):
        await socket.send(b"too late")

    assert frames == [str(n).encode() for n in range(100)]


async def test_a_program_that_does_not_read_holds_the_gateway_back(server, monkeypatch):
    """Reading ahead has a bound; past it everything still arrives, once it is read."""
    monkeypatch.setattr(threads, "MAX_UNREAD", 1_000)
    server.greet, server.hang_up = ["x" * 100 for _ in range(500)], True
    socket = await dial_in_thread(sign_in(server.url))

    frames = [await socket.recv() for _ in range(500)]

    assert len(frames) == 500


async def test_the_thread_ends_with_its_socket(server):
    """Nothing is left behind after an abort."""
    socket = await dial_in_thread(sign_in(server.url))
    (thread,) = socket_threads()

    socket.abort()
    await asyncio.to_thread(thread.join, 10)

    assert not thread.is_alive()
    with pytest.raises(ConnectionClosed):
        await socket.recv()


async def test_a_gateway_that_is_not_there_is_told():
    """What goes wrong in the thread is raised where the socket was asked for."""
    with pytest.raises(OSError, match="9"):
        await dial_in_thread(sign_in("ws://127.0.0.1:9"))
