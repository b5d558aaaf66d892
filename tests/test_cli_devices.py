"""``trunkline devices``: the records changed and shown from the command line."""

from __future__ import annotations

import json

import pytest
from processes import clean_environ, invoke

from trunkline.audit import Audit
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.challenges import fingerprint
from trunkline.credentials import Credentials
from trunkline.devices import Devices

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture
def devices(tmp_path):
    """The records, as a gateway has them open."""
    database = AuthDatabase(tmp_path / AUTH_FILE)
    yield Devices(database, Credentials(database))
    database.close()


@pytest.fixture
def run(tmp_path):
    """Run a command on the same file; returns what it printed."""

    def command(*words, code=0):
        done = invoke(clean_environ(tmp_path), "devices", *words, "--data-dir", str(tmp_path))
        assert done.exit_code == code, done.stderr
        return done.stderr if code else done.stdout

    return command


def ask(devices, device_id="laptop", key=KEY, role=None, name="Ada's laptop"):
    return devices.request(
        device_id=device_id,
        public_key=key,
        name=name,
        role=role,
        address="192.0.2.7",
        address_key="192.0.2.7",
        total=64,
        per_address=64,
    )[0]


def test_lists_who_waits_and_who_is_paired(devices, run):
    """With what a person has to compare."""
    assert "no device waits" in run("list")
    ask(devices, "phone", role="node")
    run("approve", "phone", "--role", "node")
    request = ask(devices, "phone", OTHER)

    text = run("list")

    assert request.request_id in text
    assert fingerprint(OTHER) in text
    assert fingerprint(KEY) in text
    assert "another key is paired under this id" in text
    assert "192.0.2.7" in text


def test_prints_json_without_keys(devices, run):
    """Both lists, in the names of the wire."""
    ask(devices)
    ask(devices, "phone", OTHER)
    run("approve", "phone")

    data = json.loads(run("list", "--json"))

    assert [entry["deviceId"] for entry in data["pending"]] == ["laptop"]
    assert [entry["deviceId"] for entry in data["devices"]] == ["phone"]
    assert "publicKey" not in data["pending"][0]


def test_what_a_device_calls_itself_cannot_play_tricks_with_the_terminal(devices, run):
    """Escape sequences are shown as what they are."""
    ask(devices, name="\x1b[2J\u202eevil\n")

    text = run("list")

    assert "\x1b" not in text
    assert "\u202e" not in text


def test_approves_with_the_rights_that_are_given(devices, run):
    """Bounded as a token is."""
    request = ask(devices, role="node")

    run(
        *("approve", request.request_id, "--user", "ada", "--role", "node", "--role", "observer"),
        *("--scope", "approve", "--session", "acme-*", "--agent", "acme-*", "--expires", "30d"),
    )

    device = devices.get("laptop")
    assert (device.user_id, device.roles) == ("ada", {"node", "observer"})
    assert device.scopes == {"approve"}
    assert (device.session_patterns, device.agent_patterns) == (("acme-*",), ("acme-*",))
    assert device.expires_at == pytest.approx(device.approved_at + 30 * 86_400_000, abs=60_000)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--role", "king"], 2, "no role 'king'"),
        (["--scope", "all"], 2, "no scope 'all'"),
        (["--role", "webchat"], 2, "asks for the role node"),
        (["--role", "node", "--session", "a b"], 2, "cannot be a pattern"),
        (["--role", "node", "--user", "a b"], 2, "grammar of an id"),
        (["--role", "node", "--expires", "soon"], 2, "is no duration"),
    ],
    ids=lambda value: str(value),
)
def test_refuses_what_cannot_be_granted(devices, run, words, code, says):
    """In a sentence; the device goes on waiting."""
    ask(devices, role="node")

    assert says in run("approve", "laptop", *words, code=code)
    assert len(devices.pending()) == 1


@pytest.mark.parametrize("command", ["approve", "reject", "rotate", "revoke"])
def test_says_that_there_is_no_such_device(run, command):
    """Exit code 1."""
    assert "nobody" in run(command, "nobody", code=1)


def test_ends_devices(devices, run):
    """Their tokens, then themselves."""
    ask(devices)
    run("approve", "laptop")
    devices.issue(devices.get("laptop"))

    assert "its key stays paired" in run("rotate", "laptop")
    assert devices.get("laptop").credential_id is None
    assert "no longer paired" in run("revoke", "laptop")
    assert devices.list() == []


def test_puts_everything_on_record(devices, run, tmp_path):
    """Who, what, and which key."""
    ask(devices)
    run("approve", "laptop", "--user", "ada")
    run("rotate", "laptop")
    run("revoke", "laptop")
    ask(devices)
    run("reject", "laptop")

    database = AuthDatabase(tmp_path / AUTH_FILE)
    entries = Audit(database).entries()[::-1]
    database.close()

    actions = ["device.approve", "device.rotate", "device.revoke", "device.reject"]
    assert [entry.action for entry in entries] == actions
    assert {entry.target for entry in entries} == {"laptop"}
    assert {entry.detail["fingerprint"] for entry in entries} == {fingerprint(KEY)}
    assert entries[0].detail["user"] == "ada"
    assert all(entry.actor for entry in entries)


def test_a_damaged_file_is_refused(run, tmp_path):
    """Never read as one without devices."""
    (tmp_path / AUTH_FILE).write_bytes(b"no database" * 100)
    (tmp_path / AUTH_FILE).chmod(0o600)

    assert "cannot use" in run("list", code=2)
