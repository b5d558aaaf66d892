"""
Bytes that are almost frames, on a real socket (security.md T-B3).

Frames as RFC 6455 has them and with every one of its rules broken, then bytes
flipped, cut and put in. A slow, plain reading of the RFC says what must come
of each stream: which messages are taken, and with which code it ends.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rawsocket import CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, RawSocket, client_frame
from sizes import Sizes
from test_connection import Recorder, Server, gone, serving

from fuzz.rfc6455 import Outcome, outcome

EXAMPLES = Sizes()(150, 10_000, 100_000)
MAX_MESSAGE = 2048

codes = st.sampled_from([0, 999, 1000, 1001, 1004, 1005, 1006, 1007, 1011, 1015, 3000, 4999, 5000])
texts = st.text(max_size=40).map(str.encode) | st.sampled_from([b"", b"x" * 126, b"y" * 1500])
payloads = texts | st.binary(max_size=8)
closing = st.just(b"") | st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason, codes, payloads
)


def _good(opcode: int, payload: bytes, fin: bool) -> bytes:
    return client_frame(opcode, payload[:125] if opcode & 8 else payload, fin=fin or opcode > 7)


good = st.builds(_good, st.sampled_from([TEXT, TEXT, CONTINUATION, PING]), payloads, st.booleans())
ends = st.builds(lambda payload: client_frame(CLOSE, payload), closing)
bad = st.builds(
    lambda opcode, payload, fin, rsv, masked, length: client_frame(
        opcode, payload, fin=fin, rsv=rsv, masked=masked, length=length
    ),
    st.integers(0, 15),
    payloads,
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
    st.sampled_from([True, True, True, False]),
    st.none() | st.sampled_from([0, 1, 125, 126, 65536, MAX_MESSAGE + 1, 2**31, 2**63 - 1, 2**63]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames, most of them good, in which a few bytes may be wrong."""
    data = b"".join(draw(st.lists(good | good | good | bad | ends, max_size=10)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=3))
        data = data[:place] + piece + data[place + draw(st.integers(0, 3)) :]
    return data


async def read_all(peer: RawSocket) -> list[Frame]:
    """Read the frames up to the end of the connection."""
    frames: list[Frame] = []
    try:
        while True:
            frames.append(await peer.frame())
    except (asyncio.IncompleteReadError, ConnectionError):
        return frames


async def judge(server: Server, data: bytes) -> None:
    expected = outcome(data, MAX_MESSAGE)
    peer, recorder = await server.peer()
    peer.send(data)
    if peer.writer.can_write_eof():
        peer.writer.write_eof()
    frames = await read_all(peer)
    await peer.close()
    server.peers.remove(peer)
    await recorder.wait("closed")
    compare(expected, recorder, frames)


def compare(expected: Outcome, recorder: Recorder, frames: list[Frame]) -> None:
    ends = [frame for frame in frames if frame.opcode == CLOSE]
    assert len(ends) <= 1
    assert recorder.texts == expected.texts
    pongs = [frame.payload for frame in frames if frame.opcode == PONG]
    assert pongs == expected.pings[: len(pongs)]
    if expected.codes and expected.whole:
        assert ends, expected
    if ends and expected.whole:
        assert ends[0].code in expected.codes, (expected, ends)


def test_every_stream_ends_as_the_rfc_says() -> None:
    """What is right is taken, what is wrong ends with the right code, and nothing else fails."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        server = runner.run(
            stack.enter_async_context(
                serving(max_message=MAX_MESSAGE, control_burst=100, control_rate=1000.0)
            )
        )

        @given(streams())
        @example(client_frame(TEXT, b"\xe2\x82", fin=False) + client_frame(PING, b"p"))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(data: bytes) -> None:
            server.recorders.clear()
            runner.run(judge(server, data))

        try:
            check()
            runner.run(gone(server.listener.connections))
        finally:
            runner.run(stack.aclose())
