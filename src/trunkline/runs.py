"""
Chat, and the answers to it: runs that stream (protocol.md section 4, "Runs").

A chat that is stored opens a run for every agent it addresses. What an agent
sends is relayed under its run's id, and the text so far is kept, so that
whoever comes late or lags gets it in one piece and then the chunks after it:
the text is always a prefix, never a hole.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable

import msgspec
from msgspec import Raw

from trunkline.agents import RegisteredAgent
from trunkline.clients import Client
from trunkline.config import SessionsConfig
from trunkline.errors import ErrorCode, GatewayError
from trunkline.fanout import Ephemeral, Feed, Out
from trunkline.handlers import Handlers
from trunkline.ids import now_ms
from trunkline.messages import GatewayMessage, RelayedMessage, create_message, encode
from trunkline.payloads import (
    Chat,
    ChatComplete,
    ChatStream,
    ResumedRun,
    RunCancel,
    RunPayload,
    RunRef,
    RunStatus,
    ToolResult,
    ToolStart,
    ToolUpdate,
)
from trunkline.posts import GatewayPost, Post, ack_frame, stamped
from trunkline.replay import open_runs
from trunkline.sessions import Session, SessionManager, need_session

MAX_DEPTH = 8
"""How deep agents may make each other answer."""

ENDED_KEPT = 512
"""Ended runs that a session remembers, to tell late frames so."""

_MENTION = re.compile(r"(?<![A-Za-z0-9._:-])@([A-Za-z0-9._:-]{1,128})", re.ASCII)


class Run:
    """An open run: an agent's answer in the making."""

    __slots__ = (
        "agent_id",
        "asker",
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
    """Return the agents of a session that a chat addresses, in the order of their ids."""
    present = {agent_id for member in session.agent_clients for agent_id in member.agents}
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

    __slots__ = ("_ends", "_run", "_runs_of")

    def __init__(
        self,
        runs: Runs,
        client: Client,
        message: GatewayMessage,
        session: Session,
        run: Run,
        *,
        ends: bool,
    ) -> None:
        super().__init__(client, message, stamped(message.payload, {"runId": run.run_id}))
        self.sender = run.sender
        self._runs_of = (runs, session)
        self._run = run
        self._ends = ends
        if ends:
            run.closing = True

    def stored(self, feed: Feed) -> None:
        """End the run, if this is its end."""
        if self._ends:
            runs, session = self._runs_of
            runs.forget(session, self._run)

    def failed(self, feed: Feed) -> None:
        """The run goes on: its end was not stored."""
        self._run.closing = False


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


class Runs:
    """The handlers of chat and of what agents answer; the life of runs."""

    def __init__(
        self, sessions: SessionManager, config: SessionsConfig, clock: Callable[[], float]
    ) -> None:
        self._sessions = sessions
        self._config = config
        self.clock = clock
        self.closing = False
        """Whether no more runs are opened, for the gateway is about to stop."""
        sessions.opened.append(self._rebuild)
        sessions.went_live.append(self._catch_up)
        sessions.patched.append(self._patched)

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("chat", self._on_chat, Chat)
        handlers.add("chat_stream", self._on_stream, ChatStream)
        handlers.add("chat_complete", self._on_complete, ChatComplete)
        handlers.add("tool_start", self._on_tool, ToolStart)
        handlers.add("tool_result", self._on_tool, ToolResult)
        handlers.add("tool_update", self._on_tool_update, ToolUpdate)
        handlers.add("run_cancel", self._on_cancel, RunCancel)

    # Handlers

    def _on_chat(self, client: Client, message: GatewayMessage, payload: Chat) -> None:
        session = self._sessions.member(client, message, payload)
        depth = 0
        if client.agents:
            self._check_policy(session)
            depth = 1 + max(
                (run.depth for run in session.runs.values() if run.agent_id in client.agents),
                default=0,
            )
        session.feed.submit(ChatPost(self, client, message, payload, session, depth))

    def _on_stream(self, client: Client, message: GatewayMessage, payload: ChatStream) -> None:
        session = self._agent_session(client, message, payload)
        run = self._resolve(session, client, message, payload)
        expected = run.received + 1
        index = expected if payload.index is None else payload.index
        if index != expected:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD,
                "a chunk is missing or repeated",
                details={"path": "$.index", "expected": expected},
            )
        run.received = index
        run.last_output = self.clock()
        run.size += len(encode(payload.content)) - 2
        if run.size > self._config.max_run_bytes:
            self.end(session, run, "error", "the answer is too long")
            raise GatewayError(ErrorCode.RUN_ENDED, "the answer is too long")
        run.parts.append(payload.content)
        fields: dict[str, str | int] = {"runId": run.run_id, "index": index}
        frame = _relay(session, message, run, stamped(message.payload, fields))
        session.feed.submit(Chunk(client, frame, run, index))

    def _on_complete(self, client: Client, message: GatewayMessage, payload: ChatComplete) -> None:
        session = self._agent_session(client, message, payload)
        self._post(session, client, message, payload, ends=True)

    def _on_tool(
        self, client: Client, message: GatewayMessage, payload: ToolStart | ToolResult
    ) -> None:
        session = self._agent_session(client, message, payload)
        self._post(session, client, message, payload, ends=False)

    def _post(
        self,
        session: Session,
        client: Client,
        message: GatewayMessage,
        payload: RunPayload,
        *,
        ends: bool,
    ) -> None:
        """Store a message of a run."""
        try:
            run = self._resolve(session, client, message, payload)
        except GatewayError as error:
            if error.code != ErrorCode.RUN_ENDED:
                raise
            session.feed.submit(LatePost(client, message, error))
            return
        run.last_output = self.clock()
        session.feed.submit(RunPost(self, client, message, session, run, ends=ends))

    def _on_tool_update(self, client: Client, message: GatewayMessage, payload: ToolUpdate) -> None:
        session = self._agent_session(client, message, payload)
        run = self._resolve(session, client, message, payload)
        run.last_output = self.clock()
        body = stamped(message.payload, {"runId": run.run_id})
        frame = _relay(session, message, run, body)
        session.feed.relay(frame, client, droppable=True)

    def _on_cancel(self, client: Client, message: GatewayMessage, payload: RunCancel) -> None:
        session = self._watched(client, message, payload)
        run = session.runs.get(payload.run_id)
        if run is None or run.closing:
            raise GatewayError(ErrorCode.RUN_ENDED, "the run has ended, or never was")
        owner = client.user_id in (run.asker, session.record.owner)
        if client.role != "control" and not owner:
            raise GatewayError(ErrorCode.FORBIDDEN, "only who asked may cancel the run")
        self.cancel(session, run)

    def _watched(self, client: Client, message: GatewayMessage, payload: RunCancel) -> Session:
        """Return the session whose run is meant: one's own, or for control any that is live."""
        if client.role == "control":
            session = self._sessions.get_session(need_session(message, payload))
            if session is not None:
                return session
        return self._sessions.member(client, message, payload)

    # Which run

    def _agent_session(
        self, client: Client, message: GatewayMessage, payload: RunPayload
    ) -> Session:
        session = self._sessions.member(client, message, payload)
        if not client.agents:
            raise GatewayError(ErrorCode.FORBIDDEN, "only a registered agent may send this")
        self._check_policy(session)
        return session

    @staticmethod
    def _check_policy(session: Session) -> None:
        if session.record.metadata.get("sendPolicy") == "off":
            raise GatewayError(ErrorCode.FORBIDDEN, "the session's agents are silenced")

    def _resolve(
        self, session: Session, client: Client, message: GatewayMessage, payload: RunPayload
    ) -> Run:
        """Find the run of an agent's message; open one of its own if it fits none."""
        if payload.run_id is not None:
            run = session.runs.get(payload.run_id)
            if run is not None and run.agent_id not in client.agents:
                raise GatewayError(ErrorCode.FORBIDDEN, "the run is another agent's")
            return _still_open(run, client)
        agent_id = _speaker(client, message)
        if message.reply_to is not None and (message.reply_to, agent_id) in session.ended:
            raise GatewayError(ErrorCode.RUN_ENDED, "the run has ended")
        mine = [run for run in session.runs.values() if run.agent_id == agent_id]
        for run in mine:
            if message.reply_to is not None and run.chat_id == message.reply_to:
                return _still_open(run, client)
        if len(mine) == 1:
            return _still_open(mine[0], client)
        return self._own_run(session, client, agent_id)

    def _own_run(self, session: Session, client: Client, agent_id: str) -> Run:
        run = Run(f"x{secrets.token_hex(8)}.{agent_id}", agent_id, None, client.user_id, 0)
        run.last_output = self.clock()
        session.runs[run.run_id] = run
        return _still_open(run, client)

    # How runs end

    def forget(self, session: Session, run: Run) -> None:
        """Note that a run has ended; its end is stored."""
        session.runs.pop(run.run_id, None)
        if run.chat_id is not None:
            session.ended[(run.chat_id, run.agent_id)] = None
            while len(session.ended) > ENDED_KEPT:
                del session.ended[next(iter(session.ended))]

    def end(self, session: Session, run: Run, status: RunStatus, error: str | None = None) -> None:
        """End a run from the gateway's side, with the text so far."""
        if run.closing:
            return
        run.closing = True
        session.feed.submit(_End(self, session, run, status, error))

    def cancel(self, session: Session, run: Run) -> None:
        """Tell the agent to stop, and end the run as cancelled."""
        for client in session.agent_clients:
            if run.agent_id in client.agents:
                payload = RunCancel(run_id=run.run_id)
                client.send(create_message("run_cancel", payload, session.id))
        self.end(session, run, "cancelled")

    def _patched(self, session: Session) -> None:
        if session.record.metadata.get("sendPolicy") == "off":
            for run in list(session.runs.values()):
                self.cancel(session, run)

    def agent_lost(self, agent: RegisteredAgent, client: Client) -> None:
        """End the runs of an agent whose connection is gone."""
        for session_id in client.sessions:
            session = self._sessions.get_session(session_id)
            for run in list(session.runs.values()) if session else ():
                if session is not None and run.agent_id == agent.id:
                    self.end(session, run, "lost", "the agent is gone")

    def tick(self) -> None:
        """Once a second: end the runs that have been silent for too long."""
        now = self.clock()
        for session in self._sessions.get_all_sessions():
            for run in list(session.runs.values()):
                if run.recover_by is not None and now > run.recover_by:
                    self._recovered(session, run, now)
                elif now - run.last_output > self._config.run_timeout:
                    self.end(session, run, "lost", "the agent fell silent")

    # After a restart

    async def _rebuild(self, session: Session) -> None:
        """Open the runs again that the end of a session's log has left open."""
        head = session.feed.head
        if not head or session.runs:
            return
        now = self.clock()
        for found in await open_runs(self._sessions.history, session.id, head):
            run = Run(found.run_id, found.agent_id, found.chat_id, found.asker, 0)
            run.last_output = now
            run.recover_by = now + self._config.run_recovery
            session.runs.setdefault(run.run_id, run)

    def _recovered(self, session: Session, run: Run, now: float) -> None:
        """Decide on a run whose agent had its time to come back after a restart."""
        run.recover_by = None
        run.last_output = now
        if not any(run.agent_id in client.agents for client in session.agent_clients):
            self.end(session, run, "lost", "the agent did not come back")

    async def recover(self) -> None:
        """Bring the sessions back to life whose logs end with runs still open."""
        for record in self._sessions.all_records():
            session_id = record.session_id
            head = (await self._sessions.history.bounds(session_id)).head
            if head and await open_runs(self._sessions.history, session_id, head):
                await self._sessions.revive(session_id)
            await asyncio.sleep(0)

    def open_of(self, agent_id: str) -> list[ResumedRun]:
        """Return the open runs of an agent, in all sessions."""
        return [
            ResumedRun(run_id=run.run_id, index=run.received)
            for session in self._sessions.get_all_sessions()
            for run in session.runs.values()
            if run.agent_id == agent_id and not run.closing
        ]

    def count(self) -> int:
        """Return how many runs are open."""
        return sum(len(session.runs) for session in self._sessions.get_all_sessions())

    # Late joiners and laggards

    def _catch_up(self, session: Session, client: Client) -> None:
        for run in session.runs.values():
            if run.index >= 0:
                client.transport.write(_text_so_far(session, run))

    def drained(self, client: Client) -> None:
        """Give a reader that lagged the text so far of every open run."""
        for session_id, feed in client.sessions.items():
            session = self._sessions.get_session(session_id)
            if session is not None and client in feed.members:
                self._catch_up(session, client)


