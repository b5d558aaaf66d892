"""
Asks real gateways every row of the tables of cases, within a network of its own.

Run as ``unshare --net --map-root-user python -m namespaced FOLDER``: there it
may give itself any address and listen on any port. It prints one JSON object
with what each row was answered.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from certificates import write_certificate
from rawsocket import RawSocket, request, upgrade

from trunkline.config import (
    AuthConfig,
    LimitsConfig,
    OriginConfig,
    ProxyConfig,
    TlsConfig,
    WebSocketTransportConfig,
)
from trunkline.errors import ConfigError
from trunkline.proxies import limiter_key
from trunkline.transports.websocket import WebSocketGateway

CASES = Path(__file__).with_name("cases")

ADDRESSES = (
    *("10.0.0.1/32", "10.0.0.2/32", "10.1.255.254/32", "192.168.1.5/32", "198.51.100.1/32"),
    *("203.0.113.7/32", "203.0.113.9/32", "2001:db8:1::1/128"),
)
"""What this machine is called, beside its loopback."""

MODES = ("token", "none", "proxy")
"""Who judges a stranger: a token, nobody, or a token behind a trusted proxy."""

PROXY = "10.0.0.1"

NAMES = ("gw:18789", "gw:1", "int:18789", "gw.example.com", "gw.example.com:18789")
"""Hosts that the gateways of the table of proxies answer to."""

OWN_SETTINGS = {"allow_same_origin", "user_header", "trust_unix_socket"}
"""What a policy can do but no setting of the gateway asks for."""

LIMITS = LimitsConfig(pre_auth_connections=10_000, pre_auth_per_address=10_000)


def on_the_network(case: dict[str, Any]) -> bool:
    """Whether a gateway can be configured as a row says, and reached from its peer."""
    config, peer = case["config"], case["request"].get("peer")
    return not OWN_SETTINGS & set(config) and config.get("mode") != "off" and peer != "unix"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a table that can be asked over the network."""
    cases = json.loads((CASES / f"{name}_cases.json").read_text())["cases"]
    return [case for case in cases if on_the_network(case)]


@asynccontextmanager
async def connected(address: str, port: int, source: str | None, tls: Any) -> AsyncIterator[Any]:
    """A socket from an address to another."""
    local = None if source is None else (source, 0)
    streams = await asyncio.open_connection(address, port, local_addr=local, ssl=tls)
    async with RawSocket(*streams) as peer:
        yield peer


def unchecked() -> Any:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# Origins and hosts


def gateway_of(case: dict[str, Any], mode: str, tls: TlsConfig) -> WebSocketGateway:
    """The gateway that a row of the table of origins is about; raises `ConfigError`."""
    row = case["config"]
    config = WebSocketTransportConfig(
        port=row.get("port", 18789),
        bind="loopback" if row.get("bind", "loopback") == "loopback" else "all",
        insecure=True,
        auth=AuthConfig(mode="none") if mode == "none" else AuthConfig(token="t" * 32),
        limits=LIMITS,
        origins=OriginConfig(
            allowed_origins=tuple(row["allowed_origins"]),
            allowed_hosts=tuple(row.get("allowed_hosts", ())),
            strict=not row.get("allow_missing_origin", True),
        ),
        proxies=ProxyConfig(trusted=("10.0.0.0/8",) if mode == "proxy" else ()),
        tls=tls if case["request"]["scheme"] == "https" and mode != "proxy" else TlsConfig(),
    )
    return WebSocketGateway(config)


def headers_of(case: dict[str, Any], mode: str) -> list[str]:
    asked = case["request"]
    lines = [f"Host: {host}" for host in asked["host"]]
    lines += [f"Origin: {origin}" for origin in asked["origin"] or []]
    if "sec_fetch_site" in asked:
        lines.append(f"Sec-Fetch-Site: {asked['sec_fetch_site']}")
    if asked.get("ambient_auth"):
        lines.append("Cookie: session=1")
    if mode == "proxy":
        lines += ["X-Forwarded-For: 203.0.113.9", f"X-Forwarded-Proto: {asked['scheme']}"]
    return lines


