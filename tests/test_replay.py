"""Catching up: every message once, no hole and no repeat where the replay becomes live."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import connect, open_config

from trunkline.config import AuthConfig, GatewayConfig, HistoryConfig, LimitsConfig
from trunkline.history import Append, Outcome, Stored
from trunkline.history.memory import MemoryHistory
from trunkline.messages import GatewayMessage, create_message
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway

OPEN = AuthConfig(mode="none")


class SlowHistory(MemoryHistory):
    """A log whose calls take some turns of the loop, as a log on a disk does."""

    def __init__(self, turns: random.Random) -> None:
        super().__init__()
        self._turns = turns

    async def _wait(self) -> None:
        for _ in range(self._turns.randint(0, 4)):
            await asyncio.sleep(0)

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        await self._wait()
        outcomes = await super().append(batch)
        await self._wait()
        return outcomes

    async def read(self, session: str, after: int, limit: int, max_bytes: int) -> Sequence[Stored]:
        await self._wait()
        found = await super().read(session, after, min(limit, 3), max_bytes)
        await self._wait()
        return found


class GatedHistory(MemoryHistory):
    """A log that has stored a message some time before it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        outcomes = await super().append(batch)
        await self.gate.wait()
        return outcomes


class BrokenHistory(MemoryHistory):
    """A log that cannot be read."""

    async def read(self, session: str, after: int, limit: int, max_bytes: int) -> Sequence[Stored]:
        raise OSError("the disk is gone")


async def filled(gateway: GatewayServer, count: int) -> tuple[PeerClient, str]:
    """Make a session with so many messages; returns its owner and epoch."""
    owner = PeerClient(gateway)
    info = await owner.ask("session_create", {"sessionId": "lobby"})
    for number in range(1, count + 1):
        await owner.ask("chat", {"message": str(number)}, "lobby")
    return owner, info.data()["epoch"]


def seqs(messages: Sequence[GatewayMessage]) -> list[int]:
    return [m.seq for m in messages if m.seq is not None]


async def joined(peer: PeerClient, **payload) -> tuple[GatewayMessage, list[int]]:
    """Join, and return the answer and the numbers of the messages that follow it."""
    info = await peer.ask("session_join", {"sessionId": "lobby", **payload})
    await asyncio.sleep(0.01)
    return info, seqs(peer.received())


async def test_a_fresh_join_gets_nothing_of_the_past(gateway):
    """`fresh`, and `next` is the first message to come."""
    await filled(gateway, 5)

    info, replayed = await joined(PeerClient(gateway))

    assert (info.data()["recovery"], info.data()["head"], info.data()["next"]) == ("fresh", 5, 6)
    assert replayed == []


async def test_a_tail_is_the_last_messages_of_the_log(gateway):
    """Oldest first, and never more than there are."""
    await filled(gateway, 5)

    info, replayed = await joined(PeerClient(gateway), tail=2)
    more, everything = await joined(PeerClient(gateway), tail=1_000)

    assert (info.data()["recovery"], info.data()["next"]) == ("fresh", 4)
    assert replayed == [4, 5]
    assert (more.data()["next"], everything) == (1, [1, 2, 3, 4, 5])


async def test_a_resumed_join_gets_exactly_what_it_missed(gateway):
    """`since` is the last message that the client has."""
    _, epoch = await filled(gateway, 5)

    info, replayed = await joined(PeerClient(gateway), since={"epoch": epoch, "seq": 3})

    assert (info.data()["recovery"], info.data()["next"]) == ("resumed", 4)
    assert replayed == [4, 5]


async def test_a_join_that_missed_nothing_is_resumed_too(gateway):
    """At the head there is nothing to replay."""
    _, epoch = await filled(gateway, 5)

    info, replayed = await joined(PeerClient(gateway), since={"epoch": epoch, "seq": 5})

    assert (info.data()["recovery"], info.data()["next"], replayed) == ("resumed", 6, [])


async def test_another_epoch_is_a_reset_from_the_first_message(gateway):
    """What the client holds is no prefix of this log."""
    await filled(gateway, 3)

    info, replayed = await joined(PeerClient(gateway), since={"epoch": "another", "seq": 3})

    assert (info.data()["recovery"], info.data()["reason"]) == ("reset", "epoch")
    assert (info.data()["next"], replayed) == (1, [1, 2, 3])


