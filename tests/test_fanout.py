"""The queue of a session and the pump behind it: order, failures, and what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import error_of, person

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.history import Append, HistoryError, Outcome, StorageFull
from trunkline.history.memory import MemoryHistory
from trunkline.messages import GatewayMessage, create_message
from trunkline.server import GatewayServer
from trunkline.testing import MemoryTransport, PeerClient
from trunkline.transport import Batch

OPEN = GatewayConfig(auth=AuthConfig(mode="none"))


class MoodyHistory(MemoryHistory):
    """A log that fails, or waits, when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[int] = []

    async def append(self, batch: Sequence[Append]) -> Sequence[Outcome]:
        self.calls.append(sum(len(item.entries) for item in batch))
        await self.gate.wait()
        if isinstance(self.trouble, HistoryError):
            return [self.trouble] * len(batch)
        if self.trouble is not None:
            raise self.trouble
        return await super().append(batch)


async def two(gateway: GatewayServer) -> tuple[PeerClient, PeerClient]:
    ada, bob = PeerClient(gateway, person("ada")), PeerClient(gateway, person("bob"))
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bob.ask("session_join", {"sessionId": "lobby"})
    await settled(ada)
    await settled(bob)
    return ada, bob


async def settled(peer: PeerClient) -> list[GatewayMessage]:
    """Everything that came, once nothing is queued for the peer any more."""
    last = peer.send("session_list")
    messages = []
    while not messages or messages[-1].reply_to != last:
        messages.append(await peer.next())
    return [m for m in messages[:-1] if m.type != "presence"]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_nobody_is_shown_a_message_before_it_is_stored():
    """Neither the members nor, by its ack, the sender."""
    history = MoodyHistory()
    async with GatewayServer(OPEN, history=history) as gateway:
        ada, bob = await two(gateway)
        history.gate.clear()

        chat = ada.send("chat", {"message": "hi"}, "lobby")
        await turns()
        early = ada.received() + bob.received()
        history.gate.set()

        assert early == []
        assert (await ada.next(reply_to=chat)).type == "ack"
        assert (await bob.next("chat")).seq == 1


async def test_while_one_append_is_on_its_way_the_next_batch_collects():
    """One call for all that came meanwhile."""
    history = MoodyHistory()
    async with GatewayServer(OPEN, history=history) as gateway:
        ada, bob = await two(gateway)
        history.gate.clear()

        ada.send("chat", {"message": "0"}, "lobby")
        await turns()
        for number in range(10):
            (ada if number % 2 else bob).send("chat", {"message": str(number)}, "lobby")
            await turns(1)
        history.gate.set()
        await settled(ada)

        assert history.calls == [1, 10]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (StorageFull("no room"), "STORAGE_FULL"),
        (HistoryError("broken"), "OVERLOADED"),
        (OSError("the disk is gone"), "OVERLOADED"),
    ],
)
async def test_an_append_that_fails_is_told_to_its_sender_only(trouble, code, capsys):
    """The queue goes on, without a hole, and the same message may be sent again."""
    history = MoodyHistory()
    async with GatewayServer(OPEN, history=history) as gateway:
        ada, bob = await two(gateway)
        message = create_message("chat", {"message": "hi"}, "lobby")

        history.trouble = trouble
        ada.send_message(message)
        refusal = await ada.next(reply_to=message.id)
        history.trouble = None
        ada.send_message(message)
        ack = await ada.next(reply_to=message.id)

        assert (error_of(refusal), refusal.data()["retryable"]) == (code, True)
        assert (ack.data()["seq"], "duplicate" in ack.data()) == (1, False)
        assert [m.seq for m in await settled(bob)] == [1]


async def test_a_duplicate_of_a_message_that_could_not_be_stored_is_refused_too():
    """Both are told that nothing is stored."""
    history = MoodyHistory()
    async with GatewayServer(OPEN, history=history) as gateway:
        ada, _ = await two(gateway)
        message = create_message("chat", {"message": "hi"}, "lobby")
        history.trouble = StorageFull("no room")

        for _ in range(2):
            ada.send_message(message)
        answers = [await ada.next(reply_to=message.id) for _ in range(2)]

        assert [a.type for a in answers] == ["error", "error"]
        page = await ada.ask("session_history", {"sessionId": "lobby"})
        assert page.data()["messages"] == []


async def test_a_failing_session_does_not_stop_the_others(gateway, capsys):
    """A call that raises is logged, and the queue goes on."""
    ada, _ = await two(gateway)
    session = gateway.sessions.get_session("lobby")

    def broken() -> None:
        raise RuntimeError("boom")

    session.feed.call(broken)
    ack = await ada.ask("chat", {"message": "hi"}, "lobby")

    assert ack.type == "ack"
    assert "queued call failed" in "".join(capsys.readouterr())


