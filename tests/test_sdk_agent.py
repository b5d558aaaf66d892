"""The SDK's agents against a real gateway, over real sockets."""

import asyncio
import sys
import threading

import pytest
from lossy import LossyLine

import trunkline.sdk as trunkline
from trunkline.config import AuthConfig, LimitsConfig, OriginConfig, WebSocketTransportConfig
from trunkline.payloads import RoutePolicy
from trunkline.sdk.connection import State
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "a-token-that-is-long-enough-for-a-test"


def config(heartbeat_interval=25.0, heartbeat_timeout=8.0, **limits):
    return WebSocketTransportConfig(
        heartbeat_interval=heartbeat_interval,
        heartbeat_timeout=heartbeat_timeout,
        port=0,
        auth=AuthConfig(token=TOKEN),
        origins=OriginConfig(allowed_hosts=("127.0.0.1:*",)),
        limits=LimitsConfig(**limits),
    )


@pytest.fixture
async def gateway():
    async with WebSocketGateway(config()) as gateway:
        yield gateway


def url(gateway):
    return f"ws://127.0.0.1:{gateway.port}"


@pytest.fixture
async def client(gateway):
    async with trunkline.connect(url(gateway), token=TOKEN) as client:
        yield client


@pytest.fixture
def agent():
    return trunkline.Agent("demo", name="The demo", sessions=["lobby"])


def serving(agent, gateway, **options):
    return agent.serving(url(gateway), token=TOKEN, **options)


def serving_at(agent, address):
    return agent.serving(address, token=TOKEN)


async def answer(session, text):
    """Say something and return how the answer ended."""
    events = [event async for event in session.chat(text)]
    return events[-1]


