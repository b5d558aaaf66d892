"""``trunkline route``: whom a request would reach, and why."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import typer

from trunkline.cli_client import (
    DEFAULT_URL,
    USAGE,
    AsJson,
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

route_app = typer.Typer(help="Look at how requests find their agents.", no_args_is_help=True)


@route_app.callback()
def route() -> None:
    """Look at how requests find their agents."""


@route_app.command()
def explain(
    capability: Annotated[
        str | None, typer.Option("--capability", help="What the agent must be able to do.")
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="The agent's id.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="NAME=VALUE that the agent must have; repeatable."),
    ] = None,
    policy: Annotated[
        Literal["least_busy", "round_robin"], typer.Option(help="How to choose among those free.")
    ] = "least_busy",
    url: Url = DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say which agent a request would reach, and why not another; nobody is asked."""
    if capability is None and agent is None:
        complain("give --capability or --agent", USAGE)
    labels = dict(map(_label, label or ()))

    async def main() -> None:
        async with connected(url, credential(url, token, password, user, data_dir)) as gateway:
            found = await gateway.explain(
                capability=capability, agent_id=agent, labels=labels, policy=policy
            )
        rows = [("AGENT", "CHOSEN", "REASON")]
        rows += [(c.agent_id, "yes" if c.chosen else "no", c.reason) for c in found]
        text = columns(rows) if found else "no agent offers this"
        show(msgspec.to_builtins(found), text, as_json)

    finish(main())


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        complain(f"--label: not NAME=VALUE: {text!r}", USAGE)
    return name, value
