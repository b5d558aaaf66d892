"""Programs that read and write lines of JSON, as agents of a real gateway."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from loglines import Lines, lines_of
from processes import Running, clean_environ, invoke

import trunkline
from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.bridges import exec as bridge
from trunkline.config import AuthConfig
from trunkline.payloads import ToolSpec
from trunkline.sdk.policy import Backoff

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "line_agent.py"
TOKEN = "a-token-for-this-test"

PROGRAM = """
import json, os, sys

def say(id, **what):
    print(json.dumps({"id": id, **what}), flush=True)

print("up", file=sys.stderr, flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    id, words = ask["id"], ask.get("text") or ask.get("tool")
    match words:
        case "die":
            sys.exit(3)
        case "wait":
            say(id, chunk="waiting")
        case "junk":
            print("this is no JSON", flush=True)
            say("nobody", result=1)
            say(id, text="after the junk")
        case "endless":
            print("x" * 2_000_000, flush=True)
        case "secret":
            say(id, text=os.environ.get("TRUNKLINE_TOKEN", "none"))
        case "refuse":
            say(id, error="no tea left")
        case "chunks":
            for n in range(3):
                say(id, chunk=n)
            say(id, result=None)
        case "echo":
            say(id, progress=50, message="half")
            say(id, result=ask["args"])
        case _:
            if ask["type"] == "cancel":
                print("cancelled", file=sys.stderr, flush=True)
            else:
                say(id, chunk=ask["author"] + " said ")
                say(id, text=words)
"""

TOOLS = [ToolSpec(name=name) for name in ("echo", "refuse", "chunks", "die", "wait")]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with lines_of(logging.getLogger("trunkline.bridges")) as lines:
        yield lines


@pytest.fixture
def quick(monkeypatch):
    """Programs are started again at once."""
    monkeypatch.setattr(Backoff, "next", lambda self: 0.0)


@pytest.fixture
async def gateway() -> AsyncIterator[WebSocketGateway]:
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=TOKEN))
    async with WebSocketGateway(config) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway, lines, tmp_path) -> AsyncIterator[trunkline.GatewayClient]:
    """A client of a gateway on which the program serves."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    async with bridge.Program([sys.executable, str(path)]) as program:
        agent = bridge.exec_agent(program, "prog", tools=TOOLS, chat=True, sessions=["lobby"])
        await lines.wait_for("up")
        async with (
            agent.serving(gateway.address, token=TOKEN),
            trunkline.connect(gateway.address, token=TOKEN) as client,
        ):
            yield client


async def answer(client: trunkline.GatewayClient, text: str) -> trunkline.Completed:
    session = await client.join("lobby")
    last = [event async for event in session.chat(text)][-1]
    assert isinstance(last, trunkline.Completed)
    return last


async def test_a_chat_is_answered_in_pieces(client):
    """Chunks and the last text make the answer; the program knows who asks."""
    end = await answer(client, "good morning")

    assert (end.status, end.content) == ("ok", "owner said good morning")


async def test_a_call_gets_its_arguments_and_returns_its_result(client):
    """What goes in as arguments comes out as the program's result."""
    result = await client.request(capability="echo", params={"ctx": [1, "ä"], "self": None})

    assert result == {"ctx": [1, "ä"], "self": None}


async def test_a_call_can_stream(client):
    """Chunks reach the asker one by one; asked for as a whole they are a list."""
    streamed = [piece async for piece in client.request_stream(capability="chunks")]
    whole = await client.request(capability="chunks")

    assert streamed == whole == [0, 1, 2]


async def test_an_error_ends_a_call_with_its_sentence(client):
    """What the program says of its failure reaches the asker."""
    with pytest.raises(trunkline.RequestFailed, match="no tea left"):
        await client.request(capability="refuse")


async def test_an_error_ends_a_chat_with_its_sentence(client):
    """Everybody in the session sees why there is no answer."""
    end = await answer(client, "refuse")

    assert (end.status, end.error) == ("error", "no tea left")


async def test_junk_is_passed_over(client, lines):
    """A line that is no answer, or of a stranger's id, harms nobody."""
    end = await answer(client, "junk")

    assert end.content == "after the junk"
    assert any("no answer" in line for line in lines.seen)


async def test_a_death_ends_open_work_and_a_new_start_serves_again(client, lines, quick):
    """What was open ends with an error, and the program is there again."""
    with pytest.raises(trunkline.RequestFailed) as caught:
        await client.request(capability="die")
    await lines.wait_for("up", times=2)
    result = await client.request(capability="echo", params={"a": 1})

    assert caught.value.code == "AGENT_LOST"
    assert result == {"a": 1}
    assert any("ended with 3" in line for line in lines.seen)


async def test_a_line_without_end_ends_the_program(client, lines, quick):
    """Memory is bounded: the program is ended, its work too, and started again."""
    end = await answer(client, "endless")
    await lines.wait_for("up", times=2)

    assert end.status == "error"


async def test_leaving_tells_the_program(client, lines):
    """Who waits no more has the program told."""
    stream = client.request_stream(capability="wait")
    assert await anext(stream) == "waiting"

    await stream.aclose()

    await lines.wait_for("cancelled")


async def test_a_command_that_does_not_exist_fails_at_once():
    """The first start is not tried again: the command is wrong."""
    with pytest.raises(FileNotFoundError):
        async with bridge.Program(["/nonexistent/program"]):
            raise AssertionError("it cannot have been started")


class TestCommand:
    @pytest.fixture
    def start(self, gateway, tmp_path):
        started = []

        def start(*args):
            environ = clean_environ(tmp_path)
            environ |= {"TRUNKLINE_URL": gateway.address, "TRUNKLINE_TOKEN": TOKEN}
            running = Running(environ, "agent", "exec", *args)
            started.append(running)
            return running

        yield start
        for running in started:
            running.close()

    async def test_serves_the_example_until_a_signal(self, gateway, start):
        """The example answers chats and calls; SIGTERM ends it with 0 and unregisters it."""
        args = ["--id", "liner", "--chat", "--tool", "count", "--session", "lobby"]
        running = start(*args, "--", sys.executable, str(EXAMPLE))
        await asyncio.to_thread(running.wait_for, "is registered", "stderr")
        async with trunkline.connect(gateway.address, token=TOKEN) as client:
            end = await answer(client, "hello there")
            words = await client.request(capability="count", params={"text": "one two"})
            code = await asyncio.to_thread(running.end)
            agents = await client.agents(status="online")

        assert (end.content, words) == ("HELLO THERE !", 2)
        assert (code, agents) == (0, [])

    async def test_keeps_our_token_from_the_program(self, gateway, start, tmp_path):
        """The program's environment has no credential of ours."""
        path = tmp_path / "program.py"
        path.write_text(PROGRAM)
        running = start("--id", "p", "--chat", "--session", "lobby", "--", sys.executable, path)
        await asyncio.to_thread(running.wait_for, "is registered", "stderr")
        async with trunkline.connect(gateway.address, token=TOKEN) as client:
            end = await answer(client, "secret")

        assert end.content == "none"

    async def test_offers_the_schema_of_a_file(self, gateway, start, tmp_path):
        """NAME=FILE takes the JSON Schema and its description from the file."""
        schema = {"type": "object", "description": "Count words.", "required": ["text"]}
        (tmp_path / "count.json").write_text(json.dumps(schema))
        tool = f"count={tmp_path / 'count.json'}"
        running = start("--id", "liner", "--tool", tool, "--", sys.executable, str(EXAMPLE))
        await asyncio.to_thread(running.wait_for, "is registered", "stderr")
        async with trunkline.connect(gateway.address, token=TOKEN) as client:
            (entry,) = await client.agents()

        (spec,) = entry.capabilities.tools
        assert (spec.name, spec.description) == ("count", "Count words.")
        assert spec.input_schema == schema

    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["--id", "x", "--", "cat"], 2),
            (["--id", "x", "--tool", "a b", "--", "cat"], 2),
            (["--id", "x", "--tool", "a=/nonexistent", "--", "cat"], 2),
            (["--id", "not an id", "--chat", "--", "cat"], 2),
        ],
        ids=["nothing to do", "a tool's name", "a schema's file", "an id"],
    )
    def test_says_what_is_wrong_with_its_arguments(self, tmp_path, args, code):
        """A mistake in the command is a sentence and the code for wrong usage."""
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

        done = invoke(environ, "agent", "exec", *args)

        assert done.stderr
        assert done.exit_code == code
