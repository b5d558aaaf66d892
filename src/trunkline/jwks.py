"""
The public keys of an identity provider, from one fixed https address (JWKS, RFC 7517).

Nothing that a token says reaches the address, and nothing that a stranger sends
makes more than one request in half a minute. Keys that were once there stay until
the provider gives others: an outage, or an answer without keys, locks nobody out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import httpx
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt import PyJWK

from trunkline.errors import ConfigError

FETCH_TIMEOUT = 3.0
"""Seconds that a fetch may take, the name's look-up included."""

MAX_ANSWER = 256 * 1024
"""Bytes of the provider's answer."""

MAX_KEYS = 100
"""Keys that are read of one answer; what follows is left out."""

MIN_INTERVAL = 30.0
"""Seconds from one fetch to the next, whatever happens."""

MAX_INTERVAL = 600.0
"""Seconds between fetches, however many have failed in a row."""

MAX_KID = 128
"""Characters of a key's name."""

_RSA_BITS = range(2048, 8192 + 1)
_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PUBLIC_PARTS = ("kty", "crv", "n", "e", "x", "y")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

log = structlog.get_logger(__name__)


class VerifyKey(NamedTuple):
    """A key that signatures are checked with."""

    kid: str | None
    """What tokens call it by."""
    algorithms: frozenset[str]
    """All that it may be used with; one, unless the provider leaves it open."""
    key: Any
    """The secret, or the public key as cryptography has it."""


class JwksError(Exception):
    """The keys could not be had; says why, in words for the operator's log."""


def algorithms_of(key: object) -> frozenset[str]:
    """Return what a public key can be used with; nothing for one that is weak or of another kind."""
    match key:
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS:
            return _RSA_ALGORITHMS
        case ec.EllipticCurvePublicKey() if key.curve.name in _EC_ALGORITHMS:
            return frozenset({_EC_ALGORITHMS[key.curve.name]})
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return frozenset({"EdDSA"})
    return frozenset()


