"""Asking people before something is done, with the SDK, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import trunkline.sdk as trunkline
from trunkline.config import AuthConfig, OriginConfig, WebSocketTransportConfig
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "a-token-that-is-long-enough-for-a-test"


@pytest.fixture
async def url() -> AsyncIterator[str]:
    config = WebSocketTransportConfig(
        port=0,
        auth=AuthConfig(token=TOKEN),
        origins=OriginConfig(allowed_hosts=("127.0.0.1:*",)),
    )
    async with WebSocketGateway(config) as gateway:
        yield f"ws://127.0.0.1:{gateway.port}"


def careful(**more) -> trunkline.Agent:
    """An agent that deletes nothing without being told that it may."""
    agent = trunkline.Agent("careful", sessions=["lobby"])

    @agent.on_chat
    async def reply(ctx, message):
        args = {"path": message.text}
        decision = await ctx.approve("delete", args, **more)
        return f"{bool(decision)}: {decision.reason}"

    return agent


async def asked(session) -> trunkline.Message:
    async for message in session:
        if message.type == "approval_request":
            return message
    raise AssertionError("nobody asked")


@pytest.mark.parametrize("allow", [True, False])
async def test_an_agent_waits_for_the_decision_of_somebody_in_the_session(url, allow):
    """It sees what is asked for, and why the answer was what it was."""
    async with (
        careful().serving(url, token=TOKEN),
        trunkline.connect(url, token=TOKEN) as client,
    ):
        session = await client.join("lobby")
        answers = asyncio.create_task(_answer(session, "a.txt"))

        request = await asked(session)
        await session.approve(request, allow=allow, reason="said so")

        assert request.data()["args"] == {"path": "a.txt"}
        assert await answers == f"{allow}: said so"


async def test_no_answer_in_time_is_a_no(url):
    """The gateway's own denial tells the agent."""
    async with (
        careful(timeout=0.05).serving(url, token=TOKEN),
        trunkline.connect(url, token=TOKEN) as client,
    ):
        session = await client.join("lobby")

        assert await _answer(session, "a.txt") == "False: nobody answered in time"


async def test_arguments_that_change_while_one_waits_are_not_run(url):
    """What was approved is what was asked, and nothing else."""
    agent = trunkline.Agent("sly", sessions=["lobby"])
    args = {"path": "a.txt"}

    @agent.on_chat
    async def reply(ctx, message):
        await ctx.approve("delete", args)
        return "deleted"

    async with (
        agent.serving(url, token=TOKEN),
        trunkline.connect(url, token=TOKEN) as client,
    ):
        session = await client.join("lobby")
        answers = asyncio.create_task(_answer(session, "go"))
        request = await asked(session)

        args["path"] = "/"
        await session.approve(request, allow=True)

        assert "deleted" not in await answers


async def test_who_joins_later_finds_the_open_question(url):
    """And may answer it."""
    async with (
        careful().serving(url, token=TOKEN),
        trunkline.connect(url, token=TOKEN) as ada,
        trunkline.connect(url, token=TOKEN) as bob,
    ):
        session = await ada.join("lobby")
        answers = asyncio.create_task(_answer(session, "a.txt"))
        await asked(session)

        late = await bob.join("lobby")
        (request,) = late.approvals
        await late.approve(request, allow=True)

        assert await answers == "True: None"


async def _answer(session, text: str) -> str:
    events = [event async for event in session.chat(text)]
    return events[-1].content
