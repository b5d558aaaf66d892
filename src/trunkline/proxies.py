"""
Who really asks, when reverse proxies stand in between.

Anybody can send forwarding headers, so only those of a trusted peer are read,
and of a chain only what trusted proxies wrote: it is walked from the right, and
the first address that is not a trusted proxy's is the client. What stands left
of it came from the client, and is not even parsed. No header ever makes a
request local; any forwarding header makes it not local.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from trunkline.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = Sequence[tuple[bytes, bytes]]

UNIX = "unix"
"""How the peer of a Unix socket is named."""

MAX_HOPS = 32
"""Elements of a forwarding header, its lines joined."""
MAX_CHAIN = 2048
"""Bytes of a forwarding header, its lines joined."""
MAX_USER = 256
"""Bytes of an identity header."""

_MAX_PEERS = 4096
"""Peers whose address is remembered in canonical form."""

_FOR = b"x-forwarded-for"
_PROTO = b"x-forwarded-proto"
_HOST = b"x-forwarded-host"
_FORWARDED = b"forwarded"

# Only the chosen family is ever read; the rest shows that a proxy was there.
_EVIDENCE = frozenset(
    b"""forwarded forwarded-for client-ip cdn-loop cf-connecting-ip cf-connecting-ipv6
    cf-pseudo-ipv4 cf-ray cf-visitor fastly-client-ip fly-client-ip incap-client-ip
    proxy-client-ip remote-addr tailscale-user-login tailscale-user-name
    tailscale-user-profile-pic true-client-ip via wl-proxy-client-ip x-appengine-user-ip
    x-arr-clientip x-azure-clientip x-client-ip x-cluster-client-ip
    x-envoy-external-address x-host x-nf-client-connection-ip x-original-forwarded-for
    x-original-host x-proxyuser-ip x-real-ip x-real-port x-remote-addr x-remote-ip
    x-sucuri-clientip x-vercel-forwarded-for""".split()
)

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

_match_cidr = re.compile(r"[0-9A-Fa-f:.]+(?:/(?:0|[1-9][0-9]{0,2}))?").fullmatch
_match_node = re.compile(r"([0-9.]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(?::([0-9]{1,5}))?").fullmatch

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_PAIR = rf"({_TOKEN})=({_TOKEN}|{_QUOTED})"
_is_token = re.compile(_TOKEN).fullmatch
_is_visible = re.compile(r"[\x21-\x7e]+").fullmatch
_match_pair = re.compile(rf"[ \t]*(?:{_PAIR})?[ \t]*(;|\Z)").match
_unescape = re.compile(r"\\(.)").sub


class BadForwarding(Exception):
    """
    A request must be answered with an HTTP error, for what its proxies said.

    Args:
        status: The HTTP status.
        reason: A sentence for people that names what to change.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(status, reason)


class Attribution(NamedTuple):
    """Where a request comes from."""

    client_ip: str
    """The client's address in canonical spelling; the peer's if no proxy told; or ``unix``."""
    local: bool
    """Whether the request comes from this machine, with no proxy in between."""
    attributed: bool
    """Whether `client_ip` is the client's own; if not, others share it."""
    forwarded: bool
    """Whether any forwarding header came, believed or not."""
    scheme: str | None
    """``http`` or ``https`` as a trusted proxy tells it."""
    host: str | None
    """The Host that a trusted proxy got; it must still pass the list of hosts."""
    user: str | None
    """Whom a trusted proxy signed in."""
    key: str
    """What to count under. If not `attributed`, never exempt it and never reset its count."""


class _Peer(NamedTuple):
    """What a peer's address alone decides."""

    trusted: bool
    asserts_users: bool
    plain: Attribution
    """If no forwarding header came."""
    unattributed: Attribution
    """If one came, and told nothing that is believed."""


class _Hop(NamedTuple):
    address: Address
    parameters: Mapping[str, str]


