"""Sessions: members and limits, the log's order, and what ends them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import details_of, error_of, person, register

from trunkline.config import (
    AuthConfig,
    GatewayConfig,
    HistoryConfig,
    LimitsConfig,
    SessionsConfig,
)
from trunkline.errors import GatewayError
from trunkline.messages import GatewayMessage, create_message
from trunkline.server import GatewayServer
from trunkline.testing import MemoryTransport, PeerClient

OPEN = AuthConfig(mode="none")


async def create(peer: PeerClient, session_id: str, **payload) -> GatewayMessage:
    return await peer.ask("session_create", {"sessionId": session_id, **payload})


async def settled(peer: PeerClient) -> list[GatewayMessage]:
    """Everything that came, once nothing is queued for the peer any more."""
    last = peer.send("session_list")
    messages = []
    while not messages or messages[-1].reply_to != last:
        messages.append(await peer.next())
    return messages[:-1]


# From Python


async def test_the_manager_creates_finds_and_lists_sessions(gateway):
    """`create_session`, `get_session`, `get_all_sessions`."""
    session = await gateway.sessions.create_session("lobby", owner="ada", name="The lobby")

    assert gateway.sessions.get_session("lobby") is session
    assert gateway.sessions.get_all_sessions() == [session]
    assert (session.record.owner, session.record.name) == ("ada", "The lobby")


async def test_a_session_without_an_id_gets_one_that_cannot_be_guessed(gateway):
    """128 random bits, never the same."""
    ids = {(await gateway.sessions.create_session()).id for _ in range(100)}

    assert len(ids) == 100
    assert all(len(session_id) >= 22 for session_id in ids)


async def test_a_session_id_in_use_is_refused(gateway):
    """Creating never joins and never replaces."""
    await gateway.sessions.create_session("lobby", owner="ada")

    with pytest.raises(GatewayError, match="SESSION_EXISTS"):
        await gateway.sessions.create_session("lobby", owner="bob")

    assert gateway.sessions.get_record("lobby").owner == "ada"


async def test_a_session_id_must_have_the_grammar_of_an_id(gateway):
    """Otherwise nobody could name it."""
    with pytest.raises(ValueError, match="session id"):
        await gateway.sessions.create_session("no spaces")


async def test_clients_are_added_listed_and_removed(gateway):
    """`add_client`, `get_clients`, `remove_client`."""
    await gateway.sessions.create_session("lobby")
    peer = PeerClient(gateway)

    gateway.sessions.add_client("lobby", peer.client)
    inside = gateway.sessions.get_clients("lobby")
    removed = [gateway.sessions.remove_client("lobby", peer.client) for _ in range(2)]

    assert inside == [peer.client.id]
    assert removed == [True, False]
    assert gateway.sessions.get_clients("lobby") == []


async def test_a_client_cannot_be_added_to_a_session_that_is_not_there(gateway):
    """`SESSION_NOT_FOUND`."""
    with pytest.raises(GatewayError, match="SESSION_NOT_FOUND"):
        gateway.sessions.add_client("nowhere", PeerClient(gateway).client)


async def test_a_client_that_is_gone_cannot_become_a_member(gateway):
    """It would stay for good."""
    await gateway.sessions.create_session("lobby")
    peer = PeerClient(gateway)
    peer.disconnect()

    with pytest.raises(GatewayError, match="CLIENT_NOT_FOUND"):
        gateway.sessions.add_client("lobby", peer.client)

    assert gateway.sessions.get_clients("lobby") == []


# Pipelining


async def test_a_chat_pipelined_behind_a_create_is_stored(gateway):
    """Frames of one connection are handled in order, without waiting for answers."""
    peer = PeerClient(gateway)

    created = peer.send("session_create", {"sessionId": "lobby"})
    chat = peer.send("chat", {"message": "hi"}, "lobby")

    assert (await peer.next(reply_to=created)).data()["status"] == "created"
    assert (await peer.next(reply_to=chat)).data()["seq"] == 1


async def test_a_chat_pipelined_behind_a_join_is_stored(gateway):
    """The join has happened by the time the chat is judged."""
    owner, peer = PeerClient(gateway), PeerClient(gateway)
    await create(owner, "lobby")

    joined = peer.send("session_join", {"sessionId": "lobby"})
    chat = peer.send("chat", {"message": "hi"}, "lobby")

    assert (await peer.next(reply_to=joined)).data()["status"] == "joined"
    assert (await peer.next(reply_to=chat)).type == "ack"


async def test_a_chat_pipelined_behind_a_leave_is_refused(gateway):
    """What was sent before the leave is stored, what was sent after it is not."""
    peer = PeerClient(gateway)
    await create(peer, "lobby")

    before = peer.send("chat", {"message": "one"}, "lobby")
    left = peer.send("session_leave", {"sessionId": "lobby"})
    after = peer.send("chat", {"message": "two"}, "lobby")

    assert (await peer.next(reply_to=before)).type == "ack"
    assert (await peer.next(reply_to=left)).data()["status"] == "left"
    assert error_of(await peer.next(reply_to=after)) == "NOT_A_MEMBER"


async def test_answers_over_several_sessions_come_in_the_order_of_asking(gateway):
    """Acks, lists and leaves of one connection never overtake each other."""
    peer = PeerClient(gateway)
    await create(peer, "s1")
    await create(peer, "s2")
    await settled(peer)

    asked = [
        peer.send("chat", {"message": "1"}, "s1"),
        peer.send("chat", {"message": "2"}, "s2"),
        peer.send("chat", {"message": "3"}, "s1"),
        peer.send("session_list"),
        peer.send("wobble"),
        peer.send("session_leave", {"sessionId": "s1"}),
        peer.send("chat", {"message": "4"}, "s2"),
    ]
    answers = [await peer.next() for _ in asked]

    assert [a.reply_to for a in answers] == asked
    assert [a.type for a in answers] == [
        "ack", "ack", "ack", "session_list", "error", "session_info", "ack",
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from("12")), max_size=30)
)
async def test_any_mix_of_requests_is_answered_in_order(script):
    """Whatever is pipelined over two sessions: one answer each, in order; pongs may overtake."""
    async with GatewayServer(GatewayConfig(auth=OPEN)) as gateway:
        peer = PeerClient(gateway)
        await create(peer, "s1")
        await create(peer, "s2")
        peer.received()
        kinds = {
            "a": lambda s: peer.send("chat", {"message": "x"}, s),
            "b": lambda s: peer.send("session_join", {"sessionId": s}),
            "c": lambda s: peer.send("session_history", {"sessionId": s}),
        }

        asked = [kinds[kind](f"s{number}") for kind, number in script]
        answers = [m for m in await settled(peer) if m.reply_to is not None]

        assert [m.reply_to for m in answers] == asked


# The log


async def test_an_ack_says_where_the_message_is_stored(gateway):
    """Session, `seq`, epoch and durability."""
    peer = PeerClient(gateway)
    info = await create(peer, "lobby")

    ack = await peer.ask("chat", {"message": "hi"}, "lobby")

    assert ack.type == "ack"
    assert ack.data() == {
        "sessionId": "lobby",
        "seq": 1,
        "epoch": info.data()["epoch"],
        "durability": "memory",
        "runs": [],
    }


async def test_the_others_get_the_message_with_its_proven_sender_and_seq(gateway):
    """`from` is the gateway's stamp, and the payload goes byte for byte."""
    ada = PeerClient(gateway, person("ada"))
    bob = PeerClient(gateway, person("bob"))
    await ada.ask("connect", {"deviceId": "phone", "deviceName": "Ada's phone"})
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})

    ada.send_text(
        '{"type":"chat","id":"m1","sessionId":"lobby","trace":"00-abc","seq":77,'
        '"from":{"userId":"eve"},"payload":{"message":"hi" , "x": 1.50}}'
    )
    chat = await bob.next("chat")

    assert bytes(chat.payload) == b'{"message":"hi" , "x": 1.50}'
    assert (chat.id, chat.seq, chat.session_id, chat.trace) == ("m1", 1, "lobby", "00-abc")
    assert chat.addressed == []
    assert chat.timestamp > 1_600_000_000_000
    assert (chat.sender.user_id, chat.sender.client_id) == ("ada", ada.client.id)
    assert (chat.sender.role, chat.sender.kind) == ("webchat", "user")
    assert (chat.sender.device_id, chat.sender.device_name) == ("phone", "Ada's phone")


