"""Reaching a gateway step by step: the step that fails is named, with what mends it."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from certificates import write_certificate
from peers import guarded_config, open_config

from trunkline.config import AuthConfig, OriginConfig, TlsConfig
from trunkline.probe import Target, reach
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "the-owner's-token"

STEPS = [
    "tcp",
    "http",
    "ready",
    "upgrade",
    "session_info",
    "connect",
    "auth",
    "ping",
    "hello",
]


async def visited(url, **more):
    return [finding async for finding in reach(Target(url=url, **more))]


def failing(findings):
    """The finding that failed; all before it succeeded, all behind it were skipped."""
    states = [finding.state for finding in findings]
    at = states.index("failed")
    assert set(states[:at]) <= {"ok"}
    assert set(states[at + 1 :]) <= {"skipped"}
    return findings[at]


@asynccontextmanager
async def answering(answer):
    """A server that gives everybody the same bytes; yields its port."""

    async def serve(reader, writer):
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def http(status, body, *headers):
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body])
    return head.encode()


class TestReaching:
    async def test_takes_every_step_of_the_handshake(self):
        """And says of each what it found."""
        async with WebSocketGateway(guarded_config(auth=AuthConfig(token=TOKEN))) as gateway:
            findings = await visited(gateway.address, token=TOKEN)

        assert [(f.check, f.state) for f in findings] == [(step, "ok") for step in STEPS]
        assert findings[6].said == "signed in as owner, role control"

    async def test_leaves_no_connection_behind(self):
        """The gateway has no client afterwards."""
        gone = asyncio.Event()
        async with WebSocketGateway(open_config()) as gateway:
            gateway.on("client:disconnect", lambda *_: gone.set())
            await visited(gateway.address)
            await asyncio.wait_for(gone.wait(), 10)

            assert len(gateway.clients) == 0

    async def test_says_that_sign_in_is_off(self):
        """On this machine that is no fault."""
        async with WebSocketGateway(open_config()) as gateway:
            findings = await visited(gateway.address)

        assert "sign-in is off" in findings[6].said
        assert findings[6].state == "ok"


class TestFailures:
    async def test_nothing_listens(self):
        """The step is tcp and the cure is to start it."""
        async with answering(b"") as port:
            pass

        finding = failing(await visited(f"http://127.0.0.1:{port}"))

        assert (finding.check, finding.mend) == ("tcp", "trunkline serve")

    async def test_an_unknown_name(self):
        """No such host."""
        finding = failing(await visited("http://gateway.invalid:1"))

        assert finding.check == "tcp"
        assert "gateway.invalid" in finding.said

    async def test_a_wrong_token(self):
        """The step is auth; the token is not repeated."""
        async with WebSocketGateway(guarded_config()) as gateway:
            finding = failing(await visited(gateway.address, token="wrong-wrong"))

        assert finding.check == "auth"
        assert "wrong, expired or revoked" in finding.said
        assert "wrong-wrong" not in repr(finding)

    async def test_no_token_at_all(self):
        """What was not given is asked for."""
        async with WebSocketGateway(guarded_config()) as gateway:
            finding = failing(await visited(gateway.address))

        assert finding.check == "auth"
        assert "--token" in finding.mend

    async def test_an_address_that_is_locked_out(self):
        """It says how long to wait."""
        config = guarded_config(auth=AuthConfig(token=TOKEN, max_failures=1, lockout=77.0))
        async with WebSocketGateway(config) as gateway:
            await visited(gateway.address, token="wrong")
            finding = failing(await visited(gateway.address, token=TOKEN))

        assert "too many wrong credentials" in finding.said
        assert finding.mend.startswith("wait 7")

    async def test_a_name_that_the_gateway_does_not_know(self, monkeypatch):
        """421 is explained by the setting that allows the name."""
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more)
        )
        async with WebSocketGateway(guarded_config()) as gateway:
            finding = failing(await visited(f"http://gateway.example:{gateway.port}"))

        assert finding.check == "http"
        assert finding.mend.startswith('set origins.allowed_hosts = ["gateway.example"]')

    async def test_a_page_that_may_not_connect(self):
        """403 is explained by the setting that allows the origin."""
        async with WebSocketGateway(guarded_config()) as gateway:
            finding = failing(await visited(gateway.address, origin="https://app.example"))

        assert finding.check == "upgrade"
        assert finding.mend.startswith('set origins.allowed_origins = ["https://app.example"]')

    async def test_a_page_that_may(self):
        """The same with the origin allowed."""
        origins = OriginConfig(allowed_origins=("https://app.example",))
        async with WebSocketGateway(guarded_config(origins=origins)) as gateway:
            origin = "https://app.example"
            findings = await visited(gateway.address, origin=origin, token=TOKEN)

        assert {finding.state for finding in findings} == {"ok"}

    async def test_a_wrong_path(self):
        """404 at the upgrade is the path's fault."""
        async with WebSocketGateway(guarded_config()) as gateway:
            finding = failing(await visited(f"{gateway.address}/other"))

        assert finding.check == "upgrade"
        assert "path" in finding.mend

    async def test_a_gateway_that_stops(self):
        """Draining is not broken, but takes nobody."""
        async with WebSocketGateway(guarded_config()) as gateway:
            gateway._draining = True
            finding = failing(await visited(gateway.address, token=TOKEN))

        assert finding.check == "ready"

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"220 mail.example ESMTP\r\n", "does not speak HTTP"),
            (http("200 OK", "<html>"), "something else than a gateway"),
            (http("200 OK", '{"status":"ok"}'), "the request to upgrade did not arrive"),
            (http("421 Misdirected", "{}"), "not reached under the name"),
            (http("502 Bad Gateway", ""), "the proxy cannot reach the gateway"),
            (http("301 Moved", "", "Location: https://x.example/"), "redirects to https://x"),
            (http("401 Unauthorized", ""), "sign-in of its own"),
        ],
        ids=lambda value: value.decode()[:24] if isinstance(value, bytes) else None,
    )
    async def test_somebody_else_who_answers(self, answer, said):
        """Proxies, other servers and other protocols are told apart."""
        async with answering(answer) as port:
            finding = failing(await visited(f"http://127.0.0.1:{port}"))

        assert said in finding.said

    async def test_a_credential_is_never_sent_unencrypted_to_another_machine(self, monkeypatch):
        """The step fails before anything is sent."""
        monkeypatch.setattr("trunkline.probe.is_loopback", lambda host: False)
        async with WebSocketGateway(guarded_config()) as gateway:
            heard = []
            gateway.on("client:auth", heard.append)
            finding = failing(await visited(gateway.address, token=TOKEN))

        assert finding.check == "auth"
        assert "unencrypted" in finding.said
        assert heard == []


