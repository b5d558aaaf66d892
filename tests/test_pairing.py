"""Pairing over real sockets: who proves a key, who waits, and who decides."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from peers import (
    WebSocketPeer,
    connect,
    details_of,
    error_of,
    guarded_config,
    hang_up,
    open_config,
    person,
)
from processes import clean_environ, invoke

from trunkline.auth import OWNER
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.clients import Phase
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.devices import LIFETIME, Approval, own_user
from trunkline.errors import ErrorCode, GatewayError
from trunkline.sdk.keys import DeviceKey
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway

KEY, OTHER = DeviceKey(bytes(range(32))), DeviceKey(bytes(range(1, 33)))
TOKEN = "the-owner's-token"


@asynccontextmanager
async def gateway_with(path=None, **groups):
    """A gateway with devices, on a free port."""
    database = AuthDatabase(path)
    async with WebSocketGateway(guarded_config(**groups), authdb=database) as gateway:
        yield gateway
        await hang_up(gateway)
    database.close()


@pytest.fixture
async def gateway():
    async with gateway_with() as gateway:
        yield gateway


def nonce_of(peer):
    """The challenge that the gateway sent first."""
    heard = peer.heard if isinstance(peer, WebSocketPeer) else peer.received()
    return next(m for m in heard if m.type == "session_info").data()["challengeNonce"]


def proof(nonce, key=KEY, device_id="laptop", role=None, **changed):
    """What a device says in ``connect``."""
    said = {
        "deviceId": device_id,
        "publicKey": key.public_key,
        "challengeResponse": key.sign(nonce, device_id, role),
        **({"role": role} if role else {}),
    }
    return {**said, **changed}


async def greeted(gateway, key=KEY, device_id="laptop", role=None, **more):
    """A connection that has proved a key, and the answer."""
    peer = await connect(gateway, **more)
    return peer, await peer.ask("connect", proof(nonce_of(peer), key, device_id, role))


async def paired(gateway, key=KEY, device_id="laptop", **approval):
    """A connection of a device that has just been approved, and its token."""
    peer, hello = await greeted(gateway, key, device_id)
    gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(**approval), OWNER)
    approved = await peer.next("device_approved")
    return peer, approved.data()["deviceToken"]


def audited(gateway):
    """What the audit log is told from now on."""
    entries = []
    gateway.on("audit", entries.append)
    return entries


# Waiting


async def test_a_device_with_an_unknown_key_waits(gateway):
    """It is told its request; it is not signed in, and may ping."""
    entries = audited(gateway)

    peer, hello = await greeted(gateway)

    said = hello.data()
    (request,) = gateway.pairing.pending()
    assert said["paired"] is False
    assert said["authRequired"] is True
    assert said["pairing"] == {"requestId": request.request_id, "expiresAt": request.expires_at}
    assert error_of(await peer.ask("health")) == "AUTH_REQUIRED"
    assert (await peer.ask("ping")).type == "pong"
    assert [(e.action, e.target) for e in entries] == [("device.ask", "laptop")]


async def test_approval_makes_the_connection_ready_and_hands_over_a_token_once(gateway):
    """With the roles and scopes of the approval."""
    peer, hello = await greeted(gateway, role="node")
    entries = audited(gateway)

    gateway.pairing.approve(
        hello.data()["pairing"]["requestId"],
        Approval(roles=frozenset({"node"}), scopes=frozenset({"approve"}), user_id="ada"),
        OWNER,
    )

    approved = await peer.next("device_approved")
    assert approved.data()["scopes"] == ["approve"]
    assert approved.data()["deviceToken"].startswith("tl_d_")
    assert (await peer.ask("health")).type == "health"
    (client,) = gateway.clients.ready()
    assert (client.user_id, client.role, client.scopes) == ("ada", "node", {"approve"})
    again = await peer.ask("connect", {"deviceId": "laptop"})
    assert again.data()["paired"] is True
    assert "device_approved" not in [m.type for m in await peer.left()]
    assert "device.approve" in [entry.action for entry in entries]


async def test_the_token_alone_signs_the_device_in_too(gateway):
    """With the same rights; the gateway knows the device by it."""
    _, token = await paired(gateway, user_id="ada")

    peer = await connect(gateway, token)
    hello = await peer.ask("connect", {"deviceId": "laptop"})

    assert hello.data()["authRequired"] is False
    assert hello.data()["paired"] is True
    assert {c.user_id for c in gateway.clients.ready()} == {"ada"}


@pytest.mark.parametrize("first", ["token", "connect"])
async def test_a_devices_token_makes_no_other_device(gateway, first):
    """Who has stolen it cannot call itself anything else, whichever frame comes first."""
    _, token = await paired(gateway)
    peer = await connect(gateway, token if first == "token" else None)

    answer = await peer.ask("connect", {"deviceId": "desktop"})
    if first == "connect":
        answer = await peer.ask("auth", {"token": token})

    assert error_of(answer) == "FORBIDDEN"
    assert [client.device_id for client in gateway.clients.ready()].count("desktop") == 0


async def test_a_connection_is_not_prolonged_by_another_devices_token(gateway):
    """Both devices are one user's; each has a token of its own."""
    _, laptops = await paired(gateway, user_id="ada")
    by_key, _ = await paired(gateway, OTHER, "desktop", user_id="ada")

    assert error_of(await by_key.ask("auth", {"token": laptops})) == "FORBIDDEN"