@lru_cache(4096)
def _parse(text: str) -> Address:
    """
    Read an address; an IPv4 address in IPv6 clothes becomes IPv4.

    Raises:
        ValueError: It is not an address.
    """
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _peer_address(peer: str) -> Address:
    return _parse(peer.partition("%")[0])


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's own; what is no address is not."""
    try:
        return _peer_address(address).is_loopback
    except ValueError:
        return False


def limiter_key(address: str) -> str:
    """
    Return what to count an address under, the same for all its spellings.

    An IPv4 address stands for itself. An IPv6 address stands for its /64, the
    least that one customer gets.

    Raises:
        ValueError: It is neither an address nor ``unix``.
    """
    return address if address == UNIX else _key(_peer_address(address))


def _key(address: Address) -> str:
    if address.version == 4:
        return str(address)
    network = int(address) >> 64 << 64
    return f"{ipaddress.IPv6Address(network)}/64"


class ProxyPolicy:
    """
    Decides whose word about a request's origin counts.

    Args:
        trusted: Addresses and strict CIDRs of proxies.
        family: The one family of forwarding headers that trusted proxies set;
            ``off`` believes none.
        use_forwarded_host: Whether to read the forwarded host.
        user_header: The header in which trusted proxies name the user.
        allow_loopback_identity: Believe that header from loopback and Unix
            peers too, where every program on the machine can send it.
        trust_unix_socket: Whether peers of a Unix socket are trusted proxies.
        auth_required: Whether clients must sign in. If not, a request that
            came through an unknown proxy is refused: it could be anybody's.

    Raises:
        ConfigError: An entry of `trusted` is no strict CIDR or covers
            everybody, or `user_header` cannot be a header.
    """

    def __init__(
        self,
        trusted: Sequence[str] = (),
        *,
        family: Literal["x-forwarded", "forwarded", "off"] = "x-forwarded",
        use_forwarded_host: bool = False,
        user_header: str | None = None,
        allow_loopback_identity: bool = False,
        trust_unix_socket: bool = False,
        auth_required: bool = True,
    ) -> None:
        self._networks = tuple(map(_parse_network, trusted))
        self._read = {"x-forwarded": self._x_forwarded, "forwarded": self._forwarded}.get(family)
        self._use_host = use_forwarded_host
        self._user_header = None if user_header is None else _header_name(user_header)
        self._allow_loopback_identity = allow_loopback_identity
        self._trust_unix = trust_unix_socket
        self._auth_required = auth_required
        self._evidence = _EVIDENCE | ({self._user_header} if self._user_header else set())
        self._peers: dict[str, _Peer] = {}

    def attribute(self, peer: str, headers: Headers) -> Attribution:
        """
        Find out where a request comes from.

        Args:
            peer: The address at the other end of the connection, or ``unix``.
            headers: All headers in the order in which they came.

        Raises:
            BadForwarding: 400 for headers of a trusted proxy that make no sense,
                401 for a missing identity, 403 for an identity or a request
                that the peer may not bring.
            ValueError: `peer` is neither an address nor ``unix``.
        """
        known = self._peers.get(peer) or self._meet(peer)
        if not self._has_evidence(headers):
            return self._identified(known, known.plain, headers) if known.trusted else known.plain
        if known.trusted:
            return self._identified(known, self._told(known, headers), headers)
        if not self._auth_required:
            raise BadForwarding(
                403,
                "the request came through a proxy that is not in proxies.trusted, "
                "and auth.mode = none",
            )
        return known.unattributed

    def _has_evidence(self, headers: Headers) -> bool:
        evidence = self._evidence
        for name, _ in headers:
            name = name.lower()
            if name in evidence or name.startswith(b"x-forwarded"):
                return True
        return False

    def _meet(self, peer: str) -> _Peer:
        """Work out what a peer's address alone decides, and remember it."""
        if len(self._peers) >= _MAX_PEERS:
            self._peers.clear()
        address = None if peer == UNIX else _peer_address(peer)
        trusted = self._trust_unix if address is None else self._trusts(address)
        near = address is None or address.is_loopback
        plain = Attribution(
            client_ip=UNIX if address is None else str(address),
            local=near and not trusted,
            attributed=not trusted,
            forwarded=False,
            scheme=None,
            host=None,
            user=None,
            # Many clients share a proxy: their failures must not lock out a user
            # of the same machine. A remote peer that nobody vouches for has one
            # count, or a header would get it a second one.
            key=("via " if trusted else "") + limiter_key(peer),
        )
        unattributed = plain._replace(
            local=False,
            attributed=False,
            forwarded=True,
            key=("via " if trusted or near else "") + limiter_key(peer),
        )
        asserts_users = trusted and (self._allow_loopback_identity or not near)
        known = self._peers[peer] = _Peer(trusted, asserts_users, plain, unattributed)
        return known

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _told(self, known: _Peer, headers: Headers) -> Attribution:
        """Believe a trusted peer's forwarding headers."""
        if self._read is None:
            return known.unattributed
        address, scheme, host = self._read(headers)
        told = known.unattributed._replace(scheme=scheme, host=host)
        if address is None:
            return told
        return told._replace(client_ip=str(address), attributed=True, key=_key(address))

    def _x_forwarded(self, headers: Headers) -> tuple[Address | None, str | None, str | None]:
        chain = _values(headers, _FOR)
        client = self._walk(_elements(chain, _split), _read_hop) if chain else None
        scheme = _one(_values(headers, _PROTO), _scheme)
        host = _one(_values(headers, _HOST), _host) if self._use_host else None
        return client.address if client else None, scheme, host

    def _forwarded(self, headers: Headers) -> tuple[Address | None, str | None, str | None]:
        chain = _values(headers, _FORWARDED)
        if not chain:
            return None, None, None
        client = self._walk(_elements(chain, _split_quoted), _read_element)
        scheme, host = client.parameters.get("proto"), client.parameters.get("host")
        return (
            client.address,
            None if scheme is None else _scheme(scheme),
            None if host is None or not self._use_host else _host(host),
        )

    def _walk(self, elements: Iterable[str], read: Callable[[str], _Hop]) -> _Hop:
        """Return the first hop from the right that is no trusted proxy, else the leftmost."""
        for element in elements:
            hop = read(element)
            if not self._trusts(hop.address):
                break
        return hop

    def _identified(self, known: _Peer, told: Attribution, headers: Headers) -> Attribution:
        """Add the user whom a trusted peer names."""
        if self._user_header is None:
            return told
        values = _values(headers, self._user_header)
        if known.asserts_users:
            return told._replace(user=_read_user(values))
        if values:
            raise BadForwarding(
                403, "a loopback peer names a user, but proxies.allow_loopback_identity is off"
            )
        return told


