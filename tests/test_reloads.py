"""A changed configuration and certificate for a gateway that runs."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import re
import signal
import ssl
from contextlib import AsyncExitStack, closing, suppress
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from certificates import write_certificate
from msgspec.structs import replace
from peers import (
    People,
    WebSocketPeer,
    connect,
    error_of,
    guarded_config,
    hang_up,
    host,
    token_of,
    upgrade_to,
)
from processes import PATIENCE, Running, Terminal, clean_environ
from rawsocket import RawSocket
from tokens import claims, jwt_config, sign

from trunkline.config import (
    DEFAULT_WS_CONFIG,
    AuthConfig,
    LimitsConfig,
    LogConfig,
    OriginConfig,
    ProxyConfig,
    SessionsConfig,
    TlsConfig,
    WebSocketTransportConfig,
)
from trunkline.errors import ConfigError
from trunkline.events import AuditEntry
from trunkline.logs import configure_logs
from trunkline.reloads import Reloader, Source, differences, overlaid, reloadable
from trunkline.settings import settings_table
from trunkline.transports.listener import Certificates
from trunkline.transports.websocket import WebSocketGateway

OTHER: dict[str, Any] = {
    "port": 1,
    "bind": "all",
    "auth.enabled": False,
    "auth.mode": "password",
    "auth.token": "another",
    "history.durability": "disk",
    "tls.cert": "other.pem",
    "limits.max_depth": 33,
    "log.level": "error",
    "auth.jwt.issuer": "https://id.example",
    "auth.lockout": 1.0,
    "origins.allowed_hosts": ("a.example",),
    "proxies.family": "forwarded",
    "sessions.grace": 1.0,
}
"""Another value for some settings."""

RELOADED = {p for p in OTHER if p.partition(".")[0] in ("limits", "log", "origins", "proxies")} | {
    "auth.jwt.issuer",
    "auth.lockout",
    "sessions.grace",
}


def changed(config: WebSocketTransportConfig, path: str, value: Any) -> WebSocketTransportConfig:
    """A configuration with one setting changed."""
    name, _, rest = path.partition(".")
    if not rest:
        return replace(config, **{name: value})
    inner: Any = changed(getattr(config, name), rest, value)
    return replace(config, **{name: inner})


class TestWhatMayChange:
    @pytest.mark.parametrize("path", OTHER)
    def test_a_difference_is_found_and_laid_over(self, path: str) -> None:
        """The path of the setting is told, and it alone changes."""
        other = changed(DEFAULT_WS_CONFIG, path, OTHER[path])

        assert differences(DEFAULT_WS_CONFIG, other) == [path]
        assert overlaid(DEFAULT_WS_CONFIG, other, [path]) == other
        assert overlaid(other, DEFAULT_WS_CONFIG, [path]) == DEFAULT_WS_CONFIG

    def test_all_that_differs_can_be_laid_over_at_once(self) -> None:
        """Several groups, and settings outside of any."""
        other = DEFAULT_WS_CONFIG
        for path, value in OTHER.items():
            other = changed(other, path, value)

        assert overlaid(DEFAULT_WS_CONFIG, other, OTHER) == other

    def test_only_what_is_on_the_list_may_change(self) -> None:
        """Everything about who gets in, where, and where things are kept needs a restart."""
        allowed = {path for path in OTHER if reloadable(path)}

        assert allowed == RELOADED
        for path in settings_table():
            group = path.partition(".")[0]
            if group in ("history", "tls", "tailscale", "compression", "bind", "port", "insecure"):
                assert not reloadable(path)
            if group == "auth" and path.endswith(("token", "password", "file", "mode", "enabled")):
                assert not reloadable(path) or path.startswith("auth.jwt.")


JSON = LogConfig(format="json")


class TestParts:
    async def test_nobody_goes_by_the_old_limits(self) -> None:
        """After a reload no part of the gateway holds a group of the old configuration."""
        old = guarded_config(
            auth=AuthConfig(token="the-owner's-token", lockout=1.0),
            limits=LimitsConfig(max_depth=31),
            sessions=SessionsConfig(grace=601.0),
            origins=OriginConfig(allowed_hosts=("b.example",)),
            proxies=ProxyConfig(trusted=("10.0.0.0/8",)),
        )
        async with WebSocketGateway(old) as gateway:
            groups = [old.limits, old.sessions, old.origins, old.proxies, old.auth]
            new = replace(
                old,
                auth=replace(old.auth, lockout=2.0),
                limits=LimitsConfig(max_depth=30),
                sessions=SessionsConfig(grace=602.0),
                origins=OriginConfig(allowed_hosts=("a.example",)),
                proxies=ProxyConfig(family="forwarded"),
            )
            gateway.reconfigure(new)

            for group in groups:
                holders = [h for h in gc.get_referrers(group) if h is not old and h is not groups]
                owners = [o for h in holders for o in (h, *gc.get_referrers(h))]
                ours = [o for o in owners if type(o).__module__.startswith("trunkline")]
                assert [type(o).__name__ for o in ours if o is not old] == []

    async def test_rates_sizes_and_budgets_change_for_those_who_are_connected(self) -> None:
        """A client that was there before meets the new limits with its next message."""
        async with WebSocketGateway(guarded_config(), authenticator=People()) as gateway:
            peer = await connect(gateway, token_of("ada"))
            before = await peer.ask("ping")
            limits = LimitsConfig(max_message_size=64, publish_rate=1, publish_burst=1)
            gateway.reconfigure(replace(gateway.config, limits=limits))
            await peer.send("health", {"note": "x" * 100})
            large = await peer.next("error")
            await hang_up(gateway)

        assert before.type == "pong"
        assert error_of(large) == "MESSAGE_TOO_LARGE"

    async def test_the_lockout_keeps_what_it_has_counted(self) -> None:
        """Fewer allowed failures hold at once, for addresses that have failed before too."""
        config = guarded_config()
        async with WebSocketGateway(config, authenticator=People()) as gateway:
            peer = await connect(gateway)
            wrong = [error_of(await peer.ask("auth", {"token": "wrong"})) for _ in range(2)]
            auth = replace(config.auth, max_failures=2)
            gateway.reconfigure(replace(config, auth=auth))
            locked = error_of(await peer.ask("auth", {"token": token_of("ada")}))
            await hang_up(gateway)

        assert (wrong, locked) == (["AUTH_FAILED"] * 2, "AUTH_LOCKED")

    async def test_places_before_sign_in_are_counted_on(self) -> None:
        """A smaller budget counts those who wait already."""
        config = guarded_config()
        async with WebSocketGateway(config, authenticator=People()) as gateway:
            await connect(gateway)
            limits = LimitsConfig(pre_auth_connections=1)
            gateway.reconfigure(replace(config, limits=limits))
            async with await RawSocket.connect(gateway.port) as another:
                another.send(upgrade_to(gateway))
                refused = await another.head()
            await hang_up(gateway)

        assert refused.status == 503

    async def test_origins_hosts_and_proxies_change_for_the_next_request(self) -> None:
        """A page that was let in is not any more, and the other way round."""
        one = OriginConfig(allowed_origins=("https://one.example",))
        two = OriginConfig(allowed_origins=("https://two.example",))
        config = guarded_config(origins=one)
        got = []
        async with WebSocketGateway(config, authenticator=People()) as gateway:
            for origins, page in product((one, two), ("one", "two")):
                gateway.reconfigure(replace(config, origins=origins))
                async with await RawSocket.connect(gateway.port) as peer:
                    peer.send(upgrade_to(gateway, f"Origin: https://{page}.example"))
                    got.append((await peer.head()).status)

        assert got == [101, 403, 403, 101]

    async def test_jwt_sign_in_can_be_turned_on_and_off(self) -> None:
        """The keys of the new configuration count, and those of the old do not."""
        off = guarded_config()
        on = replace(off, auth=replace(off.auth, jwt=jwt_config("ES256")))
        other = replace(off, auth=replace(off.auth, jwt=jwt_config("ES256", audience="other")))
        token = sign(claims(), "ES256")
        got = []
        async with WebSocketGateway(off) as gateway:
            for config in (off, on, other, on):
                gateway.reconfigure(config)
                peer = await connect(gateway)
                got.append((await peer.ask("auth", {"token": token})).type)
            await hang_up(gateway)

        assert got == ["error", "auth_success", "error", "auth_success"]

    async def test_an_unchanged_jwt_configuration_keeps_its_verifier(self) -> None:
        """With it the provider's keys are kept, should the provider be away."""
        config = guarded_config()
        config = replace(config, auth=replace(config.auth, jwt=jwt_config("ES256")))
        async with WebSocketGateway(config) as gateway:
            before = gateway._authenticator
            gateway.reconfigure(replace(config, limits=LimitsConfig(max_depth=9)))

            assert gateway._authenticator is before

    @pytest.mark.parametrize(
        "wrong",
        [
            {"origins": OriginConfig(allowed_origins=("*",))},
            {"origins": OriginConfig(allowed_hosts=("http://x",))},
            {"proxies": ProxyConfig(trusted=("10.0.0.1/8",))},
            {"auth": AuthConfig(token="t" * 9, jwt=jwt_config("RS256", issuer=""))},
            {"auth": AuthConfig(token="t" * 9, jwt=jwt_config(jwks_url="http://id.example/keys"))},
        ],
        ids=str,
    )
    async def test_a_wrong_configuration_changes_nothing(self, wrong: dict[str, Any]) -> None:
        """Not even the parts of it that would be right."""
        config = guarded_config()
        async with WebSocketGateway(config) as gateway:
            new = replace(config, limits=LimitsConfig(max_depth=9), **wrong)

            with pytest.raises(ConfigError):
                gateway.reconfigure(new)

            assert gateway.config is config
            assert gateway.handlers._limits is config.limits


