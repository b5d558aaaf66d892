"""
Look at a gateway's surroundings on this machine: what keeps it from starting or serving.

Nothing here changes anything, and nothing waits for a gateway; `trunkline.probe`
reaches one. Every check says what it found in a sentence, and what mends it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import shutil
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography import x509

from trunkline.authdb import AUTH_FILE, damage_of
from trunkline.config import WebSocketTransportConfig, bind_address, is_loopback_address
from trunkline.errors import ConfigError
from trunkline.history.sqlite import holder
from trunkline.probe import Finding, State
from trunkline.run import LOG_FILE, check, files_needed
from trunkline.settings import TOKEN_FILE, data_folder, load_settings

LITTLE_SPACE = 1024**3
"""Bytes on the disk below which a warning is due."""

NO_SPACE = 64 * 1024**2
"""Bytes on the disk below which the gateway cannot be expected to work."""

EXPIRES_SOON = 14
"""Days before the end of a certificate from which on it is warned of."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

_WIDE = {4: 8, 6: 32}
"""By version of IP: the length of a prefix below which a network is absurdly wide for proxies."""


def load(
    environ: Mapping[str, str], file: Path | None, data_dir: str | None
) -> tuple[WebSocketTransportConfig | None, Finding]:
    """Read the configuration as `serve` would; None if it cannot be used."""
    where = str(file) if file else "defaults and the environment"
    try:
        config = load_settings({"data_dir": data_dir}, environ, file)
    except ConfigError as error:
        mend = f"mend it, then: trunkline config check {file}" if file else "mend it"
        return None, Finding(check="configuration", state="failed", said=str(error), mend=mend)
    return config, Finding(check="configuration", state="ok", said=f"good: {where}")


def examine(config: WebSocketTransportConfig) -> Iterator[Finding]:
    """Do all checks of this machine, for a gateway that has this configuration or would have."""
    folder = data_folder({}, config.data_dir)
    tls = list(_tls(config))
    yield from tls
    if all(finding.state != "failed" for finding in tls):
        yield from _startable(config)
    yield from _folder(folder)
    yield _space(folder)
    yield from _databases(folder)
    yield _files(config)
    yield _port(config)
    yield from _exposure(config)
    yield from _proxies(config)


def _found(check: str, said: str, state: State = "ok", mend: str | None = None, /) -> Finding:
    return Finding(check=check, state=state, said=said, mend=mend)


def _startable(config: WebSocketTransportConfig) -> Iterator[Finding]:
    try:
        check(config)
    except ConfigError as error:
        yield _found("configuration", f"serve would refuse it: {error}", "failed")


# Files


def _folder(folder: Path) -> Iterator[Finding]:
    name = "data folder"
    if not folder.exists():
        yield _found(name, f"{folder} will be made when the gateway starts")
        return
    found = folder.stat()
    if not folder.is_dir():
        yield _found(name, f"{folder} is not a folder", "failed", f"move it away: mv {folder} ...")
    elif found.st_uid != os.getuid():
        owner = f"belongs to the user {found.st_uid}, and this is {os.getuid()}"
        yield _found(
            name, f"{folder} {owner}", "failed", f"run as that user, or chown -R $USER {folder}"
        )
    elif found.st_mode & 0o077:
        yield _found(name, f"others may read {folder}", "failed", f"chmod 700 {folder}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield _found(name, f"{folder} cannot be written", "failed", f"chmod 700 {folder}")
    else:
        yield from _private(folder)


def _private(folder: Path) -> Iterator[Finding]:
    names = (TOKEN_FILE, AUTH_FILE, LOG_FILE)
    files = [folder / name for name in names if (folder / name).exists()]
    opened = [file for file in files if file.stat().st_mode & 0o077]
    for file in opened:
        yield _found("data folder", f"others may read {file}", "failed", f"chmod 600 {file}")
    if not opened:
        yield _found("data folder", f"{folder} is for its owner alone")


def _space(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    said = f"{free / 1024**3:.1f} GiB are free"
    if free < NO_SPACE:
        return _found("disk space", f"only {free // 1024**2} MiB are free", "failed", "free some")
    if free < LITTLE_SPACE:
        return _found(
            "disk space", f"only {said}", "warning", "free some, or lower history.max_age"
        )
    return _found("disk space", said)


def _databases(folder: Path) -> Iterator[Finding]:
    for name in (LOG_FILE, AUTH_FILE):
        path = folder / name
        if not path.exists():
            yield _found(name, "there is none yet")
            continue
        process = holder(path)
        if process is not None:
            yield _found(name, f"in use by the gateway (process {process}), so not examined")
            continue
        damage = damage_of(path)
        if damage is None:
            yield _found(name, "no damage")
        else:
            mend = "restore it from a backup: see docs/how-to/back-up-and-restore"
            yield _found(name, f"{path} is damaged: {damage}", "failed", mend)


def _files(config: WebSocketTransportConfig) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_needed(config)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return _found("open files", f"{needed} may be needed and are allowed")
    return _found(
        "open files",
        f"{hard} are allowed, and {config.limits.max_connections} clients may need {needed}",
        "warning",
        f"LimitNOFILE={needed} under systemd, or a lower limits.max_connections",
    )


# The port


def _port(config: WebSocketTransportConfig) -> Finding:
    address, port = bind_address(config), config.port
    if port == 0:
        return _found("port", "any free one will be taken")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return _not_free(config, error)
    return _found("port", f"{port} on {address} is free")


def _not_free(config: WebSocketTransportConfig, error: OSError) -> Finding:
    address, port = bind_address(config), config.port
    if error.errno == errno.EADDRINUSE:
        if _is_gateway(config):
            return _found("port", f"a gateway listens on {port}")
        return _found(
            "port",
            f"something else than a gateway listens on {port}",
            "failed",
            f"see what it is: ss -ltnp 'sport = :{port}'; or take another port: --port 18790",
        )
    if error.errno == errno.EACCES:
        return _found(
            "port",
            f"this user may not listen on {port}",
            "failed",
            "take one above 1023, with a proxy before it",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return _found(
            "port", f"this machine has no address {address}", "failed", "see its own: ip address"
        )
    return _found("port", f"{address}:{port} cannot be used: {error.strerror}", "failed")


def _is_gateway(config: WebSocketTransportConfig) -> bool:
    """Whether what listens answers as a gateway; only its health is asked for."""
    address = bind_address(config)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    scheme = "https" if config.tls.cert else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}/healthz"
    try:
        answer = httpx.get(url, verify=False, timeout=5.0, trust_env=False)
        return answer.status_code == 421 or answer.json()["status"] == "ok"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


# TLS


def _tls(config: WebSocketTransportConfig) -> Iterator[Finding]:
    tls = config.tls
    if tls.cert is None or tls.key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key)
        certificate = x509.load_pem_x509_certificate(Path(tls.cert).read_bytes())
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            said = f"{tls.key} is not the key of {tls.cert}"
        else:
            said = f"{tls.cert} and {tls.key} cannot be used: {error.reason or error}"
        yield _found("tls files", said, "failed", "set tls.cert and tls.key to a pair in PEM")
        return
    except (OSError, ValueError) as error:
        yield _found("tls files", f"{tls.cert}: {error}", "failed", "set tls.cert to a PEM file")
        return
    yield _validity(certificate, Path(tls.cert))


def _validity(certificate: x509.Certificate, path: Path) -> Finding:
    now = datetime.now(UTC)
    until = certificate.not_valid_after_utc
    days = (until - now).days
    renew = "renew it, then: kill -HUP the gateway"
    if until <= now:
        return _found("tls files", f"{path} expired on {until:%Y-%m-%d}", "failed", renew)
    if certificate.not_valid_before_utc > now:
        begin = certificate.not_valid_before_utc
        said = f"{path} is valid only from {begin:%Y-%m-%d}"
        return _found("tls files", said, "failed", "look at this machine's clock: date")
    if days < EXPIRES_SOON:
        return _found("tls files", f"{path} expires in {days} days", "warning", renew)
    return _found("tls files", f"certificate and key fit, valid until {until:%Y-%m-%d}")


# Who can reach it


def _exposure(config: WebSocketTransportConfig) -> Iterator[Finding]:
    public = not is_loopback_address(bind_address(config))
    dangers = list(_dangers(config, public))
    yield from dangers
    if not dangers:
        where = "other machines too" if public else "this machine only"
        yield _found("exposure", f"reached from {where}, as configured")
    if public and not config.origins.allowed_hosts:
        yield _found(
            "names",
            "only the machine's addresses are accepted, any name is answered by 421",
            "warning",
            'set origins.allowed_hosts = ["gateway.example.com"] to the names in use',
        )


def _dangers(config: WebSocketTransportConfig, public: bool) -> Iterator[Finding]:
    if public and not config.auth.required:
        yield _found(
            "exposure",
            "everybody who reaches the port is let in as its owner",
            "warning",
            'set auth.mode = "token"',
        )
    if public and config.tls.cert is None and not config.proxies.trusted:
        yield _found(
            "exposure",
            "messages and credentials travel unencrypted",
            "warning",
            "set tls.cert and tls.key, or put a proxy with TLS before it",
        )
    if config.origins.dangerously_allow_any_origin:
        yield _found(
            "exposure",
            "every web page that a user opens may connect",
            "warning",
            "set origins.allowed_origins to the pages that should",
        )


def _proxies(config: WebSocketTransportConfig) -> Iterator[Finding]:
    trusted = [ipaddress.ip_network(text, strict=False) for text in config.proxies.trusted]
    found = [_too_wide(network) for network in trusted if _is_wide(network)]
    if trusted and is_loopback_address(bind_address(config)) and not any(map(_local, trusted)):
        found.append(
            _found(
                "proxies",
                "only this machine reaches the gateway, and no trusted proxy is on it",
                "warning",
                'set proxies.trusted = ["127.0.0.1/32"]',
            )
        )
    if config.proxies.use_forwarded_host and not trusted:
        found.append(
            _found(
                "proxies",
                "use_forwarded_host does nothing without a trusted proxy",
                "warning",
                "set proxies.trusted, or remove it",
            )
        )
    if trusted and not found:
        found.append(_found("proxies", f"trusted: {', '.join(config.proxies.trusted)}"))
    yield from found


def _is_wide(network: _Network) -> bool:
    return network.prefixlen < _WIDE[network.version]


def _too_wide(network: _Network) -> Finding:
    return _found(
        "proxies",
        f"{network.num_addresses} addresses may say who a client is: {network} is trusted",
        "warning",
        "name the proxies' own addresses, such as 10.0.0.5/32",
    )


def _local(network: _Network) -> bool:
    return any(network.version == own.version and network.overlaps(own) for own in _LOOPBACK)
