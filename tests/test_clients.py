"""One connected peer: its life as a table, its stamp, and what it may show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import person, register

from trunkline.clients import TRANSITIONS, Client, Clients, ClientState, Peer, Phase
from trunkline.testing import MemoryTransport, PeerClient


def client(name: str = "c1") -> Client:
    return Client(name, MemoryTransport(), Peer())


@pytest.mark.parametrize("first", ["connect", "auth"])
def test_connect_and_auth_come_in_either_order(first):
    """READY needs only the sign-in."""
    one = client()

    one.advance(first)
    one.advance("auth" if first == "connect" else "connect")

    assert one.phase is Phase.READY
    assert one.authenticated


@given(st.lists(st.sampled_from(["connect", "auth", "close"]), max_size=8))
def test_a_life_never_goes_back(events):
    """Ready stays ready until closed, and closed is the end."""
    one, order = client(), list(Phase)
    for event in events:
        before = one.phase
        if event not in TRANSITIONS[before]:
            with pytest.raises(KeyError):
                one.advance(event)
            continue
        one.advance(event)

        assert order.index(one.phase) >= order.index(before)
        assert one.authenticated is (one.phase is Phase.READY)


def test_a_client_is_a_client_state_whatever_the_transport():
    """One object, not two that drift apart."""
    assert isinstance(client(), ClientState)


def test_a_new_client_is_nobody():
    """Until a credential says who it is."""
    one = client()

    assert (one.user_id, one.role, one.scopes, one.authenticated) == ("", None, frozenset(), False)
    assert "anonymous" in repr(one)


async def test_the_stamp_names_the_only_agent_of_a_connection(gateway):
    """With several, none, until one is meant."""
    peer = PeerClient(gateway, person("bots", "node"))
    await register(peer, "one")
    single = peer.client.stamp()
    await register(peer, "two")

    assert (single.kind, single.agent_id) == ("agent", "one")
    assert (peer.client.stamp().kind, peer.client.stamp().agent_id) == ("agent", None)
    assert peer.client.stamp("two").agent_id == "two"


def test_the_scope_admin_is_every_scope():
    """And no scope is every other."""
    one = client()

    one.scopes = frozenset({"approve"})
    few = [one.has_scope("approve"), one.has_scope("session:admin")]
    one.scopes = frozenset({"admin"})

    assert few == [True, False]
    assert one.has_scope("session:admin")


def test_the_clients_are_found_by_id_until_they_are_removed():
    """Removing twice is harmless."""
    clients, one = Clients(), client()

    clients.add(one)
    found = (clients.get("c1"), len(clients), list(clients), clients.ready())
    for _ in range(2):
        clients.remove(one)

    assert found == (one, 1, [one], [])
    assert (clients.get("c1"), len(clients)) == (None, 0)


def test_clients_may_come_and_go_while_they_are_walked_through():
    """The walk is over those who were there."""
    clients = Clients()
    for number in range(3):
        clients.add(client(str(number)))

    for one in clients:
        clients.remove(one)

    assert len(clients) == 0
