"""Devices, sign-in codes and the audit log over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from http_peers import API, code_of, head, http
from peers import WebSocketPeer, connect, guarded_config, hang_up
from rawsocket import RawSocket

from trunkline.audit import Audit
from trunkline.authdb import AuthDatabase
from trunkline.config import AuthConfig
from trunkline.run import keep_audit
from trunkline.sdk.keys import DeviceKey
from trunkline.transports.websocket import WebSocketGateway

KEY = DeviceKey(bytes(range(32)))


@pytest.fixture
async def house() -> AsyncIterator[WebSocketGateway]:
    """A gateway with stores and an audit log; its owner's token is ``owners``."""
    database = AuthDatabase()
    audit = Audit(database)
    config = guarded_config(auth=AuthConfig(token="owners"))
    gateway = WebSocketGateway(config, authdb=database)
    keep_audit(gateway, audit)
    async with gateway:
        yield gateway
        await hang_up(gateway)
    audit.close()
    database.close()


async def owner(house: WebSocketGateway, method: str, path: str, **more: Any) -> httpx.Response:
    async with http(house, "owners") as client:
        return await client.request(method, API + path, **more)


async def waiting(house: WebSocketGateway, name: str = "laptop") -> tuple[WebSocketPeer, str]:
    """A device that waits for its approval, and the id of its request."""
    peer = await connect(house)
    nonce = peer.heard[0].data()["challengeNonce"]
    said = {
        "deviceId": name,
        "deviceName": "Ada's laptop",
        "publicKey": KEY.public_key,
        "challengeResponse": KEY.sign(nonce, name, None),
    }
    hello = await peer.ask("connect", said)
    return peer, hello.data()["pairing"]["requestId"]


async def test_a_device_that_waits_is_seen_and_approved(house):
    """It is in and has its token; then it is among the paired ones."""
    device, request = await waiting(house)
    before = (await owner(house, "GET", "/devices")).json()

    approved = await owner(
        house, "POST", f"/devices/{request}/approve", json={"roles": ["webchat", "node"]}
    )
    token = (await device.next("device_approved")).data()["deviceToken"]
    after = (await owner(house, "GET", "/devices")).json()

    (pending,) = before["pending"]
    assert (pending["requestId"], pending["deviceId"]) == (request, "laptop")
    assert (pending["name"], pending["fingerprint"]) == ("Ada's laptop", KEY.fingerprint)
    assert approved.status_code == 200
    assert approved.json()["roles"] == ["node", "webchat"]
    assert (after["pending"], [d["deviceId"] for d in after["devices"]]) == ([], ["laptop"])
    async with http(house, token) as client:
        assert (await client.get(f"{API}/sessions")).status_code == 200


async def test_a_device_is_rejected_rotated_and_removed(house):
    """Its connection ends each time; what is not there is 404."""
    device, request = await waiting(house)
    assert (await owner(house, "POST", f"/devices/{request}/reject")).status_code == 204
    assert (await device.gone())[0] == 4003

    device, request = await waiting(house)
    await owner(house, "POST", f"/devices/{request}/approve", json={})
    rotated = await owner(house, "POST", "/devices/laptop/rotate")
    assert (rotated.status_code, (await device.gone())[0]) == (200, 4003)

    assert (await owner(house, "DELETE", "/devices/laptop")).status_code == 204
    for method, path in (
        ("DELETE", "/devices/laptop"),
        ("POST", "/devices/laptop/rotate"),
        ("POST", f"/devices/{request}/approve"),
        ("POST", f"/devices/{request}/reject"),
    ):
        assert (await owner(house, method, path)).status_code == 404


@pytest.mark.parametrize(
    "given",
    [{"roles": ["king"]}, {"roles": []}, {"scopes": ["all"]}, {"expiresIn": -1}, {"userId": "a b"}],
)
async def test_an_approval_that_makes_no_sense_is_refused(house, given):
    """And the device goes on waiting."""
    _, request = await waiting(house)

    answer = await owner(house, "POST", f"/devices/{request}/approve", json=given)

    assert (answer.status_code, code_of(answer)) == (400, "INVALID_PAYLOAD")
    assert len((await owner(house, "GET", "/devices")).json()["pending"]) == 1


