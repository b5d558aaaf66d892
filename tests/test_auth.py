"""Signing in: who a client is, and what it may be."""

from __future__ import annotations

import ast
import asyncio
import inspect
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import People, details_of, error_of, person, token_of

import trunkline.auth
from trunkline.auth import OWNER, Credential
from trunkline.clients import Identity
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.errors import ConfigError
from trunkline.messages import GatewayMessage
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

TOKEN = "the-owner's-token"


async def auth(peer: PeerClient, token: str | None = None, **more) -> GatewayMessage:
    return await peer.ask("auth", {"token": token, **more} if token is not None else more)


class Slow:
    """An authenticator that has to wait for its answer, and counts what it compares."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = 0

    async def authenticate(self, credential: Credential) -> Identity | None:
        self.asked += 1
        await self.gate.wait()
        return People().authenticate(credential)


def gateway_with(authenticator: object = None, **auth) -> GatewayServer:
    config = GatewayConfig(auth=AuthConfig(**{"token": TOKEN, **auth}))
    return GatewayServer(config, authenticator=authenticator)  # type: ignore[arg-type]


# The owner's secret


async def test_the_token_signs_the_owner_in():
    """With all roles and scopes; the answer says so."""
    async with gateway_with() as gateway:
        peer = PeerClient(gateway)

        answer = await auth(peer, TOKEN)

        assert answer.type == "auth_success"
        assert answer.data()["clientId"] == peer.client.id
        assert (answer.data()["userId"], answer.data()["role"]) == ("owner", "control")
        assert set(answer.data()["scopes"]) >= {"admin", "session:admin", "agent:admin", "approve"}


async def test_the_password_signs_the_owner_in_where_the_mode_is_password():
    """A token is then nobody's."""
    async with gateway_with(mode="password", token=None, password="open sesame") as gateway:
        good = await PeerClient(gateway).ask("auth", {"password": "open sesame"})
        bad = await PeerClient(gateway).ask("auth", {"token": "open sesame"})

        assert (good.type, good.data()["userId"]) == ("auth_success", "owner")
        assert error_of(bad) == "AUTH_FAILED"


@pytest.mark.parametrize(
    "token", ["", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "é", "x" * 9_000]
)
async def test_a_wrong_token_is_refused_and_may_be_tried_again(token):
    """The connection stays, as it was."""
    async with gateway_with() as gateway:
        peer = PeerClient(gateway)

        refusal = await auth(peer, token)
        answer = await auth(peer, TOKEN)

        assert error_of(refusal) == "AUTH_FAILED"
        assert answer.type == "auth_success"


async def test_without_sign_in_everybody_is_the_local_user(gateway):
    """READY at once; `auth` is answered all the same."""
    peer = PeerClient(gateway)
    welcome = await peer.next("session_info")

    answer = await auth(peer, "whatever")

    assert welcome.data()["authRequired"] is False
    assert (answer.type, answer.data()["userId"]) == ("auth_success", "local")


def test_sign_in_without_anything_to_sign_in_with_does_not_start():
    """Neither a token nor a password, an authenticator or an override."""
    with pytest.raises(ConfigError, match=r"auth\.token"):
        GatewayServer(GatewayConfig())
    with pytest.raises(ConfigError, match=r"auth\.password"):
        GatewayServer(GatewayConfig(auth=AuthConfig(mode="password")))


async def test_validate_token_may_be_overridden():
    """Plain or a coroutine; True is the owner, an identity somebody, False nobody."""

    class Mine(GatewayServer):
        async def validate_token(self, token):
            await asyncio.sleep(0)
            return {"yes": True, "ada": person("ada")}.get(token, False)

    async with Mine(GatewayConfig()) as gateway:
        owner, ada, nobody = [await auth(PeerClient(gateway), t) for t in ("yes", "ada", "no")]

        assert (owner.data()["userId"], ada.data()["userId"]) == ("owner", "ada")
        assert error_of(nobody) == "AUTH_FAILED"


async def test_an_identity_without_any_role_is_nobody():
    """There is nothing that it could be."""

    class Odd(GatewayServer):
        def validate_token(self, token):
            return Identity(user_id="odd", roles=frozenset())

    async with Odd(GatewayConfig()) as gateway:
        assert error_of(await auth(PeerClient(gateway), "x")) == "AUTH_FAILED"


