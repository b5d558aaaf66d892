"""
One connected peer: who it is, and where it stands in its life.

The life is the table `TRANSITIONS`; the diagram in the docs is made from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trunkline.events import AuditEntry
from trunkline.ids import now_ms
from trunkline.limits import Spent
from trunkline.measures import Measures
from trunkline.messages import GatewayMessage, Role, Sender, encode
from trunkline.patterns import ANY, matches, within
from trunkline.transport import Transport

if TYPE_CHECKING:
    from trunkline.fanout import Feed


class Phase(StrEnum):
    """Where a connection stands."""

    CONNECTED = "connected"
    GREETED = "greeted"
    READY = "ready"
    CLOSED = "closed"


TRANSITIONS: dict[Phase, dict[str, Phase]] = {
    Phase.CONNECTED: {"connect": Phase.GREETED, "auth": Phase.READY, "close": Phase.CLOSED},
    Phase.GREETED: {"connect": Phase.GREETED, "auth": Phase.READY, "close": Phase.CLOSED},
    Phase.READY: {"connect": Phase.READY, "auth": Phase.READY, "close": Phase.CLOSED},
    Phase.CLOSED: {"close": Phase.CLOSED},
}
"""Phase and event to the next phase; an event that a phase lacks cannot happen."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a credential grants; made by an authenticator, never by a client."""

    user_id: str
    """The user."""
    roles: frozenset[Role] = frozenset({"control", "webchat", "node", "observer"})
    """The roles that a connection may choose from."""
    scopes: frozenset[str] = frozenset()
    """Rights beyond the roles."""
    expires_at: int | None = None
    """When the credential ends, milliseconds since the epoch."""
    own_quota: bool = True
    """Whether the limits per user apply; not to the owner of the gateway."""
    session_patterns: tuple[str, ...] = ANY
    """Ids of the sessions that it may know of; ``*`` stands for any characters."""
    agent_patterns: tuple[str, ...] = ANY
    """Ids of the agents that it may register, see and ask; ``*`` stands for any characters."""
    credential_id: str | None = None
    """The stored credential that was shown, so that its end can close what it opened."""
    credential_version: int = 0
    """Which state of it was shown; a rotated one has a higher."""
    device_id: str | None = None
    """The one device that may show it; None: any."""

    def allows_session(self, session_id: str) -> bool:
        """Whether a session's id is within the credential's patterns."""
        return matches(session_id, self.session_patterns)

    def allows_agent(self, agent_id: str) -> bool:
        """Whether an agent's id is within the credential's patterns."""
        return matches(agent_id, self.agent_patterns)

    def covers(self, other: Identity) -> bool:
        """Whether nothing is within another's patterns that is not within these."""
        return within(other.session_patterns, self.session_patterns) and within(
            other.agent_patterns, self.agent_patterns
        )


class Peer(NamedTuple):
    """Where a connection comes from, as far as that is known."""

    address: str = "memory"
    """The client's address."""
    key: str = "memory"
    """The canonical key of that address, for limits."""
    local: bool = False
    """Whether it is this machine, without any proxy between."""


class ClientState:
    """The public state of a connected client; one object, whatever the transport."""

    __slots__ = (
        "client_type",
        "connected_at",
        "device_id",
        "device_name",
        "expires_at",
        "id",
        "last_activity",
        "metadata",
        "peer",
        "phase",
        "role",
        "roles",
        "scopes",
        "sessions",
        "user_id",
    )

    def __init__(self, id: str, peer: Peer) -> None:
        self.id = id
        self.peer = peer
        self.phase = Phase.CONNECTED
        self.user_id = ""
        self.role: Role | None = None
        self.roles: frozenset[Role] = frozenset()
        self.scopes: frozenset[str] = frozenset()
        self.expires_at: int | None = None
        self.device_id: str | None = None
        self.device_name: str | None = None
        self.client_type: str | None = None
        self.metadata: dict[str, Any] = {}
        self.sessions: dict[str, Feed] = {}
        self.connected_at = now_ms()
        self.last_activity = self.connected_at

    @property
    def authenticated(self) -> bool:
        """Whether the client has signed in, or need not."""
        return self.phase is Phase.READY