async def test_a_paired_key_is_let_in_at_once_and_gets_no_second_token(gateway):
    """As soon as it is proved."""
    await paired(gateway)

    peer, hello = await greeted(gateway)

    assert (hello.data()["paired"], hello.data()["authRequired"]) == (True, False)
    assert hello.data()["presence"]
    assert [m.type for m in await peer.left()] == []


async def test_a_device_that_was_approved_while_it_was_away_gets_its_token_when_it_comes_back(
    gateway,
):
    """Its request outlives the connection."""
    peer, hello = await greeted(gateway)
    await peer.close()
    gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(), OWNER)

    peer, hello = await greeted(gateway)

    assert hello.data()["paired"] is True
    assert (await peer.next("device_approved")).data()["deviceToken"]


async def test_rejection_closes_with_4003(gateway):
    """The device may ask again, with another request."""
    peer, hello = await greeted(gateway)
    first = hello.data()["pairing"]["requestId"]

    gateway.pairing.reject(first, OWNER)

    code, reason = await peer.gone()
    assert code == 4003
    assert reason.startswith("reconnect=no")
    _, hello = await greeted(gateway)
    assert hello.data()["pairing"]["requestId"] != first


async def test_who_waits_may_sign_in_otherwise(gateway):
    """It is not paired by that; the approval then brings the token, and changes nothing else."""
    peer, hello = await greeted(gateway)

    answer = await peer.ask("auth", {"token": TOKEN})
    gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(), OWNER)

    assert answer.data()["userId"] == "owner"
    assert (await peer.next("device_approved")).data()["deviceToken"]
    assert [c.user_id for c in gateway.clients.ready()] == ["owner"]


async def test_a_rejected_device_that_has_signed_in_otherwise_stays(gateway):
    """Its own credential is as good as before."""
    peer, hello = await greeted(gateway, additional_headers={"Authorization": f"Bearer {TOKEN}"})
    assert hello.data()["authRequired"] is False

    gateway.pairing.reject(hello.data()["pairing"]["requestId"], OWNER)

    assert (await peer.ask("health")).type == "health"


async def test_clients_without_a_key_are_as_ever(gateway):
    """They greet, sign in, and are not paired."""
    peer = await connect(gateway)

    hello = await peer.ask("connect", {"deviceId": "laptop"})
    answer = await peer.ask("auth", {"token": TOKEN})

    assert hello.data()["paired"] is False
    assert "pairing" not in hello.data()
    assert answer.data()["userId"] == "owner"
    assert gateway.pairing.pending() == []


async def test_without_sign_in_keys_are_not_looked_at():
    """Everybody is let in already."""
    async with WebSocketGateway(open_config(), authdb=AuthDatabase()) as gateway:
        _, hello = await greeted(gateway)
        await hang_up(gateway)

    assert hello.data()["authRequired"] is False
    assert "pairing" not in hello.data()


