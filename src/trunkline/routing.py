"""
Requests: one agent asked, exactly one end (protocol.md section 5).

The gateway gives every request an id of its own that cannot be guessed. Only
the connection that speaks for the asked agent may answer it; whatever else
claims to be an answer is dropped and counted. A request that finds every
fitting agent busy waits for one, and what is asked on behalf of a request or
run ends with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Protocol

import msgspec
from msgspec import Raw

from trunkline.agents import AgentRegistry, RegisteredAgent
from trunkline.clients import Client, Clients
from trunkline.config import GatewayConfig, LimitsConfig
from trunkline.deadlines import Deadlines
from trunkline.errors import ErrorCode, GatewayError
from trunkline.handlers import Handlers
from trunkline.ids import new_id, now_ms, random_numbers
from trunkline.messages import (
    GatewayMessage,
    OutgoingMessage,
    RelayedMessage,
    create_message,
    encode,
    error_message,
)
from trunkline.patterns import ANY
from trunkline.payloads import (
    Ack,
    Broadcast,
    BroadcastDelivery,
    RouteAnswer,
    RouteCancel,
    RouteCandidate,
    RouteDelivery,
    RouteExplain,
    RouteExplained,
    RouteRequest,
    RouteResponse,
)
from trunkline.pools import MAX_WAITING, Pool, Pools, Wanted
from trunkline.schemas import check_arguments
from trunkline.sessions import Session, SessionManager

MAX_CHAIN = 8
"""Agents that a request may pass through."""

MAX_EXPLAINED = 300
"""Candidates that ``route_explain`` lists at most."""


class OpenRun(Protocol):
    """What a request needs to know of the run that it is asked for."""

    agent_id: str


class Request(msgspec.Struct, eq=False, kw_only=True):
    """One open request."""

    id: str
    """The gateway's own; another for each agent that is asked."""
    asker: Client
    message_id: str
    """The asker's."""
    trace: str | None
    payload: RouteRequest
    wanted: Wanted
    asked_at: float
    """When it came, by the gateway's clock, in seconds."""
    ends_at: float
    """The deadline by the gateway's clock, in seconds."""
    agent: RegisteredAgent | None = None
    """Who was asked last; None while it waits for the first."""
    pool: Pool[Request] | None = None
    """Where it waits; None while an agent is at it."""
    parent: Request | OpenRun | None = None
    chain: tuple[str, ...] = ()
    """The agents that it has passed through."""
    answers: int = 0
    """Pieces of an answer that the asker has got."""


def wanted_by(asker: Client, payload: RouteRequest, target: str | None) -> Wanted:
    """
    Return what a request asks of its agent.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``: it names nobody.
    """
    agent_id = payload.agent_id or target
    if agent_id is None and payload.capability is None:
        raise GatewayError(
            ErrorCode.INVALID_PAYLOAD,
            "name a capability or an agentId",
            details={"path": "$.capability"},
        )
    labels = tuple(sorted(payload.labels.items())) if payload.labels else ()
    bounds = asker.identity.agent_patterns if asker.identity is not None else ANY
    return Wanted(payload.capability, agent_id, labels, bounds)


def undelivered(
    code: ErrorCode, sentence: str, *, retry_after: float | None = None
) -> GatewayError:
    """Make the error for a request that no agent has got."""
    return GatewayError(code, sentence, details={"delivered": False}, retry_after=retry_after)