class TestChat:
    async def test_text_streams_to_who_asked(self, agent, gateway, client):
        """What the handler yields arrives as it is yielded, and whole at the end."""
        go_on = asyncio.Event()

        @agent.on_chat
        async def reply(ctx, message):
            yield "You said "
            await go_on.wait()
            yield message.text

        async with serving(agent, gateway):
            session = await client.join("lobby")
            events = []
            async for event in session.chat("hi"):
                events.append(event)
                go_on.set()

        assert [e.text for e in events[:-1]] == ["You said ", "hi"]
        end = events[-1]
        assert (end.content, end.status, end.agent_id) == ("You said hi", "ok", "demo")

    async def test_a_coroutine_may_return_the_whole_text(self, agent, gateway, client):
        """A handler that does not stream is as good."""

        @agent.on_chat
        async def reply(ctx, message):
            return message.text.upper()

        async with serving(agent, gateway):
            end = await answer(await client.join("lobby"), "hi")

        assert (end.content, end.status) == ("HI", "ok")

    async def test_tool_calls_are_shown(self, agent, gateway, client):
        """The agent's own tools report start, progress and result in the session."""

        @agent.tool
        def add(ctx, a: int, b: int) -> int:
            ctx.progress(50, "carrying")
            return a + b

        @agent.on_chat
        async def reply(ctx, message):
            yield str(await ctx.tool("add", {"a": 1, "b": 2}))

        async with serving(agent, gateway):
            session = await client.join("lobby")
            start, update, result, text, end = [e async for e in session.chat("1+2")]

        assert (start.tool, start.args) == ("add", {"a": 1, "b": 2})
        assert (update.progress, update.message) == (50, "carrying")
        assert (result.success, result.output) == (True, 3)
        assert (text.text, end.status) == ("3", "ok")

    async def test_a_failing_tool_call_is_shown_without_its_secrets(self, agent, gateway, client):
        """Others learn that a tool failed, not how."""

        @agent.on_chat
        async def reply(ctx, message):
            async with ctx.tool_call("search", {"q": "tea"}):
                raise RuntimeError("the database password is swordfish")
            yield "never"

        async with serving(agent, gateway):
            session = await client.join("lobby")
            events = [e async for e in session.chat("find tea")]

        assert events[1].success is False
        assert events[2].status == "error"
        assert "swordfish" not in repr(events)

    async def test_a_handler_that_raises_ends_its_answer_only(self, agent, gateway, client, caplog):
        """The answer ends with a generic error, the log has the traceback, the agent goes on."""

        @agent.on_chat
        async def reply(ctx, message):
            yield "so far"
            if message.text == "break":
                raise RuntimeError("swordfish")

        async with serving(agent, gateway):
            session = await client.join("lobby")
            broken = await answer(session, "break")
            whole = await answer(session, "work")

        assert (broken.status, broken.content) == ("error", "so far")
        assert "swordfish" not in repr(broken)
        assert "swordfish" in caplog.text
        assert whole.status == "ok"

    async def test_a_cancelled_run_stops(self, agent, gateway, client):
        """Who asked may stop the answer; the handler is cancelled and the agent goes on."""
        stopped = asyncio.get_running_loop().create_future()

        @agent.on_chat
        async def reply(ctx, message):
            try:
                yield "thinking"
                await asyncio.Event().wait()
            finally:
                stopped.set_result(ctx.cancelled)

        async with serving(agent, gateway):
            session = await client.join("lobby")
            async for event in session.chat("hi"):
                if isinstance(event, trunkline.Text):
                    session.cancel(event.run_id)

            assert event.status == "cancelled"
            assert await stopped is True

    async def test_only_who_is_addressed_answers(self, agent, gateway, client):
        """A mention of somebody else leaves the agent silent."""

        @agent.on_chat
        async def reply(ctx, message):
            yield "me?"

        async with serving(agent, gateway):
            session = await client.join("lobby")
            events = [e async for e in session.chat("psst", mentions=["other"])]

        assert events == []

    async def test_an_assigned_agent_answers(self, gateway, client):
        """A session made for a capability has the agent in it."""
        agent = trunkline.Agent("demo")

        @agent.on_chat
        async def reply(ctx, message):
            yield f"in {ctx.session.id}"

        async with serving(agent, gateway):
            session = await client.create("private-talk", capability="chat")
            await anext(session)
            end = await answer(session, "hi")

        assert end.content == "in private-talk"

    async def test_one_at_a_time_if_it_says_so(self, gateway, client):
        """With max_concurrent the next chat waits for the first answer."""
        agent = trunkline.Agent("demo", sessions=["lobby"], max_concurrent=1)
        at_work = []
        seen = []

        @agent.on_chat
        async def reply(ctx, message):
            at_work.append(message.text)
            seen.append(len(at_work))
            yield "working"
            await asyncio.sleep(0)
            at_work.remove(message.text)

        async with serving(agent, gateway):
            session = await client.join("lobby")
            ends = await asyncio.gather(*(answer(session, str(i)) for i in range(5)))

        assert [end.status for end in ends] == ["ok"] * 5
        assert seen == [1] * 5

    async def test_a_fast_stream_survives_the_gateways_limit(self):
        """Chunks that were too many are sent again, and the text is whole."""
        agent = trunkline.Agent("demo", sessions=["lobby"])
        pieces = [f"{i} " for i in range(60)]
        arrived = asyncio.Event()

        @agent.on_chat
        async def reply(ctx, message):
            for piece in pieces:
                yield piece
            await arrived.wait()

        limits = config(stream_rate=200, stream_burst=10)
        text = ""
        async with (
            WebSocketGateway(limits) as gateway,
            serving(agent, gateway),
            trunkline.connect(url(gateway), token=TOKEN) as client,
        ):
            async for event in (await client.join("lobby")).chat("go"):
                if isinstance(event, trunkline.Text):
                    text += event.text
                if text == "".join(pieces):
                    arrived.set()

        assert event.content == "".join(pieces)


