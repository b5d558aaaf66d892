"""The SDK's examples do what they say, as processes against a real gateway."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import trunkline
from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.config import AuthConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TOKEN = "a-token-for-this-test"


@pytest.fixture
async def gateway() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=TOKEN))
    async with WebSocketGateway(config) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: WebSocketGateway) -> AsyncIterator[trunkline.GatewayClient]:
    async with trunkline.connect(gateway.address, token=TOKEN) as client:
        yield client


async def start(name: str, gateway: WebSocketGateway) -> asyncio.subprocess.Process:
    environ = os.environ | {"TRUNKLINE_URL": gateway.address, "TRUNKLINE_TOKEN": TOKEN}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / f"{name}.py"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def printed(name: str, gateway: WebSocketGateway) -> list[str]:
    """Run an example to its end and return its lines."""
    process = await start(name, gateway)
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode().splitlines()


@asynccontextmanager
async def running(
    name: str, gateway: WebSocketGateway, client: trunkline.GatewayClient
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an agent until it has joined the lobby, and kill it at the end."""
    session = await client.join("lobby")
    process = await start(name, gateway)
    try:
        async for message in session:
            if message.type == "presence":
                break
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def answer(client: trunkline.GatewayClient, text: str) -> trunkline.Completed:
    session = await client.join("lobby")
    last = [event async for event in session.chat(text)][-1]
    assert isinstance(last, trunkline.Completed)
    return last


async def test_the_echo_agent_repeats(gateway, client):
    """What is said in the lobby is said again."""
    async with running("echo_agent", gateway, client):
        end = await answer(client, "good morning")

    assert end.content == "good morning "


async def test_an_agent_ends_on_a_signal(gateway, client):
    """SIGTERM unregisters the agent and its program ends with 0."""
    async with running("echo_agent", gateway, client) as process:
        process.terminate()
        code = await process.wait()

        assert code == 0
        assert await client.agents() == []


async def test_the_tool_agent_adds(gateway, client):
    """A sum is answered with the help of a tool."""
    async with running("tool_agent", gateway, client):
        end = await answer(client, "1 + 2.5")

    assert end.content == "That is 3.5."


async def test_two_clients_read_the_same(gateway):
    """Both people see both messages, numbered."""
    assert await printed("two_clients", gateway) == ["1: Is the tea ready?", "2: Nearly."]


async def test_agents_are_asked_in_four_ways(gateway, client):
    """Request, stream, refusal and chat, all with the tool agent."""
    async with running("tool_agent", gateway, client):
        lines = await printed("ask_an_agent", gateway)

    assert lines == [
        "1 + 2 = 3",
        "primes: 2 3 5 7 11",
        "nobody can divide by zero",
        "calculator calls add with {'a': 20.0, 'b': 3.0}",
        "calculator says: That is 23.",
    ]
