"""
The agents: who they are, what they can do, whether they are there.

An agent is a client that registered. Its id belongs to the user that first
registered it; every registration gets a higher `generation`, and only the
newest one's connection speaks for the agent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from trunkline.clients import Client, Clients, Phase
from trunkline.config import LimitsConfig
from trunkline.errors import CloseCode, ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.handlers import Handlers, close_with
from trunkline.messages import GatewayMessage, encode
from trunkline.payloads import (
    AgentCapabilities,
    AgentEntry,
    AgentHeartbeat,
    AgentHeartbeatOk,
    AgentList,
    AgentListing,
    AgentRegister,
    AgentRegistered,
    AgentUnregister,
    AgentUnregistered,
    ResumedRun,
    ToolSpec,
)
from trunkline.records import Conflict, Records

LEASE = 60.0
"""Seconds that a registration lasts without a sign of life."""

ID_RETENTION = 30 * 86_400.0
"""Seconds after which an unused agent id is anybody's again."""

Status = Literal["online", "busy", "offline"]
KIND = "agent"


class Ownership(msgspec.Struct):
    """Whose an agent id is; kept in the records."""

    owner: str
    generation: int
    used_at: float
    """Seconds since the epoch."""


class RegisteredAgent:
    """One registered agent."""

    __slots__ = (
        "active",
        "capabilities",
        "client",
        "generation",
        "id",
        "labels",
        "load",
        "max_concurrent",
        "metadata",
        "name",
        "names",
        "owner",
        "status",
        "type",
    )

    def __init__(self, payload: AgentRegister, owner: str, generation: int, client: Client | None):
        self.id = payload.id
        self.owner = owner
        self.generation = generation
        self.client = client
        self.status: Status = "online" if client is not None else "offline"
        self.load: float | None = None
        self.active = 0
        """Requests at work."""
        self.update(payload)

    def update(self, payload: AgentRegister) -> None:
        """Take over what an agent announces."""
        self.type = payload.agent_type
        self.name = payload.name or payload.id
        self.capabilities = payload.capabilities
        self.names = capability_names(payload.capabilities)
        self.metadata = payload.metadata
        self.labels = payload.labels
        self.max_concurrent = payload.max_concurrent

    @property
    def online(self) -> bool:
        """Whether the agent can be asked."""
        return self.client is not None

    def entry(self) -> AgentEntry:
        """Return the agent as lists show it."""
        return AgentEntry(
            id=self.id,
            agent_type=self.type,
            name=self.name,
            capabilities=self.capabilities,
            status=self.status,
            generation=self.generation,
            load=self.load,
            labels=self.labels,
            metadata=self.metadata,
        )


def capability_names(capabilities: AgentCapabilities) -> frozenset[str]:
    """Return every word under which a capability may be asked for."""
    names: set[str] = set()
    if capabilities.chat:
        names.add("chat")
    if capabilities.streaming:
        names.add("streaming")
    for tool in capabilities.tools:
        name = tool.name if isinstance(tool, ToolSpec) else tool
        names |= {name, f"tools:{name}"}
    for mode in capabilities.modes:
        names |= {mode, f"modes:{mode}"}
    return frozenset(names | set(capabilities.custom or ()))


