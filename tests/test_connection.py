"""One WebSocket over a real socket: RFC 6455, the limits, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
import weakref
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import picows.picows
import pytest
from rawsocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawSocket,
    client_frame,
    upgrade,
)
from starlette.applications import Starlette

from trunkline.transport import Batch
from trunkline.transports.connection import Connection
from trunkline.transports.listener import Listener
from trunkline.transports.receiver import ConnectionOptions

KIB = 1024
MIB = 1024 * KIB


class Recorder:
    """A receiver that keeps what it hears, and says when it has."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self._news = asyncio.Event()
        self.connection: Connection

    def _note(self, *event: object) -> None:
        self.heard.append(event)
        self._news.set()

    def opened(self, transport: Connection) -> None:
        self.connection = transport
        self._note("opened")

    def received(self, text: str) -> None:
        self._note("received", text)

    def too_large(self, limit: int) -> None:
        self._note("too_large", limit)
        self.connection.write(b"too large")

    def lagging(self, yes: bool) -> None:
        self._note("lagging", yes)

    def closed(self, code: int, reason: str) -> None:
        self._note("closed", code, reason)

    async def wait(self, kind: str, count: int = 1) -> tuple[object, ...]:
        """Wait for the event number `count` of a kind."""
        async with asyncio.timeout(10):
            while len(found := [event for event in self.heard if event[0] == kind]) < count:
                self._news.clear()
                await self._news.wait()
        return found[count - 1]

    @property
    def texts(self) -> list[object]:
        return [event[1] for event in self.heard if event[0] == "received"]


class Server:
    """A listener whose connections are recorded."""

    def __init__(self) -> None:
        self.listener: Listener
        self.recorders: list[Recorder] = []
        self.peers: list[RawSocket] = []

    def accept(self, *_: object) -> Recorder:
        self.recorders.append(Recorder())
        return self.recorders[-1]

    async def raw(self) -> RawSocket:
        self.peers.append(await RawSocket.connect(self.listener.port))
        return self.peers[-1]

    async def peer(self, *headers: str) -> tuple[RawSocket, Recorder]:
        peer = await self.raw()
        peer.send(upgrade("/ws", *headers))
        assert (await peer.head()).status == 101
        return peer, self.recorders[-1]


@asynccontextmanager
async def serving(**options: object) -> AsyncIterator[Server]:
    server = Server()
    server.listener = await Listener.start(
        "127.0.0.1",
        0,
        on_head=server.accept,
        http_app=Starlette(),
        options=ConnectionOptions(**{"close_timeout": 0.2, **options}),  # type: ignore[arg-type]
    )
    try:
        yield server
    finally:
        for peer in server.peers:
            await peer.close()
        await server.listener.stop()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


async def gone(connections: set[Connection]) -> None:
    """Wait until the last socket has closed."""
    async with asyncio.timeout(10):
        while connections:  # noqa: ASYNC110
            await asyncio.sleep(0)


