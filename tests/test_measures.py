"""What the gateway counts of itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from peers import person

from trunkline.measures import LAG_INTERVAL, Histogram, LoopLag, Measures, Tally
from trunkline.messages import create_message, encode
from trunkline.testing import MemoryTransport, PeerClient


def test_a_tally_has_its_names_from_the_start():
    """What has no name there counts as other, so nobody's words make it grow."""
    tally = Tally(["chat"])

    for number in range(1000):
        tally.add(f"x{number}")
    tally.add("chat", 2)

    assert tally.seen() == {"chat": 2, "other": 1000}


def test_a_histogram_counts_an_observation_in_the_bucket_that_ends_at_it():
    """As Prometheus has it: a bound belongs to its bucket."""
    times = Histogram([0.1, 1.0])

    for seconds in (0.05, 0.1, 0.5, 3.0):
        times.observe(seconds)

    assert times.counts == [2, 1, 1]
    assert times.total == 3.65


def test_the_type_of_a_message_is_read_off_its_frame():
    """Without decoding it; an unknown one is other."""
    measures = Measures()

    measures.wrote(b'{"type":"chat","id":"1"}', 3)
    measures.wrote(b'{"type":"my.own","id":"1"}')

    assert measures.sent.seen() == {"chat": 3, "other": 1}


async def test_the_loop_s_lag_is_looked_at():
    """Until nobody wants it any more."""
    lag = LoopLag()
    assert lag.worst == 0.0

    with suppress(TimeoutError):
        async with asyncio.timeout(1.5 * LAG_INTERVAL):
            await lag.watch()

    assert sum(lag.times.counts) == 1
    assert lag.worst == lag.times.total


async def test_messages_are_counted_by_type_and_direction(guarded):
    """What comes once, what goes out once for each who gets it."""
    ada, bob = (PeerClient(guarded, person(name)) for name in ("ada", "bob"))
    await ada.ask("session_create", {"sessionId": "tea"})
    await bob.ask("session_join", {"sessionId": "tea"})

    await ada.ask("chat", {"message": "hello"}, "tea")
    await bob.next("chat")
    await ada.ask("my.own")

    received, sent = guarded.measures.received.seen(), guarded.measures.sent.seen()
    assert received == {"chat": 1, "other": 1, "session_create": 1, "session_join": 1}
    assert (sent["chat"], sent["ack"], sent["error"]) == (1, 1, 1)
    assert guarded.measures.errors.seen() == {"UNKNOWN_TYPE": 1}
    assert sum(guarded.measures.appends.counts) == 1
    assert guarded.sessions.recoveries == {"fresh": 2}


async def test_a_passing_client_disturbs_nobody(guarded):
    """No events, no presence, in no list; yet it may do what its role may."""
    seen: list[str] = []
    for name in ("client:connect", "client:auth", "client:disconnect", "session:join"):
        guarded.on(name, lambda *args, name=name: seen.append(name))
    ada = PeerClient(guarded, person("ada"))
    await ada.ask("session_create", {"sessionId": "tea"})
    del seen[:]
    client = guarded.on_connect(MemoryTransport(), identity=person("bob"), passing=True)

    for type, payload in (("session_join", None), ("chat", {"message": "hello"})):
        message = create_message(type, payload, "tea")
        guarded.on_message(client, encode(message).decode())
    told = await ada.next("chat")
    guarded.on_disconnect(client)

    assert told.sender.user_id == "bob"
    assert seen == []
    assert guarded.get_stats()["clients"] == 1
    assert not [m for m in ada.received() if m.type == "presence"]
