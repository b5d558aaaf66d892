"""``trunkline users``: people who sign in with a name and a password."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli_client import FAILED, AsJson, DataDir, columns, complain, show
from trunkline.cli_store import (
    AgentPattern,
    Role,
    Scope,
    SessionPattern,
    bounds,
    opened,
    read_secret,
    when,
)

if TYPE_CHECKING:
    from trunkline.users import StoredUser

app = typer.Typer(
    help="Add, list and remove users with passwords; the gateway may run meanwhile.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="USER", help="The user's id.")]


@app.command()
def add(
    user: Name,
    role: Role = None,
    scope: Scope = None,
    session: SessionPattern = None,
    agent: AgentPattern = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a user; the password is asked for, or read from stdin."""
    with opened(data_dir) as store:
        if store.users.get(user) is not None:
            complain(f"there is a user {user} already", FAILED)
        made = store.users.add(
            user,
            read_secret("password", twice=True),
            roles=role or ("webchat",),
            scopes=scope or (),
            session_patterns=session or ("*",),
            agent_patterns=agent or ("*",),
            by=store.actor,
        )
    show(_plain(made), f"{user} may sign in now: {bounds(made)}", as_json)


@app.command("list")
def list_users(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the users."""
    with opened(data_dir) as store:
        found = store.users.list()
    rows = [("USER", "SINCE", "GRANTS")]
    rows += [(user.id, when(user.created_at), bounds(user)) for user in found]
    show([_plain(user) for user in found], columns(rows), as_json)


@app.command()
def remove(user: Name, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Remove a user and revoke all tokens of this user; connections are closed within a second."""
    with opened(data_dir) as store:
        removed = store.users.remove(user, store.actor)
        revoked = store.credentials.revoke_user(user, store.actor)
        if not removed and not revoked:
            complain(f"there is no user {user}", FAILED)
    facts = {"userId": user, "removed": removed, "tokensRevoked": revoked}
    show(facts, f"{user} is removed; {revoked} tokens are revoked", as_json)


@app.command()
def passwd(user: Name, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Change a user's password; connections that the old one opened are closed."""
    with opened(data_dir) as store:
        if store.users.get(user) is None:
            complain(f"there is no user {user}", FAILED)
        store.users.set_password(user, read_secret("new password", twice=True), store.actor)
    show({"userId": user}, f"{user} has a new password", as_json)


def _plain(user: StoredUser) -> dict[str, Any]:
    """Return a user as JSON shows it."""
    return {
        "userId": user.id,
        "roles": sorted(user.roles),
        "scopes": sorted(user.scopes),
        "sessionPatterns": list(user.session_patterns),
        "agentPatterns": list(user.agent_patterns),
        "createdAt": user.created_at,
    }
