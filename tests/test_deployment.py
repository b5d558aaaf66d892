"""The files in deploy/, proved: a real proxy before a real gateway, a unit that fits the drain."""

import asyncio
import configparser
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import websockets
from certificates import write_certificate
from http_peers import API, events
from processes import PATIENCE, Running, clean_environ, invoke

from trunkline.config import DEFAULT_WS_CONFIG
from trunkline.probe import Target, reach
from trunkline.run import files_needed

ROOT = Path(__file__).resolve().parents[1]
NAME = "gateway.example.com"

GONE = 10.0
"""Seconds within which a gateway must learn that a reader has gone; its next ping comes later."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process):
    """Wait until something listens."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "the proxy has ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise AssertionError("the proxy does not listen")


class Proxied:
    """A gateway process with a proxy before it."""

    def __init__(self, folder, port):
        self.port = port
        self.url = f"https://{NAME}:{port}"
        self.environ = clean_environ(folder)
        config = folder / "gateway.toml"
        config.write_text(
            f'port = 0\n[origins]\nallowed_hosts = ["{NAME}:{port}"]\n'
            '[proxies]\ntrusted = ["127.0.0.1/32"]\n'
        )
        self.gateway = Running(self.environ, "serve", "--config", str(config))
        self.upstream = int(self.gateway.wait_for(r"listening on http://127.0.0.1:(\d+)")[1])
        self.token = (folder / ".local/state/trunkline/token").read_text().strip()

    def audited(self, action):
        """The addresses that the audit log has for an action."""
        deadline = time.monotonic() + PATIENCE
        lines: list[str] = []
        while not lines and time.monotonic() < deadline:  # the log is written a moment later
            lines = invoke(self.environ, "audit", "--json", "--action", action).stdout.splitlines()
        return [json.loads(line)["address"] for line in lines]


def with_nginx(folder, port, upstream, cert, key):
    """Start nginx with the file that the documentation shows."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    changes = {
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "127.0.0.1:18789": f"127.0.0.1:{upstream}",
        "/etc/ssl/gateway.example.com.pem": cert,
        "/etc/ssl/gateway.example.com.key": key,
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    folders = "".join(
        f"{name}_temp_path {folder};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{folders}{text}\n}}\n"
    )
    return ["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(main)]


def with_caddy(folder, port, upstream, cert, key):
    """Start Caddy with the file that the documentation shows."""
    text = (ROOT / "deploy" / "Caddyfile").read_text()
    assert text.startswith(f"{NAME} {{\n")
    text = text.replace(f"{NAME} {{\n", f"https://{NAME}:{port} {{\n\ttls {cert} {key}\n")
    text = text.replace("127.0.0.1:18789", f"127.0.0.1:{upstream}")
    options = "{\n\tadmin off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n}\n"
    (folder / "Caddyfile").write_text(options + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxied(request, tmp_path_factory):
    """A gateway behind the proxy, over TLS; the proxy's name leads to this machine."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    cert, key = write_certificate(folder, NAME)
    proxied = Proxied(folder, free_port())
    make = {"nginx": with_nginx, "caddy": with_caddy}[request.param]
    command = make(folder, proxied.port, proxied.upstream, cert, key)
    environ = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        wait_for_port(proxied.port, process)
        proxied.cert = cert
        yield proxied
    finally:
        proxied.gateway.close()
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def here(monkeypatch, proxied):
    """Let names lead to this machine, and trust the proxy's certificate."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more)
    )
    monkeypatch.setenv("SSL_CERT_FILE", proxied.cert)


def owner(proxied):
    """A client that speaks HTTP through the proxy, with the owner's token."""
    return httpx.AsyncClient(
        base_url=proxied.url,
        headers={"Authorization": f"Bearer {proxied.token}"},
        verify=ssl.create_default_context(cafile=proxied.cert),
        trust_env=False,
        timeout=PATIENCE,
    )


async def visited(url, **more):
    return [finding async for finding in reach(Target(url=url, **more))]


