"""
Registry and router under everything that can happen, in any order.

Time is the test's own, so that deadlines and grace times pass at once. Agents
and askers are clients in memory; what they are sent is the evidence.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from peers import person

from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.errors import ErrorCode
from trunkline.payloads import AgentCapabilities, AgentRegister
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

LIMITS = {"one": 1, "two": 2, "any": 0}
"""The agents, and how many requests each takes at a time; 0 is any number."""

ENDS = {
    ErrorCode.AGENT_NOT_FOUND,
    ErrorCode.AGENT_LOST,
    ErrorCode.TIMEOUT,
    ErrorCode.CANCELLED,
    ErrorCode.OVERLOADED,
}

CONFIG = GatewayConfig(
    auth=AuthConfig(mode="none"),
    limits=LimitsConfig(publish_rate=1e6, publish_burst=10**6, stream_burst=10**6),
)

agent_ids = st.sampled_from(sorted(LIMITS))
numbers = st.integers(0, 10**6)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Asked:
    """A request as its asker sees it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.ends: list[str] = []
        self.after_end = 0


class RoutingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.gateway = GatewayServer(CONFIG, clock=self.loop.time)
        self.run(self.gateway.start())
        self.generations: Counter[str] = Counter()
        self.online: dict[str, PeerClient] = {}
        self.old: list[PeerClient] = []
        self.delivered: dict[str, list[str]] = {agent: [] for agent in LIMITS}
        self.askers: list[PeerClient] = []
        self.asked: dict[PeerClient, dict[str, Asked]] = {}
        for _ in range(2):
            self.new_asker()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def send(self, peer: PeerClient, type: str, payload: dict[str, Any] | None = None) -> str:
        async def send() -> str:
            return peer.send(type, payload)

        request: str = self.run(send())
        return request

    def disconnect(self, peer: PeerClient) -> None:
        async def disconnect() -> None:
            peer.disconnect()

        self.run(disconnect())

    def settle(self) -> None:
        """Let everything happen that is due, and read what everybody was sent."""

        async def turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.run(turns())
        for agent_id, peer in self.online.items():
            for message in peer.received():
                if message.type == "route_request":
                    self.delivered[agent_id].append(message.data()["requestId"])
        for peer, requests in self.asked.items():
            for message in peer.received():
                self.hear(requests.get(message.reply_to or ""), message)

    def hear(self, asked: Asked | None, message: Any) -> None:
        if asked is None:
            return
        if asked.ends:
            asked.after_end += 1
        if message.type == "error":
            asked.ends.append(message.data()["code"])
        elif message.data()["done"]:
            asked.ends.append("done")

    def new_asker(self) -> PeerClient:
        async def connect() -> PeerClient:
            return PeerClient(self.gateway, person("ada"))

        peer: PeerClient = self.run(connect())
        self.askers.append(peer)
        self.asked[peer] = {}
        return peer

    # Agents

    @initialize()
    def begin(self) -> None:
        """All agents are there."""
        for agent_id in LIMITS:
            self.register(agent_id, resume=False, grace=10_000)

    @rule(agent_id=agent_ids, resume=st.booleans(), grace=st.sampled_from([0, 10_000]))
    def register(self, agent_id: str, resume: bool, grace: int) -> None:
        """A new connection takes the agent over, online or not."""
        generation = self.generations[agent_id]
        payload = AgentRegister(
            id=agent_id,
            capabilities=AgentCapabilities(tools=["work"]),
            max_concurrent=LIMITS[agent_id],
            grace_ms=grace,
            resume={"generation": generation} if resume and generation else None,
        )

        async def connect() -> tuple[PeerClient, Any]:
            peer = PeerClient(self.gateway, person("bots", "node"))
            return peer, await peer.ask("agent_register", payload)

        peer, answer = self.run(connect())
        registered = answer.data()
        assert registered["generation"] == generation + 1
        self.generations[agent_id] += 1
        if agent_id in self.online:
            self.old.append(self.online[agent_id])
        self.online[agent_id] = peer
        self.delivered[agent_id] = list(registered["requests"])
        self.settle()

    @precondition(lambda self: self.online)
    @rule(agent_id=agent_ids, gently=st.booleans())
    def leave(self, agent_id: str, gently: bool) -> None:
        """An agent dies, or says that it goes."""
        peer = self.online.pop(agent_id, None)
        if peer is None:
            return
        if gently:
            self.send(peer, "agent_unregister", {"id": agent_id})
            self.settle()
            self.delivered[agent_id] = []
        self.disconnect(peer)
        self.settle()

    @rule(agent_id=agent_ids, status=st.sampled_from(["busy", "online"]))
    def beat(self, agent_id: str, status: str) -> None:
        if agent_id in self.online:
            self.send(self.online[agent_id], "agent_heartbeat", {"id": agent_id, "status": status})
            self.settle()

    # Requests

    @rule(
        who=st.integers(0, 1),
        named=st.none() | agent_ids,
        idempotent=st.booleans(),
        policy=st.sampled_from(["least_busy", "round_robin"]),
        seconds=st.sampled_from([1, 5, 60]),
        times=st.integers(1, 4),
    )
    def ask(
        self, who: int, named: str | None, idempotent: bool, policy: str, seconds: int, times: int
    ) -> None:
        whom = {"agentId": named} if named else {"capability": "work"}
        details = {"idempotent": idempotent, "policy": policy, "timeoutMs": seconds * 1000}
        peer = self.askers[who]
        for _ in range(times):
            request = self.send(peer, "route_request", {**whom, **details})
            self.asked[peer][request] = Asked(self.loop.time() + seconds)
        self.settle()

    @rule(agent_id=agent_ids, number=numbers, done=st.booleans(), ok=st.booleans())
    def answer(self, agent_id: str, number: int, done: bool, ok: bool) -> None:
        """An agent answers something that it was asked, perhaps for the second time."""
        if agent_id in self.online and self.delivered[agent_id]:
            ids = self.delivered[agent_id][-3:]
            payload = {"requestId": ids[number % len(ids)], "ok": ok, "done": done, "chunk": 1}
            self.send(self.online[agent_id], "route_response", payload)
            self.settle()

    @rule(agent_id=agent_ids, number=numbers)
    def pass_on(self, agent_id: str, number: int) -> None:
        """An agent asks another on behalf of what it was asked."""
        if agent_id in self.online and self.delivered[agent_id]:
            ids = self.delivered[agent_id][-3:]
            parent = ids[number % len(ids)]
            self.send(
                self.online[agent_id],
                "route_request",
                {"capability": "work", "parentId": parent, "timeoutMs": 30_000},
            )
            self.settle()

    @rule(agent_id=agent_ids, number=numbers)
    def answer_for_another(self, agent_id: str, number: int) -> None:
        """Whoever was not asked is not heard, whatever it knows, and is counted."""
        theirs = [i for other, ids in self.delivered.items() if other != agent_id for i in ids]
        liars = [self.online[agent_id]] if agent_id in self.online else self.old[-1:]
        still_open = self.gateway.router._open
        strangers = [i for i in theirs if i in still_open and i not in self.delivered[agent_id]]
        if not liars or not strangers or liars[0].transport.closed is not None:
            return
        before = self.gateway.router.strays
        heard = {p: len(p.transport.sent) for p in self.askers}

        payload = {"requestId": strangers[number % len(strangers)], "result": "spoofed"}
        self.send(liars[0], "route_response", payload)

        assert self.gateway.router.strays == before + 1
        assert {p: len(p.transport.sent) for p in self.askers} == heard

    @rule(who=st.integers(0, 1), number=numbers)
    def cancel(self, who: int, number: int) -> None:
        peer = self.askers[who]
        requests = list(self.asked[peer])
        if requests:
            self.send(peer, "route_cancel", {"requestId": requests[number % len(requests)]})
            self.settle()

    @rule(who=st.integers(0, 1))
    def asker_goes(self, who: int) -> None:
        """Nobody is told how its requests end, but they end."""
        peer = self.askers.pop(who)
        self.disconnect(peer)
        del self.asked[peer]
        self.new_asker()
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.loop.ahead += seconds
        self.settle()
        for peer in self.online.values():
            self.send(peer, "ping")

    # What always holds

    @invariant()
    def every_request_has_one_end_within_its_deadline(self) -> None:
        now = self.loop.time()
        for requests in self.asked.values():
            for asked in requests.values():
                assert len(asked.ends) <= 1
                assert asked.after_end == 0
                assert asked.ends or asked.deadline >= now - 0.5
                assert set(asked.ends) <= {"done", *ENDS}

    @invariant()
    def no_agent_is_above_its_limit(self) -> None:
        for agent in self.gateway.agents.get_all_agents():
            assert not agent.max_concurrent or agent.active <= agent.max_concurrent

    @invariant()
    def the_books_agree(self) -> None:
        """Every open request is with one agent, or waits; nothing else is."""
        router = self.gateway.router
        at_work = sum(agent.active for agent in self.gateway.agents.get_all_agents())
        waiting = sum(len(pool.waiting) for pool in router._pools._pools.values())
        assert len(router) == at_work + waiting
        assert len(router) == sum(len(c.requests) for c in self.gateway.clients)

    def teardown(self) -> None:
        self.loop.ahead += 7_200
        self.settle()
        router = self.gateway.router
        left, children = len(router), dict(router._children)
        unended = [a for r in self.asked.values() for a in r.values() if len(a.ends) != 1]
        self.run(self.gateway.stop())
        self.loop.close()
        assert unended == []
        assert (left, children) == (0, {})


RoutingMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRouting = RoutingMachine.TestCase
