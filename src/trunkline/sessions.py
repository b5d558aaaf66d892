"""
Sessions: who owns them, who is in them, and their log.

A `Session` has a record (owner, name, visibility, invitations, metadata) that
stays as long as its log, and while anyone is in it a `Feed`. What a client may
not join does not exist for it: both are ``SESSION_NOT_FOUND``.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Raw

from trunkline.clients import Client, Clients, Phase
from trunkline.config import GatewayConfig
from trunkline.errors import ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.fanout import Feed, Pump
from trunkline.history import History
from trunkline.ids import now_ms, random_id, valid_id
from trunkline.limits import Tally
from trunkline.messages import GatewayMessage, create_message, encode, error_message
from trunkline.patterns import ANY
from trunkline.payloads import Cursor, Head, RunState, SessionInfo, SessionPayload
from trunkline.records import Conflict, Records
from trunkline.replay import Replay, find_start
from trunkline.session_records import (
    KIND,
    SessionRecord,
    assigned_to,
    may_join,
    need_session,
    not_found,
)

if TYPE_CHECKING:
    from trunkline.approvals import Approval
    from trunkline.run_posts import Run

MEMBERS_SHOWN = 100
"""Members that ``session_info`` lists; above it only their number is told."""


class Session:
    """A live session."""

    __slots__ = (
        "agent_clients",
        "approvals",
        "empty_since",
        "ended",
        "feed",
        "members",
        "record",
        "replays",
        "runs",
        "settled",
    )

    def __init__(self, record: SessionRecord, feed: Feed, now: float) -> None:
        self.record = record
        self.feed = feed
        self.members: dict[Client, None] = {}
        self.replays: dict[Client, Replay] = {}
        self.agent_clients: dict[Client, None] = {}
        self.runs: dict[str, Run] = {}
        self.ended: dict[tuple[str, str], None] = {}
        self.approvals: dict[str, Approval] = {}
        self.settled: dict[str, Literal["allow", "deny"] | None] = {}
        self.empty_since = now

    @property
    def id(self) -> str:
        """The session's id."""
        return self.record.session_id

    @property
    def deserted(self) -> bool:
        """Whether nobody is in it but the agents that are assigned to it."""
        return all(assigned_to(self.record, client) for client in self.members)

    def joinable(self, client: Client) -> bool:
        """Whether a client may join, and so know of the session at all."""
        return may_join(self.record, client)

    def info(self, status: str, **more: Any) -> SessionInfo:
        """Describe the session to a member."""
        record, feed = self.record, self.feed
        members: Any = [m.sender for m, _ in zip(self.members, range(MEMBERS_SHOWN), strict=False)]
        fields: dict[str, Any] = {
            "name": record.name,
            "metadata": record.metadata,
            "visibility": record.visibility,
            "epoch": feed.epoch,
            "head": feed.head,
            "next": feed.head + 1,
            "members": members,
            "member_count": len(self.members),
            "runs": [
                RunState(run_id=r.run_id, agent_id=r.agent_id, index=r.index)
                for r in self.runs.values()
            ],
            "approvals": [Raw(a.frame) for a in self.approvals.values() if a.frame],
        }
        return SessionInfo(session_id=self.id, status=status, **{**fields, **more})  # type: ignore[arg-type]