async def test_a_place_ahead_of_the_log_is_a_reset(gateway):
    """The client knows what the log does not."""
    _, epoch = await filled(gateway, 3)

    info, _ = await joined(PeerClient(gateway), since={"epoch": epoch, "seq": 4})

    assert (info.data()["recovery"], info.data()["reason"]) == ("reset", "ahead")


async def test_a_reset_replays_only_the_tail_if_one_is_given(gateway):
    """The client says how much it wants to start with."""
    await filled(gateway, 5)

    info, replayed = await joined(PeerClient(gateway), since={"epoch": "another", "seq": 3}, tail=2)

    assert (info.data()["recovery"], info.data()["next"], replayed) == ("reset", 4, [4, 5])


async def test_a_place_that_retention_has_passed_is_a_reset():
    """The seam itself is still whole: the message before the first is a good place."""
    config = GatewayConfig(auth=OPEN, history=HistoryConfig(max_messages=3))
    async with GatewayServer(config) as gateway:
        _, epoch = await filled(gateway, 10)

        trimmed, rest = await joined(PeerClient(gateway), since={"epoch": epoch, "seq": 6})
        whole, same = await joined(PeerClient(gateway), since={"epoch": epoch, "seq": 7})

        assert (trimmed.data()["recovery"], trimmed.data()["reason"]) == ("reset", "trimmed")
        assert (trimmed.data()["next"], rest) == (8, [8, 9, 10])
        assert (whole.data()["recovery"], same) == ("resumed", [8, 9, 10])


async def test_joining_again_without_since_changes_nothing(gateway):
    """It answers `joined` and replays nothing."""
    owner, _ = await filled(gateway, 3)

    info, replayed = await joined(owner, tail=3)

    assert (info.data()["status"], replayed) == ("joined", [])
    assert gateway.sessions.get_clients("lobby") == [owner.client.id]


async def test_joining_again_with_since_begins_a_new_attachment(gateway):
    """The member gets the messages after the place that it names."""
    owner, epoch = await filled(gateway, 3)

    info, replayed = await joined(owner, since={"epoch": epoch, "seq": 1})

    assert (info.data()["recovery"], replayed) == ("resumed", [2, 3])


async def test_one_s_own_messages_are_part_of_every_replay(gateway):
    """Although one never gets them live."""
    owner, epoch = await filled(gateway, 2)

    _, replayed = await joined(owner, since={"epoch": epoch, "seq": 0})

    assert replayed == [1, 2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    before=st.integers(0, 12),
    rounds=st.integers(1, 8),
    back=st.integers(0, 12),
)
async def test_replay_becomes_live_without_a_hole_or_a_repeat(seed, before, rounds, back):
    """While publishing goes on, over a log that takes its time."""
    chance = random.Random(seed)
    history = SlowHistory(chance)
    async with GatewayServer(GatewayConfig(auth=OPEN), history=history) as gateway:
        owner, epoch = await filled(gateway, before)
        start = max(0, before - back)
        reader = PeerClient(gateway)

        since = {"epoch": epoch, "seq": start}
        join = reader.send("session_join", {"sessionId": "lobby", "since": since})
        count = before
        for _ in range(rounds):
            for _ in range(chance.randint(0, 3)):
                owner.send("chat", {"message": "live"}, "lobby")
                count += 1
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
        await owner.ask("chat", {"message": "last"}, "lobby")
        await reader.next(reply_to=join)
        got: list[int] = []
        async with asyncio.timeout(5):
            while count + 1 not in got:
                got += seqs([await reader.next()])

        assert got == list(range(start + 1, count + 2))


async def test_what_is_stored_but_not_delivered_yet_comes_only_once():
    """The replay stops at what the session has delivered; the rest comes live."""
    history = GatedHistory()
    limits = LimitsConfig(max_buffered=10_000, lag_bytes=2_500)
    config = GatewayConfig(auth=OPEN, limits=limits)
    async with GatewayServer(config, history=history) as gateway:
        owner, epoch = await filled(gateway, 1)
        reader = PeerClient(gateway)
        reader.transport.stuck = 6_000
        await joined(reader, since={"epoch": epoch, "seq": 0})

        history.gate.clear()
        chat = owner.send("chat", {"message": "2"}, "lobby")
        await asyncio.sleep(0.01)
        reader.transport.stuck = 0
        gateway.on_drained(reader.client)
        await asyncio.sleep(0.01)
        history.gate.set()
        await owner.next(reply_to=chat)

        assert seqs(reader.received()) == [1, 2]


