"""
``trunkline open``: the console in a browser, signed in by a link.

The code in the link is written to the data folder itself, so whoever may do
that is the gateway's owner; the gateway takes it once, within two minutes, and
only from this machine. It stands behind the ``#``, which no browser sends.
"""

from __future__ import annotations

import socket
from typing import Annotated
from urllib.parse import urlsplit

import typer

from trunkline.cli_client import (
    DEFAULT_URL,
    FAILED,
    UNREACHABLE,
    USAGE,
    AsJson,
    DataDir,
    Url,
    complain,
    show,
)
from trunkline.cli_store import opened

PATIENCE = 3.0
"""Seconds in which the gateway has to take a connection."""


def open_console(
    url: Url = DEFAULT_URL,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the link; open no browser.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """
    Open the console of a gateway on this machine, signed in as its owner.

    The link is worth one sign-in within two minutes; this command makes another any time.
    """
    base = _local_base(url)
    _reach(base)
    link, ends = sign_in_link(base, data_dir)
    if not (only_print or as_json):
        import webbrowser

        if not webbrowser.open(link):
            complain("there is no browser to open; --print prints the link", FAILED)
    show({"link": link, "expiresAt": ends}, link if only_print else f"opened {base}/", as_json)


def _local_base(url: str) -> str:
    from trunkline.sdk.policy import is_loopback

    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        complain(f"{url} is not a gateway's address", USAGE)
    if not is_loopback(parts.hostname):
        complain("a sign-in link works on the gateway's own machine only; use a token", USAGE)
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}"


def _reach(base: str) -> None:
    parts = urlsplit(base)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), PATIENCE).close()
    except OSError as error:
        complain(f"cannot reach the gateway: {base}: {error.strerror or error}", UNREACHABLE)


def sign_in_link(base: str, data_dir: str | None) -> tuple[str, int]:
    """Make a link for the owner; returns it, and when it ends in milliseconds since the epoch."""
    from trunkline.auth import OWNER
    from trunkline.codes import SignInCodes

    with opened(data_dir) as store:
        code, ends = SignInCodes(store.database, store.credentials).create(OWNER)
    return f"{base}/#code={code}", ends
