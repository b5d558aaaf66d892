"""
Operators of one tenant over HTTP: what belongs to another is as good as absent.

`test_tenants` shows it of every message; these are the routes that no message
stands for: connections, open requests, stored tokens, devices, the audit log.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import httpx
import pytest
from http_peers import API, code_of, events, http
from peers import WebSocketPeer, connect, guarded_config, hang_up, register

from trunkline.audit import Audit
from trunkline.authdb import AuthDatabase
from trunkline.clients import Identity
from trunkline.config import AuthConfig
from trunkline.devices import Approval, PairingRequest
from trunkline.transports.websocket import WebSocketGateway

OWNER = "the-owner-of-the-gateway"


OWNER_IDENTITY = Identity(user_id="owner", scopes=frozenset({"admin"}))


class Street(NamedTuple):
    """A gateway with two tenants, each with a boss, a member, an agent and an open request."""

    gateway: WebSocketGateway
    secrets: dict[str, str]
    ids: dict[str, str]
    """Of their tokens."""
    peers: dict[str, WebSocketPeer]

    async def ask(self, who: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask as somebody."""
        async with http(self.gateway, self.secrets[who]) as client:
            return await client.request(method, f"{API}{path}", **more)


@pytest.fixture
async def street():
    """With a database of its own, and an audit log."""
    database = AuthDatabase()
    config = guarded_config(auth=AuthConfig(token=OWNER))
    async with WebSocketGateway(config, authdb=database) as gateway:
        gateway.access.audit = Audit(database)
        made = Street(gateway, {"owner": OWNER}, {}, {})
        for tenant in ("acme", "globex"):
            await furnish(made, tenant)
        yield made
        await hang_up(gateway)
    database.close()


async def furnish(street: Street, tenant: str) -> None:
    for role, scopes in (("control", ("credential:admin",)), ("webchat", ()), ("node", ())):
        who = f"{tenant}-{role}"
        stored, secret = street.gateway.credentials.create(
            name=who,
            user_id=who,
            roles={role},
            scopes=scopes,
            session_patterns=(f"{tenant}-*",),
            agent_patterns=(f"{tenant}-*",),
        )
        street.secrets[who], street.ids[who] = secret, stored.id
        street.peers[who] = await connect(street.gateway, secret)
    await register(street.peers[f"{tenant}-node"], f"{tenant}-bot")
    await street.peers[f"{tenant}-webchat"].send("route_request", {"agentId": f"{tenant}-bot"})
    await street.peers[f"{tenant}-node"].next("route_request")


@pytest.mark.parametrize("path", ["/clients", "/requests", "/tokens", "/devices", "/agents"])
async def test_a_list_holds_nothing_of_another_tenant(street, path):
    """And all of one's own; the gateway's owner sees everything."""
    mine = (await street.ask("acme-control", "GET", path)).text
    all_of_it = (await street.ask("owner", "GET", path)).text

    assert "globex" not in mine
    assert OWNER not in mine
    if path != "/devices":
        assert "acme" in mine
        assert "globex" in all_of_it


async def test_another_tenants_connection_cannot_be_closed(street):
    """It is answered like one that is not there, and stays."""
    clients = (await street.ask("owner", "GET", "/clients")).json()["clients"]
    theirs = next(c["id"] for c in clients if c["userId"] == "globex-webchat")
    ours = next(c["id"] for c in clients if c["userId"] == "acme-webchat")

    other = await street.ask("acme-control", "DELETE", f"/clients/{theirs}")
    absent = await street.ask("acme-control", "DELETE", "/clients/none")
    own = await street.ask("acme-control", "DELETE", f"/clients/{ours}")

    assert (other.status_code, other.content) == (absent.status_code, absent.content)
    assert code_of(other) == "CLIENT_NOT_FOUND"
    assert own.status_code == 204
    assert (await street.peers["globex-webchat"].ask("ping")).type == "pong"


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/rotate")])
async def test_another_tenants_token_looks_like_none(street, method, path):
    """It is neither ended nor found; one's own can be."""
    theirs, ours = street.ids["globex-webchat"], street.ids["acme-webchat"]
    street.gateway.credentials.create(name="x", user_id="x", roles={"webchat"})

    other = await street.ask("acme-control", method, f"/tokens/{theirs}{path}")
    absent = await street.ask("acme-control", method, f"/tokens/k_none{path}")

    assert (other.status_code, other.content) == (absent.status_code, absent.content)
    assert other.status_code == 404
    assert street.gateway.credentials.get(theirs).revoked_at is None
    # Of another user within the tenant: there, but not one's own.
    assert (await street.ask("acme-control", method, f"/tokens/{ours}{path}")).status_code == 403


