"""The SDK's client against a real gateway, over real sockets that break."""

import asyncio

import pytest
from lossy import LossyLine
from websockets.asyncio.server import serve

import trunkline.sdk as trunkline
from trunkline.config import AuthConfig, LimitsConfig, OriginConfig, WebSocketTransportConfig
from trunkline.messages import create_message, decode_message, encode
from trunkline.payloads import Cursor
from trunkline.sdk.connection import State
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "a-token-that-is-long-enough-for-a-test"


def config(**fields):
    """A gateway that answers behind a proxy, and takes messages as fast as they come."""
    fields.setdefault("auth", AuthConfig(token=TOKEN))
    return WebSocketTransportConfig(
        port=0,
        origins=OriginConfig(allowed_hosts=("127.0.0.1:*",)),
        limits=LimitsConfig(publish_rate=1e6, publish_burst=100_000),
        **fields,
    )


def limited(**limits):
    """A gateway that takes messages only so fast."""
    return WebSocketTransportConfig(
        port=0,
        auth=AuthConfig(token=TOKEN),
        origins=OriginConfig(allowed_hosts=("127.0.0.1:*",)),
        limits=LimitsConfig(**limits),
    )


@pytest.fixture
async def gateway():
    async with WebSocketGateway(config()) as gateway:
        yield gateway


@pytest.fixture
async def line(gateway):
    async with LossyLine(gateway.port) as line:
        yield line


def url(gateway):
    return f"http://127.0.0.1:{gateway.port}"


def connect(gateway, **options):
    return trunkline.connect(url(gateway), **{"token": TOKEN, **options})


async def read(session, count):
    """Return the next `count` messages of the log."""
    found = []
    while len(found) < count:
        message = await anext(session)
        if message.seq is not None:
            found.append(message)
    return found


async def wait_for(client, state):
    """Wait until a client reaches a state."""
    reached = asyncio.Event()
    stop = client.on_state(lambda now: now is state and reached.set())
    if client.state is not state:
        await reached.wait()
    stop()