def as_it_is(config: WebSocketTransportConfig) -> WebSocketTransportConfig:
    return config


class TestReloader:
    async def reload(
        self, wanted: WebSocketTransportConfig | Exception, config: WebSocketTransportConfig
    ) -> tuple[list[dict[str, Any]], WebSocketTransportConfig]:
        """The log's lines, and the configuration that the gateway then has."""

        def load() -> WebSocketTransportConfig:
            if isinstance(wanted, Exception):
                raise wanted
            return wanted

        stream = io.StringIO()
        logs = configure_logs(JSON, stream=stream)
        self.audited: list[AuditEntry] = []
        async with WebSocketGateway(config) as gateway:
            gateway.on("audit", self.audited.append)
            source = Source(config, load, "gateway.toml")
            Reloader(gateway, logs, source, as_it_is).reload()
            lines = [json.loads(line) for line in stream.getvalue().splitlines()]
            return lines, gateway.config

    async def test_says_what_changed_and_what_waits(self) -> None:
        """One line names both by their paths, and no value."""
        config = guarded_config(log=JSON)
        wanted = replace(
            config,
            port=1,
            auth=replace(config.auth, token="a-new-token", lockout=9.0),
            limits=LimitsConfig(max_depth=9),
        )

        lines, now = await self.reload(wanted, config)

        assert len(lines) == 1
        assert lines[0]["level"] == "warning"
        assert lines[0]["source"] == "gateway.toml"
        assert json.loads(lines[0]["changed"]) == ["auth.lockout", "limits.max_depth"]
        assert json.loads(lines[0]["needs_a_restart"]) == ["port", "auth.token"]
        assert "a-new-token" not in json.dumps(lines)
        assert [(e.action, e.detail) for e in self.audited] == [
            ("config.reload", {"changed": "auth.lockout limits.max_depth"})
        ]
        assert (now.port, now.auth.token) == (0, config.auth.token)
        assert (now.limits.max_depth, now.auth.lockout) == (9, 9.0)

    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            (ConfigError("gateway.toml is not TOML: line 3"), "not TOML: line 3"),
            (OSError("gone"), "gone"),
            (guarded_config(origins=OriginConfig(allowed_origins=("*",))), "dangerously"),
        ],
        ids=str,
    )
    async def test_keeps_all_and_says_why_in_one_line(self, wrong: Any, why: str) -> None:
        """An error names the source and what is wrong with it."""
        config = guarded_config(log=JSON)

        lines, now = await self.reload(wrong, config)

        assert now is config
        assert not self.audited
        assert len(lines) == 1
        assert lines[0]["level"] == "error"
        assert lines[0]["source"] == "gateway.toml"
        assert why in lines[0]["why"]

    async def test_a_setting_that_waits_is_named_each_time(self) -> None:
        """Until the restart the log keeps saying so."""
        config = guarded_config(log=JSON)
        stream = io.StringIO()
        logs = configure_logs(config.log, stream=stream)
        async with WebSocketGateway(config) as gateway:
            source = Source(config, lambda: replace(config, port=1), "x")
            reloader = Reloader(gateway, logs, source, as_it_is)
            reloader.reload()
            reloader.reload()

        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [line["needs_a_restart"] for line in lines] == ['["port"]'] * 2

    async def test_changes_the_logs_too(self) -> None:
        """The form and the level of the lines are settings like others."""
        config = guarded_config(log=JSON)
        stream = io.StringIO()
        logs = configure_logs(config.log, stream=stream)
        async with WebSocketGateway(config) as gateway:
            loud = replace(config, log=LogConfig(format="text"))
            quiet = replace(config, log=LogConfig(format="text", level="error"))
            said = iter([loud, quiet, replace(quiet, drain_timeout=1.0)])
            reloader = Reloader(gateway, logs, Source(config, lambda: next(said), "x"), as_it_is)
            for _ in range(3):
                reloader.reload()

        assert len(stream.getvalue().splitlines()) == 1
        assert stream.getvalue().split()[1:3] == ["info", "reloaded"]


