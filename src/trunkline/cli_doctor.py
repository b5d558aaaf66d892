"""``trunkline doctor``: find out what is wrong with a gateway, and what mends it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from trunkline.cli_client import (
    FAILED,
    USAGE,
    AsJson,
    DataDir,
    Password,
    Token,
    User,
    complain,
    credential,
)

if TYPE_CHECKING:
    from trunkline.config import WebSocketTransportConfig
    from trunkline.probe import Finding, Target

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}

Address = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TRUNKLINE_URL",
        help="A gateway elsewhere: it is reached, and this machine is not looked at.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="TRUNKLINE_CONFIG", help="The gateway's TOML file."),
]
AsPage = Annotated[
    str | None, typer.Option("--origin", help="Reach it as a web page of this origin would.")
]


def doctor(
    url: Address = None,
    token: Token = None,
    password: Password = None,
    user: User = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    origin: AsPage = None,
    as_json: AsJson = False,
) -> None:
    """
    Find out what is wrong with a gateway, and what mends it.

    Looks at the configuration, the files, the port and the proxies on this
    machine, then reaches the gateway and goes through the handshake step by
    step. Exits with 1 if anything is wrong.
    """
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            _print(finding)

    loaded = None
    if url is None:
        for finding, found in _look(config, data_dir):
            tell(finding)
            loaded = found
    address = url or _address(loaded)
    if address is not None:
        asyncio.run(_reach(_target(address, token, password, user, loaded, data_dir, origin), tell))
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": msgspec.to_builtins(findings)}))
    else:
        _sum_up(findings, failed)
    if failed:
        raise typer.Exit(FAILED)


def _look(
    file: Path | None, data_dir: str | None
) -> Iterator[tuple[Finding, WebSocketTransportConfig | None]]:
    from trunkline import doctor

    config, finding = doctor.load(os.environ, file, data_dir)
    yield finding, config
    if config is not None:
        for finding in doctor.examine(config):
            yield finding, config


def _address(config: WebSocketTransportConfig | None) -> str | None:
    """Return where the gateway of a configuration is reached from this machine."""
    from trunkline.config import bind_address

    if config is None or config.port == 0:
        return None
    bound = bind_address(config)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound, bound)
    scheme = "https" if config.tls.cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}{config.path}"


def _target(
    url: str,
    token: str | None,
    password: str | None,
    user: str | None,
    config: WebSocketTransportConfig | None,
    data_dir: str | None,
    origin: str | None,
) -> Target:
    from trunkline.probe import Target
    from trunkline.sdk.policy import endpoint

    try:
        endpoint(url, secret=False)
    except ValueError as error:
        complain(str(error), USAGE)
    if token is None and password is None and not user and config is not None:
        token = config.auth.token if config.auth.mode == "token" else None
        password = config.auth.password if config.auth.mode == "password" else None
    given = credential(url, token, password, user, data_dir or _folder(config))
    return Target(url=url, **given._asdict(), origin=origin)


def _folder(config: WebSocketTransportConfig | None) -> str | None:
    return config.data_dir if config is not None else None


async def _reach(target: Target, tell: Callable[[Finding], None]) -> None:
    from trunkline.probe import reach

    async for finding in reach(target):
        tell(finding)


def _print(finding: Finding) -> None:
    if finding.state == "skipped":
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from trunkline.logs import escape

    mark, colour = _MARKS[finding.state]
    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column(width=13)
    row.add_column(overflow="fold")
    row.add_row(Text(mark, style=colour), Text(finding.check), Text(escape(finding.said)))
    if finding.mend is not None:
        row.add_row("", "", Text(f"→ {escape(finding.mend)}", style="bold"))
    Console(soft_wrap=False, highlight=False).print(Padding(row, (0, 0)))


def _sum_up(findings: list[Finding], failed: int) -> None:
    warnings = sum(finding.state == "warning" for finding in findings)
    first = next((finding for finding in findings if finding.state == "failed"), None)
    skipped = [finding.check for finding in findings if finding.state == "skipped"]
    if skipped:
        print(f"· not tried: {', '.join(skipped)}")
    print()
    if first is not None:
        checks = f"{failed} checks failed" if failed > 1 else "One check failed"
        print(f"{checks}; begin with: {first.check}")
    elif warnings:
        print(f"The gateway works; {warnings} of its settings deserve a look.")
    else:
        print("All is well.")
