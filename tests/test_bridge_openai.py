"""A model behind an OpenAI-compatible API as an agent of a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import fake_model
import pytest
from fake_model import FakeModel, call, text
from processes import Running, clean_environ, invoke

import trunkline
from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.bridges.openai import Model, offered, openai_agent
from trunkline.config import AuthConfig
from trunkline.payloads import AgentCapabilities, AgentEntry, ToolSpec

TOKEN = "a-token-for-this-test"
KEY = "sk-a-key-for-this-test"


@pytest.fixture
async def model() -> AsyncIterator[FakeModel]:
    async with fake_model.serving() as model:
        yield model


@pytest.fixture
async def gateway() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=TOKEN))
    async with WebSocketGateway(config) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway, model) -> AsyncIterator[trunkline.GatewayClient]:
    """A client of a gateway on which the model serves, beside an agent that adds."""
    adder = trunkline.Agent("adder")

    @adder.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        if a < 0:
            raise trunkline.ToolError("no negative numbers")
        return a + b

    async with Model(model.url, "small", KEY) as endpoint:
        agent = openai_agent(endpoint, "model", system="Be brief.", sessions=["lobby"])
        async with (
            adder.serving(gateway.address, token=TOKEN),
            agent.serving(gateway.address, token=TOKEN),
            trunkline.connect(gateway.address, token=TOKEN) as client,
        ):
            yield client


async def events_of(client: trunkline.GatewayClient, said: str) -> list[trunkline.Event]:
    session = await client.join("lobby")
    return [event async for event in session.chat(said)]


async def answer(client: trunkline.GatewayClient, said: str) -> trunkline.Completed:
    last = (await events_of(client, said))[-1]
    assert isinstance(last, trunkline.Completed)
    return last


async def test_text_streams_through(client, model):
    """What the model has said arrives while it goes on thinking."""
    model.turns = [text("Good ", "morning")]
    model.gate.clear()
    session = await client.join("lobby")
    seen = []
    async for event in session.chat("hi"):
        if isinstance(event, trunkline.Text):
            seen.append(event.text)
            model.gate.set()

    assert seen[0] == "Good "
    assert event.content == "Good morning"


async def test_the_model_sees_the_conversation(client, model):
    """The system's words come first, then the session's log with who said what."""
    model.turns = [text("one"), text("two")]
    await answer(client, "first")
    await answer(client, "second")

    assert model.requests[1]["model"] == "small"
    assert model.requests[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    assert model.keys == [f"Bearer {KEY}"] * 2


async def test_tools_of_other_agents_are_offered_with_their_schema(client, model):
    """The model is told of every tool that another agent has."""
    model.turns = [text("ok")]
    await answer(client, "hi")

    (offer,) = model.requests[0]["tools"]
    assert offer["function"]["name"] == "add"
    assert offer["function"]["description"] == "Add two numbers."
    assert offer["function"]["parameters"]["required"] == ["a", "b"]


async def test_a_call_is_carried_out_and_shown(client, model):
    """The other agent is asked, everybody sees it, and the model goes on with the result."""
    model.turns = [call("add", '{"a": 2, "b": 3}'), text("It is 5.")]
    events = await events_of(client, "2+3?")

    shown = [event.tool for event in events if isinstance(event, trunkline.ToolStarted)]
    assert (shown, events[-1].content) == (["add"], "It is 5.")
    asked, result = model.requests[1]["messages"][-2:]
    assert asked["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "5"}


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("add", '{"a": -1, "b": 3}', "no negative numbers"),
        ("nothing", "{}", "there is no tool nothing"),
        ("add", "[1", "no JSON object"),
    ],
)
async def test_the_model_learns_what_went_wrong(client, model, name, arguments, reason):
    """A tool's failure is a result like any other; the model may try something else."""
    model.turns = [call(name, arguments), text("Sorry.")]
    end = await answer(client, "try")

    assert end.content == "Sorry."
    assert reason in model.requests[1]["messages"][-1]["content"]


async def test_a_model_that_only_calls_tools_is_stopped(client, model):
    """The rounds are bounded, and the answer says so."""
    model.turns = [call("add", '{"a": 1, "b": 1}') for _ in range(8)]
    end = await answer(client, "loop")

    assert end.status == "error"
    assert "8 times" in end.error


@pytest.mark.parametrize(
    ("turn", "reason"),
    [(429, "HTTP 429"), ([{"error": "internal detail"}], "the model failed"), ([7], "the API")],
    ids=["status", "error", "junk"],
)
async def test_a_refusal_is_told_without_its_details(client, model, turn, reason):
    """The session learns that it failed; what the endpoint says of itself stays in the log."""
    model.turns = [turn]
    end = await answer(client, "hi")

    assert end.status == "error"
    assert reason in end.error
    assert "internal" not in end.error


def test_names_are_made_fit_for_the_api():
    """Two agents with one tool, and characters that the API refuses, are told apart."""
    tools = AgentCapabilities(tools=[ToolSpec(name="a.b"), "plain"])
    agents = [
        AgentEntry(
            id=id, agent_type="custom", name=id, capabilities=tools, status="online", generation=1
        )
        for id in ("one", "two", "me")
    ]

    offers = offered(agents, "me")

    assert list(offers) == ["a_b", "plain", "two-a_b", "two-plain"]
    assert [offer.agent_id for offer in offers.values()] == ["one", "one", "two", "two"]


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://192.0.2.1/v1"])
def test_a_key_goes_nowhere_unsafe(url):
    """A bad address, or one without encryption on another machine, is refused."""
    with pytest.raises(ValueError, match=r"address|unencrypted"):
        Model(url, "small", KEY)


async def test_the_command_reads_the_key_from_a_file(gateway, model, tmp_path):
    """`trunkline agent openai` serves until SIGTERM, with the key that the file holds."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    model.turns = [text("hello")]
    environ = clean_environ(tmp_path)
    environ |= {"TRUNKLINE_URL": gateway.address, "TRUNKLINE_TOKEN": TOKEN}
    options = ["--id", "model", "--session", "lobby", "--model", "small", "--base-url", model.url]
    running = Running(environ, "agent", "openai", *options, "--api-key-file", str(tmp_path / "key"))
    try:
        await asyncio.to_thread(running.wait_for, "is registered", "stderr")
        async with trunkline.connect(gateway.address, token=TOKEN) as client:
            end = await answer(client, "hi")
        code = await asyncio.to_thread(running.end)
    finally:
        running.close()

    assert (end.content, code) == ("hello", 0)
    assert model.keys == [f"Bearer {KEY}"]


def test_the_command_says_what_is_missing(tmp_path):
    """A key's file that does not exist is a sentence and the code for wrong usage."""
    options = ["--id", "m", "--model", "m", "--base-url", "http://127.0.0.1:9"]
    done = invoke(
        clean_environ(tmp_path), "agent", "openai", *options, "--api-key-file", "/nonexistent"
    )

    assert "/nonexistent" in done.stderr
    assert done.exit_code == 2
