"""
Nobody gets more than they were given: a machine that tries to (W19).

Connections of two users sign in, say who they are, refresh, mint for themselves
and for each other, rotate and revoke, in any order. Everything began with two
credentials; whatever anybody holds later is within what their maker held.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trunkline.authdb import AuthDatabase
from trunkline.config import GatewayConfig, LimitsConfig
from trunkline.credentials import StoredCredential
from trunkline.grants import may_grant
from trunkline.patterns import within
from trunkline.rights import ALL_SCOPES, ROLES
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

USERS = ["admin", "eve"]
PATTERNS = [("*",), ("acme-*",), ("acme-a*",), ("globex-*", "acme-*"), ("acme-x",)]

users = st.sampled_from(USERS)
grants = st.fixed_dictionaries(
    {
        "roles": st.frozensets(st.sampled_from(ROLES), min_size=1),
        "scopes": st.frozensets(st.sampled_from(sorted(ALL_SCOPES)), max_size=3),
        "session_patterns": st.sampled_from(PATTERNS),
        "agent_patterns": st.sampled_from(PATTERNS),
    }
)
numbers = st.integers(0, 1_000)


class Held(NamedTuple):
    """Roles, scopes and patterns at one moment."""

    roles: frozenset[str]
    scopes: frozenset[str]
    session_patterns: tuple[str, ...]
    agent_patterns: tuple[str, ...]

    def is_within(self, other: Held) -> bool:
        scopes = ALL_SCOPES if "admin" in other.scopes else other.scopes
        return (
            self.roles <= other.roles
            and self.scopes <= scopes
            and within(self.session_patterns, other.session_patterns)
            and within(self.agent_patterns, other.agent_patterns)
        )


def held_by(peer: PeerClient) -> Held:
    client, identity = peer.client, peer.client.identity
    assert identity is not None
    return Held(
        frozenset(client.roles), client.scopes, identity.session_patterns, identity.agent_patterns
    )


def granted(stored: StoredCredential) -> Held:
    return Held(
        frozenset(stored.roles), stored.scopes, stored.session_patterns, stored.agent_patterns
    )


ADMIN = Held(
    frozenset({"control", "webchat"}),
    frozenset({"credential:admin", "approve"}),
    ("acme-*",),
    ("acme-*",),
)
WEAK = Held(frozenset({"webchat"}), frozenset(), ("acme-a*",), ("acme-*",))


class Minting(RuleBasedStateMachine):
    """Connections of a bounded admin and of somebody with next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.run(self.begin())

    async def begin(self) -> None:
        limits = LimitsConfig(publish_burst=100_000)
        self.database = AuthDatabase()
        self.gateway = GatewayServer(GatewayConfig(limits=limits), authdb=self.database)
        await self.gateway.start()
        credentials = self.gateway.credentials
        assert credentials is not None
        self.credentials = credentials
        self.known: list[tuple[StoredCredential, str]] = [
            credentials.create(name="first", user_id=user, **held._asdict())
            for user, held in zip(USERS, (ADMIN, WEAK), strict=True)
        ]
        self.ceiling = {stored.id: granted(stored) for stored, _ in self.known}
        self.peers: list[PeerClient] = []
        self.opened_with: dict[PeerClient, Held] = {}

    def teardown(self) -> None:
        self.runner.run(self.gateway.stop())
        self.runner.close()
        self.database.close()

    def a_peer(self, number: int) -> PeerClient:
        return self.peers[number % len(self.peers)]

    def a_token(self, number: int) -> tuple[StoredCredential, str]:
        return self.known[number % len(self.known)]

    async def ask(self, peer: PeerClient, type: str, payload: Any) -> str:
        return (await peer.ask(type, payload)).type

    @rule(which=numbers, role=st.sampled_from([None, *ROLES]))
    def sign_in(self, which, role):
        """With any token that was ever made, ended or not, asking for any role."""

        async def go() -> None:
            if len(self.peers) >= 8:
                self.peers.pop(0).disconnect()
            peer = PeerClient(self.gateway)
            if role is not None:
                await peer.ask("connect", {"deviceId": "d", "role": role})
            stored, secret = self.a_token(which)
            if await self.ask(peer, "auth", {"token": secret}) == "auth_success":
                assert held_by(peer) == granted(stored)
                self.opened_with[peer] = held_by(peer)
                self.peers.append(peer)
            else:
                peer.disconnect()

        self.runner.run(go())

    @precondition(lambda self: self.peers)
    @rule(who=numbers, which=numbers)
    def refresh(self, who, which):
        """A second sign-in, with one's own or anybody's token."""
        _, secret = self.a_token(which)
        self.runner.run(self.ask(self.a_peer(who), "auth", {"token": secret}))

    @precondition(lambda self: self.peers)
    @rule(who=numbers, role=st.sampled_from(ROLES))
    def choose_a_role(self, who, role):
        """By another `connect`."""
        payload = {"deviceId": "d", "role": role}
        self.runner.run(self.ask(self.a_peer(who), "connect", payload))

    @precondition(lambda self: self.peers)
    @rule(who=numbers, user=users, wanted=grants)
    def mint(self, who, user, wanted):
        """What `may_grant` allows is made, for oneself or the other."""
        peer = self.a_peer(who)
        identity = peer.client.identity
        if identity is not None and may_grant(identity, **wanted):
            made = self.credentials.create(name="minted", user_id=user, **wanted)
            assert granted(made[0]).is_within(held_by(peer))
            self.ceiling[made[0].id] = held_by(peer)
            self.known.append(made)

    @precondition(lambda self: self.peers)
    @rule(who=numbers, which=numbers)
    def rotate(self, who, which):
        """Whoever may grant as much may have the new secret."""
        stored, _ = self.a_token(which)
        identity = self.a_peer(who).client.identity
        wanted = granted(stored)._asdict()
        living = self.credentials.get(stored.id).revoked_at is None
        if living and identity is not None and may_grant(identity, **wanted):

            async def go() -> None:
                self.known.append(self.credentials.rotate(stored.id))

            self.runner.run(go())
            self.forget_the_gone()

    def forget_the_gone(self) -> None:
        self.peers = [peer for peer in self.peers if peer.transport.closed is None]

    @rule(which=numbers)
    def revoke(self, which):
        """Its connections are gone by then."""

        async def go() -> None:
            self.credentials.revoke(self.a_token(which)[0].id)

        self.runner.run(go())
        self.forget_the_gone()

    @invariant()
    def nobody_holds_more_than_they_were_given(self):
        """No connection more than it was opened with, no token more than its maker held."""
        for peer in self.peers:
            if peer.transport.closed is None:
                assert held_by(peer).is_within(self.opened_with[peer])
                assert held_by(peer).is_within(ADMIN)
                assert peer.client.role in peer.client.roles
        for stored in self.credentials.list():
            assert granted(stored).is_within(self.ceiling[stored.id])
            assert granted(stored).is_within(ADMIN)

    @invariant()
    def what_has_ended_has_no_connection(self):
        """Revoked and rotated credentials."""
        for peer in self.peers:
            if peer.transport.closed is None:
                assert self.gateway.door.holds(peer.client.identity)


TestMinting = Minting.TestCase
TestMinting.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
