"""A small MCP server, written with the official package, as an agent of a real gateway."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from loglines import Lines, lines_of
from processes import Running, clean_environ, invoke

import trunkline
from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.bridges.mcp import McpServer
from trunkline.config import AuthConfig
from trunkline.sdk.policy import Backoff

TOKEN = "a-token-for-this-test"

SERVER = '''
import os, sys

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent

server = MCPServer("small")


@server.tool()
def add(a: int, b: int = 1) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@server.tool(structured_output=False)
def greet(name: str) -> str:
    return f"Hello {name}"


@server.tool()
def fail() -> str:
    raise ToolError("no tea left")


@server.tool(structured_output=False)
def draw() -> ImageContent:
    return ImageContent(type="image", data="AAAA", mime_type="image/png")


@server.tool()
def die() -> str:
    os._exit(3)


@server.tool(structured_output=False)
async def learn(ctx: Context) -> str:
    server.add_tool(greet, name="learned", structured_output=False)
    await ctx.notify_tools_changed()
    return "done"


@server.tool(structured_output=False)
def secret() -> str:
    return os.environ.get("TRUNKLINE_TOKEN", "none")


print("up", file=sys.stderr, flush=True)
server.run("stdio")
'''
OLD_SERVER = """
import json, sys

def send(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

names = ["first"]
for line in sys.stdin:
    ask = json.loads(line)
    match ask["method"]:
        case "initialize":
            version = {"protocolVersion": "2025-06-18", "serverInfo": {"name": "old", "version": "1"}}
            send(id=ask["id"], result={**version, "capabilities": {"tools": {"listChanged": True}}})
        case "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in names]
            send(id=ask["id"], result={"tools": tools})
        case "tools/call":
            names = ["second", "not a name"]
            send(id=ask["id"], result={"content": [{"type": "text", "text": "done"}]})
            send(method="notifications/tools/list_changed")
        case _ if "id" in ask:
            send(id=ask["id"], error={"code": -32601, "message": "unknown"})
"""


@pytest.fixture
def lines() -> Iterator[Lines]:
    with lines_of(logging.getLogger("trunkline.bridges")) as lines:
        yield lines


@pytest.fixture
async def gateway() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=TOKEN))
    async with WebSocketGateway(config) as gateway:
        yield gateway


@pytest.fixture
def command(tmp_path) -> list[str]:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return [sys.executable, str(path)]


@pytest.fixture
async def client(gateway, command) -> AsyncIterator[trunkline.GatewayClient]:
    """A client of a gateway on which the server serves."""
    agent = trunkline.Agent("small")
    async with (
        McpServer(command, agent),
        agent.serving(gateway.address, token=TOKEN),
        trunkline.connect(gateway.address, token=TOKEN) as client,
    ):
        yield client


async def tools_of(client: trunkline.GatewayClient) -> dict[str, object]:
    (entry,) = await client.agents()
    return {tool.name: tool for tool in entry.capabilities.tools}


async def test_the_servers_tools_are_the_agents(client):
    """Names, descriptions and schemas are those of the server."""
    tools = await tools_of(client)

    assert {"add", "greet", "fail", "draw"} <= set(tools)
    assert tools["add"].description == "Add two numbers."
    assert tools["add"].input_schema["required"] == ["a"]


async def test_structured_content_is_the_result(client):
    """What the server structures arrives as it is."""
    assert await client.request(capability="add", params={"a": 1, "b": 2}) == {"sum": 3}


async def test_text_is_a_string(client):
    """Content that is text only arrives as text."""
    assert await client.request(capability="greet", params={"name": "Ada"}) == "Hello Ada"


async def test_other_content_arrives_in_blocks(client):
    """An image is a block as the protocol has it."""
    (block,) = await client.request(capability="draw")

    assert (block["type"], block["mimeType"], block["data"]) == ("image", "image/png", "AAAA")


async def test_a_failure_says_why(client):
    """What the server says of a failed tool reaches the asker."""
    with pytest.raises(trunkline.RequestFailed, match="no tea left") as caught:
        await client.request(capability="fail")

    assert caught.value.code == "TOOL_ERROR"


async def test_new_tools_are_announced(client, gateway):
    """When the server's list changes, the agent registers again with the new one."""
    registered = asyncio.Event()
    gateway.on("agent:registered", lambda agent: registered.set())

    await client.request(capability="learn")
    await registered.wait()

    assert await client.request(capability="learned", params={"name": "Bob"}) == "Hello Bob"


async def test_a_server_of_the_older_protocol_serves_too(gateway, tmp_path):
    """The handshake of 2025 is spoken, and changes are told without being asked for."""
    path = tmp_path / "old.py"
    path.write_text(OLD_SERVER)
    registered = asyncio.Event()
    agent = trunkline.Agent("old")
    async with (
        McpServer([sys.executable, str(path)], agent),
        agent.serving(gateway.address, token=TOKEN),
        trunkline.connect(gateway.address, token=TOKEN) as client,
    ):
        before = set(await tools_of(client))
        gateway.on("agent:registered", lambda agent: registered.set())
        result = await client.request(capability="first")
        await registered.wait()
        after = set(await tools_of(client))

    assert result == "done"
    assert (before, after) == ({"first"}, {"second"})


async def test_a_server_that_dies_is_started_again(lines, client, monkeypatch):
    """Open work ends with an error; the next process serves."""
    monkeypatch.setattr(Backoff, "next", lambda self: 0.0)
    with pytest.raises(trunkline.RequestFailed) as died:
        await client.request(capability="die")
    await lines.wait_for("offers 7 tools", times=2)
    result = await client.request(capability="greet", params={"name": "Ada"})

    assert died.value.code == "AGENT_LOST"
    assert result == "Hello Ada"


async def test_a_program_that_is_no_mcp_server_fails_at_once():
    """Whoever starts the bridge learns that the command is wrong."""
    with pytest.raises(trunkline.TrunklineError, match="no MCP server"):
        async with McpServer([sys.executable, "-c", "pass"], trunkline.Agent("small")):
            raise AssertionError("it cannot have been started")


async def test_the_command_serves_until_a_signal(gateway, command, tmp_path):
    """`trunkline agent mcp` keeps our token from the server, and ends with 0 at SIGTERM."""
    environ = clean_environ(tmp_path)
    environ |= {"TRUNKLINE_URL": gateway.address, "TRUNKLINE_TOKEN": TOKEN}
    running = Running(environ, "agent", "mcp", "--id", "small", "--", *command)
    try:
        await asyncio.to_thread(running.wait_for, "is registered", "stderr")
        async with trunkline.connect(gateway.address, token=TOKEN) as client:
            secret = await client.request(capability="secret")
        code = await asyncio.to_thread(running.end)
    finally:
        running.close()

    assert (secret, code) == ("none", 0)


def test_the_command_says_what_is_missing(tmp_path):
    """A program that does not exist is a sentence and code 1."""
    done = invoke(clean_environ(tmp_path), "agent", "mcp", "--id", "x", "--", "/nonexistent")

    assert "/nonexistent" in done.stderr
    assert done.exit_code == 1
