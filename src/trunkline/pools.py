"""
Sets of agents, kept so that choosing costs the same whatever their size.

A `Pool` holds the online agents that fit one kind of request, in levels by the
number of requests that they have at work. An agent that is given a request stays
on its level until its turn comes again, and has often finished by then: so an
agent may stand too low, but never too high. A pool is made when it is first asked
for, and kept up to date from then on, so an agent costs only for what is really
asked of it. Requests that find every agent busy wait in the pool's `FairQueue`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable
from typing import Generic, NamedTuple, TypeVar

from trunkline.agents import AgentRegistry, RegisteredAgent
from trunkline.patterns import ANY, matches

MAX_POOLS = 1_000
"""Pools that are kept; the one that was not asked for longest goes first."""

MAX_WAITING = 1_000
"""Requests that wait for one set of agents at most."""

RELUCTANT = 1 << 40
"""Added to the rank of an agent that says it is busy: it comes after all others."""

T = TypeVar("T", bound=Hashable)


class FairQueue(Generic[T]):
    """First come, first served for each asker; the askers take turns."""

    __slots__ = ("_lines", "_size")

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, OrderedDict[T, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, asker: Hashable, item: T) -> None:
        """Let an item wait."""
        self._lines.setdefault(asker, OrderedDict())[item] = None
        self._size += 1

    def remove(self, asker: Hashable, item: T) -> None:
        """Take an item out that does not wait any more."""
        line = self._lines[asker]
        del line[item]
        self._size -= 1
        if not line:
            del self._lines[asker]

    def take(self, fits: Callable[[T], bool]) -> T | None:
        """Take out the first item that fits, of the asker whose turn it is."""
        for asker, line in self._lines.items():
            for item in line:
                if fits(item):
                    self._lines.move_to_end(asker)
                    self.remove(asker, item)
                    return item
        return None

    def items(self) -> list[T]:
        """Return all that waits."""
        return [item for line in self._lines.values() for item in line]


class Wanted(NamedTuple):
    """What a request asks of its agent."""

    capability: str | None = None
    agent_id: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    """All of which the agent must have."""
    patterns: tuple[str, ...] = ANY
    """Ids of the agents that the asker may know of."""

    def fits(self, agent: RegisteredAgent) -> bool:
        """Whether an agent can do it, online or not."""
        return self.lacking(agent) is None

    def lacking(self, agent: RegisteredAgent) -> str | None:
        """Say what an agent lacks; None if nothing."""
        if not matches(agent.id, self.patterns):
            return "it is out of bounds"
        if self.agent_id not in (None, agent.id):
            return "another agent is named"
        if self.capability is not None and self.capability not in agent.names:
            return f"it cannot do {self.capability}"
        labels = agent.labels or {}
        for name, value in self.labels:
            if labels.get(name) != value:
                return f"its label {name} is not {value}"
        return None


class Pool(Generic[T]):
    """
    The online agents that fit one kind of request.

    Attributes:
        sole: Its only agent, if there is only one: then there is nothing to
            choose, and nothing is noted for it.
        waiting: Requests for which no agent has room.
        served: When one of them was served last, as a number that grows.
    """

    __slots__ = (
        "_least",
        "_levels",
        "_members",
        "_ranks",
        "_ring",
        "served",
        "sole",
        "waiting",
        "wanted",
    )

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.sole: RegisteredAgent | None = None
        self.waiting: FairQueue[T] = FairQueue()
        self.served = 0
        self._members: dict[str, RegisteredAgent] = {}
        # Ordered dictionaries give their first key without a walk over deleted ones.
        self._levels: dict[int, OrderedDict[RegisteredAgent, None]] = {}
        self._ranks: dict[RegisteredAgent, int] = {}
        self._ring: OrderedDict[RegisteredAgent, None] | None = None  # once it is asked for
        self._least = 0

    def __len__(self) -> int:
        return len(self._members)

    def add(self, agent: RegisteredAgent) -> None:
        """Take an agent in."""
        self._members[agent.id] = agent
        if len(self._members) == 1:
            self.sole = agent
            return
        if self.sole is not None:
            self.place(self.sole)
            self.sole = None
        self.place(agent)

    def remove(self, agent: RegisteredAgent) -> None:
        """Let an agent go."""
        self._members.pop(agent.id, None)
        self._move(agent, None)
        if len(self._members) == 1:
            (self.sole,) = self._members.values()
            self._move(self.sole, None)
        elif not self._members:
            self.sole = None

    def agents(self) -> list[RegisteredAgent]:
        """Return all of them, those without room too."""
        return list(self._members.values())

    def reaches(self, chain: Container[str]) -> bool:
        """Whether there is an agent whose id is not in `chain`."""
        return any(agent_id not in chain for agent_id in self._members)

    def place(self, agent: RegisteredAgent) -> None:
        """Note that an agent has fewer requests at work than before, or is new."""
        before, rank = self._ranks.get(agent), rank_of(agent)
        if rank is not None and (before is None or rank < before):
            self._move(agent, rank)

    def _move(self, agent: RegisteredAgent, rank: int | None) -> None:
        """Put an agent on a level; on none, and out of the ring, without a rank."""
        before = self._ranks.pop(agent, None)
        if before is not None:
            level = self._levels[before]
            del level[agent]
            if not level:
                del self._levels[before]
        if rank is not None:
            self._ranks[agent] = rank
            self._levels.setdefault(rank, OrderedDict())[agent] = None
            if self._ring is not None:
                self._ring.setdefault(agent)  # another level does not change whose turn it is
        elif self._ring is not None:
            self._ring.pop(agent, None)
        self._least = min(self._levels, default=0)

    def choose(
        self, policy: str | None = None, chain: Container[str] = ()
    ) -> RegisteredAgent | None:
        """
        Return the agent with room to ask next; None if there is none.

        Args:
            policy: ``round_robin``, or else the least busy one.
            chain: Ids of agents that must not be asked.
        """
        sole = self.sole
        if sole is not None:
            return sole if sole.has_room and sole.id not in chain else None
        return self._next_in_turn(chain) if policy == "round_robin" else self._least_busy(chain)

    def _least_busy(self, chain: Container[str]) -> RegisteredAgent | None:
        """Return the one that has the fewest requests; equals take turns."""
        passed_over: list[RegisteredAgent] = []
        found = None
        while self._levels and found is None:
            agent = next(iter(self._levels[self._least]))
            rank = rank_of(agent)
            if rank != self._least:
                self._move(agent, rank)
            elif agent.id in chain:
                self._move(agent, None)
                passed_over.append(agent)
            else:
                found = agent
        for agent in passed_over:
            self.place(agent)
        return found

    def _next_in_turn(self, chain: Container[str]) -> RegisteredAgent | None:
        """Return the one whose turn it is; those that say they are busy come last."""
        if self._ring is None:
            self._ring = OrderedDict.fromkeys(self._ranks)
        reluctant: RegisteredAgent | None = None
        full: list[RegisteredAgent] = []
        found = None
        for agent in self._ring:
            if not agent.has_room:
                full.append(agent)
            elif agent.id not in chain:
                if agent.status != "busy":
                    found = agent
                    break
                reluctant = reluctant or agent
        for agent in full:
            self._move(agent, None)
        return found or reluctant

    def took_turn(self, agent: RegisteredAgent) -> None:
        """Note that an agent has had its turn."""
        if self.sole is not None:
            return
        self._levels[self._ranks[agent]].move_to_end(agent)
        if self._ring is not None:
            self._ring.move_to_end(agent)


def rank_of(agent: RegisteredAgent) -> int | None:
    """Return how late an agent's turn comes; None if it has no room."""
    active = len(agent.requests)
    if agent.max_concurrent and active >= agent.max_concurrent:
        return None
    return active + RELUCTANT if agent.status == "busy" else active


