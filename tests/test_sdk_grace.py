"""An agent whose connection breaks loses no running work: the SDK over a line that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from lossy import LossyLine

import trunkline.sdk as trunkline
from trunkline.config import AuthConfig, LimitsConfig, OriginConfig, WebSocketTransportConfig
from trunkline.sdk.answer import MAX_KEPT
from trunkline.sdk.outbox import Pace
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


async def count_over_a_break(gateway, client, lost: int, size: int = 1) -> list[str]:
    """Stream pieces of `size` bytes, so many of which are swallowed before the line is cut."""
    agent = trunkline.Agent("counter")
    first, go_on, said, finish = (asyncio.Event() for _ in range(4))

    @agent.tool
    async def count() -> AsyncIterator[str]:
        yield "first"
        first.set()
        await go_on.wait()
        for number in range(lost):
            yield str(number) * size
        said.set()
        await finish.wait()
        yield "last"

    async with LossyLine(gateway.port) as line, agent.serving(line.url, token=TOKEN):
        pieces = client.request_stream(capability="count")
        got = [await anext(pieces)]
        line.swallow()
        go_on.set()
        await said.wait()
        noticed = asyncio.create_task(offline(client, gateway))
        await asyncio.sleep(0)
        line.cut()
        await noticed
        finish.set()
        return got + [piece async for piece in pieces]


async def test_a_streamed_answer_goes_on_after_the_break_without_a_hole(gateway, client):
    """Pieces that were written to the lost connection go out again, each once and in order."""
    assert await count_over_a_break(gateway, client, 3) == ["first", "0", "1", "2", "last"]


async def test_a_streamed_answer_with_a_hole_that_cannot_be_filled_is_no_answer(gateway, client):
    """More was lost than is kept: the request fails, and the asker knows."""
    with pytest.raises(trunkline.RequestFailed) as failed:
        await count_over_a_break(gateway, client, 3, size=MAX_KEPT // 2)

    assert failed.value.code == "AGENT_LOST"


async def test_an_answer_that_was_lost_with_its_end_arrives_after_the_break(gateway, client):
    """The tool has long returned; nobody calls it again."""
    agent = trunkline.Agent("counter")
    begun, go_on, done = (asyncio.Event() for _ in range(3))

    @agent.tool
    async def count() -> AsyncIterator[int]:
        begun.set()
        await go_on.wait()
        yield 1
        yield 2
        done.set()

    async with LossyLine(gateway.port) as line, agent.serving(line.url, token=TOKEN):
        answer = asyncio.create_task(client.request(capability="count"))
        streamed = asyncio.create_task(listed(client.request_stream(capability="count")))
        await begun.wait()
        line.swallow()
        go_on.set()
        await done.wait()
        noticed = asyncio.create_task(offline(client, gateway))
        await asyncio.sleep(0)
        line.cut()
        await noticed

        assert await answer == [1, 2]
        assert await streamed == [1, 2]


async def listed(pieces: AsyncIterator[int]) -> list[int]:
    return [piece async for piece in pieces]


# A gateway that takes chunks slowly


@pytest.fixture
async def slow() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(
        port=0,
        auth=AuthConfig(token=TOKEN),
        limits=LimitsConfig(stream_rate=200, stream_burst=10),
    )
    async with WebSocketGateway(config) as gateway:
        yield gateway


def counter() -> trunkline.Agent:
    agent = trunkline.Agent("counter")

    @agent.tool
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    return agent


async def test_a_streamed_answer_is_sent_no_faster_than_the_gateway_takes_it(slow):
    """Far more pieces than may come at once, and none is refused."""
    url = f"ws://127.0.0.1:{slow.port}"
    async with (
        trunkline.connect(url, token=TOKEN) as client,
        counter().serving(url, token=TOKEN),
    ):
        pieces = await listed(client.request_stream(capability="count", params={"to": 40}))

    assert pieces == list(range(40))
    assert slow.handlers.errors == 0


async def test_a_streamed_answer_of_which_a_piece_was_refused_is_no_answer(slow):
    """What came behind the refused piece may have been taken: it would be a silent hole."""
    url = f"ws://127.0.0.1:{slow.port}"
    async with (
        trunkline.connect(url, token=TOKEN) as client,
        counter().serving(url, token=TOKEN) as serving,
    ):
        serving.gateway.wire.stream_pace = Pace()  # as if the gateway had not told its limits
        with pytest.raises(trunkline.RequestFailed) as failed:
            await listed(client.request_stream(capability="count", params={"to": 10_000}))

    assert failed.value.code == "AGENT_LOST"
