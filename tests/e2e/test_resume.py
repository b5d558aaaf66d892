"""The seam between what is caught up with and what is live, with readers that are slow."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.errors import CloseCode
from trunkline.history.sqlite import SqliteHistory
from trunkline.messages import GatewayMessage
from trunkline.records.sqlite import SqliteRecords
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

STUCK = 1024 * 1024
"""Bytes that a slow reader has not read yet: more than half of what may wait for it."""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayServer]:
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    async with GatewayServer(config, history=SqliteHistory(tmp_path / "log.db")) as running:
        yield running


async def fill(gateway: GatewayServer, messages: int) -> tuple[PeerClient, str]:
    """Create a session with messages in it; return who did, and the epoch."""
    ana = PeerClient(gateway)
    info = await ana.ask("session_create", {"sessionId": "s"})
    for n in range(messages):
        await ana.ask("chat", {"message": f"message {n}"}, "s")
    return ana, info.data()["epoch"]


def place(message: GatewayMessage) -> int | None:
    """Return the place in the log that a message, or an ack, stands for."""
    return message.data()["seq"] if message.type == "ack" else message.seq


def read_on(peer: PeerClient) -> None:
    """A slow reader reads what waits for it."""
    peer.transport.stuck = 0
    peer.gateway.on_drained(peer.client)


async def test_an_ack_waits_for_the_replay(gateway: GatewayServer) -> None:
    """What a client publishes while it catches up is acknowledged in the message's place."""
    ana, epoch = await fill(gateway, 20)
    ben = PeerClient(gateway)
    ben.transport.stuck = STUCK

    join = ben.send("session_join", {"since": {"epoch": epoch, "seq": 5}}, "s")
    chat = ben.send("chat", {"message": "mine"}, "s")
    await ben.next(reply_to=join)
    await ana.ask("chat", {"message": "meanwhile"}, "s")
    read_on(ben)
    places = []
    while (message := await ben.next()).reply_to != chat:
        places.append(place(message))

    assert [*places, place(message)] == list(range(6, 23))


async def test_what_is_asked_behind_a_replay_is_answered_behind_it(gateway: GatewayServer) -> None:
    """Answers come in the order of the questions, however long the first one takes."""
    ana, epoch = await fill(gateway, 5)
    ben = PeerClient(gateway)
    ben.transport.stuck = STUCK

    join = ben.send("session_join", {"since": {"epoch": epoch, "seq": 0}}, "s")
    ben.send("session_list")
    await ben.ask("ping")
    await ben.next(reply_to=join)
    await ana.ask("chat", {"message": "meanwhile"}, "s")
    read_on(ben)
    types = [(await ben.next()).type for _ in range(7)]

    assert types == ["chat"] * 6 + ["session_list"]


async def test_who_leaves_while_catching_up_leaves_nothing_behind(gateway: GatewayServer) -> None:
    """A connection that ends in the middle of its replay does not hold the gateway up."""
    ana, epoch = await fill(gateway, 5)
    ben = PeerClient(gateway)
    ben.transport.stuck = STUCK
    join = ben.send("session_join", {"since": {"epoch": epoch, "seq": 0}}, "s")
    await ben.next(reply_to=join)

    ben.disconnect()
    info = await ana.ask("session_join", {}, "s")

    assert info.data()["memberCount"] == 1


async def test_a_reader_in_the_middle_of_a_log_that_breaks_is_sent_away(
    gateway: GatewayServer, tmp_path: Path
) -> None:
    """Damage found while a client catches up ends its attachment; the next join is a reset."""
    _, epoch = await fill(gateway, 20)
    ben = PeerClient(gateway)
    ben.transport.stuck = STUCK
    join = ben.send("session_join", {"since": {"epoch": epoch, "seq": 0}}, "s")
    await ben.next(reply_to=join)
    damage(tmp_path / "log.db", "message 9")

    read_on(ben)
    code, _ = await ben.gone()
    again = await PeerClient(gateway).ask(
        "session_join", {"since": {"epoch": epoch, "seq": 9}, "sessionId": "s"}
    )

    assert code == CloseCode.TOO_SLOW
    assert (again.data()["recovery"], again.data()["reason"]) == ("reset", "epoch")
    assert again.data()["head"] == 9


async def test_members_of_a_log_that_breaks_are_sent_away(
    gateway: GatewayServer, tmp_path: Path
) -> None:
    """Damage that somebody else's reading finds reaches those who only listen."""
    ana, _ = await fill(gateway, 20)
    damage(tmp_path / "log.db", "message 9")

    await PeerClient(gateway).ask("session_history", {"sessionId": "s", "after": 0})
    code, _ = await ana.gone()

    assert code == CloseCode.TOO_SLOW


async def test_a_session_that_comes_back_damaged_has_another_epoch(tmp_path: Path) -> None:
    """After a restart nobody is told that a log which was cut goes on where it ended."""
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    history = SqliteHistory(tmp_path / "log.db")
    records = SqliteRecords(history.database)
    gateway = GatewayServer(config, history=history, records=records)
    async with gateway:
        _, epoch = await fill(gateway, 20)
    damage(tmp_path / "log.db", "message 9")

    async with gateway:
        answer = await PeerClient(gateway).ask(
            "session_join", {"since": {"epoch": epoch, "seq": 20}, "sessionId": "s"}
        )

    assert (answer.data()["recovery"], answer.data()["reason"]) == ("reset", "epoch")


def damage(path: Path, text: str) -> None:
    """Change one message of a log behind its back."""
    with closing(sqlite3.connect(path)) as db, db:
        changed = db.execute(
            "UPDATE entries SET body = CAST(replace(body, ?, ?) AS BLOB)"
            " WHERE CAST(body AS TEXT) LIKE ?",
            (f'"{text}"', '"another"', f'%"{text}"%'),
        )
        assert changed.rowcount == 1
