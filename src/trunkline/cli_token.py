"""``trunkline token``: make, list, revoke, rotate and inspect stored credentials."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli_client import FAILED, AsJson, DataDir, columns, complain, show
from trunkline.cli_store import (
    AgentPattern,
    Role,
    Scope,
    SessionPattern,
    Store,
    bounds,
    opened,
    parse_duration,
    read_secret,
    when,
)
from trunkline.ids import now_ms

if TYPE_CHECKING:
    from trunkline.credentials import StoredCredential

app = typer.Typer(
    help="Make, list, revoke, rotate and inspect tokens; the gateway may run meanwhile.",
    no_args_is_help=True,
)

Which = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, or its name.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What people call it.")],
    role: Role = None,
    scope: Scope = None,
    session: SessionPattern = None,
    agent: AgentPattern = None,
    user: Annotated[
        str | None, typer.Option(help="Who signs in with it; the name if absent.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it lives: 15m, 12h, 30d. For good if absent.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once."""
    with opened(data_dir) as store:
        stored, secret = store.credentials.create(
            name=name,
            user_id=user or name,
            roles=role or ("webchat",),
            scopes=scope or (),
            session_patterns=session or ("*",),
            agent_patterns=agent or ("*",),
            expires_at=now_ms() + parse_duration(expires) if expires is not None else None,
            created_by=store.actor,
        )
        _show_secret(store, stored, secret, as_json)


@app.command("list")
def list_tokens(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List all tokens, those that have ended too."""
    with opened(data_dir) as store:
        found = store.credentials.list()
    rows = [("ID", "NAME", "USER", "STATUS", "EXPIRES", "USED", "GRANTS")]
    for stored in found:
        times = (when(stored.expires_at), when(stored.last_used_at))
        grants = bounds(stored)
        rows.append((stored.id, stored.name, stored.user_id, _status(stored), *times, grants))
    show([_plain(stored) for stored in found], columns(rows), as_json)


@app.command()
def revoke(token: Which, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a token; connections that were opened with it are closed within a second."""
    with opened(data_dir) as store:
        stored = _need(store, token)
        if not store.credentials.revoke(stored.id, store.actor):
            complain(f"{stored.id} was revoked before", FAILED)
        stored = _need(store, stored.id)
    show(_plain(stored), f"{stored.id} ({stored.name}) is revoked", as_json)


@app.command()
def rotate(token: Which, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Give a token another secret and print it, this once; the old one ends at once."""
    with opened(data_dir) as store:
        rotated, secret = store.credentials.rotate(_need(store, token).id, store.actor)
        _show_secret(store, rotated, secret, as_json)


@app.command()
def inspect(
    token: Annotated[
        str | None,
        typer.Argument(metavar="TOKEN", help="Its id or name; absent: a token is read from stdin."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a token; of a pasted one too, which never stands in the command."""
    if token is not None and token.startswith("tl_"):
        complain("others can see what stands in a command: paste the token into stdin", FAILED)
    with opened(data_dir) as store:
        if token is None or token == "-":
            found = store.credentials.look_up(read_secret("token").strip())
            if found is None:
                complain("this is no token of this gateway", FAILED)
        else:
            found = _need(store, token)
    facts = _plain(found)
    rows = [(name, _text(name, value)) for name, value in facts.items() if value is not None]
    show(facts, columns(rows), as_json)


def _need(store: Store, token: str) -> StoredCredential:
    stored = store.credentials.get(token)
    if stored is None:
        named = sum(c.name == token for c in store.credentials.list())
        reason = f"{named} tokens have this name: give an id" if named else "no token has this id"
        complain(f"{token}: {reason}", FAILED)
    return stored


def _show_secret(store: Store, stored: StoredCredential, secret: str, as_json: bool) -> None:
    """Print a secret to stdout, and beside it, on stderr, what it is for."""
    if not as_json:
        print(
            f"{stored.id} ({stored.name}) of the user {stored.user_id}: {bounds(stored)}; "
            f"expires {when(stored.expires_at) if stored.expires_at else 'never'}. "
            f"Its digest is in {store.path}; the token itself is shown only here:",
            file=sys.stderr,
            flush=True,
        )
    show({"token": secret, **_plain(stored)}, secret, as_json)


def _status(stored: StoredCredential) -> str:
    if stored.revoked_at is not None:
        return "revoked"
    return "valid" if stored.valid(now_ms()) else "expired"


def _plain(stored: StoredCredential) -> dict[str, Any]:
    """Return a credential as JSON shows it."""
    return {
        "id": stored.id,
        "name": stored.name,
        "userId": stored.user_id,
        "kind": stored.kind,
        "status": _status(stored),
        "roles": sorted(stored.roles),
        "scopes": sorted(stored.scopes),
        "sessionPatterns": list(stored.session_patterns),
        "agentPatterns": list(stored.agent_patterns),
        "deviceId": stored.device_id,
        "createdAt": stored.created_at,
        "createdBy": stored.created_by,
        "expiresAt": stored.expires_at,
        "revokedAt": stored.revoked_at,
        "lastUsedAt": stored.last_used_at,
    }


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value) or "-"
    return when(value) if name.endswith("At") else str(value)