class TestMessages:
    async def test_text_comes_whole_and_in_order(self, server: Server) -> None:
        """Each text frame is one message, whatever its size."""
        peer, recorder = await server.peer()
        texts = ["", "a", "\xe9" * 100, "b" * 126, "c" * 70_000, "d" * MIB, "e"]

        for text in texts:
            peer.send_text(text)
        await recorder.wait("received", len(texts))

        assert recorder.texts == texts

    async def test_what_follows_the_head_at_once_is_read(self, server: Server) -> None:
        """A client need not wait for the answer before it sends."""
        peer = await server.raw()

        peer.send(upgrade() + client_frame(TEXT, b"early") + client_frame(TEXT, b"bird"))
        await peer.head()
        await server.recorders[0].wait("received", 2)

        assert server.recorders[0].texts == ["early", "bird"]

    async def test_writes_arrive_in_order(self, server: Server) -> None:
        """Messages, batches and pings leave in the order of the calls."""
        peer, recorder = await server.peer()
        connection = recorder.connection
        long = b"x" * 70_000

        connection.write(b"one")
        connection.write_batch(Batch([b"two", b"three"]))
        connection.ping()
        connection.write(long)

        assert [(await peer.frame()).payload for _ in range(5)] == [
            *(b"one", b"two", b"three", b"", long)
        ]

    async def test_a_batch_is_framed_once_for_all(self, server: Server) -> None:
        """Every member of a session is written the same bytes object."""
        peers = [await server.peer() for _ in range(3)]
        batch = Batch([b"one", b"two"])

        for _, recorder in peers:
            recorder.connection.write_batch(batch)

        for peer, _ in peers:
            assert [await peer.text(), await peer.text()] == ["one", "two"]
            await peer.close()
        assert len(batch._framed) == 1

    async def test_reading_pauses_and_resumes(self, server: Server) -> None:
        """While reading is paused nothing comes; afterwards everything does."""
        peer, recorder = await server.peer()

        recorder.connection.pause_reading()
        peer.send_text("later")
        await peer.writer.drain()
        await asyncio.sleep(0.05)
        before = recorder.texts
        recorder.connection.resume_reading()
        await recorder.wait("received")

        assert before == []
        assert recorder.texts == ["later"]

    async def test_every_frame_is_a_sign_of_life(self, server: Server) -> None:
        """`heard` is set by a pong, and stays as the sweep left it until then."""
        peer, recorder = await server.peer()
        recorder.connection.heard = False

        recorder.connection.ping()
        assert (await peer.frame()).opcode == PING
        assert not recorder.connection.heard
        peer.send_frame(PONG)
        peer.send_text("x")
        await recorder.wait("received")

        assert recorder.connection.heard

    async def test_a_ping_is_answered_with_its_payload(self, server: Server) -> None:
        """A pong carries what the ping carried, also amid fragments."""
        peer, recorder = await server.peer()

        peer.send_frame(TEXT, b"a", fin=False)
        peer.send_frame(PING, b"p" * 125)
        peer.send_frame(CONTINUATION, b"b")
        pong = await peer.frame()
        await recorder.wait("received")

        assert (pong.opcode, pong.payload) == (PONG, b"p" * 125)
        assert recorder.texts == ["ab"]

    async def test_fragments_are_put_together(self, server: Server) -> None:
        """A character may be cut anywhere, and a fragment may be empty."""
        peer, recorder = await server.peer()
        text = "a\u20acb\U0001f600"

        peer.send_frame(TEXT, b"", fin=False)
        for byte in text.encode():
            peer.send_frame(CONTINUATION, bytes([byte]), fin=False)
        peer.send_frame(CONTINUATION)
        await recorder.wait("received")

        assert recorder.texts == [text]


