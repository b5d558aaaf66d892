"""
A model behind an OpenAI-compatible API as an agent that chats.

The conversation is the session's own log. The tools of the other agents are
offered to the model; what it calls is asked of them through the gateway, on
behalf of the chat, and shown in the session.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from trunkline.payloads import AgentEntry, ToolSpec
from trunkline.sdk.agent import Agent
from trunkline.sdk.context import RunContext
from trunkline.sdk.errors import InsecureConnection, ToolError, TrunklineError
from trunkline.sdk.messages import Message
from trunkline.sdk.policy import is_loopback

log = logging.getLogger("trunkline.bridges")

MAX_ROUNDS = 8
"""How often the model may call tools before it has to answer."""

MAX_TOOLS = 128
"""Tools that are offered to the model; the API takes no more."""

HISTORY_MESSAGES = 40
"""Earlier messages that the model gets to see, at most."""

HISTORY_CHARACTERS = 64 * 1024
"""Characters of them, at most; the oldest are left out."""

RESULT_CHARACTERS = 32 * 1024
"""Characters of one tool's result that the model gets to see."""

TIMEOUT = httpx.Timeout(10.0, read=120.0, write=30.0)
"""Seconds; a model may think for a while before its first word."""


class _FunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _FunctionDelta = _FunctionDelta()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Call(msgspec.Struct):
    """A function that the model calls."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    """JSON, as the model wrote it."""


class Turn:
    """What the model says in one go: text, calls, or both."""

    def __init__(self) -> None:
        self.text = ""
        self._calls: dict[int, Call] = {}

    @property
    def calls(self) -> list[Call]:
        """The functions that the model calls, in its order."""
        return [self._calls[index] for index in sorted(self._calls)]

    def feed(self, delta: _Delta) -> str:
        """Take a piece of the model's stream and return the text in it."""
        for piece in delta.tool_calls or ():
            call = self._calls.setdefault(piece.index, Call())
            call.id = piece.id or call.id
            call.name += piece.function.name or ""
            call.arguments += piece.function.arguments or ""
        text = delta.content or ""
        self.text += text
        return text

    def message(self) -> dict[str, Any]:
        """Return the turn as the API wants it back."""
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in self.calls
        ]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}


class Offer(NamedTuple):
    """A tool of another agent, as the model may call it."""

    agent_id: str
    tool: ToolSpec

    def function(self, name: str) -> dict[str, Any]:
        """Return it as the API describes functions."""
        about = {"name": name, "description": self.tool.description or self.tool.name}
        schema = self.tool.input_schema or {"type": "object"}
        return {"type": "function", "function": {**about, "parameters": schema}}


class Model:
    """
    An endpoint that speaks the chat completions API; use it as ``async with``.

    Args:
        base_url: What ``/chat/completions`` is appended to.
        name: The model.
        api_key: Goes to `base_url` and nowhere else; redirects are not followed.

    Raises:
        ValueError: Not an address.
        InsecureConnection: The key would travel unencrypted to another machine.
    """

    def __init__(self, base_url: str, name: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an endpoint's address: {base_url}")
        if api_key and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InsecureConnection(
                f"the API key would travel unencrypted to {parts.hostname}: use https://"
            )
        self.name = name
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT)

    async def __aenter__(self) -> Model:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def stream(
        self, turn: Turn, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
    ) -> AsyncGenerator[str, None]:
        """
        Ask the model, fill `turn`, and yield its text as it comes.

        Raises:
            ToolError: The endpoint refuses, fails, or cannot be reached.
        """
        ask: dict[str, Any] = {"model": self.name, "messages": messages, "stream": True}
        if tools:
            ask["tools"] = tools
        try:
            async with self._http.stream("POST", self._url, json=ask) as response:
                await _check(response)
                async for chunk in _chunks(response):
                    for choice in chunk.choices[:1]:
                        if text := turn.feed(choice.delta):
                            yield text
        except httpx.HTTPError as error:
            log.warning("the model's endpoint: %s", error or type(error).__name__)
            raise ToolError("the model's endpoint cannot be reached") from None


