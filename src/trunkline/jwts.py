"""
Sign-in with the tokens of an identity provider (JWT, RFC 7519 and 8725).

A library checks the signature, with the one algorithm that the configuration
fixes for a key. What the claims must be is checked here, strictly: a claim of
another type than it should have is refused, never read as something near it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, get_args

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from jwt import PyJWS, PyJWTError

from trunkline.auth import Credential
from trunkline.clients import Identity
from trunkline.config import JwtConfig, JwtKeyConfig, SignatureAlgorithm
from trunkline.errors import ConfigError
from trunkline.jwks import MAX_KID, KeySet, VerifyKey, algorithms_of
from trunkline.messages import Role
from trunkline.patterns import valid_pattern
from trunkline.rights import ALL_SCOPES
from trunkline.users import RESERVED

MAX_TOKEN = 8 * 1024
"""Bytes of a token."""

LEEWAY = 60.0
"""Seconds by which the clocks of the provider and of the gateway may differ."""

MAX_TIME = 1e11
"""Seconds since the epoch that are still a time."""

MAX_PATTERNS = 64
"""Patterns of sessions, or of agents, in one token."""

RESERVED_USERS = RESERVED | {"system", "anonymous"}
"""Users that no token can stand for."""

_HASH_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_ROLES = frozenset[Role](get_args(Role))
_ALGORITHMS = frozenset[str](get_args(SignatureAlgorithm))
_TYPES = frozenset({"jwt", "at+jwt"})
_LEADS_ELSEWHERE = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip"})

_is_token = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII).fullmatch
_is_user = re.compile(r"[A-Za-z0-9._:@|+-]{1,128}", re.ASCII).fullmatch

_jws = PyJWS(algorithms=sorted(_ALGORITHMS), options={"enforce_minimum_key_length": True})

log = structlog.get_logger(__name__)


class Refusal(Exception):
    """A token is not good; says why, without anything that stands in it."""


class Head(NamedTuple):
    """What a token's head says, before anything in it is proven."""

    algorithm: str
    kid: str | None


