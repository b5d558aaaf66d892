"""``trunkline sessions``: list sessions, follow one, read and export its log, end it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import msgspec
import typer

from trunkline.cli_client import (
    DEFAULT_URL,
    FAILED,
    AsJson,
    Credential,
    DataDir,
    Password,
    Token,
    Url,
    User,
    columns,
    complain,
    connected,
    credential,
    finish,
    show,
)

if TYPE_CHECKING:
    from trunkline.sdk.messages import Message
    from trunkline.sdk.session import Session

PAGE = 300
"""Messages read at a time."""

app = typer.Typer(
    help="List sessions; follow one, read and export its log, end it.",
    invoke_without_command=True,
)

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]


@app.callback()
def sessions(
    context: typer.Context,
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the sessions that one may see."""
    signing_in = credential(url, token, password, user, data_dir)
    context.obj = (url, signing_in)
    if context.invoked_subcommand is None:
        finish(_list(url, signing_in, as_json))


async def _list(url: str, signing_in: Credential, as_json: bool) -> None:
    async with connected(url, signing_in) as gateway:
        found = await gateway.sessions()
    rows = [("SESSION", "NAME", "MEMBERS", "MESSAGES", "CREATED")]
    for entry in found:
        made = datetime.fromtimestamp(entry.created_at / 1000).strftime("%Y-%m-%d %H:%M")
        counts = str(entry.member_count), str(entry.head)
        rows.append((entry.session_id, entry.name or "", *counts, made))
    show(msgspec.to_builtins(found), columns(rows), as_json)


@asynccontextmanager
async def _joined(context: typer.Context, session_id: str, tail: int = 0) -> AsyncIterator[Session]:
    """Be in a session that exists."""
    url, signing_in = context.obj
    async with connected(url, signing_in) as gateway:
        yield await gateway.join(session_id, tail=tail, create=False)


def _printer(out: BinaryIO) -> Callable[[Message], None]:
    encode = msgspec.json.Encoder().encode

    def write(message: Message) -> None:
        out.write(encode(message) + b"\n")
        out.flush()

    return write


@app.command()
def tail(
    context: typer.Context,
    session: SessionId,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=1000, help="Stored messages to begin with.")
    ] = 10,
    everything: Annotated[
        bool, typer.Option("--all", help="What is not stored too: chunks, presence, progress.")
    ] = False,
) -> None:
    """Print a session's messages as they come, one JSON object a line, until Ctrl-C."""
    write = _printer(sys.stdout.buffer)

    async def main() -> None:
        async with _joined(context, session, lines) as joined:
            async for message in joined:
                if everything or message.seq is not None:
                    write(message)

    finish(main())


@app.command()
def history(
    context: typer.Context,
    session: SessionId,
    after: Annotated[int | None, typer.Option(min=0, help="Begin behind this number.")] = None,
    before: Annotated[int | None, typer.Option(min=1, help="End before this number.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=300, help="Messages at most.")] = 50,
) -> None:
    """Print a page of a session's log, one JSON object a line; the last one by default."""
    write = _printer(sys.stdout.buffer)

    async def main() -> None:
        async with _joined(context, session) as joined:
            page = await joined.history(after=after, before=before, limit=limit)
        for message in page.messages:
            write(message)

    finish(main())


@app.command()
def export(
    context: typer.Context,
    session: SessionId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file, instead of standard output.")
    ] = None,
) -> None:
    """Print all that a session's log holds, one JSON object a line."""

    async def main(out: BinaryIO) -> None:
        async with _joined(context, session) as joined:
            await _export(joined, out)

    if output is None:
        finish(main(sys.stdout.buffer))
        return
    try:
        file = output.open("xb")
    except OSError as error:
        complain(f"{output} cannot be made: {error.strerror}", FAILED)
    with file:
        finish(main(file))


async def _export(session: Session, out: BinaryIO) -> None:
    write = _printer(out)
    after, more = 0, True
    while more:
        page = await session.history(after=after, limit=PAGE)
        for message in page.messages:
            write(message)
            after = message.seq or after
        more = page.more


@app.command()
def close(
    context: typer.Context,
    session: SessionId,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the session and its log for good.")
    ] = False,
) -> None:
    """Send everybody out of a session; it stays, and may be joined again, unless deleted."""

    async def main() -> None:
        async with _joined(context, session) as joined:
            await joined.close(delete=delete)
        print(f"{session} is {'deleted' if delete else 'closed'}", flush=True)

    finish(main())