async def test_an_authenticator_that_fails_is_a_handler_error_and_locks_nobody_out(capsys):
    """It judged nothing."""

    class Broken(GatewayServer):
        works = False

        def validate_token(self, token):
            if not self.works:
                raise OSError("the directory is down")
            return True

    async with Broken(GatewayConfig()) as gateway:
        peer = PeerClient(gateway)
        codes = {error_of(await auth(peer, "x")) for _ in range(11)}
        gateway.works = True

        assert codes == {"HANDLER_ERROR"}
        assert (await auth(peer, "x")).type == "auth_success"


# Before sign-in


@pytest.mark.parametrize(
    "type", ["chat", "session_join", "health", "agent_list", "wobble", "error"]
)
async def test_a_stranger_may_only_greet_sign_in_and_ping(guarded, type):
    """Everything else is `AUTH_REQUIRED`."""
    stranger = PeerClient(guarded)

    refusal = await stranger.ask(type, {"sessionId": "lobby", "message": "hi"})

    assert error_of(refusal) == "AUTH_REQUIRED"
    assert (await stranger.ask("ping")).type == "pong"
    assert (await stranger.ask("connect", {"deviceId": "d"})).type == "hello_ok"


async def test_an_auth_without_a_credential_is_auth_required_and_no_failure(guarded):
    """However often."""
    peer = PeerClient(guarded)

    answers = [await auth(peer) for _ in range(15)]

    assert {error_of(a) for a in answers} == {"AUTH_REQUIRED"}
    assert (await auth(peer, token_of("ada"))).type == "auth_success"


async def test_a_stranger_has_so_many_messages_and_is_closed_then():
    """Refused ones count too."""
    limits = LimitsConfig(pre_auth_messages=5)
    config = GatewayConfig(auth=AuthConfig(token=TOKEN), limits=limits)
    async with GatewayServer(config) as gateway:
        peer = PeerClient(gateway)
        for _ in range(5):
            await peer.ask("chat")

        peer.send("ping")

        code, reason = await peer.gone()
        assert (code, reason[:12]) == (1008, "reconnect=no")


async def test_frames_behind_an_unfinished_auth_wait_and_are_not_judged_before_it():
    """A pong may overtake."""
    slow = Slow()
    async with gateway_with(slow) as gateway:
        peer = PeerClient(gateway)

        signed_in = peer.send("auth", {"token": token_of("ada")})
        created = peer.send("session_create", {"sessionId": "lobby"})
        chat = peer.send("chat", {"message": "hi"}, "lobby")
        pong = await peer.ask("ping")
        slow.gate.set()
        answers = [await peer.next() for _ in range(3)]

        assert pong.type == "pong"
        assert [a.reply_to for a in answers] == [signed_in, created, chat]
        assert [a.type for a in answers] == ["auth_success", "session_info", "ack"]


async def test_frames_behind_a_failed_auth_are_refused():
    """They were pipelined in hope."""
    slow = Slow()
    async with gateway_with(slow) as gateway:
        peer = PeerClient(gateway)

        peer.send("auth", {"token": "wrong"})
        health = peer.send("health")
        slow.gate.set()

        assert error_of(await peer.next(reply_to=health)) == "AUTH_REQUIRED"


# The deadline, and the end of a credential


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_who_is_not_signed_in_within_ten_seconds_is_closed_with_4001():
    """Greeting and pinging do not help; who has signed in stays."""
    clock = Clock()
    config = GatewayConfig(auth=AuthConfig(token=TOKEN))
    async with GatewayServer(config, clock=clock) as gateway:
        stranger, owner = PeerClient(gateway), PeerClient(gateway)
        await auth(owner, TOKEN)

        clock.now += 9.9
        await stranger.ask("connect", {"deviceId": "d"})
        await gateway.tick()
        early = stranger.transport.closed
        clock.now += 0.2
        await gateway.tick()

        assert early is None
        code, reason = await stranger.gone()
        assert (code, reason[:12]) == (4001, "reconnect=no")
        assert owner.transport.closed is None


def expiring(seconds: float) -> Identity:
    return person("ada", expires_at=round((time.time() + seconds) * 1000))


