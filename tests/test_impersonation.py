"""
Whatever clients claim, nobody ever sees a foreign identity.

A machine of honest and dishonest connections sends every kind of message with
forged senders, users, devices, agents, runs and request ids. Everything that
anyone receives must name the connection that really sent it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from peers import People, error_of, person, register, token_of

from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.messages import GatewayMessage
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

PEOPLE = [("ada", "webchat"), ("ada", "node"), ("bob", "node"), ("eve", "webchat"), ("eve", "node")]
AGENTS = ["ada-agent", "bob-agent", "eve-agent"]

speakers = st.integers(0, len(PEOPLE) - 1)
agents = st.sampled_from(AGENTS)
victims = st.sampled_from(["ada", "bob", "gateway", *AGENTS])


class Impersonation(RuleBasedStateMachine):
    """Five connections of three users in one session, and what each of them hears."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.run(self.begin())

    async def begin(self) -> None:
        config = GatewayConfig(
            auth=AuthConfig(token="t"), limits=LimitsConfig(publish_burst=100_000)
        )
        self.gateway = GatewayServer(config, authenticator=People())
        await self.gateway.start()
        self.peers = [PeerClient(self.gateway, person(*who)) for who in PEOPLE]
        self.user_of = {p.client.id: who[0] for p, who in zip(self.peers, PEOPLE, strict=True)}
        await self.peers[0].ask("session_create", {"sessionId": "lobby"})
        for peer in self.peers[1:]:
            await peer.ask("session_join", {"sessionId": "lobby"})
        for number, agent in enumerate(AGENTS[:2], 1):
            await register(self.peers[number], agent)
        self.number = 0
        self.owner_of = {"ada-agent": "ada", "bob-agent": "bob"}
        self.runs: list[str] = ["1.bob-agent"]
        self.requests: dict[str, int] = {}
        self.asked: dict[str, int] = {}

    def teardown(self) -> None:
        self.runner.run(self.gateway.stop())
        self.runner.close()

    # What is sent

    def send(self, who: int, type: str, payload: dict[str, Any], victim: str, **more: Any) -> str:
        """Send a frame that claims to be a victim's in every way there is."""
        self.number += 1
        message_id = f"{who}.{self.number}"
        claims = {
            "clientId": self.peers[0].client.id,
            "userId": victim,
            "principal": victim,
            "origin": "system",
            "role": "control",
            "agentId": victim,
        }
        forged = {"clientId": self.peers[0].client.id, "userId": victim, "role": "control",
                  "kind": "gateway"}  # fmt: skip
        frame = {
            "type": type,
            "id": message_id,
            "payload": {**claims, **payload},
            "from": forged,
            "source": victim,
            "seq": 1,
            "epoch": "forged",
            "addressed": AGENTS,
            **more,
        }
        self.runner.run(self.post(self.peers[who], json.dumps(frame)))
        return message_id

    async def post(self, peer: PeerClient, text: str) -> None:
        if peer.transport.closed is None:
            peer.send_text(text)

    @rule(who=speakers, victim=victims, reply_to=st.sampled_from([None, "0.1", "2.2"]))
    def chat(self, who: int, victim: str, reply_to: str | None) -> None:
        payload = {"message": f"@{victim} it is me"}
        self.send(who, "chat", payload, victim, sessionId="lobby", replyTo=reply_to)

    @rule(who=speakers, victim=victims)
    def presence(self, who: int, victim: str) -> None:
        payload = {"status": "typing", "sender": victim, "from": {"userId": victim}}
        self.send(who, "presence", payload, victim, sessionId="lobby")

    @rule(who=speakers, agent=agents)
    def register(self, who: int, agent: str) -> None:
        self.send(who, "agent_register", {"id": agent, "capabilities": {"chat": True}}, agent)

    @rule(who=speakers, agent=agents)
    def unregister(self, who: int, agent: str) -> None:
        self.send(who, "agent_unregister", {"id": agent}, agent)

    @rule(
        who=speakers,
        victim=victims,
        type=st.sampled_from(["chat_stream", "chat_complete", "tool_start"]),
        which=st.integers(0, 50),
        name_it=st.booleans(),
    )
    def answer(self, who: int, victim: str, type: str, which: int, name_it: bool) -> None:
        run = {"runId": self.runs[which % len(self.runs)]} if name_it else {}
        payload = {"content": "x", "tool": "t", "toolCallId": "t", **run}
        self.send(who, type, payload, victim, sessionId="lobby")

    @rule(who=speakers, agent=agents, victim=victims)
    def request(self, who: int, agent: str, victim: str) -> None:
        message_id = f"{who}.{self.number + 1}"
        self.requests[message_id] = who
        self.send(who, "route_request", {"agentId": agent, "params": message_id}, victim)

    @rule(who=speakers, victim=victims, which=st.integers(0, 50), guess=st.booleans())
    def respond(self, who: int, victim: str, which: int, guess: bool) -> None:
        known = sorted(self.asked)
        request_id = known[which % len(known)] if known and not guess else "0" * 32
        self.send(who, "route_response", {"requestId": request_id, "done": True}, victim)

    @rule(who=speakers, which=st.integers(0, 50))
    def cancel(self, who: int, which: int) -> None:
        known = sorted({*self.requests, *self.asked}) or ["none"]
        self.send(who, "route_cancel", {"requestId": known[which % len(known)]}, "ada")

    @rule(who=speakers, victim=st.sampled_from(["ada", "bob", "eve"]))
    def sign_in_as(self, who: int, victim: str) -> None:
        role = PEOPLE[who][1]
        self.send(who, "auth", {"token": token_of(victim, role)}, victim)

    @rule(who=speakers, victim=victims)
    def greet_as(self, who: int, victim: str) -> None:
        self.send(who, "connect", {"deviceId": f"device-of-{who}", "deviceName": victim}, victim)

    @rule()
    def turn(self) -> None:
        self.runner.run(asyncio.sleep(0))

    # What is seen

    @invariant()
    def nobody_sees_a_foreign_identity(self) -> None:
        self.runner.run(self.settle())
        for number, peer in enumerate(self.peers):
            for message in peer.received():
                self.check(number, message)

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    def check(self, number: int, message: GatewayMessage) -> None:
        data = message.data()
        sender = message.sender
        if sender is not None and sender.kind != "gateway":
            assert sender.user_id == self.user_of[sender.client_id]
            self.check_agent(sender.agent_id, sender.user_id)
            self.check_origin(message, data, sender.client_id)
        if sender is not None and sender.kind == "gateway":
            assert message.type in ("chat_complete", "session_info")
        if message.type == "agent_registered":
            self.owner_of.setdefault(data["agentId"], PEOPLE[number][0])
            self.check_agent(data["agentId"], PEOPLE[number][0])
        elif message.type == "auth_success":
            assert data["userId"] == PEOPLE[number][0]
        elif message.type == "ack":
            self.runs += [run["runId"] for run in data["runs"] or []] if "runs" in data else []
        elif message.type == "route_request":
            self.asked[data["requestId"]] = number
        elif message.type == "route_response":
            assert self.requests[message.reply_to or ""] == number
            assert self.asked[data["requestId"]] == int(message.id.split(".")[0])
            self.check_agent(data["agentId"], self.user_of[sender.client_id])  # type: ignore[union-attr]
        elif message.type == "error":
            assert error_of(message) != "HANDLER_ERROR", data

    def check_agent(self, agent_id: str | None, user_id: str) -> None:
        if agent_id is not None:
            assert self.owner_of.setdefault(agent_id, user_id) == user_id

    def check_origin(self, message: GatewayMessage, data: Any, client_id: str) -> None:
        """The message came from the connection that it names."""
        origin = message.id
        if message.type == "route_request":
            origin = data["params"]
        if message.type == "chat_stream" and "first" in data:
            return
        who = origin.split(".")[0]
        if who.isdigit() and len(who) == 1:
            assert client_id == self.peers[int(who)].client.id


TestImpersonation = Impersonation.TestCase
TestImpersonation.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
