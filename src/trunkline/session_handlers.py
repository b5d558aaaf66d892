"""The handlers of ``session_*``: what clients may ask of sessions (protocol.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, Raw

from trunkline.assignments import Assignments
from trunkline.clients import Client
from trunkline.config import GatewayConfig
from trunkline.errors import ErrorCode, GatewayError
from trunkline.handlers import Handlers
from trunkline.history import Stored
from trunkline.messages import GatewayMessage, encode
from trunkline.patterns import ANY, fitting_id
from trunkline.payloads import (
    HistoryPage,
    Patch,
    SessionClose,
    SessionCreate,
    SessionEntry,
    SessionHistory,
    SessionInfo,
    SessionInvite,
    SessionJoin,
    SessionLeave,
    SessionList,
    SessionListing,
    SessionPatch,
    SessionPayload,
    SessionRemove,
)
from trunkline.posts import StatusChange
from trunkline.rights import ADMIN_PATCH_KEYS
from trunkline.session_records import (
    SessionRecord,
    listed,
    named_session,
    need_session,
    not_found,
)
from trunkline.sessions import Session, SessionManager

PAGE_BYTES = 512 * 1024
"""Where a page of ``session_history`` ends."""

MAX_METADATA = 64 * 1024
"""Bytes of JSON that a session's metadata may take."""

_GUARDED = frozenset(
    field.encode_name for field in msgspec.structs.fields(Patch) if field.name in ADMIN_PATCH_KEYS
)

log = structlog.get_logger(__name__)


