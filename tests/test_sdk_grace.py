"""An agent whose connection breaks loses no running work: the SDK over a line that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from lossy import LossyLine

import trunkline.sdk as trunkline
from trunkline.config import AuthConfig, OriginConfig, WebSocketTransportConfig
from trunkline.transports.websocket import WebSocketGateway

TOKEN = "a-token-that-is-long-enough-for-a-test"


@pytest.fixture
async def gateway() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(
        port=0,
        auth=AuthConfig(token=TOKEN),
        origins=OriginConfig(allowed_hosts=("127.0.0.1:*",)),
    )
    async with WebSocketGateway(config) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: WebSocketGateway) -> AsyncIterator[trunkline.GatewayClient]:
    async with trunkline.connect(f"ws://127.0.0.1:{gateway.port}", token=TOKEN) as client:
        yield client


async def offline(client: trunkline.GatewayClient, gateway: WebSocketGateway) -> None:
    """Wait until the gateway has noticed that the agent's connection is gone."""
    gone = asyncio.Event()
    stop = gateway.on("agent:offline", lambda agent: gone.set())
    await gone.wait()
    stop()


async def test_a_request_outlives_the_connection_of_its_agent(gateway, client):
    """It began before the break, and is answered after it; it runs once."""
    agent = trunkline.Agent("worker")
    begun, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @agent.tool
    async def work(number: int) -> int:
        runs.append(number)
        begun.set()
        await go_on.wait()
        return number * 2

    async with LossyLine(gateway.port) as line, agent.serving(line.url, token=TOKEN):
        request = asyncio.create_task(client.request(capability="work", params={"number": 4}))
        await begun.wait()

        noticed = asyncio.create_task(offline(client, gateway))
        await asyncio.sleep(0)
        line.cut()
        await noticed
        go_on.set()

        assert await request == 8
        assert runs == [4]


async def test_an_answer_goes_on_after_the_break_without_a_hole(gateway, client):
    """Chunks from before and after it are one text, in one run."""
    agent = trunkline.Agent("teller", sessions=["lobby"])
    go_on = asyncio.Event()

    @agent.on_chat
    async def tell(ctx, message):
        yield "once "
        await go_on.wait()
        yield "upon a time"

    async with LossyLine(gateway.port) as line, agent.serving(line.url, token=TOKEN):
        session = await client.join("lobby")
        texts = []
        async for event in session.chat("a story"):
            if isinstance(event, trunkline.Text):
                texts.append(event)
                if len(texts) == 1:
                    noticed = asyncio.create_task(offline(client, gateway))
                    await asyncio.sleep(0)
                    line.cut()
                    await noticed
                    go_on.set()
            last = event

    assert isinstance(last, trunkline.Completed)
    assert (last.status, last.content) == ("ok", "once upon a time")