class TestBrokenFrames:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            pytest.param(client_frame(TEXT, b"x", masked=False), 1002, id="not masked"),
            pytest.param(client_frame(0x3, b"x"), 1002, id="unknown data opcode"),
            pytest.param(client_frame(0xB, b"x"), 1002, id="unknown control opcode"),
            pytest.param(client_frame(TEXT, b"x", rsv=4), 1002, id="RSV1 not negotiated"),
            pytest.param(client_frame(TEXT, b"x", rsv=2), 1002, id="RSV2"),
            pytest.param(client_frame(TEXT, b"x", rsv=1), 1002, id="RSV3"),
            pytest.param(client_frame(PING, b"x", rsv=4), 1002, id="RSV1 on a ping"),
            pytest.param(client_frame(PONG, b"x", rsv=2), 1002, id="RSV2 on a pong"),
            pytest.param(client_frame(CLOSE, rsv=4), 1002, id="RSV1 on a close"),
            pytest.param(client_frame(PING, b"x" * 126), 1002, id="long ping"),
            pytest.param(client_frame(PING, b"x", fin=False), 1002, id="ping in fragments"),
            pytest.param(client_frame(CONTINUATION, b"x"), 1002, id="continues nothing"),
            pytest.param(
                client_frame(TEXT, b"x", fin=False) + client_frame(TEXT, b"y"),
                1002,
                id="text amid fragments",
            ),
            pytest.param(b"\x81\xfe\x00\x05\0\0\0\0hello", 1002, id="long form of a short size"),
            pytest.param(client_frame(BINARY, b"x"), 1003, id="binary"),
            pytest.param(client_frame(BINARY, b"x", fin=False), 1003, id="binary in fragments"),
            pytest.param(client_frame(TEXT, b"\xff"), 1007, id="not UTF-8"),
            pytest.param(client_frame(TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate"),
            pytest.param(client_frame(TEXT, b"\xc0\xaf"), 1007, id="overlong UTF-8"),
            pytest.param(client_frame(TEXT, b"\xe2\x82"), 1007, id="UTF-8 cut at the end"),
            pytest.param(
                client_frame(TEXT, b"\xff", fin=False), 1007, id="not UTF-8, told at once"
            ),
            pytest.param(
                client_frame(TEXT, b"\xe2", fin=False) + client_frame(CONTINUATION, b"x"),
                1007,
                id="UTF-8 cut in a fragment",
            ),
        ],
    )
    async def test_what_the_rfc_forbids_closes(
        self, server: Server, data: bytes, code: int
    ) -> None:
        """The peer gets the right code, then the end of the connection."""
        peer, recorder = await server.peer()

        peer.send(data)
        closing = await peer.closing()

        assert closing.code == code
        assert closing.payload[2:].startswith(b"reconnect=no")
        assert await peer.rest() == b""
        await peer.close()
        assert (await recorder.wait("closed"))[1] == code
        assert recorder.texts == []

    @pytest.mark.parametrize(
        "bad", [client_frame(0x3), client_frame(TEXT, rsv=2), client_frame(TEXT, length=2**40)]
    )
    async def test_what_came_before_a_broken_frame_counts(self, server: Server, bad: bytes) -> None:
        """Also when both come in one segment."""
        peer, recorder = await server.peer()

        peer.send(client_frame(TEXT, b"one") + client_frame(TEXT, b"two") + bad)
        await peer.closing()
        await recorder.wait("closed")

        assert recorder.texts == ["one", "two"]

    async def test_the_first_close_frame_counts(self, server: Server) -> None:
        """A second one behind it is no error any more."""
        peer, recorder = await server.peer()

        peer.send_close(4000)
        peer.send_close(4001)
        closing = await peer.frame()

        assert closing.code == 4000
        assert await peer.rest() == b""
        assert await recorder.wait("closed") == ("closed", 4000, "")

    async def test_nothing_is_taken_behind_a_broken_frame(self, server: Server) -> None:
        """What follows in the same segment does not count."""
        peer, recorder = await server.peer()

        peer.send(client_frame(BINARY, b"x") + client_frame(TEXT, b"behind"))
        await peer.closing()
        await recorder.wait("closed")

        assert recorder.texts == []

    async def test_the_close_frame_reaches_a_peer_in_the_midst_of_sending(
        self, server: Server
    ) -> None:
        """What is still under way is read and dropped, so nothing resets the connection."""
        peer, _ = await server.peer()

        peer.send(client_frame(BINARY, b"x") + client_frame(TEXT, b"y" * MIB))
        closing = await peer.closing()

        assert closing.code == 1003

    async def test_an_exception_closes_with_1011(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bug of the receiver is logged, and ends that connection only."""
        peer, recorder = await server.peer()
        other, other_recorder = await server.peer()

        def received(text: str) -> None:
            raise RuntimeError("a bug")

        recorder.received = received  # type: ignore[method-assign]
        peer.send_text("x")
        closing = await peer.closing()
        other.send_text("y")
        await other_recorder.wait("received")

        assert closing.code == 1011
        assert "a bug" in caplog.text
        await peer.close()


class TestLimits:
    async def test_a_message_at_the_limit_passes(self) -> None:
        """`max_message` is the largest that is taken, whole or in fragments."""
        async with serving(max_message=1000) as server:
            peer, recorder = await server.peer()

            peer.send_frame(TEXT, b"x" * 1000)
            peer.send_frame(TEXT, b"y" * 999, fin=False)
            peer.send_frame(CONTINUATION, b"y")
            await recorder.wait("received", 2)

            assert recorder.texts == ["x" * 1000, "y" * 1000]

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(client_frame(TEXT, b"x" * 1001), id="whole"),
            pytest.param(client_frame(TEXT, length=2**63 - 1), id="announced"),
            pytest.param(client_frame(TEXT, length=1001), id="announced, just above"),
            pytest.param(
                client_frame(TEXT, b"x" * 999, fin=False) + client_frame(CONTINUATION, b"xx"),
                id="in fragments",
            ),
        ],
    )
    async def test_a_message_above_the_limit_is_told_of_before_1009(self, data: bytes) -> None:
        """The receiver writes its error message first, then the connection closes."""
        async with serving(max_message=1000) as server:
            peer, recorder = await server.peer()

            peer.send(data)
            text = await peer.text()
            closing = await peer.frame()

            assert text == "too large"
            assert (closing.opcode, closing.code) == (CLOSE, 1009)
            assert await peer.rest() == b""
            await peer.close()
            assert [event[0] for event in recorder.heard] == ["opened", "too_large", "closed"]
            assert recorder.heard[1] == ("too_large", 1000)

    async def test_a_lower_limit_holds_until_it_is_raised(self) -> None:
        """Before sign-in a connection may have a smaller limit than after."""
        async with serving() as server:
            peer, recorder = await server.peer()

            recorder.connection.max_message = 64 * KIB
            peer.send_text("x" * 64 * KIB)
            await recorder.wait("received")
            recorder.connection.max_message = MIB
            peer.send_text("y" * MIB)
            await recorder.wait("received", 2)
            recorder.connection.max_message = 64 * KIB
            peer.send_text("z" * (64 * KIB + 1))
            closing = await peer.closing()

            assert [len(str(text)) for text in recorder.texts] == [64 * KIB, MIB]
            assert closing.code == 1009

    async def test_below_a_lower_limit_no_large_frame_is_kept(self) -> None:
        """A frame that has announced more is cut off when its bytes pass the limit."""
        async with serving() as server:
            peer, recorder = await server.peer()
            recorder.connection.max_message = 16 * KIB

            peer.send_text("first")
            peer.send_frame(TEXT, b"x" * 600 * KIB, length=MIB)
            closing = await peer.closing()

            assert closing.code == 1009
            assert recorder.texts == ["first"]

    @pytest.mark.parametrize("payload", [b"", b"x"])
    async def test_fragments_are_limited_in_number(self, server: Server, payload: bytes) -> None:
        """A message may come in 1,024 frames; the 1,025th closes."""
        peer, recorder = await server.peer()
        fragments = client_frame(CONTINUATION, payload, fin=False) * 1022

        peer.send(client_frame(TEXT, payload, fin=False) + fragments)
        peer.send_frame(CONTINUATION, payload)
        await recorder.wait("received")
        peer.send(client_frame(TEXT, payload, fin=False) + fragments)
        peer.send(client_frame(CONTINUATION, payload, fin=False) * 2)
        closing = await peer.closing()

        assert recorder.texts == [payload.decode() * 1024]
        assert closing.code == 1008

    async def test_fragments_are_limited_in_time(self) -> None:
        """The deadline is the message's, and no further fragment moves it."""
        async with serving(fragment_deadline=0.1) as server:
            peer, _ = await server.peer()
            started = time.monotonic()

            async def trickle() -> None:
                peer.send_frame(TEXT, b"x", fin=False)
                while True:
                    await asyncio.sleep(0.02)
                    peer.send_frame(CONTINUATION, b"x", fin=False)

            task = asyncio.create_task(trickle())
            closing = await peer.closing()
            task.cancel()

            assert closing.code == 1008
            assert 0.09 < time.monotonic() - started < 5

    @pytest.mark.parametrize("opcode", [PING, PONG])
    async def test_control_frames_are_limited(self, opcode: int) -> None:
        """Twenty at once are taken; the next one closes, and a flood costs nothing more."""
        async with serving(control_rate=0.001) as server:
            peer, recorder = await server.peer()

            peer.send(client_frame(opcode, b"x") * 20 + client_frame(TEXT, b"alive"))
            await recorder.wait("received")
            peer.send(client_frame(opcode, b"x") * 10_000)
            closing = await peer.closing()

            assert closing.code == 1008

    async def test_control_frames_are_taken_at_their_rate(self) -> None:
        """Time fills the bucket again."""
        async with serving(control_rate=1000, control_burst=1) as server:
            peer, _ = await server.peer()

            for _ in range(5):
                peer.send_frame(PING, b"x")
                assert (await peer.frame()).opcode == PONG
                await asyncio.sleep(0.005)


def rss() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class TestSlowReaders:
    async def test_a_reader_that_stopped_is_closed_and_costs_no_memory(
        self, server: Server
    ) -> None:
        """20,000 messages of 8 kB: 4008 past the limit, the rest is dropped."""
        peer, recorder = await server.peer()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        message = b"x" * 8000
        before = rss()

        for number in range(20_000):
            recorder.connection.write(message)
            if number % 100 == 0:
                await asyncio.sleep(0)
        closed = await recorder.wait("closed")

        assert closed == ("closed", 4008, "reconnect=yes")
        assert rss() - before < 16 * MIB
        await gone(server.listener.connections)

    async def test_a_slow_reader_finds_the_close_frame(self) -> None:
        """Who reads again in time gets everything before the limit, then 4008."""
        async with serving(close_timeout=10, max_buffered=64 * KIB, lag_bytes=32 * KIB) as server:
            peer, recorder = await server.peer()
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

            while not [event for event in recorder.heard if event[0] == "closed"]:
                recorder.connection.write(b"x" * 8000)
                await asyncio.sleep(0)
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            closing = await peer.closing()

            assert closing.code == 4008
            assert closing.payload[2:] == b"reconnect=yes"
            peer.send_close(4008)
            assert await peer.rest() == b""

    async def test_lag_is_told_when_it_begins_and_ends(self) -> None:
        """The receiver hears once that a reader falls behind, and once that it caught up."""
        async with serving(lag_bytes=64 * KIB, max_buffered=64 * MIB) as server:
            peer, recorder = await server.peer()
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

            while recorder.connection.buffered() <= 64 * KIB:
                recorder.connection.write(b"x" * 8000)
                await asyncio.sleep(0)
            lagging = list(recorder.heard)
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            drain = asyncio.create_task(peer.reader.read(-1))
            await recorder.wait("lagging", 2)

            assert lagging == [("opened",), ("lagging", True)]
            assert recorder.heard == [*lagging, ("lagging", False)]
            recorder.connection.close(1000, "")
            drain.cancel()

    async def test_the_burst_that_passes_the_limit_is_kept(self) -> None:
        """Only a write that finds the buffer too full closes: one tick may be large."""
        async with serving(lag_bytes=1 * KIB, max_buffered=2 * KIB) as server:
            peer, recorder = await server.peer()
            message = b"x" * 16 * MIB

            recorder.connection.write(message)
            payload = (await peer.frame()).payload

            assert payload == message
            assert ("closed", 4008, "reconnect=yes") not in recorder.heard


class TestClosing:
    @pytest.mark.parametrize(
        ("payload", "answer", "heard"),
        [
            (b"", 1000, (1005, "")),
            (b"\x03\xe8", 1000, (1000, "")),
            (b"\x03\xe9bye", 1001, (1001, "bye")),
            (b"\x0b\xb8", 3000, (3000, "")),
            (b"\x13\x87" + b"r" * 123, 4999, (4999, "r" * 123)),
        ],
    )
    async def test_the_peers_close_is_answered(
        self, server: Server, payload: bytes, answer: int, heard: tuple[int, str]
    ) -> None:
        """Its code comes back, 1000 for none, and the receiver hears what it said."""
        peer, recorder = await server.peer()

        peer.send_frame(CLOSE, payload)
        closing = await peer.frame()

        assert (closing.opcode, closing.payload) == (CLOSE, answer.to_bytes(2, "big"))
        assert await peer.rest() == b""
        await peer.close()
        assert recorder.heard == [("opened",), ("closed", *heard)]

    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            *((code.to_bytes(2, "big"), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016)),
            *((code.to_bytes(2, "big"), 1002) for code in (1100, 2000, 2999, 5000, 65535)),
            (b"\x03", 1002),
            (b"\x03\xe8\xff", 1007),
        ],
    )
    async def test_a_bad_close_frame_is_an_error(
        self, server: Server, payload: bytes, code: int
    ) -> None:
        """Codes that may not be sent are not echoed."""
        peer, recorder = await server.peer()

        peer.send_frame(CLOSE, payload)
        closing = await peer.frame()

        assert closing.code == code
        assert await peer.rest() == b""
        await peer.close()
        assert (await recorder.wait("closed"))[1] == code

    async def test_our_close_waits_for_the_peers(self, server: Server) -> None:
        """What is queued goes first; what the peer still sends is dropped."""
        peer, recorder = await server.peer()

        recorder.connection.write(b"last")
        recorder.connection.close(4004, "reconnect=no;kicked")
        assert await peer.text() == "last"
        closing = await peer.frame()
        peer.send_text("too late")
        peer.send_frame(PING)
        peer.send_close(4004)

        assert (closing.code, closing.payload[2:]) == (4004, b"reconnect=no;kicked")
        assert await peer.rest() == b""
        await peer.close()
        assert recorder.heard == [("opened",), ("closed", 4004, "reconnect=no;kicked")]

    async def test_nothing_follows_a_close_frame(self, server: Server) -> None:
        """Every kind of write after a close is dropped."""
        peer, recorder = await server.peer()
        connection = recorder.connection

        connection.close(1000, "")
        connection.write(b"x")
        connection.write_batch(Batch([b"y"]))
        connection.ping()
        connection.close(1001, "")
        peer.send_frame(PING, b"z")
        peer.send_close()

        assert (await peer.frame()).code == 1000
        assert await peer.rest() == b""

    async def test_close_works_while_reading_is_paused(self, server: Server) -> None:
        """The peer's answer is read even then."""
        peer, recorder = await server.peer()

        recorder.connection.pause_reading()
        recorder.connection.close(1000, "")
        peer.send_close()
        await peer.closing()

        assert await peer.rest() == b""
        await gone(server.listener.connections)

    async def test_a_peer_that_does_not_answer_is_cut_off(self) -> None:
        """The socket closes at the deadline, whatever the peer does."""
        async with serving(close_timeout=0.1) as server:
            peer, recorder = await server.peer()

            recorder.connection.close(1001, "")
            await recorder.wait("closed")
            still_there = len(server.listener.connections)
            await gone(server.listener.connections)

            assert still_there == 1
            await peer.rest()

    async def test_a_long_reason_is_cut_between_characters(self, server: Server) -> None:
        """A close frame holds 123 bytes of reason, and they are UTF-8."""
        peer, recorder = await server.peer()

        recorder.connection.close(1000, "\u20ac" * 100)

        assert (await peer.frame()).payload[2:].decode() == "\u20ac" * 41

    async def test_closed_is_never_called_from_within_a_call(self, server: Server) -> None:
        """Whoever walks over members may close or write to them."""
        _, recorder = await server.peer()

        recorder.connection.close(1000, "")
        at_once = list(recorder.heard)
        await recorder.wait("closed")

        assert at_once == [("opened",)]

    @pytest.mark.parametrize(
        ("way", "code"),
        [
            ("peer closes", 1000),
            ("peer leaves", 1006),
            ("peer resets", 1006),
            ("we close", 4004),
            ("we close, peer leaves", 4004),
            ("we close, peer resets", 4004),
            ("both close", 4004),
            ("we close twice", 4004),
            ("bad frame", 1002),
            ("bad frame, peer resets", 1002),
            ("two bad frames", 1002),
            ("bad frame after our close", 4004),
        ],
    )
    async def test_closed_is_heard_once(self, server: Server, way: str, code: int) -> None:
        """However a connection ends, its receiver hears of it exactly once, last."""
        peer, recorder = await server.peer()
        bad = client_frame(TEXT, rsv=1)

        if "we close" in way or "both" in way or "our close" in way:
            recorder.connection.close(4004, "")
        if "twice" in way:
            recorder.connection.close(4004, "")
        if "bad frame" in way:
            peer.send(bad)
        if "two bad" in way:
            peer.send(bad)
        if way in ("peer closes", "both close"):
            peer.send_close()
        if "resets" in way:
            peer.writer.transport.abort()
        if "leaves" in way:
            peer.writer.close()
        closed = await recorder.wait("closed")
        await gone(server.listener.connections)

        assert closed[1] == code
        assert [event[0] for event in recorder.heard].count("closed") == 1
        assert recorder.heard[-1] == closed

    async def test_a_dead_connection_takes_calls(self, server: Server) -> None:
        """Once the peer is gone, calls do nothing and raise nothing."""
        peer, recorder = await server.peer()
        peer.writer.transport.abort()
        await gone(server.listener.connections)
        connection = recorder.connection

        connection.write(b"x")
        connection.write_batch(Batch([b"x"]))
        connection.ping()
        connection.pause_reading()
        connection.resume_reading()
        connection.close(1000, "")

        assert connection.buffered() == 0
        assert [event[0] for event in recorder.heard] == ["opened", "closed"]

    async def test_a_write_between_reset_and_notice_is_dropped(self, server: Server) -> None:
        """The kernel may know of the end before we do."""
        peer, recorder = await server.peer()
        peer.writer.transport.abort()
        await peer.close()

        for _ in range(10):
            recorder.connection.write(b"x" * MIB)
        await gone(server.listener.connections)

        assert [event[0] for event in recorder.heard].count("closed") == 1

    async def test_nothing_keeps_a_closed_connection_alive(self, server: Server) -> None:
        """Its memory is free as soon as the receiver lets go, without a collection."""
        peer, recorder = await server.peer()
        peer.send_text("x")
        await recorder.wait("received")
        gc.collect()
        gc.disable()

        try:
            alive = weakref.ref(recorder.connection)
            peer.send_close()
            await peer.closing()
            await peer.rest()
            await gone(server.listener.connections)
            del recorder.connection
            await asyncio.sleep(0)

            assert alive() is None
        finally:
            gc.enable()


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def deflated(data: bytes, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(data: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(data + b"\0\0\xff\xff")


@pytest.fixture
async def deflating() -> AsyncIterator[Server]:
    async with serving(compression=True) as server:
        yield server


class TestDeflate:
    @pytest.mark.parametrize(
        ("offer", "granted"),
        [
            ("permessage-deflate", True),
            ("Permessage-Deflate; client_max_window_bits", True),
            ("permessage-deflate; client_max_window_bits=10", True),
            ("permessage-deflate; server_max_window_bits=11", True),
            ('permessage-deflate; server_max_window_bits="15"', True),
            ("permessage-deflate; server_no_context_takeover", True),
            ("x-other, permessage-deflate", True),
            ("permessage-deflate; unknown, permessage-deflate", True),
            ("permessage-deflate; server_max_window_bits=10", False),
            ("permessage-deflate; server_max_window_bits", False),
            ("permessage-deflate; server_max_window_bits=16", False),
            ("permessage-deflate; client_max_window_bits=7", False),
            ("permessage-deflate; server_no_context_takeover=1", False),
            ("permessage-deflate; unknown", False),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits", False),
            ("x-webkit-deflate-frame", False),
        ],
    )
    async def test_offers_are_granted_or_passed_over(
        self, deflating: Server, offer: str, granted: bool
    ) -> None:
        """An offer that cannot be met is declined; the connection opens all the same."""
        peer = await deflating.raw()

        peer.send(upgrade("/ws", f"Sec-WebSocket-Extensions: {offer}"))
        answer = await peer.head()

        assert answer.status == 101
        extension = answer.headers.get("sec-websocket-extensions", "")
        assert ("no_context_takeover" in extension) == granted

    async def test_compression_is_off_by_default(self, server: Server) -> None:
        """An offer is not answered unless the options say so."""
        peer = await server.raw()

        peer.send(upgrade("/ws", DEFLATE))

        assert "sec-websocket-extensions" not in (await peer.head()).headers

    async def test_compressed_messages_are_read(self, deflating: Server) -> None:
        """Whole, in fragments, or not compressed after all."""
        peer, recorder = await deflating.peer(DEFLATE)
        text = "\u20ac" * 5000
        data = deflated(text.encode())

        peer.send_frame(TEXT, data, rsv=4)
        peer.send_frame(TEXT, data[:3], rsv=4, fin=False)
        peer.send_frame(CONTINUATION, data[3:7], fin=False)
        peer.send_frame(CONTINUATION, data[7:])
        peer.send_text("plain")
        peer.send_frame(TEXT, deflated(b""), rsv=4)
        await recorder.wait("received", 4)

        assert recorder.texts == [text, text, "plain", ""]

    async def test_only_long_messages_are_compressed(self, deflating: Server) -> None:
        """Below `compress_min` compression costs more than it saves."""
        peer, recorder = await deflating.peer(DEFLATE)

        recorder.connection.write(b"x" * 1023)
        recorder.connection.write(b"x" * 1024)
        short, long = await peer.frame(), await peer.frame()

        assert (short.rsv1, short.payload) == (False, b"x" * 1023)
        assert long.rsv1
        assert len(long.payload) < 100
        assert inflated(long.payload) == b"x" * 1024

    async def test_a_batch_is_compressed_once_for_all(self, deflating: Server) -> None:
        """Connections with compression share its work; the others share the plain bytes."""
        members = [await deflating.peer(DEFLATE) for _ in range(3)]
        members += [await deflating.peer() for _ in range(2)]
        batch = Batch([b"x" * 5000])

        for _, recorder in members:
            recorder.connection.write_batch(batch)
        frames = [await peer.frame() for peer, _ in members]

        assert [frame.rsv1 for frame in frames] == [True, True, True, False, False]
        assert len(batch._framed) == 2

    @pytest.mark.parametrize("pieces", [1, 7])
    async def test_a_bomb_is_stopped_while_it_is_inflated(
        self, deflating: Server, pieces: int
    ) -> None:
        """1 MiB that would become 1 GiB: 1009, hardly any memory, hardly any time."""
        peer, recorder = await deflating.peer(DEFLATE)
        bomb = (deflated(bytes(MIB), 9) + b"\0\0\xff\xff") * 1024
        step = len(bomb) // pieces + 1
        parts = [bomb[at : at + step] for at in range(0, len(bomb), step)]
        frames = [
            client_frame(
                CONTINUATION if number else TEXT,
                part,
                rsv=0 if number else 4,
                fin=number == pieces - 1,
            )
            for number, part in enumerate(parts)
        ]
        before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()

        peer.send(b"".join(frames))
        closing = await peer.closing()
        cpu = time.process_time() - cpu
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

        assert len(bomb) <= 1.1 * MIB
        assert closing.code == 1009
        assert recorder.texts == []
        assert grown * KIB < 32 * MIB
        assert cpu < 1

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            pytest.param(client_frame(TEXT, b"\xff\xff\xff", rsv=4), 1007, id="not deflate"),
            pytest.param(client_frame(TEXT, deflated(b"\xff"), rsv=4), 1007, id="not UTF-8"),
            pytest.param(
                client_frame(TEXT, deflated(b"x"), rsv=4, fin=False)
                + client_frame(CONTINUATION, b"", rsv=4),
                1002,
                id="RSV1 on a continuation",
            ),
            pytest.param(client_frame(PING, b"", rsv=4), 1002, id="RSV1 on a ping"),
        ],
    )
    async def test_damaged_compression_closes(
        self, deflating: Server, data: bytes, code: int
    ) -> None:
        """What cannot be inflated, or is marked where nothing is, ends the connection."""
        peer, _ = await deflating.peer(DEFLATE)

        peer.send(data)

        assert (await peer.closing()).code == code


