"""Request heads: what is understood, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.transports.heads import (
    BadHead,
    RequestHead,
    is_websocket_key,
    parse_head,
    secret_in_query,
    tokens,
)


def head(*lines: str, first: str = "GET / HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([first, host, *lines, "", ""]).encode("latin-1")


def status_of(data: bytes) -> int:
    with pytest.raises(BadHead) as caught:
        parse_head(data)
    return caught.value.status


class TestUnderstood:
    def test_a_plain_request_is_read(self) -> None:
        """Method, path, query, version and headers come out as they were sent."""
        result = parse_head(head("X-One:  two \t", first="POST /a%20b?c=%20d HTTP/1.1"))

        assert result == RequestHead(
            method="POST",
            target=b"/a%20b?c=%20d",
            path="/a b",
            query="c=%20d",
            headers=((b"host", b"a"), (b"x-one", b"two")),
            version="1.1",
            is_upgrade=False,
        )

    def test_headers_are_found_by_lower_case_name(self) -> None:
        """`get` gives the first value and `all` gives every one, in order."""
        result = parse_head(head("Accept: x", "ACCEPT: y"))

        assert result.get(b"accept") == b"x"
        assert result.all(b"accept") == [b"x", b"y"]
        assert result.get(b"cookie") is None

    @pytest.mark.parametrize(
        "connection",
        ["Upgrade", "upgrade", "keep-alive, Upgrade", "Keep-Alive,UPGRADE", "upgrade , close"],
    )
    def test_an_upgrade_is_known_in_every_spelling(self, connection: str) -> None:
        """Firefox and many proxies send more than the one word."""
        result = parse_head(head(f"Connection: {connection}", "Upgrade: WebSocket"))

        assert result.is_upgrade

    def test_connection_tokens_are_joined_over_lines(self) -> None:
        """Two Connection headers say as much as one with a comma."""
        result = parse_head(
            head("Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket")
        )

        assert result.is_upgrade

    @pytest.mark.parametrize(
        "lines",
        [
            ("Upgrade: websocket",),
            ("Connection: Upgrade",),
            ("Connection: Upgrade", "Upgrade: h2c"),
            ("Connection: notupgrade", "Upgrade: websocket"),
        ],
    )
    def test_half_an_upgrade_is_none(self, lines: tuple[str, ...]) -> None:
        """Both headers are needed, each with the right token."""
        assert not parse_head(head(*lines)).is_upgrade

    def test_only_get_upgrades(self) -> None:
        """A POST that asks for an upgrade is a POST."""
        result = parse_head(
            head("Connection: Upgrade", "Upgrade: websocket", first="POST / HTTP/1.1")
        )

        assert not result.is_upgrade

    def test_the_absolute_form_is_read_as_its_path(self) -> None:
        """A proxy's form of the target routes like the usual one."""
        assert parse_head(head(first="GET http://A/x?y HTTP/1.1")).path == "/x"
        assert parse_head(head(first="GET http://a HTTP/1.1")).path == "/"

    def test_version_1_0_is_read(self) -> None:
        """Some proxies and load balancers still speak it."""
        assert parse_head(head(first="GET / HTTP/1.0")).version == "1.0"


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"", 400),
            (b"\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n", 400),
            (b"GET /\r\nHost: a\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
            (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\n", 505),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\tfolded\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX(: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x1b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
        ],
    )
    def test_a_malformed_head_is_refused(self, data: bytes, status: int) -> None:
        """What is not exactly HTTP/1.1 is not guessed at."""
        assert status_of(data) == status

    @pytest.mark.parametrize(
        "name",
        [
            "Host",
            "Content-Length",
            "Transfer-Encoding",
            "Upgrade",
            "Authorization",
            "Sec-WebSocket-Key",
            "Sec-WebSocket-Version",
        ],
    )
    def test_a_repeated_header_is_refused(self, name: str) -> None:
        """Two readers could each take another one, even when both are equal."""
        value = "chunked" if name == "Transfer-Encoding" else "1"

        assert status_of(head(f"{name}: {value}", f"{name.lower()}: {value}")) == 400

    @pytest.mark.parametrize(
        "lines",
        [
            ("Content-Length: 1", "Transfer-Encoding: chunked"),
            ("Transfer-Encoding: gzip",),
            ("Transfer-Encoding: chunked, chunked",),
            ("Transfer-Encoding: identity",),
            ("Transfer-Encoding:",),
            ("Content-Length: +1",),
            ("Content-Length: -1",),
            ("Content-Length: 1, 1",),
            ("Content-Length: 0x1",),
            ("Content-Length:",),
            ("Content-Length: 1111111111111111111",),
        ],
    )
    def test_an_ambiguous_length_is_refused(self, lines: tuple[str, ...]) -> None:
        """Nobody may disagree with us on where a request ends."""
        assert status_of(head(*lines)) == 400

    def test_chunks_need_version_1_1(self) -> None:
        """A 1.0 proxy would not know where the body ends."""
        data = head("Transfer-Encoding: chunked", first="POST / HTTP/1.0")

        assert status_of(data) == 400

    @pytest.mark.parametrize("line", ["Content-Length: 5", "Transfer-Encoding: chunked"])
    def test_an_upgrade_with_a_body_is_refused(self, line: str) -> None:
        """The body would be read as frames."""
        assert status_of(head("Connection: Upgrade", "Upgrade: websocket", line)) == 400

    @pytest.mark.parametrize("value", ["caf\xe9", "a b", "a,,b", "", '"a"'])
    def test_an_odd_subprotocol_is_refused(self, value: str) -> None:
        """A byte that is not ASCII there has crashed other servers."""
        assert status_of(head(f"Sec-WebSocket-Protocol: {value}")) == 400

    def test_the_number_of_headers_is_limited(self) -> None:
        """64 headers pass, 65 do not."""
        assert len(parse_head(head(*["X: y"] * 63)).headers) == 64
        assert status_of(head(*["X: y"] * 64)) == 431

    def test_the_size_is_limited(self) -> None:
        """16 KiB pass, one byte more does not."""
        size = len(head("X: "))

        assert parse_head(head("X: " + "y" * (16384 - size)))
        assert status_of(head("X: " + "y" * (16385 - size))) == 431

    def test_a_long_target_is_refused_by_its_own_status(self) -> None:
        """8 KiB of target pass, one byte more is 414."""
        assert parse_head(head(first=f"GET /{'x' * 8191} HTTP/1.1"))
        assert status_of(head(first=f"GET /{'x' * 8192} HTTP/1.1")) == 414


