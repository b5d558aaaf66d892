"""`trunkline doctor` on this machine: each thing that can be wrong has its finding and its cure."""

import contextlib
import json
import resource
import shutil
import socket
import sqlite3
import threading

import pytest
from certificates import write_certificate
from processes import Running, clean_environ, invoke

from trunkline import doctor
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.config import (
    AuthConfig,
    LimitsConfig,
    OriginConfig,
    ProxyConfig,
    TlsConfig,
    WebSocketTransportConfig,
)
from trunkline.history._files import Lock
from trunkline.run import files_needed


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


def examined(folder, **settings):
    """All findings for a configuration, by the name of the check."""
    settings.setdefault("auth", AuthConfig(token="a-token-of-sixteen"))
    config = WebSocketTransportConfig(**{"port": 0, **settings}, data_dir=str(folder))
    return list(doctor.examine(config))


def one(findings, check, state):
    """The one finding of a check, which must have this state."""
    found = [f for f in findings if f.check == check and f.state == state]
    assert len(found) == 1, findings
    return found[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TestConfiguration:
    def test_an_unknown_setting_is_named_with_its_path(self, tmp_path):
        """And with the command that checks again."""
        file = tmp_path / "gateway.toml"
        file.write_text("[limits]\nmax_bufferd = 3\n")

        config, finding = doctor.load({}, file, str(tmp_path))

        assert config is None
        assert finding.state == "failed"
        assert "$.limits.max_bufferd" in finding.said
        assert finding.mend == f"mend it, then: trunkline config check {file}"

    def test_what_serve_would_refuse_is_said(self, folder):
        """Settings that contradict each other are found before the start."""
        findings = examined(folder, origins=OriginConfig(allowed_origins=("*",)))

        assert "serve would refuse it" in one(findings, "configuration", "failed").said

    def test_a_good_one_is_said_to_be_good(self, tmp_path):
        """With where it comes from."""
        _, finding = doctor.load({}, None, str(tmp_path))

        assert (finding.state, finding.mend) == ("ok", None)


class TestFiles:
    def test_a_folder_that_others_may_read_fails(self, folder):
        """The cure is the chmod itself."""
        folder.chmod(0o755)

        finding = one(examined(folder), "data folder", "failed")

        assert finding.mend == f"chmod 700 {folder}"

    @pytest.mark.parametrize("name", ["token", "auth.db", "log.db"])
    def test_a_file_that_others_may_read_fails(self, folder, name):
        """Each file that holds a secret or what people said."""
        file = folder / name
        file.touch(mode=0o644)
        file.chmod(0o644)

        finding = one(examined(folder), "data folder", "failed")

        assert finding.mend == f"chmod 600 {file}"

    def test_a_folder_that_is_none_fails(self, tmp_path):
        """A file in its place is no place for files."""
        (tmp_path / "state").touch()

        assert "is not a folder" in one(examined(tmp_path / "state"), "data folder", "failed").said

    def test_a_missing_folder_is_no_fault(self, tmp_path):
        """The first start makes it."""
        findings = examined(tmp_path / "none")

        assert "will be made" in one(findings, "data folder", "ok").said
        assert not (tmp_path / "none").exists()

    def test_a_full_disk_fails(self, folder, monkeypatch):
        """And a nearly full one is a warning."""
        usage = shutil.disk_usage(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1024**2))
        assert one(examined(folder), "disk space", "failed").mend == "free some"

        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200 * 1024**2))
        assert one(examined(folder), "disk space", "warning")

    @pytest.mark.parametrize("name", ["auth.db", "log.db"])
    def test_a_damaged_database_fails(self, folder, name):
        """The cure is a backup."""
        path = folder / name
        with contextlib.closing(AuthDatabase(path)) as database:
            database.create("CREATE TABLE IF NOT EXISTS t (x TEXT)")
            for _ in range(300):
                database.write("INSERT INTO t VALUES (?)", "x" * 100)
        data = bytearray(path.read_bytes())
        data[4096:12288] = b"\xff" * 8192
        path.write_bytes(data)

        finding = one(examined(folder), name, "failed")

        assert "is damaged" in finding.said
        assert "backup" in finding.mend

    def test_looking_at_a_database_changes_nothing(self, folder):
        """Not even its modification time."""
        path = folder / AUTH_FILE
        AuthDatabase(path).close()
        before = path.stat()

        assert one(examined(folder), AUTH_FILE, "ok").said == "no damage"
        assert path.stat().st_mtime_ns == before.st_mtime_ns

    def test_too_few_open_files_are_a_warning(self, folder):
        """With the number that is needed."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits = LimitsConfig(max_connections=hard + 1)

        finding = one(examined(folder, limits=limits), "open files", "warning")

        needed = files_needed(WebSocketTransportConfig(limits=limits))
        assert needed > hard + limits.http_connections
        assert finding.mend.startswith(f"LimitNOFILE={needed} ")


class TestPort:
    def test_a_port_that_something_else_has_fails(self, folder):
        """With the command that shows what it is."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(0.01)
            port = other.getsockname()[1]
            finding = one(self.with_stranger(other, folder, port), "port", "failed")

        assert f"something else than a gateway listens on {port}" in finding.said
        assert f"ss -ltnp 'sport = :{port}'" in finding.mend

    @staticmethod
    def with_stranger(other, folder, port):
        """Examine while `other` answers everybody with nonsense."""

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    with contextlib.suppress(TimeoutError):
                        peer, _ = other.accept()
                        peer.sendall(b"220 mail.example.com ESMTP\r\n")
                        peer.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        return examined(folder, port=port)

    def test_a_free_port_is_fine(self, folder):
        """Nothing listens there."""
        port = free_port()

        assert one(examined(folder, port=port), "port", "ok").said == f"{port} on 127.0.0.1 is free"

    def test_an_address_of_another_machine_fails(self, folder):
        """The gateway could not listen there."""
        findings = examined(folder, host="192.0.2.77", port=free_port())

        assert "no address 192.0.2.77" in one(findings, "port", "failed").said


