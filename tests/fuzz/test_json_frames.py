"""
Frames that no honest client would send (security.md T-B2).

Three connections of a gateway in memory send what hypothesis made from the
protocol's schemas, whole, spoiled and damaged. Whatever it is, the gateway
answers with a documented error or does what was asked; it never fails, never
relays what another client could not read, and keeps no poison in a log.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import person, register
from sizes import Sizes

from fuzz.schemas import frames
from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.errors import ErrorCode
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

STEPS = 20
EXAMPLES = Sizes()(60, 250, 5_000)
"""Each with up to `STEPS` frames."""

CONFIG = GatewayConfig(
    auth=AuthConfig(token="the-owner's-token", max_failures=10**9),
    limits=LimitsConfig(
        publish_rate=1e9, publish_burst=10**9, max_parse_errors=10**9, pre_auth_messages=10**9
    ),
)

DOCUMENTED = frozenset(ErrorCode) - {ErrorCode.HANDLER_ERROR}

Step = tuple[int, dict[str, Any] | str]


def refuse(constant: str) -> None:
    """Refuse what `json` takes although it is no JSON."""
    raise ValueError(constant)


def strictly(text: str | bytes) -> Any:
    """Read JSON as another implementation would; big integers are no concern."""
    return json.loads(text, parse_constant=refuse, parse_int=lambda digits: 0)


class Play:
    """A gateway with a session, an agent in it, and three connections to send from."""

    def __init__(self, gateway: GatewayServer) -> None:
        everything = ("session:admin", "agent:admin", "approve")
        self.gateway = gateway
        self.boss = PeerClient(gateway, person("ada", "control", *everything))
        self.bot = PeerClient(gateway, person("bots", "node"))
        self.stranger = PeerClient(gateway)

    async def furnish(self) -> None:
        await self.boss.ask("session_create", {"sessionId": "room"})
        await self.boss.ask("session_create", {"sessionId": "private", "visibility": "private"})
        await register(self.bot, "bot", "tool")
        await self.bot.ask("session_join", {"sessionId": "room"})
        await self.boss.ask("chat", {"message": "hello"}, "room")

    async def step(self, number: int, step: Step) -> None:
        """Send one frame, and judge what it did to its sender."""
        who, frame = step
        peer = (self.boss, self.bot, self.stranger)[who]
        if peer.transport.closed is not None:
            return
        if isinstance(frame, dict) and frame.get("id") == "?":
            frame = frame | {"id": f"f{number}"}
        text = frame if isinstance(frame, str) else json.dumps(frame)
        before = len(peer.transport.sent)
        peer.send_text(text)
        await self.quiet(peer)
        self.judge(text, [strictly(sent) for sent in peer.transport.sent[before:]], number)

    async def quiet(self, peer: PeerClient) -> None:
        """Wait until the gateway has done what it was asked."""
        async with asyncio.timeout(10):
            for _ in range(3):
                await asyncio.sleep(0)
            while peer.client.busy or peer.client.pending:  # noqa: ASYNC110
                await asyncio.sleep(0)

    def judge(self, text: str, answers: list[Any], number: int) -> None:
        errors = [answer for answer in answers if answer["type"] == "error"]
        codes = [error["payload"]["code"] for error in errors]
        assert DOCUMENTED.issuperset(codes), (codes, text)
        own = [error for error in errors if error.get("replyTo") == f"f{number}"]
        assert len(own) <= 1, (own, text)
        try:
            strictly(text)
        except (ValueError, RecursionError):
            assert codes == ["PARSE_ERROR"], (codes, text)

    async def end(self) -> None:
        """Judge what everybody was told, and what stands in the log."""
        for peer in (self.boss, self.bot, self.stranger):
            for sent in peer.transport.sent:
                sent.decode()
                json.dumps(strictly(sent), ensure_ascii=False).encode()
        reader = PeerClient(self.gateway, person("ada", "control"))
        page = await reader.ask("session_history", {"sessionId": "room", "limit": 300})
        if page.type == "session_history":
            for kept in page.data()["messages"]:
                sender = kept["from"]
                assert sender["userId"] in ("ada", "bots") or sender["kind"] == "gateway", kept
                json.dumps(kept, ensure_ascii=False).encode()


async def play(steps: list[Step]) -> None:
    async with GatewayServer(CONFIG) as gateway:
        game = Play(gateway)
        await game.furnish()
        for number, step in enumerate(steps):
            await game.step(number, step)
        await game.end()


senders = st.sampled_from([0, 0, 0, 1, 1, 1, 2])


@given(st.lists(st.tuples(senders, frames()), min_size=STEPS // 2, max_size=STEPS))
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
def test_no_frame_does_harm(steps: list[Step]) -> None:
    """Every frame is served or refused by a documented error, and poisons nobody."""
    with asyncio.Runner() as runner:
        runner.run(play(steps))