class SessionManager:
    """
    The sessions of a gateway: create, find, join, leave, forget.

    The handlers of ``session_*`` stand in `trunkline.session_handlers`; this
    class may be used from Python too.
    """

    def __init__(
        self,
        config: GatewayConfig,
        clients: Clients,
        events: Events,
        history: History,
        records: Records,
        pump: Pump,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self.clients = clients
        self.events = events
        self.history = history
        self._records = records
        self._pump = pump
        self._clock = clock
        self._live: dict[str, Session] = {}
        self._kept: dict[str, tuple[SessionRecord, int]] = {}
        self._owned = Tally()
        self._changing = asyncio.Lock()
        self.opened: list[Callable[[Session], Awaitable[None]]] = []
        """Called when a session comes to life, before anyone is in it."""
        self.went_live: list[Callable[[Session, Client], None]] = []
        """Called in the step in which a member begins to get live frames."""
        self.patched: list[Callable[[Session], None]] = []
        """Called after a session's settings have changed."""

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = config

    async def load(self) -> None:
        """Read the records of all sessions; called once, at start."""
        for record in await self._records.scan(KIND):
            kept = msgspec.json.decode(record.value, type=SessionRecord)
            self._kept[record.key] = (kept, record.version)
            self._owned.add(kept.owner)

    def unload(self) -> None:
        """Forget what `load` has read and what came since; called once, at stop."""
        self._live.clear()
        self._kept.clear()
        self._owned = Tally()

    # Create and find

    async def create_session(
        self,
        session_id: str | None = None,
        *,
        owner: str = "gateway",
        name: str | None = None,
        visibility: str = "shared",
        metadata: dict[str, Any] | None = None,
        capability: str | None = None,
        agent_type: str | None = None,
        agent_patterns: tuple[str, ...] = ANY,
    ) -> Session:
        """
        Create a session.

        Args:
            session_id: Its id; absent: 128 random bits.
            owner: The user that it belongs to.
            capability: What its agent must be able to do, if that was asked for.
            agent_type: Of what type its agent must be, if that was asked for.
            agent_patterns: Which agents may be chosen for it.

        Raises:
            GatewayError: ``SESSION_EXISTS``.
            ValueError: The id has not the grammar of an id.
        """
        session_id = session_id or random_id("s_")
        if not valid_id(session_id):
            raise ValueError(f"{session_id!r} cannot be a session id")
        if session_id in self._kept:
            raise GatewayError(ErrorCode.SESSION_EXISTS, "the session id is in use")
        record = SessionRecord(
            session_id=session_id,
            owner=owner,
            name=name,
            visibility=visibility,
            metadata=dict(metadata or {}),
            capability=capability,
            agent_type=agent_type,
            agent_patterns=agent_patterns,
            created_at=now_ms(),
        )
        self._kept[session_id] = (record, 0)
        self._owned.add(owner)
        try:
            await self.save(record)
        except BaseException as error:
            if self._kept.pop(session_id, None) is not None:
                self._owned.drop(owner)
            if isinstance(error, Conflict):
                raise GatewayError(ErrorCode.SESSION_EXISTS, "the session id is in use") from None
            raise
        session = await self._open(record)
        self.clients.changed()
        self.events.emit("session:create", session)
        return session

    def get_session(self, session_id: str) -> Session | None:
        """Return a live session."""
        return self._live.get(session_id)

    def get_record(self, session_id: str) -> SessionRecord | None:
        """Return a session's record, live or not."""
        kept = self._kept.get(session_id)
        return kept[0] if kept else None

    async def revive(self, session_id: str) -> Session | None:
        """Return a session, brought back to life if nobody is in it; None if there is none."""
        session = self._live.get(session_id)
        if session is not None:
            return session
        record = self.get_record(session_id)
        return await self._open(record) if record is not None else None

    async def _open(self, record: SessionRecord) -> Session:
        session_id = record.session_id
        # Reading the ids may find damage, so where the log ends is asked after it.
        known = await self.history.ids(session_id)
        bounds = await self.history.bounds(session_id)
        session = self._live.get(session_id)  # somebody else may have been faster
        if session is None:
            feed = Feed(session_id, self._pump, bounds, known)
            feed.quiet_since = self._clock()
            session = Session(record, feed, self._clock())
            for prepare in self.opened:
                await prepare(session)
            session = self._live.setdefault(session_id, session)
        return session

    async def change(self, session: Session, edit: Callable[[SessionRecord], object]) -> None:
        """
        Edit a session's record, and store it; changes happen one after the other.

        Args:
            edit: Changes the copy that it gets; what it raises leaves all as it was.

        Raises:
            GatewayError: ``SESSION_NOT_FOUND``: the session was deleted meanwhile.
        """
        async with self._changing:
            if session.id not in self._kept:
                raise not_found()
            record = copy.deepcopy(session.record)
            edit(record)
            await self.save(record)

    async def save(self, record: SessionRecord) -> None:
        """Write a record that was changed; raises `Conflict` if somebody else wrote it."""
        _, version = self._kept[record.session_id]
        version = await self._records.put(KIND, record.session_id, encode(record), version)
        self._kept[record.session_id] = (record, version)
        live = self._live.get(record.session_id)
        if live is not None:
            live.record = record

    def get_all_sessions(self) -> list[Session]:
        """Return the live sessions."""
        return list(self._live.values())

    def all_records(self) -> list[SessionRecord]:
        """Return the records of all sessions, live or not, in the order of their ids."""
        return [self._kept[key][0] for key in sorted(self._kept)]

    def owned_by(self, user_id: str) -> int:
        """Return how many sessions a user owns."""
        return self._owned[user_id]

    # Members

    def add_client(self, session_id: str, client: Client, *, assigned: bool = False) -> None:
        """
        Make a connection a member that gets what comes from now on.

        Args:
            assigned: It is the session's agent, which its limits do not count.

        Raises:
            GatewayError: ``SESSION_NOT_FOUND``, ``CLIENT_NOT_FOUND``, ``SESSION_FULL``
                or ``SESSION_LIMIT``.
        """
        session = self._live.get(session_id)
        if session is None:
            raise not_found()
        if client.phase is Phase.CLOSED:
            raise GatewayError(ErrorCode.CLIENT_NOT_FOUND, "the connection is gone")
        self.check_room(session, client, assigned=assigned)
        self.enter(session, client)
        self.attach(session, client, session.feed.head)

    def check_room(self, session: Session, client: Client, *, assigned: bool = False) -> None:
        """Raise if a client that is no member could not become one."""
        if client in session.members:
            return
        if len(session.members) >= self._config.limits.members_per_session:
            raise GatewayError(ErrorCode.SESSION_FULL, "the session is full")
        if not assigned:
            self.check_joined(client)

    def check_joined(self, client: Client) -> None:
        """Raise if a client has joined as many sessions as it may; assigned ones do not count."""
        limit = self._config.limits.sessions_per_connection
        if len(client.sessions) < limit:
            return
        records = (self.get_record(session_id) for session_id in client.sessions)
        if sum(r is not None and not assigned_to(r, client) for r in records) >= limit:
            raise GatewayError(ErrorCode.SESSION_LIMIT, "this connection is in too many sessions")

    def enter(self, session: Session, client: Client) -> None:
        """Make a client a member, if it is none; `attach` begins to deliver to it."""
        if client in session.members:
            return
        session.members[client] = None
        client.sessions[session.id] = session.feed
        if client.agents:
            session.agent_clients[client] = None
        self.clients.changed()
        self.events.emit("session:join", session, client)

    def attach(self, session: Session, client: Client, after: int) -> None:
        """Begin to deliver a session to a member: what follows `after`, then live."""
        self._stop_delivery(session, client)
        limits = self._config.limits
        replay = Replay(
            session.feed,
            client,
            self.history,
            after,
            # Only a buffer past `lag_bytes` is ever told to have drained.
            max(limits.max_buffered, 2 * limits.lag_bytes),
            lambda c: self._live_now(session, c),
        )
        session.replays[client] = replay
        replay.start()

    def _live_now(self, session: Session, client: Client) -> None:
        session.replays.pop(client, None)
        if client in session.members:
            session.feed.members[client] = None
            for callback in self.went_live:
                callback(session, client)

    def _stop_delivery(self, session: Session, client: Client) -> None:
        session.feed.members.pop(client, None)
        replay = session.replays.pop(client, None)
        if replay is not None:
            replay.cancel()

    def remove_client(self, session_id: str, client: Client) -> bool:
        """Take a member out; False if it was none."""
        session = self._live.get(session_id)
        if session is None or client not in session.members:
            return False
        self._stop_delivery(session, client)
        del session.members[client]
        session.agent_clients.pop(client, None)
        client.sessions.pop(session_id, None)
        if session.deserted:
            session.empty_since = self._clock()
        self.clients.changed()
        self.events.emit("session:leave", session, client)
        return True

    def get_clients(self, session_id: str) -> list[str]:
        """Return the ids of a session's members."""
        session = self._live.get(session_id)
        return [client.id for client in session.members] if session else []

    def disconnected(self, client: Client) -> None:
        """Take a connection that is gone out of its sessions."""
        for session_id in list(client.sessions):
            self.remove_client(session_id, client)

    def agents_changed(self, client: Client) -> None:
        """Note that a connection has begun or ceased to speak for agents."""
        for session_id in client.sessions:
            session = self._live.get(session_id)
            if session is None:
                continue
            if client.agents:
                session.agent_clients[client] = None
            else:
                session.agent_clients.pop(client, None)

    # What members may do

    def member(
        self, client: Client, message: GatewayMessage, payload: SessionPayload | None
    ) -> Session:
        """
        Return the session that a message names, whose member its sender is.

        Raises:
            GatewayError: ``INVALID_MESSAGE``, ``NOT_A_MEMBER`` or ``SESSION_NOT_FOUND``.
        """
        session_id = message.session_id
        if payload is None or payload.session_id or payload.session_key or session_id is None:
            session_id = need_session(message, payload)
        if session_id not in client.sessions:
            raise self.no_member(client, session_id)
        return self._live[session_id]

    def no_member(self, client: Client, session_id: str) -> GatewayError:
        """Make the error for who is not in a session: one may learn of it only if one may join."""
        record = self.get_record(session_id)
        if record is not None and may_join(record, client):
            return GatewayError(ErrorCode.NOT_A_MEMBER, "join the session first")
        return not_found()

    def visible(self, client: Client, session_id: str) -> SessionRecord:
        """Return the record of a session that a client may join; ``SESSION_NOT_FOUND``."""
        record = self.get_record(session_id)
        if record is None or not may_join(record, client):
            raise not_found()
        return record

    async def join(
        self,
        session: Session,
        client: Client,
        message: GatewayMessage,
        status: str,
        since: Cursor | None = None,
        tail: int | None = None,
    ) -> None:
        """
        Make a client a member at the right place of the queue, and tell it.

        Returns once the client has caught up: an ack stands in its message's
        place, so what it sends meanwhile must be stored behind the replay.
        """

        def run() -> None:
            try:
                if self._live.get(session.id) is not session or not session.joinable(client):
                    raise not_found()
                self.check_room(session, client)
            except GatewayError as error:
                client.send(error_message(error, message.id))
                return
            if client.phase is not Phase.CLOSED:
                self._join(session, client, message, status, since, tail)

        await session.feed.run(run, client)
        replay = session.replays.get(client)
        if replay is not None:
            await replay.ended()

    def _join(
        self,
        session: Session,
        client: Client,
        message: GatewayMessage,
        status: str,
        since: Cursor | None,
        tail: int | None,
    ) -> None:
        again = client in session.members and since is None
        feed = session.feed
        recovery, reason, after = find_start(feed, since, 0 if again else tail)
        if not again:
            self._stop_delivery(session, client)
            self.enter(session, client)
        info = session.info(status, recovery=recovery, reason=reason, next=after + 1)
        client.send(create_message("session_info", info, session.id, reply_to=message.id))
        if not again:
            self.attach(session, client, after)

    async def leave(self, session: Session, client: Client, message: GatewayMessage) -> None:
        """Take a member out at the right place of the queue, and tell it."""

        def run() -> None:
            self.remove_client(session.id, client)
            info = SessionInfo(session_id=session.id, status="left")
            client.send(create_message("session_info", info, session.id, reply_to=message.id))

        await session.feed.run(run, client)

    async def close_session(self, session_id: str, *, delete: bool = False) -> None:
        """
        Send everybody out, behind what is queued.

        The session stays for the grace time, so that a join revives it; with
        `delete` its record and log are forgotten at once.
        """
        session = self._live.get(session_id)
        if session is not None:
            await session.feed.run(lambda: self._send_out(session, delete))
        if delete:
            await self._forget(session_id)
        self.clients.changed()

    def _send_out(self, session: Session, delete: bool) -> None:
        for client in list(session.members):
            self.remove_client(session.id, client)
        if delete:
            self._live.pop(session.id, None)

    async def _forget(self, session_id: str) -> None:
        self._live.pop(session_id, None)
        kept = self._kept.pop(session_id, None)
        if kept is not None:
            self._owned.drop(kept[0].owner)
            await self._records.delete(KIND, session_id, kept[1])
            await self.history.delete(session_id)

    # Time

    async def cleanup(self) -> int:
        """
        Forget live sessions that had no members for the grace time.

        Their records and logs stay, unless the history is memory only.

        Returns:
            How many were forgotten.
        """
        now = self._clock()
        grace = self._config.sessions.grace
        idle = [
            session
            for session in self._live.values()
            if now - session.empty_since >= grace and session.deserted and not session.runs
        ]
        for session in idle:
            for agent in list(session.members):
                self.remove_client(session.id, agent)
            if self.history.durability == "memory":
                await self._forget(session.id)
            else:
                self._live.pop(session.id, None)
            self.clients.changed()
        return len(idle)

    async def tick(self) -> None:
        """Once a second: tell quiet sessions where their log ends, forget what was trimmed."""
        now = self._clock()
        for session in self.get_all_sessions():
            feed = session.feed
            if feed.members and now - feed.quiet_since >= self._config.sessions.head_interval:
                feed.quiet_since = now
                feed.relay(encode(self.head_message(session)))
            if feed.known:
                feed.compare(await self.history.bounds(session.id))
        await self.cleanup()

    def head_message(self, session: Session) -> GatewayMessage:
        """Say where a session's log ends."""
        feed = session.feed
        head = Head(
            session_id=session.id,
            epoch=feed.epoch,
            head=feed.head,
            member_count=len(session.members),
        )
        return create_message("head", head, session.id)