class TestTls:
    @pytest.fixture
    def tls(self, tmp_path, monkeypatch):
        def make(name="127.0.0.1", days=30.0, trusted=True):
            cert, key = write_certificate(tmp_path, name, days=days)
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", cert)
            return guarded_config(tls=TlsConfig(cert=cert, key=key))

        return make

    async def test_a_good_certificate_lets_everything_succeed(self, tls):
        """With one step more."""
        async with WebSocketGateway(tls()) as gateway:
            findings = await visited(gateway.address, token=TOKEN)

        assert {finding.state for finding in findings} == {"ok"}
        assert findings[1].said.startswith("TLSv1.3")

    @pytest.mark.parametrize(
        ("certificate", "said"),
        [
            ({"days": -1}, "has expired"),
            ({"name": "other.example"}, "not for 127.0.0.1"),
            ({"trusted": False}, "not from an authority"),
        ],
    )
    async def test_a_bad_certificate_is_told_from_others(self, tls, certificate, said):
        """Expired, for another name, or from nobody."""
        async with WebSocketGateway(tls(**certificate)) as gateway:
            finding = failing(await visited(gateway.address, token=TOKEN))

        assert finding.check == "tls"
        assert said in finding.said

    async def test_tls_where_there_is_none(self):
        """The cure is the other scheme."""
        async with WebSocketGateway(open_config()) as gateway:
            address = gateway.address
            finding = failing(await visited(address.replace("http", "https")))

        assert finding.check == "tls"
        assert finding.mend.endswith(f"--url {address}")

    async def test_no_tls_where_there_is_some(self, tls):
        """And the other way round."""
        async with WebSocketGateway(tls()) as gateway:
            finding = failing(await visited(gateway.address.replace("https", "http")))

        assert finding.check == "http"
        assert "if it speaks TLS: --url https://" in finding.mend
