"""What the commands share that work on ``auth.db`` itself, with or without a running gateway."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from trunkline.cli_client import FAILED, USAGE, complain

if TYPE_CHECKING:
    from pathlib import Path

    from trunkline.authdb import AuthDatabase
    from trunkline.credentials import Credentials
    from trunkline.grants import Grant
    from trunkline.users import Users

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_is_duration = re.compile(r"(\d{1,9})([smhdw])").fullmatch

Role = Annotated[
    list[str] | None,
    typer.Option("--role", help="control, node, webchat or observer; repeatable."),
]
Scope = Annotated[
    list[str] | None,
    typer.Option("--scope", help="A right beyond the roles, such as approve; repeatable."),
]
SessionPattern = Annotated[
    list[str] | None,
    typer.Option(
        "--session",
        metavar="PATTERN",
        help="Sessions that it may know of; repeatable. All if none.",
    ),
]
AgentPattern = Annotated[
    list[str] | None,
    typer.Option(
        "--agent", metavar="PATTERN", help="Agents that it may know of; repeatable. All if none."
    ),
]


class Store(NamedTuple):
    """The opened file."""

    path: Path
    database: AuthDatabase
    credentials: Credentials
    users: Users
    actor: str
    """The user of this machine who runs the command."""


@contextmanager
def opened(data_dir: str | None) -> Iterator[Store]:
    """Open the credentials and users of a data folder; what is done to them is put on record."""
    from trunkline.audit import Audit
    from trunkline.authdb import AUTH_FILE, AuthDatabase
    from trunkline.credentials import Credentials
    from trunkline.errors import ConfigError
    from trunkline.settings import data_folder
    from trunkline.users import Users

    path = data_folder(os.environ, data_dir) / AUTH_FILE
    try:
        database = AuthDatabase(path)
    except ConfigError as error:
        complain(str(error), USAGE)
    store = Store(path, database, Credentials(database), Users(database), _actor())
    try:
        audit = Audit(database)
        store.credentials.changed.append(lambda change: audit.append(change.entry()))
        store.users.changed.append(lambda change: audit.append(change.entry()))
        yield store
        audit.close()
    except ValueError as error:
        complain(str(error), USAGE)
    finally:
        store.users.close()
        database.close()


def _actor() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def parse_duration(text: str) -> int:
    """
    Return the milliseconds of a duration such as ``15m``, ``12h`` or ``30d``.

    Raises:
        ValueError: It is none, or no time at all.
    """
    match = _is_duration(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no duration: write 15m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]] * 1000


def read_secret(prompt: str, *, twice: bool = False) -> str:
    """Read one line that nobody should see: from a prompt, or from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    secret = getpass.getpass(f"{prompt}: ")
    if twice and getpass.getpass(f"{prompt} again: ") != secret:
        complain("the two are not the same", FAILED)
    return secret


def bounds(grant: Grant) -> str:
    """Return the roles, scopes and patterns of a grant on one line."""
    parts = [" ".join(sorted(grant.roles)), *sorted(grant.scopes)]
    parts += [f"session={p}" for p in grant.session_patterns if p != "*"]
    parts += [f"agent={p}" for p in grant.agent_patterns if p != "*"]
    return " ".join(parts)


def when(at: int | None) -> str:
    """Return a time of the record for people."""
    if at is None:
        return "-"
    try:
        return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
    except (ValueError, OverflowError, OSError):
        return str(at)
