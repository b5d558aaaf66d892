"""`trunkline audit`: the log of who did what, from the command line."""

import contextlib
import json
import sqlite3
import time

import pytest
import typer
from processes import clean_environ, invoke

from trunkline.audit import Audit
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.cli_audit import parse_since
from trunkline.events import AuditEntry


@pytest.fixture
def environ(tmp_path):
    return clean_environ(tmp_path) | {"COLUMNS": "80"}


@pytest.fixture
def path(tmp_path, environ):
    """An audit log with a few entries."""
    path = tmp_path / ".local" / "state" / "trunkline" / AUTH_FILE
    with contextlib.closing(AuthDatabase(path)) as database:
        audit = Audit(database)
        audit.append(AuditEntry(action="auth.ok", actor="ada", address="192.0.2.1"))
        audit.append(AuditEntry(action="auth.failed", outcome="refused", address="192.0.2.9"))
        audit.append(
            AuditEntry(
                action="session.invite",
                actor="ada",
                target="lobby\x1b[2J\u202e",
                address="192.0.2.1",
                detail={"user": "bob"},
            )
        )
    return path


def printed(environ, *args):
    result = invoke(environ, "audit", *args)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestPrinting:
    def test_shows_a_table_that_fits_a_terminal(self, environ, path):
        """Who did what to what from where, in 80 columns, controls made visible."""
        result = invoke(environ, "audit")

        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert all(word in result.stdout for word in ("auth.failed", "192.0.2.9", "ada"))
        assert "\x1b" not in result.stdout
        assert "\u202e" not in result.stdout

    def test_prints_json_lines_newest_first(self, environ, path):
        """One object an entry, with all its fields."""
        first, *_, last = printed(environ, "--json")

        assert (first["action"], first["seq"]) == ("session.invite", 3)
        assert first["detail"] == {"user": "bob"}
        assert (last["action"], last["actor"], last["address"]) == ("auth.ok", "ada", "192.0.2.1")
        assert last["at"].endswith("+00:00")

    def test_filters(self, environ, path):
        """By user, action, time and number."""
        assert len(printed(environ, "--json", "--user", "ada")) == 2
        assert len(printed(environ, "--json", "--action", "auth.*")) == 2
        assert len(printed(environ, "--json", "--limit", "1")) == 1
        assert len(printed(environ, "--json", "--since", "1h")) == 3
        assert printed(environ, "--json", "--since", "2100-01-01") == []

    def test_says_so_where_there_is_no_log(self, environ):
        """Looking makes no file."""
        result = invoke(environ, "audit")

        assert result.exit_code == 1
        assert "no audit log" in result.stderr


class TestVerifying:
    def test_a_good_log_gives_a_head_to_keep(self, environ, path):
        """The head is accepted later, when the log has grown."""
        head = json.loads(invoke(environ, "audit", "verify", "--json").stdout)["head"]
        with contextlib.closing(AuthDatabase(path)) as database:
            Audit(database).append(AuditEntry(action="more"))

        assert invoke(environ, "audit", "verify", "--seen", head).exit_code == 0

    def test_a_changed_log_fails(self, environ, path):
        """With a sentence that names the entry, and exit code 1."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("DROP TRIGGER audit_no_update")
            other.execute("UPDATE audit SET actor = 'eve' WHERE seq = 2")

        result = invoke(environ, "audit", "verify")

        assert result.exit_code == 1
        assert "entry 2 is not as it was written" in result.stdout

    def test_a_strange_head_is_wrong_usage(self, environ, path):
        """It names the form."""
        result = invoke(environ, "audit", "verify", "--seen", "abc")

        assert result.exit_code == 2
        assert "64 hexadecimal digits" in result.stderr


class TestSince:
    def test_a_time_ago(self):
        """Seconds, minutes, hours, days, weeks."""
        now = 10_000_000.0

        assert parse_since("24h", now) == (10_000_000 - 86_400) * 1000
        assert parse_since("30m", now) == (10_000_000 - 1_800) * 1000
        assert parse_since("2w", now) == (10_000_000 - 14 * 86_400) * 1000

    def test_a_date(self):
        """In the machine's own time zone, or the one it names."""
        assert parse_since("1970-01-02T00:00:00+00:00", time.time()) == 86_400_000

    @pytest.mark.parametrize("text", ["", "yesterday", "24", "-1h", "1970-13-01"])
    def test_anything_else_is_wrong_usage(self, text, capsys):
        """With the forms that it has."""
        with pytest.raises(typer.Exit) as exited:
            parse_since(text, 0.0)

        assert exited.value.exit_code == 2
        assert "24h" in capsys.readouterr().err
