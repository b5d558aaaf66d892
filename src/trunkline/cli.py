"""
The ``trunkline`` command: run a gateway, and use one from a terminal.

Exit codes: 0 done · 1 the request or the run failed · 2 wrong usage or
configuration · 3 the gateway cannot be reached · 4 it refused the credential ·
130 interrupted.

What a command needs is imported when it runs, so that short ones are quick.
Only this module and its ``cli_*`` parts read the environment.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trunkline import (
    cli_audit,
    cli_backup,
    cli_client,
    cli_devices,
    cli_doctor,
    cli_open,
    cli_sessions,
    cli_token,
    cli_users,
)
from trunkline.cli_agent import agent_app
from trunkline.cli_client import (
    FAILED,
    USAGE,
    AsJson,
    DataDir,
    Password,
    Token,
    Url,
    User,
    complain,
    credential,
)
from trunkline.cli_route import route_app
from trunkline.config import AuthMode, BindMode
from trunkline.errors import ConfigError

app = typer.Typer(
    name="trunkline",
    help="The self-hosted real-time gateway that AI agents, tools and people share.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no gateway there, "
        "4 credential refused, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Look at the gateway's settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(agent_app, name="agent")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="TRUNKLINE_CONFIG", help="A TOML file with settings."),
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; overrides --bind.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    bind: Annotated[BindMode | None, typer.Option(help="Who can reach the port.")] = None,
    auth: Annotated[AuthMode | None, typer.Option(help="What clients sign in with.")] = None,
    token: Annotated[
        str | None, typer.Option(help="The owner's token; others on this machine can see it.")
    ] = None,
    password: Annotated[
        str | None, typer.Option(help="The owner's password; implies --auth password.")
    ] = None,
    data_dir: DataDir = None,
    history: Annotated[
        Literal["memory", "sqlite"] | None, typer.Option(help="Where sessions are kept.")
    ] = None,
    durability: Annotated[
        Literal["process", "disk"] | None,
        typer.Option(help="What stored messages survive: a crash, or a power loss."),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web origin that may connect; repeatable.")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="CIDR of a trusted reverse proxy; repeatable.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(help="PEM file with the certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file with the private key.")] = None,
    config: ConfigFile = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a bind beyond loopback without sign-in.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="How log lines look.")
    ] = None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM. SIGHUP reloads the configuration."""
    flags = {
        "host": host,
        "port": port,
        "bind": bind,
        "auth.mode": auth or ("password" if password is not None else None),
        "auth.token": token,
        "auth.password": password,
        "data_dir": data_dir,
        "history.store": history,
        "history.durability": durability,
        "origins.allowed_origins": origin or None,
        "proxies.trusted": trusted_proxy or None,
        "tls.cert": tls_cert,
        "tls.key": tls_key,
        "insecure": insecure or None,
        "log.format": log_format,
    }
    from trunkline import failpoints, run
    from trunkline.reloads import Source
    from trunkline.settings import load_settings

    with exiting("--port 0 takes a free one"):
        failpoint = failpoints.parse_failpoint(os.environ.get(failpoints.VARIABLE))
        checked = run.check(load_settings(flags, os.environ, config))
        source = Source(
            checked,
            lambda: load_settings(flags, os.environ, config),
            str(config or "flags and environment"),
        )
        _run(run.serve(checked, failpoint, source))


@app.command()
def demo(
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Run a gateway with a demo agent to talk to, until Ctrl-C."""
    from trunkline import run
    from trunkline.settings import load_settings

    flags = {"port": port, "data_dir": data_dir, "log.level": "warning"}
    with exiting("try `trunkline demo --port 18790`"):
        checked = run.check(load_settings(flags, os.environ, config))
        _run(run.demo(checked, partial(_command_line, data_dir)))


def _command_line(data_dir: str | None, command: str) -> str:
    """Return what a person types to run a command with this gateway."""
    if shutil.which("trunkline"):
        program = "trunkline"
    elif Path(sys.argv[0]).name == "trunkline":
        program = sys.argv[0]
    else:
        program = f"{sys.executable} -m trunkline"
    return f"{program} {command}" + (f" --data-dir {shlex.quote(data_dir)}" if data_dir else "")


def _run(main: Coroutine[Any, Any, None]) -> None:
    from trunkline.run import run_loop

    run_loop(main)


@contextmanager
def exiting(port_hint: str = "") -> Iterator[None]:
    """Turn what a gateway's start can raise into a sentence and an exit code."""
    from trunkline.tailscale import TailscaleError

    try:
        yield
    except ConfigError as error:
        complain(str(error), USAGE)
    except TailscaleError as error:
        complain(str(error), FAILED)
    except OSError as error:
        hint = f"; {port_hint}" if port_hint else ""
        complain(f"cannot listen: {error.strerror or error}{hint}", FAILED)


@app.command()
def chat(
    session: Annotated[str, typer.Option(help="The session to talk in.")] = "lobby",
    once: Annotated[
        bool, typer.Option("--once", help="Send standard input, print the answer, end.")
    ] = False,
    url: Url = cli_client.DEFAULT_URL,
    token: Token = None,
    password: Password = None,
    user: User = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Talk to agents and people in a session."""
    from trunkline import cli_chat

    signing_in = credential(url, token, password, user, data_dir)
    if once or not sys.stdin.isatty():
        cli_client.finish(cli_chat.ask(url, signing_in, session, sys.stdin, once, as_json))
    else:
        cli_client.finish(cli_chat.talk(url, signing_in, session))


app.command()(cli_client.status)
app.command()(cli_client.send)
app.command()(cli_client.agents)
app.add_typer(cli_sessions.app, name="sessions")
app.command()(cli_doctor.doctor)
app.add_typer(route_app, name="route")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_token.app, name="token")
app.add_typer(cli_users.app, name="users")
app.add_typer(cli_devices.app, name="devices")
app.command("open")(cli_open.open_console)
app.command()(cli_backup.backup)


@config_app.command("default")
def config_default() -> None:
    """Print a TOML file of all settings with their defaults."""
    from trunkline.settings import default_toml

    sys.stdout.write(default_toml())


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A TOML file.")]) -> None:
    """Say whether a file is a configuration that the gateway starts with."""
    from trunkline import run
    from trunkline.settings import load_settings

    with exiting():
        run.check(load_settings({}, os.environ, file))
        print("ok")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = installed_version("trunkline")
    cli_client.show({"version": number}, f"trunkline {number}", as_json)


def main() -> None:
    """Run the command line; the entry point of the ``trunkline`` program."""
    app()