class TestRequests:
    async def test_a_tool_answers(self, agent, gateway, client):
        """The asker gets what the function returns."""

        @agent.tool
        def add(a: int, b: int = 2) -> int:
            """Add two numbers."""
            return a + b

        async with serving(agent, gateway):
            by_capability = await client.request(capability="add", params={"a": 1})
            by_name = await client.request(agent_id="demo", method="add", params={"a": 1, "b": 5})
            (entry,) = await client.agents(capability="tools:add")

        assert (by_capability, by_name) == (3, 6)
        assert entry.capabilities.tools[0].description == "Add two numbers."

    async def test_a_bad_argument_is_refused_with_its_place(self, agent, gateway, client):
        """The function is not called with what it does not expect."""

        @agent.tool
        def add(a: int, b: int) -> int:
            return a + b

        async with serving(agent, gateway):
            with pytest.raises(trunkline.RequestFailed) as caught:
                await client.request(capability="add", params={"a": "one", "b": 2})

        assert caught.value.code == "INVALID_PAYLOAD"
        assert caught.value.details["path"] == "$.params.a"

    async def test_a_tool_says_why_it_failed_only_on_purpose(self, agent, gateway, client):
        """A ToolError reaches the asker; any other exception stays here."""

        @agent.tool
        def find(what: str) -> str:
            if what == "tea":
                raise trunkline.ToolError("there is no tea", "NO_TEA")
            raise RuntimeError("swordfish")

        async with serving(agent, gateway):
            with pytest.raises(trunkline.RequestFailed, match="there is no tea") as known:
                await client.request(capability="find", params={"what": "tea"})
            with pytest.raises(trunkline.RequestFailed) as unknown:
                await client.request(capability="find", params={"what": "fish"})

        assert known.value.code == "NO_TEA"
        assert unknown.value.code == "HANDLER_ERROR"
        assert "swordfish" not in str(unknown.value)

    async def test_a_generator_streams(self, agent, gateway, client):
        """Pieces arrive one by one; asked for as a whole they are a list."""

        @agent.tool
        async def count(n: int):
            for i in range(n):
                yield i

        async with serving(agent, gateway):
            pieces = client.request_stream(capability="count", params={"n": 3})
            streamed = [piece async for piece in pieces]
            whole = await client.request(capability="count", params={"n": 3})

        assert streamed == whole == [0, 1, 2]

    async def test_blocking_code_does_not_hold_the_connection_up(self, agent, gateway, client):
        """While a plain function blocks, other requests are answered."""
        released = threading.Event()

        @agent.tool
        def block() -> bool:
            return released.wait(10)

        @agent.tool
        async def echo(text: str) -> str:
            return text

        async with serving(agent, gateway):
            blocked = asyncio.create_task(client.request(capability="block"))
            echoed = await client.request(capability="echo", params={"text": "hi"})
            released.set()

            assert (echoed, await blocked) == ("hi", True)

    async def test_a_loop_that_is_blocked_keeps_its_connection(self):
        """An agent answers pings while its own code blocks; a plain client in that loop does not."""
        released, started = threading.Event(), threading.Event()
        agent = trunkline.Agent("demo")

        @agent.tool
        async def block() -> bool:
            return released.wait(20)

        async def program(address, done):
            async with trunkline.connect(address, token=TOKEN), serving_at(agent, address):
                started.set()
                await asyncio.to_thread(done.wait)

        quick = config(heartbeat_interval=0.1, heartbeat_timeout=0.1)
        done = threading.Event()
        async with WebSocketGateway(quick) as gateway:
            thread = asyncio.to_thread(asyncio.run, program(url(gateway), done))
            running = asyncio.create_task(thread)
            await asyncio.to_thread(started.wait)
            lost = asyncio.Event()
            gateway.on("client:disconnect", lambda client: lost.set())
            async with trunkline.connect(url(gateway), token=TOKEN) as client:
                asking = asyncio.create_task(client.request(agent_id="demo", method="block"))
                await lost.wait()
                (entry,) = await client.agents()
                released.set()
                answer = await asking
                done.set()
                await running

        assert (entry.status, entry.generation, answer) == ("online", 1, True)

    async def test_leaving_a_stream_cancels_the_request(self, agent, gateway, client):
        """The agent learns that nobody listens any more."""
        stopped = asyncio.get_running_loop().create_future()

        @agent.tool
        async def forever(ctx):
            try:
                yield "first"
                await asyncio.Event().wait()
            finally:
                stopped.set_result(ctx.cancelled)

        async with serving(agent, gateway):
            stream = client.request_stream(capability="forever")
            assert await anext(stream) == "first"
            await stream.aclose()

            assert await stopped is True

    async def test_a_deadline_that_passes_is_an_unknown_outcome(self, agent, gateway, client):
        """The agent had the request; whether it did it nobody can tell."""

        @agent.tool
        async def forever() -> None:
            await asyncio.Event().wait()

        async with serving(agent, gateway):
            with pytest.raises(trunkline.OutcomeUnknown):
                await client.request(capability="forever", timeout=0.05)

    async def test_who_asks_says_how_to_choose(self, gateway, client):
        """Of two agents the busy one is avoided, unless they are to take turns; for `ctx.ask` too."""
        begun, go_on = asyncio.Event(), asyncio.Event()
        busy, idle, third = map(trunkline.Agent, ("busy", "idle", "third"))

        @busy.tool
        async def hold() -> None:
            begun.set()
            await go_on.wait()

        @third.tool
        async def relay(policy: RoutePolicy, ctx: trunkline.ToolContext) -> str:
            return await ctx.ask(capability="which", policy=policy)

        for each in (busy, idle):

            @each.tool
            def which(name: str = each.id) -> str:
                return name

        async with serving(busy, gateway), serving(idle, gateway), serving(third, gateway):
            holding = asyncio.create_task(client.request(capability="hold"))
            await begun.wait()

            async def ask(policy):
                direct = [await client.request(capability="which", policy=policy) for _ in "12"]
                through = {"capability": "relay", "params": {"policy": policy}}
                relayed = [await client.request(**through) for _ in "12"]
                stream = client.request_stream(capability="which", policy=policy)
                return direct, relayed, [piece async for piece in stream]

            quiet, turns = await ask("least_busy"), await ask("round_robin")
            go_on.set()
            await holding

        assert quiet == (["idle"] * 2, ["idle"] * 2, ["idle"])
        assert [sorted(got) for got in turns[:2]] == [["busy", "idle"]] * 2

    async def test_an_agent_may_ask_another(self, gateway, client):
        """A handler asks another agent on behalf of its own asker."""
        front = trunkline.Agent("front", sessions=["lobby"])
        adder = trunkline.Agent("adder")

        @adder.tool
        def add(a: int, b: int) -> int:
            return a + b

        @front.on_chat
        async def reply(ctx, message):
            yield str(await ctx.ask(capability="add", params={"a": 20, "b": 3}))

        async with serving(adder, gateway), serving(front, gateway):
            end = await answer(await client.join("lobby"), "20+3")

        assert end.content == "23"

    async def test_a_request_on_behalf_of_another_belongs_to_it(self, agent, gateway, client):
        """The gateway knows for whom an agent asks, so no agent ends up asking itself."""

        @agent.tool
        async def loop(ctx):
            try:
                return await ctx.ask(agent_id="demo", method="loop")
            except trunkline.RequestFailed as error:
                return error.code

        async with serving(agent, gateway):
            result = await client.request(capability="loop", timeout=5)

        assert result == "AGENT_NOT_FOUND"


