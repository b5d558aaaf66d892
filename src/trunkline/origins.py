"""
Which web pages and which host names may reach the gateway.

A browser sends the user's network position, and maybe his cookies, along with
any page's requests. Two headers that a page cannot choose tell them apart:
``Host`` says under which name the gateway was reached, which stops DNS
rebinding, and ``Origin`` says which page asks, which stops cross-site WebSocket
hijacking. The origin decision rests on a Host that has passed its own list, and
on nothing else: no credential, proxy or peer address ever skips it.

Order: Host syntax (400), Host list (421), Origin syntax (400), Origin decision
(403), then sign-in. Nothing here does I/O, and no reason repeats what was sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from trunkline.errors import ConfigError

MAX_ORIGIN = 512
"""Bytes of an Origin or Host value; no host name is half as long."""

_ANY_PORT = 0
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_HOST = r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+"
_PORT = r"[1-9][0-9]{0,4}"
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"

_is_name = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_is_number = re.compile(r"[0-9]+|0x[0-9a-f]*").fullmatch
_match_authority = re.compile(rf"({_HOST})(?::({_PORT}))?").fullmatch
_match_origin = re.compile(rf"({_SCHEME})://((?:{_HOST})(?::{_PORT})?)").fullmatch
_match_listed_host = re.compile(rf"({_HOST})(?::({_PORT}|\*))?").fullmatch
_match_pattern = re.compile(rf"({_SCHEME})://((?:\*\.)?)({_HOST})(?::({_PORT}|\*))?").fullmatch


class Refused(Exception):
    """
    A request must be answered with an HTTP error, before it is upgraded.

    Args:
        status: The HTTP status.
        reason: A sentence for people that names the setting to change.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(status, reason)


class Origin(NamedTuple):
    """
    Scheme, host and port in canonical spelling, so that equal means same.

    It stands for the page that asks, and for the gateway as it was asked.
    """

    scheme: str
    """In lower case."""
    host: str
    """A name in lower case, a dotted quad, or a compressed IPv6 address in brackets."""
    port: int | None
    """The scheme's default if none was given; None if the scheme has none."""


class _Authority(NamedTuple):
    host: str
    port: int | None


_OPAQUE = Origin("null", "", None)


def _canonical_host(text: str) -> str | None:
    """
    Bring a host to the one spelling that is compared, or return None.

    Browsers rewrite ``127.1`` and ``0x7f000001``, and resolvers read them as
    addresses; so a name that ends in a number is a dotted quad or malformed.
    """
    host = text.lower()
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if not _is_name(host) or len(host) > 253:
            return None
        return str(ipaddress.IPv4Address(host)) if _is_ip_like(host) else host
    except ValueError:
        return None


def _is_ip_like(host: str) -> bool:
    return host.startswith("[") or _is_number(host.rpartition(".")[2]) is not None


def _port(digits: str | None) -> int | None:
    """Read a port; -1 stands for one that does not exist."""
    if digits is None:
        return None
    number = int(digits)
    return number if number <= 65535 else -1


@lru_cache(1024)
def _parse_authority(text: str) -> _Authority | None:
    match = _match_authority(text)
    if match is None:
        return None
    host, port = _canonical_host(match[1]), _port(match[2])
    return None if host is None or port == -1 else _Authority(host, port)


@lru_cache(1024)
def _parse_origin(text: str) -> Origin | None:
    if text == "null":
        return _OPAQUE
    match = _match_origin(text)
    authority = _parse_authority(match[2]) if match else None
    if match is None or authority is None:
        return None
    scheme = match[1].lower()
    return Origin(scheme, authority.host, authority.port or _DEFAULT_PORTS.get(scheme))


def _single(values: Sequence[bytes | str]) -> str | None:
    """Return the one value that a header may have, unless it is absurdly long."""
    if len(values) != 1 or len(values[0]) > MAX_ORIGIN:
        return None
    value = values[0]
    # Latin-1 reads every byte, and the grammars refuse what is not ASCII.
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _parse_pattern(pattern: str) -> Origin:
    """
    Read one entry of ``allowed_origins``.

    Returns:
        An origin whose host may begin with ``*.`` and whose port may be `_ANY_PORT`.

    Raises:
        ConfigError: The entry is outside the grammar.
    """
    if pattern == "null":
        return _OPAQUE
    if pattern == "*":
        raise ConfigError(
            'origins.allowed_origins: "*" lets every web page connect; if you mean it, '
            "set origins.dangerously_allow_any_origin = true"
        )
    match = _match_pattern(pattern)
    if match is None:
        raise _bad_pattern(pattern, "write scheme://host or scheme://host:port")
    scheme, wildcard, host = match[1].lower(), match[2], _canonical_host(match[3])
    port = _ANY_PORT if match[4] == "*" else _port(match[4])
    if host is None:
        raise _bad_pattern(pattern, "the host is malformed")
    if port == -1:
        raise _bad_pattern(pattern, "the port is above 65535")
    if problem := _pattern_problem(scheme, wildcard, host, port):
        raise _bad_pattern(pattern, problem)
    return Origin(scheme, wildcard + host, _DEFAULT_PORTS.get(scheme) if port is None else port)