async def _check(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        body = await anext(response.aiter_text(1024), "")
        log.warning("the model's endpoint answered %d: %s", response.status_code, body)
        raise ToolError(f"the model's endpoint answered with HTTP {response.status_code}")


async def _chunks(response: httpx.Response) -> AsyncIterator[_Chunk]:
    """Yield the events of a stream up to its end mark."""
    async for line in response.aiter_lines():
        field, _, data = line.partition(":")
        if field != "data" or not data.strip():
            continue
        if data.strip() == "[DONE]":
            return
        try:
            chunk = _decode_chunk(data)
        except msgspec.MsgspecError as error:
            log.warning("the model's endpoint sent what makes no sense: %s", error)
            raise ToolError("the model's endpoint does not speak the API") from None
        if chunk.error is not None:
            log.warning("the model's endpoint failed: %s", chunk.error)
            raise ToolError("the model failed")
        yield chunk


def openai_agent(
    model: Model, id: str, *, name: str = "", system: str = "", sessions: Sequence[str] = ()
) -> Agent:
    """
    Return the agent that a model is.

    Args:
        model: The model, entered while the agent serves.
        id: The agent's id.
        name: Its name for people; empty: the model's.
        system: What the model is told before the conversation.
        sessions: The sessions that it joins.
    """
    agent = Agent(id, name=name or model.name, sessions=sessions)

    @agent.on_chat
    async def reply(ctx: RunContext, message: Message) -> AsyncGenerator[str, None]:
        messages = [{"role": "system", "content": system}] if system else []
        messages += await _conversation(ctx, message, id)
        offers = offered(await ctx.gateway.agents(status="online"), id)
        functions = [offer.function(name) for name, offer in offers.items()]
        for _ in range(MAX_ROUNDS):
            turn = Turn()
            async with aclosing(model.stream(turn, messages, functions)) as texts:
                async for text in texts:
                    yield text
            if not turn.calls:
                return
            messages.append(turn.message())
            for call in turn.calls:
                said = await _carry_out(ctx, offers, call)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
        raise ToolError(f"the model called tools {MAX_ROUNDS} times without an answer")

    return agent


async def _conversation(ctx: RunContext, message: Message, id: str) -> list[dict[str, Any]]:
    """Return what was said up to and with `message`, oldest first."""
    page = await ctx.session.history(before=message.seq, limit=HISTORY_MESSAGES)
    said = [m for m in page.messages if m.type in ("chat", "chat_complete") and m.text]
    kept: list[Message] = []
    room = HISTORY_CHARACTERS
    for earlier in reversed([*said, message]):
        room -= len(earlier.text)
        if room < 0 and kept:
            break
        kept.insert(0, earlier)
    others = {m.author for m in kept if m.author != id}
    return [_line(m, id, named=len(others) > 1) for m in kept]


def _line(message: Message, id: str, *, named: bool) -> dict[str, Any]:
    if message.author == id:
        return {"role": "assistant", "content": message.text}
    text = f"{message.author}: {message.text}" if named else message.text
    return {"role": "user", "content": text}


def offered(agents: Iterable[AgentEntry], id: str) -> dict[str, Offer]:
    """Return the tools of all agents but `id`, under names that the API takes."""
    offers: dict[str, Offer] = {}
    for agent in agents:
        if agent.id == id:
            continue
        for tool in agent.capabilities.tools:
            spec = tool if isinstance(tool, ToolSpec) else ToolSpec(name=tool)
            name = _function_name(spec.name)
            if name in offers:
                name = _function_name(f"{agent.id}-{spec.name}")
            if name not in offers and len(offers) < MAX_TOOLS:
                offers[name] = Offer(agent.id, spec)
    return offers


def _function_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64]


async def _carry_out(ctx: RunContext, offers: dict[str, Offer], call: Call) -> str:
    """Ask the agent whose tool the model calls; the model learns of failures too."""
    offer = offers.get(call.name)
    if offer is None:
        return f"error: there is no tool {call.name}"
    try:
        params = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        return f"error: the arguments are no JSON object: {error}"
    try:
        async with ctx.tool_call(offer.tool.name, params) as shown:
            shown.output = await ctx.ask(
                agent_id=offer.agent_id, method=offer.tool.name, params=params
            )
    except TrunklineError as error:
        return f"error: {error}"
    return msgspec.json.encode(shown.output).decode()[:RESULT_CHARACTERS]