async def test_the_sender_gets_the_ack_in_the_place_of_its_message(gateway):
    """Acks and messages together are contiguous on every connection."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})
    await settled(ada)

    for number in range(20):
        (ada if number % 3 else bob).send("chat", {"message": str(number)}, "lobby")
        if number % 7 == 0:
            await asyncio.sleep(0)

    for peer in (ada, bob):
        seqs = [
            m.data()["seq"] if m.type == "ack" else m.seq
            for m in await settled(peer)
            if m.type in ("ack", "chat")
        ]
        assert seqs == list(range(1, 21))


async def test_the_same_message_twice_is_stored_once(gateway):
    """The second ack names the first place, and says that it is a duplicate."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})
    message = create_message("chat", {"message": "hi"}, "lobby")

    for _ in range(2):
        ada.send_message(message)
    first = await ada.next(reply_to=message.id)
    second = await ada.next(reply_to=message.id)
    ada.send_message(message)
    third = await ada.next(reply_to=message.id)

    assert first.data()["seq"] == second.data()["seq"] == third.data()["seq"] == 1
    assert "duplicate" not in first.data()
    assert second.data()["duplicate"] is third.data()["duplicate"] is True
    assert [m.type for m in await settled(bob) if m.seq] == ["chat"]


@pytest.mark.parametrize("apart", [False, True])
async def test_the_same_id_with_other_content_is_a_conflict(gateway, apart):
    """In one batch as well as later; nothing of it is stored."""
    ada = PeerClient(gateway)
    await create(ada, "lobby")

    ada.send("chat", {"message": "one"}, "lobby", id="m1")
    if apart:
        await ada.next("ack")
    ada.send("chat", {"message": "two"}, "lobby", id="m1")
    error = await ada.next("error")
    page = await ada.ask("session_history", {"sessionId": "lobby"})

    assert error_of(error) == "ID_CONFLICT"
    assert error.reply_to == "m1"
    assert [m["payload"]["message"] for m in page.data()["messages"]] == ["one"]