class SessionHandlers:
    """What clients may ask of sessions."""

    def __init__(
        self, sessions: SessionManager, assignments: Assignments, config: GatewayConfig
    ) -> None:
        self._sessions = sessions
        self._assignments = assignments
        self._config = config

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = config

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("session_create", self._on_create, SessionCreate)
        handlers.add("session_join", self._on_join, SessionJoin)
        handlers.add("session_leave", self._on_leave, SessionLeave)
        handlers.add("session_patch", self._on_patch, SessionPatch)
        handlers.add("session_invite", self._on_invite, SessionInvite)
        handlers.add("session_remove", self._on_remove, SessionRemove)
        handlers.add("session_close", self._on_close, SessionClose)
        handlers.add("session_list", self._on_list, SessionList)
        handlers.add("session_history", self._on_history, SessionHistory)

    # Coming and going

    async def _on_create(
        self, client: Client, message: GatewayMessage, payload: SessionCreate
    ) -> None:
        session_id = named_session(message, payload)
        if session_id is not None and not client.allows_session(session_id):
            raise GatewayError(ErrorCode.FORBIDDEN, "the credential does not allow this id")
        if session_id is not None and self._sessions.get_record(session_id) is not None:
            if not payload.join_if_exists:
                raise GatewayError(ErrorCode.SESSION_EXISTS, "the session id is in use")
            await self._join(client, message, session_id, SessionJoin())
            return
        self._check_quota(client)
        _check_metadata(client, payload.metadata, "$.metadata")
        if session_id is None:
            session_id = _fitting_id(client)
        agent = self._assignments.choose(client, session_id, payload)
        session = await self._sessions.create_session(
            session_id,
            owner=client.user_id,
            name=payload.name,
            visibility=payload.visibility,
            metadata=payload.metadata,
            capability=payload.capability,
            agent_type=payload.agent_type,
            agent_patterns=client.identity.agent_patterns if client.identity is not None else ANY,
        )
        self._audit(client, "session.create", session.id, visibility=session.record.visibility)
        await self._sessions.join(session, client, message, "created")
        if agent is not None:
            await self._assignments.assign(session, agent)

    def _check_quota(self, client: Client) -> None:
        self._sessions.check_joined(client)
        limited = client.identity is not None and client.identity.own_quota
        limit = self._config.limits.sessions_per_user
        if limited and self._sessions.owned_by(client.user_id) >= limit:
            raise GatewayError(ErrorCode.SESSION_LIMIT, "this user owns too many sessions")

    async def _on_join(self, client: Client, message: GatewayMessage, payload: SessionJoin) -> None:
        await self._join(client, message, need_session(message, payload), payload)

    async def _join(
        self, client: Client, message: GatewayMessage, session_id: str, payload: SessionJoin
    ) -> None:
        self._sessions.visible(client, session_id)
        session = await self._sessions.revive(session_id)
        if session is None:
            raise not_found()
        if payload.since is not None or payload.tail:
            bounds = await self._sessions.history.bounds(session_id)
            session.feed.compare(bounds)
        await self._assignments.bring_in(session)
        await self._sessions.join(session, client, message, "joined", payload.since, payload.tail)

    async def _on_leave(
        self, client: Client, message: GatewayMessage, payload: SessionLeave
    ) -> None:
        session = self._sessions.member(client, message, payload)
        await self._sessions.leave(session, client, message)

    # Settings

    async def _administered(
        self, client: Client, message: GatewayMessage, payload: SessionPayload
    ) -> Session:
        """Return the session that a message names, which its sender may administer."""
        session_id = need_session(message, payload)
        record = self._sessions.visible(client, session_id)
        if client.role != "control" and record.owner != client.user_id:
            raise GatewayError(ErrorCode.FORBIDDEN, "only the session's owner may do this")
        session = await self._sessions.revive(session_id)
        if session is None:
            raise not_found()
        return session

    async def _on_patch(
        self, client: Client, message: GatewayMessage, payload: SessionPatch
    ) -> None:
        session = await self._administered(client, message, payload)
        patch = payload.patch
        if any(getattr(patch, key) is not UNSET for key in ADMIN_PATCH_KEYS):
            _need_admin(client)
        if patch.metadata is not UNSET:
            _check_metadata(client, patch.metadata, "$.patch.metadata")
        await self._sessions.change(session, lambda record: apply_patch(record, patch))
        self._audit_patch(client, session.id, patch)
        self._changed(session, client, message, "patched")
        for callback in self._sessions.patched:
            callback(session)

    def _audit(self, client: Client, action: str, session_id: str, **detail: str) -> None:
        self._sessions.events.emit("audit", client.did(action, session_id, **detail))

    def _audit_patch(self, client: Client, session_id: str, patch: Patch) -> None:
        """Tell of a patch that changes who may do what; names and numbers, never contents."""
        detail = {"visibility": patch.visibility} if patch.visibility is not UNSET else {}
        guarded = sorted(k for k in ADMIN_PATCH_KEYS if getattr(patch, k) is not UNSET)
        if guarded or detail:
            self._audit(client, "session.patch", session_id, keys=",".join(guarded), **detail)

    def _changed(
        self,
        session: Session,
        client: Client,
        message: GatewayMessage,
        status: Any,
        user_id: str | None = None,
    ) -> None:
        record = session.record
        info = SessionInfo(
            session_id=session.id,
            status=status,
            name=record.name,
            metadata=record.metadata,
            visibility=record.visibility,  # type: ignore[arg-type]
            user_id=user_id,
        )
        session.feed.submit(StatusChange(client, message, Raw(encode(info))))
        self._sessions.clients.changed()

    async def _on_invite(
        self, client: Client, message: GatewayMessage, payload: SessionInvite
    ) -> None:
        session = await self._administered(client, message, payload)
        await self._sessions.change(session, lambda record: _invite(record, payload.user_id))
        self._audit(client, "session.invite", session.id, user=payload.user_id)
        self._changed(session, client, message, "invited", payload.user_id)

    async def _on_remove(
        self, client: Client, message: GatewayMessage, payload: SessionRemove
    ) -> None:
        session = await self._administered(client, message, payload)
        await self._sessions.change(session, lambda record: _uninvite(record, payload.user_id))
        self._audit(client, "session.remove", session.id, user=payload.user_id)
        self._changed(session, client, message, "removed", payload.user_id)

        def send_out() -> None:
            for member in list(session.members):
                if member.user_id == payload.user_id:
                    self._sessions.remove_client(session.id, member)

        session.feed.call(send_out)

    async def _on_close(
        self, client: Client, message: GatewayMessage, payload: SessionClose
    ) -> None:
        session = await self._administered(client, message, payload)
        self._changed(session, client, message, "closed")
        self._audit(client, "session.delete" if payload.delete else "session.close", session.id)
        await self._sessions.close_session(session.id, delete=payload.delete)

    # Reading

    async def _on_list(
        self, client: Client, message: GatewayMessage, payload: SessionList
    ) -> SessionListing:
        found = [
            record
            for record in self._sessions.all_records()
            if (payload.after is None or record.session_id > payload.after)
            and listed(record, client)
        ]
        page = found[: payload.limit]
        entries = [await self.entry(record) for record in page]
        return SessionListing(sessions=entries, more=len(found) > len(page))

    async def entry(self, record: SessionRecord) -> SessionEntry:
        """Return a session as lists show it."""
        session = self._sessions.get_session(record.session_id)
        if session is not None:
            head, members = session.feed.head, len(session.members)
        else:
            head, members = (await self._sessions.history.bounds(record.session_id)).head, 0
        return SessionEntry(
            session_id=record.session_id,
            name=record.name,
            member_count=members,
            head=head,
            created_at=record.created_at,
        )

    async def visible_entries(self, client: Client, limit: int = 300) -> list[SessionEntry]:
        """Return the sessions that a client may see, at most `limit`."""
        found = [r for r in self._sessions.all_records() if listed(r, client)]
        return [await self.entry(record) for record in found[:limit]]

    async def _on_history(
        self, client: Client, message: GatewayMessage, payload: SessionHistory
    ) -> HistoryPage:
        session_id = need_session(message, payload)
        self._sessions.visible(client, session_id)
        if client.role != "control" and session_id not in client.sessions:
            raise self._sessions.no_member(client, session_id)
        bounds = await self._sessions.history.bounds(session_id)
        if payload.after is not None:
            page = await self._forward(session_id, payload.after, payload.limit)
            more = bool(page) and page[-1].seq < bounds.head
        else:
            before = min(payload.before or bounds.head + 1, bounds.head + 1)
            page = await self._backward(session_id, bounds.first, before, payload.limit)
            more = bool(page) and page[0].seq > bounds.first
        return HistoryPage(
            messages=[Raw(stored.body) for stored in page],
            first=bounds.first,
            head=bounds.head,
            epoch=bounds.epoch,
            more=more,
        )

    async def _forward(self, session_id: str, after: int, limit: int) -> Sequence[Stored]:
        return await self._sessions.history.read(session_id, after, limit, PAGE_BYTES)

    async def _backward(
        self, session_id: str, first: int, before: int, limit: int
    ) -> Sequence[Stored]:
        """Read the messages below `before`, newest kept if they are too many bytes."""
        page: list[Stored] = []
        size = 0
        while before > first and len(page) < limit:
            step = min(limit - len(page), 25)
            after = max(before - 1 - step, first - 1)
            part = await self._sessions.history.read(
                session_id, after, before - 1 - after, PAGE_BYTES * 8
            )
            for stored in reversed(part):
                size += len(stored.body)
                if page and size > PAGE_BYTES:
                    return page[::-1]
                page.append(stored)
            before = after + 1
        return page[::-1]