def _pattern_problem(scheme: str, wildcard: str, host: str, port: int | None) -> str | None:
    """Say what is wrong with an entry whose parts are well formed."""
    if scheme in ("ws", "wss"):
        return "pages have the scheme http or https"
    if wildcard and _is_ip_like(host):
        return "an address has no subdomains"
    if scheme in _DEFAULT_PORTS:
        known = "." in host or host == "localhost" or _is_ip_like(host)
        return None if known else "the host needs a dot"
    if wildcard or port == _ANY_PORT:
        return "a wildcard needs the scheme http or https"
    return None


def _bad_pattern(pattern: str, problem: str) -> ConfigError:
    return ConfigError(f"origins.allowed_origins: {pattern!r} is not an origin: {problem}")


def _matches(patterns: frozenset[Origin], origin: Origin) -> bool:
    scheme, host, port = origin
    if origin in patterns or Origin(scheme, host, _ANY_PORT) in patterns:
        return True
    # A wildcard is exactly one label: what is left without it must be equal.
    wildcard = "*." + host.partition(".")[2]
    return (
        Origin(scheme, wildcard, port) in patterns
        or Origin(scheme, wildcard, _ANY_PORT) in patterns
    )


class OriginPolicy:
    """
    Decides which pages may talk to the gateway.

    Args:
        allowed_origins: Patterns such as ``https://app.example.com``,
            ``https://*.example.com`` (one label), ``http://localhost:*`` (any
            port) or ``null`` (sandboxed pages).
        allow_any: Admit every page that has an origin; ``null`` still needs its entry.
        strict: Refuse requests without an Origin too, as command-line clients send them.
        same_origin: Admit pages that the gateway itself served.
        ambient: Whether a request can be signed in by something that the page
            need not know: a cookie, a proxy's word, or nothing at all.

    Raises:
        ConfigError: An entry is malformed, or `allow_any` meets `ambient`.
    """

    def __init__(
        self,
        allowed_origins: Sequence[str],
        *,
        allow_any: bool = False,
        strict: bool = False,
        same_origin: bool = True,
        ambient: bool = False,
    ) -> None:
        if allow_any and ambient:
            raise ConfigError(
                "origins.dangerously_allow_any_origin cannot be combined with cookies, a proxy's "
                "identity header or auth.mode = none: every web page would act as the user"
            )
        self._patterns = frozenset(map(_parse_pattern, allowed_origins))
        self._allow_any = allow_any
        self._strict = strict
        self._same_origin = same_origin

    def allows(self, origin: Origin, own: Origin) -> bool:
        """
        Whether a page may talk to the gateway.

        Args:
            origin: The page's origin.
            own: The gateway's origin in this request, from `HostPolicy.check`.
        """
        if self._same_origin and origin == own:
            return True
        if self._allow_any and origin != _OPAQUE:
            return True
        return _matches(self._patterns, origin)

    def check(
        self,
        values: Sequence[bytes | str],
        own: Origin,
        *,
        sec_fetch_site: bool = False,
        ambient_credential: bool = False,
    ) -> None:
        """
        Judge the Origin headers of a request; see `check_request`.

        Raises:
            Refused: 400 for a malformed Origin, 403 for one that is not allowed.
        """
        if not values:
            self._check_missing(sec_fetch_site, ambient_credential)
            return
        value = _single(values)
        origin = None if value is None else _parse_origin(value)
        if origin is None:
            raise Refused(400, "the request needs at most one Origin, as browsers write it")
        if not self.allows(origin, own):
            raise Refused(403, "this page's origin is not in origins.allowed_origins")

    def _check_missing(self, sec_fetch_site: bool, ambient_credential: bool) -> None:
        if self._strict:
            raise Refused(403, "origins.strict refuses requests without an Origin")
        if sec_fetch_site:
            raise Refused(403, "a browser's request lost its Origin on the way")
        if ambient_credential:
            raise Refused(403, "a cookie, proxy identity or client certificate needs an Origin")