class TestMemory:
    async def test_a_large_message_leaves_no_large_buffer(self, server: Server) -> None:
        """The parser's memory is given back once a large message was read."""
        peer, recorder = await server.peer()

        peer.send_text("x" * MIB)
        await recorder.wait("received")
        peer.send_text("small")
        await recorder.wait("received", 2)

        assert len(recorder.connection._wire.get_buffer(-1)) <= 4096

    async def test_a_pong_gives_memory_back(self, server: Server) -> None:
        """A burst makes the buffer grow; the next heartbeat of a quiet peer makes it small."""
        peer, recorder = await server.peer()

        peer.send(client_frame(TEXT, b"x" * 20_000) * 10)
        await recorder.wait("received", 10)
        grown = len(recorder.connection._wire.get_buffer(-1))
        peer.send_frame(PONG)
        peer.send_frame(PING)
        await peer.frame()
        peer.send_frame(PONG)
        recorder.connection.heard = False
        while not recorder.connection.heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
        small = len(recorder.connection._wire.get_buffer(-1))
        peer.send_text("still here")
        await recorder.wait("received", 11)

        assert grown > 4096
        assert small <= 4096
        assert recorder.texts[-1] == "still here"

    async def test_an_idle_connection_is_small(self) -> None:
        """Both ends of a connection, client and test included, stay below 60 KiB."""
        async with serving(read_buffer=2048) as server:
            peers = [(await server.peer())[0] for _ in range(20)]
            before = rss()

            peers += [(await server.peer())[0] for _ in range(200)]

            assert (rss() - before) / 200 < 60 * KIB


class TestPicows:
    """What this transport takes for granted of a library that promises none of it."""

    def test_text_is_checked_when_it_is_read(self) -> None:
        """`get_payload_as_utf8_text` is what finds bad UTF-8."""
        frame = picows.picows._make_test_ws_frame(picows.WSMsgType.TEXT, b"\xff", True, False)

        with pytest.raises(UnicodeDecodeError):
            frame.get_payload_as_utf8_text()

    def test_message_types_are_single_objects(self) -> None:
        """They are compared with `is`."""
        frame = picows.picows._make_test_ws_frame(picows.WSMsgType.TEXT, b"x", True, False)

        assert frame.msg_type is picows.WSMsgType.TEXT
