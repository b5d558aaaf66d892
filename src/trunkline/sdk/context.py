"""What an agent's functions get to work with."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from trunkline.digests import approval_digest
from trunkline.ids import new_id, random_id
from trunkline.messages import encode
from trunkline.payloads import (
    ChatStream,
    RoutePolicy,
    SessionInfo,
    ToolResult,
    ToolResultData,
    ToolStart,
    ToolUpdate,
)
from trunkline.sdk.answer import Answer, Pieces
from trunkline.sdk.approval import Decision, ask_approval
from trunkline.sdk.client import GatewayClient
from trunkline.sdk.errors import RequestFailed, ToolError
from trunkline.sdk.messages import Message
from trunkline.sdk.session import Session
from trunkline.sdk.tools import AnyTool

if TYPE_CHECKING:
    ChatHandler = Callable[
        ["RunContext", Message], AsyncGenerator[str, None] | Awaitable[str | None]
    ]

log = logging.getLogger("trunkline.sdk")

FAILED = "the tool failed"
"""What everybody else is told of an exception that is not a `ToolError`."""


class Context:
    """
    Base of what an agent's functions get.

    Attributes:
        work_id: The run or request that is being served.
        gateway: The agent's own connection.
    """

    def __init__(self, gateway: GatewayClient, work_id: str) -> None:
        self.gateway = gateway
        self.work_id = work_id
        self.task: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the outcome any more; for functions that run in a thread."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop: coroutines are cancelled, threads see `cancelled`."""
        self._cancelled.set()
        if self.task is not None:
            self.task.cancel()

    def progress(self, percent: float, message: str | None = None) -> None:
        """
        Show how far the tool call is; may be called from any thread.

        A request from outside a session has nobody to show it to.

        Args:
            percent: From 0 to 100.
            message: A few words for people.
        """
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._show(percent, message)
        else:
            self._loop.call_soon_threadsafe(self._show, percent, message)

    def _show(self, percent: float, message: str | None) -> None:
        """Show progress to whoever can see it."""

    @property
    def _session_id(self) -> str | None:
        """The session of the run that is being served, if it is a run."""
        return None

    async def ask(
        self,
        *,
        capability: str | None = None,
        agent_id: str | None = None,
        method: str | None = None,
        params: Any = None,
        timeout: float = 60.0,
        idempotent: bool = False,
        labels: Mapping[str, str] | None = None,
        policy: RoutePolicy = "least_busy",
    ) -> Any:
        """
        Ask another agent on behalf of what is being served; ends when that ends.

        Arguments, result and errors are those of `GatewayClient.request`.
        """
        return await self.gateway.request(
            capability=capability,
            agent_id=agent_id,
            method=method,
            params=params,
            timeout=timeout,
            idempotent=idempotent,
            labels=labels,
            policy=policy,
            parent_id=self.work_id,
            session_id=self._session_id,
        )


