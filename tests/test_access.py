"""What the end of a credential does to the connections that it opened."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from peers import error_of

from trunkline.access import POLL_INTERVAL
from trunkline.authdb import AuthDatabase
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.credentials import Credentials
from trunkline.errors import ConfigError
from trunkline.ids import now_ms
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient
from trunkline.users import Users

TOKEN = "the-owner's-token"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "auth.db"


@pytest.fixture
async def gateway(path):
    """A gateway with a database of credentials."""
    database = AuthDatabase(path)
    config = GatewayConfig(
        auth=AuthConfig(token=TOKEN), limits=LimitsConfig(connections_per_user=1_000)
    )
    async with GatewayServer(config, authdb=database) as gateway:
        yield gateway
    database.close()


@pytest.fixture
def command_line(path):
    """The credentials and users as another process has them."""
    database = AuthDatabase(path)
    yield Credentials(database), Users(database)
    database.close()


def made(credentials, user="ada", **more):
    return credentials.create(name=user, user_id=user, roles={"webchat"}, **more)


async def entered(gateway, secret, session="lobby"):
    """A connection that has signed in and joined."""
    peer = PeerClient(gateway)
    answer = await peer.ask("auth", {"token": secret})
    assert answer.type == "auth_success", answer
    await peer.ask("session_create", {"sessionId": session, "joinIfExists": True})
    return peer


async def test_a_stored_token_signs_its_user_in_with_what_was_granted(gateway):
    """The answers say so."""
    _, secret = gateway.credentials.create(
        name="phone",
        user_id="ada",
        roles={"webchat", "node"},
        scopes={"approve"},
        session_patterns=("acme-*",),
        expires_at=now_ms() + 3_600_000,
    )
    peer = PeerClient(gateway)

    answer = (await peer.ask("auth", {"token": secret})).data()
    hello = (await peer.ask("connect", {"deviceId": "d", "role": "node"})).data()

    assert (answer["userId"], answer["role"]) == ("ada", "webchat")
    assert (answer["scopes"], answer["sessionPatterns"]) == (["approve"], ["acme-*"])
    assert "agentPatterns" not in answer
    assert answer["expiresAt"] == peer.client.expires_at
    assert (hello["role"], hello["scopes"]) == ("node", ["approve"])


async def test_the_owners_secret_goes_on_beside_stored_tokens(gateway):
    """Each form has its own verifier."""
    peer = PeerClient(gateway)

    assert (await peer.ask("auth", {"token": TOKEN})).data()["userId"] == "owner"


def test_an_owners_token_that_looks_like_a_stored_one_does_not_start(path):
    """Nobody could ever sign in with it."""
    config = GatewayConfig(auth=AuthConfig(token="tl_mine"))

    with pytest.raises(ConfigError, match=r"auth\.token has the form"):
        GatewayServer(config, authdb=AuthDatabase(path))
    GatewayServer(config)  # without stored tokens the form is not special


async def test_a_database_is_enough_to_sign_in_with(path):
    """There need be no owner's secret."""
    database = AuthDatabase(path)
    _, secret = made(Credentials(database))
    async with GatewayServer(GatewayConfig(), authdb=database) as gateway:
        answer = await PeerClient(gateway).ask("auth", {"token": secret})

    assert answer.type == "auth_success"


async def end_by(way, gateway, command_line, stored):
    """End a credential in one of the ways that there are."""
    credentials, _ = command_line
    if way == "revoked here":
        assert gateway.credentials.revoke(stored.id)
    elif way == "rotated here":
        gateway.credentials.rotate(stored.id)
    elif way == "revoked elsewhere":
        assert credentials.revoke(stored.id)
    else:
        credentials.rotate(stored.id)


def test_the_database_is_looked_at_twice_a_second():
    """So the end of a credential is acted on within one."""
    assert POLL_INTERVAL <= 0.5


