"""What the gateway's features tell the audit log, and what a real gateway keeps of it."""

from contextlib import closing

import pytest
from peers import person, register
from processes import Running, clean_environ, finished
from test_approvals import answer, ask, asked

from trunkline.auth import OWNER
from trunkline.clients import Peer
from trunkline.config import AuthConfig, GatewayConfig
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

TOKEN = "the-owner's-token"


@pytest.fixture
def entries(gateway):
    """What the audit log of a gateway without sign-in would hold."""
    kept = []
    gateway.on("audit", kept.append)
    return kept


def told(entries):
    return [(entry.action, entry.actor, entry.target, entry.detail) for entry in entries]


class TestSignIn:
    async def test_outcomes_are_told_with_the_address(self):
        """Wrong credentials, the lock that they end in, and who got in."""
        config = GatewayConfig(auth=AuthConfig(token=TOKEN, max_failures=2))
        async with GatewayServer(config) as gateway:
            entries = []
            gateway.on("audit", entries.append)
            for token in ("wrong-1", "wrong-2", "wrong-3"):
                await PeerClient(gateway, address="192.0.2.1").ask("auth", {"token": token})
            peer = PeerClient(gateway, address="192.0.2.2")
            await peer.ask("auth", {"token": TOKEN})

        assert [(e.action, e.outcome, e.actor, e.address) for e in entries] == [
            ("auth.failed", "refused", "", "192.0.2.1"),
            ("auth.failed", "refused", "", "192.0.2.1"),
            ("auth.locked", "refused", "", "192.0.2.1"),
            ("auth.ok", "ok", "owner", "192.0.2.2"),
        ]
        assert "wrong" not in repr(entries)
        assert TOKEN not in repr(entries)

    async def test_a_bearer_that_is_wrong_is_told_as_well(self):
        """Whatever way a credential came."""
        async with GatewayServer(GatewayConfig(auth=AuthConfig(token=TOKEN))) as gateway:
            entries = []
            gateway.on("audit", entries.append)
            gateway.on_connect(PeerClient(gateway).transport, Peer("192.0.2.3"), OWNER)

        assert [(e.action, e.actor, e.address) for e in entries] == [
            ("auth.ok", "owner", "192.0.2.3")
        ]


class TestSessions:
    async def test_their_administration_is_told(self, gateway, entries):
        """Create, guarded patches, visibility, invite, remove, close, delete; no contents."""
        ada = PeerClient(gateway, person("ada", "webchat", "session:admin"))
        await ada.ask("session_create", {"sessionId": "s1", "metadata": {"topic": "secret-plan"}})
        for patch in ({"model": "m1"}, {"visibility": "private"}, {"name": "secret-name"}):
            await ada.ask("session_patch", {"sessionId": "s1", "patch": patch})
        await ada.ask("session_invite", {"sessionId": "s1", "userId": "bob"})
        await ada.ask("session_remove", {"sessionId": "s1", "userId": "bob"})
        await ada.ask("session_close", {"sessionId": "s1"})
        await ada.ask("session_join", {"sessionId": "s1"})
        await ada.ask("session_close", {"sessionId": "s1", "delete": True})

        assert told(entries) == [
            ("session.create", "ada", "s1", {"visibility": "shared"}),
            ("session.patch", "ada", "s1", {"keys": "model"}),
            ("session.patch", "ada", "s1", {"keys": "", "visibility": "private"}),
            ("session.invite", "ada", "s1", {"user": "bob"}),
            ("session.remove", "ada", "s1", {"user": "bob"}),
            ("session.close", "ada", "s1", {}),
            ("session.delete", "ada", "s1", {}),
        ]
        assert "secret" not in repr(entries)


class TestControl:
    async def test_a_decided_approval_is_told(self, gateway, entries):
        """Who allowed which tool of which agent."""
        ada, bot = await asked(gateway)
        await ask(bot)

        await answer(ada)

        entry = entries[-1]
        assert (entry.action, entry.actor, entry.target) == ("approval.decide", "ada", "a1")
        assert entry.detail == {
            "decision": "allow",
            "tool": "delete",
            "agent": "bot",
            "session": "lobby",
        }

    async def test_a_kick_is_told(self, gateway, entries):
        """Whom it hit, and for whom it was done."""
        peer = PeerClient(gateway, person("ada"))

        gateway.kick_client(peer.client.id, actor="owner")

        assert told(entries) == [("client.kick", "owner", peer.client.id, {"user": "ada"})]

    async def test_a_released_agent_id_is_told(self, gateway, entries):
        """Since anybody may take the id from then on."""
        bot = PeerClient(gateway, person("maker", "node"))
        await register(bot, "bot")
        boss = PeerClient(gateway, person("boss", "control", "agent:admin"))

        await boss.ask("agent_unregister", {"id": "bot"})

        assert told(entries) == [("agent.release", "boss", "bot", {})]


class TestGateway:
    def test_keeps_its_log_in_the_data_folder(self, tmp_path):
        """A real gateway's start, stop and sign-ins are read from the command line."""
        environ = clean_environ(tmp_path)
        with closing(Running(environ, "serve", "--port", "0")) as gateway:
            url = gateway.wait_for(r"http://\S+")[0]
            assert finished(environ, "status", "--url", url).returncode == 0
            assert finished(environ, "status", "--url", url, "--token", "x" * 20).returncode == 4
            gateway.end()

        lines = finished(environ, "audit").stdout
        for action in ("gateway.start", "auth.ok", "auth.failed", "gateway.stop"):
            assert action in lines
        assert finished(environ, "audit", "verify").returncode == 0