def _parse_network(entry: str) -> Network:
    """
    Read one entry of ``trusted``.

    Raises:
        ConfigError: It is not a strict CIDR, or trusts everybody.
    """
    if not _match_cidr(entry):
        raise _bad_network(entry, "write an address or a CIDR such as 10.0.0.0/8")
    try:
        network = ipaddress.ip_network(entry)
    except ValueError as error:
        raise _bad_network(entry, str(error)) from None
    if network.prefixlen == 0:
        raise _bad_network(entry, "it would trust everybody")
    if getattr(network.network_address, "ipv4_mapped", None) is not None:
        raise _bad_network(entry, "write the IPv4 network")
    return network


def _bad_network(entry: str, problem: str) -> ConfigError:
    return ConfigError(f"proxies.trusted: {entry!r} cannot be trusted: {problem}")


def _header_name(name: str) -> bytes:
    if not _is_token(name):
        raise ConfigError(f"proxies.user_header: {name!r} is not a header's name")
    return name.lower().encode()


def _values(headers: Headers, wanted: bytes) -> list[str]:
    """Return all values of a header, in order; Latin-1 reads every byte."""
    return [value.decode("latin-1") for name, value in headers if name.lower() == wanted]


def _split(chain: str) -> list[str]:
    """Split at commas; the last element comes first."""
    return chain.split(",")[::-1]


