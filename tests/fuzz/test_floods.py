"""
Floods against a gateway process, each beside a good client (security.md T-B5).

The good client asks without a pause and must get every answer while strangers
open sockets and say nothing, trickle heads, flood control frames, send
messages a byte at a time, or send bombs. With a battery its slowest answers
are bounded too; `make test` says nothing of times.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import websockets
from e2e.client import TOKEN
from e2e.processes import Gateway
from rawsocket import CONTINUATION, PING, TEXT, RawSocket, client_frame, upgrade
from sizes import BATTERY, Sizes

MIB = 1024 * 1024

DEAREST_BOMB = 0.1
"""Seconds of the gateway's processor time that a bomb may cost, where a battery was asked for."""

SLOWEST = 0.2
"""Seconds that one good answer in a hundred may take, where a battery was asked for."""


class GoodClient:
    """Asks one thing after the other, and keeps how long each answer took."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._names = count()
        self.waits: list[float] = []

    async def ask(self) -> None:
        """Send a ping and wait for its pong."""
        started, name = time.monotonic(), f"p{next(self._names)}"
        await self._socket.send(f'{{"type":"ping","id":"{name}"}}')
        async with asyncio.timeout(10):
            while f'"replyTo":"{name}"' not in str(await self._socket.recv()):
                pass
        self.waits.append(time.monotonic() - started)

    async def go_on(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.ask()
            await asyncio.sleep(0.01)

    def judge(self) -> None:
        """Fail if answers were missing, or too slow for a battery."""
        assert self.waits
        if BATTERY:
            assert sorted(self.waits)[int(len(self.waits) * 0.99)] < SLOWEST


class Scene:
    """A gateway, a good client at work, and the sockets of a flood."""

    def __init__(self, gateway: Gateway, good: GoodClient) -> None:
        self.gateway = gateway
        self.good = good
        self._sockets: list[RawSocket] = []

    async def socket(self, data: bytes = b"") -> RawSocket:
        """Open a socket and send something."""
        peer = await RawSocket.connect(self.gateway.port)
        self._sockets.append(peer)
        peer.send(data)
        return peer

    async def websocket(self, *headers: str) -> RawSocket:
        """Open a WebSocket that is signed in."""
        bearer = f"Authorization: Bearer {TOKEN}"
        head = upgrade("/ws", bearer, *headers)
        name = f"Host: 127.0.0.1:{self.gateway.port}".encode()
        peer = await self.socket(head.replace(b"Host: 127.0.0.1", name))
        assert (await peer.head()).status == 101
        await peer.frame()
        return peer

    def memory(self) -> int:
        """Return the bytes of memory that the gateway has had at most."""
        status = Path(f"/proc/{self.gateway.running.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    async def close(self) -> None:
        """Cut every socket."""
        for peer in self._sockets:
            await peer.close()


@asynccontextmanager
async def staged(folder: Path, **settings: str) -> AsyncIterator[Scene]:
    gateway = Gateway(folder, settings, options=("--history", "memory"))
    await gateway.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        async with websockets.connect(
            gateway.url, additional_headers=headers, proxy=None, ping_interval=None
        ) as socket:
            good = GoodClient(socket)
            await good.ask()
            task = asyncio.create_task(good.go_on())
            scene = Scene(gateway, good)
            try:
                yield scene
                assert not task.done(), task
            finally:
                task.cancel()
                await asyncio.wait([task])
                await scene.close()
            await good.ask()
            good.judge()
        assert "Traceback" not in gateway.errors
    finally:
        await gateway.kill()


async def test_heads_that_trickle_are_cut_off(tmp_path: Path, sized: Sizes) -> None:
    """A byte now and then keeps no socket: each is told 408, or there is no room for it."""
    async with staged(tmp_path) as scene:
        peers = [await scene.socket() for _ in range(sized(100, 500, 500))]

        async def trickle(peer: RawSocket) -> bytes:
            async def send() -> None:
                with suppress(ConnectionError):
                    for byte in upgrade():
                        peer.send(bytes([byte]))
                        await asyncio.sleep(1)

            task = asyncio.create_task(send())
            try:
                return await peer.rest()
            finally:
                task.cancel()

        answers = await asyncio.gather(*map(trickle, peers))

        assert {answer.split(b" ")[1] for answer in answers} <= {b"408", b"503"}


async def test_strangers_that_say_nothing_find_little_room(tmp_path: Path, sized: Sizes) -> None:
    """So many of one address may wait for sign-in; the others are refused, then cut, before 101."""
    async with staged(tmp_path) as scene:
        name = f"Host: 127.0.0.1:{scene.gateway.port}".encode()
        head = upgrade().replace(b"Host: 127.0.0.1", name)
        statuses: list[int] = []
        cut = 0
        for _ in range(sized(500, 5_000, 5_000)):
            peer = await scene.socket(head)
            try:
                statuses.append((await peer.head()).status)
            except (asyncio.IncompleteReadError, ConnectionError):
                cut += 1  # so many do not close what was refused that no more are answered

        assert statuses.count(101) == 64
        assert set(statuses) == {101, 503}
        assert cut == 0 or len(statuses) > 1_000


async def test_a_flood_of_pings_ends_the_flooder(tmp_path: Path) -> None:
    """Ten thousand pings close the one connection that sent them."""
    async with staged(tmp_path) as scene:
        peer = await scene.websocket()

        peer.send(client_frame(PING, b"x") * 10_000)

        assert (await peer.closing()).code == 1008


async def test_messages_a_byte_at_a_time_are_bounded(tmp_path: Path, sized: Sizes) -> None:
    """The 1,025th fragment of a message ends its connection, and memory does not grow."""
    async with staged(tmp_path) as scene:
        peers = [await scene.websocket() for _ in range(sized(20, 100, 100))]
        before = scene.memory()

        for peer in peers:
            peer.send(client_frame(TEXT, b'"', fin=False))
            peer.send(client_frame(CONTINUATION, b"x", fin=False) * 1_024)
        codes = {(await peer.closing()).code for peer in peers}

        assert codes == {1008}
        assert scene.memory() - before < 32 * MIB


async def test_bombs_are_stopped_while_they_are_inflated(tmp_path: Path, sized: Sizes) -> None:
    """What would become half a gibibyte is refused with 1009 and costs hardly anything."""
    packer = zlib.compressobj(9, wbits=-11)
    piece = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_SYNC_FLUSH)
    async with staged(tmp_path, COMPRESSION__ENABLED="true") as scene:
        before = scene.memory()
        for _ in range(sized(3, 20, 100)):
            peer = await scene.websocket("Sec-WebSocket-Extensions: permessage-deflate")
            used = scene.gateway.cpu()
            peer.send(client_frame(TEXT, piece * 512, rsv=4))
            assert (await peer.closing()).code == 1009
            if BATTERY:
                assert scene.gateway.cpu() - used <= DEAREST_BOMB

        assert scene.memory() - before < 32 * MIB


async def test_unreadable_messages_end_their_connection(tmp_path: Path, sized: Sizes) -> None:
    """Ten of them close it, again and again, and nobody else notices."""
    async with staged(tmp_path) as scene:
        for _ in range(sized(20, 200, 1_000)):
            peer = await scene.websocket()
            peer.send(client_frame(TEXT, b'{"type":') * 50)

            assert (await peer.closing()).code == 1008


async def test_announced_sizes_cost_nothing(tmp_path: Path, sized: Sizes) -> None:
    """A frame or a body that says it will be enormous is refused before any of it is read (W30)."""
    huge = 2**63 - 1
    async with staged(tmp_path) as scene:
        name = f"Host: 127.0.0.1:{scene.gateway.port}".encode()
        stranger = upgrade().replace(b"Host: 127.0.0.1", name)
        body = b"POST /healthz HTTP/1.1\r\n%b\r\nContent-Length: %d\r\n\r\n" % (name, huge)
        before = scene.memory()
        for number in range(sized(20, 200, 500)):
            signed_in = await scene.websocket()
            signed_in.send(client_frame(TEXT, b"{", length=(huge, 2**40, 2**31)[number % 3]))
            assert (await signed_in.closing()).code == 1009
            other = await scene.socket(stranger)
            assert (await other.head()).status == 101
            other.send(client_frame(TEXT, b"{", length=huge))
            assert (await other.closing()).code == 1009
            posted = await scene.socket(body)
            assert (await posted.head()).status in (400, 405, 413)

        assert scene.memory() - before < 8 * MIB


async def test_refusals_leave_nothing_behind(tmp_path: Path, sized: Sizes) -> None:
    """A hundred thousand errors of one client cost no memory, and each is answered (W37)."""
    async with staged(tmp_path) as scene:
        peer = await scene.websocket()

        async def refused(rounds: int, start: int) -> None:
            for number in range(start, start + rounds):
                text = f'{{"type":"session_join","id":"r{number}","payload":{{"sessionId":"no{number}"}}}}'
                peer.send(client_frame(TEXT, text.encode()))
                if number % 100 == 99:
                    while f'"replyTo":"r{number}"' not in (answer := await peer.text()):
                        assert '"SESSION_NOT_FOUND"' in answer

        await refused(2_000, 0)
        before = scene.memory()
        await refused(sized(8_000, 100_000, 100_000), 2_000)

        assert scene.memory() - before < 4 * MIB