# Proof


def stripped(message):
    """A message without what is another one each time."""
    return message.type, message.data()


async def test_a_wrong_signature_tells_nothing(gateway):
    """The same answer for a device that is paired and one that never was."""
    await paired(gateway)
    answers = []
    for device_id in ("laptop", "nobody"):
        peer = await connect(gateway)
        wrong = proof(nonce_of(peer), OTHER, device_id, publicKey=KEY.public_key)
        answers.append(stripped(await peer.ask("connect", wrong)))

    assert answers[0] == answers[1]
    assert answers[0][1]["code"] == "AUTH_FAILED"


async def test_a_known_device_id_alone_is_worth_nothing(gateway):
    """No key, no detail."""
    await paired(gateway)
    peer = await connect(gateway)

    hello = await peer.ask("connect", {"deviceId": "laptop"})

    assert hello.data()["paired"] is False
    assert hello.data()["authRequired"] is True
    assert "pairing" not in hello.data()


@pytest.mark.parametrize(
    "changed",
    [
        {"publicKey": None},
        {"challengeResponse": None},
        {"challengeResponse": "???"},
        {"publicKey": ""},
        {"deviceId": "other"},
        {"role": "control"},
    ],
    ids=str,
)
async def test_what_was_not_signed_so_is_refused(gateway, changed):
    """Half a proof too."""
    peer = await connect(gateway)
    said = {**proof(nonce_of(peer)), **changed}

    answer = await peer.ask("connect", {k: v for k, v in said.items() if v is not None})

    assert error_of(answer) == "AUTH_FAILED"
    assert gateway.pairing.pending() == []


async def test_a_challenge_is_judged_once(gateway):
    """The same answer again is wrong, and `hello_ok` names the next challenge."""
    peer, hello = await greeted(gateway)
    nonce = nonce_of(peer)

    again = await peer.ask("connect", proof(nonce))
    fresh = await peer.ask("connect", proof(hello.data()["challengeNonce"]))

    assert error_of(again) == "AUTH_FAILED"
    # The refused attempt spent that challenge as well.
    assert error_of(fresh) == "AUTH_FAILED"
    hello = await peer.ask("connect", {"deviceId": "laptop"})
    answer = await peer.ask("connect", proof(hello.data()["challengeNonce"]))
    assert answer.type == "hello_ok"


async def test_the_answer_to_another_connections_challenge_is_wrong(gateway):
    """Nobody can pass it on."""
    first, second = await connect(gateway), await connect(gateway)

    answer = await second.ask("connect", proof(nonce_of(first)))

    assert error_of(answer) == "AUTH_FAILED"


async def test_wrong_signatures_lock_the_address_out(gateway):
    """Ten of them; the right one is not looked at any more, nor a token."""
    for _ in range(10):
        peer = await connect(gateway)
        await peer.ask("connect", proof(nonce_of(peer), publicKey=OTHER.public_key))

    _, answer = await greeted(gateway)

    assert error_of(answer) == "AUTH_LOCKED"
    assert details_of(answer)["retryAfterMs"] > 0
    assert gateway.pairing.pending() == []


async def test_right_signatures_are_no_failures(gateway):
    """However many, paired or not."""
    for _ in range(15):
        _, hello = await greeted(gateway)
        assert hello.type == "hello_ok"


# Roles


async def test_a_role_that_is_not_granted_is_refused(gateway):
    """Not silently another one."""
    await paired(gateway)

    peer, answer = await greeted(gateway, role="control")

    assert error_of(answer) == "FORBIDDEN"
    assert error_of(await peer.ask("health")) == "AUTH_REQUIRED"


async def test_the_role_that_is_asked_for_last_is_the_one_that_must_be_granted(gateway):
    """The record says what the waiting connection wants."""
    await greeted(gateway, role="webchat")
    _, hello = await greeted(gateway, role="node")

    with pytest.raises(ValueError, match="role node"):
        gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(), OWNER)