async def test_ids_of_different_users_and_sessions_do_not_meet(gateway):
    """The key is user, device, session and id: nobody can suppress another's message."""
    ada = PeerClient(gateway, person("ada"))
    bob = PeerClient(gateway, person("bob"))
    await create(ada, "s1")
    await create(ada, "s2")
    await bob.ask("session_join", {"sessionId": "s1"})

    acks = []
    for peer, session in ((ada, "s1"), (bob, "s1"), (ada, "s2")):
        peer.send("chat", {"message": f"by {peer.client.user_id}"}, session, id="same")
        acks.append((await peer.next(reply_to="same")).data())

    assert [a["seq"] for a in acks] == [1, 2, 1]
    assert not any(a.get("duplicate") for a in acks)


async def test_ids_of_different_devices_of_a_user_do_not_meet(gateway):
    """Two devices may number their messages alike."""
    phone, laptop = PeerClient(gateway), PeerClient(gateway)
    await phone.ask("connect", {"deviceId": "phone"})
    await laptop.ask("connect", {"deviceId": "laptop"})
    await create(phone, "lobby")
    await laptop.ask("session_join", {"sessionId": "lobby"})

    phone.send("chat", {"message": "p"}, "lobby", id="1")
    laptop.send("chat", {"message": "l"}, "lobby", id="1")

    seqs = {(await peer.next("ack")).data()["seq"] for peer in (phone, laptop)}
    assert seqs == {1, 2}