class KeySet:
    """
    The keys at one address, fetched when they are first needed and kept fresh.

    Args:
        url: Where they are; https.
        algorithms: What they may be used with.
        max_age: Seconds after which they are fetched anew.
        ca_file: A PEM file with certificates to trust beside the usual ones.
        allow_private: Whether the host may be within private networks, or be
            this machine by plain http.
        clock: Seconds, from any start.

    Raises:
        ConfigError: The address is not one that keys may come from.
    """

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        *,
        max_age: float = 3600.0,
        ca_file: str | None = None,
        allow_private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = _checked_url(url, allow_private)
        self._host = self._url.raw_host.decode("ascii")
        self._algorithms = frozenset(algorithms)
        self._max_age = max_age
        self._ca_file = ca_file
        self._allow_private = allow_private
        self._clock = clock
        self._keys: tuple[VerifyKey, ...] = ()
        self._fetched_at: float | None = None
        self._next_at: float | None = None
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None

    def find(self, kid: str | None, algorithm: str) -> list[VerifyKey]:
        """Return the keys of a name; a token that names none can only mean the only key there is."""
        keys = self._keys if kid is not None or len(self._keys) == 1 else ()
        return [k for k in keys if algorithm in k.algorithms and kid in (None, k.kid)]

    @property
    def stale(self) -> bool:
        """Whether the keys are to be fetched, or fetched anew."""
        return self._fetched_at is None or self._clock() - self._fetched_at >= self._max_age

    @property
    def may_ask(self) -> bool:
        """Whether a fetch is going on, or may begin now."""
        return self._fetching is not None or self._next_at is None or self._clock() >= self._next_at

    def refresh(self) -> asyncio.Task[None]:
        """
        Fetch the keys, in a task that all who ask meanwhile share and that never fails.

        Only while `may_ask`.
        """
        if self._fetching is None:
            self._next_at = self._clock() + MIN_INTERVAL
            self._fetching = asyncio.get_running_loop().create_task(self._refresh())
        return self._fetching

    async def _refresh(self) -> None:
        try:
            self._keys = self._read(await self._fetch())
            self._fetched_at = self._clock()
            self._failures = 0
        except (JwksError, httpx.HTTPError, OSError, TimeoutError) as error:
            self._back_off(str(error) or type(error).__name__)
        except Exception as error:
            log.exception("the keys of tokens could not be read", url=str(self._url))
            self._back_off(type(error).__name__)
        finally:
            self._fetching = None

    def _back_off(self, why: str) -> None:
        wait = min(MIN_INTERVAL * 2**self._failures, MAX_INTERVAL)
        self._failures = min(self._failures + 1, 16)
        self._next_at = self._clock() + wait
        log.warning(
            "the keys of tokens cannot be fetched: those that are known stay",
            url=str(self._url),
            why=why,
            known=len(self._keys),
            again_after=wait,
        )

    # The answer

    def _read(self, answer: bytes) -> tuple[VerifyKey, ...]:
        try:
            data = json.loads(answer)
        except (ValueError, RecursionError):
            raise JwksError("the answer is not JSON") from None
        entries = data.get("keys") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise JwksError("the answer is not a set of keys")
        keys = tuple(self._read_keys(entries[:MAX_KEYS]))
        if not keys:
            raise JwksError("the answer holds no key that may be used")
        return keys

    def _read_keys(self, entries: list[Any]) -> Iterator[VerifyKey]:
        for entry in entries:
            if isinstance(entry, dict) and (key := self._read_key(entry)) is not None:
                yield key

    def _read_key(self, entry: dict[str, Any]) -> VerifyKey | None:
        kid, use, operations = (entry.get(name) for name in ("kid", "use", "key_ops"))
        named = kid is None or (isinstance(kid, str) and 0 < len(kid) <= MAX_KID)
        if not named or use not in (None, "sig") or "d" in entry or entry.get("kty") == "oct":
            return None
        if operations is not None and not (isinstance(operations, list) and "verify" in operations):
            return None
        try:
            key = PyJWK({name: entry[name] for name in _PUBLIC_PARTS if name in entry}).key
        except Exception:  # a stranger's data: no field need be there, or of its type
            return None
        algorithms = algorithms_of(key) & self._algorithms
        if entry.get("alg") is not None:
            algorithms = frozenset(a for a in algorithms if a == entry["alg"])
        return VerifyKey(kid, algorithms, key) if algorithms else None

    # The request

    async def _fetch(self) -> bytes:
        async with asyncio.timeout(FETCH_TIMEOUT):
            addresses = await self._addresses()
            trust = await asyncio.to_thread(self._trust)
            async with httpx.AsyncClient(
                verify=trust, trust_env=False, timeout=FETCH_TIMEOUT
            ) as client:
                for last, address in enumerate(addresses, 1 - len(addresses)):
                    try:
                        return await self._ask(client, address)
                    except httpx.ConnectError:
                        if last == 0:
                            raise
        raise JwksError("the host has no address")

    def _trust(self) -> Any:
        context = httpx.create_ssl_context(trust_env=False)
        if self._ca_file is not None:
            context.load_verify_locations(self._ca_file)
        return context

    async def _addresses(self) -> list[str]:
        """Look the host up, and refuse it unless all that it means is public."""
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._url.port or 443)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_private and not all(map(is_public, addresses)):
            raise JwksError("the host is within a private network: see auth.jwt.allow_private_jwks")
        return addresses[:4]

    async def _ask(self, client: httpx.AsyncClient, address: str) -> bytes:
        # The address that was judged is the one that is asked, under the host's name.
        request = client.build_request(
            "GET",
            self._url.copy_with(host=address),
            headers={
                "Host": self._url.netloc.decode("ascii"),
                "Accept": "application/jwk-set+json, application/json",
                "Accept-Encoding": "identity",
            },
            extensions={"sni_hostname": self._host, "timeout": _TIMEOUTS},
        )
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            if response.status_code != 200:
                raise JwksError(f"the answer has status {response.status_code}, not 200")
            return await _bounded(response)
        finally:
            await response.aclose()


_TIMEOUTS = httpx.Timeout(FETCH_TIMEOUT).as_dict()


async def _bounded(response: httpx.Response) -> bytes:
    answer = bytearray()
    async for piece in response.aiter_raw():
        answer += piece
        if len(answer) > MAX_ANSWER:
            raise JwksError(f"the answer has more than {MAX_ANSWER} bytes")
    return bytes(answer)


def _checked_url(text: str, allow_private: bool) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ConfigError("auth.jwt.jwks_url is not a URL") from None
    if not url.host or url.userinfo or url.fragment:
        raise ConfigError(
            "auth.jwt.jwks_url must be https://host/path, without a user or a fragment"
        )
    plain = allow_private and url.scheme == "http" and _is_this_machine(url.host)
    if url.scheme != "https" and not plain:
        raise ConfigError("auth.jwt.jwks_url must begin with https://")
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet, and so does the IPv4 address in it, if any."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast
