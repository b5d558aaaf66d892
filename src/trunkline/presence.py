"""
Who is there: told to the members of a session with the gateway's own stamp.

Changes of one connection within a turn of the loop become the last. Sessions
above a hundred members get only their number, in ``head``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from msgspec import Raw

from trunkline.clients import Client
from trunkline.events import Events
from trunkline.handlers import Handlers
from trunkline.ids import new_id, now_ms
from trunkline.limits import Rate
from trunkline.messages import GatewayMessage, RelayedMessage, encode
from trunkline.payloads import Presence, PresenceEntry
from trunkline.sessions import MEMBERS_SHOWN, Session, SessionManager

SNAPSHOT_SIZE = 100
"""Devices that a snapshot lists at most: the newest. Every client that says hello gets one."""

PER_SECOND, AT_ONCE = 1.0, 5
"""How often a connection may say how it is, in all its sessions together; who types does so in turns."""


class PresenceBoard:
    """
    The handler of ``presence``, and the news of who comes and goes.

    Args:
        clock: Seconds, from any start.
    """

    def __init__(
        self, sessions: SessionManager, events: Events, clock: Callable[[], float]
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._rate = Rate(PER_SECOND, AT_ONCE)
        self._changes: dict[tuple[Session, Client], str] = {}
        events.on("session:join", self._joined)
        events.on("session:leave", self._left)

    def install(self, handlers: Handlers) -> None:
        """Add the handler."""
        handlers.add("presence", self._on_presence, Presence)

    def _on_presence(self, client: Client, message: GatewayMessage, payload: Presence) -> None:
        session = self._sessions.member(client, message, payload)
        client.presence_full_at = self._rate.take(client.presence_full_at, self._clock())
        frame = _frame(session, client, payload.status, message.id, message.trace)
        session.feed.relay(frame, client)

    def _joined(self, session: Session, client: Client) -> None:
        self._note(session, client, "online", len(session.members))

    def _left(self, session: Session, client: Client) -> None:
        self._note(session, client, "offline", len(session.members) + 1)

    def _note(self, session: Session, client: Client, status: str, members: int) -> None:
        if members > MEMBERS_SHOWN or not client.user_id:
            return
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._tell)
        self._changes[(session, client)] = status

    def _tell(self) -> None:
        changes, self._changes = self._changes, {}
        for (session, client), status in changes.items():
            if session.members:
                session.feed.relay(_frame(session, client, status, new_id()), client)

    def snapshot(self, client: Client) -> list[PresenceEntry]:
        """
        Return the devices that a client may see.

        Control sees all whose credentials reach no further than its own; others their own
        user's and those they share a session with.
        """
        mates = {
            mate
            for session_id in client.sessions
            if (session := self._sessions.get_session(session_id))
            for mate in session.members
        }
        seen = (
            PresenceEntry(device_id=c.device_id, role=c.role or "", connected_at=c.connected_at)
            for c in self._sessions.clients.newest_ready()
            if c.device_id is not None
            and (
                c.user_id == client.user_id
                or c in mates
                or (client.role == "control" and client.covers(c))
            )
        )
        return list(islice(seen, SNAPSHOT_SIZE))[::-1]


def _frame(
    session: Session, client: Client, status: str, message_id: str, trace: str | None = None
) -> bytes:
    payload: dict[str, str] = {"status": status}
    if client.device_id is not None:
        payload["deviceId"] = client.device_id
    return encode(
        RelayedMessage(
            type="presence",
            id=message_id,
            session_id=session.id,
            payload=Raw(encode(payload)),
            timestamp=now_ms(),
            sender=client.sender,
            trace=trace,
        )
    )
