"""
Any program as an agent: it reads lines of JSON and writes lines of JSON.

To the program's standard input, one object per line:

    {"type": "chat", "id": ID, "text": ..., "author": ..., "session": ...}
    {"type": "call", "id": ID, "tool": NAME, "args": {...}}
    {"type": "cancel", "id": ID}        nobody waits for this any more

From its standard output, in any order, each with the id of what it answers:

    {"id": ID, "chunk": ...}            a piece of the answer; of a chat, some text
    {"id": ID, "progress": 0 to 100, "message": "a few words"}
    {"id": ID, "text": ...}             the last piece; ends a chat
    {"id": ID, "result": ...}           anything; ends a call
    {"id": ID, "error": "why not"}      ends either

What it writes to its standard error goes to our log. When it ends, its open
work ends with an error, and it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from trunkline.bridges.processes import keep_alive, log_lines
from trunkline.ids import new_id
from trunkline.messages import encode
from trunkline.payloads import ToolSpec
from trunkline.sdk.agent import Agent
from trunkline.sdk.context import RunContext, ToolContext
from trunkline.sdk.errors import ToolError
from trunkline.sdk.mailbox import Mailbox
from trunkline.sdk.messages import Message
from trunkline.sdk.tools import AnyTool

log = logging.getLogger("trunkline.bridges")

MAX_LINE = 1024 * 1024
"""Bytes in one line of the program; it is ended for a longer one."""

PATIENCE = 3.0
"""Seconds that the program has to end after its standard input was closed, and again after SIGTERM."""

NOT_RUNNING = "the program is not running; it will be started again"


class Reply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the program."""

    id: str
    chunk: Any = UNSET
    text: str | UnsetType = UNSET
    result: Any = UNSET
    error: str | None = None
    progress: Annotated[float, Meta(ge=0, le=100)] | None = None
    message: str | None = None

    @property
    def ends(self) -> bool:
        """Whether nothing follows."""
        return self.error is not None or not (self.text is UNSET and self.result is UNSET)


_decode = msgspec.json.Decoder(Reply).decode


class Program:
    """
    A program that is kept running; use it as ``async with``.

    Args:
        command: The program and its arguments.
        environ: Its environment; None: our own.

    Raises:
        OSError: On entering: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self.name = os.path.basename(command[0])
        self._command = tuple(command)
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self._open: dict[str, Mailbox[Reply]] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Program:
        # The first start fails here, where somebody can correct the command.
        self._process = await self._start()
        self._keeper = asyncio.create_task(keep_alive(self.name, self._live))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)

    # Its life

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
            limit=MAX_LINE,
            # Ctrl-C at our terminal is ours: the program may finish what it does.
            start_new_session=True,
        )

    async def _live(self) -> str:
        """Run the program once; returns how it ended."""
        process = self._process = self._process or await self._start()
        assert process.stderr is not None
        telling = asyncio.create_task(log_lines(self.name, process.stderr))
        try:
            flaw = await self._read(process)
            await _end(process, at_once=flaw is not None)
            return flaw or f"ended with {process.returncode}"
        finally:
            self._process = None
            self._abandon()
            await _end(process)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    def _abandon(self) -> None:
        """What was asked of a program that is gone will not be answered."""
        for box in self._open.values():
            box.end(ToolError("the program ended before it answered", "AGENT_LOST"))

    async def _read(self, process: asyncio.subprocess.Process) -> str | None:
        """Read its answers to the end; returns what was wrong with it, if anything."""
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                if line.strip():
                    await self._on_line(line)
        except ValueError:
            return f"wrote a line of more than {MAX_LINE} bytes and was ended"
        return None

    async def _on_line(self, line: bytes) -> None:
        try:
            reply = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("%s wrote a line that is no answer: %s", self.name, error)
            return
        box = self._open.get(reply.id)
        if box is None:
            return
        # A slow asker holds the program back, but not for long: others wait too.
        if await box.room():
            box.put(reply, len(line))
        else:
            box.end(ToolError("the answer was read too slowly"))

    # Its work

    async def ask(self, type: str, **fields: Any) -> AsyncGenerator[Reply, None]:
        """
        Give the program some work and yield its answers, of which the last ends it.

        Leaving early tells the program that nobody waits any more.

        Raises:
            ToolError: The program says no, or has ended.
        """
        id = new_id()
        box = self._open[id] = Mailbox[Reply]()
        over = False
        try:
            await self._tell({"type": type, "id": id, **fields})
            while not over:
                reply = await box.get()
                over = reply.ends
                if reply.error is not None:
                    raise ToolError(reply.error or "the program failed")
                yield reply
        except ToolError:
            over = True
            raise
        finally:
            del self._open[id]
            if not over:
                self._write({"type": "cancel", "id": id})

    async def _tell(self, line: dict[str, Any]) -> None:
        try:
            if (stdin := self._write(line)) is None:
                raise ToolError(NOT_RUNNING, "OVERLOADED")
            await stdin.drain()
        except OSError:
            raise ToolError(NOT_RUNNING, "OVERLOADED") from None

    def _write(self, line: dict[str, Any]) -> asyncio.StreamWriter | None:
        stdin = None if self._process is None else self._process.stdin
        if stdin is None or stdin.is_closing():
            return None
        stdin.write(encode(line) + b"\n")
        return stdin


async def _end(process: asyncio.subprocess.Process, *, at_once: bool = False) -> None:
    """End a program: by closing its input, then by SIGTERM, then by SIGKILL."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (None, signal.SIGTERM, signal.SIGKILL)[at_once:]:
        if process.returncode is not None:
            return
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), PATIENCE)


