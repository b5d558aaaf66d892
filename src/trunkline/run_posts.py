"""Runs, and the messages that open them, belong to them and end them, on their way into the log."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from trunkline.clients import Client
from trunkline.errors import ErrorCode, GatewayError
from trunkline.fanout import Ephemeral, Feed, Out
from trunkline.messages import GatewayMessage, create_message, encode
from trunkline.payloads import Chat, ChatComplete, RunRef, RunStatus
from trunkline.posts import GatewayPost, Post, ack_frame, stamped
from trunkline.sessions import Session

if TYPE_CHECKING:
    from trunkline.runs import Runs

MAX_DEPTH = 8
"""How deep agents may make each other answer."""

_MENTION = re.compile(r"(?<![A-Za-z0-9._:-])@([A-Za-z0-9._:-]{1,128})", re.ASCII)


class Run:
    """An open run: an agent's answer in the making."""

    __slots__ = (
        "agent_id",
        "asker",
        "begun",
        "chat_id",
        "closing",
        "depth",
        "index",
        "last_output",
        "parts",
        "received",
        "recover_by",
        "run_id",
        "sender",
        "size",
    )

    def __init__(self, run_id: str, agent_id: str, chat_id: str | None, asker: str, depth: int):
        self.run_id = run_id
        self.agent_id = agent_id
        self.chat_id = chat_id
        self.asker = asker
        self.depth = depth
        self.received = -1
        self.index = -1
        self.parts: list[str] = []
        self.size = 0
        self.sender = Raw(b"null")
        self.last_output = 0.0
        self.recover_by: float | None = None
        self.begun = False
        """Whether the agent has sent anything."""
        self.closing = False

    @property
    def seen(self) -> str:
        """The text that the members have got: chunks up to `index`."""
        return "".join(self.parts[: self.index + 1])

    @property
    def text(self) -> str:
        """The text that the agent has sent; the rest of it is queued."""
        return "".join(self.parts)


class ChatPost(Post):
    """A chat on its way into the log; stored, it opens the runs of those it addresses."""

    __slots__ = ("_agents", "_chat", "_depth", "_opener", "_runs", "_session")

    def __init__(
        self,
        opener: Runs,
        client: Client,
        message: GatewayMessage,
        chat: Chat,
        session: Session,
        depth: int,
    ) -> None:
        super().__init__(client, message)
        self._opener = opener
        self._chat = chat
        self._session = session
        self._depth = depth
        self._agents: list[str] = []
        self._runs: list[RunRef] = []

    def addressed(self, feed: Feed, seq: int) -> list[str]:
        """Return the agents that are to answer."""
        if self._session.agent_clients:
            assert self.client is not None
            self._agents = addressees(self._session, self.client, self._chat, self._depth)
            if self._agents and self._opener.closing:
                raise GatewayError(ErrorCode.OVERLOADED, "the gateway is stopping", retry_after=5.0)
        return self._agents

    def stored(self, feed: Feed) -> None:
        """Open the runs."""
        now = self._opener.clock()
        assert self.client is not None
        for agent_id in self._agents:
            run = Run(
                f"{self.seq}.{agent_id}",
                agent_id,
                self.message.id,
                self.client.user_id,
                self._depth,
            )
            run.last_output = now
            self._session.runs[run.run_id] = run
            self._runs.append(RunRef(run_id=run.run_id, agent_id=agent_id))

    def runs(self) -> list[RunRef]:
        """Return who will answer."""
        return self._runs

    def duplicate(self, feed: Feed, seq: int, body: bytes) -> bytes:
        """Say where the chat was stored the first time, and who answers it."""
        addressed = msgspec.json.decode(body, type=_Addressed).addressed if body else []
        refs = [RunRef(run_id=f"{seq}.{agent}", agent_id=agent) for agent in addressed]
        return ack_frame(feed, self.message.id, seq, refs, duplicate=True)


class _Addressed(msgspec.Struct):
    addressed: list[str] = []


def addressees(session: Session, client: Client, chat: Chat, depth: int) -> list[str]:
    """
    Return the agents of a session that a chat addresses, in the order of their ids.

    Only those with the capability ``chat``: a run of any other would stay open
    until it times out, even where the chat mentions it by name.
    """
    present = {
        agent_id
        for member in session.agent_clients
        for agent_id, agent in member.agents.items()
        if agent.capabilities.chat and client.allows_agent(agent_id)
    }
    if depth > MAX_DEPTH or session.record.metadata.get("sendPolicy") == "off":
        return []
    if chat.mentions is not None:
        return sorted(present & set(chat.mentions))
    if client.agents or session.record.metadata.get("activation") == "mention":
        named = {name.lower().rstrip(".:-_") for name in _MENTION.findall(chat.message)}
        named |= {name.lower() for name in _MENTION.findall(chat.message)}
        return sorted(agent for agent in present if agent.lower() in named)
    return sorted(present)


class RunPost(Post):
    """A durable message of a run."""

    __slots__ = ("run",)

    def __init__(self, client: Client, message: GatewayMessage, run: Run) -> None:
        super().__init__(client, message, stamped(message.payload, {"runId": run.run_id}))
        self.sender = run.sender
        self.run = run


class CompletionPost(RunPost):
    """The message with which an agent ends its run."""

    __slots__ = ("_forget",)

    def __init__(
        self, runs: Runs, client: Client, message: GatewayMessage, session: Session, run: Run
    ) -> None:
        super().__init__(client, message, run)
        self._forget: Callable[[], None] = lambda: runs.forget(session, run)
        run.closing = True

    def stored(self, feed: Feed) -> None:
        """End the run."""
        self._forget()

    def failed(self, feed: Feed) -> None:
        """The run goes on: its end was not stored."""
        self.run.closing = False


class LatePost(Post):
    """
    A durable message of a run that has ended.

    It is refused where it stands in the queue, unless the log knows it already:
    then its sender has only missed the ack.
    """

    __slots__ = ("_error",)

    def __init__(self, client: Client, message: GatewayMessage, error: GatewayError) -> None:
        super().__init__(client, message)
        self._error = error

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Refuse it."""
        raise self._error


class Chunk(Ephemeral):
    """One chunk of an answer; delivered, it counts as seen."""

    __slots__ = ("_index", "_run")

    def __init__(self, client: Client, frame: bytes, run: Run, index: int) -> None:
        super().__init__(client, frame, droppable=True)
        self._run = run
        self._index = index

    def out(self) -> Out:
        """Return what is written; called at the chunk's place in the order."""
        self._run.index = self._index
        return super().out()


class RunEnd(GatewayPost):
    """The end of a run that the gateway itself writes, with the text as it then is."""

    __slots__ = ("_error", "_run", "_runs_of", "_status")

    def __init__(
        self, runs: Runs, session: Session, run: Run, status: RunStatus, error: str | None
    ) -> None:
        super().__init__(create_message("chat_complete", None, session.id))
        self._runs_of = (runs, session)
        self._run = run
        self._status = status
        self._error = error

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the message as members get it."""
        run = self._run
        end = ChatComplete(
            run_id=run.run_id, content=run.text, status=self._status, error=self._error
        )
        self.message.payload = Raw(encode(end))
        return super().frame(feed, seq)

    def stored(self, feed: Feed) -> None:
        """Forget the run."""
        runs, session = self._runs_of
        runs.forget(session, self._run)

    def failed(self, feed: Feed) -> None:
        """The run goes on: its end was not stored."""
        self._run.closing = False