@pytest.mark.usefixtures("here")
class TestBehindAProxy:
    async def test_every_step_of_the_handshake_succeeds(self, proxied):
        """HTTP, WebSocket and sign-in pass through."""
        findings = await visited(proxied.url, token=proxied.token)

        assert {(f.check, f.state) for f in findings} == {(f.check, "ok") for f in findings}
        assert findings[-1].check == "hello"

    async def test_pages_of_the_proxys_own_address_may_connect(self, proxied):
        """The gateway learns from the proxy that it was reached by https."""
        findings = await visited(proxied.url, token=proxied.token, origin=proxied.url)

        assert {finding.state for finding in findings} == {"ok"}

    async def test_pages_of_other_sites_may_not(self, proxied):
        """Being behind a proxy relaxes nothing."""
        findings = await visited(proxied.url, origin="https://evil.example")

        assert [f.check for f in findings if f.state == "failed"] == ["upgrade"]

    async def test_the_gateway_sees_the_clients_address(self, proxied):
        """Not the proxy's, and not the one that the client claims."""
        url = proxied.url.replace("https", "wss") + "/ws"
        claimed = {"X-Forwarded-For": "203.0.113.99"}
        async with websockets.connect(
            url, local_addr=("127.0.0.7", 0), additional_headers=claimed, proxy=None
        ) as client:
            await client.send('{"type":"auth","id":"1","payload":{"token":"wrong"}}')
            while "AUTH_FAILED" not in await client.recv():
                pass

        assert proxied.audited("auth.failed")[0] == "127.0.0.7"

    async def test_a_large_message_passes(self, proxied):
        """Up to the gateway's own limit."""
        url = proxied.url.replace("https", "wss") + "/ws"
        owner = {"Authorization": f"Bearer {proxied.token}"}
        async with websockets.connect(url, additional_headers=owner, proxy=None) as client:
            text = "x" * 1_000_000
            await client.send('{"type":"session_create","id":"1","payload":{"sessionId":"s"}}')
            message = {"type": "chat", "id": "2", "sessionId": "s", "payload": {"message": text}}
            await client.send(json.dumps(message))
            while '"ack"' not in await client.recv():
                pass

    async def test_events_arrive_while_their_stream_stays_open(self, proxied):
        """No proxy holds back what the gateway sends, waits for more of it, or packs it."""
        async with owner(proxied) as client:
            session = (await client.post(f"{API}/sessions", json={})).json()["sessionId"]
            target = f"{API}/sessions/{session}/messages"
            async with events(client, session, accept_encoding="gzip, br") as stream:
                for text in ("one", "two"):
                    sent = await client.post(target, json={"message": text})
                    event = await stream.next("chat")

                    assert event.data["payload"]["message"] == text
                    assert event.data["seq"] == sent.json()["seq"]

    async def test_a_stream_ends_with_its_reader(self, proxied):
        """The gateway learns through the proxy that somebody has gone."""
        async with owner(proxied) as client:
            session = (await client.post(f"{API}/sessions", json={})).json()["sessionId"]

            async def members():
                return (await client.get(f"{API}/sessions/{session}")).json()["members"]

            async with events(client, session) as stream:
                await stream.next()
                assert len(await members()) == 1

            async with asyncio.timeout(GONE):
                while await members():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


class TestSystemd:
    @pytest.fixture
    def unit(self):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read(ROOT / "deploy" / "trunkline.service")
        return unit["Service"]

    def test_the_stop_timeout_leaves_room_for_the_drain(self, unit):
        """systemd must not kill what is still sending clients away and writing to the disk."""
        assert float(unit["TimeoutStopSec"]) >= DEFAULT_WS_CONFIG.drain_timeout + 10

    def test_open_files_are_enough_for_all_connections(self, unit):
        """The default number of connections fits."""
        assert int(unit["LimitNOFILE"]) > files_needed(DEFAULT_WS_CONFIG)

    @pytest.mark.skipif(
        shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
    )
    def test_systemd_understands_every_line(self, tmp_path):
        """No unknown setting, no value that is ignored."""
        text = (ROOT / "deploy" / "trunkline.service").read_text()
        file = tmp_path / "trunkline.service"
        file.write_text(text.replace("/opt/trunkline/bin/trunkline", shutil.which("env")))
        command = ["systemd-analyze", "verify", "--man=no", str(file)]

        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr

        ours = [line for line in said.splitlines() if "trunkline.service" in line]
        assert ours == []


class TestContainer:
    def test_the_compose_file_leaves_room_for_the_drain(self):
        """As under systemd."""
        found = re.search(r"stop_grace_period: (\d+)s", (ROOT / "compose.yaml").read_text())

        assert int(found[1]) >= DEFAULT_WS_CONFIG.drain_timeout + 10

    def test_its_environment_is_one_that_the_gateway_starts_with(self, tmp_path):
        """The variables of the Containerfile and of the compose file are settings."""
        text = (ROOT / "Containerfile").read_text() + (ROOT / "compose.yaml").read_text()
        found = dict(re.findall(r"(TRUNKLINE_\w+)(?:=|: )\"?([^\s\"\\]+)", text))
        found["TRUNKLINE_DATA_DIR"] = str(tmp_path / "state")
        assert {"TRUNKLINE_BIND", "TRUNKLINE_ORIGINS__ALLOWED_HOSTS"} <= set(found)
        environ = clean_environ(tmp_path) | found | {"TRUNKLINE_PORT": "0"}

        with contextlib.closing(Running(environ, "serve")) as gateway:
            url = gateway.wait_for(r"http://\S+")[0]
            health = invoke(environ, "doctor", "--url", url, "--json")

        assert json.loads(health.stdout)["ok"] is True


def test_the_documentation_shows_the_files_that_were_tested():
    """Each block of the page about proxies is the file in deploy/."""
    page = (ROOT / "docs" / "how-to" / "run-behind-a-proxy.md").read_text()

    for name in ("nginx.conf", "Caddyfile"):
        assert (ROOT / "deploy" / name).read_text().replace("\t", "    ") in page