@pytest.mark.parametrize(
    ("way", "many"),
    [
        ("revoked here", 1_000),
        ("revoked elsewhere", 1_000),
        ("rotated here", 20),
        ("rotated elsewhere", 20),
    ],
)
async def test_the_end_of_a_credential_closes_all_its_connections(gateway, command_line, way, many):
    """With 4003, and nothing is delivered to them any more."""
    stored, secret = made(gateway.credentials)
    _, other = made(gateway.credentials, "bob")
    peers = [await entered(gateway, secret) for _ in range(many)]
    bystander = await entered(gateway, other)
    speaker = await entered(gateway, TOKEN)

    await end_by(way, gateway, command_line, stored)
    speaker.send("chat", {"message": "still in the queue?"}, "lobby")
    closed = [await peer.gone() for peer in peers]
    counts = [len(peer.transport.sent) for peer in peers]
    await speaker.ask("chat", {"message": "secret"}, "lobby")
    await bystander.next("chat")

    assert {code for code, _ in closed} == {4003}
    assert [len(peer.transport.sent) for peer in peers] == counts
    if way.endswith(" here"):
        assert all(b"still in the queue" not in frame for p in peers for frame in p.transport.sent)
    assert bystander.transport.closed is None
    assert len(gateway.clients) == 2
    assert error_of(await PeerClient(gateway).ask("auth", {"token": secret})) == "AUTH_FAILED"


async def test_the_new_secret_of_a_rotated_token_opens_connections_that_stay(gateway):
    """Only the old one's are closed."""
    stored, secret = made(gateway.credentials)
    old = await entered(gateway, secret)

    _, new = gateway.credentials.rotate(stored.id)
    fresh = await entered(gateway, new)
    gateway.access.enforce()

    assert (await old.gone())[0] == 4003
    assert fresh.transport.closed is None


async def test_what_expires_is_closed_by_itself(gateway):
    """By the clock of the wall."""
    _, secret = made(gateway.credentials, expires_at=now_ms() + 300)
    peer = await entered(gateway, secret)

    code, reason = await peer.gone()

    assert (code, reason) == (4003, "reconnect=no;the credential has expired")
    assert now_ms() >= peer.client.expires_at


async def test_a_fresh_token_of_the_same_user_prolongs_a_connection(gateway):
    """It is closed when that one ends, and not when the first does."""
    first, secret = made(gateway.credentials)
    second, fresh = made(gateway.credentials)
    peer = await entered(gateway, secret)

    assert (await peer.ask("auth", {"token": fresh})).type == "auth_success"
    gateway.credentials.revoke(first.id)
    assert peer.transport.closed is None
    gateway.credentials.revoke(second.id)

    assert (await peer.gone())[0] == 4003


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        ({}, {"session_patterns": ("acme-*",)}),
        ({"agent_patterns": ("a*",)}, {"agent_patterns": ("ab*",)}),
    ],
)
async def test_a_refresh_changes_nothing_of_the_patterns(gateway, wider, narrower):
    """A wider credential does not widen them, and a narrower one does not do."""
    _, wide = made(gateway.credentials, **wider)
    _, narrow = made(gateway.credentials, **narrower)
    bounded = PeerClient(gateway)
    await bounded.ask("auth", {"token": narrow})
    patterns = bounded.client.identity.session_patterns, bounded.client.identity.agent_patterns

    assert (await bounded.ask("auth", {"token": wide})).type == "auth_success"
    after = bounded.client.identity.session_patterns, bounded.client.identity.agent_patterns
    assert after == patterns

    free = PeerClient(gateway)
    await free.ask("auth", {"token": wide})
    before = free.client.identity
    assert error_of(await free.ask("auth", {"token": narrow})) == "FORBIDDEN"
    assert free.client.identity is before


# Users


async def test_a_user_signs_in_with_a_password(gateway):
    """Beside the owner, whose secret is another one."""
    gateway.users.add("ada", "open sesame", roles={"webchat"}, scopes={"approve"})
    peer = PeerClient(gateway)

    wrong = [
        await peer.ask("auth", payload)
        for payload in (
            {"user": "ada", "password": "wrong"},
            {"user": "bob", "password": "open sesame"},
            {"password": "open sesame"},
            {"user": "ada", "token": "open sesame"},
            {"user": "ada", "password": "open sesame", "token": TOKEN},
        )
    ]
    right = await peer.ask("auth", {"user": "ada", "password": "open sesame"})

    assert [error_of(answer) for answer in wrong] == ["AUTH_FAILED"] * 5
    assert (right.data()["userId"], right.data()["scopes"]) == ("ada", ["approve"])


