"""
The agents: who they are, what they can do, whether they are there.

An agent is a client that registered. Its id belongs to the user that first
registered it; every registration gets a higher `generation`, and only the
newest one's connection speaks for the agent. When that connection breaks, the
agent is offline at once, and its work ends after the grace time that it asked
for, unless the same user takes the registration up again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from trunkline.clients import Client, Clients, Phase
from trunkline.config import GatewayConfig, LimitsConfig
from trunkline.errors import CloseCode, Disconnect, ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.handlers import Handlers, close_with
from trunkline.limits import Tally
from trunkline.messages import GatewayMessage, encode
from trunkline.ownership import Owners
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
from trunkline.records import Records
from trunkline.schemas import compile_tools

LEASE = 60.0
"""Seconds that a registration lasts without a sign of life."""

USE_INTERVAL = 86_400.0
"""Seconds after which it is noted again that an id is in use."""

Status = Literal["online", "busy", "offline"]


class RegisteredAgent:
    """One registered agent."""

    __slots__ = (
        "capabilities",
        "client",
        "generation",
        "giving_up",
        "grace",
        "has_schemas",
        "id",
        "labels",
        "load",
        "max_concurrent",
        "metadata",
        "name",
        "names",
        "owner",
        "pools",
        "requests",
        "status",
        "tools",
        "type",
        "used_at",
    )

    def __init__(self, payload: AgentRegister, owner: str, generation: int, client: Client | None):
        self.id = payload.id
        self.owner = owner
        self.generation = generation
        self.client = client
        self.status: Status = "online" if client is not None else "offline"
        self.load: float | None = None
        self.requests: dict[str, Any] = {}
        """Requests at work, by the gateway's ids; `trunkline.routing` keeps them."""
        self.pools: list[Any] = []
        """The sets that it is chosen from; `trunkline.pools` keeps them."""
        self.giving_up: asyncio.TimerHandle | None = None
        """What ends its work, while its connection is lost and its grace time goes on."""
        self.used_at = 0.0
        self.update(payload)

    def update(self, payload: AgentRegister) -> None:
        """Take over what an agent announces."""
        self.type = payload.agent_type
        self.name = payload.name or payload.id
        self.capabilities = payload.capabilities
        self.names = capability_names(payload.capabilities)
        self.tools = compile_tools(payload.capabilities)
        self.has_schemas = any(v is not None for v in self.tools.values())
        self.metadata = payload.metadata
        self.labels = payload.labels
        self.max_concurrent = payload.max_concurrent
        self.grace = payload.grace_ms / 1000

    @property
    def active(self) -> int:
        """How many requests are at work."""
        return len(self.requests)

    @property
    def has_room(self) -> bool:
        """Whether it can be given another request now."""
        full = self.max_concurrent and len(self.requests) >= self.max_concurrent
        return self.client is not None and not full

    @property
    def working(self) -> bool:
        """Whether it is online, or may come back to the work that it left."""
        return self.client is not None or self.giving_up is not None

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


