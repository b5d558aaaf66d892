"""
The terminal client: a person's conversation, or one question in a pipe.

A person sees answers grow, tools at work and others come and go, while the line
that is being typed stays whole at the bottom. In a pipe nothing but the answer
reaches standard output.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import signal
import sys
import termios
import tty
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from trunkline.cli_client import FAILED, Credential, complain, connected, enter
from trunkline.cli_editor import PASTE_OFF, PASTE_ON, LineEditor
from trunkline.cli_transcript import Transcript, note, visible, welcome
from trunkline.sdk.connection import State
from trunkline.sdk.errors import RequestFailed
from trunkline.sdk.events import Completed, Event

if TYPE_CHECKING:
    from trunkline.sdk.session import Session

PROMPT = "> "

HISTORY = 20
"""Earlier messages that are shown on joining."""

FRAME = 1 / 30
"""Seconds between two drawings at least; chunks come faster."""

HELP = (
    "/who tells who is here, /stop stops the answers, /allow and /deny answer what an agent "
    "asks, /quit ends (so does Ctrl-D)"
)


async def ask(
    url: str, signing_in: Credential, session_id: str, source: TextIO, once: bool, as_json: bool
) -> None:
    """
    Say what `source` holds, and print the answers.

    Args:
        url: The gateway's address.
        signing_in: What to sign in with.
        session_id: Where to say it.
        source: All of it is one message with `once`; else each line is.
        once: See `source`.
        as_json: Print every event of the answers as a line of JSON.
    """
    async with connected(url, signing_in) as gateway:
        session = await enter(gateway, session_id)
        read = source.read if once else source.readline
        while text := await asyncio.to_thread(read):
            if text.strip():
                await _answer(session, text.strip("\n"), as_json)


async def _answer(session: Session, text: str, as_json: bool) -> None:
    ends: list[Completed] = []
    async for event in session.chat(text):
        if as_json:
            print(_json(event), flush=True)
        elif isinstance(event, Completed):
            print(visible(event.content) if sys.stdout.isatty() else event.content, flush=True)
        if isinstance(event, Completed):
            ends.append(event)
    if not ends:
        complain(f"no agent answers in session {session.id}", FAILED)
    for end in ends:
        if end.status != "ok":
            complain(f"the answer of {end.agent_id} ended {end.status}: {end.error}", FAILED)


def _json(event: Event) -> str:
    name = re.sub(r"(?<=.)([A-Z])", r"_\1", type(event).__name__).lower()
    return msgspec.json.encode({"event": name, **msgspec.structs.asdict(event)}).decode()


async def talk(url: str, signing_in: Credential, session_id: str) -> None:
    """Let a person at a terminal take part in a session, until they end it."""
    async with connected(url, signing_in) as gateway:
        session = await enter(gateway, session_id, HISTORY)
        transcript = Transcript(gateway.device_id)
        with Screen(transcript) as screen:
            count = (session.info and session.info.member_count) or len(session.members)
            screen.show(welcome(session.id, session.members, count), note(HELP))
            for request in session.approvals:
                screen.show(*transcript.show(request))
            gateway.on_state(lambda state: screen.show(*_state(state)))
            reading = asyncio.create_task(_read(session, screen, transcript))
            typing = asyncio.create_task(_type(session, screen, transcript))
            done, left = await asyncio.wait([reading, typing], return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()


def _state(state: State) -> list[Text]:
    words = {
        State.RECONNECTING: note("the connection was lost; connecting again …", "yellow"),
        State.CONNECTED: note("connected again", "yellow"),
    }
    return [words[state]] if state in words else []


async def _read(session: Session, screen: Screen, transcript: Transcript) -> None:
    async for message in session:
        screen.show(*transcript.show(message))
    screen.show(note("the session is over"))


async def _type(session: Session, screen: Screen, transcript: Transcript) -> None:
    while (line := await screen.line()) is not None:
        match line:
            case "/quit":
                return
            case "/who":
                screen.show(welcome(session.id, session.members, len(session.members)))
            case "/stop":
                for run in transcript.running():
                    session.cancel(run)
            case "/allow" | "/deny":
                await _decide(session, screen, transcript, allow=line == "/allow")
            case "/help":
                screen.show(note(HELP))
            case _:
                try:
                    await session.send(line)
                except RequestFailed as error:
                    screen.show(note(str(error), "red"))


async def _decide(session: Session, screen: Screen, transcript: Transcript, allow: bool) -> None:
    """Answer the question that has waited longest."""
    request = transcript.asked()
    if request is None:
        screen.show(note("nothing waits for your answer"))
        return
    try:
        await session.approve(request, allow=allow)
    except RequestFailed as error:
        screen.show(note(str(error), "red"))


class Screen:
    """
    A terminal: what is over scrolls away, what goes on and the typed line stay below.

    Args:
        transcript: What knows what goes on.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._editor = LineEditor()
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._input = sys.stdin.fileno()
        self._before: Any = None
        self._drawing: asyncio.TimerHandle | None = None

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)  # keys come one by one; Ctrl-C still interrupts
        loop = asyncio.get_running_loop()
        loop.add_reader(self._input, self._typed)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        self._console.file.write(PASTE_ON)
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._input)
        loop.remove_signal_handler(signal.SIGWINCH)
        if self._drawing is not None:
            self._drawing.cancel()
        self._live.stop()
        self._console.file.write(PASTE_OFF)
        self._console.file.flush()
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    async def line(self) -> str | None:
        """Wait for a line to be entered; None: the person has ended the input."""
        return await self._lines.get()

    def show(self, *rows: Text) -> None:
        """Write rows that are over, and draw what goes on anew, soon."""
        if rows:  # printing repeats what is below, which has just changed
            self._live.update(self._below())
        for row in rows:
            self._console.print(row)
        if self._drawing is None:
            self._drawing = asyncio.get_running_loop().call_later(FRAME, self._draw)

    def _typed(self) -> None:
        data = os.read(self._input, 4096)
        for line in self._editor.feed(self._decode(data)):
            self._lines.put_nowait(line)
        if not data or self._editor.closed:
            asyncio.get_running_loop().remove_reader(self._input)
            self._lines.put_nowait(None)
        self._draw()

    def _draw(self) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
            self._drawing = None
        self._live.update(self._below(), refresh=True)

    def _below(self) -> Group:
        room = max(self._console.height - 2, 1)
        prompt = self._editor.render(PROMPT, self._console.width - 1)
        return Group(*self._transcript.going_on(self._console, room), prompt)