@pytest.mark.parametrize("way", ["removed", "password changed"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_user_that_is_gone_or_changed_is_signed_out(gateway, command_line, way, where):
    """With 4003."""
    users = gateway.users if where == "here" else command_line[1]
    gateway.users.add("ada", "open sesame")
    peer = PeerClient(gateway)
    await peer.ask("auth", {"user": "ada", "password": "open sesame"})

    users.remove("ada") if way == "removed" else users.set_password("ada", "other")

    assert (await peer.gone())[0] == 4003


async def test_a_user_removed_while_the_password_is_judged_does_not_get_in(gateway):
    """The outcome is looked at again."""
    gateway.users.add("ada", "open sesame")
    peer = PeerClient(gateway)

    request = peer.send("auth", {"user": "ada", "password": "open sesame"})
    await asyncio.sleep(0)
    gateway.users.remove("ada")

    assert error_of(await peer.next(reply_to=request)) == "AUTH_FAILED"


# Guessing


@pytest.mark.parametrize("secret", ["tl_wrong", "wrong", "a.b.c"])
async def test_of_500_parallel_attempts_at_most_10_are_compared(gateway, monkeypatch, secret):
    """Whatever the form; and a right one from elsewhere gets in."""
    compared = 0
    verify = gateway.door._verify

    def counting(credential):
        nonlocal compared
        compared += 1
        return verify(credential)

    monkeypatch.setattr(gateway.door, "_verify", counting)
    peers = [PeerClient(gateway, address="192.0.2.1") for _ in range(500)]

    answers = await asyncio.gather(*(peer.ask("auth", {"token": secret}) for peer in peers))

    codes = [error_of(answer) for answer in answers]
    assert (codes.count("AUTH_FAILED"), codes.count("AUTH_LOCKED")) == (10, 490)
    assert compared == 10
    elsewhere = PeerClient(gateway, address="192.0.2.2")
    assert (await elsewhere.ask("auth", {"token": TOKEN})).type == "auth_success"


async def test_of_500_parallel_passwords_at_most_10_are_judged(gateway, monkeypatch):
    """They are counted before they wait for a thread."""
    judged = 0
    verify = gateway.users.verify

    async def counting(user, password):
        nonlocal judged
        judged += 1
        return await verify(user, password)

    monkeypatch.setattr(gateway.users, "verify", counting)
    peers = [PeerClient(gateway, address="192.0.2.1", patience=60) for _ in range(500)]

    attempt = {"user": "ada", "password": "x"}
    answers = await asyncio.gather(*(peer.ask("auth", attempt) for peer in peers))

    assert judged == 10
    assert [error_of(answer) for answer in answers].count("AUTH_LOCKED") == 490


# Quotas


async def test_a_user_has_at_most_so_many_connections(path):
    """The next is closed with 4029 and a time; when one goes, another may come."""
    database = AuthDatabase(path)
    limits = LimitsConfig(connections_per_user=3)
    config = GatewayConfig(auth=AuthConfig(token=TOKEN), limits=limits)
    async with GatewayServer(config, authdb=database) as gateway:
        _, secret = made(gateway.credentials)
        _, other = made(gateway.credentials, "bob")
        peers = [await entered(gateway, secret) for _ in range(3)]

        fourth = PeerClient(gateway)
        fourth.send("auth", {"token": secret})
        assert await fourth.gone() == (
            4029,
            "reconnect=yes;afterMs=30000;this user has too many connections",
        )
        assert gateway.door.over_quota == 1

        await entered(gateway, other)
        owners = [await entered(gateway, TOKEN) for _ in range(4)]
        assert all(owner.transport.closed is None for owner in owners)

        peers[0].disconnect()
        await entered(gateway, secret)
        with suppress(ConnectionError):
            await PeerClient(gateway).ask("auth", {"token": secret})
        assert gateway.door.over_quota == 2
    database.close()


# What is put on record


async def test_changes_here_are_told_to_the_audit_log(gateway):
    """Who did what to what; no secret."""
    entries = []
    gateway.on("audit", entries.append)
    stored, _ = made(gateway.credentials, created_by="root")

    gateway.credentials.rotate(stored.id, "root")
    gateway.credentials.revoke(stored.id, "root")
    gateway.users.add("ada", "x", by="root")
    gateway.users.set_password("ada", "y", by="root")
    gateway.users.remove("ada", by="root")

    assert [(e.action, e.actor, e.target) for e in entries] == [
        ("token.create", "root", stored.id),
        ("token.rotate", "root", stored.id),
        ("token.revoke", "root", stored.id),
        ("user.add", "root", "ada"),
        ("user.passwd", "root", "ada"),
        ("user.remove", "root", "ada"),
    ]