class AgentRegistry:
    """
    The agents of a gateway, and the handlers of ``agent_*``.

    Agents that live in the gateway's own program may be registered from Python
    too, with `register` and the connected client that speaks for them.
    """

    def __init__(
        self,
        clients: Clients,
        events: Events,
        records: Records,
        limits: LimitsConfig,
    ) -> None:
        self._clients = clients
        self._events = events
        self._records = records
        self._limits = limits
        self._agents: dict[str, RegisteredAgent] = {}
        self._by_capability: dict[str, dict[str, RegisteredAgent]] = {}
        self.open_runs: Callable[[str], list[ResumedRun]] = lambda agent_id: []
        """Tells which runs wait for an agent that comes back."""
        self.lost: list[Callable[[RegisteredAgent, Client], None]] = []
        """Called when the connection that spoke for an agent does so no more."""

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("agent_register", self._on_register, AgentRegister)
        handlers.add("agent_heartbeat", self._on_heartbeat, AgentHeartbeat)
        handlers.add("agent_unregister", self._on_unregister, AgentUnregister)
        handlers.add("agent_list", self._on_list, AgentList)

    # The registry

    async def register(
        self, payload: AgentRegister, client: Client | None = None, owner: str = "gateway"
    ) -> RegisteredAgent:
        """
        Register an agent, or renew its registration.

        Args:
            payload: What it announces.
            client: The connection that speaks for it; without one it is offline.
            owner: The user that the id belongs to from now on.

        Raises:
            GatewayError: ``AGENT_ID_TAKEN``: the id belongs to another user.
        """
        known = self._agents.get(payload.id)
        if known is not None and client is not None and known.client is client:
            self._unindex(known)
            known.update(payload)
            self._index(known)
            self._announce(known)
            return known
        generation = await self._claim(payload.id, owner)
        previous = self._agents.get(payload.id)
        if previous is not None:
            self._replace(previous, client)
        agent = RegisteredAgent(payload, owner, generation, client)
        self._agents[agent.id] = agent
        if client is not None and client.phase is Phase.CLOSED:
            agent.client, agent.status = None, "offline"
        elif client is not None:
            client.agents[agent.id] = agent
            client.refresh_sender()
        self._index(agent)
        self._announce(agent)
        return agent

    def unregister(self, agent_id: str) -> bool:
        """Remove an agent; False if there is none."""
        agent = self._agents.pop(agent_id, None)
        if agent is None:
            return False
        self._detach(agent)
        self._clients.changed()
        self._events.emit("agent:unregistered", agent)
        return True

    def update_status(
        self, agent_id: str, status: Status, client: Client | None = None
    ) -> RegisteredAgent:
        """
        Set an agent's status.

        Args:
            status: ``offline`` takes its connection away.
            client: The connection that speaks for it from now on.

        Raises:
            GatewayError: ``AGENT_NOT_FOUND``: there is no such agent.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            raise GatewayError(ErrorCode.AGENT_NOT_FOUND, "no agent has this id")
        if client is not None and client is not agent.client:
            agent.client = client
            client.agents[agent.id] = agent
            client.refresh_sender()
            self._index(agent)
        if status == "offline" and agent.client is not None:
            self._detach(agent)
        if agent.status != status:
            agent.status = status
            self._clients.changed()
            self._events.emit("agent:status-changed", agent)
        return agent

    def get_agent(self, agent_id: str) -> RegisteredAgent | None:
        """Return an agent by its id."""
        return self._agents.get(agent_id)

    def get_all_agents(self) -> list[RegisteredAgent]:
        """Return all agents, offline ones too."""
        return list(self._agents.values())

    def get_online_agents(self) -> list[RegisteredAgent]:
        """Return the agents that can be asked."""
        return [agent for agent in self._agents.values() if agent.online]

    def find_by_capability(self, capability: str) -> list[RegisteredAgent]:
        """Return the online agents that can do something."""
        return list(self._by_capability.get(capability, {}).values())

    def find_by_type(self, type: str) -> list[RegisteredAgent]:
        """Return the online agents of a type."""
        return [agent for agent in self.get_online_agents() if agent.type == type]

    def broadcast_to_agents(
        self,
        message: GatewayMessage,
        filter: Callable[[RegisteredAgent], bool] | None = None,
        *,
        exclude: Client | None = None,
    ) -> int:
        """
        Send a message to every online agent's connection, once each.

        Returns:
            The number of connections.
        """
        targets = {
            agent.client: None
            for agent in self.get_online_agents()
            if (filter is None or filter(agent)) and agent.client is not exclude
        }
        frame = encode(message)
        for client in targets:
            assert client is not None
            client.transport.write(frame)
        return len(targets)

    def get_stats(self) -> dict[str, Any]:
        """Return how many agents there are: ``total``, ``online``, ``by_type``."""
        agents = self._agents.values()
        return {
            "total": len(agents),
            "online": sum(agent.online for agent in agents),
            "by_type": dict(Counter(agent.type for agent in agents)),
        }

    def disconnected(self, client: Client) -> None:
        """Mark the agents of a connection that is gone as offline."""
        for agent in list(client.agents.values()):
            self._detach(agent)
            agent.status = "offline"
            self._clients.changed()
            self._events.emit("agent:status-changed", agent)
            self._events.emit("agent:offline", agent)

    # How it is kept

    async def _claim(self, agent_id: str, owner: str) -> int:
        """Take an id for a user; returns the new generation."""
        while True:
            record = await self._records.get(KIND, agent_id)
            now = time.time()
            held = msgspec.json.decode(record.value, type=Ownership) if record else None
            if held and held.owner != owner and now - held.used_at < ID_RETENTION:
                raise GatewayError(ErrorCode.AGENT_ID_TAKEN, "the id belongs to another user")
            mine = Ownership(owner, held.generation + 1 if held else 1, now)
            try:
                await self._records.put(
                    KIND, agent_id, encode(mine), record.version if record else 0
                )
            except Conflict:
                continue
            return mine.generation

    def _replace(self, previous: RegisteredAgent, client: Client | None) -> None:
        """A newer registration: the older connection must not speak for the agent any more."""
        old = previous.client
        self._detach(previous)
        if old is not None and old is not client:
            close_with(old, CloseCode.REPLACED, "a newer connection registered this agent")

    def _detach(self, agent: RegisteredAgent) -> None:
        """Take an agent's connection away and tell those whose work it did."""
        self._unindex(agent)
        client, agent.client = agent.client, None
        if client is None:
            return
        client.agents.pop(agent.id, None)
        client.refresh_sender()
        for callback in self.lost:
            callback(agent, client)

    def _index(self, agent: RegisteredAgent) -> None:
        if agent.online:
            for name in agent.names:
                self._by_capability.setdefault(name, {})[agent.id] = agent

    def _unindex(self, agent: RegisteredAgent) -> None:
        for name in agent.names:
            found = self._by_capability.get(name)
            if found is not None and found.get(agent.id) is agent:
                del found[agent.id]
                if not found:
                    del self._by_capability[name]

    def _announce(self, agent: RegisteredAgent) -> None:
        self._clients.changed()
        self._events.emit("agent:registered", agent)

    # The handlers

    async def _on_register(
        self, client: Client, message: GatewayMessage, payload: AgentRegister
    ) -> AgentRegistered:
        if payload.id not in client.agents:
            self._check_quota(client)
        agent = await self.register(payload, client, client.user_id)
        return AgentRegistered(
            agent_id=agent.id,
            generation=agent.generation,
            lease_ms=round(LEASE * 1000),
            runs=self.open_runs(agent.id),
            requests=[],
        )

    def _check_quota(self, client: Client) -> None:
        if client.identity is None or not client.identity.own_quota:
            return
        held = sum(agent.owner == client.user_id for agent in self._agents.values())
        if held >= self._limits.agents_per_user:
            raise GatewayError(ErrorCode.OVERLOADED, "this user has too many agents")

    def _own(self, client: Client, agent_id: str) -> RegisteredAgent:
        agent = client.agents.get(agent_id)
        if agent is None:
            raise GatewayError(
                ErrorCode.AGENT_NOT_FOUND, "this connection has not registered that agent"
            )
        found: RegisteredAgent = agent
        return found

    def _on_heartbeat(
        self, client: Client, message: GatewayMessage, payload: AgentHeartbeat
    ) -> AgentHeartbeatOk:
        agent = self._own(client, payload.id)
        agent.load = payload.load if payload.load is not None else agent.load
        if payload.status is not None:
            self.update_status(agent.id, payload.status)
        return AgentHeartbeatOk(lease_ms=round(LEASE * 1000))

    def _on_unregister(
        self, client: Client, message: GatewayMessage, payload: AgentUnregister
    ) -> AgentUnregistered:
        if client.role == "control":
            if not client.has_scope("agent:admin"):
                raise GatewayError(ErrorCode.FORBIDDEN, "this needs the scope agent:admin")
            if payload.id not in self._agents:
                raise GatewayError(ErrorCode.AGENT_NOT_FOUND, "no agent has this id")
        else:
            self._own(client, payload.id)
        self.unregister(payload.id)
        return AgentUnregistered(agent_id=payload.id)

    def _on_list(self, client: Client, message: GatewayMessage, payload: AgentList) -> AgentListing:
        return AgentListing(agents=self.entries(payload))

    def entries(self, wanted: AgentList | None = None) -> list[AgentEntry]:
        """Return the agents as lists show them, all or those wanted."""
        return [a.entry() for a in _wanted(self._agents.values(), wanted or AgentList())]


def _wanted(agents: Iterable[RegisteredAgent], wanted: AgentList) -> Iterable[RegisteredAgent]:
    for agent in agents:
        if wanted.capability is not None and wanted.capability not in agent.names:
            continue
        if wanted.agent_type is not None and wanted.agent_type != agent.type:
            continue
        if wanted.status is not None and wanted.status != agent.status:
            continue
        yield agent