def with_lines(head: bytes, lines: list[str]) -> bytes:
    """A head with more lines, in UTF-8; its own Host is left out."""
    first, *rest = head.split(b"\r\n")
    kept = [line for line in rest if not line.startswith(b"Host:")]
    return b"\r\n".join([first, *(line.encode() for line in lines), *kept])


async def ask_origin(case: dict[str, Any], mode: str, tls: TlsConfig) -> list[Any]:
    """What an upgrade and a POST are answered."""
    try:
        gateway = gateway_of(case, mode, tls)
    except ConfigError:
        return ["config_error", "config_error"]
    lines = headers_of(case, mode)
    there = "192.168.1.5" if case["config"].get("bind") == "lan" else "127.0.0.1"
    source = PROXY if mode == "proxy" else None
    context = unchecked() if gateway.config.tls.cert else None
    answers = []
    async with gateway:
        for head in (upgrade(), request("/healthz", "Content-Length: 0", method="POST")):
            async with connected(there, gateway.port, source, context) as peer:
                peer.send(with_lines(head, lines))
                answers.append((await peer.head()).status)
    return answers


# Proxies


def proxied(case: dict[str, Any]) -> WebSocketGateway:
    """The gateway that a row of the table of proxies is about; raises `ConfigError`."""
    row = case["config"]
    open_to_all = row.get("auth") == "none"
    return WebSocketGateway(
        WebSocketTransportConfig(
            host="::" if ":" in numeric(case) else "0.0.0.0",
            port=18789,
            insecure=True,
            auth=AuthConfig(mode="none") if open_to_all else AuthConfig(token="t" * 32),
            limits=LIMITS,
            origins=OriginConfig(allowed_hosts=NAMES),
            proxies=ProxyConfig(
                trusted=tuple(row.get("trusted_proxies", ())),
                family=row.get("mode", "x-forwarded"),
                use_forwarded_host=row.get("use_forwarded_host", False),
            ),
        )
    )


def numeric(case: dict[str, Any]) -> str:
    """The peer's address; a mapped one is seen as what it is on our sockets."""
    peer: str = case["request"]["peer"]
    return peer.removeprefix("::ffff:")


async def ask_proxied(case: dict[str, Any]) -> dict[str, Any]:
    """Whom a gateway takes the client for, or the status of its refusal."""
    try:
        gateway = proxied(case)
    except ConfigError:
        return {"decision": "config_error"}
    lines = [f"{name}: {value}" for name, value in case["request"]["headers"]]
    if not any(name == "Host" for name, _ in case["request"]["headers"]):
        lines.append(f"Host: {NAMES[0]}")
    source = numeric(case)
    there = "::1" if ":" in source else "127.0.0.1"
    came: list[Any] = []
    gateway.on("client:connect", lambda client: came.append(client.peer))

    async def status(*more: str) -> int:
        async with connected(there, gateway.port, source, None) as peer:
            peer.send(with_lines(upgrade(), [*lines, *more]))
            head = await peer.head()
            if head.status == 101:
                await peer.frame()
            return head.status  # type: ignore[no-any-return]

    async with gateway:
        first = await status()
        if first != 101:
            return {"decision": "reject", "status": first}
        told = came[0]
        answer = {
            "decision": "accept",
            "client_ip": told.address,
            "local": told.local,
            "attributed": told.key == limiter_key(told.address),
        }
        # A page gets in from the request's own scheme and host, and from no other.
        for scheme in ("http", "https"):
            for name in NAMES:
                if await status(f"Origin: {scheme}://{name}") == 101:
                    answer |= {"scheme": scheme, "host": name}
    return answer


def prepare() -> None:
    """Give this network its addresses."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ADDRESSES:
        more = ["nodad"] if ":" in address else []
        subprocess.run(["ip", "addr", "add", address, "dev", "lo", *more], check=True)


async def main() -> None:
    """Ask everything; print the answers."""
    cert, key = write_certificate(Path(sys.argv[1]))
    tls = TlsConfig(cert=cert, key=key)
    answers: dict[str, Any] = {}
    for case in rows("origin"):
        for mode in MODES:
            answers[f"{case['id']} {mode}"] = await ask_origin(case, mode, tls)
    for case in rows("proxy"):
        answers[case["id"]] = await ask_proxied(case)
    print(json.dumps(answers))


if __name__ == "__main__":
    prepare()
    asyncio.run(main())