class JwtVerifier:
    """
    Knows the tokens of one issuer; an `Authenticator`.

    Args:
        config: Whose tokens are taken, and what their claims mean.
        clock: Seconds since the epoch.
        monotonic: Seconds, from any start; fetches of keys go by it.

    Raises:
        ConfigError: A key cannot be read, is weak, or is not one for its algorithm.
    """

    def __init__(
        self,
        config: JwtConfig,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._clock = clock
        self._keys = tuple(_read_key(n, key) for n, key in enumerate(config.keys))
        self._jwks: KeySet | None = None
        if config.jwks_url is not None:
            self._jwks = KeySet(
                config.jwks_url,
                config.jwks_algorithms,
                max_age=config.jwks_max_age,
                ca_file=config.jwks_ca_file,
                allow_private=config.allow_private_jwks,
                clock=monotonic,
            )

    def authenticate(self, credential: Credential) -> Identity | Awaitable[Identity | None] | None:
        """Return whose a token is; None if it is wrong. Waits only where a key has to be fetched."""
        token = credential.token
        if token is None:
            return None
        try:
            head = read_head(token)
        except Refusal as refusal:
            _note(refusal)
            return None
        keys = self._find(head)
        if keys or self._jwks is None or self._names_own_key(head) or not self._jwks.may_ask:
            return self._judge(token, head, keys)
        return self._judge_later(token, head, self._jwks)

    def _names_own_key(self, head: Head) -> bool:
        return head.kid is not None and any(key.kid == head.kid for key in self._keys)

    def _find(self, head: Head) -> list[VerifyKey]:
        if self._names_own_key(head):
            named = (key for key in self._keys if key.kid == head.kid)
            return [key for key in named if head.algorithm in key.algorithms]
        keys: list[VerifyKey] = []
        if head.kid is None or self._jwks is None:
            keys = [k for k in self._keys if k.kid is None and head.algorithm in k.algorithms]
        if self._jwks is not None:
            keys += self._jwks.find(head.kid, head.algorithm)
            if keys and self._jwks.stale and self._jwks.may_ask:
                self._jwks.refresh()  # for those who come later; these keys still count
        return keys

    async def _judge_later(self, token: str, head: Head, jwks: KeySet) -> Identity | None:
        # Shared: who gives up waiting must not take the keys from the others.
        await asyncio.shield(jwks.refresh())
        return self._judge(token, head, self._find(head))

    def _judge(self, token: str, head: Head, keys: list[VerifyKey]) -> Identity | None:
        try:
            if not keys:
                raise Refusal("no key is known for it")
            return self._identify(_verified(token, head, keys))
        except Refusal as refusal:
            _note(refusal)
            return None

    # The claims

    def _identify(self, claims: dict[str, Any]) -> Identity:
        config = self._config
        if claims.get("iss") != config.issuer:
            raise Refusal("iss is not the configured issuer")
        self._check_audience(claims.get("aud"))
        ends = self._check_times(claims)
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise Refusal("sub is not a string, or empty")
        roles = self._words(claims, config.roles_claim)
        known = _ROLES.intersection(config.default_roles if roles is None else roles)
        if not known:
            raise Refusal("it grants no role: see auth.jwt.roles_claim and default_roles")
        return Identity(
            user_id=self._user(claims),
            roles=known,
            scopes=ALL_SCOPES.intersection(self._words(claims, config.scopes_claim) or ()),
            expires_at=round((ends + LEEWAY) * 1000),
            session_patterns=self._patterns(claims, config.sessions_claim, config.default_sessions),
            agent_patterns=self._patterns(claims, config.agents_claim, config.default_agents),
        )

    def _check_audience(self, audience: object) -> None:
        audiences = [audience] if isinstance(audience, str) else audience
        if not isinstance(audiences, list) or not all(isinstance(a, str) for a in audiences):
            raise Refusal("aud is neither a string nor a list of strings")
        if self._config.audience not in audiences:
            raise Refusal("aud does not hold the configured audience")

    def _check_times(self, claims: dict[str, Any]) -> float:
        """Judge a token's times; return its end."""
        now = self._clock()
        ends = _time(claims, "exp")
        if ends is None:
            raise Refusal("exp is absent")
        if ends + LEEWAY <= now:
            raise Refusal("it has expired")
        begins, issued = _time(claims, "nbf"), _time(claims, "iat")
        if max(begins or 0.0, issued or 0.0) - LEEWAY > now:
            raise Refusal("nbf or iat lies ahead: compare the clocks")
        start = now if issued is None else issued
        if issued is not None and ends <= issued:
            raise Refusal("exp does not lie behind iat")
        if ends - start > self._config.max_lifetime:
            raise Refusal("it lives longer than auth.jwt.max_lifetime")
        return ends

    def _user(self, claims: dict[str, Any]) -> str:
        name = self._claim(claims, self._config.user_claim)
        if not isinstance(name, str) or not _is_user(name):
            raise Refusal("its user is not 1 to 128 letters, digits or ._:@|+-")
        user = self._config.user_prefix + name
        if user.casefold() in RESERVED_USERS:
            raise Refusal("its user is a reserved one")
        return user

    def _patterns(
        self, claims: dict[str, Any], name: str, default: tuple[str, ...]
    ) -> tuple[str, ...]:
        words = self._words(claims, name)
        if words is None:
            return default
        if len(words) > MAX_PATTERNS or not all(map(valid_pattern, words)):
            raise Refusal(f"the claim {name} is no list of at most {MAX_PATTERNS} patterns of ids")
        return tuple(words)

    def _words(self, claims: dict[str, Any], name: str) -> list[str] | None:
        """Return a claim that is a list of strings, or a string of words; None if it is absent."""
        value = self._claim(claims, name)
        if value is _ABSENT:
            return None
        words = value.split(" ") if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise Refusal(f"the claim {name} is neither a list of strings nor a string")
        return [word for word in words if word]

    @staticmethod
    def _claim(claims: dict[str, Any], name: str) -> Any:
        """Return a claim by its name; if there is none so called, by the steps between its dots."""
        if name in claims:
            return claims[name]
        value: Any = claims
        for step in name.split("."):
            if not isinstance(value, dict) or step not in value:
                return _ABSENT
            value = value[step]
        return value


_ABSENT = object()


def read_head(token: str) -> Head:
    """
    Read the head of a token, before its signature can be checked.

    Raises:
        Refusal: It is too long, not of the form, or asks for what is not done here.
    """
    if len(token) > MAX_TOKEN or not _is_token(token):
        raise Refusal("it is too long, or not three words of base64url")
    head = _read_object(_decode(token.partition(".")[0]))
    if not _LEADS_ELSEWHERE.isdisjoint(head):
        raise Refusal("its head leads to other keys or rules (jku, jwk, x5u, x5c, crit, b64, zip)")
    algorithm, kid, kind = head.get("alg"), head.get("kid"), head.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise Refusal("its algorithm is not one that signs")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise Refusal("its typ is not JWT")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        raise Refusal(f"its kid is not a string of 1 to {MAX_KID} characters")
    return Head(algorithm, kid)


def _verified(token: str, head: Head, keys: list[VerifyKey]) -> dict[str, Any]:
    """Return the claims of a token that one of the keys has signed."""
    for key in keys:
        try:
            found = _jws.decode_complete(token, key.key, algorithms=[head.algorithm])
        except (PyJWTError, ValueError, TypeError):
            continue
        return _read_object(found["payload"])
    raise Refusal("its signature is wrong")


def _decode(word: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    except binascii.Error:
        raise Refusal("it is not base64url") from None


def _read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object that can be read in one way only."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_only_once, parse_constant=_no_number
        )
    except (ValueError, RecursionError):
        raise Refusal("it is not JSON, or says something twice") from None
    if not isinstance(value, dict):
        raise Refusal("it is not a JSON object")
    return value


def _only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return a claim that is a time, in seconds since the epoch; None if it is absent."""
    value = claims.get(name, _ABSENT)
    if value is _ABSENT:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(f"{name} is not a number")
    if not 0 <= value < MAX_TIME:  # neither is infinity, nor a number that no float holds
        raise Refusal(f"{name} is not a time")
    return float(value)


def _note(refusal: Refusal) -> None:
    log.info("a token of the identity provider was refused", why=str(refusal))


# Keys of the configuration


def _read_key(number: int, config: JwtKeyConfig) -> VerifyKey:
    place = f"auth.jwt.keys[{number}]"
    symmetric = config.algorithm in _HASH_BYTES
    given, other = config.secret, config.public_key
    if not symmetric:
        given, other = other, given
    kind, wrong = ("secret", "public_key") if symmetric else ("public_key", "secret")
    if other is not None:
        raise ConfigError(f"{place}: {config.algorithm} takes a {kind}, not a {wrong}")
    if given is None:
        raise ConfigError(f"{place}: {config.algorithm} needs {kind} (or {kind}_file)")
    key: Any
    if symmetric:
        key = _checked_secret(place, config.algorithm, given.encode())
    else:
        key = _checked_public_key(place, config.algorithm, given.encode())
    return VerifyKey(config.kid, frozenset({config.algorithm}), key)


def _checked_secret(place: str, algorithm: str, secret: bytes) -> bytes:
    if _is_key_of_another_kind(secret):
        # Whoever knows the public key could sign with it.
        raise ConfigError(f"{place}: a key or certificate is no secret: use public_key")
    if len(secret) < _HASH_BYTES[algorithm]:
        raise ConfigError(f"{place}: {algorithm} needs a secret of {_HASH_BYTES[algorithm]} bytes")
    return secret


def _is_key_of_another_kind(secret: bytes) -> bool:
    text = secret.strip()
    if text.startswith((b"-----BEGIN", b"---- BEGIN", b"ssh-", b"ecdsa-sha2-", b"{")):
        return True
    try:
        load_der_public_key(base64.b64decode(b"".join(text.split()), validate=True))
    except Exception:  # many kinds of errors, and each says that it is no key
        return False
    return True


def _checked_public_key(place: str, algorithm: str, pem: bytes) -> Any:
    if b"PRIVATE KEY" in pem:
        raise ConfigError(
            f"{place}: the private key belongs to the issuer alone: use the public key"
        )
    try:
        if b"BEGIN CERTIFICATE" in pem:
            key: Any = x509.load_pem_x509_certificate(pem).public_key()
        else:
            key = load_pem_public_key(pem)
    except Exception:  # a whole family of errors, by what is wrong in the file
        raise ConfigError(f"{place}: this is no public key or certificate in PEM") from None
    if algorithm not in algorithms_of(key):
        raise ConfigError(f"{place}: the key is too weak, or not one for {algorithm}")
    return key