def serial(peer: Any) -> bytes:
    """The certificate that a connection saw."""
    shown = peer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert isinstance(shown, bytes)
    return shown


def unchecked() -> ssl.SSLContext:
    """A client that looks at any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def shown_by(port: int, name: str | None = None) -> bytes:
    """The certificate that a new connection sees."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=unchecked(), server_hostname=name or "127.0.0.1"
    )
    try:
        return serial(writer)
    finally:
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def read(path: str) -> str:
    return Path(path).read_text()


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def der(cert: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(read(cert))


class TestCertificates:
    async def test_a_reload_drops_nobody_and_shows_newcomers_the_new_one(
        self, tmp_path: Path
    ) -> None:
        """Sixty open connections go on talking; the next sees another certificate."""
        cert, key = write_certificate(tmp_path)
        config = guarded_config(tls=TlsConfig(cert=cert, key=key))
        async with (
            WebSocketGateway(config, authenticator=People()) as gateway,
            AsyncExitStack() as stack,
        ):
            peers = []
            for number in range(60):
                socket = await stack.enter_async_context(
                    websockets.connect(
                        f"wss://{host(gateway)}/ws",
                        ssl=unchecked(),
                        proxy=None,
                        additional_headers={"Authorization": f"Bearer {token_of(f'u{number}')}"},
                    )
                )
                peers.append(WebSocketPeer(socket))
            first = await shown_by(gateway.port)
            write_certificate(tmp_path)
            gateway.reconfigure(config)

            assert first != der(cert)
            for name in (None, "localhost", "other.example"):
                assert await shown_by(gateway.port, name) == der(cert)
            assert [(await peer.ask("ping")).type for peer in peers] == ["pong"] * 60
            assert len(gateway.clients) == 60

    @pytest.mark.parametrize("wrong", ["garbage", "absent", "another key"])
    async def test_a_wrong_file_keeps_the_old_one(self, tmp_path: Path, wrong: str) -> None:
        """The error names the files; newcomers see what those before them saw."""
        cert, key = write_certificate(tmp_path)
        before = der(cert)
        config = guarded_config(tls=TlsConfig(cert=cert, key=key))
        async with WebSocketGateway(config) as gateway:
            if wrong == "garbage":
                write(cert, "no certificate")
            elif wrong == "absent":
                os.unlink(key)
            else:
                old_key = read(key)
                write_certificate(tmp_path)
                write(key, old_key)

            with pytest.raises(ConfigError, match=r"cert\.pem and .*key\.pem do not work"):
                gateway.reconfigure(replace(config, limits=LimitsConfig(max_depth=9)))

            assert await shown_by(gateway.port) == before
            assert gateway.config is config

    def test_the_new_certificate_comes_with_the_same_rules(self, tmp_path: Path) -> None:
        """TLS 1.2 or newer, before and after."""
        certificates = Certificates(*write_certificate(tmp_path))

        fresh = certificates.read()

        assert fresh.minimum_version is ssl.TLSVersion.TLSv1_2
        assert certificates.context.minimum_version is ssl.TLSVersion.TLSv1_2

    @pytest.mark.parametrize(
        "version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, None]
    )
    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    async def test_old_versions_are_refused_before_and_after_a_reload(
        self, tmp_path: Path, version: ssl.TLSVersion | None
    ) -> None:
        """1.0 and 1.1 get no handshake; 1.2 and 1.3 do."""
        cert, key = write_certificate(tmp_path)
        config = guarded_config(tls=TlsConfig(cert=cert, key=key))
        client = unchecked()
        client.set_ciphers("ALL:@SECLEVEL=0")
        client.minimum_version = version or ssl.TLSVersion.TLSv1_3
        client.maximum_version = version or ssl.TLSVersion.TLSv1_3
        refused = []
        async with WebSocketGateway(config) as gateway:
            for _ in range(2):
                try:
                    async with await RawSocket.connect(gateway.port, tls=client):
                        refused.append(False)
                except (ssl.SSLError, ConnectionError):
                    refused.append(True)
                gateway.reconfigure(config)

        old = version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
        assert refused == [old, old]


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A gateway as a process, its configuration in a file, with a certificate."""
    cert, key = write_certificate(tmp_path)
    file = tmp_path / "gateway.toml"
    text = f'port = 0\n[auth]\ntoken = "{TOKEN}"\n[log]\nformat = "json"\n'
    text += f'[tls]\ncert = "{cert}"\nkey = "{key}"\n'
    file.write_text(text)
    with closing(Running(clean_environ(tmp_path), "serve", "--config", str(file))) as gateway:
        port = int(gateway.wait_for(r"listening on https://127\.0\.0\.1:(\d+)")[1])
        yield gateway, file, port, Path(cert)


TOKEN = "the-owner-s-token"


class TestHangUp:
    async def test_reads_the_file_and_the_certificate_anew(self, served: Any) -> None:
        """SIGHUP brings both in under a live connection; one line says so."""
        gateway, file, port, cert = served
        async with websockets.connect(
            f"wss://127.0.0.1:{port}/ws",
            ssl=unchecked(),
            proxy=None,
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
        ) as socket:
            peer = WebSocketPeer(socket)
            write_certificate(cert.parent)
            file.write_text(file.read_text() + "[limits]\nmax_message_size = 200\n")
            gateway.process.send_signal(signal.SIGHUP)
            line = await asyncio.to_thread(gateway.wait_for, "reloaded", "stderr")
            await peer.send("health", {"note": "x" * 300})
            large = await peer.next("error")

            assert json.loads(line.string)["changed"] == '["limits.max_message_size"]'
            assert error_of(large) == "MESSAGE_TOO_LARGE"
            assert await shown_by(port) == der(str(cert))

    async def test_of_a_wrong_file_keeps_the_old_and_names_it(self, served: Any) -> None:
        """The gateway goes on, and the log says which file, which line, which setting."""
        gateway, file, port, cert = served
        before = der(str(cert))
        good = file.read_text()
        said = []
        for wrong in ("[limits\n", "[limits]\nmax_bufferd = 1\n", "[limits]\nmax_depth = 1\n"):
            file.write_text(good + wrong)
            gateway.process.send_signal(signal.SIGHUP)
            line = await asyncio.to_thread(gateway.wait_for, "reloaded", "stderr")
            said.append(json.loads(line.string))
        file.write_text(good)
        cert.write_text("garbage")
        gateway.process.send_signal(signal.SIGHUP)
        line = await asyncio.to_thread(gateway.wait_for, "reloaded", "stderr")
        said.append(json.loads(line.string))

        assert {entry["source"] for entry in said} == {str(file)}
        assert {entry["event"] for entry in said} == {"not reloaded, all stays as it was"}
        for entry, why in zip(
            said, ("is not TOML", "max_buffered?", "$.limits.max_depth", "cert.pem"), strict=True
        ):
            assert why in entry["why"]
        assert await shown_by(port) == before
        assert gateway.end() == 0

    def test_of_the_terminal_ends_the_gateway_that_ran_there(self, tmp_path: Path) -> None:
        """Who closes the window wants it gone, and not reloaded."""
        environ = clean_environ(tmp_path)
        terminal = Terminal(environ, "serve", "--port", "0", "--auth", "none")
        try:
            terminal.wait_for("listening on")
            url = re.search(r"http://\S+:\d+", terminal.shown)
            assert url is not None
            httpx.get(f"{url[0]}/healthz").raise_for_status()  # so it waits for signals by now
            os.close(terminal._screen)
            terminal.process.send_signal(signal.SIGHUP)

            assert terminal.process.wait(PATIENCE) == 0
        finally:
            terminal.process.kill()
            terminal.process.wait()
            os.close(terminal._keyboard)


def test_a_repr_of_the_source_holds_no_secret() -> None:
    """A configuration in a traceback or a log shows no key."""
    config = guarded_config()
    config = replace(config, auth=replace(config.auth, jwt=jwt_config("HS256")))

    assert "0123456789" not in repr(Source(config, lambda: config, "x"))
    assert b"0123456789" in msgspec.json.encode(config)