class TestPaths:
    @pytest.mark.parametrize(
        "target",
        [
            "/%77s",
            "/%57S",
            "/ws%2f",
            "/%2fws",
            "/%2e/ws",
            "/x/%2e%2e/ws",
            "/ws%3b",
            "/%5cws",
            "/%2577s",
            "/ws%00",
            "/ws%0a",
            "/w%73",
            "/ws%7e",
            "/%2E%2e%2Fws",
            "/ws%7F",
        ],
    )
    def test_another_spelling_of_a_path_is_no_path(self, target: str) -> None:
        """Encoding what needs no encoding only serves to slip past a rule."""
        assert status_of(head(first=f"GET {target} HTTP/1.1")) == 404

    @pytest.mark.parametrize(
        "target", ["/WS", "//ws", "/ws/", "/./ws", "/x/../ws", "/ws;x", "/ws%20", "/ws%3A"]
    )
    def test_a_path_is_not_normalised(self, target: str) -> None:
        """What comes out never equals the path that was meant to be reached."""
        assert parse_head(head(first=f"GET {target} HTTP/1.1")).path != "/ws"

    def test_a_path_is_decoded_once(self) -> None:
        """UTF-8 and reserved characters are decoded."""
        assert parse_head(head(first="GET /%C3%A9%3A%20 HTTP/1.1")).path == "/\xe9: "


