"""
A socket in a thread of its own, for programs whose own code blocks.

The thread has a loop of its own, which answers pings and reads ahead, whatever
the program's loop is doing. Each socket has one thread, which ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from trunkline.sdk.sockets import SignIn, Socket, dial

MAX_UNREAD = 8 * 1024 * 1024
"""Bytes that are read ahead of the program; above that the gateway has to wait."""

MAX_UNSENT = 256 * 1024
"""Bytes that the program is ahead of the network; above that it has to wait."""


class ThreadSocket:
    """
    A WebSocket whose loop is another thread's; its methods are the calling loop's.

    Args:
        sign_in: Where to connect.
    """

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in
        self._home = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._home.create_future()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._draining = False
        self._frames: deque[bytes] = deque()
        self._outgoing: deque[bytes] = deque()
        self._end: Exception | None = None
        # Both threads use these, under the lock.
        self._lock = threading.Lock()
        self._unread = 0
        self._unsent = 0
        self._aborted = False
        self._task: asyncio.Task[None] | None = None
        # The thread's own.
        self._socket: Socket | None = None
        self._room = asyncio.Event()
        self._work = asyncio.Event()

    async def open(self) -> None:
        """Start the thread and wait for the connection; raises as `Dial` says."""
        threading.Thread(target=self._run, name="trunkline-socket", daemon=True).start()
        try:
            await self._opened
        except BaseException:
            self.abort()
            raise

    # The calling loop's side

    async def recv(self) -> bytes:
        """Wait for the next frame."""
        while True:
            # Looked at first: what was received before the end must not be lost.
            end = self._end
            if self._frames:
                frame = self._frames.popleft()
                self._took(len(frame))
                return frame
            if end is not None:
                raise end
            self._arrived.clear()
            await self._arrived.wait()

    def _took(self, size: int) -> None:
        with self._lock:
            was_full = self._unread > MAX_UNREAD
            self._unread -= size
            has_room = self._unread <= MAX_UNREAD
        if was_full and has_room:
            self._there(self._room.set)

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits while much is on its way to the network."""
        if self._end is not None:
            raise self._end
        with self._lock:
            self._unsent += len(frame)
        self._outgoing.append(frame)
        self._there(self._work.set)
        await self._drain(MAX_UNSENT)

    async def _drain(self, limit: int) -> None:
        while self._unsent > limit and self._end is None:
            self._drained.clear()
            # Set before the last look: the thread looks at it after it has counted.
            self._draining = True
            if self._unsent > limit and self._end is None:
                await self._drained.wait()
        self._draining = False

    async def close(self) -> None:
        """Send what is left, and close in order, with 1000."""
        await self._drain(0)
        assert self._socket is not None
        await self._carry_out(self._socket.close())

    def _on_opened(self, error: Exception | None) -> None:
        if self._opened.cancelled():
            return
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    async def _carry_out(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._task is not None
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._task.get_loop())
        except RuntimeError:  # the thread has ended
            work.close()
            raise self._end or _gone() from None
        await asyncio.wrap_future(future)

    def abort(self) -> None:
        """Drop the connection; the thread ends soon."""
        with self._lock:
            self._aborted = True
            task = self._task
        if task is not None:
            self._there(task.cancel)

    def _there(self, callback: Callable[[], object]) -> None:
        assert self._task is not None
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._task.get_loop().call_soon_threadsafe(callback)

    # The thread's side

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._live())

    async def _live(self) -> None:
        with self._lock:
            self._task = asyncio.current_task()
            if self._aborted:
                return
        try:
            self._socket = await dial(self._sign_in)
        except Exception as error:
            self._tell(partial(self._on_opened, error))
            return
        self._tell(partial(self._on_opened, None))
        writing = asyncio.create_task(self._write(self._socket))
        try:
            await self._read(self._socket)
        except (ConnectionClosed, TimeoutError) as error:
            self._end = error
        finally:
            self._end = self._end or _gone()
            self._tell(self._arrived.set)
            self._tell(self._drained.set)
            self._socket.abort()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _read(self, socket: Socket) -> None:
        while True:
            frame = await socket.recv()
            self._frames.append(frame)
            with self._lock:
                self._unread += len(frame)
                full = self._unread > MAX_UNREAD
                if full:
                    self._room.clear()
            self._tell(self._arrived.set)
            if full:
                await self._room.wait()

    async def _write(self, socket: Socket) -> None:
        while True:
            while self._outgoing:
                frame = self._outgoing.popleft()
                await socket.send(frame)
                with self._lock:
                    self._unsent -= len(frame)
                if self._draining:
                    self._tell(self._drained.set)
            self._work.clear()
            if not self._outgoing:
                await self._work.wait()

    def _tell(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the program's loop has ended
            self._home.call_soon_threadsafe(callback)


async def dial_in_thread(sign_in: SignIn) -> ThreadSocket:
    """Open a WebSocket in a thread of its own; see `Dial`."""
    socket = ThreadSocket(sign_in)
    await socket.open()
    return socket


def _gone() -> ConnectionClosed:
    return ConnectionClosedError(None, None)
