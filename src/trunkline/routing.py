"""
Requests: one agent asked, exactly one end (protocol.md section 5).

The gateway gives every request an id of its own that cannot be guessed. Only
the connection and generation that was asked may answer it; whatever else
claims to be an answer is dropped and counted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from itertools import count

from msgspec import Raw

from trunkline.agents import AgentRegistry, RegisteredAgent
from trunkline.clients import Client, Clients
from trunkline.config import LimitsConfig
from trunkline.errors import ErrorCode, GatewayError
from trunkline.handlers import Handlers
from trunkline.ids import new_id, now_ms
from trunkline.messages import GatewayMessage, RelayedMessage, create_message, encode, error_message
from trunkline.payloads import (
    Ack,
    Broadcast,
    BroadcastDelivery,
    RouteAnswer,
    RouteCancel,
    RouteDelivery,
    RouteRequest,
    RouteResponse,
)
from trunkline.sessions import SessionManager


class Request:
    """One open request."""

    __slots__ = ("agent", "asker", "client", "deadline", "generation", "id", "message_id", "timer")

    def __init__(
        self, asker: Client, message_id: str, agent: RegisteredAgent, client: Client, deadline: int
    ) -> None:
        self.id = secrets.token_hex(16)
        self.asker = asker
        self.message_id = message_id
        self.agent = agent
        self.client = client
        self.generation = agent.generation
        self.deadline = deadline
        self.timer: asyncio.TimerHandle | None = None


class Router:
    """The handlers of ``route_*`` and ``broadcast``, and the open requests."""

    def __init__(
        self,
        agents: AgentRegistry,
        sessions: SessionManager,
        clients: Clients,
        limits: LimitsConfig,
    ) -> None:
        self._agents = agents
        self._sessions = sessions
        self._clients = clients
        self._limits = limits
        self._open: dict[str, Request] = {}
        self._round = count()
        self.closing = False
        """Whether no more requests are taken, for the gateway is about to stop."""
        self.ends: Counter[str] = Counter()
        """How requests ended: ``ok``, ``failed``, or an error code."""
        self.strays = 0
        """Answers that nobody was asked for."""
        agents.lost.append(self._agent_lost)

    def __len__(self) -> int:
        return len(self._open)

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("route_request", self._on_request, RouteRequest)
        handlers.add("route_response", self._on_response, RouteResponse)
        handlers.add("route_cancel", self._on_cancel, RouteCancel)
        handlers.add("broadcast", self._on_broadcast, Broadcast)

    # Asking

    def _on_request(self, client: Client, message: GatewayMessage, payload: RouteRequest) -> None:
        if message.id in client.requests:
            raise GatewayError(ErrorCode.ID_CONFLICT, "a request with this id is open")
        if self.closing:
            raise GatewayError(
                ErrorCode.OVERLOADED,
                "the gateway is stopping",
                details={"delivered": False},
                retry_after=5.0,
            )
        if len(client.requests) >= self._limits.requests_per_connection:
            raise GatewayError(
                ErrorCode.OVERLOADED,
                "this connection has too many open requests",
                details={"delivered": False},
            )
        agent = self.choose(payload, message.target)
        target = agent.client
        assert target is not None
        deadline = now_ms() + payload.timeout_ms
        request = Request(client, message.id, agent, target, deadline)
        self._open[request.id] = client.requests[message.id] = request
        agent.active += 1
        request.timer = asyncio.get_running_loop().call_later(
            payload.timeout_ms / 1000, self._timed_out, request
        )
        target.transport.write(_delivery(request, client, message, payload))

    def choose(self, payload: RouteRequest, target: str | None = None) -> RegisteredAgent:
        """
        Choose who is asked: the agent that is named, or the least busy that fits.

        Raises:
            GatewayError: ``AGENT_NOT_FOUND``, or ``INVALID_PAYLOAD`` if nobody is named.
        """
        agent_id = payload.agent_id or target
        found: list[RegisteredAgent] = []
        if agent_id is not None:
            agent = self._agents.get_agent(agent_id)
            if agent is not None and agent.online:
                found = [agent]
        elif payload.capability is not None:
            found = self._agents.find_by_capability(payload.capability)
        else:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD,
                "name a capability or an agentId",
                details={"path": "$.capability"},
            )
        if agent_id is not None and payload.capability is not None:
            found = [a for a in found if payload.capability in a.names]
        if payload.labels:
            wanted = payload.labels.items()
            found = [a for a in found if a.labels and wanted <= a.labels.items()]
        found = self._with_room(found)
        if payload.policy == "round_robin":
            return found[next(self._round) % len(found)]
        return _least_busy(found, next(self._round))

    @staticmethod
    def _with_room(found: list[RegisteredAgent]) -> list[RegisteredAgent]:
        if not found:
            raise GatewayError(
                ErrorCode.AGENT_NOT_FOUND, "no online agent fits", details={"delivered": False}
            )
        free = [a for a in found if not a.max_concurrent or a.active < a.max_concurrent]
        if not free:
            raise GatewayError(
                ErrorCode.OVERLOADED,
                "every agent that fits is busy",
                details={"delivered": False},
                retry_after=1.0,
            )
        return free

    # Answering

    def _on_response(self, client: Client, message: GatewayMessage, payload: RouteResponse) -> None:
        request = self._open.get(payload.request_id)
        if (
            request is None
            or request.client is not client
            or client.agents.get(request.agent.id) is not request.agent
        ):
            self.strays += 1
            return
        asker = request.asker
        if payload.done:
            self._close(request, "ok" if payload.ok else "failed")
        answer = RouteAnswer(
            request_id=request.id,
            ok=payload.ok,
            result=payload.result,
            error=payload.error,
            chunk=payload.chunk,
            done=payload.done,
            agent_id=request.agent.id,
        )
        frame = encode(
            RelayedMessage(
                type="route_response",
                id=message.id,
                payload=Raw(encode(answer)),
                timestamp=now_ms(),
                reply_to=request.message_id,
                source=request.agent.id,
                sender=client.sender,
                trace=message.trace,
            )
        )
        asker.transport.write(frame)

    # Ends

    def _close(self, request: Request, how: str) -> None:
        """Take a request off the books; only the caller that finds it open may end it."""
        del self._open[request.id]
        request.asker.requests.pop(request.message_id, None)
        request.agent.active -= 1
        if request.timer is not None:
            request.timer.cancel()
        self.ends[how] += 1

    def _fail(self, request: Request, code: ErrorCode, sentence: str) -> None:
        self._close(request, code)
        error = GatewayError(code, sentence, details={"delivered": True})
        request.asker.send(error_message(error, request.message_id))

    def _tell_agent(self, request: Request) -> None:
        payload = RouteCancel(request_id=request.id)
        request.client.send(create_message("route_cancel", payload))

    def _timed_out(self, request: Request) -> None:
        if request.id in self._open:
            self._tell_agent(request)
            self._fail(request, ErrorCode.TIMEOUT, "the agent did not answer in time")

    def _on_cancel(self, client: Client, message: GatewayMessage, payload: RouteCancel) -> None:
        request = client.requests.get(payload.request_id)
        if request is not None:
            self._tell_agent(request)
            self._fail(request, ErrorCode.CANCELLED, "the request was cancelled")

    def _agent_lost(self, agent: RegisteredAgent, client: Client) -> None:
        if not agent.active:
            return
        for request in [r for r in self._open.values() if r.agent is agent]:
            self._fail(request, ErrorCode.AGENT_LOST, "the agent is gone")

    def disconnected(self, client: Client) -> None:
        """Cancel what a connection that is gone has asked for."""
        for request in list(client.requests.values()):
            self._tell_agent(request)
            self._close(request, ErrorCode.CANCELLED)

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
                relayed, lambda a: wanted is None or wanted in a.names, exclude=client
            )
            return Ack(delivered=delivered)
        frame = encode(relayed)
        targets = [c for c in self._clients.ready() if c is not client]
        for target in targets:
            target.transport.write(frame)
        return Ack(delivered=len(targets))

    def _to_session(
        self,
        client: Client,
        message: GatewayMessage,
        payload: Broadcast,
        relayed: RelayedMessage,
    ) -> int:
        session_id = payload.session_id or message.session_id
        if session_id is None:
            raise GatewayError(ErrorCode.INVALID_MESSAGE, "the message names no session")
        if session_id not in client.sessions:
            raise self._sessions.no_member(client, session_id)
        session = self._sessions.get_session(session_id)
        assert session is not None
        relayed.session_id = session_id
        session.feed.relay(encode(relayed), client)
        return len(session.members) - 1


def _least_busy(found: list[RegisteredAgent], turn: int) -> RegisteredAgent:
    """Return an agent with the fewest requests at work; equals take turns."""
    least = min(agent.active for agent in found)
    idle = [agent for agent in found if agent.active == least]
    return idle[turn % len(idle)]


def _delivery(
    request: Request, client: Client, message: GatewayMessage, payload: RouteRequest
) -> bytes:
    """Encode a request as its agent gets it."""
    delivery = RouteDelivery(
        request_id=request.id,
        capability=payload.capability,
        method=payload.method,
        params=payload.params,
        stream=payload.stream,
        deadline=request.deadline,
        chain=[],
    )
    return encode(
        RelayedMessage(
            type="route_request",
            id=new_id(),
            payload=Raw(encode(delivery)),
            timestamp=now_ms(),
            source=client.id,
            target=request.agent.id,
            trace=message.trace,
            sender=client.sender,
        )
    )
