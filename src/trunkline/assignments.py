"""
Which agents belong to which session, wherever their connections come and go.

An assigned agent is brought into its live sessions whenever it registers, and
into a session that comes back to life. It is told so with the end of the log.
An agent that stops or is lost stays assigned, for it may come back; it is
unassigned when another takes its place, or when its id is no longer its user's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from trunkline.agents import AgentRegistry, RegisteredAgent
from trunkline.clients import Client, Phase
from trunkline.errors import ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.messages import create_message
from trunkline.patterns import matches
from trunkline.payloads import RunState, SessionCreate, SessionInfo
from trunkline.posts import GatewayPost
from trunkline.replay import find_start
from trunkline.session_records import SessionRecord, assigned_to
from trunkline.sessions import Session, SessionManager

TAIL = 50
"""Messages of the log that an agent gets when it is brought into a session."""

log = structlog.get_logger(__name__)


def _allows(agent: RegisteredAgent, session_id: str) -> bool:
    """Whether the credential that an agent came with lets it into a session."""
    return agent.client is not None and agent.client.allows_session(session_id)


class Assignments:
    """Finds agents for sessions, and brings them in."""

    def __init__(self, sessions: SessionManager, agents: AgentRegistry, events: Events) -> None:
        self._sessions = sessions
        self._agents = agents
        self._tasks: set[asyncio.Task[None]] = set()
        events.on("agent:registered", self._registered)
        agents.released.append(self.release)

    # Finding

    def choose(
        self, client: Client, session_id: str, payload: SessionCreate
    ) -> RegisteredAgent | None:
        """
        Return the agent to assign; None if the client did not ask for one.

        It is within the client's patterns, and the session within the agent's.

        Raises:
            GatewayError: ``AGENT_NOT_FOUND``: no online agent fits.
        """
        if payload.agent_id is not None:
            agent = self._agents.get_agent(payload.agent_id)
            online = [agent] if agent is not None and agent.online else []
        elif payload.capability is not None or payload.agent_type is not None:
            online = self._fitting(payload.capability, payload.agent_type)
        else:
            return None
        found = [a for a in online if client.allows_agent(a.id) and _allows(a, session_id)]
        if not found:
            raise GatewayError(ErrorCode.AGENT_NOT_FOUND, "no online agent fits")
        return min(found, key=lambda agent: agent.active)

    def _fitting(self, capability: str | None, agent_type: str | None) -> list[RegisteredAgent]:
        return [
            agent
            for agent in self._agents.get_online_agents()
            if capability in (None, *agent.names) and agent_type in (None, agent.type)
        ]

    def substitute(self, session: Session, chat_id: str | None) -> RegisteredAgent | None:
        """
        Return another agent for a run that its own has not begun; None if none fits.

        Only a session that was created by capability or type may be given
        another, and only one that does not answer the same chat already.
        """
        record = session.record
        if record.capability is None and record.agent_type is None:
            return None
        answering = {run.agent_id for run in session.runs.values() if run.chat_id == chat_id}
        fitting = self._fitting(record.capability, record.agent_type)
        found = [
            agent
            for agent in fitting
            if agent.capabilities.chat
            and agent.id not in answering
            and matches(agent.id, record.agent_patterns)
            and _allows(agent, session.id)
        ]
        return min(found, key=lambda agent: agent.active, default=None)

    # Bringing in

    async def assign(
        self,
        session: Session,
        agent: RegisteredAgent,
        *,
        instead_of: str | None = None,
        runs: list[RunState] | None = None,
    ) -> None:
        """
        Make an agent the session's own, bring it in, and put that into the log.

        Args:
            instead_of: An agent that is not the session's any more.
            runs: The runs that it takes over.
        """

        def edit(record: SessionRecord) -> None:
            kept = [a for a in record.assigned if a not in (agent.id, instead_of)]
            record.assigned = [*kept, agent.id]

        replaced = instead_of if instead_of in session.record.assigned else None
        await self._sessions.change(session, edit)
        if replaced is not None and replaced != agent.id:
            self._send_out(session, replaced)
        await self._bring(session, agent)
        info = SessionInfo(session_id=session.id, status="assigned", agent_id=agent.id, runs=runs)
        session.feed.submit(GatewayPost(create_message("session_info", info)))

    async def release(self, agent_id: str) -> None:
        """Take an id, however it is spelled, from all sessions: it is not the same agent any more."""
        for record in self._sessions.all_records():
            for held in record.assigned:
                if held.lower() == agent_id.lower():
                    session = await self._sessions.revive(record.session_id)
                    if session is not None:
                        await self._unassign(session, held)

    async def _unassign(self, session: Session, agent_id: str) -> None:
        def edit(record: SessionRecord) -> None:
            record.assigned = [a for a in record.assigned if a != agent_id]

        await self._sessions.change(session, edit)
        self._send_out(session, agent_id)

    def _send_out(self, session: Session, agent_id: str) -> None:
        """Put into the log that an agent is not the session's any more, and then take it out."""
        agent = self._agents.get_agent(agent_id)
        client = agent.client if agent is not None else None
        info = SessionInfo(session_id=session.id, status="unassigned", agent_id=agent_id)
        session.feed.submit(GatewayPost(create_message("session_info", info)))

        def leave() -> None:
            if client is not None and not assigned_to(session.record, client):
                self._sessions.remove_client(session.id, client)

        session.feed.call(leave)

    async def bring_in(self, session: Session) -> None:
        """Bring the agents of a session in that are online and not members."""
        for agent_id in session.record.assigned:
            agent = self._agents.get_agent(agent_id)
            if agent is not None and agent.client not in (None, *session.members):
                await self._bring(session, agent)

    def _registered(self, agent: RegisteredAgent) -> None:
        for session in self._sessions.get_all_sessions():
            if agent.id in session.record.assigned and agent.client not in session.members:
                self.start(self._bring(session, agent))

    async def _bring(self, session: Session, agent: RegisteredAgent) -> None:
        client = agent.client
        if client is None:
            return
        session.feed.compare(await self._sessions.history.bounds(session.id))
        await session.feed.run(lambda: self._enter(session, agent.id, client))

    def _enter(self, session: Session, agent_id: str, client: Client) -> None:
        if client.phase is Phase.CLOSED or agent_id not in client.agents:
            return
        if not client.allows_session(session.id):
            return
        try:
            self._sessions.check_room(session, client, assigned=True)
        except GatewayError as error:
            log.warning("agent not in its session", agent=agent_id, session=session.id, why=error)
            return
        again = client in session.members
        recovery, _, after = find_start(session.feed, None, 0 if again else TAIL)
        self._sessions.enter(session, client)
        info = session.info("assigned", agent_id=agent_id, recovery=recovery, next=after + 1)
        client.send(create_message("session_info", info, session.id))
        if not again:
            self._sessions.attach(session, client, after)

    # Work that nobody waits for

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the background, in this object's care."""
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("an agent could not be brought in")

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
