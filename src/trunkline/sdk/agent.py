"""
Agents: programs that answer chats and offer tools.

    agent = trunkline.Agent("demo", sessions=["lobby"])

    @agent.on_chat
    async def reply(ctx, message):
        yield f"You said: {message.text}"

    @agent.tool
    def add(a: int, b: int) -> int:
        \"\"\"Add two numbers.\"\"\"
        return a + b

    agent.run("ws://127.0.0.1:18789", token=token)
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from trunkline.ids import valid_id
from trunkline.payloads import AgentCapabilities, AgentRegister, AgentType
from trunkline.sdk.client import GatewayClient, Options
from trunkline.sdk.serving import Serving
from trunkline.sdk.threads import dial_in_thread
from trunkline.sdk.tools import AnyTool, Tool

if TYPE_CHECKING:
    from trunkline.sdk.context import ChatHandler

F = TypeVar("F", bound=Callable[..., Any])


class Agent:
    """
    What an agent is and can do; `run` or `serve` put it to work.

    Args:
        id: Its id; it belongs to the user that registers it first.
        name: Its name for people; empty: the id.
        type: What kind it is.
        sessions: The sessions that it joins; they are made if there are none.
            Others it is assigned to.
        modes: Further words under which it is found.
        metadata: Anything; those who list agents see it.
        labels: For requests that choose by label.
        max_concurrent: Chats and requests at a time; 0 is unlimited.
        grace: Seconds, at most 60, that its work outlives a lost connection.
        drain_timeout: Seconds that work gets to end when the agent stops.
    """

    def __init__(
        self,
        id: str,
        *,
        name: str = "",
        type: AgentType = "custom",
        sessions: Sequence[str] = (),
        modes: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        max_concurrent: int = 0,
        grace: float = 10.0,
        drain_timeout: float = 10.0,
    ) -> None:
        if not valid_id(id):
            raise ValueError(f"not an agent's id: {id!r}")
        self.id = id
        self.sessions = tuple(sessions)
        self.max_concurrent = max_concurrent
        self.drain_timeout = drain_timeout
        self.tools: dict[str, AnyTool] = {}
        self.chat_handler: ChatHandler | None = None
        self._name = name
        self._type = type
        self._modes = list(modes)
        self._metadata = None if metadata is None else dict(metadata)
        self._labels = None if labels is None else dict(labels)
        self._grace = grace
        self._serving: list[Serving] = []

    def __repr__(self) -> str:
        return f"Agent({self.id!r})"

    # What it can do

    def on_chat(self, handler: F) -> F:
        """
        Answer chats with this function of a `RunContext` and a `Message`.

        It is an asynchronous generator of text, or a coroutine that returns
        the whole text. What it raises ends the answer with an error: a
        `ToolError` says why to everybody, anything else is logged here only.
        """
        self.chat_handler = handler
        return handler

    def tool(self, function: F) -> F:
        """Offer a function as a tool, under its own name; see `Tool`."""
        self.add_tool(function)
        return function

    def add_tool(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        input_schema: dict[str, Any] | None = None,
    ) -> Tool:
        """Offer a function as a tool; arguments and errors are those of `Tool`."""
        tool = Tool(function, name=name, description=description, input_schema=input_schema)
        self.tools[tool.name] = tool
        return tool

    def registration(self, generation: int | None = None) -> AgentRegister:
        """Return what it announces; with the `generation` of the registration to take over."""
        chat = self.chat_handler is not None
        return AgentRegister(
            id=self.id,
            agent_type=self._type,
            name=self._name or self.id,
            capabilities=AgentCapabilities(
                chat=chat,
                streaming=chat,
                tools=[tool.spec for tool in self.tools.values()],
                modes=self._modes,
            ),
            metadata=self._metadata,
            max_concurrent=self.max_concurrent,
            labels=self._labels,
            grace_ms=round(self._grace * 1000),
            resume=None if generation is None else {"generation": generation},
        )

    def announce(self) -> None:
        """Tell the gateway, where it serves, that `tools` or the chat handler have changed."""
        for serving in self._serving:
            serving.announce()

    # Putting it to work

    def run(self, url: str, **options: Unpack[Options]) -> None:
        """
        Serve until SIGINT or SIGTERM, then finish what is at work and return.

        A second signal ends it at once. Arguments and errors are those of `serve`.
        """
        try:
            asyncio.run(self.serve_until_signal(url, **options))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    async def serve_until_signal(self, url: str, **options: Unpack[Options]) -> None:
        """
        Serve until SIGINT or SIGTERM; a second one cancels the calling task.

        Only in a program's main thread. Arguments and errors are those of `serve`.
        """
        task = asyncio.current_task()
        assert task is not None

        def on_signal() -> None:
            if not self.stop():
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, on_signal)
            except NotImplementedError:
                # Windows: Ctrl-C is a KeyboardInterrupt.
                break
        await self.serve(url, **options)

    async def serve(self, url: str, **options: Unpack[Options]) -> None:
        """
        Serve until `stop`; comes back by itself after a lost connection.

        Args:
            url: The gateway's address.
            options: See `Options`; unless they say otherwise the role is
                ``node``, the first connection is tried for ever, and the
                socket lives in a thread of its own, so that functions which
                block do not lose it.

        Raises:
            SignInFailed: Another credential is needed.
            RequestFailed: The gateway refuses the registration.
            ConnectionLost: The gateway does not want the connection any more,
                such as when another program has registered the id.
        """
        async with self.serving(url, **options) as serving:
            await serving.until_stopped()

    @asynccontextmanager
    async def serving(self, url: str, **options: Unpack[Options]) -> AsyncIterator[Serving]:
        """
        Serve while the body of the ``async with`` runs, then finish what is at work.

        When the body begins, the agent is registered and in its sessions.
        Arguments and errors are those of `serve`.
        """
        settings: Options = {
            "role": "node",
            "open_timeout": math.inf,
            "dial": dial_in_thread,
            **options,
        }
        serving = Serving(self, GatewayClient(url, **settings))
        self._serving.append(serving)
        try:
            await serving.open()
            yield serving
            await serving.drain()
        finally:
            self._serving.remove(serving)
            await serving.close()

    def stop(self) -> bool:
        """Begin no more work, finish what is at work, and return from `serve`; False if it is at that already."""
        first = [serving for serving in self._serving if not serving.stopping]
        for serving in first:
            serving.stop()
        return bool(first)
