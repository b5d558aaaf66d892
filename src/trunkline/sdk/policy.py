"""
Where the SDK connects, whether it comes back, and when. No I/O here.

A credential goes only to the URL that it was given for: encrypted, or to this
machine. Close codes and HTTP statuses decide whether to try again
(protocol.md section 6); waiting grows exponentially with full jitter, so that
thousands of clients that were cut off together do not return together.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from trunkline.errors import RECONNECT, CloseCode
from trunkline.sdk.errors import (
    ConnectionLost,
    InsecureConnection,
    RequestFailed,
    SignInFailed,
    TrunklineError,
)

_SECRET_PARAMETERS = frozenset({"token", "access_token", "api_key", "password", "auth", "code"})
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

# What a network or a proxy says when the gateway itself said nothing.
_NO_CLOSE_FRAME = 1006
_TRANSIENT = RECONNECT | {_NO_CLOSE_FRAME, 1012, 1013, 1014}


def endpoint(url: str, *, secret: bool, insecure: bool = False) -> str:
    """
    Return the WebSocket URL to connect to.

    Args:
        url: ``ws``, ``wss``, ``http`` or ``https``; without a path, ``/ws`` is meant.
        secret: Whether a credential will be sent there.
        insecure: Allow a credential to travel unencrypted to another machine.

    Raises:
        ValueError: Not such a URL, or one that holds a credential.
        InsecureConnection: `secret` without encryption to another machine.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"not a gateway's address: {parts.scheme}://{parts.hostname or ''}")
    if parts.username is not None or _SECRET_PARAMETERS & {k for k, _ in parse_qsl(parts.query)}:
        raise ValueError("an address must not hold a credential; pass token= or password=")
    if secret and scheme == "ws" and not insecure and not is_loopback(parts.hostname):
        raise InsecureConnection(
            f"a credential would travel unencrypted to {parts.hostname}: "
            "use wss://, or insecure=True if the network itself is private"
        )
    path = parts.path if parts.path not in ("", "/") else "/ws"
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Verdict(NamedTuple):
    """What to do after a connection ended or could not be made."""

    error: TrunklineError
    """What happened."""
    again: bool
    """Whether to connect again."""
    after: float | None = None
    """Seconds to wait before; None: as the backoff says."""


def after_close(code: int, reason: str, going_away: float | None = None) -> Verdict:
    """
    Judge a closed connection.

    Args:
        code: The close code; 1006 when the connection broke without one.
        reason: The close reason, ``reconnect=yes|no[;afterMs=N][;text]``.
        going_away: Seconds, if the gateway announced when to come back.
    """
    words = dict(part.partition("=")[::2] for part in reason.split(";") if "=" in part)
    wait = words.get("afterMs", "")
    after = int(wait) / 1000 if wait.isascii() and wait.isdigit() else going_away
    again = words["reconnect"] == "yes" if "reconnect" in words else code in _TRANSIENT
    text = f"the gateway closed the connection ({code}{', ' + reason if reason else ''})"
    if code == CloseCode.NOT_SIGNED_IN:
        return Verdict(SignInFailed("AUTH_REQUIRED", text), again, after)
    if code == CloseCode.REVOKED:
        return Verdict(SignInFailed("AUTH_EXPIRED", text), again, after)
    return Verdict(ConnectionLost(text, code), again, after)


def after_refusal(status: int, retry_after: str | None) -> Verdict:
    """
    Judge an upgrade that was answered with an HTTP status instead of 101.

    Args:
        status: The status; redirects are refusals, they are never followed.
        retry_after: The ``Retry-After`` header, in seconds.
    """
    if status == 401:
        return Verdict(SignInFailed("AUTH_FAILED", "the gateway refused the credential"), False)
    hint = " (redirects are not followed)" if 300 <= status < 400 else ""
    error = ConnectionLost(f"the gateway refused the upgrade with HTTP {status}{hint}", status)
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    return Verdict(error, status == 429 or status >= 500, after)


def after_sign_in(error: RequestFailed) -> Verdict:
    """Judge a refused sign-in; only a lock or a limit is worth another try."""
    failed = SignInFailed(
        error.code,
        error.message,
        details=error.details,
        retryable=error.retryable,
        retry_after=error.retry_after,
    )
    return Verdict(failed, error.retryable, error.retry_after)


class Backoff:
    """
    How long to wait before the next try: exponential, with full jitter.

    Args:
        base: Seconds; the upper bound of the first wait.
        cap: Seconds; no wait is longer.
        chance: A source of numbers from 0 up to 1.
    """

    def __init__(
        self,
        base: float = 0.5,
        cap: float = 30.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._base = base
        self._cap = cap
        self._chance = chance
        self._tries = 0

    def next(self) -> float:
        """Return the seconds to wait now, and expect to wait longer next time."""
        bound = min(self._cap, self._base * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return bound * self._chance()

    def reset(self) -> None:
        """Begin anew: the connection was good."""
        self._tries = 0
