"""The harness with which agent authors test their agents, used as they would."""

from __future__ import annotations

import asyncio
import threading

import pytest

import trunkline
from trunkline.config import GatewayConfig, LimitsConfig
from trunkline.testing import AgentHarness


@pytest.fixture
def agent() -> trunkline.Agent:
    agent = trunkline.Agent("demo")

    @agent.on_chat
    async def reply(ctx, message):
        if message.text == "fail":
            raise trunkline.ToolError("no tea left")
        yield "You said: "
        yield message.text

    @agent.tool
    def add(a: int, b: int = 2) -> int:
        return a + b

    return agent


async def test_a_chat_returns_the_whole_answer(agent):
    """What the handler yields comes back as one text."""
    async with AgentHarness(agent) as harness:
        assert await harness.chat("hi") == "You said: hi"


async def test_a_call_returns_the_result(agent):
    """Arguments are checked and passed as the gateway would."""
    async with AgentHarness(agent) as harness:
        assert await harness.call("add", a=1) == 3
        with pytest.raises(trunkline.RequestFailed, match="INVALID_PAYLOAD"):
            await harness.call("add", a="one")


async def test_an_answer_that_fails_fails_the_test(agent):
    """The assertion says why the answer ended badly."""
    async with AgentHarness(agent) as harness:
        with pytest.raises(AssertionError, match="no tea left"):
            await harness.chat("fail")


async def test_an_agent_without_a_chat_handler_is_told_so():
    """Nobody answers, and the test says so rather than wait."""
    async with AgentHarness(trunkline.Agent("mute")) as harness:
        with pytest.raises(AssertionError, match="does not answer"):
            await harness.chat("hi")


async def test_events_show_the_tools_at_work(agent):
    """What everybody in the session would see can be looked at."""

    @agent.on_chat
    async def reply(ctx, message):
        yield str(await ctx.tool("add", {"a": 40}))

    async with AgentHarness(agent) as harness:
        events = await harness.events("what is it?")

    assert [type(event).__name__ for event in events] == [
        *("ToolStarted", "ToolFinished", "Text", "Completed")
    ]


async def test_other_agents_can_be_asked(agent):
    """Agents that the one under test asks may serve beside it."""
    front = trunkline.Agent("front")

    @front.on_chat
    async def reply(ctx, message):
        yield str(await ctx.ask(capability="add", params={"a": 20, "b": 3}))

    async with AgentHarness(front, agent) as harness:
        assert await harness.chat("20+3") == "23"


async def test_a_cancelled_answer_reaches_the_handler(agent):
    """The harness' client and session are there for what it has no words for."""
    stopped = asyncio.Event()

    @agent.on_chat
    async def reply(ctx, message):
        try:
            yield "working"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with AgentHarness(agent) as harness:
        async for event in harness.session.chat("go"):
            if isinstance(event, trunkline.Text):
                harness.session.cancel(event.run_id)
        await stopped.wait()

    assert event.status == "cancelled"


async def test_two_harnesses_know_nothing_of_each_other(agent):
    """Each has a gateway of its own, so tests may run side by side."""
    other = trunkline.Agent("demo")

    @other.tool
    def add(a: int) -> str:
        return "other"

    async with AgentHarness(agent) as one, AgentHarness(other) as two:
        assert (await one.call("add", a=1), await two.call("add", a=1)) == (3, "other")


async def test_a_function_in_a_thread_sees_that_nobody_waits_any_more():
    """It cannot be interrupted, so it looks at `ctx.cancelled`."""
    agent = trunkline.Agent("worker")
    begun, stopped = threading.Event(), threading.Event()

    @agent.tool
    def work(ctx) -> None:
        begun.set()
        while not ctx.cancelled:
            begun.wait()
        stopped.set()

    async with AgentHarness(agent) as harness:
        call = asyncio.create_task(harness.call("work"))
        assert await asyncio.to_thread(begun.wait, 10)
        call.cancel()

        assert await asyncio.to_thread(stopped.wait, 10)


async def test_an_agent_that_only_has_tools_leaves_chats_unanswered():
    """The ack says so at once: no run stays open until it times out."""
    agent = trunkline.Agent("worker")
    agent.add_tool(len, name="size", input_schema={"type": "object"})

    async with AgentHarness(agent) as harness:
        ack = await harness.session.send("hi", mentions=["worker"])

    assert ack.runs == []


@pytest.mark.parametrize("allow", [True, False])
async def test_what_the_agent_asks_for_is_allowed_or_denied(agent, allow):
    """The test says in a word what the people in the session would answer."""

    @agent.on_chat
    async def reply(ctx, message):
        return "done" if await ctx.approve("delete", {"path": message.text}) else "kept"

    async with AgentHarness(agent) as harness:
        assert await harness.chat("/tmp/x", allow=allow) == ("done" if allow else "kept")


async def test_a_configuration_needs_no_sign_in(agent):
    """Whatever else is configured, the harness is let in."""
    config = GatewayConfig(limits=LimitsConfig(max_depth=20))
    async with AgentHarness(agent, config=config) as harness:
        assert await harness.chat("hi") == "You said: hi"


async def test_what_is_still_at_work_in_the_end_is_cancelled(agent):
    """A test is over when it is over, not when the agent's patience is."""
    begun, ended = asyncio.Event(), asyncio.Event()

    @agent.tool
    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.timeout(agent.drain_timeout / 2):
        async with AgentHarness(agent) as harness:
            calling = asyncio.create_task(harness.call("hang"))
            await begun.wait()
    assert ended.is_set()
    with pytest.raises(trunkline.TrunklineError):
        await calling


async def test_a_generators_pieces_come_as_a_list(agent):
    """A tool that streams is called as any other."""

    @agent.tool
    def count(to: int):
        yield from range(to)

    async with AgentHarness(agent) as harness:
        assert await harness.call("count", to=3) == [0, 1, 2]
