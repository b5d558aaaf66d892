"""Presence: who comes and goes, told by the gateway and never by another."""

from __future__ import annotations

import asyncio

import pytest
from peers import details_of, error_of, person

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.messages import GatewayMessage
from trunkline.presence import AT_ONCE
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient


async def member(gateway: GatewayServer, name: str, device: str | None = None) -> PeerClient:
    peer = PeerClient(gateway, person(name))
    if device is not None:
        await peer.ask("connect", {"deviceId": device})
    if gateway.sessions.get_record("lobby") is None:
        await peer.ask("session_create", {"sessionId": "lobby"})
    await peer.ask("session_join", {"sessionId": "lobby"})
    return peer


async def news(peer: PeerClient) -> list[tuple[str, str]]:
    """Who is said to be how, once everything has been told."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [(m.sender.user_id, m.data()["status"]) for m in peer.received() if m.type == "presence"]


async def test_the_others_are_told_who_comes_and_who_leaves(gateway):
    """With the gateway's own stamp and the device; oneself is not told."""
    ada = await member(gateway, "ada")
    bob = await member(gateway, "bob", "phone")
    came = await ada.next("presence")
    await bob.ask("session_leave", {"sessionId": "lobby"})
    left = await ada.next("presence")

    assert came.data() == {"deviceId": "phone", "status": "online"}
    assert (came.sender.user_id, came.sender.client_id) == ("bob", bob.client.id)
    assert (came.session_id, came.seq) == ("lobby", None)
    assert left.data()["status"] == "offline"
    assert await news(bob) == []


async def test_a_connection_that_is_lost_is_offline(gateway):
    """As if it had left."""
    ada, bob = await member(gateway, "ada"), await member(gateway, "bob")
    await news(ada)

    bob.disconnect()

    assert await news(ada) == [("bob", "offline")]


async def test_several_changes_within_a_tick_become_the_last(gateway):
    """A connection that came and went in one breath is only gone."""
    ada = await member(gateway, "ada")
    await news(ada)
    bob = PeerClient(gateway, person("bob"))

    gateway.sessions.add_client("lobby", bob.client)
    gateway.sessions.remove_client("lobby", bob.client)
    gateway.sessions.add_client("lobby", bob.client)

    assert await news(ada) == [("bob", "online")]


async def test_a_client_tells_the_others_how_it_is(gateway):
    """`typing`, `away` and the like; nobody is answered."""
    ada, bob = await member(gateway, "ada"), await member(gateway, "bob")
    await news(ada)
    await news(bob)

    for status in ("typing", "away", "online", "offline"):
        bob.send("presence", {"status": status}, "lobby")

    assert await news(ada) == [("bob", s) for s in ("typing", "away", "online", "offline")]
    assert await news(bob) == []


@pytest.mark.parametrize(
    "claim",
    [
        {"clientId": "ada"},
        {"userId": "ada"},
        {"deviceId": "phone"},
        {"from": {"userId": "ada"}},
        {"sender": "ada", "agentId": "ada"},
    ],
)
async def test_a_payload_that_names_another_has_no_effect(gateway, claim):
    """The subject is the sender."""
    ada, eve = await member(gateway, "ada", "phone"), await member(gateway, "eve", "hers")
    await news(ada)

    eve.send("presence", {"status": "typing", **claim}, "lobby")
    message = await ada.next("presence")

    assert message.data() == {"status": "typing", "deviceId": "hers"}
    assert message.sender.user_id == "eve"


async def test_an_unknown_status_is_refused(gateway):
    """The states are a fixed set."""
    ada = await member(gateway, "ada")

    refusal = await ada.ask("presence", {"status": "asleep"}, "lobby")

    assert (error_of(refusal), details_of(refusal)) == ("INVALID_PAYLOAD", {"path": "$.status"})


async def test_presence_is_for_members_only(gateway):
    """Of the session that it names."""
    await member(gateway, "ada")

    outside = await PeerClient(gateway).ask("presence", {"status": "typing"}, "lobby")

    assert error_of(outside) == "NOT_A_MEMBER"


async def test_above_a_hundred_members_nobody_is_told_who_comes(gateway):
    """Only their number changes, in `head`."""
    ada = await member(gateway, "ada")
    others = [await member(gateway, f"user{n}") for n in range(99)]
    await news(ada)

    late = await member(gateway, "late")
    over = await news(ada)
    late.disconnect()
    others[0].disconnect()
    session = gateway.sessions.get_session("lobby")

    assert over == []
    assert await news(ada) == [("user0", "offline")]
    assert gateway.sessions.head_message(session).data()["memberCount"] == 99


async def test_the_snapshot_shows_ones_own_devices_and_those_one_shares_a_session_with(gateway):
    """Control sees all; a connection without a device is not listed."""
    for name, device in (("ada", "phone"), ("bob", "tablet")):
        await member(gateway, name, device)
    own = PeerClient(gateway, person("eve"))
    await own.ask("connect", {"deviceId": "eves"})
    PeerClient(gateway, person("eve"))
    root = PeerClient(gateway, person("root", "control"))

    async def seen(peer: PeerClient) -> set[str]:
        answer: GatewayMessage = await peer.ask("sync_state")
        return {entry["deviceId"] for entry in answer.data()["presence"]}

    assert await seen(own) == {"eves"}
    assert await seen(await member(gateway, "carl", "desk")) == {"phone", "tablet", "desk"}
    assert await seen(root) == {"phone", "tablet", "desk", "eves"}


# How often


async def test_presence_has_a_rate_of_its_own():
    """Some at once, for who starts and stops typing, then one a second; nothing else waits."""
    now = [1_000.0]
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    async with GatewayServer(config, clock=lambda: now[0]) as gateway:
        ada, bob = await member(gateway, "ada"), await member(gateway, "bob")
        await news(ada)

        for _ in range(AT_ONCE):
            bob.send("presence", {"status": "typing"}, "lobby")
        refused = await bob.ask("presence", {"status": "away"}, "lobby")
        stored = await bob.ask("chat", {"message": "hi"}, "lobby")
        heard = await news(ada)
        now[0] += 1.0
        bob.send("presence", {"status": "away"}, "lobby")

        assert heard == [("bob", "typing")] * AT_ONCE
        assert (error_of(refused), refused.data()["retryAfterMs"]) == ("RATE_LIMITED", 1_000)
        assert stored.type == "ack"
        assert await news(ada) == [("bob", "away")]


async def test_comings_and_goings_do_not_count_as_presence(gateway):
    """They are the gateway's own, however often somebody joins and leaves."""
    ada, bob = await member(gateway, "ada"), await member(gateway, "bob")
    for _ in range(2 * AT_ONCE):
        await bob.ask("session_leave", {"sessionId": "lobby"})
        await bob.ask("session_join", {"sessionId": "lobby"})
    await news(ada)

    bob.send("presence", {"status": "typing"}, "lobby")

    assert await news(ada) == [("bob", "typing")]