class TestServing:
    async def test_runs_of_one_number_in_two_sessions_are_two(self, agent, gateway, client):
        """A run's id is unique only within its session; both chats are answered."""
        both = asyncio.Barrier(2)

        @agent.on_chat
        async def reply(ctx, message):
            await both.wait()
            yield ctx.session.id

        async with serving(agent, gateway):
            first = await client.create("first", capability="chat")
            second = await client.create("second", capability="chat")
            ends = await asyncio.gather(answer(first, "hi"), answer(second, "hi"))

        assert [end.content for end in ends] == ["first", "second"]

    async def test_comes_back_after_a_loss(self, agent, gateway, client):
        """A cut connection is made anew, registered and in its sessions."""

        @agent.on_chat
        async def reply(ctx, message):
            yield "here"

        async with (
            LossyLine(gateway.port) as line,
            agent.serving(line.url, token=TOKEN) as at_work,
        ):
            session = await client.join("lobby")
            (before,) = await client.agents()
            back = asyncio.Event()
            lobby = at_work.gateway.wire.sessions["lobby"]
            lobby.joined.append(lambda info: back.set())

            line.cut()
            await back.wait()
            (after,) = await client.agents()
            end = await answer(session, "still there?")

        assert after.generation > before.generation
        assert end.content == "here"

    async def test_the_newest_registration_wins(self, agent, gateway):
        """The same id from another connection ends the older one for good."""
        async with serving(agent, gateway) as older:
            newer = trunkline.Agent("demo")
            async with serving(newer, gateway):
                with pytest.raises(trunkline.ConnectionLost) as caught:
                    await older.until_stopped()

        assert caught.value.code == 4009

    async def test_a_refused_registration_is_raised(self, agent, gateway):
        """An agent that may not register says why at once."""
        with pytest.raises(trunkline.RequestFailed) as caught:
            await agent.serve(url(gateway), token=TOKEN, role="control")

        assert caught.value.code == "FORBIDDEN"

    async def test_stopping_finishes_what_is_at_work(self, agent, gateway, client):
        """After `stop` the open answer is completed, and the agent is gone."""
        begun, go_on = asyncio.Event(), asyncio.Event()

        @agent.on_chat
        async def reply(ctx, message):
            begun.set()
            await go_on.wait()
            yield "finished"

        serve = asyncio.create_task(agent.serve(url(gateway), token=TOKEN))
        session = await client.join("lobby")
        while not any(member.agent_id == "demo" for member in session.members):
            await anext(session)
        asking = asyncio.create_task(answer(session, "finish this"))
        await begun.wait()

        assert agent.stop()
        assert not agent.stop()
        go_on.set()
        end = await asking
        await serve

        assert (end.content, end.status) == ("finished", "ok")
        assert await client.agents() == []

    async def test_work_that_does_not_end_is_given_up(self, gateway, client):
        """The drain has a limit; past it the gateway ends the run."""
        agent = trunkline.Agent("demo", sessions=["lobby"], drain_timeout=0.01)

        @agent.on_chat
        async def reply(ctx, message):
            yield "begun"
            await asyncio.Event().wait()

        at_work = serving(agent, gateway)
        await at_work.__aenter__()
        session = await client.join("lobby")
        async for event in session.chat("hi"):
            if isinstance(event, trunkline.Text):
                await at_work.__aexit__(None, None, None)

        assert (event.status, event.content) == ("lost", "begun")

    async def test_serves_a_gateway_that_was_restarted(self, agent):
        """An agent finds the new gateway by itself, and makes its sessions again."""

        @agent.on_chat
        async def reply(ctx, message):
            yield "back"

        first = WebSocketGateway(config())
        await first.start()
        async with (
            LossyLine(first.port) as line,
            agent.serving(line.url, token=TOKEN) as at_work,
        ):
            back = asyncio.Event()
            at_work.gateway.wire.sessions["lobby"].joined.append(lambda info: back.set())
            line.refuse()
            await first.stop()
            async with WebSocketGateway(config()) as second:
                line.redirect(second.port)
                await back.wait()
                async with trunkline.connect(url(second), token=TOKEN) as client:
                    end = await answer(await client.join("lobby"), "hi")

        assert end.content == "back"
        assert at_work.gateway.state is State.CLOSED


