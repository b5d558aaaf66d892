"""How much one user or connection may have: exact at the limit and one past it (W37)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import websockets
from peers import People, connect, error_of, guarded_config, hang_up, person, register, token_of

from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway


def limited(**limits: int) -> GatewayServer:
    """A gateway in memory with limits."""
    config = GatewayConfig(auth=AuthConfig(token="t"), limits=LimitsConfig(**limits))
    return GatewayServer(config, authenticator=People())


def codes(answers: list[Any]) -> list[str | None]:
    """The error of each answer, None for those that are none."""
    return [error_of(answer) if answer.type == "error" else None for answer in answers]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_user_owns_at_most_so_many_sessions(parallel):
    """From however many connections they are made; a deleted one makes room."""
    async with limited(sessions_per_user=5) as gateway:
        peers = [PeerClient(gateway, person("ada")) for _ in range(8)]
        ids = [f"s{number}" for number in range(8)]
        asking = [
            peer.ask("session_create", {"sessionId": id})
            for peer, id in zip(peers, ids, strict=True)
        ]
        answers = await asyncio.gather(*asking) if parallel else [await one for one in asking]

        assert codes(answers) == [None] * 5 + ["SESSION_LIMIT"] * 3
        other = await PeerClient(gateway, person("bob")).ask("session_create", {})
        owner = [
            await PeerClient(gateway, person("root", own_quota=False)).ask("session_create", {})
            for _ in range(6)
        ]
        assert codes([other, *owner]) == [None] * 7

        await peers[0].ask("session_close", {"sessionId": "s0", "delete": True})
        again = [await peers[0].ask("session_create", {}) for _ in range(2)]
        assert codes(again) == [None, "SESSION_LIMIT"]


async def test_a_session_that_could_not_be_made_is_not_counted():
    """An id that is in use, twice."""
    async with limited(sessions_per_user=2) as gateway:
        peer = PeerClient(gateway, person("ada"))
        await peer.ask("session_create", {"sessionId": "a"})

        taken = [await peer.ask("session_create", {"sessionId": "a"}) for _ in range(3)]

        assert codes(taken) == ["SESSION_EXISTS"] * 3
        assert gateway.sessions.owned_by("ada") == 1


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_user_has_at_most_so_many_agents(parallel):
    """From however many connections they register; known ones may come again."""
    async with limited(agents_per_user=5) as gateway:
        peers = [PeerClient(gateway, person("bots", "node")) for _ in range(8)]
        asking = [register(peer, f"agent-{number}") for number, peer in enumerate(peers)]
        answers = await asyncio.gather(*asking) if parallel else [await one for one in asking]

        assert codes(answers) == [None] * 5 + ["OVERLOADED"] * 3
        again = await register(PeerClient(gateway, person("bots", "node")), "agent-0")
        other = await register(PeerClient(gateway, person("others", "node")), "another")
        assert codes([again, other]) == [None, None]

        await peers[1].ask("agent_unregister", {"id": "agent-1"})
        late = [await register(peers[1], f"late-{number}") for number in range(2)]
        assert codes(late) == [None, "OVERLOADED"]


async def test_a_connection_joins_at_most_so_many_sessions():
    """Those that it is assigned to as an agent do not count."""
    async with limited(sessions_per_connection=3) as gateway:
        bot = PeerClient(gateway, person("bots", "node"))
        await register(bot, "bot")
        owner = PeerClient(gateway, person("root", "control"))
        for number in range(3):
            made = await owner.ask(
                "session_create", {"sessionId": f"work-{number}", "agentId": "bot"}
            )
            assert made.type == "session_info"
            await bot.next("session_info")
        for number in range(4):
            await gateway.sessions.create_session(f"free-{number}")

        joins = [await bot.ask("session_join", {"sessionId": f"free-{n}"}) for n in range(4)]
        made = await owner.ask("session_create", {})

        assert codes([*joins, made]) == [None] * 3 + ["SESSION_LIMIT"] * 2
        assert len(bot.client.sessions) == 6


async def test_a_session_has_at_most_so_many_members():
    """Every way in is counted."""
    async with limited(members_per_session=2) as gateway:
        ada = PeerClient(gateway, person("ada"))
        await ada.ask("session_create", {"sessionId": "lobby"})
        peers = [PeerClient(gateway, person("bob")) for _ in range(2)]

        joins = [
            await peers[0].ask("session_create", {"sessionId": "lobby", "joinIfExists": True}),
            await peers[1].ask("session_create", {"sessionId": "lobby", "joinIfExists": True}),
            await peers[1].ask("session_join", {"sessionId": "lobby"}),
        ]

        assert codes(joins) == [None, "SESSION_FULL", "SESSION_FULL"]


async def test_a_connection_has_at_most_so_many_open_requests():
    """Time helps, so the refusal says how long to wait."""
    async with limited(requests_per_connection=3) as gateway:
        bot = PeerClient(gateway, person("bots", "node"))
        await register(bot, "bot")
        ada = PeerClient(gateway, person("ada"))
        for _ in range(3):
            ada.send("route_request", {"agentId": "bot"})

        refused = await ada.ask("route_request", {"agentId": "bot"})
        asked = await bot.next("route_request")
        bot.send("route_response", {"requestId": asked.data()["requestId"], "result": 1})
        await ada.next("route_response")
        ada.send("route_request", {"agentId": "bot"})

        assert error_of(refused) == "OVERLOADED"
        assert refused.data()["retryAfterMs"] > 0
        assert len(ada.client.requests) == 3


async def test_a_users_connections_are_refused_before_the_upgrade():
    """Where the header says whose they are: 429, and the time to wait."""
    config = guarded_config(limits=LimitsConfig(connections_per_user=2))
    async with WebSocketGateway(config, authenticator=People()) as gateway:
        first = await connect(gateway, token_of("ada"))
        await connect(gateway, token_of("ada"))

        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(gateway, token_of("ada"))
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "30"
        await connect(gateway, token_of("bob"))

        await first.close()
        await connect(gateway, token_of("ada"))
        assert gateway.door.over_quota == 1
        await hang_up(gateway)


async def test_thousands_of_refusals_leave_nothing_behind():
    """They are counted, and that is all."""
    async with limited(sessions_per_user=1, publish_burst=200_000) as gateway:
        peer = PeerClient(gateway, person("ada"))
        await peer.ask("session_create", {"sessionId": "only"})
        before = gateway.handlers.errors

        for number in range(2_000):
            await peer.ask("session_create", {"sessionId": f"s{number}"})
            peer.transport.sent.clear()
            peer._read = 0

        assert gateway.handlers.errors == before + 2_000
        assert [record.session_id for record in gateway.sessions.all_records()] == ["only"]
        assert gateway.sessions.owned_by("ada") == 1