async def test_nobody_gives_a_device_or_a_token_more_than_is_their_own(house):
    """Neither roles and scopes, nor another user's name."""
    rights = {"name": "deputy", "roles": ["control"], "scopes": ["credential:admin"], "userId": "d"}
    deputy = (await owner(house, "POST", "/tokens", json=rights)).json()["token"]
    theirs = {"name": "theirs", "roles": ["control"], "userId": "ada"}
    other = (await owner(house, "POST", "/tokens", json=theirs)).json()["id"]
    _, request = await waiting(house)

    async with http(house, deputy) as client:
        answers = [
            await client.post(f"{API}/devices/{request}/approve", json={"roles": ["webchat"]}),
            await client.post(
                f"{API}/devices/{request}/approve", json={"roles": ["control"], "userId": "ada"}
            ),
            await client.post(f"{API}/tokens", json=theirs),
            await client.post(f"{API}/tokens/{other}/rotate"),
        ]
        own = await client.post(f"{API}/devices/{request}/approve", json={"roles": ["control"]})

    assert [code_of(answer) for answer in answers] == ["FORBIDDEN"] * 4
    assert own.status_code == 200


async def test_a_code_signs_its_maker_in_once_more(house):
    """Once, and only whoever asks from this machine gets one."""
    made = await owner(house, "POST", "/codes")
    peer = await connect(house)
    signed = await peer.ask("auth", {"code": made.json()["code"]})
    again = await (await connect(house)).ask("auth", {"code": made.json()["code"]})

    async with http(house, "owners", **{"X-Forwarded-For": "203.0.113.7"}) as client:
        away = await client.post(f"{API}/codes")

    assert made.status_code == 201
    assert (signed.type, signed.data()["userId"]) == ("auth_success", "owner")
    assert again.type == "error"
    assert (away.status_code, code_of(away)) == (403, "FORBIDDEN")


async def test_what_was_done_over_http_stands_in_the_audit_log(house):
    """With who did it; filtered and page by page, the newest first."""
    await connect(house, "owners")
    client_id = next(iter(house.clients)).id
    made = (await owner(house, "POST", "/tokens", json={"name": "x", "roles": ["node"]})).json()
    await owner(house, "DELETE", f"/clients/{client_id}")
    async with http(house, "wrong") as stranger:
        await stranger.get(f"{API}/stats")

    log = (await owner(house, "GET", "/audit")).json()
    tokens = (await owner(house, "GET", "/audit?action=token.*&user=owner")).json()["entries"]
    first = (await owner(house, "GET", "/audit?limit=1")).json()
    rest = (await owner(house, "GET", f"/audit?before={first['next']}")).json()

    actions = [entry["action"] for entry in log["entries"]]
    assert {"auth.failed", "client.kick", "token.create", "gateway.start"} <= set(actions)
    kick = log["entries"][actions.index("client.kick")]
    assert (kick["actor"], kick["target"], kick["outcome"]) == ("owner", client_id, "ok")
    assert [(t["action"], t["target"]) for t in tokens] == [("token.create", made["id"])]
    assert (first["more"], rest["more"], rest.get("next")) == (True, False, None)
    assert [e["seq"] for e in rest["entries"]] == [e["seq"] for e in log["entries"]][1:]
    assert made["token"] not in str(log)


async def test_a_gateway_without_stores_says_so(ws_gateway):
    """Not by failing."""
    async with http(ws_gateway, "boss/control/credential:admin") as boss:
        for path in ("/tokens", "/devices", "/audit"):
            assert (await boss.get(API + path)).status_code == 404
        assert (await boss.post(f"{API}/codes")).status_code == 404


async def test_a_spoofed_forwarding_header_makes_no_call_local(house):
    """Even one that names this machine."""
    async with await RawSocket.connect(house.port) as peer:
        made = head(
            house.port, f"{API}/codes", "Authorization: Bearer owners", "X-Forwarded-For: 127.0.0.1"
        )
        peer.send(made.replace(b"GET ", b"POST "))
        answer = await peer.answer()

    assert answer.status == 403
