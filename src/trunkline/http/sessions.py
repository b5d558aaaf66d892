"""Sessions over HTTP: the same messages as on a WebSocket, each with its answer."""

from __future__ import annotations

from typing import Any

from trunkline.http.answers import SessionDetail
from trunkline.http.events import session_events
from trunkline.http.table import (
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    Call,
    Endpoint,
    query_of,
)
from trunkline.payloads import (
    Ack,
    Chat,
    HistoryPage,
    SessionClose,
    SessionCreate,
    SessionHistory,
    SessionInfo,
    SessionList,
    SessionListing,
    SessionPatch,
)
from trunkline.sessions import MEMBERS_SHOWN


async def _list(call: Call) -> Any:
    return (await call.caller.ask("session_list", call.query)).payload


async def _create(call: Call) -> Any:
    return (await call.caller.ask("session_create", call.body or {})).payload


async def _show(call: Call) -> SessionDetail:
    caller = call.caller
    caller.require("session_list")
    sessions = caller.gateway.sessions
    record = sessions.visible(caller.client, call.id)
    session = sessions.get_session(call.id)
    members = [c.stamp() for c in session.members][:MEMBERS_SHOWN] if session else []
    bounds = await sessions.history.bounds(call.id)
    return SessionDetail(
        session_id=record.session_id,
        name=record.name,
        owner=record.owner,
        visibility=record.visibility,
        metadata=record.metadata,
        created_at=record.created_at,
        epoch=bounds.epoch,
        first=bounds.first,
        head=session.feed.head if session else bounds.head,
        member_count=len(session.members) if session else 0,
        members=members,
    )


async def _patch(call: Call) -> Any:
    return (await call.caller.ask("session_patch", call.body or {}, call.id)).payload


async def _close(call: Call) -> Any:
    return (await call.caller.ask("session_close", call.query, call.id)).payload


async def _history(call: Call) -> Any:
    caller = call.caller
    if caller.client.role != "control":  # who need not be in a session to read it
        caller.check("session_history")
        await caller.ask("session_join", {}, call.id)
    return (await caller.ask("session_history", call.query, call.id)).payload


async def _publish(call: Call) -> Any:
    caller, key = call.caller, call.key
    caller.check("chat")
    await caller.ask("session_join", {}, call.id)
    return (await caller.ask("chat", call.body or {}, call.id, key)).payload


def session_endpoints() -> list[Endpoint]:
    """Return the endpoints of sessions."""
    return [*_settings(), *_contents()]


def _settings() -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/sessions",
            right="session_list",
            run=_list,
            summary="The sessions that one may see, in the order of their ids.",
            query=query_of(SessionList, "after", "limit"),
            answer=SessionListing,
        ),
        Endpoint(
            method="POST",
            path="/sessions",
            right="session_create",
            run=_create,
            summary="Make a session; the caller owns it.",
            body=SessionCreate,
            answer=SessionInfo,
            status=201,
        ),
        Endpoint(
            method="GET",
            path="/sessions/{id}",
            right="session_list",
            run=_show,
            summary="One session with its settings and members.",
            answer=SessionDetail,
        ),
        Endpoint(
            method="PATCH",
            path="/sessions/{id}",
            right="session_patch",
            run=_patch,
            summary="Change a session's settings.",
            body=SessionPatch,
            answer=SessionInfo,
        ),
        Endpoint(
            method="DELETE",
            path="/sessions/{id}",
            right="session_close",
            run=_close,
            summary="End a session; with `delete` its record and log go too.",
            query=query_of(SessionClose, "delete"),
            answer=SessionInfo,
        ),
    ]


def _contents() -> list[Endpoint]:
    return [
        Endpoint(
            method="GET",
            path="/sessions/{id}/messages",
            right="session_history",
            run=_history,
            summary="A page of a session's log, oldest first; without `after` the last one.",
            query=query_of(SessionHistory, "after", "before", "limit"),
            answer=HistoryPage,
        ),
        Endpoint(
            method="POST",
            path="/sessions/{id}/messages",
            right="chat",
            run=_publish,
            summary="Say something in a session; answered once it is stored.",
            headers=(IDEMPOTENCY_KEY,),
            body=Chat,
            answer=Ack,
        ),
        Endpoint(
            method="GET",
            path="/sessions/{id}/events",
            right="session_join",
            run=session_events,
            summary="Everything that happens in a session, from a place of its log onward.",
            query={"since": str},
            headers=(LAST_EVENT_ID,),
            stream=True,
            passing=False,
        ),
    ]
