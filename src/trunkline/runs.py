"""
Chat, and the answers to it: runs that stream (protocol.md section 4, "Runs").

A chat that is stored opens a run for every agent it addresses. What an agent
sends is relayed under its run's id, and the text so far is kept, so that
whoever comes late or lags gets it in one piece and then the chunks after it:
the text is always a prefix, never a hole.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from msgspec import Raw

from trunkline.agents import RegisteredAgent
from trunkline.assignments import Assignments
from trunkline.clients import Client
from trunkline.config import GatewayConfig, SessionsConfig
from trunkline.errors import ErrorCode, GatewayError
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
    RunState,
    RunStatus,
    ToolResult,
    ToolStart,
    ToolUpdate,
)
from trunkline.posts import Post, stamped
from trunkline.recovery import open_runs
from trunkline.run_posts import ChatPost, Chunk, CompletionPost, LatePost, Run, RunEnd, RunPost
from trunkline.session_records import need_session
from trunkline.sessions import Session, SessionManager

ENDED_KEPT = 512
"""Ended runs that a session remembers, to tell late frames so."""


class Runs:
    """The handlers of chat and of what agents answer; the life of runs."""

    def __init__(
        self,
        sessions: SessionManager,
        assignments: Assignments,
        config: SessionsConfig,
        clock: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._assignments = assignments
        self._config = config
        self.clock = clock
        self.closing = False
        """Whether no more runs are opened, for the gateway is about to stop."""
        self.ended: list[Callable[[Session, Run], None]] = []
        """Called when a run has ended."""
        sessions.opened.append(self._rebuild)
        sessions.went_live.append(self._catch_up)
        sessions.patched.append(self._patched)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = config.sessions

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
        session = self.agent_session(client, message, payload)
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
        run.begun = True
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
        session = self.agent_session(client, message, payload)
        self.post(
            session,
            client,
            message,
            payload,
            lambda run: CompletionPost(self, client, message, session, run),
        )

    def _on_tool(
        self, client: Client, message: GatewayMessage, payload: ToolStart | ToolResult
    ) -> None:
        session = self.agent_session(client, message, payload)
        self.post(session, client, message, payload, lambda run: RunPost(client, message, run))

    def post(
        self,
        session: Session,
        client: Client,
        message: GatewayMessage,
        payload: RunPayload,
        make: Callable[[Run], Post],
    ) -> None:
        """Store a message of a run, as `make` wraps it."""
        try:
            run = self._resolve(session, client, message, payload)
        except GatewayError as error:
            if error.code != ErrorCode.RUN_ENDED:
                raise
            session.feed.submit(LatePost(client, message, error))
            return
        run.begun = True
        run.last_output = self.clock()
        session.feed.submit(make(run))

    def _on_tool_update(self, client: Client, message: GatewayMessage, payload: ToolUpdate) -> None:
        session = self.agent_session(client, message, payload)
        run = self._resolve(session, client, message, payload)
        run.begun = True
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
            if session is not None and client.allows_session(session.id):
                return session
        return self._sessions.member(client, message, payload)

    # Which run

    def agent_session(
        self, client: Client, message: GatewayMessage, payload: RunPayload
    ) -> Session:
        """Return the session in which an agent may send something of a run."""
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
        for callback in self.ended:
            callback(session, run)

    def end(self, session: Session, run: Run, status: RunStatus, error: str | None = None) -> None:
        """End a run from the gateway's side, with the text so far."""
        if run.closing:
            return
        run.closing = True
        session.feed.submit(RunEnd(self, session, run, status, error))

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

    def agent_lost(self, agent: RegisteredAgent) -> None:
        """End the runs of an agent that will not come back, or give them to another."""
        for session in self._sessions.get_all_sessions():
            for run in list(session.runs.values()):
                if run.agent_id == agent.id and not run.closing:
                    self._give_up(session, run)

    def _give_up(self, session: Session, run: Run) -> None:
        """Nothing is repeated blindly: only a run without any output goes to another agent."""
        other = None
        if not run.begun and not self.closing:
            other = self._assignments.substitute(session, run.chat_id)
        if other is None:
            self.end(session, run, "lost", "the agent is gone")
        else:
            self._assignments.start(self._hand_over(session, run, other))

    async def _hand_over(self, session: Session, run: Run, other: RegisteredAgent) -> None:
        lost, run.agent_id = run.agent_id, other.id
        run.last_output = self.clock()
        moved = [RunState(run_id=run.run_id, agent_id=other.id, index=run.index)]
        try:
            await self._assignments.assign(session, other, instead_of=lost, runs=moved)
        except GatewayError:
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
            run.begun = True  # for all that is known
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
            ResumedRun(session_id=session.id, run_id=run.run_id, index=run.received)
            for session in self._sessions.get_all_sessions()
            for run in session.runs.values()
            if run.agent_id == agent_id and not run.closing
        ]

    def of_agent(self, client: Client, session_id: str | None, run_id: str) -> Run | None:
        """Return an open run of an agent that a connection speaks for; None if not exactly one."""
        feeds = client.sessions if session_id is None else (session_id,)
        sessions = map(self._sessions.get_session, feeds)
        runs = [session.runs.get(run_id) for session in sessions if session is not None]
        found = [run for run in runs if run is not None and run.agent_id in client.agents]
        return found[0] if len(found) == 1 else None

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


def _still_open(run: Run | None, client: Client) -> Run:
    """Return a run that its agent may still write to, with the agent's identity on it."""
    if run is None or run.closing:
        raise GatewayError(ErrorCode.RUN_ENDED, "the run has ended, or never was")
    run.sender = client.sender_for(run.agent_id)
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