class Client(ClientState):
    """
    A connected peer, its pipe, and what the core keeps about it.

    Attributes:
        transport: The pipe to the peer.
        sender: The proven identity that relayed messages carry, encoded.
        senders: The same for each of several agents, where it was asked for.
        heard_at: When it last showed life, by the gateway's clock.
        passing: Whether it is here for one request only: nobody is told that it
            comes and goes, and lists leave it out.
        spent: What it has used of its rates.
        pending: How many of its messages wait in session queues; while there
            are any, replies queue behind them so that answers keep their order.
    """

    __slots__ = (
        "agents",
        "busy",
        "feed",
        "heard_at",
        "identity",
        "inbox",
        "inbox_bytes",
        "lagging",
        "measures",
        "nonce",
        "opened_at",
        "parse_errors",
        "passing",
        "pending",
        "presence_full_at",
        "received_bytes",
        "received_messages",
        "requests",
        "sender",
        "senders",
        "spent",
        "transport",
        "turn",
        "wakeup",
        "warned_of",
    )

    def __init__(
        self, id: str, transport: Transport, peer: Peer, measures: Measures | None = None
    ) -> None:
        super().__init__(id, peer)
        self.transport = transport
        self.measures = measures or Measures()
        self.passing = False
        self.identity: Identity | None = None
        self.sender = msgspec.Raw(b"null")
        self.senders: dict[str, msgspec.Raw] | None = None
        self.agents: dict[str, Any] = {}
        self.requests: dict[str, Any] = {}
        self.nonce: str | None = None
        self.opened_at = 0.0
        self.heard_at = 0.0
        self.warned_of: int | None = None
        self.spent = Spent()
        self.presence_full_at = 0.0
        self.parse_errors: deque[float] | None = None
        self.received_messages = 0
        self.received_bytes = 0
        self.busy = False
        self.inbox: deque[str] | None = None
        self.inbox_bytes = 0
        self.lagging = False
        self.wakeup: list[Any] = []
        self.feed: Feed | None = None
        self.turn = 0
        self.pending = 0

    def __repr__(self) -> str:
        return f"<Client {self.id} {self.user_id or 'anonymous'} {self.phase}>"

    def advance(self, event: str) -> None:
        """Move on in the table of phases; KeyError if the table has no such move."""
        self.phase = TRANSITIONS[self.phase][event]

    @property
    def kind(self) -> str:
        """``agent`` when the connection has a registered agent, else ``user``."""
        return "agent" if self.agents else "user"

    def stamp(self, agent_id: str | None = None) -> Sender:
        """Return the proven sender of this connection's messages."""
        if agent_id is None and len(self.agents) == 1:
            agent_id = next(iter(self.agents))
        return Sender(
            client_id=self.id,
            user_id=self.user_id,
            role=self.role or "",
            kind="agent" if self.agents else "user",
            device_id=self.device_id,
            device_name=self.device_name,
            agent_id=agent_id,
        )

    def sender_for(self, agent_id: str) -> msgspec.Raw:
        """Return the encoded sender of what one of this connection's agents says."""
        if len(self.agents) == 1:
            return self.sender
        if self.senders is None:
            self.senders = {}
        sender = self.senders.get(agent_id)
        if sender is None:
            sender = self.senders[agent_id] = msgspec.Raw(encode(self.stamp(agent_id)))
        return sender

    def refresh_sender(self) -> None:
        """Encode the sender anew, after anything in it has changed."""
        self.sender = msgspec.Raw(encode(self.stamp()))
        self.senders = None

    def did(self, action: str, target: str = "", **detail: str) -> AuditEntry:
        """Return what the audit log says of something that this client did."""
        address = self.peer.address
        return AuditEntry(
            action=action, actor=self.user_id, target=target, address=address, detail=detail
        )

    def has_scope(self, scope: str) -> bool:
        """Whether the credential grants a scope."""
        return scope in self.scopes or "admin" in self.scopes

    def allows_session(self, session_id: str) -> bool:
        """Whether the client may know of a session with this id."""
        return self.identity is not None and self.identity.allows_session(session_id)

    def allows_agent(self, agent_id: str) -> bool:
        """Whether the client may know of an agent with this id."""
        return self.identity is not None and self.identity.allows_agent(agent_id)

    def covers(self, other: Client) -> bool:
        """Whether all that another client may know of is within this one's patterns."""
        mine, theirs = self.identity, other.identity
        return mine is not None and theirs is not None and mine.covers(theirs)

    def send(self, message: GatewayMessage) -> None:
        """Send a message of the gateway's own; dropped if the client is gone."""
        self.write(encode(message))

    def write(self, frame: bytes) -> None:
        """Send an encoded message; dropped if the client is gone."""
        self.measures.wrote(frame)
        self.transport.write(frame)

    def reply(self, message: GatewayMessage) -> None:
        """Send an answer, behind the answers that still wait for the log."""
        if self.pending and self.feed is not None:
            self.feed.private(self, encode(message))
        else:
            self.write(encode(message))


class Clients:
    """The clients that are connected, and how often the public state has changed."""

    def __init__(self) -> None:
        self._by_id: dict[str, Client] = {}
        self.state_version = 0
        """Changes of sessions, agents and presence so far."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self._by_id.values()))

    def add(self, client: Client) -> None:
        """Take a client in."""
        self._by_id[client.id] = client

    def remove(self, client: Client) -> None:
        """Let a client go."""
        self._by_id.pop(client.id, None)

    def get(self, client_id: str) -> Client | None:
        """Return a client by its id."""
        return self._by_id.get(client_id)

    def newest_ready(self) -> Iterator[Client]:
        """Go through the clients that are signed in, the latest first."""
        return (c for c in reversed(self._by_id.values()) if c.phase is Phase.READY)

    def ready(self) -> list[Client]:
        """Return the clients that are signed in and stay."""
        return [c for c in self._by_id.values() if c.phase is Phase.READY and not c.passing]

    def staying(self) -> list[Client]:
        """Return the clients that are not here for one request only, the oldest first."""
        return [c for c in self._by_id.values() if not c.passing]

    def changed(self) -> None:
        """Note that the public state has changed."""
        self.state_version += 1