async def test_statistics_count_only_what_an_operator_may_know_of(street):
    """And leave out what cannot be told apart; the gateway's owner gets it all."""
    for tenant in ("acme", "globex", "globex"):
        session = f"{tenant}-{len(street.gateway.sessions.get_all_sessions())}"
        await street.peers[f"{tenant}-webchat"].ask("session_create", {"sessionId": session})
    await connect(street.gateway)  # has not signed in, and is nobody's

    mine = (await street.ask("acme-control", "GET", "/stats")).json()
    all_of_it = (await street.ask("owner", "GET", "/stats")).json()

    assert (mine["connections"], mine["clients"], mine["authenticated"]) == (3, 3, 3)
    assert (mine["sessions"], mine["openRequests"]) == (1, 1)
    assert mine["agents"] == {"total": 1, "online": 1, "byType": {"custom": 1}}
    assert (all_of_it["connections"], all_of_it["authenticated"]) == (7, 6)
    assert (all_of_it["sessions"], all_of_it["openRequests"]) == (3, 2)
    assert all_of_it["agents"]["total"] == 2
    totals = {"requests", "strayResponses", "deliveries", "messages", "refused", "errors"}
    assert set(all_of_it) - set(mine) == totals | {"authFailures", "stateVersion"}


def waiting_phone(street: Street) -> PairingRequest:
    """A phone that waits for approval."""
    assert street.gateway.pairing is not None
    asked, _ = street.gateway.pairing.devices.request(
        device_id="phone",
        public_key=bytes(range(32)),
        name="a phone",
        role=None,
        address="192.0.2.1",
        address_key="192.0.2.1",
        total=64,
        per_address=8,
    )
    return asked


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_what_waits_for_pairing_is_for_those_who_may_know_of_everything(street, decision):
    """It belongs to nobody yet; by the name that a device gives itself others find none."""
    waiting_phone(street)

    mine = (await street.ask("acme-control", "GET", "/devices")).json()["pending"]
    owners = (await street.ask("owner", "GET", "/devices")).json()["pending"]
    guessed = await street.ask("acme-control", "POST", f"/devices/phone/{decision}", json={})
    absent = await street.ask("acme-control", "POST", f"/devices/tablet/{decision}", json={})

    assert (mine, len(owners)) == ([], 1)
    assert guessed.status_code == absent.status_code == 404
    assert guessed.text.replace("phone", "tablet") == absent.text
    assert len(street.gateway.pairing.pending()) == 1


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_whoever_is_told_a_request_decides_on_it_within_their_patterns(street, decision):
    """Its id cannot be guessed: only the device has been told it."""
    asked = waiting_phone(street)

    answer = await street.ask(
        "acme-control",
        "POST",
        f"/devices/{asked.request_id}/{decision}",
        json={"roles": ["control"]} if decision == "approve" else None,
    )

    assert answer.status_code in (200, 204)
    devices = street.gateway.pairing.devices.list()
    patterns = [device.session_patterns for device in devices]
    assert patterns == ([("acme-*",)] if decision == "approve" else [])
    assert street.gateway.pairing.pending() == []


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/rotate")])
async def test_another_tenants_device_looks_like_none(street, method, path):
    """Devices have names that can be guessed."""
    devices = street.gateway.pairing.devices
    asked = waiting_phone(street)
    approval = Approval(
        roles=frozenset({"webchat"}), session_patterns=("globex-*",), agent_patterns=("globex-*",)
    )
    devices.approve(asked.request_id, approval, OWNER_IDENTITY)

    other = await street.ask("acme-control", method, f"/devices/phone{path}")
    absent = await street.ask("acme-control", method, f"/devices/tablet{path}")

    assert other.status_code == absent.status_code == 404
    assert other.text.replace("phone", "tablet") == absent.text
    assert devices.get("phone") is not None
    assert "globex" not in (await street.ask("acme-control", "GET", "/devices")).text


async def test_the_audit_log_is_for_those_who_may_know_of_everything(street):
    """It tells of everybody's sessions, users and addresses."""
    mine = await street.ask("acme-control", "GET", "/audit")
    owners = await street.ask("owner", "GET", "/audit")

    assert (mine.status_code, code_of(mine)) == (403, "FORBIDDEN")
    assert owners.status_code == 200


async def test_a_revoked_token_ends_what_it_opened_over_http(street):
    """A stream of events ends with 4003, a request that waits with a refusal, and neither comes again."""
    async with http(street.gateway, street.secrets["acme-webchat"]) as client:
        await client.post(f"{API}/sessions", json={"sessionId": "acme-room"})
        asking = asyncio.create_task(
            client.post(f"{API}/requests", json={"agentId": "acme-bot"}, timeout=20)
        )
        await street.peers["acme-node"].next("route_request")
        async with events(client, "acme-room") as stream:
            await stream.next()
            street.gateway.credentials.revoke(street.ids["acme-webchat"])

            assert (await stream.next("close")).data["code"] == 4003
            await stream.over()
        assert (await asking).status_code == 401
        assert (await client.get(f"{API}/sessions")).status_code == 401