async def test_retention_forgets_ids_with_their_messages():
    """The window of dedupe is the retained log."""
    config = GatewayConfig(auth=OPEN, history=HistoryConfig(max_messages=2))
    async with GatewayServer(config) as gateway:
        peer = PeerClient(gateway)
        await create(peer, "lobby")
        for number in range(3):
            peer.send("chat", {"message": str(number)}, "lobby", id=f"m{number}")
            await peer.next("ack")

        await gateway.tick()
        peer.send("chat", {"message": "0"}, "lobby", id="m0")
        forgotten = await peer.next("ack")
        peer.send("chat", {"message": "2"}, "lobby", id="m2")
        known = await peer.next("ack")

        assert forgotten.data()["seq"] == 4
        assert known.data()["seq"] == 3


# Naming the session


async def test_the_payload_may_name_the_session_instead_of_the_envelope(gateway):
    """`sessionId` and `sessionKey` are the same."""
    peer = PeerClient(gateway)
    await create(peer, "lobby")

    for payload in ({"sessionId": "lobby"}, {"sessionKey": "lobby"}):
        assert (await peer.ask("chat", {"message": "hi", **payload})).type == "ack"


async def test_two_different_sessions_in_one_message_are_invalid(gateway):
    """The gateway does not choose."""
    peer = PeerClient(gateway)
    await create(peer, "lobby")

    answer = await peer.ask("chat", {"message": "hi", "sessionKey": "other"}, "lobby")

    assert error_of(answer) == "INVALID_MESSAGE"


async def test_no_session_where_one_is_needed_is_invalid(gateway):
    """`INVALID_MESSAGE`."""
    peer = PeerClient(gateway)

    assert error_of(await peer.ask("chat", {"message": "hi"})) == "INVALID_MESSAGE"
    assert error_of(await peer.ask("session_join", {})) == "INVALID_MESSAGE"


async def test_a_session_of_the_wrong_grammar_in_the_payload_is_an_invalid_payload(gateway):
    """In the envelope it is an invalid message."""
    peer = PeerClient(gateway)

    answer = await peer.ask("session_join", {"sessionId": "a b"})

    assert (error_of(answer), details_of(answer)) == ("INVALID_PAYLOAD", {"path": "$.sessionId"})


# Limits


def small(**limits) -> GatewayServer:
    return GatewayServer(GatewayConfig(auth=OPEN, limits=LimitsConfig(**limits)))


async def test_the_member_limit_counts_every_way_in():
    """Join, create with `joinIfExists`, and from Python; rejoining at the limit is fine."""
    async with small(members_per_session=2) as gateway:
        ada, bob, eve = (PeerClient(gateway) for _ in range(3))
        await create(ada, "lobby")
        await bob.ask("session_join", {"sessionId": "lobby"})

        refusals = [
            await eve.ask("session_join", {"sessionId": "lobby"}),
            await eve.ask("session_join", {"sessionId": "lobby", "tail": 5}),
            await create(eve, "lobby", joinIfExists=True),
        ]
        with pytest.raises(GatewayError, match="SESSION_FULL"):
            gateway.sessions.add_client("lobby", eve.client)

        assert [error_of(r) for r in refusals] == ["SESSION_FULL"] * 3
        again = await bob.ask("session_join", {"sessionId": "lobby"})
        assert again.data()["status"] == "joined"


async def test_a_hundred_parallel_joins_fill_the_session_exactly():
    """The limit is judged where the join happens."""
    async with small(members_per_session=10) as gateway:
        await gateway.sessions.create_session("lobby")
        peers = [PeerClient(gateway) for _ in range(100)]

        answers = await asyncio.gather(
            *(p.ask("session_join", {"sessionId": "lobby"}) for p in peers)
        )

        assert sum(a.type == "session_info" for a in answers) == 10
        assert len(gateway.sessions.get_clients("lobby")) == 10