class HostPolicy:
    """
    Decides under which names the gateway answers.

    A gateway on loopback answers to ``localhost``, ``127.0.0.1`` and ``[::1]``;
    any other one to its own addresses, which nobody can rebind. Names beyond
    these must be listed.

    Args:
        bound: The address that the gateway listens on.
        port: The port that it listens on, never 0.
        allowed_hosts: More hosts, as ``name``, ``name:port`` or ``name:*``. Without
            a port: the scheme's default port, and the gateway's.
        local_addresses: Addresses of this machine that lead to the gateway.

    Raises:
        ConfigError: An entry is malformed.
    """

    def __init__(
        self,
        bound: str,
        port: int,
        allowed_hosts: Sequence[str] = (),
        local_addresses: Iterable[str] = (),
    ) -> None:
        address = ipaddress.ip_address("127.0.0.1" if bound == "localhost" else bound)
        self._port = port
        self._everywhere = address.is_unspecified
        own = {_literal(text) for text in (str(address), *local_addresses)}
        if address.is_loopback:
            own.update(_LOOPBACK_NAMES)
        elif self._everywhere:
            own.update(("127.0.0.1", "[::1]"))
            # A browser gets to a local port by 0.0.0.0, so it is never a name of ours.
            own.discard(_literal(str(address)))
        self._hosts = {_Authority(host, port) for host in own}
        for entry in allowed_hosts:
            self._hosts.update(_listed_host(entry, port))

    def check(
        self,
        values: Sequence[bytes | str],
        *,
        scheme: str = "http",
        target_authority: bytes | str | None = None,
        local_address: str | None = None,
    ) -> Origin:
        """
        Judge the Host headers of a request; see `check_request`.

        Returns:
            The gateway's origin as this request names it.

        Raises:
            Refused: 400 for a malformed Host, 421 for one that is not listed.
        """
        own = _parse_host(values, scheme)
        if own is None:
            raise Refused(400, "the request needs exactly one well-formed Host")
        if target_authority is not None and _parse_host((target_authority,), scheme) != own:
            raise Refused(400, "the request's target and its Host disagree")
        if not self._answers(own, local_address):
            raise Refused(
                421, "the gateway does not answer to this Host; add it to origins.allowed_hosts"
            )
        return own

    def _answers(self, own: Origin, local_address: str | None) -> bool:
        scheme, host, port = own
        if _Authority(host, port) in self._hosts or _Authority(host, _ANY_PORT) in self._hosts:
            return True
        if port == _DEFAULT_PORTS.get(scheme) and _Authority(host, None) in self._hosts:
            return True
        return (
            self._everywhere
            and local_address is not None
            and port == self._port
            and host == _literal(local_address)
        )


def _parse_host(values: Sequence[bytes | str], scheme: str) -> Origin | None:
    value = _single(values)
    authority = None if value is None else _parse_authority(value)
    if authority is None:
        return None
    return Origin(scheme, authority.host, authority.port or _DEFAULT_PORTS.get(scheme))


@lru_cache(256)
def _literal(address: str) -> str:
    """Write an address as it stands in a URL."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or f"[{parsed}]")
    return str(parsed)


def _listed_host(entry: str, port: int) -> list[_Authority]:
    match = _match_listed_host(entry)
    host = _canonical_host(match[1]) if match else None
    listed = _port(match[2]) if match and match[2] != "*" else _ANY_PORT
    if host is None or listed == -1:
        raise ConfigError(
            f"origins.allowed_hosts: {entry!r} is not a host: write name, name:port or name:*"
        )
    if listed is None:
        return [_Authority(host, None), _Authority(host, port)]
    return [_Authority(host, listed)]


def check_request(
    hosts: HostPolicy,
    origins: OriginPolicy,
    *,
    host: Sequence[bytes | str],
    origin: Sequence[bytes | str],
    scheme: str = "http",
    target_authority: bytes | str | None = None,
    local_address: str | None = None,
    sec_fetch_site: bool = False,
    ambient_credential: bool = False,
) -> None:
    """
    Judge a WebSocket upgrade, or an HTTP request that changes something.

    Reading a page needs only `HostPolicy.check`: browsers send no Origin then.

    Args:
        hosts: Under which names the gateway answers.
        origins: Which pages may ask.
        host: The values of all Host headers, as received; or the one forwarded
            host, where a trusted proxy's word stands for it.
        origin: The values of all Origin headers, as received.
        scheme: ``http`` or ``https``, as the client used it.
        target_authority: The authority of an absolute-form request target.
        local_address: The address that the peer connected to. It counts as our
            own if the gateway listens on every address.
        sec_fetch_site: Whether any Sec-Fetch-Site header came.
        ambient_credential: Whether the request carries a cookie, a proxy's
            identity or a client certificate.

    Raises:
        Refused: With the status of the first rule that the request breaks.
    """
    own = hosts.check(
        host, scheme=scheme, target_authority=target_authority, local_address=local_address
    )
    origins.check(origin, own, sec_fetch_site=sec_fetch_site, ambient_credential=ambient_credential)


@lru_cache(64)
def _patterns(allowed_origins: tuple[str, ...]) -> frozenset[Origin]:
    return frozenset(map(_parse_pattern, allowed_origins))


def is_origin_allowed(origin: str | None, allowed_origins: Sequence[str]) -> bool:
    """
    Whether a list of patterns admits an Origin, whatever else the request holds.

    `check_request` is what protects a gateway: it also looks at the Host and
    knows when a missing Origin is suspicious.

    Args:
        origin: The header's value. None stands for no header, as clients that
            are not browsers send it, and is allowed: they sign in with a token.
        allowed_origins: Patterns as `OriginPolicy` takes them.

    Raises:
        ConfigError: A pattern is malformed; ``*`` is.
    """
    patterns = _patterns(tuple(allowed_origins))
    if origin is None:
        return True
    parsed = _parse_origin(origin) if len(origin) <= MAX_ORIGIN else None
    return parsed is not None and _matches(patterns, parsed)
