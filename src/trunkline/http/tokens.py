"""Stored tokens over HTTP; nobody hands on more than they have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from trunkline.credentials import Credentials, StoredCredential
from trunkline.errors import ErrorCode, GatewayError
from trunkline.grants import Grant, make_grant, may_grant
from trunkline.http.answers import Answer
from trunkline.http.callers import convert
from trunkline.http.failures import HttpFailure
from trunkline.http.table import Call, Endpoint
from trunkline.ids import now_ms
from trunkline.payloads.base import Name

Words = list[Annotated[str, Meta(max_length=256)]]


class TokenCreate(Answer, kw_only=True):
    """What a new token is for; what is left out is as much as the caller may give."""

    name: Name
    user_id: Name | None = None
    """Who signs in with it; absent: the caller."""
    roles: Words
    scopes: Words = []
    session_patterns: Words | None = None
    agent_patterns: Words | None = None
    expires_in: Annotated[float, Meta(gt=0, le=3_153_600_000)] | None = None
    """Seconds; absent: it does not expire."""


class TokenEntry(Answer, kw_only=True):
    """A stored token, without its secret."""

    id: str
    name: str
    user_id: str
    roles: list[str]
    scopes: list[str]
    session_patterns: list[str]
    agent_patterns: list[str]
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    token: str | None = None
    """The secret; only in the answer that made it."""


class TokenListing(Answer, kw_only=True):
    """The stored tokens, ended ones too, the oldest first."""

    tokens: list[TokenEntry]


def _entry(stored: StoredCredential, secret: str | None = None) -> TokenEntry:
    return TokenEntry(
        id=stored.id,
        name=stored.name,
        user_id=stored.user_id,
        roles=sorted(stored.roles),
        scopes=sorted(stored.scopes),
        session_patterns=list(stored.session_patterns),
        agent_patterns=list(stored.agent_patterns),
        created_at=stored.created_at,
        created_by=stored.created_by,
        expires_at=stored.expires_at,
        revoked_at=stored.revoked_at,
        last_used_at=stored.last_used_at,
        token=secret,
    )


def _credentials(call: Call) -> Credentials:
    found = call.caller.gateway.credentials
    if found is None:
        raise HttpFailure(404, "this gateway stores no credentials")
    return found


def _check_grant(call: Call, grant: Grant, user_id: str) -> None:
    """Refuse to give out a secret that can do, or be, more than the caller."""
    identity = call.caller.identity
    own = user_id == identity.user_id or call.caller.client.has_scope("admin")
    if not own or not may_grant(
        identity, grant.roles, grant.scopes, grant.session_patterns, grant.agent_patterns
    ):
        raise GatewayError(ErrorCode.FORBIDDEN, "nobody hands on more than is their own")


def _refused(error: ValueError) -> GatewayError:
    return GatewayError(ErrorCode.INVALID_PAYLOAD, str(error))


async def _list(call: Call) -> TokenListing:
    call.caller.require("tokens")
    return TokenListing(tokens=[_entry(stored) for stored in _known(call)])


def _known(call: Call) -> list[StoredCredential]:
    """Return the tokens that the caller may know of."""
    found = _credentials(call).list()
    return [stored for stored in found if stored.kind == "token" and call.caller.knows(stored)]


async def _create(call: Call) -> TokenEntry:
    caller = call.caller
    caller.require("tokens")
    wanted = convert(call.plain(), TokenCreate, "$")
    identity = caller.identity
    expires_at = None if wanted.expires_in is None else now_ms() + round(wanted.expires_in * 1000)
    if identity.expires_at is not None:
        # Else an hour's credential could make itself one for ever.
        expires_at = min(expires_at or identity.expires_at, identity.expires_at)
    try:
        grant = make_grant(
            wanted.roles,
            wanted.scopes,
            wanted.session_patterns or identity.session_patterns,
            wanted.agent_patterns or identity.agent_patterns,
        )
        _check_grant(call, grant, wanted.user_id or identity.user_id)
        stored, secret = _credentials(call).create(
            name=wanted.name,
            user_id=wanted.user_id or identity.user_id,
            roles=grant.roles,
            scopes=grant.scopes,
            session_patterns=grant.session_patterns,
            agent_patterns=grant.agent_patterns,
            expires_at=expires_at,
            created_by=identity.user_id,
        )
    except ValueError as error:
        raise _refused(error) from None
    return _entry(stored, secret)


def _named(call: Call) -> StoredCredential:
    """Return the token that the path names, which the caller could have made."""
    stored = next((c for c in _known(call) if c.id == call.id), None)
    if stored is None:
        raise HttpFailure(404, "no such token")
    _check_grant(call, stored, stored.user_id)
    return stored


async def _revoke(call: Call) -> None:
    call.caller.require("tokens")
    stored = _named(call)
    _credentials(call).revoke(stored.id, call.caller.client.user_id)


async def _rotate(call: Call) -> TokenEntry:
    call.caller.require("tokens")
    try:
        stored, secret = _credentials(call).rotate(_named(call).id, call.caller.client.user_id)
    except ValueError as error:
        raise _refused(error) from None
    return _entry(stored, secret)


def token_endpoints() -> list[Endpoint]:
    """Return the endpoints of tokens."""
    return [
        Endpoint(
            method="GET",
            path="/tokens",
            right="tokens",
            run=_list,
            summary="The stored tokens.",
            answer=TokenListing,
        ),
        Endpoint(
            method="POST",
            path="/tokens",
            right="tokens",
            run=_create,
            summary="Make a token; its secret is in this answer and nowhere else.",
            body=TokenCreate,
            answer=TokenEntry,
            status=201,
        ),
        Endpoint(
            method="DELETE",
            path="/tokens/{id}",
            right="tokens",
            run=_revoke,
            summary="End a token, and every connection that it opened.",
            status=204,
        ),
        Endpoint(
            method="POST",
            path="/tokens/{id}/rotate",
            right="tokens",
            run=_rotate,
            summary="Give a token another secret; the old one is dead from then on.",
            answer=TokenEntry,
        ),
    ]