def _fitting_id(client: Client) -> str:
    """Make the id of a session that its creator has not named."""
    patterns = client.identity.session_patterns if client.identity is not None else ANY
    return fitting_id(patterns, "s_")


def apply_patch(record: SessionRecord, patch: Patch) -> None:
    """
    Change a record as a patch says.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``: the metadata would become too large.
    """
    for field in msgspec.structs.fields(patch):
        value = getattr(patch, field.name)
        if value is UNSET or field.name == "metadata":
            continue
        if field.name in ("name", "visibility"):
            setattr(record, field.name, value)
        else:
            _set_or_delete(record.metadata, field.encode_name, value)
    if patch.metadata is not UNSET:
        for key, value in patch.metadata.items():
            _set_or_delete(record.metadata, key, value)
    _check_size(record.metadata, "$.patch")


def _set_or_delete(metadata: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        metadata.pop(key, None)
    else:
        metadata[key] = value


def _invite(record: SessionRecord, user_id: str) -> None:
    if user_id not in record.invited:
        record.invited.append(user_id)


def _uninvite(record: SessionRecord, user_id: str) -> None:
    if user_id in record.invited:
        record.invited.remove(user_id)


def _need_admin(client: Client) -> None:
    if client.role not in ("control", "webchat") or not client.has_scope("session:admin"):
        raise GatewayError(ErrorCode.FORBIDDEN, "this needs the scope session:admin")


def _check_metadata(client: Client, metadata: dict[str, Any] | None, path: str) -> None:
    """Refuse metadata that is too large, or sets guarded settings by a side door."""
    if metadata and not _GUARDED.isdisjoint(metadata):
        _need_admin(client)
    _check_size(metadata, path)


def _check_size(metadata: dict[str, Any] | None, path: str) -> None:
    if metadata and len(encode(metadata)) > MAX_METADATA:
        raise GatewayError(
            ErrorCode.INVALID_PAYLOAD,
            "the metadata is too large",
            details={"path": path, "limit": MAX_METADATA},
        )