class TestSigningIn:
    async def test_a_token_is_enough(self, gateway):
        """Opening a client signs in, and tells who is there."""
        async with connect(gateway, device_name="Ada's laptop") as client:
            assert client.state is State.CONNECTED
            assert client.hello.protocol_version == 1
            assert client.client_id
            assert await client.ping() >= 0

    async def test_a_wrong_token_is_a_typed_error(self, gateway):
        """A refused credential is reported at once, not tried again."""
        client = connect(gateway, token="wrong" * 8)

        with pytest.raises(trunkline.SignInFailed) as caught:
            await client.open()

        assert caught.value.code == "AUTH_FAILED"
        assert client.state is State.CLOSED

    async def test_a_missing_credential_is_a_typed_error(self, gateway):
        """A gateway that asks for a credential is not asked twice without one."""
        with pytest.raises(trunkline.SignInFailed) as caught:
            await connect(gateway, token=None).open()

        assert caught.value.code == "AUTH_REQUIRED"

    async def test_a_password_signs_in(self):
        """The password travels in the auth frame."""
        auth = AuthConfig(mode="password", password="correct horse battery")
        async with (
            WebSocketGateway(config(auth=auth)) as gateway,
            connect(gateway, token=None, password="correct horse battery") as client,
        ):
            assert client.state is State.CONNECTED

    async def test_no_gateway_is_a_typed_error(self):
        """Nothing listening there is reported once the patience is used up."""
        client = trunkline.connect("ws://127.0.0.1:9", open_timeout=0)

        with pytest.raises(trunkline.ConnectionLost):
            await client.open()

    async def test_an_open_timeout_waits_for_a_gateway_that_comes(self, gateway, line):
        """A gateway that starts a moment later is waited for."""
        line.refuse()
        client = trunkline.connect(line.url, token=TOKEN, open_timeout=20)
        opening = asyncio.create_task(client.open())
        await line.tried(2)

        line.accept()
        await opening

        assert client.state is State.CONNECTED
        await client.close()

    async def test_a_redirect_is_not_followed(self):
        """A redirecting host does not get the token sent elsewhere."""
        asked = []

        async def trap(reader, writer):
            asked.append(await reader.read(4096))
            writer.close()

        catcher = await asyncio.start_server(trap, "127.0.0.1", 0)
        there = catcher.sockets[0].getsockname()[1]

        async def redirect(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            target = f"ws://127.0.0.1:{there}/ws"
            head = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            await writer.drain()
            writer.close()

        async with catcher, await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = trunkline.connect(f"ws://127.0.0.1:{port}", token=TOKEN)
            with pytest.raises(trunkline.ConnectionLost) as caught:
                await client.open()

        assert caught.value.code == 302
        assert asked == []

    async def test_another_kind_of_server_is_a_typed_error(self):
        """A WebSocket server that speaks something else is not tried for ever."""

        async def hello(socket):
            await socket.send("welcome to the echo server")
            await socket.wait_closed()

        async with serve(hello, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(trunkline.ConnectionLost, match="no Trunkline gateway"):
                await trunkline.connect(f"ws://127.0.0.1:{port}").open()


class TestSessions:
    async def test_two_clients_read_the_same_in_the_same_order(self, gateway):
        """Everybody gets everything, one's own messages in their place."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")

            await asyncio.gather(
                *(with_ada.send(f"a{i}") for i in range(20)),
                *(with_bob.send(f"b{i}") for i in range(20)),
            )
            hers, his = await read(with_ada, 40), await read(with_bob, 40)

        assert [(m.seq, m.text) for m in hers] == [(m.seq, m.text) for m in his]
        assert [m.seq for m in hers] == list(range(1, 41))
        assert [m.text for m in hers if m.text[0] == "a"] == [f"a{i}" for i in range(20)]

    async def test_ones_own_messages_look_like_the_others_see_them(self, gateway):
        """What the acknowledgement stands for has the sender that members see."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")

            await with_ada.send("hi")
            (own,), (seen,) = await read(with_ada, 1), await read(with_bob, 1)

        assert own.sender == seen.sender
        assert own.sender.device_id == ada.device_id
        assert (own.id, own.author, own.data()) == (seen.id, "owner", seen.data())

    async def test_an_acknowledgement_says_where_it_is(self, gateway):
        """`send` returns the place in the log, and that nobody will answer."""
        async with connect(gateway) as client:
            session = await client.join("lobby")

            ack = await session.send("hi")

        assert (ack.seq, ack.runs) == (1, [])

    async def test_a_chat_without_agents_has_no_events(self, gateway):
        """The loop over the answers ends where nobody answers."""
        async with connect(gateway) as client:
            session = await client.join("lobby")

            events = [event async for event in session.chat("anybody?")]

        assert events == []

    async def test_the_tail_is_replayed(self, gateway):
        """Who comes late may ask for the last messages."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada = await ada.join("lobby")
            for text in ("one", "two", "three"):
                await with_ada.send(text)

            with_bob = await bob.join("lobby", tail=2)

            assert [m.text for m in await read(with_bob, 2)] == ["two", "three"]

    async def test_reading_goes_on_where_it_stopped(self, gateway):
        """A stored position resumes the log behind it."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada = await ada.join("lobby")
            acks = [await with_ada.send(text) for text in ("one", "two", "three")]

            since = Cursor(epoch=acks[0].epoch, seq=1)
            with_bob = await bob.join("lobby", since=since)

            assert [m.text for m in await read(with_bob, 2)] == ["two", "three"]

    async def test_a_position_of_another_log_is_reported(self, gateway):
        """A `reset` comes before the messages that it is about."""
        async with connect(gateway) as client, connect(gateway) as other:
            await (await client.join("lobby")).send("one")

            session = await other.join("lobby", since=Cursor(epoch="old", seq=9))
            reset, message = await anext(session), await anext(session)

        assert reset.type == "reset"
        assert reset.data()["reason"] == "epoch"
        assert (message.seq, message.text) == (1, "one")

    async def test_a_session_that_must_exist_is_not_made(self, gateway):
        """With create=False an unknown session is an error."""
        async with connect(gateway) as client:
            with pytest.raises(trunkline.RequestFailed) as caught:
                await client.join("nowhere", create=False)

            assert caught.value.code == "SESSION_NOT_FOUND"
            assert await client.sessions() == []

    async def test_a_session_without_an_id_gets_one(self, gateway):
        """Made sessions are listed with what they were made with."""
        async with connect(gateway) as client:
            session = await client.create(name="Plans", metadata={"topic": "tea"})

            listed = await client.sessions()

        assert [(entry.session_id, entry.name) for entry in listed] == [(session.id, "Plans")]
        assert session.info.metadata == {"topic": "tea"}

    async def test_a_patch_reaches_everybody(self, gateway):
        """Settings change for all members, and stand in the log."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")

            info = await with_ada.patch(name="Tea room", metadata={"kettle": "on"})
            (change,) = await read(with_bob, 1)

        assert info.metadata == {"kettle": "on"}
        assert change.data()["status"] == "patched"
        assert with_bob.info.name == "Tea room"

    async def test_members_come_and_go(self, gateway):
        """The member list follows presence."""
        async with connect(gateway) as ada:
            with_ada = await ada.join("lobby")
            async with connect(gateway) as bob:
                await bob.join("lobby")
                await anext(with_ada)
                both = {m.client_id for m in with_ada.members}
                bob_id = bob.client_id
            await anext(with_ada)

            alone = {m.client_id for m in with_ada.members}

        assert both == {ada.client_id, bob_id}
        assert alone == {ada.client_id}

    async def test_typing_is_seen(self, gateway):
        """Presence is relayed with the sender's own identity."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada = await ada.join("lobby")
            with_bob = await bob.join("lobby")
            await anext(with_ada)

            with_bob.presence("typing")
            seen = await anext(with_ada)

        assert (seen.type, seen.data()["status"]) == ("presence", "typing")
        assert seen.sender.client_id == bob.client_id

    async def test_history_is_read_in_pages(self, gateway):
        """Pages go both ways and say whether there is more."""
        async with connect(gateway) as client:
            session = await client.join("lobby")
            for i in range(5):
                await session.send(str(i))

            last = await session.history(limit=2)
            first = await session.history(after=0, limit=2)

        assert ([m.text for m in last.messages], last.more) == (["3", "4"], True)
        assert ([m.text for m in first.messages], first.head) == (["0", "1"], 5)

    async def test_leaving_ends_the_reading(self, gateway):
        """The loop over a session that was left comes to its end."""
        async with connect(gateway) as client:
            session = await client.join("lobby")
            await session.send("bye")

            await session.leave()

            assert [m.text async for m in session] == ["bye"]

    async def test_closing_ends_it_for_everybody(self, gateway):
        """Members of a closed session read its end and no more."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")

            await with_ada.close()

            assert [m.data()["status"] async for m in with_bob] == ["closed"]

    async def test_a_message_above_the_limit_is_refused_here(self, gateway):
        """It would cost the connection; so it is an error and nothing is sent."""
        async with connect(gateway) as client:
            session = await client.join("lobby")

            with pytest.raises(trunkline.RequestFailed) as caught:
                await session.send("x" * 2_000_000)

            assert caught.value.code == "MESSAGE_TOO_LARGE"
            assert (await session.send("still here")).seq == 1

    async def test_a_broadcast_reaches_callbacks(self, gateway):
        """Messages outside sessions go to the callbacks of their type."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            heard = asyncio.get_running_loop().create_future()
            bob.on("broadcast", heard.set_result)

            delivered = await ada.broadcast({"tea": "ready"})
            message = await heard

        assert delivered == 1
        assert message.data()["message"] == {"tea": "ready"}


class TestLosses:
    async def test_comes_back_and_misses_nothing(self, gateway, line):
        """What was said during an absence is read after it, once and in order."""
        async with connect(gateway) as ada, trunkline.connect(line.url, token=TOKEN) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")
            await with_ada.send("before")
            line.refuse()
            await wait_for(bob, State.RECONNECTING)
            await with_ada.send("meanwhile")

            line.accept()
            read_by_bob = await read(with_bob, 2)

        assert [m.text for m in read_by_bob] == ["before", "meanwhile"]

    async def test_a_message_whose_acknowledgement_was_lost_is_stored_once(self, gateway, line):
        """It is sent again under its id, and the gateway knows it."""
        async with connect(gateway) as ada, trunkline.connect(line.url, token=TOKEN) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")
            line.stall()
            sending = asyncio.create_task(with_bob.send("once"))
            await read(with_ada, 1)

            line.cut()
            line.flow()
            ack = await sending
            await with_bob.send("next")

            assert (ack.seq, ack.duplicate) == (1, True)
            assert [m.text for m in await read(with_bob, 2)] == ["once", "next"]
            assert (await with_ada.history()).head == 2

    async def test_what_is_said_while_away_is_sent_in_order(self, gateway, line):
        """The outbox keeps messages until there is a connection, and their order."""
        async with connect(gateway) as ada, trunkline.connect(line.url, token=TOKEN) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")
            line.refuse()
            await wait_for(bob, State.RECONNECTING)
            sending = [asyncio.create_task(with_bob.send(str(i))) for i in range(10)]

            line.accept()
            await asyncio.gather(*sending)

            assert [m.text for m in await read(with_ada, 10)] == [str(i) for i in range(10)]

    async def test_many_cuts_lose_and_repeat_nothing(self, gateway, line):
        """Under traffic and resets everybody reads every message exactly once."""
        async with connect(gateway) as ada, trunkline.connect(line.url, token=TOKEN) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")

            async def talk(session, name):
                for i in range(60):
                    await session.send(f"{name}{i}")

            async def disturb():
                for _ in range(4):
                    await read(with_ada, 15)
                    line.cut()
                    await wait_for(bob, State.CONNECTED)

            await asyncio.gather(talk(with_ada, "a"), talk(with_bob, "b"), disturb())
            await read(with_ada, 60)
            log = await with_ada.history(after=0, limit=300)
            by_bob = await read(with_bob, 120)

        assert [m.text for m in by_bob] == [m.text for m in log.messages]
        assert sorted(m.text for m in by_bob) == sorted(f"{n}{i}" for n in "ab" for i in range(60))

    async def test_a_forgotten_session_is_a_reset_and_nothing_is_sent_twice(self):
        """After a restart without the log, what was sent but not acknowledged is unknown."""
        first = WebSocketGateway(config())
        await first.start()
        async with LossyLine(first.port) as line, trunkline.connect(line.url, token=TOKEN) as bob:
            session = await bob.join("lobby")
            await session.send("kept?")
            line.stall()
            lost = asyncio.create_task(session.send("lost?"))
            async with connect(first) as ada:
                await read(await ada.join("lobby", tail=2), 2)
            line.refuse()
            line.flow()
            await wait_for(bob, State.RECONNECTING)
            waiting = asyncio.create_task(session.send("not sent yet"))
            await first.stop()

            async with WebSocketGateway(config()) as second:
                line.redirect(second.port)
                with pytest.raises(trunkline.OutcomeUnknown):
                    await lost
                ack = await waiting
                seen = [await anext(session) for _ in range(3)]

        assert ack.seq == 1
        assert [m.type for m in seen] == ["chat", "reset", "chat"]
        assert seen[2].text == "not sent yet"

    async def test_an_interrupted_request_is_not_repeated(self, gateway, line):
        """A request that may have reached an agent ends as unknown."""
        agent = trunkline.Agent("slow")
        begun = asyncio.Event()
        calls = []

        @agent.tool
        async def wait() -> None:
            calls.append(1)
            begun.set()
            await asyncio.Event().wait()

        async with (
            agent.serving(url(gateway), token=TOKEN),
            trunkline.connect(line.url, token=TOKEN) as client,
        ):
            asking = asyncio.create_task(client.request(capability="wait"))
            await begun.wait()

            line.cut()
            with pytest.raises(trunkline.OutcomeUnknown):
                await asking
            await wait_for(client, State.CONNECTED)
            await client.ping()

        assert calls == [1]

    async def test_an_idempotent_request_is_repeated(self, gateway, line):
        """What may be carried out twice is asked again on the new connection."""
        agent = trunkline.Agent("worker")
        begun, calls = asyncio.Event(), []

        @agent.tool
        async def work() -> int:
            calls.append(1)
            begun.set()
            if len(calls) == 1:
                await asyncio.Event().wait()
            return len(calls)

        async with (
            agent.serving(url(gateway), token=TOKEN),
            trunkline.connect(line.url, token=TOKEN) as client,
        ):
            asking = asyncio.create_task(client.request(capability="work", idempotent=True))
            await begun.wait()
            line.cut()

            assert await asking == 2

    async def test_too_much_at_a_time_goes_out_slower(self):
        """What the gateway refuses for being too fast is stored later, in order, and raises nothing."""
        texts = [str(n) for n in range(30)]
        async with (
            WebSocketGateway(limited(publish_rate=100, publish_burst=10)) as gateway,
            trunkline.connect(url(gateway), token=TOKEN) as client,
            trunkline.connect(url(gateway), token=TOKEN) as reader,
        ):
            session = await client.join("lobby")
            acks = await asyncio.gather(*map(session.send, texts))
            page = await (await reader.join("lobby")).history()

        assert [message.text for message in page.messages] == texts
        assert [ack.seq for ack in acks] == list(range(1, 31))

    async def test_a_session_joined_again_is_the_same(self, line):
        """Twice at once, or while the connection is away: there is one session, and it is read on."""
        async with trunkline.connect(line.url, token=TOKEN) as client:
            session, same = await asyncio.gather(client.join("lobby"), client.join("lobby"))
            line.refuse()
            await wait_for(client, State.RECONNECTING)
            joining = asyncio.create_task(client.join("lobby"))
            line.accept()
            again = await joining

            await again.send("hi")
            assert session is same is again
            assert (await read(session, 1))[0].text == "hi"

    async def test_joining_waits_no_longer_than_a_request(self, line):
        """A session that cannot be joined again in time is a typed error."""
        async with trunkline.connect(line.url, token=TOKEN, request_timeout=0.05) as client:
            await client.join("lobby")
            line.refuse()
            await wait_for(client, State.RECONNECTING)

            with pytest.raises(trunkline.TimedOut):
                await client.join("lobby")

    async def test_the_next_joins_where_the_first_has_given_up(self, gateway):
        """Who waits for somebody else's join does it itself if that is cancelled."""
        async with connect(gateway) as client:
            first, second = (asyncio.create_task(client.join("lobby")) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()

            assert (await second).attached

    async def test_much_that_waits_for_a_connection_keeps_its_order(self):
        """More than the gateway's burst, sent while the connection is away, is stored in order."""
        texts = [str(n) for n in range(60)]
        async with (
            WebSocketGateway(limited(publish_rate=200, publish_burst=10)) as gateway,
            LossyLine(gateway.port) as line,
            trunkline.connect(line.url, token=TOKEN) as client,
            trunkline.connect(url(gateway), token=TOKEN) as reader,
        ):
            session = await client.join("lobby")
            line.refuse()
            await wait_for(client, State.RECONNECTING)
            sending = asyncio.gather(*map(session.send, texts))
            line.accept()
            await sending
            page = await (await reader.join("lobby")).history(limit=100)

        assert [message.text for message in page.messages] == texts

    async def test_a_rate_below_one_is_told_as_it_is(self):
        """A gateway that takes a message in ten seconds says so, and the client goes by it."""
        async with (
            WebSocketGateway(limited(publish_rate=0.1, stream_rate=0.4)) as gateway,
            trunkline.connect(url(gateway), token=TOKEN) as client,
        ):
            limits = client.hello.limits
            await (await client.join("lobby")).send("hi")

        assert (limits["publishRate"], limits["streamRate"]) == (0.1, 0.4)

    async def test_a_line_that_falls_silent_is_given_up(self, line, monkeypatch):
        """A gateway that answers nothing any more is connected to anew."""
        async with trunkline.connect(line.url, token=TOKEN) as client:
            before = client.client_id
            monkeypatch.setattr("trunkline.sdk.sockets.QUIET", 0.05)
            monkeypatch.setattr("trunkline.sdk.sockets.PONG_TIMEOUT", 0.05)
            await client.ping()

            line.stall()
            await wait_for(client, State.RECONNECTING)
            line.flow()
            await wait_for(client, State.CONNECTED)

            assert client.client_id != before

    async def test_a_quiet_line_is_kept(self, line, monkeypatch):
        """A gateway that answers when it is asked is not left."""
        async with trunkline.connect(line.url, token=TOKEN) as client:
            before, states = client.client_id, []
            client.on_state(states.append)
            monkeypatch.setattr("trunkline.sdk.sockets.QUIET", 0.01)
            await client.ping()

            await asyncio.sleep(0.1)  # several times the patience with a quiet line

            assert (client.client_id, states) == (before, [])

    async def test_states_are_told(self, gateway, line):
        """A callback sees connecting, connected, reconnecting, connected, closed."""
        client = trunkline.connect(line.url, token=TOKEN)
        states = []
        client.on_state(states.append)

        await client.open()
        line.cut()
        await wait_for(client, State.RECONNECTING)
        await wait_for(client, State.CONNECTED)
        await client.close()

        assert states == ["connecting", "connected", "reconnecting", "connected", "closed"]

    async def test_a_kick_is_final(self, gateway):
        """A close code that says so ends the client and everything that waits on it."""
        async with connect(gateway) as client:
            session = await client.join("lobby")
            reading = asyncio.create_task(anext(session))

            gateway.kick_client(client.client_id)

            with pytest.raises(trunkline.ConnectionLost) as caught:
                await client.closed()
            with pytest.raises(trunkline.ConnectionLost):
                await reading
            with pytest.raises(trunkline.ConnectionLost):
                await session.send("too late")
            assert caught.value.code == 4004

    async def test_closing_the_client_ends_its_loops(self, gateway):
        """A loop over a session ends quietly when the client is closed on purpose."""
        client = connect(gateway)
        await client.open()
        session = await client.join("lobby")
        reading = asyncio.create_task(_all(session))
        await asyncio.sleep(0)

        await client.close()

        assert await reading == []


async def _all(session):
    return [message async for message in session]


class TestSlowReaders:
    async def test_one_who_does_not_read_loses_nothing(self, gateway):
        """More than fits the queue is fetched again from the log, in order."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")
            for start in range(0, 2_500, 250):
                await asyncio.gather(*(with_ada.send(str(start + i)) for i in range(250)))

            texts = [m.text for m in await read(with_bob, 2_500)]

        assert texts == [str(i) for i in range(2_500)]

    async def test_one_who_does_not_read_still_gets_answers(self, gateway):
        """A full session holds up neither requests nor other sessions."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada = await ada.join("lobby")
            await bob.join("lobby")
            for _ in range(5):
                await asyncio.gather(*(with_ada.send("noise") for _ in range(250)))

            other = await bob.join("quiet")
            ack = await other.send("heard")

        assert ack.seq == 1

    async def test_sending_from_within_the_loop_never_blocks_it(self, gateway):
        """Who answers each message while a flood comes in gets through."""
        async with connect(gateway) as ada, connect(gateway) as bob:
            with_ada, with_bob = await ada.join("lobby"), await bob.join("lobby")
            echo = await bob.join("echo")

            async def flood():
                for _ in range(6):
                    await asyncio.gather(*(with_ada.send("x") for _ in range(250)))

            flooding = asyncio.create_task(flood())
            for _ in range(1_500):
                await read(with_bob, 1)
                last = await echo.send("y")
            await flooding

        assert last.seq == 1_500


class TestRestarts:
    async def test_a_restarted_client_continues(self, gateway, tmp_path):
        """With a state file the next process reads on behind the last message it took."""
        path = tmp_path / "state.json"
        async with connect(gateway, state_file=path) as bob:
            session = await bob.join("lobby")
            await session.send("one")
            await read(session, 1)
            device = bob.device_id
        async with connect(gateway) as ada:
            await (await ada.join("lobby")).send("two")

        async with connect(gateway, state_file=path) as bob:
            (message,) = await read(await bob.join("lobby"), 1)

        assert (message.text, bob.device_id) == ("two", device)

    async def test_an_unacknowledged_message_survives_the_process(self, gateway, line, tmp_path):
        """What was sent without an answer is sent again by the next process, and stored once."""
        path = tmp_path / "state.json"
        bob = trunkline.connect(line.url, token=TOKEN, state_file=path)
        await bob.open()
        session = await bob.join("lobby")
        async with connect(gateway) as ada:
            with_ada = await ada.join("lobby")
            line.stall()
            sending = asyncio.create_task(session.send("stored"))
            await read(with_ada, 1)
            line.refuse()
            await wait_for(bob, State.RECONNECTING)
            unsent = asyncio.create_task(session.send("not yet"))
            await asyncio.sleep(0)
            crashed = tmp_path / "as the crash left it.json"
            crashed.write_bytes(path.read_bytes())

            async with connect(gateway, state_file=crashed) as again:
                texts = [m.text for m in await read(await again.join("lobby"), 2)]
                head = (await with_ada.history()).head
            await bob.close()
            ends = await asyncio.gather(sending, unsent, return_exceptions=True)

        assert texts == ["stored", "not yet"]
        assert head == 2
        assert [type(end) for end in ends] == [trunkline.OutcomeUnknown, trunkline.ConnectionLost]


class TestRefusals:
    async def test_a_refused_message_is_an_error_and_the_next_one_goes(self, gateway):
        """The gateway's reason reaches who sent it, with the place in the payload."""
        async with connect(gateway) as client:
            session = await client.join("lobby")

            with pytest.raises(trunkline.RequestFailed) as caught:
                await session.publish("chat", {"message": 5})
            ack = await session.send("better")

        assert caught.value.code == "INVALID_PAYLOAD"
        assert caught.value.details["path"] == "$.message"
        assert ack.seq == 1

    async def test_no_agent_is_an_error(self, gateway):
        """Nobody who fits is a retryable failure."""
        async with connect(gateway) as client:
            with pytest.raises(trunkline.RequestFailed) as caught:
                await client.request(capability="tea")

        assert caught.value.code == "AGENT_NOT_FOUND"
        assert caught.value.retryable


HELLO = {
    "paired": False,
    "uptime": 1,
    "stateVersion": 1,
    "presence": [],
    "health": {"status": "ok", "checkedAt": 1},
    "authRequired": False,
    "protocolVersion": 1,
    "serverVersion": "0",
    "clientId": "c1",
    "features": [],
    "limits": {},
    "heartbeatIntervalMs": 25_000,
}


class TestGaps:
    @pytest.mark.parametrize("sign", ["head", "hole"])
    async def test_what_is_missing_is_fetched(self, sign):
        """A head or a number beyond the next makes the client join again where it was."""
        joins = []

        async def forgetful(socket):
            """A gateway that does not deliver message 1 the first time."""

            async def say(type, payload, reply_to=None, seq=None):
                message = create_message(type, payload, "s", reply_to=reply_to)
                message.seq = seq
                await socket.send(encode(message), text=True)

            await say("session_info", {"sessionId": "c1", "status": "connected"})
            async for raw in socket:
                asked = decode_message(raw)
                if asked.type == "connect":
                    await say("hello_ok", HELLO, asked.id)
                elif asked.type == "session_join":
                    joins.append(asked.data().get("since"))
                    info = {"sessionId": "s", "status": "joined", "epoch": "e", "next": 1}
                    if len(joins) == 1:
                        info |= {"head": 0, "recovery": "fresh"}
                        await say("session_info", info, asked.id)
                        if sign == "head":
                            await say("head", {"sessionId": "s", "epoch": "e", "head": 2})
                    else:
                        info |= {"head": 2, "recovery": "resumed"}
                        await say("session_info", info, asked.id)
                        await say("chat", {"message": "one"}, seq=1)
                    if len(joins) > 1 or sign == "hole":
                        await say("chat", {"message": "two"}, seq=2)

        async with serve(forgetful, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with trunkline.connect(f"ws://127.0.0.1:{port}") as client:
                session = await client.join("s")
                texts = [m.text for m in await read(session, 2)]

        assert texts == ["one", "two"]
        assert joins == [None, {"epoch": "e", "seq": 0}]
