"""Device keys in the SDK: the file, and signing in with it at a real gateway."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from peers import guarded_config, open_config

import trunkline.sdk as trunkline
from trunkline.auth import OWNER
from trunkline.authdb import AuthDatabase
from trunkline.challenges import challenge_text, from_base64url
from trunkline.devices import Approval
from trunkline.sdk import DeviceKey
from trunkline.sdk.errors import InsecureConnection, SignInFailed, TrunklineError
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "the-owner's-token"


@pytest.fixture
async def gateway():
    database = AuthDatabase()
    async with WebSocketGateway(guarded_config(), authdb=database) as gateway:
        yield gateway
    database.close()


@pytest.fixture
def key(tmp_path):
    return DeviceKey.load_or_create(tmp_path / "device.pem")


async def request_of(gateway):
    """Wait until a device waits."""
    asked = asyncio.Event()
    gateway.pairing.waits_now.append(lambda client: asked.set())
    if not gateway.pairing.pending():
        await asked.wait()
    (request,) = gateway.pairing.pending()
    return request


# The file


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    """The second call reads what the first has made."""
    path = tmp_path / "device.pem"

    first, second = DeviceKey.load_or_create(path), DeviceKey.load_or_create(path)

    assert first.public_key == second.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["device.pem"]


def test_of_many_who_make_a_key_at_once_all_get_the_same(tmp_path):
    """Nobody overwrites what somebody else uses already."""
    path = tmp_path / "device.pem"

    with ThreadPoolExecutor(8) as pool:
        keys = [*pool.map(lambda _: DeviceKey.load_or_create(path), range(16))]

    assert len({key.public_key for key in keys}) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path, key):
    """With the command that mends it."""
    path = tmp_path / "device.pem"
    path.chmod(0o640)

    with pytest.raises(TrunklineError, match="chmod 600"):
        DeviceKey.load(path)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(tmp_path, content):
    """And not replaced."""
    path = tmp_path / "device.pem"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(TrunklineError, match="no Ed25519 key"):
        DeviceKey.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path):
    """An EC key, say."""
    path = tmp_path / "device.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "X25519", "-out", path], check=True, timeout=30
    )
    path.chmod(0o600)

    with pytest.raises(TrunklineError, match="another kind"):
        DeviceKey.load(path)


def test_a_missing_file_is_a_clear_error(tmp_path):
    """It names what would make one."""
    with pytest.raises(TrunklineError, match="load_or_create"):
        trunkline.GatewayClient("ws://127.0.0.1", device_key=tmp_path / "none.pem")
    with pytest.raises(TrunklineError, match="cannot be made"):
        DeviceKey.load_or_create(tmp_path / "no" / "folder.pem")


def test_a_key_does_not_show_itself(key, tmp_path):
    """Neither alone nor among the options."""
    private = (tmp_path / "device.pem").read_text().split("\n")[1]
    client = trunkline.GatewayClient("ws://127.0.0.1", device_key=key)

    assert private not in repr(key)
    assert "device_key" not in repr(client.wire.connection._sign_in)


def test_a_signature_is_over_the_challenge(key):
    """As the reference says."""
    public = Ed25519PublicKey.from_public_bytes(from_base64url(key.public_key, 32))

    signed = from_base64url(key.sign("nonce", "laptop", "node"), 64)

    public.verify(signed, challenge_text("nonce", "laptop", "node"))


def test_a_key_names_its_device_unless_somebody_else_does(key):
    """The same on every start, without a state file."""
    named = trunkline.GatewayClient("ws://127.0.0.1", device_key=key, device_id="laptop")
    unnamed = trunkline.GatewayClient("ws://127.0.0.1", device_key=key)

    assert named.device_id == "laptop"
    assert unnamed.device_id == key.device_id


def test_a_key_is_not_used_unencrypted_on_another_machine(key):
    """The approval would bring a token."""
    with pytest.raises(InsecureConnection):
        trunkline.GatewayClient("ws://gateway.example", device_key=key)


# At a gateway


async def test_a_client_waits_for_its_approval_and_then_works(gateway, key, caplog):
    """Until then `open` does not return; the log says what to approve."""
    client = trunkline.GatewayClient(gateway.address, device_key=key, role="webchat")
    opening = asyncio.create_task(client.open())
    request = await request_of(gateway)
    assert not opening.done()

    gateway.pairing.approve(request.request_id, Approval(user_id="ada"), OWNER)
    await opening

    assert client.hello.paired
    assert client.hello.presence
    session = await client.create("lobby")
    assert (await session.send("hi")).seq
    assert {c.user_id for c in gateway.clients.ready()} == {"ada"}
    assert key.fingerprint in caplog.text
    assert request.request_id in caplog.text
    await client.close()


async def test_a_paired_client_comes_in_by_its_file_alone(gateway, tmp_path, key):
    """At once, and again after each loss."""
    first = asyncio.create_task(trunkline.GatewayClient(gateway.address, device_key=key).open())
    request = await request_of(gateway)
    gateway.pairing.approve(request.request_id, Approval(), OWNER)
    await first

    async with trunkline.connect(gateway.address, device_key=tmp_path / "device.pem") as client:
        before, again = client.client_id, asyncio.Event()
        client.on_state(lambda state: state is trunkline.State.CONNECTED and again.set())
        gateway.clients.get(before).transport.close(1011, "reconnect=yes;afterMs=0")
        await again.wait()

        assert client.hello.paired
        assert client.client_id != before
    for client in gateway.clients:
        client.transport.close(1000, "reconnect=no")


async def test_a_rejected_client_gives_up(gateway, key):
    """It does not ask for ever."""
    opening = asyncio.create_task(trunkline.GatewayClient(gateway.address, device_key=key).open())
    request = await request_of(gateway)

    gateway.pairing.reject(request.request_id, OWNER)

    with pytest.raises(SignInFailed, match="4003"):
        await opening


async def test_a_revoked_client_gives_up(gateway, key):
    """Its next requests say why."""
    client = trunkline.GatewayClient(gateway.address, device_key=key)
    opening = asyncio.create_task(client.open())
    request = await request_of(gateway)
    gateway.pairing.approve(request.request_id, Approval(), OWNER)
    await opening

    closed = asyncio.Event()
    client.on_state(lambda state: state is trunkline.State.CLOSED and closed.set())

    gateway.pairing.revoke(key.device_id, OWNER)
    await closed.wait()

    with pytest.raises(SignInFailed, match="4003"):
        await client.ping()
    await client.close()


async def test_a_token_beside_the_key_signs_in_at_once(gateway, key):
    """The device asks to be paired all the same."""
    async with trunkline.connect(gateway.address, token=TOKEN, device_key=key) as client:
        assert client.hello.pairing is not None
        assert not client.hello.paired
        assert await client.sessions() == []


async def test_a_gateway_without_sign_in_needs_no_key(key):
    """It lets everybody in."""
    async with (
        WebSocketGateway(open_config()) as gateway,
        trunkline.connect(gateway.address, device_key=key) as client,
    ):
        assert not client.hello.paired


async def test_a_gateway_that_knows_no_keys_asks_for_a_credential(key):
    """That is said; the client does not wait for nothing."""
    async with WebSocketGateway(guarded_config()) as gateway:
        client = trunkline.GatewayClient(gateway.address, device_key=key)
        with pytest.raises(SignInFailed, match="asks for a credential"):
            await client.open()


async def test_an_agent_signs_in_by_its_key(gateway, key):
    """With the role node."""
    agent = trunkline.Agent("helper")

    @agent.tool
    def double(n: int) -> int:
        return 2 * n

    serving = asyncio.create_task(agent.serve(gateway.address, device_key=key))
    request = await request_of(gateway)
    assert request.role == "node"
    online = asyncio.Event()
    gateway.on("agent:registered", lambda agent: online.set())
    gateway.pairing.approve(request.request_id, Approval(roles=frozenset({"node"})), OWNER)
    await online.wait()

    async with trunkline.connect(gateway.address, token=TOKEN) as client:
        assert await client.request(agent_id="helper", method="double", params={"n": 21}) == 42
    agent.stop()
    await serving