class Router:
    """The handlers of ``route_*`` and ``broadcast``, and the open requests."""

    def __init__(
        self,
        agents: AgentRegistry,
        sessions: SessionManager,
        clients: Clients,
        limits: LimitsConfig,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._agents = agents
        self._sessions = sessions
        self._clients = clients
        self._limits = limits
        self._open: dict[str, Request] = {}
        self._children: dict[Request | OpenRun, dict[Request, None]] = {}
        self._served = count(1)
        self.find_run: Callable[[Client, str | None, str], OpenRun | None] = lambda *_: None
        """Finds the open run of a connection's agent by session and id."""
        self.closing = False
        """Whether no more requests are taken, for the gateway is about to stop."""
        self.ends: Counter[str] = Counter()
        """How requests ended: ``ok``, ``failed``, or an error code."""
        self.strays = 0
        """Answers that nobody was asked for."""
        self._pools: Pools[Request] = Pools(agents)
        self._new_id = random_numbers().__next__
        self._deadlines = Deadlines(self._open.__contains__, self._timed_out, clock)
        agents.arrived.append(self._agent_arrived)
        agents.lost.append(self._agent_lost)

    def __len__(self) -> int:
        return len(self._open)

    def open_requests(self) -> list[Request]:
        """Return the open requests, the oldest first."""
        return list(self._open.values())

    def now(self) -> float:
        """Return the time by the clock of the requests' deadlines, in seconds."""
        return self._clock()

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._limits = config.limits

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("route_request", self._on_request, RouteRequest)
        handlers.add("route_response", self._on_response, RouteResponse)
        handlers.add("route_cancel", self._on_cancel, RouteCancel)
        handlers.add("route_explain", self._on_explain, RouteExplain)
        handlers.add("broadcast", self._on_broadcast, Broadcast)

    # Asking

    def _on_request(self, client: Client, message: GatewayMessage, payload: RouteRequest) -> None:
        if message.id in client.requests:
            raise GatewayError(ErrorCode.ID_CONFLICT, "a request with this id is open")
        if self.closing:
            raise undelivered(ErrorCode.OVERLOADED, "the gateway is stopping", retry_after=5.0)
        if len(client.requests) >= self._limits.requests_per_connection:
            raise undelivered(
                ErrorCode.OVERLOADED, "this connection has too many open requests", retry_after=1.0
            )
        now = self._clock()
        request = Request(
            id=self._new_id(),
            asker=client,
            message_id=message.id,
            trace=message.trace,
            payload=payload,
            wanted=wanted_by(client, payload, message.target),
            asked_at=now,
            ends_at=now + payload.timeout_ms / 1000,
        )
        if payload.parent_id is not None:
            self._adopt(request, message.session_id, payload.parent_id)
        self._place(request)
        self._open[request.id] = client.requests[message.id] = request
        if request.parent is not None:
            self._children.setdefault(request.parent, {})[request] = None
        self._deadlines.add(request.ends_at, request.id)

    def _adopt(self, request: Request, session_id: str | None, parent_id: str) -> None:
        """Put a request under the one, or the run, that its asker is serving."""
        client = request.asker
        parent: Request | OpenRun | None = self._open.get(parent_id)
        if isinstance(parent, Request):
            agent = parent.agent
            if agent is None or agent.client is not client:
                parent = None
            else:
                request.chain = (*parent.chain, agent.id)
                request.ends_at = min(request.ends_at, parent.ends_at)
        else:
            parent = self.find_run(client, session_id, parent_id)
            if parent is not None:
                request.chain = (parent.agent_id,)
        if parent is None:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD,
                "this connection serves no such request or run",
                details={"path": "$.parentId", "delivered": False},
            )
        if len(request.chain) > MAX_CHAIN:
            raise undelivered(
                ErrorCode.FORBIDDEN, f"agents may ask each other at most {MAX_CHAIN} deep"
            )
        request.parent = parent

    def _place(self, request: Request) -> None:
        """Give a request to an agent, or let it wait for one; raises if none could ever do it."""
        pool, chain = self._pools.find(request.wanted), request.chain
        if pool is None or (chain and not pool.reaches(chain)):
            raise undelivered(ErrorCode.AGENT_NOT_FOUND, "no online agent fits")
        agent = pool.choose(request.payload.policy, chain)
        if agent is not None:
            pool.took_turn(agent)
            self._deliver(request, agent)
            return
        if len(pool.waiting) >= MAX_WAITING:
            raise undelivered(
                ErrorCode.OVERLOADED, "too many requests wait for these agents", retry_after=1.0
            )
        request.pool = pool
        pool.waiting.add(request.asker, request)

    def _deliver(self, request: Request, agent: RegisteredAgent) -> None:
        """Send a request to an agent; raises if its tool does not take these arguments."""
        client = agent.client
        assert client is not None, "only online agents are in a pool"
        if agent.has_schemas:
            _check_arguments(request.payload, agent)
        request.agent = agent
        agent.requests[request.id] = request
        now = self._clock()
        client.measures.waits.observe(now - request.asked_at)
        client.write(_delivery(request, now))

    def _agent_arrived(self, agent: RegisteredAgent) -> None:
        # Behind the answer to its registration, which is sent in this turn of the loop.
        asyncio.get_running_loop().call_soon(self._serve, agent)

    def _serve(self, agent: RegisteredAgent) -> None:
        """Give an agent that has room what waits for it; its pools take turns."""
        while agent.has_room:
            waiting = [pool for pool in agent.pools if pool.waiting]
            for pool in sorted(waiting, key=lambda pool: pool.served):
                request = pool.waiting.take(lambda r: agent.id not in r.chain)
                if request is not None:
                    pool.served = next(self._served)
                    self._deliver_late(request, agent)
                    break
            else:
                return

    def _deliver_late(self, request: Request, agent: RegisteredAgent) -> None:
        """Send a request that has waited."""
        request.pool = None
        try:
            self._deliver(request, agent)
        except GatewayError as error:
            self._end(request, error)

    # Answering

    def _on_response(self, client: Client, message: GatewayMessage, payload: RouteResponse) -> None:
        request = self._open.get(payload.request_id)
        agent = request.agent if request is not None else None
        if request is None or agent is None or request.pool or agent.client is not client:
            self.strays += 1
            return
        answer = RouteAnswer(
            request_id=request.id,
            ok=payload.ok,
            result=payload.result,
            error=payload.error,
            chunk=payload.chunk,
            done=payload.done,
            agent_id=agent.id,
        )
        frame = encode(
            OutgoingMessage(
                type="route_response",
                id=message.id,
                payload=answer,
                timestamp=now_ms(),
                reply_to=request.message_id,
                source=agent.id,
                sender=client.sender_for(agent.id),
                trace=message.trace,
            )
        )
        request.answers += 1
        request.asker.write(frame)
        if payload.done:
            self._close(request, "ok" if payload.ok else "failed")

    # Ends

    def _close(self, request: Request, how: str) -> None:
        """Take a request off the books; only the caller that finds it open may end it."""
        del self._open[request.id]
        request.asker.requests.pop(request.message_id, None)
        self.ends[how] += 1
        if self._children:
            if request.parent is not None:
                self._children.get(request.parent, {}).pop(request, None)
            self._cancel_children(request)
        self._withdraw(request)

    def _withdraw(self, request: Request) -> None:
        """Take a request from its agent, who is free for another, or out of the queue."""
        pool, agent = request.pool, request.agent
        if pool is not None:
            request.pool = None
            pool.waiting.remove(request.asker, request)
            self._pools.emptied(pool)
        elif agent is not None and agent.requests.pop(request.id, None) is not None:
            self._pools.finished(agent)
            if agent.max_concurrent:  # without a limit it had room before, too
                self._serve(agent)

    def _fail(self, request: Request, code: ErrorCode, sentence: str) -> None:
        details = {"delivered": request.agent is not None}
        self._end(request, GatewayError(code, sentence, details=details))

    def _end(self, request: Request, error: GatewayError) -> None:
        self._close(request, error.code)
        request.asker.send(error_message(error, request.message_id))

    def _tell_agent(self, request: Request) -> None:
        agent = request.agent
        if request.pool is None and agent is not None and agent.client is not None:
            payload = RouteCancel(request_id=request.id)
            agent.client.send(create_message("route_cancel", payload))

    def _timed_out(self, request_id: str) -> None:
        request = self._open[request_id]
        self._tell_agent(request)
        self._fail(request, ErrorCode.TIMEOUT, "no answer came in time")

    def _on_cancel(self, client: Client, message: GatewayMessage, payload: RouteCancel) -> None:
        request = client.requests.get(payload.request_id)
        if request is not None:
            self._cancel(request)

    def _cancel(self, request: Request) -> None:
        self._tell_agent(request)
        self._fail(request, ErrorCode.CANCELLED, "the request was cancelled")

    def _cancel_children(self, parent: Request | OpenRun) -> None:
        for child in list(self._children.pop(parent, ())):
            self._cancel(child)

    def run_ended(self, session: Session, run: OpenRun) -> None:
        """Cancel what was asked on behalf of a run."""
        self._cancel_children(run)

    def _agent_lost(self, agent: RegisteredAgent) -> None:
        for request in list(agent.requests.values()):
            if request.payload.idempotent and not request.answers:
                self._ask_again(request)
            else:
                self._fail(request, ErrorCode.AGENT_LOST, "the agent is gone")
        for pool in self._pools.deserted():
            if not any(a.working and pool.wanted.fits(a) for a in self._agents.get_all_agents()):
                for request in pool.waiting.items():
                    code = ErrorCode.AGENT_LOST if request.agent else ErrorCode.AGENT_NOT_FOUND
                    self._fail(request, code, "the agents that fit are gone")

    def _ask_again(self, request: Request) -> None:
        """Give a request to another agent: the one that had it is gone, and it may be repeated."""
        lost = request.agent
        assert lost is not None
        self._cancel_children(request)
        del self._open[request.id], lost.requests[request.id]
        request.id = self._new_id()
        self._open[request.id] = request
        self._deadlines.add(request.ends_at, request.id)
        try:
            self._place(request)
        except GatewayError:
            self._fail(request, ErrorCode.AGENT_LOST, "the agent is gone")

    def disconnected(self, client: Client) -> None:
        """Cancel what a connection that is gone has asked for."""
        for request in list(client.requests.values()):
            self._tell_agent(request)
            self._close(request, ErrorCode.CANCELLED)

    # Explaining

    def _on_explain(
        self, client: Client, message: GatewayMessage, payload: RouteExplain
    ) -> RouteExplained:
        wanted = wanted_by(client, payload, message.target)
        pool = self._pools.find(wanted)
        chosen = pool.choose(payload.policy) if pool is not None else None
        found = [
            RouteCandidate(
                agent_id=agent.id, chosen=agent is chosen, reason=_reason(agent, wanted, chosen)
            )
            for agent in self._agents.get_all_agents()
            if client.allows_agent(agent.id)
            and (
                agent.id == wanted.agent_id
                or (wanted.agent_id is None and wanted.capability in agent.names)
            )
        ]
        found.sort(key=lambda candidate: not candidate.chosen)
        return RouteExplained(candidates=found[:MAX_EXPLAINED])

    # Telling many

    def _on_broadcast(self, client: Client, message: GatewayMessage, payload: Broadcast) -> Ack:
        delivery = BroadcastDelivery(message=payload.message, to=payload.to)
        relayed = RelayedMessage(
            type="broadcast",
            id=message.id,
            session_id=None,
            payload=Raw(encode(delivery)),
            timestamp=now_ms(),
            sender=client.sender,
            trace=message.trace,
        )
        if payload.to == "session":
            return Ack(delivered=self._to_session(client, message, payload, relayed))
        if payload.to == "agents":
            wanted = payload.capability
            delivered = self._agents.broadcast_to_agents(
                relayed,
                lambda a: client.allows_agent(a.id) and wanted in (None, *a.names),
                exclude=client,
            )
            return Ack(delivered=delivered)
        frame = encode(relayed)
        targets = [c for c in self._clients.ready() if c is not client and client.covers(c)]
        for target in targets:
            target.write(frame)
        return Ack(delivered=len(targets))

    def _to_session(
        self,
        client: Client,
        message: GatewayMessage,
        payload: Broadcast,
        relayed: RelayedMessage,
    ) -> int:
        session_id = payload.session_id or message.session_id
        if session_id is None or message.session_id not in (None, session_id):
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "the message must name one session")
        if session_id not in client.sessions:
            raise self._sessions.no_member(client, session_id)
        session = self._sessions.get_session(session_id)
        assert session is not None
        relayed.session_id = session_id
        session.feed.relay(encode(relayed), client)
        return len(session.members) - 1