class Gateway:
    """A gateway in a process of its own, with its log on disk, to be killed and started again."""

    def __init__(self, folder):
        self._folder = folder
        self.port = 0

    async def start(self):
        command = f"-m trunkline serve --port {self.port} --history sqlite --token {TOKEN}"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command.split(),
            "--data-dir",
            str(self._folder),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        line = await self._process.stdout.readline()
        self.port = int(line.decode().rsplit(":", 1)[1])

    async def kill(self):
        self._process.kill()
        await self._process.communicate()

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self.kill()


class TestKilledGateway:
    async def test_an_answer_goes_on(self, agent, tmp_path):
        """Asker and agent find the gateway again, and the answer has neither hole nor repetition."""
        go_on = asyncio.Event()

        @agent.on_chat
        async def reply(ctx, message):
            yield "before, "
            yield "still before, "
            await go_on.wait()
            yield "after"

        async with (
            Gateway(tmp_path) as gateway,
            serving(agent, gateway) as at_work,
            trunkline.connect(url(gateway), token=TOKEN) as client,
        ):
            session = await client.join("lobby")
            resumed = asyncio.Event()
            at_work.gateway.wire.sessions["lobby"].joined.append(lambda info: resumed.set())
            text = ""
            async for event in session.chat("tell me"):
                if isinstance(event, trunkline.Text):
                    assert event.offset == len(text)
                    text += event.text
                if text == "before, still before, " and not resumed.is_set():
                    await gateway.kill()
                    await gateway.start()
                    await resumed.wait()
                    go_on.set()

        assert text == event.content == "before, still before, after"
        assert event.status == "ok"