class ToolContext(Context):
    """
    What a tool gets as ``ctx``.

    Attributes:
        session: The session that the call is shown in; None for a request from outside.
    """

    def __init__(self, gateway: GatewayClient, work_id: str, call: ToolCall | None = None) -> None:
        super().__init__(gateway, work_id)
        self.session = None if call is None else call.run.session
        self.pieces = Pieces()
        """What a request was answered with so far; for the agent."""
        self._call = call

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the outcome any more."""
        return self._cancelled.is_set() or (self._call is not None and self._call.run.cancelled)

    @property
    def _session_id(self) -> str | None:
        return None if self.session is None else self.session.id

    def _show(self, percent: float, message: str | None) -> None:
        if self._call is not None:
            self._call.progress(percent, message)


class RunContext(Context):
    """
    What a chat handler gets.

    Attributes:
        session: Where the chat was said.
        message: The chat.
        run_id: The answer's id.
    """

    def __init__(
        self,
        gateway: GatewayClient,
        tools: Mapping[str, AnyTool],
        session: Session,
        message: Message,
        run_id: str,
    ) -> None:
        super().__init__(gateway, run_id)
        self.session = session
        self.message = message
        self.run_id = run_id
        self.answer = Answer()
        self.chunk_prefix = new_id()
        """How the ids of its chunks begin: ``<prefix>.<index>``."""
        self._tools = tools
        self._calls: list[ToolCall] = []
        self._pause: asyncio.TimerHandle | None = None

    async def tool(self, name: str, args: Mapping[str, Any] | None = None) -> Any:
        """
        Call one of the agent's own tools, for all to see.

        Raises:
            ToolError: There is no such tool, its arguments do not fit, or it says so.
        """
        async with self.tool_call(name, args) as call:
            tool = self._tools.get(name)
            if tool is None:
                raise ToolError(f"there is no tool {name}")
            arguments = tool.check(encode(args or {}))
            context = ToolContext(self.gateway, self.work_id, call)
            call.output = await tool.call(arguments, context)
        return call.output

    async def approve(
        self, tool: str, args: Mapping[str, Any] | None = None, *, timeout: float = 300.0
    ) -> Decision:
        """
        Ask the people in the session whether this tool may run with these arguments.

        Args:
            tool: What is to run.
            args: With what; what was approved is exactly this.
            timeout: Seconds, at most 24 hours, after which the answer is no.

        Returns:
            What was decided; it is true if the tool may run.

        Raises:
            ToolError: The arguments were changed while one waited.
            ValueError: They have no canonical JSON, such as very large integers.
            RequestFailed: The gateway refused the question.
        """
        asked = approval_digest(tool, dict(args or {}))
        decision = await ask_approval(self, tool, args or {}, asked, timeout)
        if decision and approval_digest(tool, dict(args or {})) != asked:
            raise ToolError("the arguments are not those that were approved")
        return decision

    def tool_call(self, name: str, args: Mapping[str, Any] | None = None) -> ToolCall:
        """
        Show the body of an ``async with`` as a tool call.

        Set `output` of what it returns; an exception is shown as a failure.
        """
        return ToolCall(self, name, args or {})

    @property
    def _session_id(self) -> str | None:
        return self.session.id

    def _show(self, percent: float, message: str | None) -> None:
        if self._calls:
            self._calls[-1].progress(percent, message)

    # For the agent

    async def consume(self, handler: ChatHandler) -> None:
        """Run a handler and send what it says."""
        outcome = handler(self, self.message)
        if inspect.isawaitable(outcome):
            self.answer.write(await outcome or "")
            return
        async with aclosing(outcome) as texts:
            async for text in texts:
                self.answer.write(text)
                self.send_text()
                await self.gateway.wire.connection.drain()

    def send_text(self, info: SessionInfo | None = None) -> None:
        """Send the text that the gateway has not got; without a connection it waits."""
        if self._pause is not None:
            return
        while self.session.attached and (chunk := self.answer.take()) is not None:
            index, content = chunk
            stream = ChatStream(content=content, index=index, run_id=self.run_id)
            id = f"{self.chunk_prefix}.{index}"
            self.session.post("chat_stream", stream, id=id, reply_to=self.message.id)

    def chunk_refused(self, index: int, error: RequestFailed) -> None:
        """Send the text again from the chunk that the gateway expects, after the time it asks for."""
        expected = error.details.get("expected", index if error.retryable else None)
        if expected is None:
            return
        self.answer.rewind(expected - 1)
        if self._pause is None:
            wait = error.retry_after or 0.0
            self._pause = self._loop.call_later(wait, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.send_text()

    def ended(self) -> None:
        """Nothing is sent any more."""
        if self._pause is not None:
            self._pause.cancel()

    def entered(self, call: ToolCall) -> None:
        """A tool call begins."""
        self._calls.append(call)

    def left(self, call: ToolCall) -> None:
        """A tool call has ended."""
        self._calls.remove(call)


class ToolCall:
    """
    A tool call that everybody in the session can see.

    Attributes:
        id: The call's id.
        output: What is shown as its result; anything that JSON can say.
    """

    def __init__(self, run: RunContext, name: str, args: Mapping[str, Any]) -> None:
        self.id = random_id()
        self.run = run
        self.output: Any = None
        self._name = name
        self._args = args

    def progress(self, percent: float, message: str | None = None) -> None:
        """Show how far it is: `percent` from 0 to 100, and a few words."""
        update = ToolUpdate(
            run_id=self.run.run_id,
            tool=self._name,
            tool_call_id=self.id,
            progress=min(100.0, max(0.0, percent)),
            message=message,
        )
        self.run.session.post("tool_update", update, reply_to=self.run.message.id)

    async def __aenter__(self) -> ToolCall:
        start = ToolStart(
            run_id=self.run.run_id,
            tool=self._name,
            tool_call_id=self.id,
            args=Raw(encode(self._args)),
        )
        await self.run.session.publish("tool_start", start, reply_to=self.run.message.id)
        self.run.entered(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run.left(self)
        if error is None:
            data = ToolResultData(success=True, output=self.output)
        elif isinstance(error, Exception):
            data = ToolResultData(success=False, error=failure_text(error))
        else:
            # Cancelled: the run's end says so.
            return
        result = ToolResult(
            run_id=self.run.run_id, tool=self._name, tool_call_id=self.id, result=data
        )
        await self.run.session.publish("tool_result", result, reply_to=self.run.message.id)


def failure_text(error: Exception) -> str:
    """Say what others may know of an exception."""
    return error.message if isinstance(error, ToolError) else FAILED
