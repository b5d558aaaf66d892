"""
What happens in the runs that one chat message opened. No I/O here.

`RunEvents` takes the session's messages and gives the events of its own runs.
Chunks may come twice or joined (after a reconnect the gateway repeats the text
so far in one piece): what was given already is cut off, so that the pieces
always add up to the text. Text that nobody has taken yet grows in place
instead of queueing up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from trunkline.messages import GatewayMessage
from trunkline.payloads import (
    ChatComplete,
    ChatStream,
    RunRef,
    RunState,
    RunStatus,
    ToolResult,
    ToolStart,
    ToolUpdate,
    read,
)
from trunkline.sdk.errors import TrunklineError

MAX_WAITING = 10_000
"""Events that may wait for a consumer; with more it is too slow."""


class RunEvent(msgspec.Struct, kw_only=True):
    """Base of what happens in a run."""

    run_id: str
    agent_id: str
    """Who answers."""


class Text(RunEvent, kw_only=True):
    """A piece of the answer."""

    text: str
    offset: int
    """
    Where the piece belongs, in characters from the answer's beginning: the end
    of what came before, or 0 when the agent began its answer anew.
    """


class ToolStarted(RunEvent, kw_only=True):
    """The agent calls a tool."""

    call_id: str
    tool: str
    args: Any


class ToolUpdated(RunEvent, kw_only=True):
    """A tool call goes on."""

    call_id: str
    progress: float | None
    """Percent."""
    message: str | None


class ToolFinished(RunEvent, kw_only=True):
    """A tool call has ended."""

    call_id: str
    success: bool
    output: Any
    error: str | None


class Completed(RunEvent, kw_only=True):
    """The answer is complete; the last event of its run."""

    content: str
    """
    The whole answer. The pieces add up to it, but for an agent that ends by
    saying something else than it began.
    """
    status: RunStatus
    usage: dict[str, Any] | None
    error: str | dict[str, Any] | None


Event = Text | ToolStarted | ToolUpdated | ToolFinished | Completed


class _Run:
    """How much of one run has been given."""

    __slots__ = ("agent_id", "index", "length", "retold", "run_id", "text", "waiting")

    def __init__(self, run_id: str, agent_id: str) -> None:
        self.run_id = run_id
        self.agent_id = agent_id
        self.index = -1
        self.text: list[str] = []
        self.length = 0
        self.waiting: Text | None = None
        """The last event, if it is text that nobody has taken yet."""
        self.retold: str | None = None
        """While the answer is told from its beginning again: how far that is."""


class RunEvents:
    """The events of the runs of one chat message, in order, each once."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._waiting: deque[Event] = deque()
        self._opened = False
        self._seen = 0  # the highest seq that was fed
        self._error: TrunklineError | None = None

    @property
    def finished(self) -> bool:
        """Whether all runs have ended and all events were taken."""
        return self._opened and not self._runs and not self._waiting

    @property
    def opened(self) -> bool:
        """Whether the message is known to be stored."""
        return self._opened

    def open(self, runs: Iterable[RunRef]) -> None:
        """Take the runs that the message opened; saying so twice changes nothing."""
        if not self._opened:
            self._runs = {r.run_id: _Run(r.run_id, r.agent_id) for r in runs}
            self._opened = True

    def rejoined(self, runs: Iterable[RunState]) -> None:
        """Take the open runs of a new attachment: who has no text yet will be told it anew."""
        for state in runs:
            run = self._runs.get(state.run_id)
            if run is not None and state.index < 0 <= run.index:
                run.index = -1
                run.retold = ""

    def fail(self, error: TrunklineError) -> None:
        """End all runs: how they go on cannot be known."""
        self._error = self._error or error

    def take(self) -> Event | None:
        """
        Take the next event, if there is one.

        Raises:
            TrunklineError: What `fail` was given, once the events before it are taken.
        """
        if self._waiting:
            event = self._waiting.popleft()
            run = self._runs.get(event.run_id)
            if run is not None and run.waiting is event:
                run.waiting = None
            return event
        if self._error is not None:
            raise self._error
        return None

    def feed(self, message: GatewayMessage) -> bool:
        """Take a message of the session; returns whether it brought something new."""
        handler = _HANDLERS.get(message.type)
        if handler is None or not self._runs:
            return False
        if message.seq is not None and message.seq <= self._seen:
            return False
        run = self._runs.get(run_of(message))
        if run is None:
            return False
        if message.seq is not None:
            self._seen = message.seq
        handler(self, run, message)
        if len(self._waiting) > MAX_WAITING:
            self.fail(TrunklineError("the events of the run were taken too slowly"))
            self._runs.clear()
        return True

    def _put(self, run: _Run, event: Event) -> None:
        run.waiting = event if isinstance(event, Text) else None
        self._waiting.append(event)

    def _on_text(self, run: _Run, message: GatewayMessage) -> None:
        chunk = read(message, ChatStream)
        index = run.index + 1 if chunk.index is None else chunk.index
        if chunk.first is not None:
            self._retell(run, chunk.content)
        elif index != run.index + 1:
            # Seen before, or ahead of chunks that the gateway will join for us.
            return
        elif run.retold is not None:
            self._retell(run, run.retold + chunk.content)
        else:
            self._add(run, chunk.content)
        run.index = index

    def _retell(self, run: _Run, text: str) -> None:
        """Take the answer from its beginning, of which the first part was given already."""
        given = "".join(run.text)
        if given.startswith(text) and given != text:
            run.retold = text
            return
        run.retold = None
        if text.startswith(given):
            self._add(run, text[run.length :])
            return
        run.text, run.length, run.waiting = [], 0, None
        self._add(run, text)

    def _add(self, run: _Run, text: str) -> None:
        if not text:
            return
        if run.waiting is not None:
            run.waiting.text += text
        else:
            event = Text(run_id=run.run_id, agent_id=run.agent_id, text=text, offset=run.length)
            self._put(run, event)
        run.text.append(text)
        run.length += len(text)

    def _on_tool_start(self, run: _Run, message: GatewayMessage) -> None:
        start = read(message, ToolStart)
        event = ToolStarted(
            run_id=run.run_id,
            agent_id=run.agent_id,
            call_id=start.tool_call_id,
            tool=start.tool,
            args=msgspec.json.decode(start.args),
        )
        self._put(run, event)

    def _on_tool_update(self, run: _Run, message: GatewayMessage) -> None:
        update = read(message, ToolUpdate)
        event = ToolUpdated(
            run_id=run.run_id,
            agent_id=run.agent_id,
            call_id=update.tool_call_id,
            progress=update.progress,
            message=update.message,
        )
        last: Event | None = self._waiting[-1] if self._waiting else None
        if isinstance(last, ToolUpdated) and last.call_id == event.call_id:
            # Nobody has seen the older progress, and nobody will miss it.
            self._waiting[-1] = event
        else:
            self._put(run, event)

    def _on_tool_result(self, run: _Run, message: GatewayMessage) -> None:
        ended = read(message, ToolResult)
        event = ToolFinished(
            run_id=run.run_id,
            agent_id=run.agent_id,
            call_id=ended.tool_call_id,
            success=ended.result.success,
            output=ended.result.output,
            error=ended.result.error,
        )
        self._put(run, event)

    def _on_complete(self, run: _Run, message: GatewayMessage) -> None:
        complete = read(message, ChatComplete)
        if complete.content.startswith("".join(run.text)):
            # What came while nobody listened, or was never sent in pieces.
            self._add(run, complete.content[run.length :])
        event = Completed(
            run_id=run.run_id,
            agent_id=run.agent_id,
            content=complete.content,
            status=complete.status,
            usage=complete.usage,
            error=complete.error,
        )
        self._put(run, event)
        del self._runs[run.run_id]


_HANDLERS = {
    "chat_stream": RunEvents._on_text,
    "tool_start": RunEvents._on_tool_start,
    "tool_update": RunEvents._on_tool_update,
    "tool_result": RunEvents._on_tool_result,
    "chat_complete": RunEvents._on_complete,
}


class _RunId(msgspec.Struct, rename="camel"):
    run_id: str = ""


_read_run_id = msgspec.json.Decoder(_RunId).decode


def run_of(message: GatewayMessage) -> str:
    """Return the run that a message belongs to; empty if none."""
    return _read_run_id(message.payload).run_id