async def test_a_function_runs_at_its_place_in_the_queue(gateway):
    """Behind what was queued before it, and before what comes after it."""
    ada, bob = await two(gateway)
    feed = gateway.sessions.get_session("lobby").feed
    seen = []

    ada.send("chat", {"message": "1"}, "lobby")
    waiting = asyncio.ensure_future(feed.run(lambda: seen.append(feed.head)))
    await turns(1)
    ada.send("chat", {"message": "2"}, "lobby")
    await waiting

    assert seen == [1]
    assert [m.seq for m in await settled(bob)] == [1, 2]


async def test_stopping_delivers_what_is_queued_first():
    """Every message that was taken is stored."""
    history = MoodyHistory()
    gateway = GatewayServer(OPEN, history=history)
    await gateway.start()
    ada, _ = await two(gateway)
    history.gate.clear()
    for number in range(3):
        ada.send("chat", {"message": str(number)}, "lobby")

    stopping = asyncio.ensure_future(gateway.stop())
    await turns()
    history.gate.set()
    await stopping

    assert sum(history.calls) == 3


async def test_members_that_get_the_same_share_one_batch():
    """What a turn produced is joined once for all of them."""

    class Keeping(MemoryTransport):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[Batch] = []

        def write_batch(self, batch: Batch) -> None:
            self.batches.append(batch)
            super().write_batch(batch)

    async with GatewayServer(OPEN) as gateway:
        ada, _ = await two(gateway)
        readers = [Keeping() for _ in range(3)]
        for transport in readers:
            gateway.sessions.add_client("lobby", gateway.on_connect(transport))
        await settled(ada)
        for transport in readers:
            transport.batches.clear()

        for number in range(4):
            ada.send("chat", {"message": str(number)}, "lobby")
        await settled(ada)

        assert [len(t.batches) for t in readers] == [1, 1, 1]
        assert len({id(t.batches[0]) for t in readers}) == 1
        assert len(readers[0].batches[0].messages) == 4


def test_a_batch_is_framed_once_by_each_framer():
    """Whoever asks."""
    calls = []

    def framer(messages: Sequence[bytes]) -> bytes:
        calls.append(messages)
        return b"".join(messages)

    batch = Batch([b"one", b"two"])

    assert [batch.framed(framer) for _ in range(3)] == [b"onetwo"] * 3
    assert len(calls) == 1
    assert batch.size == 6


@settings(max_examples=40, deadline=None)
@given(
    script=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["chat", "typing", "turn", "leave", "join", "again"]),
        ),
        max_size=30,
    )
)
async def test_every_member_sees_the_log_in_order_with_its_acks_in_place(script):
    """Whoever comes, goes and speaks: while one is in, it misses nothing and sees nothing twice."""
    async with GatewayServer(OPEN) as gateway:
        peers = [PeerClient(gateway, person(f"user{n}")) for n in range(3)]
        await gateway.sessions.create_session("lobby")
        inside = [False] * 3
        last: dict[int, GatewayMessage] = {}

        for who, act in script:
            peer = peers[who]
            if act == "chat":
                last[who] = create_message("chat", {"message": "x"}, "lobby")
                peer.send_message(last[who])
            elif act == "again" and who in last:
                peer.send_message(last[who])
            elif act == "typing":
                peer.send("presence", {"status": "typing"}, "lobby")
            elif act == "leave":
                peer.send("session_leave", {"sessionId": "lobby"})
                inside[who] = False
            elif act == "join":
                peer.send("session_join", {"sessionId": "lobby"})
                inside[who] = True
            else:
                await asyncio.sleep(0)
        await asyncio.gather(*(settled_into(peer) for peer in peers))

        for peer in peers:
            check_attachments(peer.messages)  # type: ignore[attr-defined]


async def settled_into(peer: PeerClient) -> None:
    peer.messages = await settled(peer)  # type: ignore[attr-defined]


def check_attachments(messages: list[GatewayMessage]) -> None:
    """Within each stretch between a join and a leave the numbers have no hole and no repeat."""
    expected: int | None = None
    for message in messages:
        data = message.data()
        if message.type == "session_info":
            if data["status"] == "joined":
                expected = data["next"] if expected is None else expected
            elif data["status"] == "left":
                expected = None
        elif message.type in ("chat", "ack") and not data.get("duplicate"):
            seq = message.seq or data["seq"]
            assert seq == expected
            expected = seq + 1
