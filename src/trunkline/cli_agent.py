"""
``trunkline agent``: programs, MCP servers and models as agents.

Each command serves until Ctrl-C or SIGTERM, then finishes what is at work.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from trunkline.cli_client import (
    DEFAULT_URL,
    FAILED,
    INTERRUPTED,
    USAGE,
    Credential,
    DataDir,
    Password,
    Token,
    Url,
    User,
    complain,
    credential,
    finish,
)

if TYPE_CHECKING:
    from trunkline.logs import Logs
    from trunkline.payloads import ToolSpec
    from trunkline.sdk.agent import Agent

agent_app = typer.Typer(
    help="Serve something else as an agent, until Ctrl-C.", no_args_is_help=True
)

OUR_SECRETS = ("TRUNKLINE_TOKEN", "TRUNKLINE_PASSWORD")
"""Variables that the programs which we start do not get."""

Command = Annotated[
    list[str], typer.Argument(help="The program and its arguments, behind `--`.", metavar="COMMAND")
]
Id = Annotated[str, typer.Option("--id", help="The agent's id.")]
Name = Annotated[str, typer.Option("--name", help="Its name for people; else the id.")]
Sessions = Annotated[
    list[str] | None, typer.Option("--session", help="A session that it joins; repeatable.")
]


@agent_app.command("exec")
def exec_(
    command: Command,
    id: Id,
    name: Name = "",
    tool: Annotated[
        list[str] | None,
        typer.Option(
            "--tool",
            help="NAME or NAME=FILE with the JSON Schema of its arguments; repeatable.",
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="It answers chats.")] = False,
    session: Sessions = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
) -> None:
    """Serve a program that reads and writes lines of JSON."""
    from trunkline.bridges.exec import Program, exec_agent

    if not (chat or tool):
        complain("give --chat, or at least one --tool", USAGE)
    specs = [_tool_spec(text) for text in tool or ()]

    async def main() -> None:
        async with Program(command, _child_environ()) as program:
            agent = exec_agent(
                program, id, name=name, tools=specs, chat=chat, sessions=session or ()
            )
            await _serve(agent, url, credential(url, token, password, user, data_dir))

    _finish(command[0], main())


@agent_app.command("mcp")
def mcp_(
    command: Command,
    id: Id,
    name: Name = "",
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
) -> None:
    """Serve the tools of an MCP server, a program that speaks over its standard input and output."""
    try:
        from trunkline.bridges.mcp import McpServer
    except ModuleNotFoundError as error:
        complain(f"{error.name} is not installed: pip install 'trunkline[mcp]'", FAILED)

    async def main() -> None:
        from trunkline.sdk.agent import Agent

        agent = Agent(id, name=name)
        async with McpServer(command, agent, _child_environ()):
            await _serve(agent, url, credential(url, token, password, user, data_dir))

    _finish(command[0], main())


@agent_app.command("openai")
def openai_(
    model: Annotated[str, typer.Option("--model", help="The model's name.")],
    base_url: Annotated[
        str, typer.Option("--base-url", help="The endpoint; /chat/completions is appended.")
    ],
    id: Id,
    name: Name = "",
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A file that holds the endpoint's key.")
    ] = None,
    system: Annotated[
        str, typer.Option("--system", help="What the model is told before the conversation.")
    ] = "",
    session: Sessions = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
) -> None:
    """Serve a model behind an OpenAI-compatible API; it may call the tools of other agents."""
    from trunkline.bridges.openai import Model, openai_agent

    key = _key(api_key_file)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request

    async def main() -> None:
        async with Model(base_url, model, key) as endpoint:
            agent = openai_agent(endpoint, id, name=name, system=system, sessions=session or ())
            await _serve(agent, url, credential(url, token, password, user, data_dir))

    _finish(model, main(), key)


def _key(file: Path | None) -> str | None:
    try:
        return None if file is None else file.read_text(encoding="utf-8").strip()
    except OSError as error:
        complain(f"--api-key-file: {file}: {error.strerror}", USAGE)


def _tool_spec(text: str) -> ToolSpec:
    """Read ``NAME`` or ``NAME=FILE``."""
    from trunkline.ids import valid_id
    from trunkline.payloads import ToolSpec

    name, _, file = text.partition("=")
    if not valid_id(name):
        complain(f"--tool: not a tool's name: {name!r}", USAGE)
    schema = _schema(file) if file else {"type": "object"}
    return ToolSpec(name=name, description=schema.get("description"), input_schema=schema)


def _schema(file: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=dict[str, Any])
    except OSError as error:
        complain(f"--tool: {file}: {error.strerror}", USAGE)
    except msgspec.MsgspecError as error:
        complain(f"--tool: {file}: {error}", USAGE)


def _child_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OUR_SECRETS}


async def _serve(agent: Agent, url: str, signing_in: Credential) -> None:
    await agent.serve_until_signal(
        url, token=signing_in.token, password=signing_in.password, user=signing_in.user
    )


def _finish(what: str, main: Coroutine[Any, Any, None], secret: str | None = None) -> None:
    """Run an agent, its log on stderr; say what went wrong and end with the code for it."""
    from trunkline.config import LogConfig
    from trunkline.logs import configure_logs

    secrets = [secret, *(os.environ.get(name) for name in OUR_SECRETS)]
    logs = configure_logs(LogConfig(), secrets=secrets)

    async def guarded() -> None:
        telling = asyncio.create_task(_tell_storms(logs))
        try:
            await main
        except OSError as error:
            complain(f"cannot run {what}: {error.strerror or error}", FAILED)
        finally:
            telling.cancel()

    try:
        finish(guarded())
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None


async def _tell_storms(logs: Logs) -> None:
    while True:
        await asyncio.sleep(1)
        logs.flush()
