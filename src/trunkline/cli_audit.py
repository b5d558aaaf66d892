"""``trunkline audit``: read the log of who did what, and check that nobody has changed it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli_client import FAILED, USAGE, AsJson, DataDir, complain, show

if TYPE_CHECKING:
    from trunkline.audit import Audit, StoredEntry

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,9})([smhdw])")
_SEEN = re.compile(r"(\d{1,18}):([0-9a-fA-F]{64})")

app = typer.Typer(
    help="Read the log of who did what, newest first; check that nobody has changed it.",
    invoke_without_command=True,
)


@app.callback()
def audit(
    context: typer.Context,
    since: Annotated[
        str | None,
        typer.Option(help="Only from then on: 30m, 24h, 7d, or a date such as 2026-01-31."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only what this user did.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this action; auth.* stands for all that begin so.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Entries at most.")] = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the newest entries of the audit log in the data folder."""
    context.obj = data_dir
    if context.invoked_subcommand is not None:
        return
    start = parse_since(since, time.time()) if since is not None else None
    with _opened(data_dir) as log:
        found = log.entries(since=start, user=user, action=action, limit=limit)
    if as_json:
        for entry in found:
            print(json.dumps(_plain(entry)), flush=True)
    else:
        _print_table(found)


@app.command()
def verify(
    context: typer.Context,
    seen: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:DIGEST", help="What an earlier verify printed."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """
    Check every entry against the one before it; exit with 1 if one was changed or removed.

    Keep what it prints somewhere else, and give it back with --seen: nobody can
    have written the log anew if it still matches.
    """
    earlier = None
    if seen is not None:
        match = _SEEN.fullmatch(seen)
        if match is None:
            complain("--seen is a number, a colon and 64 hexadecimal digits", USAGE)
        earlier = int(match[1]), match[2]
    with _opened(data_dir or context.obj) as log:
        verdict = log.verify(earlier)
    head = f"{verdict.seq}:{verdict.digest}"
    facts = {"entries": verdict.entries, "head": head, "fault": verdict.fault}
    text = f"{verdict.entries} entries, none changed or removed\n{head}"
    if verdict.fault is not None:
        text = f"the audit log has been tampered with or is damaged: {verdict.fault}"
    show(facts, text, as_json)
    if verdict.fault is not None:
        raise typer.Exit(FAILED)


def parse_since(text: str, now: float) -> int:
    """
    Return the time that ``24h`` or a date means, in milliseconds since the epoch.

    Args:
        now: The present, in seconds since the epoch.
    """
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            return max(0, round((now - int(ago[1]) * _UNITS[ago[2]]) * 1000))
        return round(datetime.fromisoformat(text.strip()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        complain("--since is a time ago such as 30m, 24h or 7d, or a date and time", USAGE)


@contextmanager
def _opened(data_dir: str | None) -> Iterator[Audit]:
    from trunkline.audit import Audit
    from trunkline.authdb import AUTH_FILE, AuthDatabase
    from trunkline.errors import ConfigError
    from trunkline.settings import data_folder

    path = data_folder(os.environ, data_dir) / AUTH_FILE
    if not path.exists():
        complain(f"there is no audit log: {path} does not exist", FAILED)
    try:
        database = AuthDatabase(path)
    except ConfigError as error:
        complain(str(error), FAILED)
    try:
        yield Audit(database)
    finally:
        database.close()


def _plain(entry: StoredEntry) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "at": datetime.fromtimestamp(entry.at / 1000, UTC).isoformat(timespec="milliseconds"),
        "action": entry.action,
        "actor": entry.actor,
        "target": entry.target,
        "outcome": entry.outcome,
        "address": entry.address,
        "detail": entry.detail,
    }


def _print_table(found: list[StoredEntry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trunkline.logs import escape

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.expand = True
    for name in ("WHEN", "ACTION"):
        table.add_column(name, no_wrap=True)
    for name, width in (("USER", 12), ("FROM", 15), ("WHAT", None)):
        table.add_column(name, overflow="fold", max_width=width, ratio=None if width else 1)
    for entry in found:
        when = datetime.fromtimestamp(entry.at / 1000).strftime("%m-%d %H:%M:%S")
        detail = [f"{key}={value}" for key, value in entry.detail.items() if value]
        what = " ".join([entry.target, *detail] if entry.target else detail)
        cells = (when, entry.action, entry.actor, entry.address, what)
        # Strangers chose some of this: it is text, never markup or control.
        style = "red" if entry.outcome == "refused" else ""
        table.add_row(*(Text(escape(cell)) for cell in cells), style=style)
    Console().print(table)