async def test_what_an_approver_lacks_is_not_granted(gateway):
    """The device goes on waiting."""
    peer, hello = await greeted(gateway)
    by = person("ada", "control", "credential:admin")

    with pytest.raises(GatewayError) as caught:
        gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(), by)

    assert caught.value.code == ErrorCode.FORBIDDEN
    assert error_of(await peer.ask("health")) == "AUTH_REQUIRED"


# Another key


async def test_another_key_under_the_same_name_waits_and_the_first_goes_on(gateway):
    """Until somebody approves it; then the first is out, with its token."""
    first, token = await paired(gateway, roles=frozenset({"webchat", "node"}))

    second, hello = await greeted(gateway, OTHER)
    assert hello.data()["paired"] is False
    assert (await first.ask("health")).type == "health"
    gateway.pairing.approve(hello.data()["pairing"]["requestId"], Approval(), OWNER)

    assert (await first.gone())[0] == 4003
    await second.next("device_approved")
    (client,) = gateway.clients.ready()
    assert client.roles == {"webchat"}
    assert client.user_id == own_user("laptop", OTHER._public)
    _, hello = await greeted(gateway)
    assert hello.data()["authRequired"] is True
    peer = await connect(gateway)
    assert error_of(await peer.ask("auth", {"token": token})) == "AUTH_FAILED"


# Budgets and deadlines


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


async def test_who_waits_is_closed_at_the_end_of_the_request_and_not_before(monkeypatch):
    """The ten seconds of others do not count."""
    clock = Clock()
    config = GatewayConfig(auth=AuthConfig(token=TOKEN))
    async with GatewayServer(config, clock=clock, authdb=AuthDatabase()) as gateway:
        peer = PeerClient(gateway)
        hello = await peer.ask("connect", proof(nonce_of(peer)))
        ends = hello.data()["pairing"]["expiresAt"]

        clock.now += 599
        await gateway.tick()
        assert peer.transport.closed is None

        for module in ("devices", "pairing"):
            monkeypatch.setattr(f"trunkline.{module}.now_ms", lambda: ends)
        await gateway.tick()
        assert (await peer.gone())[0] == 4001
        assert gateway.pairing.pending() == []


async def test_a_request_is_not_prolonged_by_asking_again(gateway, monkeypatch):
    """Ten minutes in all."""
    _, first = await greeted(gateway)
    _, second = await greeted(gateway)

    assert second.data()["pairing"] == first.data()["pairing"]


async def test_the_newest_connection_of_a_waiting_device_waits(gateway):
    """The one before is closed with 4009."""
    first, _ = await greeted(gateway)

    second, _ = await greeted(gateway)

    assert (await first.gone())[0] == 4009
    assert (await second.ask("ping")).type == "pong"


async def test_waiting_devices_take_no_place_of_those_that_sign_in():
    """They have a budget of their own."""
    limits = LimitsConfig(pre_auth_connections=1, pre_auth_per_address=1)
    async with gateway_with(limits=limits) as gateway:
        for number in range(3):
            _, hello = await greeted(gateway, device_id=f"d{number}")
            assert hello.data()["pairing"]

        peer = await connect(gateway)
        await peer.ask("auth", {"token": TOKEN})
        await hang_up(gateway)
        assert gateway.get_websocket_stats()["waiting_for_sign_in"] == 0


async def test_the_ninth_waiting_device_of_an_address_is_refused(gateway):
    """Told when to come back; those that are paired are let in all the same."""
    await paired(gateway)
    for number in range(8):
        await greeted(gateway, device_id=f"d{number}")

    _, refused = await greeted(gateway, device_id="d8")
    _, hello = await greeted(gateway)

    assert error_of(refused) == "OVERLOADED"
    assert refused.data()["retryAfterMs"] > 0
    assert hello.data()["paired"] is True


# On this machine


