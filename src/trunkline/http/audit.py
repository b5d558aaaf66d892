"""The audit log over HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.answers import Answer
from trunkline.http.failures import HttpFailure
from trunkline.http.table import Call, Endpoint
from trunkline.payloads.base import Limit, Name

Number = Annotated[int, Meta(ge=0, le=2**53)]


class AuditRow(Answer, kw_only=True):
    """Who did what to what, and from where."""

    seq: int
    at: int
    """Milliseconds since the epoch."""
    actor: str
    action: str
    target: str
    outcome: Literal["ok", "refused"]
    address: str
    detail: dict[str, str]


class AuditListing(Answer, kw_only=True):
    """Entries of the audit log, the newest first."""

    entries: list[AuditRow]
    """May be few or none although there are more: one answer looks at so many entries only."""
    more: bool
    next: int | None = None
    """What `before` is to be for older ones, if there are more."""


async def _list(call: Call) -> AuditListing:
    call.caller.require("audit")
    if not call.caller.knows(None):
        raise GatewayError(ErrorCode.FORBIDDEN, "it tells of everybody: this needs all patterns")
    audit = call.caller.gateway.access.audit
    if audit is None:
        raise HttpFailure(404, "this gateway keeps no audit log")
    found = audit.page(**call.query)
    rows = [
        AuditRow(
            seq=entry.seq,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            target=entry.target,
            outcome=entry.outcome,
            address=entry.address,
            detail=entry.detail,
        )
        for entry in found.entries
    ]
    return AuditListing(entries=rows, more=found.next is not None, next=found.next)


def audit_endpoints() -> list[Endpoint]:
    """Return the endpoint of the audit log."""
    return [
        Endpoint(
            method="GET",
            path="/audit",
            right="audit",
            run=_list,
            summary="Who did what, the newest first; `auth.*` stands for actions that begin so.",
            query={
                "since": Number,
                "user": Name,
                "action": Name,
                "before": Number,
                "limit": Limit,
            },
            answer=AuditListing,
        )
    ]