async def test_a_credential_that_is_about_to_end_is_announced_once(gateway):
    """Sixty seconds before; a fresh one is announced anew."""
    peer = PeerClient(gateway, expiring(50))
    later = PeerClient(gateway, expiring(70))

    for _ in range(3):
        await gateway.tick()
    messages = [m for m in peer.received() if m.type == "auth_expiring"]

    assert [m.data()["expiresAt"] for m in messages] == [peer.client.expires_at]
    assert [m.type for m in later.received()] == ["session_info"]


async def test_a_credential_that_has_ended_closes_the_connection(gateway):
    """With 4003."""
    peer = PeerClient(gateway, expiring(-1))

    await gateway.tick()

    code, reason = await peer.gone()
    assert (code, reason[:12]) == (4003, "reconnect=no")


async def test_an_expired_credential_signs_nobody_in():
    """It is as good as a wrong one."""

    class Old(GatewayServer):
        def validate_token(self, token):
            return expiring(-1)

    async with Old(GatewayConfig()) as gateway:
        assert error_of(await auth(PeerClient(gateway), "x")) == "AUTH_FAILED"


# Roles and scopes


async def test_the_role_is_one_of_those_granted(guarded):
    """Absent, it is the first granted; one not granted is forbidden, and grants nothing."""
    plain, asking = PeerClient(guarded), PeerClient(guarded)
    await asking.ask("connect", {"deviceId": "d", "role": "control"})

    granted = await auth(plain, token_of("ada", "node"))
    refused = await auth(asking, token_of("ada", "node"))

    assert granted.data()["role"] == "node"
    assert error_of(refused) == "FORBIDDEN"
    assert error_of(await asking.ask("health")) == "AUTH_REQUIRED"


@pytest.mark.parametrize("role", ["control", "webchat", "node", "observer"])
async def test_a_connection_may_choose_a_lesser_role(role):
    """And has no more rights than that."""
    async with gateway_with() as gateway:
        peer = PeerClient(gateway)
        await peer.ask("connect", {"deviceId": "d", "role": role})

        answer = await auth(peer, TOKEN)
        broadcast = await peer.ask("broadcast", {"message": 1})

        assert answer.data()["role"] == role
        assert (broadcast.type == "ack") is (role == "control")