async def test_a_local_device_may_be_let_in_by_its_key_alone():
    """If the configuration says so; without control, scopes, token or record."""
    auth = AuthConfig(token=TOKEN, skip_local_pairing=True)
    async with gateway_with(auth=auth) as gateway:
        peer, hello = await greeted(gateway)

        assert (hello.data()["authRequired"], hello.data()["paired"]) == (False, False)
        assert await peer.left() == []
        (client,) = gateway.clients.ready()
        assert (client.roles & {"control"}, client.scopes) == (set(), set())
        assert gateway.pairing.list() == []
        _, refused = await greeted(gateway, role="control")
        assert error_of(refused) == "FORBIDDEN"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_whoever_came_through_a_proxy_is_not_local(header):
    """It waits for approval."""
    auth = AuthConfig(token=TOKEN, skip_local_pairing=True)
    async with gateway_with(auth=auth) as gateway:
        _, hello = await greeted(gateway, additional_headers={header: "192.0.2.1"})

        assert hello.data()["authRequired"] is True
        assert hello.data()["pairing"]


async def test_a_local_device_still_has_to_prove_its_key():
    """Being local is no proof."""
    auth = AuthConfig(token=TOKEN, skip_local_pairing=True)
    async with gateway_with(auth=auth) as gateway:
        peer = await connect(gateway)
        answer = await peer.ask("connect", proof(nonce_of(peer), publicKey=OTHER.public_key))

        assert error_of(answer) == "AUTH_FAILED"


# Ending


async def test_revoking_closes_the_connections_of_key_and_token(gateway):
    """With 4003; the key waits for approval again, and the token is wrong."""
    by_key, token = await paired(gateway)
    by_token = await connect(gateway, token)
    entries = audited(gateway)

    gateway.pairing.revoke("laptop", OWNER)

    assert (await by_key.gone())[0] == (await by_token.gone())[0] == 4003
    _, hello = await greeted(gateway)
    assert hello.data()["pairing"]
    assert ("device.revoke", "owner") in [(e.action, e.actor) for e in entries]


async def test_rotating_closes_the_connections_and_brings_another_token(gateway):
    """To whom proves the key."""
    by_key, old = await paired(gateway)
    by_token = await connect(gateway, old)

    gateway.pairing.rotate("laptop", OWNER)

    assert (await by_key.gone())[0] == (await by_token.gone())[0] == 4003
    peer, hello = await greeted(gateway)
    new = (await peer.next("device_approved")).data()["deviceToken"]
    assert hello.data()["paired"] is True
    assert new != old
    assert error_of(await (await connect(gateway)).ask("auth", {"token": old})) == "AUTH_FAILED"


async def test_a_running_gateway_does_what_the_command_line_decides(tmp_path):
    """Approve, rotate, revoke, reject: in the same file, without a restart."""
    environ, folder = clean_environ(tmp_path), tmp_path / "data"

    def devices(*words):
        done = invoke(environ, "devices", *words, "--data-dir", str(folder))
        assert done.exit_code == 0, done.stderr
        return done.stdout

    async with gateway_with(folder / AUTH_FILE) as gateway:
        peer, hello = await greeted(gateway)
        assert KEY.fingerprint in devices("list")

        devices("approve", hello.data()["pairing"]["requestId"], "--user", "ada")
        await peer.next("device_approved")
        assert gateway.clients.ready()[0].user_id == "ada"

        devices("rotate", "laptop")
        assert (await peer.gone())[0] == 4003

        peer, _ = await greeted(gateway)
        await peer.next("device_approved")
        devices("revoke", "laptop")
        assert (await peer.gone())[0] == 4003

        peer, _ = await greeted(gateway)
        devices("reject", "laptop")
        assert (await peer.gone())[0] == 4003


async def test_pairings_and_requests_survive_a_restart(tmp_path):
    """Nothing is asked twice."""
    path = tmp_path / AUTH_FILE
    async with gateway_with(path) as gateway:
        await paired(gateway)
        _, hello = await greeted(gateway, OTHER, "phone")

    async with gateway_with(path) as gateway:
        _, known = await greeted(gateway)
        _, waiting = await greeted(gateway, OTHER, "phone")

    assert known.data()["paired"] is True
    assert waiting.data()["pairing"] == hello.data()["pairing"]


# In any order