def _split_quoted(chain: str) -> list[str]:
    """
    Split at commas outside quoted strings; the last element comes first.

    It goes from the right, so that a quote that the client left open cannot
    swallow what a proxy has appended.
    """
    elements, end, quoted = [], len(chain), False
    for at in range(len(chain) - 1, -1, -1):
        if chain[at] == '"':
            before = chain[:at]
            quoted ^= (at - len(before.rstrip("\\"))) % 2 == 0
        elif chain[at] == "," and not quoted:
            elements.append(chain[at + 1 : end])
            end = at
    return [*elements, chain[:end]]


def _elements(lines: list[str], split: Callable[[str], list[str]]) -> list[str]:
    """
    Return a forwarding header's elements, the last one first.

    Raises:
        BadForwarding: There is too much of it.
    """
    chain = ",".join(lines)
    if len(chain) > MAX_CHAIN:
        raise BadForwarding(400, f"a forwarding header is longer than {MAX_CHAIN} bytes")
    elements = split(chain)
    if len(elements) > MAX_HOPS:
        raise BadForwarding(400, f"a forwarding header has more than {MAX_HOPS} elements")
    return [element.strip(" \t") for element in elements]


def _read_node(node: str) -> Address:
    """
    Read an address, IPv6 in brackets, maybe with a port.

    Raises:
        BadForwarding: It is something else.
    """
    match = _match_node(node)
    try:
        if match is None or int(match[2] or 0) > 65535:
            raise ValueError
        return _parse(match[1].strip("[]"))
    except ValueError:
        raise BadForwarding(400, "a trusted proxy sent a hop that is not an address") from None


def _read_hop(element: str) -> _Hop:
    """Read one element of X-Forwarded-For, where IPv6 may stand without brackets."""
    bare = element.count(":") > 1 and not element.startswith("[")
    return _Hop(_read_node(f"[{element}]" if bare else element), {})


def _read_element(element: str) -> _Hop:
    """Read one element of Forwarded (RFC 7239 section 4)."""
    parameters: dict[str, str] = {}
    at = 0
    while at < len(element):
        match = _match_pair(element, at)
        name = match[1].lower() if match and match[1] else None
        if match is None or name in parameters:
            raise BadForwarding(400, "a trusted proxy sent a malformed Forwarded header")
        if name is not None:
            parameters[name] = _unquote(match[2])
        at = match.end()
    return _Hop(_read_node(parameters.get("for", "")), parameters)


def _unquote(value: str) -> str:
    return _unescape(r"\1", value[1:-1]) if value.startswith('"') else value


def _one(values: list[str], read: Callable[[str], str]) -> str | None:
    """
    Read a header that may be repeated as long as it says the same.

    Raises:
        BadForwarding: It contradicts itself, or is malformed.
    """
    if not values:
        return None
    found = {read(element) for element in _elements(values, _split)}
    if len(found) > 1:
        raise BadForwarding(400, "trusted proxies contradict each other")
    return found.pop()


def _scheme(text: str) -> str:
    scheme = _SCHEMES.get(text.lower())
    if scheme is None:
        raise BadForwarding(400, "a trusted proxy sent an unknown scheme")
    return scheme


def _host(text: str) -> str:
    if not _is_visible(text):
        raise BadForwarding(400, "a trusted proxy sent a malformed host")
    return text.lower()


def _read_user(values: list[str]) -> str:
    """
    Read the identity header, which must come exactly once.

    Raises:
        BadForwarding: 401 if it names nobody, 400 if it makes no sense.
    """
    if len(values) > 1:
        raise BadForwarding(400, "the identity header came more than once")
    user = values[0].strip(" \t") if values else ""
    if not user:
        raise BadForwarding(401, "the proxy in front of the gateway has not signed the user in")
    try:
        name = user.encode("latin-1").decode()
    except UnicodeDecodeError:
        name = "\0"
    if len(user) > MAX_USER or not name.isprintable():
        raise BadForwarding(400, "the identity header is too long or not printable UTF-8")
    return name
