"""
An MCP server as an agent: its tools are the agent's tools.

The server is a program that speaks the Model Context Protocol over its
standard input and output; the official ``mcp`` package (the extra
``trunkline[mcp]``) speaks it on our side. Names, descriptions and schemas are
the server's, and change when it says so. When it ends it is started again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import mcp
from mcp.client.stdio import stdio_client
from mcp.client.subscriptions import ListenNotSupportedError
from mcp.shared.message import SessionMessage

from trunkline.bridges.processes import keep_alive, log, log_lines
from trunkline.ids import valid_id
from trunkline.payloads import ToolSpec
from trunkline.sdk.agent import Agent
from trunkline.sdk.context import ToolContext
from trunkline.sdk.errors import ToolError, TrunklineError
from trunkline.sdk.tools import AnyTool

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MAX_TOOLS = 1_000
"""Tools that one server may offer; the rest is left out."""

MAX_DESCRIPTION = 4_096
"""Characters of a description that travel."""


class McpServer:
    """
    An MCP server that is kept running; use it as ``async with``.

    Args:
        command: The server's program and its arguments.
        agent: Gets the server's tools.
        environ: The server's environment; None: the few variables that the
            ``mcp`` package passes on.

    Raises:
        OSError: On entering: the program cannot be started.
        TrunklineError: On entering: it does not speak the protocol.
    """

    def __init__(
        self, command: Sequence[str], agent: Agent, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = os.path.basename(command[0])
        self._parameters = mcp.StdioServerParameters(
            command=command[0],
            args=list(command[1:]),
            env=None if environ is None else dict(environ),
        )
        self._agent = agent
        self._client: mcp.Client | None = None
        self._ended = False
        self._news = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> McpServer:
        self._keeper = asyncio.create_task(keep_alive(self.name, self._live))
        try:
            await self._ready
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)

    # Its life

    async def _live(self) -> str:
        """Run the server once; returns how it ended."""
        try:
            await self._serve()
        except Exception as failure:
            # Which exceptions, and in how many groups, is the package's business.
            error = _first(failure)
            if not self._ready.done():
                refused = TrunklineError(f"{self.name} is no MCP server that can be used: {error}")
                self._ready.set_exception(error if isinstance(error, OSError) else refused)
            return f"failed: {error}"
        finally:
            self._client = None
        return "ended"

    async def _serve(self) -> None:
        self._ended = False
        client = mcp.Client(self._transport(), message_handler=self._on_message, cache=None)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(client)
            # From 2026 on a server tells of changes only who has asked for that.
            with suppress(ListenNotSupportedError, mcp.MCPError):
                await stack.enter_async_context(client.listen(tools_list_changed=True))
            self._client = client
            while not self._ended:
                self._news.clear()
                await self._list_tools(client)
                if not self._ready.done():
                    self._ready.set_result(None)
                await self._news.wait()

    @asynccontextmanager
    async def _transport(self) -> AsyncGenerator[TransportStreams, None]:
        """Run the server's process; its end is noticed, and its stderr logged."""
        async with _logged(self.name) as errors, stdio_client(self._parameters, errors) as pipes:
            source, sink = pipes
            give, take = anyio.create_memory_object_stream[SessionMessage | Exception](0)

            async def relay() -> None:
                async with give:
                    async for message in source:
                        await give.send(message)
                self._ended = True
                self._news.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(relay)
                yield take, sink
                tasks.cancel_scope.cancel()

    async def _on_message(self, message: object) -> None:
        if getattr(message, "method", None) == "notifications/tools/list_changed":
            self._news.set()

    async def _list_tools(self, client: mcp.Client) -> None:
        found: list[mcp.Tool] = []
        cursor: str | None = None
        while len(found) < MAX_TOOLS:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                break
        for tool in found:
            if not valid_id(tool.name):
                log.warning("%s has a tool with an unusable name: %s", self.name, tool.name)
        usable = [McpTool(self, tool) for tool in found[:MAX_TOOLS] if valid_id(tool.name)]
        self._agent.tools = {tool.name: tool for tool in usable}
        log.info("%s offers %d tools", self.name, len(usable))
        self._agent.announce()

    # Its work

    async def call(self, name: str, arguments: dict[str, Any], context: ToolContext | None) -> Any:
        """
        Call one of the server's tools and return what it says.

        Raises:
            ToolError: The tool failed, or the server has ended.
        """

        async def show(progress: float, total: float | None, message: str | None) -> None:
            if context is not None and total:
                context.progress(min(100.0, 100 * progress / total), message)

        if self._client is None:
            raise ToolError("the MCP server is not running; it will be started again", "OVERLOADED")
        try:
            result = await self._client.call_tool(name, arguments, progress_callback=show)
        except mcp.MCPError as error:
            raise ToolError(str(error), "AGENT_LOST" if self._ended else "TOOL_ERROR") from None
        return _outcome(result)


class McpTool(AnyTool):
    """
    A tool of an MCP server.

    Args:
        server: The server.
        tool: How the server describes it.
    """

    def __init__(self, server: McpServer, tool: mcp.Tool) -> None:
        text = None if tool.description is None else tool.description[:MAX_DESCRIPTION]
        super().__init__(
            ToolSpec(name=tool.name, description=text, input_schema=dict(tool.input_schema))
        )
        self._server = server

    async def call(self, arguments: dict[str, Any], context: ToolContext | None = None) -> Any:
        """Call the server's tool; see `McpServer.call`."""
        return await self._server.call(self.name, arguments, context)


def _outcome(result: mcp.types.CallToolResult) -> Any:
    """Return structured content, else text, else the content blocks as they are."""
    texts = [block.text for block in result.content if block.type == "text"]
    if result.is_error:
        raise ToolError("\n".join(texts) or "the tool failed")
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [b.model_dump(mode="json", by_alias=True, exclude_none=True) for b in result.content]


@asynccontextmanager
async def _logged(what: str) -> AsyncGenerator[Any, None]:
    """Yield a file whose lines go to our log."""
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    with os.fdopen(write_end, "w") as errors:
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
        )
        telling = asyncio.create_task(log_lines(what, reader))
        try:
            yield errors
        finally:
            pipe.close()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


def _first(error: Exception) -> Exception:
    """Return the exception that a group, or a group of groups, is about."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
