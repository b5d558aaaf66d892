"""
Request heads that are almost right, on a real gateway (security.md T-B4).

Each is a good request with one fault of a known kind, whose answer is known,
or noise, whose answer is one of those that a client may get. Whatever it is,
there is one answer, the connection ends, and nothing behind the head is read
as another request.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peers import People, connect, guarded_config, hang_up, host, token_of
from rawsocket import RawSocket
from sizes import Sizes

from trunkline.transports.websocket import WebSocketGateway

EXAMPLES = Sizes()(2_000, 2_000, 20_000)
HOST = b"127.0.0.1:%d"
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: %b\r\n\r\n"
REFUSALS = {400, 401, 403, 404, 405, 408, 413, 414, 415, 421, 426, 429, 431, 505}

Head = tuple[bytes, list[bytes]]
"""The request line, and the header lines."""

words = st.text("abcXYZ-", min_size=1, max_size=12).map(str.encode)
controls = st.sampled_from([b"\0", b"\x01", b"\n", b"\r", b"\x0b", b"\x7f"])
blanks = st.sampled_from([b" ", b"\t"])


def good_heads(upgrade: bool) -> Head:
    """A head that the gateway takes."""
    lines = [b"Host: " + HOST, b"Accept: */*"]
    if not upgrade:
        return b"GET /healthz HTTP/1.1", lines
    lines += [
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    return b"GET /ws HTTP/1.1", lines


def in_headers(*lines: bytes) -> st.SearchStrategy[tuple[bytes, list[bytes]]]:
    """Additional header lines."""
    return st.just((b"", list(lines)))


def lines(template: bytes, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[Head]:
    """Header lines with something drawn in them."""
    return st.tuples(*parts).map(lambda drawn: (b"", [template % drawn]))


FAULTS: list[tuple[st.SearchStrategy[Head], int]] = [
    (lines(b"X-%b%b: 1", words, controls), 400),
    (lines(b"X-%b: 1%b2", words, controls), 400),
    (lines(b"X-%b%b: 1", words, blanks), 400),
    (lines(b"%bfolded", blanks), 400),
    (lines(b"%b", words), 400),
    (lines(b": %b", words), 400),
    (in_headers(b"Host: " + HOST), 400),
    (in_headers(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    (in_headers(b"Content-Length: 5", b"Content-Length: 6"), 400),
    (lines(b"Content-Length: %b", words | st.sampled_from([b"+5", b"-1", b"0x5", b"5 5", b""])), 400),
    (lines(b"Transfer-Encoding: %b", words | st.sampled_from([b"gzip, chunked", b"xchunked"])), 400),
    (in_headers(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    (lines(b"Sec-WebSocket-Protocol: %b\xe9", words), 400),
    (in_headers(b"Upgrade: websocket", b"Upgrade: websocket"), 400),
    (st.just((b"", [b"X-A: 1"] * 65)), 431),
    (st.just((b"", [b"X-A: " + b"a" * 17_000])), 431),
    (st.integers(8193, 9000).map(lambda n: (b"GET /" + b"a" * n + b" HTTP/1.1", [])), 414),
    (st.sampled_from([b"2.0", b"0.9", b"1.2", b"3.0"]).map(lambda v: (b"GET / HTTP/" + v, [])), 505),
    (words.map(lambda word: (b"GET /healthz " + word, [])), 400),
    (words.map(lambda word: (b"GET  /healthz HTTP/1.1 " + word, [])), 400),
    (controls.map(lambda c: (b"GET /heal" + c + b"thz HTTP/1.1", [])), 400),
    (words.map(lambda word: (b"GET " + word + b" HTTP/1.1", [])), 400),
    (words.map(lambda word: (b"GET http://" + word + b"/healthz HTTP/1.1", [])), 400),
    (st.just((b"GET /%zz HTTP/1.1", [])), 400),
    (st.sampled_from(
        [b"/%68ealthz", b"//healthz", b"/healthz/", b"/HEALTHZ", b"/healthz;a", b"/%2e/healthz",
         b"/a/../healthz", b"/healthz%2f", b"/healthz%00"]
    ).map(lambda path: (b"GET " + path + b" HTTP/1.1", [])), 404),
    (st.sampled_from([b"token", b"access_token", b"API_KEY", b"pass%77ord", b"code"]).map(
        lambda key: (b"GET /healthz?a=1&" + key + b"=x HTTP/1.1", [])), 400),
]  # fmt: skip
"""Ways to spoil a good head, each with the status that tells the client."""

Request = tuple[bytes, set[int]]


@st.composite
def spoiled(draw: st.DrawFn) -> Request:
    """A good head with one fault."""
    first, headers = good_heads(draw(st.booleans()))
    fault, status = draw(st.sampled_from(FAULTS))
    line, more = draw(fault)
    place = draw(st.integers(1, len(headers)))
    headers = [*headers[:place], *more, *headers[place:]]
    return b"\r\n".join([line or first, *headers, b"", b""]), {status}


@st.composite
def noise(draw: st.DrawFn) -> Request:
    """A good head in which bytes were flipped, cut or put in."""
    first, headers = good_heads(draw(st.booleans()))
    data = b"\r\n".join([first, *headers, b"", b""])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=4)) + data[place + draw(st.integers(0, 4)) :]
    return data, REFUSALS | {101, 200}


async def judge(gateway: WebSocketGateway, request: Request) -> None:
    data, statuses = request
    name = host(gateway).encode()
    async with await RawSocket.connect(gateway.port) as peer:
        peer.send(data.replace(HOST, name) + SMUGGLED % name)
        peer.writer.write_eof()
        answer = await peer.rest()
    first = answer.partition(b"\r\n")[0]
    if answer:  # half a head that ends is no request, and is not answered
        status = int(first.split(b" ")[1])
        assert status in statuses, (first, data)
    else:
        assert len(statuses) > 1, data
    assert answer.count(b'{"status":"ok"}') <= (b" 200 " in first), (answer, data)


def test_every_bad_head_gets_its_one_answer() -> None:
    """The status is the tabled one, and what follows the head is never a second request."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        gateway = runner.run(
            stack.enter_async_context(WebSocketGateway(guarded_config(), authenticator=People()))
        )
        good = runner.run(connect(gateway, token_of("ada")))

        @given(spoiled() | spoiled() | noise())
        @example((b"GET /healthz HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n", {200}))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(request: Request) -> None:
            runner.run(judge(gateway, request))

        try:
            check()
            assert runner.run(good.ask("ping")).type == "pong"
            runner.run(hang_up(gateway))
        finally:
            runner.run(stack.aclose())