@given(
    granted=st.sets(st.sampled_from(["control", "webchat", "node", "observer"]), min_size=1),
    asked=st.sampled_from(["control", "webchat", "node", "observer", None]),
    first=st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_what_is_granted_is_never_more_than_the_record(granted, asked, first):
    """Whatever a client asks for, and in whichever order."""
    identity = Identity(user_id="ada", roles=frozenset(granted), scopes=frozenset({"approve"}))

    class Fixed(GatewayServer):
        def validate_token(self, token):
            return identity

    async with Fixed(GatewayConfig()) as gateway:
        peer = PeerClient(gateway)
        hello = {"deviceId": "d", "role": asked, "scopes": ["admin"]}
        if first:
            await peer.ask("connect", hello)
            answer = await auth(peer, "t", scopes=["admin"], role="control")
        else:
            await auth(peer, "t", scopes=["admin"], role="control")
            answer = await peer.ask("connect", hello)

        if asked is not None and asked not in granted:
            assert error_of(answer) == "FORBIDDEN"
        else:
            assert asked in (None, peer.client.role)
        assert (
            peer.client.role is None
            or not peer.client.authenticated
            or (peer.client.role in granted)
        )
        assert peer.client.scopes <= {"approve"}
        assert not peer.client.has_scope("admin")


async def test_the_user_is_that_of_the_credential_whatever_the_frame_says(guarded):
    """A name that a client gives itself is metadata."""
    peer = PeerClient(guarded)

    answer = await auth(
        peer, token_of("eve"), userId="ada", clientId="ada's laptop", clientType="web"
    )

    assert (answer.data()["userId"], answer.data()["clientId"]) == ("eve", peer.client.id)
    assert peer.client.metadata == {"clientId": "ada's laptop"}
    assert peer.client.client_type == "web"


# Twice


async def test_a_second_auth_of_the_same_user_refreshes():
    """A new expiry, and nothing more."""
    ends = iter([now_plus(100), now_plus(200)])

    class Dated(GatewayServer):
        def validate_token(self, token):
            return person("ada", expires_at=next(ends))

    async with Dated(GatewayConfig()) as gateway:
        peer = PeerClient(gateway)
        first, second = await auth(peer, "x"), await auth(peer, "y")

        assert second.type == "auth_success"
        assert second.data()["expiresAt"] == peer.client.expires_at > first.data()["expiresAt"]


def now_plus(seconds: float) -> int:
    return round((time.time() + seconds) * 1000)


async def test_a_second_auth_of_another_user_is_refused(guarded):
    """`ALREADY_AUTHENTICATED`, and everything stays as it was."""
    peer = PeerClient(guarded)
    await peer.ask("connect", {"deviceId": "phone"})
    await auth(peer, token_of("ada"), clientId="mine")

    refusal = await auth(peer, token_of("eve"), clientId="hers")

    assert error_of(refusal) == "ALREADY_AUTHENTICATED"
    state = peer.client
    assert (state.user_id, state.device_id, state.metadata) == (
        "ada",
        "phone",
        {"clientId": "mine"},
    )


async def test_a_failed_second_auth_leaves_the_connection_as_it_was(guarded):
    """Signed in, with the same rights."""
    peer = PeerClient(guarded)
    await auth(peer, token_of("ada"))

    assert error_of(await auth(peer, "wrong")) == "AUTH_FAILED"
    assert (await peer.ask("health")).type == "health"


async def test_a_second_auth_gives_no_rights_that_the_first_did_not(guarded):
    """Nor does a weaker credential prolong the rights of a stronger one."""
    weak, strong = PeerClient(guarded), PeerClient(guarded)
    await auth(weak, token_of("ada", "webchat"))
    await auth(strong, token_of("ada", "webchat", "session:admin", "approve"))

    more = await auth(weak, token_of("ada", "webchat", "session:admin"))
    less = await auth(strong, token_of("ada", "webchat", "approve"))
    other = await auth(strong, token_of("ada", "observer"))

    assert (more.data()["scopes"], weak.client.scopes) == ([], frozenset())
    assert (less.data()["scopes"], strong.client.scopes) == (["approve"], {"approve"})
    assert error_of(other) == "FORBIDDEN"


async def test_auth_keeps_what_connect_told(guarded):
    """It merges, and never wipes."""
    peer = PeerClient(guarded)
    await peer.ask("connect", {"deviceId": "phone", "deviceName": "Ada's phone"})

    await auth(peer, token_of("ada"))

    assert (peer.client.device_id, peer.client.device_name) == ("phone", "Ada's phone")


# Connect


async def test_hello_ok_tells_everything_that_a_client_needs(guarded):
    """But who is there only to those who have signed in."""
    stranger = PeerClient(guarded)

    hello = (await stranger.ask("connect", {"deviceId": "d", "protocolVersion": 1})).data()

    assert (hello["paired"], hello["presence"], hello["authRequired"]) == (False, [], True)
    assert hello["clientId"] == stranger.client.id
    assert (hello["protocolVersion"], hello["heartbeatIntervalMs"]) == (1, 25_000)
    assert hello["limits"]["maxMessageSize"] == 1024 * 1024
    assert hello["limits"]["maxFrameFromGateway"] == 2 * 1024 * 1024
    assert hello["health"]["status"] == "ok"
    assert hello["uptime"] >= 0
    assert hello["serverVersion"]
    assert hello["challengeNonce"]


async def test_presence_is_told_by_a_connect_after_sign_in(guarded):
    """With the same device and role as before."""
    peer = PeerClient(guarded)
    await peer.ask("connect", {"deviceId": "phone", "role": "webchat"})
    await auth(peer, token_of("ada"))

    hello = (await peer.ask("connect", {"deviceId": "phone", "role": "webchat"})).data()

    assert hello["authRequired"] is False
    assert [(p["deviceId"], p["role"]) for p in hello["presence"]] == [("phone", "webchat")]
    assert hello["presence"][0]["connectedAt"] == peer.client.connected_at


async def test_another_protocol_version_is_told_what_is_supported(guarded):
    """And may try again."""
    peer = PeerClient(guarded)

    refusal = await peer.ask("connect", {"deviceId": "d", "protocolVersion": 2})

    assert (error_of(refusal), details_of(refusal)) == ("UNSUPPORTED_PROTOCOL", {"supported": [1]})
    assert (await peer.ask("connect", {"deviceId": "d"})).type == "hello_ok"


async def test_a_second_connect_with_another_device_or_role_is_refused(guarded):
    """`ALREADY_AUTHENTICATED`, before and after sign-in."""
    peer = PeerClient(guarded)
    await peer.ask("connect", {"deviceId": "phone", "role": "webchat"})

    before = await peer.ask("connect", {"deviceId": "laptop"})
    await auth(peer, token_of("ada"))
    after = [
        await peer.ask("connect", {"deviceId": "laptop"}),
        await peer.ask("connect", {"deviceId": "phone", "role": "observer"}),
    ]

    assert {error_of(a) for a in (before, *after)} == {"ALREADY_AUTHENTICATED"}
    assert (peer.client.device_id, peer.client.role) == ("phone", "webchat")


async def test_the_first_connect_after_sign_in_may_still_pick_the_role():
    """Once."""
    async with gateway_with() as gateway:
        peer = PeerClient(gateway)
        await auth(peer, TOKEN)

        first = await peer.ask("connect", {"deviceId": "d", "role": "observer"})
        second = await peer.ask("connect", {"deviceId": "d", "role": "control"})

        assert (first.type, peer.client.role) == ("hello_ok", "observer")
        assert error_of(second) == "ALREADY_AUTHENTICATED"
        assert error_of(await peer.ask("chat", {"message": "x"}, "s")) == "FORBIDDEN"


# Guessing


async def test_the_tenth_wrong_credential_locks_the_address_out(guarded):
    """A right one from there is not even compared; from elsewhere it works."""
    for _ in range(10):
        wrong = await auth(PeerClient(guarded, address="10.0.0.1"), "wrong")
    here = await auth(PeerClient(guarded, address="10.0.0.1"), token_of("ada"))
    elsewhere = await auth(PeerClient(guarded, address="10.0.0.2"), token_of("ada"))

    assert error_of(wrong) == "AUTH_FAILED"
    assert error_of(here) == "AUTH_LOCKED"
    assert 290_000 < details_of(here)["retryAfterMs"] <= 300_000
    assert here.data()["retryAfterMs"] == details_of(here)["retryAfterMs"]
    assert elsewhere.type == "auth_success"


async def test_of_five_hundred_parallel_attempts_ten_are_compared():
    """The attempt is counted before anything is awaited."""
    slow = Slow()
    async with gateway_with(slow) as gateway:
        peers = [PeerClient(gateway) for _ in range(500)]

        requests = [peer.send("auth", {"token": "wrong"}) for peer in peers]
        await asyncio.sleep(0)
        slow.gate.set()
        answers = [await p.next(reply_to=r) for p, r in zip(peers, requests, strict=True)]

        assert slow.asked == 10
        codes = [error_of(a) for a in answers]
        assert (codes.count("AUTH_FAILED"), codes.count("AUTH_LOCKED")) == (10, 490)


async def test_many_right_credentials_at_once_lock_nobody_out():
    """Those beyond ten are asked to come back in a second."""
    slow = Slow()
    async with gateway_with(slow) as gateway:
        peers = [PeerClient(gateway) for _ in range(15)]

        requests = [peer.send("auth", {"token": token_of("ada")}) for peer in peers]
        await asyncio.sleep(0)
        slow.gate.set()
        answers = [await p.next(reply_to=r) for p, r in zip(peers, requests, strict=True)]
        again = [await auth(p, token_of("ada")) for p in peers[10:]]

        assert [a.type for a in answers[:10]] == ["auth_success"] * 10
        assert {details_of(a)["retryAfterMs"] for a in answers[10:]} == {1_000}
        assert {a.type for a in again} == {"auth_success"}


# Secrets


def test_secrets_are_compared_in_constant_time():
    """No comparison of the module touches a secret but `hmac.compare_digest`."""
    tree = ast.parse(inspect.getsource(trunkline.auth))
    secrets = {"token", "password", "secret", "digest", "_digest", "given", "code"}

    def touches(node: ast.AST) -> bool:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return bool(names & secrets)

    compared = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        and touches(node)
    ]

    assert compared == []
    assert "hmac.compare_digest" in ast.unparse(tree)


def test_secrets_do_not_show_themselves():
    """Neither a credential nor the configuration."""
    shown = repr(Credential(token="hush", password="hush")) + repr(
        AuthConfig(token="hush", password="hush")
    )

    assert "hush" not in shown
    assert "hush" not in repr(GatewayConfig(auth=AuthConfig(token="hush")))


def test_the_owner_has_no_quota():
    """Nobody else has such a right by default."""
    assert OWNER.own_quota is False
    assert person("ada").own_quota is True