async def test_a_connection_is_in_so_many_sessions_at_most():
    """`SESSION_LIMIT` on creating and on joining."""
    async with small(sessions_per_connection=2) as gateway:
        ada, bob = PeerClient(gateway), PeerClient(gateway)
        await create(bob, "third")
        await create(ada, "first")
        await create(ada, "second")

        created = await create(ada, "fourth")
        joined = await ada.ask("session_join", {"sessionId": "third"})

        assert [error_of(created), error_of(joined)] == ["SESSION_LIMIT"] * 2
        assert gateway.sessions.get_record("fourth") is None


async def test_a_user_owns_so_many_sessions_at_most_unless_it_is_the_owner():
    """The quota is the user's, over all connections."""
    async with small(sessions_per_user=2) as gateway:
        ada = [PeerClient(gateway, person("ada")) for _ in range(3)]
        owner = PeerClient(gateway, person("root", "control", own_quota=False))

        answers = [await create(peer, f"s{n}") for n, peer in enumerate(ada)]
        unlimited = [await create(owner, f"o{n}") for n in range(3)]

        assert [a.type for a in answers] == ["session_info", "session_info", "error"]
        assert error_of(answers[2]) == "SESSION_LIMIT"
        assert [a.type for a in unlimited] == ["session_info"] * 3


async def test_a_hundred_parallel_creates_have_one_owner(gateway):
    """The others are told that the id is in use."""
    peers = [PeerClient(gateway, person(f"user{n}")) for n in range(100)]

    answers = await asyncio.gather(*(create(p, "lobby") for p in peers))

    winners = [p for p, a in zip(peers, answers, strict=True) if a.type == "session_info"]
    assert len(winners) == 1
    assert {error_of(a) for a in answers if a.type == "error"} == {"SESSION_EXISTS"}
    assert gateway.sessions.get_record("lobby").owner == winners[0].client.user_id


# Time


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def timed(gateway):
    """A gateway whose sessions live by a clock of ours."""
    clock = Clock()
    gateway.sessions._clock = gateway._pump._clock = clock
    return gateway, clock


async def test_a_session_without_members_is_forgotten_after_the_grace_time(timed):
    """With memory history the record and the log go too."""
    gateway, clock = timed
    ada = PeerClient(gateway)
    await create(ada, "lobby")
    await ada.ask("session_leave", {"sessionId": "lobby"})

    clock.now += 599
    early = await gateway.sessions.cleanup()
    clock.now += 2
    late = await gateway.sessions.cleanup()

    assert (early, late) == (0, 1)
    assert gateway.sessions.get_all_sessions() == []
    assert error_of(await ada.ask("session_join", {"sessionId": "lobby"})) == "SESSION_NOT_FOUND"


async def test_a_session_with_members_is_never_forgotten(timed):
    """However long it is quiet."""
    gateway, clock = timed
    await create(PeerClient(gateway), "lobby")

    clock.now += 1e6

    assert await gateway.sessions.cleanup() == 0


async def test_a_closed_session_is_forgotten_after_the_grace_time_too(timed):
    """Nothing of it stays in memory for good."""
    gateway, clock = timed
    ada = PeerClient(gateway)
    await create(ada, "lobby")
    await ada.ask("session_close", {"sessionId": "lobby"})

    clock.now += 601
    await gateway.sessions.cleanup()

    assert gateway.sessions.get_record("lobby") is None


async def test_a_session_that_lost_its_members_comes_back_with_a_join(timed):
    """Within the grace time nothing is lost."""
    gateway, clock = timed
    ada = PeerClient(gateway)
    epoch = (await create(ada, "lobby")).data()["epoch"]
    await ada.ask("chat", {"message": "hi"}, "lobby")
    ada.disconnect()

    clock.now += 300
    back = PeerClient(gateway)
    since = {"epoch": epoch, "seq": 0}
    info = await back.ask("session_join", {"sessionId": "lobby", "since": since})

    assert info.data()["recovery"] == "resumed"
    assert (await back.next("chat")).seq == 1


