"""
What the client commands share, and the short ones of them.

A command finds the token of a gateway on this machine by itself, in the data
folder; for any other it is given by ``--token`` or ``TRUNKLINE_TOKEN``, and is
never sent anywhere but to the address that was named.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import msgspec
import typer
from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from trunkline.sdk.client import GatewayClient
    from trunkline.sdk.session import Session

DONE, FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes: done, failed, wrong usage, no gateway there, credential refused, Ctrl-C."""

DEFAULT_URL = "http://127.0.0.1:18789"

Url = Annotated[str, typer.Option("--url", envvar="TRUNKLINE_URL", help="The gateway's address.")]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="TRUNKLINE_TOKEN", help="A token; found by itself locally."),
]
Password = Annotated[
    str | None,
    typer.Option("--password", envvar="TRUNKLINE_PASSWORD", help="The gateway's password."),
]
User = Annotated[
    str | None,
    typer.Option(
        "--user", envvar="TRUNKLINE_USER", help="Whose password that is; else the owner's."
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", envvar="TRUNKLINE_DATA_DIR", help="The gateway's data folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Credential(NamedTuple):
    """What a command signs in with."""

    token: str | None
    password: str | None
    user: str | None
    """Whose password it is; None: the gateway's owner's."""


def credential(
    url: str, token: str | None, password: str | None, user: str | None, data_dir: str | None
) -> Credential:
    """Return what was given; for a gateway on this machine, else the token it keeps."""
    from trunkline.sdk.policy import is_loopback
    from trunkline.settings import local_token

    if user and token is None and password is None:
        complain("--user needs --password, or TRUNKLINE_PASSWORD", USAGE)
    if token is None and password is None and is_loopback(urlsplit(url).hostname or ""):
        token = local_token(os.environ, data_dir)
    return Credential(token, password, (user or None) if password is not None else None)


def complain(message: str, code: int) -> NoReturn:
    """Print an error and end the process."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def show(data: Any, text: str, as_json: bool) -> None:
    """Print one result, as JSON or for people."""
    print(json.dumps(data) if as_json else text, flush=True)


def finish(main: Coroutine[Any, Any, None]) -> None:
    """Run a client command; say what went wrong and end with the code for it."""
    from trunkline.sdk.errors import (
        ConnectionLost,
        InsecureConnection,
        SignInFailed,
        TrunklineError,
    )

    try:
        asyncio.run(main)
    except SignInFailed as error:
        complain(f"{error}; is --token right?", REFUSED)
    except (ConnectionLost, OSError) as error:
        complain(f"cannot reach the gateway: {error}", UNREACHABLE)
    except InsecureConnection as error:
        complain(str(error), USAGE)
    except TrunklineError as error:
        complain(str(error), FAILED)
    except ValueError as error:
        complain(str(error), USAGE)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@asynccontextmanager
async def connected(url: str, signing_in: Credential) -> AsyncIterator[GatewayClient]:
    """Be connected to a gateway; tried once, since a person is waiting."""
    from trunkline.sdk.client import connect

    # What the SDK has to tell, these commands tell in their own way.
    logging.getLogger("trunkline.sdk").addHandler(logging.NullHandler())
    async with connect(
        url,
        token=signing_in.token,
        password=signing_in.password,
        user=signing_in.user,
        device_name=os.environ.get("USER") or "terminal",
        open_timeout=0,
    ) as gateway:
        yield gateway


async def enter(gateway: GatewayClient, session_id: str, tail: int | None = None) -> Session:
    """Join a session; where there is none, make it, with an agent that chats if one is online."""
    from trunkline.errors import ErrorCode
    from trunkline.sdk.errors import RequestFailed

    try:
        return await gateway.create(session_id, capability="chat")
    except RequestFailed as error:
        if error.code not in (ErrorCode.SESSION_EXISTS, ErrorCode.AGENT_NOT_FOUND):
            raise
    return await gateway.join(session_id, tail=tail)


def status(
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show how the gateway does."""

    async def main() -> None:
        async with connected(url, credential(url, token, password, user, data_dir)) as gateway:
            hello, state, seconds = gateway.hello, await gateway.sync_state(), await gateway.ping()
        facts = {
            "url": url,
            "status": hello.health.status,
            "version": hello.server_version,
            "uptimeSeconds": hello.uptime // 1000,
            "pingMs": round(seconds * 1000, 2),
            "sessions": len(state.sessions),
            "agentsOnline": sum(agent.status != "offline" for agent in state.agents),
            "clients": len(state.presence),
        }
        show(facts, columns([(name, str(value)) for name, value in facts.items()]), as_json)

    finish(main())


def send(
    session: Annotated[str, typer.Argument(help="The session to say it in.")],
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say something in a session, and end once it is stored."""
    message = sys.stdin.read() if text == "-" else text

    async def main() -> None:
        async with connected(url, credential(url, token, password, user, data_dir)) as gateway:
            ack = await (await enter(gateway, session)).send(message)
        runs = [run.agent_id for run in ack.runs or ()]
        answering = f"; {', '.join(runs)} will answer" if runs else "; nobody will answer"
        facts = {"sessionId": session, "seq": ack.seq, "durability": ack.durability, "agents": runs}
        show(facts, f"stored as message {ack.seq} ({ack.durability}){answering}", as_json)

    finish(main())


def agents(
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the agents that the gateway knows."""

    async def main() -> None:
        async with connected(url, credential(url, token, password, user, data_dir)) as gateway:
            found = await gateway.agents()
        rows = [("AGENT", "STATUS", "TYPE", "NAME", "TOOLS")]
        for agent in found:
            tools = (t if isinstance(t, str) else t.name for t in agent.capabilities.tools)
            rows.append((agent.id, agent.status, agent.agent_type, agent.name, ", ".join(tools)))
        show(msgspec.to_builtins(found), columns(rows), as_json)

    finish(main())


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Align rows; what strangers named is made visible first."""
    from trunkline.logs import escape

    shown = [[escape(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[n]) for row in shown) for n in range(len(shown[0]))]
    lines = ("  ".join(map(set_cell_size, row, widths)).rstrip() for row in shown)
    return "\n".join(lines)
