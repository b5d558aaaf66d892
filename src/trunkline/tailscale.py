"""
Sharing a gateway on loopback over a tailnet, or with the internet.

`tailscale serve` (or `funnel`) ends TLS and passes requests on to the
gateway's own port; so the node's name becomes a host of the gateway and
127.0.0.1 a trusted proxy. What others shared on this node stays untouched:
only our own port 443 is set, checked, and taken back at the end.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from trunkline.config import TailscaleConfig, WebSocketTransportConfig
from trunkline.errors import ConfigError

HTTPS_PORT = 443
"""The port of the node under which the gateway is shared."""

COMMAND_TIMEOUT = 15.0
"""Seconds that one command of the `tailscale` program may take."""

log = structlog.get_logger(__name__)


class TailscaleError(Exception):
    """The `tailscale` program refused, failed or did not answer."""


class TailscaleShare:
    """
    One gateway's place in a tailnet; made by `prepare_share`.

    Args:
        config: Which program to run, and how widely to share.
        dns_name: The node's name, without the trailing dot.
    """

    def __init__(self, config: TailscaleConfig, dns_name: str) -> None:
        self.dns_name = dns_name
        self._config = config
        self._target: str | None = None

    @property
    def url(self) -> str:
        """Where the gateway is reached from outside."""
        return f"https://{self.dns_name}"

    def apply(self, config: WebSocketTransportConfig) -> WebSocketTransportConfig:
        """Return the configuration that lets the node's name and proxy through."""
        origins, proxies = config.origins, config.proxies
        hosts = dict.fromkeys((*origins.allowed_hosts, self.dns_name))
        trusted = dict.fromkeys((*proxies.trusted, "127.0.0.1/32"))
        return replace(
            config,
            origins=replace(origins, allowed_hosts=tuple(hosts)),
            proxies=replace(proxies, trusted=tuple(trusted)),
        )

    async def start(self, port: int) -> None:
        """
        Share the gateway that listens on a port of 127.0.0.1, and check that it is.

        Raises:
            TailscaleError: The program failed, or something else is shared there.
        """
        target = f"http://127.0.0.1:{port}"
        there = await self._shared()
        if there not in (None, target):
            raise TailscaleError(
                f"{self.url} already leads to {there}; "
                f"run `tailscale serve --https={HTTPS_PORT} off` if nothing needs it"
            )
        self._target = target
        await self._run(self._config.mode, "--bg", "--yes", f"--https={HTTPS_PORT}", target)
        if await self._shared() != target:
            raise TailscaleError(f"`tailscale {self._config.mode}` did not share {target}")

    async def stop(self) -> None:
        """Take the sharing back, if the configuration says so; never raises, harmless twice."""
        target, self._target = self._target, None
        if target is None or not self._config.reset_on_exit:
            return
        try:
            if await self._shared() == target:
                await self._run(self._config.mode, "--yes", f"--https={HTTPS_PORT}", "off")
        except TailscaleError as error:
            log.warning("still shared over tailscale", url=self.url, error=str(error))

    async def _shared(self) -> str | None:
        """Return what our port of the node leads to."""
        status = await _json(self._config.command, "serve", "status", "--json")
        web = _table(_table(status, "Web"), f"{self.dns_name}:{HTTPS_PORT}")
        handler = _table(_table(web, "Handlers"), "/")
        if not handler:
            return None
        funnel = bool(_table(status, "AllowFunnel").get(f"{self.dns_name}:{HTTPS_PORT}"))
        proxy = str(handler.get("Proxy") or "something that is not a gateway")
        # Wider or narrower than asked for is not what was asked for.
        return proxy if funnel == (self._config.mode == "funnel") else f"{proxy} by another mode"

    async def _run(self, *args: str) -> str:
        return await _run(self._config.command, *args)


async def prepare_share(config: TailscaleConfig) -> TailscaleShare:
    """
    Ask this machine's node for its name.

    Raises:
        ConfigError: There is no `tailscale` program, or the node is not up.
    """
    try:
        status = await _json(config.command, "status", "--json", "--peers=false")
    except TailscaleError as error:
        raise ConfigError(f'bind = "tailscale": {error}') from None
    name = str(_table(status, "Self").get("DNSName") or "").rstrip(".")
    if status.get("BackendState") != "Running" or not name:
        raise ConfigError('bind = "tailscale": this machine is not in a tailnet; run tailscale up')
    return TailscaleShare(config, name)


def _table(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


async def _json(command: str, *args: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(await _run(command, *args) or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        raise TailscaleError(f"cannot read the answer of `{command} {' '.join(args)}`") from None


async def _run(command: str, *args: str) -> str:
    shown = f"`{command} {' '.join(args)}`"
    try:
        process = await asyncio.create_subprocess_exec(
            command,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise TailscaleError(
            f"cannot run the program {command}: {error.strerror}; install tailscale, "
            "or set tailscale.command"
        ) from None
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT):
            out, err = await process.communicate()
    except TimeoutError:
        raise TailscaleError(f"{shown} did not end within {COMMAND_TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise TailscaleError(f"{shown} failed: {err.decode(errors='replace').strip()}")
    return out.decode(errors="replace")