class ProgramTool(AnyTool):
    """
    A tool that a program carries out.

    Args:
        program: The program.
        spec: How the tool is announced.
    """

    def __init__(self, program: Program, spec: ToolSpec) -> None:
        super().__init__(spec, streams=True)
        self._program = program

    async def call(self, arguments: dict[str, Any], context: ToolContext | None = None) -> Any:
        """Return the program's result; where that is null, the list of its chunks."""
        chunks: list[Any] = []
        async for reply in self._replies(arguments, context):
            if reply.chunk is not UNSET:
                chunks.append(reply.chunk)
        result = _result(reply)
        return chunks if result is None and chunks else result

    async def stream(
        self, arguments: dict[str, Any], context: ToolContext | None = None
    ) -> AsyncIterator[Any]:
        """Yield the program's chunks, then its result unless that is null."""
        async for reply in self._replies(arguments, context):
            if reply.chunk is not UNSET:
                yield reply.chunk
        if (result := _result(reply)) is not None:
            yield result

    async def _replies(
        self, arguments: dict[str, Any], context: ToolContext | None
    ) -> AsyncIterator[Reply]:
        replies = self._program.ask("call", tool=self.name, args=arguments)
        async with aclosing(replies):
            async for reply in replies:
                if reply.progress is not None and context is not None:
                    context.progress(reply.progress, reply.message)
                yield reply


def _result(reply: Reply) -> Any:
    return reply.text if reply.result is UNSET else reply.result


def exec_agent(
    program: Program,
    id: str,
    *,
    name: str = "",
    tools: Sequence[ToolSpec] = (),
    chat: bool = False,
    sessions: Sequence[str] = (),
) -> Agent:
    """
    Return the agent that a program is.

    Args:
        program: The program, running while the agent serves.
        id: The agent's id.
        name: Its name for people; empty: the id.
        tools: What it can be asked for.
        chat: Whether it answers chats.
        sessions: The sessions that it joins.
    """
    agent = Agent(id, name=name, type="cli", sessions=sessions)
    for spec in tools:
        agent.tools[spec.name] = ProgramTool(program, spec)

    async def reply(ctx: RunContext, message: Message) -> AsyncGenerator[str, None]:
        replies = program.ask(
            "chat", text=message.text, author=message.author, session=ctx.session.id
        )
        async with aclosing(replies):
            async for answer in replies:
                if answer.progress is not None:
                    ctx.progress(answer.progress, answer.message)
                for text in (answer.chunk, _result(answer)):
                    if isinstance(text, str):
                        yield text

    if chat:
        agent.on_chat(reply)
    return agent