class Pairings(RuleBasedStateMachine):
    """Devices and an approver do whatever they like: nobody is READY without an approved key."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.patch = pytest.MonkeyPatch()
        self.now = 1_000_000
        for module in ("devices", "pairing", "auth"):
            self.patch.setattr(f"trunkline.{module}.now_ms", lambda: self.now)
        self.peers = []
        self.runner.run(self.begin())
        self.approved = {}
        """By device: the key that may come in, and its roles."""

    async def begin(self):
        config = GatewayConfig(auth=AuthConfig(token=TOKEN, max_failures=10_000))
        self.gateway = GatewayServer(config, authdb=AuthDatabase(), clock=lambda: 0.0)
        await self.gateway.start()

    def teardown(self):
        self.runner.run(self.gateway.stop())
        self.runner.close()
        self.gateway.authdb.close()
        self.patch.undo()

    def run(self, action, *args):
        async def act():
            result = action(*args)
            for _ in range(3):
                await asyncio.sleep(0)
            return result

        return self.runner.run(act())

    @rule(
        device_id=st.sampled_from("ab"),
        key=st.sampled_from([KEY, OTHER]),
        signer=st.sampled_from([KEY, OTHER]),
        role=st.sampled_from([None, "webchat", "node", "control"]),
    )
    def come(self, device_id, key, signer, role):
        async def come():
            peer = PeerClient(self.gateway)
            said = proof(nonce_of(peer), signer, device_id, role, publicKey=key.public_key)
            return peer, await peer.ask("connect", said)

        peer, answer = self.runner.run(come())
        self.peers.append((peer, device_id, key, signer is key))
        known, roles = self.approved.get(device_id, (None, frozenset()))
        if signer is not key:
            assert error_of(answer) == "AUTH_FAILED"
        elif known is key and role is not None and role not in roles:
            assert error_of(answer) == "FORBIDDEN"
        else:
            assert answer.data()["paired"] is (known is key)
            assert ("pairing" in answer.data()) is (known is not key)

    @rule(which=st.integers(0, 3), roles=st.sampled_from([{"webchat"}, {"webchat", "node"}]))
    def approve(self, which, roles):
        pending = self.gateway.pairing.pending()
        if which >= len(pending):
            return
        request = pending[which]
        approval = Approval(roles=frozenset(roles))
        if request.role is not None and request.role not in roles:
            with pytest.raises(ValueError, match="asks for the role"):
                self.run(self.gateway.pairing.approve, request.request_id, approval, OWNER)
            return
        self.run(self.gateway.pairing.approve, request.request_id, approval, OWNER)
        key = KEY if request.public_key == KEY._public else OTHER
        self.approved[request.device_id] = (key, frozenset(roles))

    @rule(which=st.integers(0, 3))
    def reject(self, which):
        pending = self.gateway.pairing.pending()
        if which < len(pending):
            self.run(self.gateway.pairing.reject, pending[which].request_id, OWNER)

    @rule(device_id=st.sampled_from("ab"), how=st.sampled_from(["revoke", "rotate"]))
    def end(self, device_id, how):
        if device_id in self.approved:
            self.run(getattr(self.gateway.pairing, how), device_id, OWNER)
            for peer, name, *_ in self.peers:
                if name == device_id:
                    assert peer.client.phase is not Phase.READY
        if how == "revoke":
            self.approved.pop(device_id, None)

    @rule(which=st.integers(0, 9))
    def leave(self, which):
        if which < len(self.peers):
            self.run(self.peers[which][0].disconnect)

    @rule(minutes=st.integers(1, 11))
    def wait(self, minutes):
        self.now += minutes * 60_000
        self.runner.run(self.gateway.tick())
        self.run(lambda: None)
        for peer, *_ in self.peers:
            waiting = self.gateway.pairing.waits(peer.client)
            assert not (minutes * 60_000 >= LIFETIME and waiting)

    @invariant()
    def nobody_is_ready_without_an_approved_key(self):
        for peer, device_id, key, proved in self.peers:
            if peer.client.phase is Phase.READY:
                known, roles = self.approved[device_id]
                assert proved
                assert known is key
                assert peer.client.roles == roles
                assert peer.client.role in roles

    @invariant()
    def who_proved_a_key_that_is_approved_does_not_wait(self):
        for peer, device_id, key, _ in self.peers:
            if self.gateway.pairing.waits(peer.client):
                assert self.approved.get(device_id, (None,))[0] is not key


Pairings.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestPairings = Pairings.TestCase
