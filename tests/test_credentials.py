"""Stored credentials: what is kept of a token, and whom it lets in."""

from __future__ import annotations

import ast
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from trunkline.authdb import AuthDatabase
from trunkline.clients import Identity
from trunkline.credentials import PREFIXES, Credentials, kind_of
from trunkline.grants import may_grant

NOW = 1_800_000_000_000
SOURCE = Path(__file__).resolve().parents[1] / "src" / "trunkline"


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "auth.db"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def credentials(path, clock):
    database = AuthDatabase(path)
    yield Credentials(database, clock)
    database.close()


def made(credentials, **more):
    fields = {"name": "phone", "user_id": "ada", "roles": {"webchat"}, **more}
    return credentials.create(**fields)


def elsewhere(path, clock):
    """The same file as another process has it."""
    return Credentials(AuthDatabase(path), clock)


def test_the_secret_of_a_credential_finds_it(credentials):
    """With all that was granted."""
    stored, secret = made(
        credentials,
        scopes={"approve"},
        session_patterns=("acme-*",),
        agent_patterns=("acme-bot",),
        expires_at=NOW + 1,
        created_by="root",
    )

    found = credentials.find(secret)

    assert found == stored
    assert (found.user_id, found.roles, found.scopes) == ("ada", {"webchat"}, {"approve"})
    assert (found.session_patterns, found.agent_patterns) == (("acme-*",), ("acme-bot",))
    assert (found.created_at, found.created_by, found.expires_at) == (NOW, "root", NOW + 1)


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_secret_tells_what_it_is_and_has_256_random_bits(credentials, kind):
    """Its prefix is the kind's, and the rest are 43 characters of base64url."""
    for _ in range(50):
        stored, secret = made(credentials, kind=kind)

        assert kind_of(secret) == kind == stored.kind
        assert len(secret) == len(PREFIXES[kind]) + 43


def test_what_is_no_secret_of_ours_has_no_kind():
    """Nothing is guessed."""
    assert kind_of("the-owner's-token") is None


def test_a_wrong_secret_finds_nothing(credentials):
    """Nor the id, the name, the digest, or a part of the secret."""
    stored, secret = made(credentials)
    digest = hashlib.sha256(secret.encode()).hexdigest()

    for wrong in ("", "tl_", stored.id, stored.name, digest, secret[:-1], secret + "x", "\ud800"):
        assert credentials.find(wrong) is None


def test_a_credential_that_has_expired_finds_nothing(credentials, clock):
    """From the very millisecond."""
    stored, secret = made(credentials, expires_at=NOW + 10)
    clock.now = NOW + 10

    assert credentials.find(secret) is None
    assert not credentials.holds(stored.id, stored.version)


def test_a_revoked_credential_finds_nothing(credentials):
    """Revoking it again says that there was nothing to do."""
    stored, secret = made(credentials)

    first, second = credentials.revoke(stored.id), credentials.revoke(stored.id)

    assert (first, second) == (True, False)
    assert credentials.find(secret) is None
    assert credentials.get(stored.id).revoked_at == NOW
    assert not credentials.revoke("k_none")


def test_a_rotated_credential_has_another_secret_and_the_same_grants(credentials):
    """The old secret is dead, and so is what it opened."""
    stored, old = made(credentials, scopes={"approve"})

    rotated, new = credentials.rotate(stored.id)

    assert credentials.find(old) is None
    assert credentials.find(new) == rotated
    assert (rotated.id, rotated.scopes) == (stored.id, stored.scopes)
    assert credentials.holds(stored.id, rotated.version)
    assert not credentials.holds(stored.id, stored.version)


def test_a_credential_that_has_ended_cannot_be_rotated(credentials, clock):
    """Rotating brings nothing back to life."""
    revoked, _ = made(credentials)
    expired, _ = made(credentials, expires_at=NOW + 1)
    credentials.revoke(revoked.id)
    clock.now = NOW + 1

    for id in (revoked.id, expired.id, "k_none"):
        with pytest.raises(ValueError, match="no living credential"):
            credentials.rotate(id)


def test_a_credential_is_got_by_its_id_or_by_a_name_that_only_it_has(credentials):
    """Of several, the one that is alive; with several alive, none."""
    first, _ = made(credentials, name="phone")
    assert credentials.get("phone") == first == credentials.get(first.id)

    second, _ = made(credentials, name="phone")
    assert credentials.get("phone") is None

    credentials.revoke(first.id)
    assert credentials.get("phone") == second


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"roles": set()}, "role"),
        ({"roles": {"boss"}}, "no role 'boss'"),
        ({"roles": {"anonymous"}}, "no role"),
        ({"scopes": {"everything"}}, "no scope 'everything'"),
        ({"session_patterns": ("a b",)}, "pattern"),
        ({"agent_patterns": ("",)}, "pattern"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"user_id": "x" * 129}, "user id"),
        ({"expires_at": NOW}, "expired"),
    ],
)
def test_what_cannot_be_granted_is_refused(credentials, wrong, says):
    """The sentence names it, and nothing is kept."""
    with pytest.raises(ValueError, match=says):
        made(credentials, **wrong)

    assert credentials.list() == []


