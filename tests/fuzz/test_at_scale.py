"""
Guesses, races and revocation in great numbers, over real sockets (security.md T-S5, T-S8).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import websockets
from e2e.processes import Gateway, clean_environ
from peers import (
    People,
    WebSocketPeer,
    connect,
    error_of,
    guarded_config,
    hang_up,
    register,
    token_of,
)
from sizes import BATTERY, Sizes
from websockets.asyncio.client import ClientConnection

from trunkline.config import LimitsConfig
from trunkline.errors import GatewayError
from trunkline.ids import random_id
from trunkline.limits import Lockout
from trunkline.transports.websocket import WebSocketGateway

UNLIMITED = LimitsConfig(
    publish_rate=1e6, publish_burst=1_000_000, stream_rate=1e6, stream_burst=1_000_000
)


def test_a_million_addresses_fill_no_table(sized: Sizes) -> None:
    """Guessing from everywhere keeps ten thousand of them, and a locked one stays locked (W12)."""
    lockout = Lockout(10, 60, 300)
    for _ in range(10):
        lockout.attempt("bad", 0.0)
        lockout.failed("bad", 0.0)

    for number in range(sized(100_000, 1_000_000, 1_000_000)):
        lockout.attempt(str(number), 1.0)
        lockout.failed(str(number), 1.0)

    assert len(lockout) == 10_000
    with pytest.raises(GatewayError, match="too many wrong credentials"):
        lockout.attempt("bad", 2.0)


def test_no_made_id_comes_twice(sized: Sizes) -> None:
    """A million ids of 128 random bits (W26)."""
    many = sized(100_000, 1_000_000, 1_000_000)

    ids = {random_id() for _ in range(many)}

    assert len(ids) == many
    assert min(map(len, ids)) == 22


async def test_no_race_takes_an_agent_id_over(sized: Sizes) -> None:
    """Two users register the same id at once: one gets it, and the other never does (W23)."""
    async with WebSocketGateway(
        guarded_config(limits=UNLIMITED), authenticator=People()
    ) as gateway:
        pair = [await connect(gateway, token_of(name, "node")) for name in ("ada", "eve")]
        won: Counter[int] = Counter()
        for number in range(sized(200, 1_000, 1_000)):
            racers = pair if number % 2 else pair[::-1]
            answers = await asyncio.gather(*(register(peer, f"id-{number}") for peer in racers))
            types = [answer.type for answer in answers]
            assert sorted(types) == ["agent_registered", "error"]
            winner, loser = (racers[types.index(type)] for type in ("agent_registered", "error"))
            won[pair.index(winner)] += 1
            # Neither its absence nor another spelling makes it free.
            await winner.ask("agent_unregister", {"id": f"id-{number}"})
            for spelling in (f"id-{number}", f"ID-{number}"):
                assert error_of(await register(loser, spelling)) == "AGENT_ID_TAKEN"

        assert len(won) == 2
        await hang_up(gateway)


async def test_no_guess_answers_a_request(sized: Sizes) -> None:
    """Real ids from the wrong connection, made-up ones, late ones and second ones (W24)."""
    async with WebSocketGateway(
        guarded_config(limits=UNLIMITED), authenticator=People()
    ) as gateway:
        ada = await connect(gateway, token_of("ada"))
        bot, eve = [await connect(gateway, token_of(name, "node")) for name in ("bots", "eve")]
        other = await connect(gateway, token_of("bots", "node"))
        await register(bot, "helper")
        await register(eve, "evil")
        await register(other, "another")
        asked = await ada.send("route_request", {"agentId": "helper", "stream": True})
        real = (await bot.next("route_request")).data()["requestId"]
        assert len(real) >= 22
        many = sized(2_000, 10_000, 10_000)

        for number in range(many):
            guess = real if number % 2 else random_id()
            await (eve, other)[number // 2 % 2].send(
                "route_response", {"requestId": guess, "result": "spoofed", "done": True}
            )
        await eve.ask("ping")
        await other.ask("ping")
        await bot.send("route_response", {"requestId": real, "result": "true"})
        answer = await ada.next(reply_to=asked)
        for _ in range(10):  # it has ended: these are late
            await bot.send("route_response", {"requestId": real, "result": "again"})
        await bot.ask("ping")

        assert answer.data()["result"] == "true"
        assert gateway.get_stats()["stray_responses"] == many + 10
        assert [m for m in await ada.left() if m.type == "route_response"] == []
        await hang_up(gateway)


# Revocation


async def command(folder: Path, *words: str) -> str:
    """Run a command at a gateway's data folder; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trunkline", *words, "--data-dir", str(folder)),
        env=clean_environ(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def entered(url: str, token: str) -> ClientConnection:
    """A connection that is signed in."""
    headers = {"Authorization": f"Bearer {token}"}
    socket = await websockets.connect(
        url, additional_headers=headers, proxy=None, ping_interval=None, compression=None
    )
    await socket.recv()
    return socket


@pytest.mark.timeout(300)
async def test_a_revoked_token_leaves_no_connection_open(tmp_path: Path, sized: Sizes) -> None:
    """From the command line, while messages flow: all are closed with 4003, within a second."""
    many = sized(100, 1_000, 1_000)
    gateway = Gateway(tmp_path, options=("--history", "memory"))
    await gateway.start()
    try:
        words = ("token", "create", "--role", "webchat", "--json", "--name")
        doomed, other = [
            json.loads(await command(gateway.data, *words, name)) for name in ("doomed", "other")
        ]
        speaker = WebSocketPeer(await entered(gateway.url, other["token"]))
        await speaker.ask("session_create", {"sessionId": "room"})
        sockets = [await entered(gateway.url, doomed["token"]) for _ in range(many)]
        for socket in sockets:
            await WebSocketPeer(socket).ask("session_join", {"sessionId": "room"})

        ends = asyncio.gather(*(ended(socket) for socket in sockets))
        talking = asyncio.create_task(talk(speaker))
        await command(gateway.data, "token", "revoke", doomed["id"])
        revoked = time.monotonic()
        codes, times, last = zip(*await ends, strict=True)
        after = (await speaker.ask("chat", {"message": "secret"}, "room")).data()["seq"]
        talking.cancel()

        assert set(codes) == {4003}
        assert max(last) < after
        if BATTERY:
            assert max(times) - revoked < 1.0
        await speaker.close()
        assert "Traceback" not in gateway.errors
    finally:
        await gateway.kill()


async def talk(speaker: WebSocketPeer) -> None:
    """Say something ten times a second, until cancelled."""
    while True:
        await speaker.send("chat", {"message": "hello"}, "room")
        await asyncio.sleep(0.1)


async def ended(socket: ClientConnection) -> tuple[int | None, float, int]:
    """Read until the end; return its code, its time, and the last message's number."""
    last = 0
    try:
        while True:
            last = json.loads(await socket.recv()).get("seq", last)
    except websockets.ConnectionClosed:
        return socket.close_code, time.monotonic(), last