def _check_arguments(payload: RouteRequest, agent: RegisteredAgent) -> None:
    """Check the arguments against the schema of the tool that is asked for, if it is one."""
    for name in (payload.method or "", (payload.capability or "").removeprefix("tools:")):
        if name in agent.tools:
            validator = agent.tools[name]
            if validator is not None:
                check_arguments(validator, payload.params)
            return


def _reason(agent: RegisteredAgent, wanted: Wanted, chosen: RegisteredAgent | None) -> str:
    """Say why an agent would, or would not, get a request."""
    at_work = f"{agent.active} requests at work"
    if not agent.online:
        return "it is offline"
    lacking = wanted.lacking(agent)
    if lacking is not None:
        return lacking
    if not agent.has_room:
        return f"it has no room: {at_work} of at most {agent.max_concurrent}"
    if agent is chosen:
        return f"it is the one to ask: {at_work}"
    if agent.status == "busy":
        return "it says that it is busy, so it is asked last"
    return f"another is asked before it: {at_work}"


def _delivery(request: Request, now: float) -> bytes:
    """Encode a request as its agent gets it."""
    payload, agent = request.payload, request.agent
    assert agent is not None
    timestamp = now_ms()
    delivery = RouteDelivery(
        request_id=request.id,
        capability=payload.capability,
        method=payload.method,
        params=payload.params,
        stream=payload.stream,
        deadline=timestamp + round((request.ends_at - now) * 1000),
        chain=list(request.chain),
    )
    return encode(
        OutgoingMessage(
            type="route_request",
            id=new_id(),
            payload=delivery,
            timestamp=timestamp,
            source=request.asker.id,
            target=agent.id,
            trace=request.trace,
            sender=request.asker.sender,
        )
    )