class Pools(Generic[T]):
    """
    All pools of a registry.

    Args:
        agents: Tells which agents come and go.
    """

    def __init__(self, agents: AgentRegistry) -> None:
        self._agents = agents
        self._pools: OrderedDict[Wanted, Pool[T]] = OrderedDict()
        self._by_capability: dict[str, dict[Wanted, Pool[T]]] = {}
        self._by_agent: dict[str, dict[Wanted, Pool[T]]] = {}
        agents.arrived.append(self._arrived)
        agents.left.append(self._left)

    def find(self, wanted: Wanted) -> Pool[T] | None:
        """Return the pool of the online agents that fit; None if there is none of them."""
        pool = self._pools.get(wanted)
        if pool is None:
            pool = self._make(wanted)
        else:
            self._pools.move_to_end(wanted)
        return pool if pool.sole is not None or len(pool) else None

    def _make(self, wanted: Wanted) -> Pool[T]:
        pool: Pool[T] = Pool(wanted)
        for agent in self._candidates(wanted):
            if wanted.fits(agent):
                self._enter(pool, agent)
        if len(pool):
            self._trim()
            self._pools[wanted] = pool
            self._index(wanted).setdefault(self._key(wanted), {})[wanted] = pool
        return pool

    def _candidates(self, wanted: Wanted) -> list[RegisteredAgent]:
        if wanted.agent_id is None:
            return self._agents.find_by_capability(wanted.capability or "")
        agent = self._agents.get_agent(wanted.agent_id)
        return [agent] if agent is not None and agent.online else []

    def _index(self, wanted: Wanted) -> dict[str, dict[Wanted, Pool[T]]]:
        return self._by_capability if wanted.agent_id is None else self._by_agent

    @staticmethod
    def _key(wanted: Wanted) -> str:
        return wanted.agent_id or wanted.capability or ""

    def _trim(self) -> None:
        """Make room for one more pool; those with requests waiting stay."""
        if len(self._pools) >= MAX_POOLS:
            for pool in self._pools.values():
                if not pool.waiting:
                    self._drop(pool)
                    return

    def _drop(self, pool: Pool[T]) -> None:
        wanted = pool.wanted
        del self._pools[wanted]
        index, key = self._index(wanted), self._key(wanted)
        del index[key][wanted]
        if not index[key]:
            del index[key]
        for agent in pool.agents():
            agent.pools.remove(pool)

    @staticmethod
    def _enter(pool: Pool[T], agent: RegisteredAgent) -> None:
        pool.add(agent)
        agent.pools.append(pool)

    def _arrived(self, agent: RegisteredAgent) -> None:
        named = [*self._by_agent.get(agent.id, {}).values()]
        for name in agent.names:
            named += self._by_capability.get(name, {}).values()
        for pool in named:
            if pool.wanted.fits(agent):
                self._enter(pool, agent)

    def _left(self, agent: RegisteredAgent) -> None:
        pools, agent.pools = agent.pools, []
        for pool in pools:
            pool.remove(agent)
            if not len(pool) and not pool.waiting:
                self._drop(pool)

    def finished(self, agent: RegisteredAgent) -> None:
        """Note that an agent has fewer requests at work than before; more need not be told."""
        for pool in agent.pools:
            if pool.sole is None:
                pool.place(agent)

    def deserted(self) -> list[Pool[T]]:
        """Return the pools in which requests wait for agents that are all gone."""
        return [pool for pool in self._pools.values() if pool.waiting and not len(pool)]

    def emptied(self, pool: Pool[T]) -> None:
        """Note that nothing waits in a pool any more: without agents it is forgotten."""
        if not len(pool) and not pool.waiting and self._pools.get(pool.wanted) is pool:
            self._drop(pool)