async def test_a_slow_reader_is_sent_no_more_than_it_reads():
    """The replay waits while half the buffer is full, and goes on when it has drained."""
    limits = LimitsConfig(max_buffered=10_000, lag_bytes=2_500)
    async with GatewayServer(GatewayConfig(auth=OPEN, limits=limits)) as gateway:
        _, epoch = await filled(gateway, 3)
        reader = PeerClient(gateway)
        reader.transport.stuck = 6_000

        _, blocked = await joined(reader, since={"epoch": epoch, "seq": 0})
        reader.transport.stuck = 0
        gateway.on_drained(reader.client)
        await asyncio.sleep(0.01)

        assert blocked == []
        assert seqs(reader.received()) == [1, 2, 3]


async def test_a_replay_never_waits_for_a_drain_that_will_not_be_told():
    """Only a buffer past `lag_bytes` is told to have drained."""
    limits = LimitsConfig(max_buffered=10_000, lag_bytes=8_000)
    async with GatewayServer(GatewayConfig(auth=OPEN, limits=limits)) as gateway:
        _, epoch = await filled(gateway, 3)
        reader = PeerClient(gateway)
        reader.transport.stuck = 7_000

        _, replayed = await joined(reader, since={"epoch": epoch, "seq": 0})

        assert replayed == [1, 2, 3]


async def test_a_reader_that_leaves_while_it_waits_never_becomes_a_member_again():
    """The replay ends with the connection."""
    limits = LimitsConfig(max_buffered=10_000, lag_bytes=2_500)
    async with GatewayServer(GatewayConfig(auth=OPEN, limits=limits)) as gateway:
        owner, epoch = await filled(gateway, 3)
        reader = PeerClient(gateway)
        reader.transport.stuck = 6_000
        await joined(reader, since={"epoch": epoch, "seq": 0})

        reader.disconnect()
        await owner.ask("chat", {"message": "more"}, "lobby")

        assert gateway.sessions.get_clients("lobby") == [owner.client.id]
        assert reader.client not in gateway.sessions.get_session("lobby").feed.members


async def test_a_reader_that_retention_overtakes_is_sent_to_resume():
    """It must see the reset, and so loses the connection rather than messages."""
    limits = LimitsConfig(max_buffered=10_000, lag_bytes=2_500)
    history = HistoryConfig(max_messages=2)
    config = GatewayConfig(auth=OPEN, limits=limits, history=history)
    async with GatewayServer(config) as gateway:
        owner, epoch = await filled(gateway, 2)
        reader = PeerClient(gateway)
        reader.transport.stuck = 6_000
        await joined(reader, since={"epoch": epoch, "seq": 0})

        for _ in range(3):
            await owner.ask("chat", {"message": "more"}, "lobby")
        reader.transport.stuck = 0
        gateway.on_drained(reader.client)

        code, reason = await reader.gone()
        assert (code, reason) == (4008, "reconnect=yes;trimmed")


async def test_a_log_that_cannot_be_read_closes_the_connection_with_1011():
    """The client comes back later, rather than wait for good."""
    async with GatewayServer(GatewayConfig(auth=OPEN), history=BrokenHistory()) as gateway:
        _, epoch = await filled(gateway, 1)
        reader = PeerClient(gateway)

        reader.send("session_join", {"sessionId": "lobby", "since": {"epoch": epoch, "seq": 0}})

        code, reason = await reader.gone()
        assert (code, reason[:13]) == (1011, "reconnect=yes")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_long_replay_over_a_socket_arrives_whole(loop):
    """Several times the buffer, to a reader that takes pauses, while publishing goes on."""

    async def scenario() -> None:
        async with WebSocketGateway(open_config()) as gateway:
            session = await gateway.sessions.create_session("lobby")
            text = "x" * 8_000
            for _ in range(500):
                gateway.broadcast_to_session("lobby", create_message("chat", {"message": text}))
            async with asyncio.timeout(30):
                reader = await connect(gateway)
                info = await reader.ask("session_join", {"sessionId": "lobby", "tail": 1_000})
                assert info.data()["head"] == 500
                got: list[int] = []
                while len(got) < 510:
                    message = await reader.next()
                    if message.seq is not None:
                        got.append(message.seq)
                    if len(got) in (50, 200):
                        await asyncio.sleep(0.02)
                    if len(got) in range(100, 110) and session.feed.head < 510:
                        gateway.broadcast_to_session("lobby", create_message("chat", {}))
            assert got == list(range(1, 511))
            with contextlib.suppress(Exception):
                await reader.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())