# The file


def test_another_process_changes_what_is_found_at_once(credentials, path, clock):
    """Every attempt is judged by what the file says then."""
    other = elsewhere(path, clock)
    stored, secret = made(other)
    assert credentials.find(secret) == stored

    _, new = other.rotate(stored.id)
    assert (credentials.find(secret), credentials.find(new) is not None) == (None, True)

    other.revoke(stored.id)
    assert credentials.find(new) is None


def test_when_a_credential_was_used_last_is_written_now_and_then(credentials, path, clock):
    """It is known at once, and in the file after `flush`."""
    stored, secret = made(credentials)
    other = elsewhere(path, clock)
    clock.now = NOW + 5
    credentials.find(secret)

    known, written = credentials.get(stored.id).last_used_at, other.get(stored.id).last_used_at
    credentials.flush()

    assert (known, written) == (NOW + 5, None)
    assert other.get(stored.id).last_used_at == NOW + 5


def test_short_lived_credentials_are_forgotten_an_hour_after_their_end(credentials, clock):
    """Others are kept for whoever asks later."""
    short, _ = made(credentials, kind="session", expires_at=NOW + 1)
    token, _ = made(credentials, expires_at=NOW + 1)
    clock.now = NOW + 3_600_000
    credentials.flush()
    assert credentials.get(short.id) is not None

    clock.now = NOW + 3_600_002
    credentials.flush()

    assert credentials.list() == [credentials.get(token.id)]


def test_no_secret_is_in_the_file_or_in_a_repr(credentials, path):
    """Neither in the database nor in its write-ahead log."""
    stored, secret = made(credentials)
    rotated, second = credentials.rotate(stored.id)

    written = b"".join(Path(path.parent, name).read_bytes() for name in os.listdir(path.parent))
    for each in (secret, second):
        assert each.encode() not in written
        assert each.removeprefix("tl_") not in repr((stored, rotated, credentials.list()))


def test_the_file_keeps_a_sha_256(credentials, path):
    """So that another program can check one."""
    _, secret = made(credentials)

    with sqlite3.connect(path) as database:
        [(digest,)] = database.execute("SELECT digest FROM credentials")
    database.close()

    assert digest == hashlib.sha256(secret.encode()).digest()


# Who may grant what

ROOT = Identity(user_id="root", scopes=frozenset({"admin"}))


def grantor(*scopes, roles=("control", "webchat"), **bounds):
    return Identity(user_id="x", roles=frozenset(roles), scopes=frozenset(scopes), **bounds)


@pytest.mark.parametrize(
    ("identity", "wanted", "allowed"),
    [
        (ROOT, {"roles": {"control", "node"}, "scopes": {"admin"}}, True),
        (grantor("credential:admin"), {"roles": {"webchat"}}, True),
        (grantor("credential:admin"), {"roles": {"node"}}, False),
        (grantor("credential:admin"), {"roles": {"webchat"}, "scopes": {"approve"}}, False),
        (grantor("credential:admin"), {"roles": {"webchat"}, "scopes": {"admin"}}, False),
        (grantor("credential:admin", roles=("webchat",)), {"roles": {"webchat"}}, False),
        (grantor("session:admin"), {"roles": {"webchat"}}, False),
        (
            grantor("credential:admin", session_patterns=("acme-*",)),
            {"roles": {"webchat"}, "session_patterns": ("acme-a-*",)},
            True,
        ),
        (
            grantor("credential:admin", session_patterns=("acme-*",)),
            {"roles": {"webchat"}, "session_patterns": ("acme-*", "*")},
            False,
        ),
        (
            grantor("credential:admin", agent_patterns=("acme-*",)),
            {"roles": {"webchat"}},
            False,
        ),
    ],
)
def test_nobody_grants_more_than_they_have(identity, wanted, allowed):
    """Roles, scopes and patterns alike."""
    assert may_grant(identity, **wanted) is allowed


# W13

SECRETS = {"secret", "password", "token", "digest", "given", "hashed", "code"}


def names_in(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


@pytest.mark.parametrize("module", ["auth", "credentials", "users", "access", "grants", "authdb"])
def test_no_secret_is_compared_with_equals(module):
    """Only `hmac.compare_digest`, whose time tells nothing, or argon2 does that."""
    tree = ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))

    found = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        and SECRETS.intersection(names_in(node))
    ]

    assert found == []