class TestSecrets:
    @pytest.mark.parametrize(
        "query",
        [
            "token=x",
            "a=b&token=x",
            "a=b;token=x",
            "TOKEN=x",
            "%74oken=x",
            "token",
            "+token=x",
            "access_token=",
            "api_key=1",
            "password=1",
            "auth=1",
            "code=1",
            "a&code",
            "token%20=1",
        ],
    )
    def test_a_credential_is_seen_in_every_spelling(self, query: str) -> None:
        """Case, encoding and position do not hide the key."""
        assert secret_in_query(query)

    @pytest.mark.parametrize("query", ["", "a=token", "tokens=1", "mytoken=1", "a=b&c=d", "&&=;"])
    def test_other_keys_pass(self, query: str) -> None:
        """Only the key counts, and only the whole of it."""
        assert not secret_in_query(query)


def test_a_websocket_key_is_16_bytes() -> None:
    """Nothing shorter, longer or outside of base64 is a key."""
    assert is_websocket_key(b"dGhlIHNhbXBsZSBub25jZQ==")
    for value in (None, b"", b"abc", b"d" * 24, b"*" * 24, b"dGhlIHNhbXBsZSBub25jZQ=" + b"\xff"):
        assert not is_websocket_key(value)


def test_tokens_are_split_and_folded() -> None:
    """Blanks and empty places between commas are nothing."""
    assert tokens([b"A, b", b" ,c\t"]) == [b"a", b"b", b"c"]


token = st.text("abcXYZ019-_!#$%&'*+.^`|~", min_size=1, max_size=12)
value = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).map(lambda text: text.strip(" \t"))
single = {"host", "authorization", "content-length", "content-type", "transfer-encoding"}
special = single | {"upgrade", "sec-websocket-key", "sec-websocket-version"}
special |= {"sec-websocket-protocol", "connection"}
fields = st.lists(
    st.tuples(token.filter(lambda name: name.lower() not in special), value), max_size=20
)


@given(
    method=token,
    path=st.text("abcABC019-._~!$&'()*+,=:@;/", max_size=30),
    query=st.none() | st.text("abc=&;%?/:@+", max_size=20),
    headers=fields,
)
def test_every_valid_head_is_read_as_it_was_written(
    method: str, path: str, query: str | None, headers: list[tuple[str, str]]
) -> None:
    """What a client puts into a head, and nothing else, comes out."""
    target = "/" + path + ("" if query is None else "?" + query)
    lines = [f"{name}:{' ' * (len(text) % 3)}{text}\t" for name, text in headers]

    result = parse_head(head(*lines, first=f"{method} {target} HTTP/1.1"))

    assert (result.method, result.path, result.query) == (method, "/" + path, query or "")
    assert result.target == target.encode()
    assert result.headers == (
        (b"host", b"a"),
        *((name.lower().encode(), text.encode("latin-1")) for name, text in headers),
    )


pieces = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: upgrade\r\n",
        b"/%",
        b"%2f",
        b"http://a/",
        b"\xff",
        b"HTTP/1.1",
        b"GET ",
    ]
)


@given(st.lists(pieces | st.binary(max_size=8), max_size=20).map(b"".join))
@example(b"GET http://a%2f HTTP/1.1\r\nHost: a%2f\r\n\r\n")
@example(b"GET /%80 HTTP/1.1\r\nHost: a\r\n\r\n")
def test_bytes_are_a_head_or_refused(data: bytes) -> None:
    """Whatever comes, the one exception is `BadHead`, with a status that tells a client."""
    statuses = {200, 400, 404, 414, 431, 505}

    try:
        status, values = 200, [value for _, value in parse_head(data).headers]
    except BadHead as error:
        status, values = error.status, []

    assert status in statuses
    assert not any(byte in b"".join(values) for byte in b"\r\n\0")