def _resumes(payload: AgentRegister, previous: RegisteredAgent, owner: str) -> bool:
    """Whether a registration takes up the work of the one before it."""
    return (
        payload.resume is not None
        and payload.resume.get("generation") == previous.generation
        and previous.owner == owner
        and previous.id == payload.id
        and previous.working
    )


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._events = events
        self._owners = Owners(records)
        self._limits = limits
        self._agents: dict[str, RegisteredAgent] = {}
        self._by_capability: dict[str, dict[str, RegisteredAgent]] = {}
        self._spellings: dict[str, str] = {}
        self._owned = Tally()
        self._arriving = Tally()
        self.open_runs: Callable[[str], list[ResumedRun]] = lambda agent_id: []
        """Tells which runs wait for an agent that comes back."""
        self.arrived: list[Callable[[RegisteredAgent], None]] = []
        """Called when an agent can be asked from now on."""
        self.left: list[Callable[[RegisteredAgent], None]] = []
        """Called when an agent cannot be asked any more, or is about to change."""
        self.lost: list[Callable[[RegisteredAgent], None]] = []
        """Called when an agent's work ends, for it will not come back to it."""
        self.released: list[Callable[[str], Awaitable[None]]] = []
        """Called with an id that is no longer its user's, before anybody else speaks for it."""

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._limits = config.limits

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
            GatewayError: ``AGENT_ID_TAKEN``: the id belongs to another user;
                ``INVALID_PAYLOAD``: a tool's schema cannot be used.
            Disconnect: A newer registration was faster.
        """
        compile_tools(payload.capabilities)
        known = self._agents.get(payload.id)
        if known is not None and client is not None and known.client is client:
            self._unindex(known)
            known.update(payload)
            self._index(known)
            self._announce(known)
            return known
        claim = await self._owners.claim(payload.id, owner, lambda: self._in_use(payload.id))
        generation = claim.generation
        if claim.changed_hands:
            await self._release(payload.id)
        previous = self._spelled(payload.id)
        if previous is not None and previous.generation > generation:
            raise Disconnect(CloseCode.REPLACED, "a newer connection registered this agent")
        agent = previous if previous is not None and _resumes(payload, previous, owner) else None
        if previous is not None:
            self._replace(previous, client, keep=agent is not None)
        if agent is None:
            agent = RegisteredAgent(payload, owner, generation, None)
        else:
            agent.generation = generation
            agent.update(payload)
        self._put(agent, client)
        return agent

    def _put(self, agent: RegisteredAgent, client: Client | None) -> None:
        """Enter an agent, with the connection that speaks for it from now on."""
        if agent.id not in self._agents:
            self._owned.add(agent.owner)
        self._agents[agent.id] = agent
        self._spellings[agent.id.lower()] = agent.id
        if client is not None and client.phase is not Phase.CLOSED:
            agent.status = "online"
            self._attach(agent, client)
        self._announce(agent)

    def _spelled(self, agent_id: str) -> RegisteredAgent | None:
        """Return the agent of an id, however it was spelled: those differing in case are one."""
        return self._agents.get(self._spellings.get(agent_id.lower(), agent_id))

    def unregister(self, agent_id: str) -> bool:
        """Remove an agent; False if there is none."""
        agent_id = self._spellings.pop(agent_id.lower(), agent_id)
        agent = self._agents.pop(agent_id, None)
        if agent is None:
            return False
        self._owned.drop(agent.owner)
        self._detach(agent)
        self._end_work(agent)
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
            self._detach(agent)
            self._end_work(agent)
            self._attach(agent, client)
        if status == "offline" and agent.client is not None:
            self._suspend(agent)
        elif agent.status != status:
            self._unindex(agent)
            agent.status = status
            self._index(agent)
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
            client.write(frame)
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
            self._suspend(agent)

    async def tick(self) -> None:
        """Once a second: end leases that nothing has renewed, and note which ids are in use."""
        now = self._clock()
        for agent in list(self._agents.values()):
            client = agent.client
            if client is None:
                continue
            if now - client.heard_at > LEASE:
                self._suspend(agent)
                close_with(client, CloseCode.GOING_AWAY, "the agent's lease has ended")
            elif now - agent.used_at > USE_INTERVAL:
                agent.used_at = now
                await self._owners.note_use(agent.id, agent.owner)

    def close(self) -> None:
        """Wait for nobody any more; the gateway stops."""
        for agent in self._agents.values():
            if agent.giving_up is not None:
                agent.giving_up.cancel()
                agent.giving_up = None

    # How it is kept

    async def _release(self, agent_id: str) -> None:
        for callback in self.released:
            await callback(agent_id)

    def _in_use(self, agent_id: str) -> bool:
        """Whether an agent of this id, however it is spelled, is online."""
        agent = self._spelled(agent_id)
        return agent is not None and agent.online

    def _replace(self, previous: RegisteredAgent, client: Client | None, *, keep: bool) -> None:
        """A newer registration: the older connection must not speak for the agent any more."""
        working = previous.working
        old = self._detach(previous)
        if keep:
            self._expect(previous)
        else:
            del self._agents[previous.id]
            self._owned.drop(previous.owner)
            if working:
                self._end_work(previous)
        if old is not None and old is not client:
            close_with(old, CloseCode.REPLACED, "a newer connection registered this agent")

    def _attach(self, agent: RegisteredAgent, client: Client) -> None:
        """Let a connection speak for an agent."""
        if agent.giving_up is not None:
            agent.giving_up.cancel()
            agent.giving_up = None
        agent.client = client
        agent.used_at = self._clock()
        client.agents[agent.id] = agent
        client.refresh_sender()
        self._index(agent)

    def _detach(self, agent: RegisteredAgent) -> Client | None:
        """Take an agent's connection away; returns it."""
        self._unindex(agent)
        client, agent.client = agent.client, None
        if client is not None:
            client.agents.pop(agent.id, None)
            client.refresh_sender()
        return client

    def _suspend(self, agent: RegisteredAgent) -> None:
        """Note that an agent's connection is lost; its work goes on for the grace time."""
        self._detach(agent)
        agent.status = "offline"
        if agent.grace:
            self._expect(agent)
        else:
            self._end_work(agent)
        self._clients.changed()
        self._events.emit("agent:status-changed", agent)
        self._events.emit("agent:offline", agent)

    def _expect(self, agent: RegisteredAgent) -> None:
        """Give an agent without a connection its grace time, if it does not run already."""
        if agent.giving_up is None:
            loop = asyncio.get_running_loop()
            agent.giving_up = loop.call_later(agent.grace, self._end_work, agent)

    def _end_work(self, agent: RegisteredAgent) -> None:
        """End what an agent has at work."""
        if agent.giving_up is not None:
            agent.giving_up.cancel()
            agent.giving_up = None
        for callback in self.lost:
            callback(agent)

    def _index(self, agent: RegisteredAgent) -> None:
        if not agent.online:
            return
        for name in agent.names:
            self._by_capability.setdefault(name, {})[agent.id] = agent
        for callback in self.arrived:
            callback(agent)

    def _unindex(self, agent: RegisteredAgent) -> None:
        for name in agent.names:
            found = self._by_capability.get(name)
            if found is not None and found.get(agent.id) is agent:
                del found[agent.id]
                if not found:
                    del self._by_capability[name]
        for callback in self.left:
            callback(agent)

    def _announce(self, agent: RegisteredAgent) -> None:
        self._clients.changed()
        self._events.emit("agent:registered", agent)

    # The handlers

    async def _on_register(
        self, client: Client, message: GatewayMessage, payload: AgentRegister
    ) -> AgentRegistered:
        if not client.allows_agent(payload.id):
            raise GatewayError(ErrorCode.FORBIDDEN, "the credential does not allow this id")
        known = self._agents.get(payload.id)
        if known is None or known.owner != client.user_id:
            agent = await self._register_new(payload, client)
        else:
            agent = await self.register(payload, client, client.user_id)
        return AgentRegistered(
            agent_id=agent.id,
            generation=agent.generation,
            lease_ms=round(LEASE * 1000),
            runs=self.open_runs(agent.id),
            requests=list(agent.requests),
            received={id: r.answers for id, r in agent.requests.items() if r.answers} or None,
        )

    async def _register_new(self, payload: AgentRegister, client: Client) -> RegisteredAgent:
        """Register one more agent of a user, within the quota also while others register."""
        user_id = client.user_id
        limited = client.identity is not None and client.identity.own_quota
        held = self._owned[user_id] + self._arriving[user_id]
        if limited and held >= self._limits.agents_per_user:
            raise GatewayError(ErrorCode.OVERLOADED, "this user has too many agents")
        self._arriving.add(user_id)
        try:
            return await self.register(payload, client, user_id)
        finally:
            self._arriving.drop(user_id)

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

    async def _on_unregister(
        self, client: Client, message: GatewayMessage, payload: AgentUnregister
    ) -> AgentUnregistered:
        if client.role == "control":
            if not client.has_scope("agent:admin"):
                raise GatewayError(ErrorCode.FORBIDDEN, "this needs the scope agent:admin")
            allowed = client.allows_agent(payload.id)
            if not allowed or not await self._owners.release(payload.id):
                raise GatewayError(ErrorCode.AGENT_NOT_FOUND, "no agent has this id")
            await self._release(payload.id)
            self._events.emit("audit", client.did("agent.release", payload.id))
        else:
            self._own(client, payload.id)
        self.unregister(payload.id)
        return AgentUnregistered(agent_id=payload.id)

    def _on_list(self, client: Client, message: GatewayMessage, payload: AgentList) -> AgentListing:
        return AgentListing(agents=self.entries(client, payload))

    def entries(self, client: Client, wanted: AgentList | None = None) -> list[AgentEntry]:
        """Return the agents as lists show them to a client, all or those wanted."""
        found = (a for a in self._agents.values() if client.allows_agent(a.id))
        return [a.entry() for a in _wanted(found, wanted or AgentList())]


def _wanted(agents: Iterable[RegisteredAgent], wanted: AgentList) -> Iterable[RegisteredAgent]:
    for agent in agents:
        if wanted.capability is not None and wanted.capability not in agent.names:
            continue
        if wanted.agent_type is not None and wanted.agent_type != agent.type:
            continue
        if wanted.status is not None and wanted.status != agent.status:
            continue
        yield agent