class TestTls:
    def test_an_expired_certificate_fails(self, folder, tmp_path):
        """With the day, and how to take a new one into use."""
        cert, key = write_certificate(tmp_path, days=-1)

        finding = one(examined(folder, tls=TlsConfig(cert=cert, key=key)), "tls files", "failed")

        assert "expired on" in finding.said
        assert "kill -HUP" in finding.mend

    def test_one_that_expires_soon_is_a_warning(self, folder, tmp_path):
        """Two weeks before."""
        cert, key = write_certificate(tmp_path, days=5)

        findings = examined(folder, tls=TlsConfig(cert=cert, key=key))

        assert "expires in" in one(findings, "tls files", "warning").said

    def test_a_key_of_another_certificate_fails(self, folder, tmp_path):
        """It names both files."""
        cert, _ = write_certificate(tmp_path)
        _, key = write_certificate(tmp_path, stem="other-")

        finding = one(examined(folder, tls=TlsConfig(cert=cert, key=key)), "tls files", "failed")

        assert finding.said == f"{key} is not the key of {cert}"

    def test_a_file_that_is_no_certificate_fails(self, folder, tmp_path):
        """It names the file."""
        _, key = write_certificate(tmp_path)
        (tmp_path / "x.pem").write_text("nothing")

        findings = examined(folder, tls=TlsConfig(cert=str(tmp_path / "x.pem"), key=key))

        assert "x.pem" in one(findings, "tls files", "failed").said

    def test_a_good_pair_is_said_to_fit(self, folder, tmp_path):
        """With the day up to which it is valid."""
        cert, key = write_certificate(tmp_path, days=200)

        findings = examined(folder, tls=TlsConfig(cert=cert, key=key))

        assert "fit, valid until" in one(findings, "tls files", "ok").said


