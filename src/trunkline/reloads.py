"""
A changed configuration for a running gateway.

What may change is a list of what is allowed: a setting that is not on it is
named in the log and waits for a restart. A configuration that is wrong in
anything changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import structlog
from msgspec.structs import replace

from trunkline.config import Group, WebSocketTransportConfig
from trunkline.errors import ConfigError
from trunkline.events import AuditEntry
from trunkline.logs import Logs
from trunkline.settings import secrets_of, settings_table
from trunkline.transports.websocket import WebSocketGateway

RELOADABLE = (
    "auth.failure_window",
    "auth.jwt.*",
    "auth.lockout",
    "auth.max_failures",
    "auth.timeout",
    "drain_timeout",
    "heartbeat_interval",
    "heartbeat_timeout",
    "limits.*",
    "log.*",
    "max_payload",
    "origins.*",
    "proxies.*",
    "sessions.*",
)
"""The settings that may change while a gateway runs; ``*`` stands for any."""

G = TypeVar("G", bound=Group)

log = structlog.get_logger(__name__)


def reloadable(path: str) -> bool:
    """Whether a setting may change while the gateway runs."""
    return any(fnmatchcase(path, pattern) for pattern in RELOADABLE)


def differences(before: WebSocketTransportConfig, after: WebSocketTransportConfig) -> list[str]:
    """Return the paths of the settings in which two configurations differ."""
    return [p for p in settings_table() if attrgetter(p)(before) != attrgetter(p)(after)]


def overlaid(config: G, above: G, paths: Iterable[str]) -> G:
    """Return `config`, with the settings at `paths` as they are in `above`."""
    values: dict[str, Any] = {}
    inner: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, []).append(rest)
        else:
            values[name] = getattr(above, name)
    for name, rests in inner.items():
        values[name] = overlaid(getattr(config, name), getattr(above, name), rests)
    return replace(config, **values)


class Source(NamedTuple):
    """Where a configuration came from, and comes from anew."""

    loaded: WebSocketTransportConfig
    """What it said at start."""
    load: Callable[[], WebSocketTransportConfig]
    """Reads it once more; raises `ConfigError`."""
    name: str
    """What the log calls it, such as the path of a file."""


class Reloader:
    """
    Brings what has changed at the source into a gateway.

    Args:
        gateway: The gateway, running.
        logs: The logs of its process.
        source: Where its configuration came from.
        adapt: Makes of a configuration what this gateway runs with.
    """

    def __init__(
        self,
        gateway: WebSocketGateway,
        logs: Logs,
        source: Source,
        adapt: Callable[[WebSocketTransportConfig], WebSocketTransportConfig],
    ) -> None:
        self._gateway = gateway
        self._logs = logs
        self._source = source
        self._adapt = adapt
        self._loaded = source.loaded

    def reload(self) -> None:
        """Read the source and the certificate; keep all as it was if either is wrong. Never raises."""
        try:
            self._reload()
        except (ConfigError, OSError) as error:
            log.error("not reloaded, all stays as it was", source=self._source.name, why=str(error))
        except Exception:
            log.exception("not reloaded, all stays as it was", source=self._source.name)

    def _reload(self) -> None:
        wanted = self._source.load()
        changed = differences(self._loaded, wanted)
        possible = [path for path in changed if reloadable(path)]
        config = self._adapt(overlaid(self._gateway.config, wanted, possible))
        self._gateway.reconfigure(config)
        self._loaded = overlaid(self._loaded, wanted, possible)
        self._logs.reconfigure(config.log, secrets_of(config))
        detail = {"changed": " ".join(possible)}
        self._gateway.events.emit("audit", AuditEntry(action="config.reload", detail=detail))
        rest = [path for path in changed if path not in possible]
        tell = log.warning if rest else log.info
        tell(
            "reloaded, but what needs a restart stays as it was" if rest else "reloaded",
            source=self._source.name,
            changed=possible,
            **({"needs_a_restart": rest} if rest else {}),
        )
