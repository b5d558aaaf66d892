"""
What a session looks like in a terminal.

Messages come in; rows of text come out: those that are over, and those of
answers and tool calls that still go on. Everything that strangers sent is made
visible first, so that it cannot steer the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from trunkline import payloads
from trunkline.logs import cut, escape
from trunkline.messages import GatewayMessage, Sender

ARGUMENT_BYTES = 80
"""Bytes shown of a tool's arguments and of its result."""

_BAR_CELLS = 20


def visible(text: str) -> str:
    """Escape what would steer a terminal; line ends stay."""
    return "\n".join(escape(line) for line in text.expandtabs().split("\n"))


def name_of(sender: Sender | None) -> str:
    """Return what to call the sender of a message."""
    if sender is None:
        return "somebody"
    return visible(sender.agent_id or sender.device_name or sender.user_id)


class _Tool:
    """A tool call that goes on."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.progress: float | None = None
        self.message = ""

    def row(self) -> Text:
        row = Text.assemble(("  … ", "yellow"), self.title)
        if self.progress is not None:
            done = round(self.progress / 100 * _BAR_CELLS)
            row.append(f"  {'━' * done}", "yellow")
            row.append(f"{'─' * (_BAR_CELLS - done)} {self.progress:.0f} %", "dim")
        return row.append(f"  {self.message}" if self.message else "", "dim")


class Transcript:
    """
    The rows of one session, message by message.

    Args:
        device_id: The reader's own device, whose messages are "you".
    """

    def __init__(self, device_id: str | None = None) -> None:
        self._device_id = device_id
        self._answers: dict[str, tuple[str, str]] = {}
        self._tools: dict[str, _Tool] = {}
        self._asked: dict[str, payloads.ApprovalRequest] = {}
        self._show: dict[str, Callable[[GatewayMessage], list[Text]]] = {
            "chat": self._chat,
            "chat_stream": self._stream,
            "chat_complete": self._complete,
            "approval_request": self._approval_request,
            "approval_response": self._approval_response,
            "tool_start": self._tool_start,
            "tool_update": self._tool_update,
            "tool_result": self._tool_result,
            "presence": self._presence,
            "error": self._error,
            "reset": self._reset,
            "session_info": self._session,
        }

    def show(self, message: GatewayMessage) -> list[Text]:
        """Take in a message; return the rows that it completes."""
        show = self._show.get(message.type)
        return show(message) if show else []

    def going_on(self, console: Console, rows: int) -> list[Text]:
        """Return at most the last `rows` rows of what goes on, each as wide as the console."""
        shown: list[Text] = []
        for name, text in self._answers.values():
            tail = text[-rows * console.width :]  # no more of it can be seen
            shown += said(name, tail).wrap(console, console.width)
        shown += [tool.row() for tool in self._tools.values()]
        for row in shown:
            row.truncate(console.width, overflow="ellipsis")
        return shown[-rows:]

    def _chat(self, message: GatewayMessage) -> list[Text]:
        sender = message.sender
        mine = sender is not None and sender.device_id and sender.device_id == self._device_id
        text = payloads.read(message, payloads.Chat).message
        return [said("you" if mine else name_of(sender), text)]

    def running(self) -> list[str]:
        """Return the runs whose answers go on."""
        return [run for run in self._answers if run]

    def _stream(self, message: GatewayMessage) -> list[Text]:
        chunk = payloads.read(message, payloads.ChatStream)
        run = chunk.run_id or ""
        name, text = self._answers.get(run, (name_of(message.sender), ""))
        # A joined chunk holds the text from the beginning.
        self._answers[run] = name, chunk.content if chunk.first == 0 else text + chunk.content
        return []

    def _complete(self, message: GatewayMessage) -> list[Text]:
        end = payloads.read(message, payloads.ChatComplete)
        self._answers.pop(end.run_id or "", None)
        for approval_id, request in list(self._asked.items()):
            if request.run_id == end.run_id:
                del self._asked[approval_id]
        rows = [said(name_of(message.sender), end.content)] if end.content else []
        if end.status != "ok":
            why = f": {end.error}" if end.error else ""
            rows.append(note(f"{name_of(message.sender)}'s answer ended {end.status}{why}", "red"))
        return rows

    def asked(self) -> payloads.ApprovalRequest | None:
        """Return the oldest question of an agent that nobody has answered yet."""
        return next(iter(self._asked.values()), None)

    def _approval_request(self, message: GatewayMessage) -> list[Text]:
        request = payloads.read(message, payloads.ApprovalRequest)
        if request.approval_id in self._asked:  # shown on joining; this is the replay
            return []
        self._asked[request.approval_id] = request
        # All of the arguments: nobody can agree to what was cut off.
        what = f"{request.tool} {bytes(request.args).decode()}"
        question = note(f"{name_of(message.sender)} asks: may it run {what}?", "bold yellow")
        return [question, note("/allow or /deny answers", "yellow")]

    def _approval_response(self, message: GatewayMessage) -> list[Text]:
        response = payloads.read(message, payloads.ApprovalResponse)
        request = self._asked.pop(response.approval_id, None)
        what = request.tool if request is not None else "it"
        verb = "allowed" if response.decision == "allow" else "denied"
        why = f": {response.reason}" if response.reason else ""
        return [note(f"{name_of(message.sender)} {verb} {what}{why}", "yellow")]

    def _tool_start(self, message: GatewayMessage) -> list[Text]:
        start = payloads.read(message, payloads.ToolStart)
        title = f"{start.tool} {_arguments(start.args)}".strip()
        self._tools[start.tool_call_id] = _Tool(visible(title))
        return []

    def _tool_update(self, message: GatewayMessage) -> list[Text]:
        update = payloads.read(message, payloads.ToolUpdate)
        tool = self._tools.setdefault(update.tool_call_id, _Tool(visible(update.tool or "tool")))
        if update.progress is not None:
            tool.progress = update.progress
        tool.message = visible(update.message or tool.message)
        return []

    def _tool_result(self, message: GatewayMessage) -> list[Text]:
        end = payloads.read(message, payloads.ToolResult)
        tool = self._tools.pop(end.tool_call_id, None) or _Tool(visible(end.tool or "tool"))
        good = end.result.success
        outcome = end.result.output if good else end.result.error
        mark = ("  ✓ ", "green") if good else ("  ✗ ", "red")
        return [Text.assemble(mark, tool.title, (f" → {_short(outcome)}", "dim"))]

    def _presence(self, message: GatewayMessage) -> list[Text]:
        status = payloads.read(message, payloads.Presence).status
        words = {"online": "is here", "offline": "left", "away": "is away"}
        if status not in words:
            return []
        return [note(f"{name_of(message.sender)} {words[status]}")]

    def _session(self, message: GatewayMessage) -> list[Text]:
        info = payloads.read(message, payloads.SessionInfo)
        if info.status == "patched":
            return [note("the session's settings were changed")]
        if info.status in ("closed", "removed"):
            return [note(f"the session was {info.status} for you", "red")]
        return []

    def _reset(self, _: GatewayMessage) -> list[Text]:
        self._answers.clear()
        self._tools.clear()
        self._asked.clear()
        return [note("the session's log was replaced; this is how it begins now")]

    def _error(self, message: GatewayMessage) -> list[Text]:
        error = payloads.read(message, payloads.ErrorPayload)
        return [note(f"{error.code}: {error.message}", "red")]


def said(name: str, text: str) -> Text:
    """Return who said what."""
    return Text.assemble((f"{name}: ", "bold cyan"), visible(text))


def note(text: str, style: str = "dim") -> Text:
    """Return a remark of the client itself."""
    return Text(f"· {visible(text)}", style=style)


def welcome(session: str, members: Sequence[Sender], count: int) -> Text:
    """Return who is in a session, for one who has just joined."""
    names = sorted({name_of(member) for member in members})
    more = f" and {count - len(members)} more" if count > len(members) else ""
    return note(f"in session {session} with {', '.join(names) or 'nobody yet'}{more}")


def _arguments(args: msgspec.Raw) -> str:
    value = msgspec.json.decode(args)
    if isinstance(value, dict):
        return " ".join(f"{key}={_short(value[key])}" for key in value)
    return "" if value is None else _short(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return cut(escape(text), ARGUMENT_BYTES)