class TestExposure:
    def test_a_public_gateway_without_names_is_a_warning(self, folder):
        """Whoever comes by name would get 421."""
        finding = one(examined(folder, bind="all"), "names", "warning")

        assert "origins.allowed_hosts" in finding.mend

    def test_a_public_gateway_without_tls_is_a_warning(self, folder):
        """Unless a trusted proxy stands before it."""
        finding = one(examined(folder, bind="all"), "exposure", "warning")

        assert "unencrypted" in finding.said

    def test_a_public_gateway_without_sign_in_is_a_warning(self, folder):
        """Even though it was asked for."""
        findings = examined(folder, bind="all", insecure=True, auth=AuthConfig(mode="none"))

        assert any("let in as its owner" in finding.said for finding in findings)

    def test_a_private_gateway_needs_nothing(self, folder):
        """Defaults are quiet."""
        findings = examined(folder)

        assert {finding.state for finding in findings} == {"ok"}

    def test_trusting_half_the_internet_is_a_warning(self, folder):
        """Anybody there could say who a client is."""
        findings = examined(folder, proxies=ProxyConfig(trusted=("0.0.0.0/1",)))

        assert any("2147483648 addresses" in f.said for f in findings if f.check == "proxies")

    def test_a_proxy_that_cannot_reach_the_gateway_is_a_warning(self, folder):
        """On loopback only a proxy on this machine helps."""
        findings = examined(folder, proxies=ProxyConfig(trusted=("10.0.0.5/32",)))

        assert "127.0.0.1/32" in one(findings, "proxies", "warning").mend


class TestCommand:
    def test_a_running_gateway_is_well(self, tmp_path):
        """Every check of a fresh gateway and every step of the handshake succeeds."""
        environ = clean_environ(tmp_path) | {"TRUNKLINE_PORT": str(free_port()), "COLUMNS": "80"}
        with contextlib.closing(Running(environ, "serve")) as gateway:
            gateway.wait_for("listening")
            result = invoke(environ, "doctor")
            as_json = json.loads(invoke(environ, "doctor", "--json").stdout)

        assert result.exit_code == 0, result.stdout
        assert "All is well." in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert as_json["ok"] is True
        assert {f["state"] for f in as_json["findings"]} == {"ok"}
        checks = [f["check"] for f in as_json["findings"]]
        assert checks[-4:] == ["connect", "auth", "ping", "hello"]
        assert "in use by the gateway" in str(as_json)

    def test_a_wrong_token_fails_at_the_sign_in(self, tmp_path):
        """Exit code 1, the failing step and what to do."""
        environ = clean_environ(tmp_path)
        with contextlib.closing(Running(environ, "serve", "--port", "0")) as gateway:
            url = gateway.wait_for(r"http://\S+")[0]
            result = invoke(environ, "doctor", "--url", url, "--token", "x" * 20)

        assert result.exit_code == 1
        assert "✗ auth" in result.stdout
        assert "--token" in result.stdout
        assert "not tried: ping, hello" in result.stdout
        assert "x" * 20 not in result.stdout

    def test_an_invalid_configuration_ends_the_examination(self, tmp_path):
        """Nothing else can be looked at then."""
        file = tmp_path / "gateway.toml"
        file.write_text("port = 123456\n")

        result = invoke(clean_environ(tmp_path), "doctor", "--config", str(file), "--json")

        assert result.exit_code == 1
        (finding,) = json.loads(result.stdout)["findings"]
        assert "$.port" in finding["said"]

    def test_a_gateway_that_does_not_run_is_said(self, tmp_path):
        """With the command that starts one."""
        environ = clean_environ(tmp_path) | {"TRUNKLINE_PORT": str(free_port())}

        result = invoke(environ, "doctor")

        assert result.exit_code == 1
        assert "nothing listens" in result.stdout
        assert "trunkline serve" in result.stdout

    def test_what_is_no_address_is_wrong_usage(self, tmp_path):
        """Also one with a credential in it, which would end up in logs."""
        for url in ("ftp://x", "http://ada:secret@x", "http://x/?token=secret"):
            result = invoke(clean_environ(tmp_path), "doctor", "--url", url)
            assert result.exit_code == 2
            assert "secret" not in result.output


def test_a_held_log_is_not_examined(folder):
    """It could change under the examination; the process that holds it is named."""
    sqlite3.connect(folder / "log.db").close()
    (folder / "log.db").chmod(0o600)
    lock = Lock(folder / "log.db.lock", folder / "log.db")
    try:
        assert "in use by the gateway" in one(examined(folder), "log.db", "ok").said
    finally:
        lock.release()
