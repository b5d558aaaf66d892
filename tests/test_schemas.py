"""Tool schemas: checked at registration, and their arguments before an agent is bothered."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw
from peers import details_of, error_of, person

from trunkline.errors import GatewayError
from trunkline.messages import GatewayMessage, encode
from trunkline.payloads import AgentCapabilities, ToolSpec
from trunkline.schemas import check_arguments, compile_tools
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a"],
    "additionalProperties": False,
}


def tools(schema: dict[str, Any]) -> AgentCapabilities:
    return AgentCapabilities(tools=[ToolSpec(name="add", input_schema=schema)])


async def offering(gateway: GatewayServer, schema: dict[str, Any], **more) -> PeerClient:
    peer = PeerClient(gateway, person("bots", "node"))
    payload = {"id": "bot", "capabilities": encoded(tools(schema)), **more}
    assert (await peer.ask("agent_register", payload)).type == "agent_registered"
    return peer


def encoded(capabilities: AgentCapabilities) -> Raw:
    return Raw(encode(capabilities))


async def ask(gateway: GatewayServer, **payload) -> tuple[PeerClient, str]:
    ada = PeerClient(gateway, person("ada"))
    return ada, ada.send("route_request", payload)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"a": "1"}, "$.params.a"),
        ({"a": 1, "b": [1, "2"]}, "$.params.b[1]"),
        ({}, "$.params"),
        (None, "$.params"),
        ({"a": 1, "c": 2}, "$.params"),
        ([], "$.params"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_with_their_path(gateway, params, path):
    """The agent does not hear of the request."""
    bot = await offering(gateway, ADD)

    ada, request = await ask(gateway, capability="tools:add", params=params)
    refusal = await ada.next(reply_to=request)

    assert error_of(refusal) == "INVALID_PAYLOAD"
    assert details_of(refusal) == {"path": path, "delivered": False}
    assert bot.received() == []


@pytest.mark.parametrize("asked", [{"capability": "add"}, {"agentId": "bot", "method": "add"}])
async def test_arguments_that_fit_go_on_byte_for_byte(gateway, asked):
    """However the tool is named."""
    bot = await offering(gateway, ADD)

    await ask(gateway, **asked, params=Raw(b'{"a" : 1}'))
    delivery: GatewayMessage = await bot.next("route_request")

    assert b'"params":{"a" : 1}' in bytes(delivery.payload)


async def test_arguments_of_a_request_that_waits_are_checked_too(gateway):
    """When its turn comes; the agent is then free for the next."""
    bot = await offering(gateway, ADD, maxConcurrent=1)
    _, _ = await ask(gateway, capability="add", params={"a": 1})
    eve, wrong = await ask(gateway, capability="add", params={"a": "?"})
    await ask(gateway, capability="add", params={"a": 2})
    first = await bot.next("route_request")

    bot.send("route_response", {"requestId": first.data()["requestId"]})
    second = await bot.next("route_request")

    assert error_of(await eve.next(reply_to=wrong)) == "INVALID_PAYLOAD"
    assert second.data()["params"] == {"a": 2}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "http://192.0.2.1/schema"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "#/nowhere"},
        {"$schema": "http://192.0.2.1/draft"},
        {"pattern": "("},
        {"description": "x" * 70_000},
    ],
)
async def test_a_schema_that_cannot_be_used_is_refused_at_registration(gateway, schema):
    """With its place; nothing outside it is fetched."""
    peer = PeerClient(gateway, person("bots", "node"))

    refusal = await peer.ask(
        "agent_register", {"id": "bot", "capabilities": encoded(tools(schema))}
    )

    assert error_of(refusal) == "INVALID_PAYLOAD"
    assert details_of(refusal)["path"] == "$.capabilities.tools[0].inputSchema"
    assert gateway.agents.get_agent("bot") is None


async def test_an_update_with_a_bad_schema_leaves_the_registration_as_it_was(gateway):
    """It is refused as a whole."""
    bot = await offering(gateway, ADD)

    refusal = await bot.ask(
        "agent_register", {"id": "bot", "capabilities": encoded(tools({"type": 1}))}
    )

    assert error_of(refusal) == "INVALID_PAYLOAD"
    assert len(gateway.agents.find_by_capability("add")) == 1


async def test_the_list_of_agents_shows_the_schemas(gateway):
    """As they were announced."""
    bot = await offering(gateway, ADD)

    listed = (await bot.ask("agent_list")).data()["agents"]

    assert listed[0]["capabilities"]["tools"] == [{"name": "add", "inputSchema": ADD}]


def test_a_pattern_that_would_try_for_ever_gives_up():
    """The arguments count as wrong."""
    schema = {"properties": {"s": {"pattern": r"^(?=(a+)+$)(a|aa)+\1$"}}}
    validator = compile_tools(tools(schema))["add"]

    with pytest.raises(GatewayError, match="INVALID_PAYLOAD"):
        check_arguments(validator, Raw(encode({"s": "a" * 60 + "!"})))


def test_the_same_schema_is_compiled_once():
    """A thousand agents of one program cost as much as one."""
    first = compile_tools(tools(ADD))["add"]

    assert compile_tools(tools(dict(ADD)))["add"] is first