class _End(GatewayPost):
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


def _still_open(run: Run | None, client: Client) -> Run:
    """Return a run that its agent may still write to, with the agent's identity on it."""
    if run is None or run.closing:
        raise GatewayError(ErrorCode.RUN_ENDED, "the run has ended, or never was")
    if len(client.agents) == 1:
        run.sender = client.sender
    else:
        run.sender = Raw(encode(client.stamp(run.agent_id)))
    return run


def _speaker(client: Client, message: GatewayMessage) -> str:
    """Return the agent that a message speaks for."""
    if message.source is not None and message.source in client.agents:
        return message.source
    if len(client.agents) == 1:
        return next(iter(client.agents))
    raise GatewayError(
        ErrorCode.INVALID_MESSAGE, "this connection has several agents: name one in source"
    )


def _text_so_far(session: Session, run: Run) -> bytes:
    chunk = ChatStream(run_id=run.run_id, first=0, index=run.index, content=run.seen)
    message = RelayedMessage(
        type="chat_stream",
        id=create_message("chat_stream").id,
        session_id=session.id,
        payload=Raw(encode(chunk)),
        timestamp=now_ms(),
        sender=run.sender,
    )
    return encode(message)


def _relay(session: Session, message: GatewayMessage, run: Run, payload: Raw) -> bytes:
    """Encode an agent's ephemeral message as members get it."""
    return encode(
        RelayedMessage(
            type=message.type,
            id=message.id,
            session_id=session.id,
            payload=payload,
            timestamp=now_ms(),
            reply_to=message.reply_to,
            sender=run.sender,
            trace=message.trace,
        )
    )