async def test_members_of_a_quiet_session_are_told_its_head(timed):
    """After 25 s without a frame, so that a lost tail is noticed."""
    gateway, clock = timed
    ada = PeerClient(gateway)
    epoch = (await create(ada, "lobby")).data()["epoch"]
    await ada.ask("chat", {"message": "hi"}, "lobby")
    await settled(ada)

    clock.now += 24
    await gateway.tick()
    quiet = await settled(ada)
    clock.now += 1
    await gateway.tick()
    await gateway.tick()
    heads = [m.data() for m in await settled(ada) if m.type == "head"]

    assert quiet == []
    assert heads == [{"sessionId": "lobby", "epoch": epoch, "head": 1, "memberCount": 1}]


# The gateway's own messages


async def test_a_durable_broadcast_to_a_session_goes_through_its_log(gateway):
    """As the gateway's own, with a `seq`."""
    ada = PeerClient(gateway)
    await create(ada, "lobby")

    count = gateway.broadcast_to_session("lobby", create_message("chat", {"message": "hear!"}))
    chat = await ada.next("chat")

    assert count == 1
    assert (chat.seq, chat.sender.kind) == (1, "gateway")


async def test_an_ephemeral_broadcast_to_a_session_may_leave_one_out(gateway):
    """It is in no log; the count is of those who get it."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})
    await settled(ada)

    count = gateway.broadcast_to_session("lobby", create_message("note", {"x": 1}), ada.client.id)
    note = await bob.next("note")

    assert (count, note.seq, note.session_id) == (1, None, "lobby")
    assert [m.type for m in await settled(ada)] == []


async def test_a_durable_broadcast_cannot_leave_one_out(gateway):
    """The log is the same for all."""
    ada = PeerClient(gateway)
    await create(ada, "lobby")

    with pytest.raises(ValueError, match="every member"):
        gateway.broadcast_to_session("lobby", create_message("chat", {}), ada.client.id)


async def test_a_broadcast_to_an_unknown_session_reaches_nobody(gateway):
    """It is not an error."""
    assert gateway.broadcast_to_session("nowhere", create_message("note")) == 0


async def test_an_ephemeral_frame_waits_for_the_appends_before_it(gateway):
    """All frames of a session leave through one queue."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})
    await settled(bob)

    ada.send("chat", {"message": "1"}, "lobby")
    ada.send("presence", {"status": "typing"}, "lobby")
    ada.send("chat", {"message": "2"}, "lobby")
    await settled(ada)

    assert [m.type for m in await settled(bob)] == ["chat", "presence", "chat"]


async def test_a_client_that_never_reads_gets_nothing_more_once_it_is_closed(gateway):
    """Writing to a closed pipe drops."""
    ada, bob = PeerClient(gateway), PeerClient(gateway)
    await create(ada, "lobby")
    await bob.ask("session_join", {"sessionId": "lobby"})
    assert isinstance(bob.transport, MemoryTransport)

    bob.disconnect()
    sent = len(bob.transport.sent)
    await ada.ask("chat", {"message": "hi"}, "lobby")

    assert len(bob.transport.sent) == sent
    assert gateway.sessions.get_clients("lobby") == [ada.client.id]


async def test_an_assigned_agent_counts_towards_no_limit_of_its_connection():
    """It is in as many sessions as others assign it to."""
    async with small(sessions_per_connection=1) as gateway:
        bot = PeerClient(gateway, person("bot", "node"))
        await register(bot, "helper")

        for n in range(3):
            await create(PeerClient(gateway), f"s{n}", agentId="helper")
        await settled(bot)

        assert sorted(bot.client.sessions) == ["s0", "s1", "s2"]


async def test_a_grace_of_zero_forgets_at_the_next_tick():
    """The configuration decides how long."""
    config = GatewayConfig(auth=OPEN, sessions=SessionsConfig(grace=0))
    async with GatewayServer(config) as gateway:
        ada = PeerClient(gateway)
        await create(ada, "lobby")
        await ada.ask("session_leave", {"sessionId": "lobby"})

        await gateway.tick()

        assert gateway.sessions.get_record("lobby") is None
