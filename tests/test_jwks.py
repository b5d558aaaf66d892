"""Public keys from one address: how often it is asked, and what is made of the answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from provider import Provider
from structlog.testing import capture_logs
from tokens import AUDIENCE, ISSUER, SECRET, claims, jwk, sign, word

from trunkline import jwks as module
from trunkline.auth import Credential
from trunkline.clients import Identity
from trunkline.config import JwtConfig
from trunkline.errors import ConfigError
from trunkline.jwks import MAX_ANSWER, KeySet, algorithms_of, is_public
from trunkline.jwts import JwtVerifier


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with Provider(tmp_path).serving() as provider:
        yield provider


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key_set(provider: Provider, clock: Clock, **options: Any) -> KeySet:
    options = {"allow_private": True, "ca_file": provider.cert, **options}
    return KeySet(provider.url, {"RS256", "ES256", "EdDSA"}, clock=clock, **options)


def verifier(provider: Provider, clock: Clock, **more: Any) -> JwtVerifier:
    config = JwtConfig(
        issuer=ISSUER,
        audience=AUDIENCE,
        jwks_url=provider.url,
        allow_private_jwks=True,
        jwks_ca_file=provider.cert,
        **more,
    )
    return JwtVerifier(config, monotonic=clock)


async def judge(by: JwtVerifier, token: str) -> Identity | None:
    granted = by.authenticate(Credential(token=token))
    return await granted if isinstance(granted, Awaitable) else granted


class TestFetching:
    async def test_tokens_are_believed_by_the_provider_s_keys(self, provider, clock):
        """The first token fetches the keys over https; later ones need not wait."""
        by = verifier(provider, clock)

        first = await judge(by, sign(claims(), kid="rsa"))
        second = by.authenticate(Credential(token=sign(claims(), "ES256", kid="ec")))

        assert first is not None
        assert isinstance(second, Identity)
        assert provider.asked == 1
        assert provider.hosts == [f"localhost:{provider.port}"]

    async def test_those_who_come_together_share_one_fetch(self, provider, clock):
        """Fifty tokens before the first answer are one request, and all get in."""
        by = verifier(provider, clock)
        provider.gate.clear()

        asking = [asyncio.create_task(judge(by, sign(claims(), kid="rsa"))) for _ in range(50)]
        await asyncio.sleep(0)
        asking[0].cancel()
        provider.gate.set()
        identities = await asyncio.gather(*asking[1:])

        assert all(identities)
        assert provider.asked == 1

    async def test_a_thousand_unknown_names_are_one_request_in_half_a_minute(self, provider, clock):
        """Strangers cannot make the gateway ask, and good tokens pass while they try."""
        by = verifier(provider, clock)
        good, forged = sign(claims(), kid="rsa"), sign(claims(), kid="rsa")
        assert await judge(by, good)
        tokens = [sign(claims(), kid=secrets.token_hex(8)) for _ in range(100)]

        for minute in range(3):
            clock.now += 31
            for token in tokens * 10:
                assert await judge(by, token) is None
            assert provider.asked == minute + 2
            assert await judge(by, forged)

    async def test_good_tokens_pass_while_the_provider_is_down(self, tmp_path, clock):
        """A server that is gone takes no keys away, and is asked ever less often."""
        provider = Provider(tmp_path)
        async with provider.serving():
            by = verifier(provider, clock, jwks_max_age=60)
            assert await judge(by, sign(claims(), kid="rsa"))
        starts = []

        for _ in range(4000):
            clock.now += 1
            jwks = by._jwks
            assert jwks is not None
            if jwks.stale and jwks.may_ask:
                starts.append(clock.now)
                await judge(by, sign(claims(), kid="unknown"))
        assert await judge(by, sign(claims(), kid="rsa"))

        pauses = [later - earlier for earlier, later in pairwise(starts)]
        assert pauses[:6] == [30, 60, 120, 240, 480, 600]
        assert set(pauses[5:]) == {600}

    async def test_keys_are_fetched_anew_when_they_are_old(self, provider, clock):
        """The token that notices does not wait; a key that was taken back is gone afterwards."""
        by = verifier(provider, clock, jwks_max_age=60)
        assert await judge(by, sign(claims(), kid="rsa"))
        provider.keys = [jwk("ES256", "ec")]
        clock.now += 61

        noticing = by.authenticate(Credential(token=sign(claims(), kid="rsa")))
        assert by._jwks is not None
        await by._jwks.refresh()

        assert isinstance(noticing, Identity)
        assert provider.asked == 2
        assert await judge(by, sign(claims(), kid="rsa")) is None
        assert await judge(by, sign(claims(), "ES256", kid="ec"))

    async def test_a_new_key_is_found_by_the_first_token_that_it_signed(self, provider, clock):
        """A provider may change its keys at any time."""
        by = verifier(provider, clock)
        assert await judge(by, sign(claims(), kid="rsa"))
        provider.keys = [jwk("EdDSA", "new")]
        clock.now += 30

        assert await judge(by, sign(claims(), "EdDSA", kid="new"))

    async def test_plain_http_works_on_this_machine_where_that_is_allowed(self, tmp_path, clock):
        """For trials without certificates."""
        async with Provider(tmp_path).serving(tls=False) as provider:
            assert await judge(verifier(provider, clock), sign(claims(), kid="rsa"))


class TestRefusedAnswers:
    @pytest.mark.parametrize(
        ("head", "body", "why"),
        [
            ("500 Oops", None, "status 500"),
            ("204 No Content", b"", "status 204"),
            ("200 OK", b"<html>", "not JSON"),
            ("200 OK", b"[" * 100_000, "not JSON"),
            ("200 OK", b"[]", "not a set of keys"),
            ("200 OK", b'{"keys": {}}', "not a set of keys"),
            ("200 OK", b'{"keys": []}', "no key"),
            ("200 OK", b'{"keys": [1, {"kty": "RSA"}]}', "no key"),
            ("200 OK", b" " * (MAX_ANSWER + 1), "more than 262144 bytes"),
            ("200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b", "not JSON"),
            ("nonsense", b"", ""),
        ],
    )
    async def test_leave_the_keys_as_they_were(self, provider, clock, head, body, why):
        """No answer but a set of keys changes anything, and the log says why."""
        keys = key_set(provider, clock)
        await keys.refresh()
        provider.head, provider.body = head, body
        clock.now += 31

        with capture_logs() as logs:
            await keys.refresh()

        assert keys.find("rsa", "RS256")
        assert provider.asked == 2
        assert [why in entry["why"] for entry in logs] == [True]

    async def test_a_redirect_is_not_followed(self, provider, clock, tmp_path):
        """The keys come from the one address and no other."""
        other = tmp_path / "other"
        other.mkdir()
        async with Provider(other).serving(tls=False) as trap:
            provider.head = f"302 Found\r\nLocation: {trap.url}"
            keys = key_set(provider, clock)
            await keys.refresh()

        assert provider.asked == 1
        assert trap.asked == 0
        assert not keys.find("rsa", "RS256")

    async def test_a_slow_answer_is_given_up(self, provider, clock, monkeypatch):
        """Nobody waits longer than the time of a fetch."""
        monkeypatch.setattr(module, "FETCH_TIMEOUT", 0.2)
        provider.gate.clear()
        keys = key_set(provider, clock)

        with capture_logs() as logs:
            await keys.refresh()

        assert [entry["why"] for entry in logs] == ["TimeoutError"]
        provider.gate.set()

    async def test_a_certificate_that_nobody_trusts_is_refused(self, provider, clock):
        """Without the setting only the usual authorities count."""
        keys = key_set(provider, clock, ca_file=None)

        with capture_logs() as logs:
            await keys.refresh()

        assert "CERTIFICATE_VERIFY_FAILED" in logs[0]["why"]
        assert provider.asked == 0

    async def test_a_private_address_is_refused_before_anything_is_sent(self, provider, clock):
        """A host that leads into a private network is not asked unless that is allowed."""
        keys = key_set(provider, clock, allow_private=False)

        with capture_logs() as logs:
            await keys.refresh()

        assert "private network" in logs[0]["why"]
        assert provider.asked == 0


class TestKeys:
    @pytest.mark.parametrize(
        "entry",
        [
            jwk("RS256", "k", use="enc"),
            jwk("RS256", "k", key_ops=["sign"]),
            jwk("RS256", "k", key_ops="verify"),
            jwk("RS256", "k", alg="RS384"),
            jwk("RS256", "k", alg="HS256"),
            jwk("RS256", "k", alg=["RS256"]),
            jwk("RS256", "k", d="AQAB"),
            jwk("RS256", "k", n="AQAB"),
            jwk("RS256", "k", n=1),
            jwk("RS256", "k", kty="EC"),
            jwk("RS256", "k" * 129),
            jwk("ES384", "k"),
            jwk("ES256", "k", crv="P-999"),
            {**jwk("RS256", "k"), "kid": 1},
            {"kty": "oct", "k": word(SECRET), "kid": "k", "alg": "HS256"},
            {"kid": "k"},
        ],
        ids=lambda entry: json.dumps({k: v for k, v in entry.items() if len(str(v)) < 20}),
    )
    async def test_that_may_not_verify_are_left_out(self, provider, clock, entry):
        """Keys for other ends, of other kinds, or weak, are as good as absent."""
        provider.keys = [entry, jwk("EdDSA", "good")]
        keys = key_set(provider, clock)

        await keys.refresh()

        found = [keys.find("k", a) for a in ("RS256", "RS384", "HS256", "ES256", "ES384")]
        assert not any(found)
        assert keys.find("good", "EdDSA")

    async def test_without_an_algorithm_may_do_what_the_operator_allows(self, provider, clock):
        """The configuration decides, and the kind of the key."""
        entry = jwk("RS256", "k")
        del entry["alg"]
        provider.keys = [entry]
        keys = key_set(provider, clock)

        await keys.refresh()

        assert keys.find("k", "RS256")
        assert not keys.find("k", "RS384")
        assert not keys.find("k", "ES256")

    async def test_a_token_without_a_name_means_the_only_key(self, provider, clock):
        """Among several it means none."""
        by = verifier(provider, clock)
        assert await judge(by, sign(claims(), kid=None)) is None
        provider.keys = [jwk("RS256", "rsa")]
        clock.now += 31

        assert await judge(by, sign(claims(), kid=None))

    async def test_a_public_key_is_no_secret(self, provider, clock):
        """HS256 finds no key among public ones, whatever its name."""
        by = verifier(provider, clock)
        assert await judge(by, sign(claims(), kid="rsa"))

        assert await judge(by, sign(claims(), "HS256", kid="rsa")) is None

    def test_what_is_no_public_key_can_do_nothing(self):
        """Only what checks signatures has algorithms."""
        assert algorithms_of(b"secret") == frozenset()


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys",
        "http://127.0.0.1/keys",
        "ftp://id.example/keys",
        "file:///etc/keys",
        "https:///keys",
        "https://user:password@id.example/keys",
        "https://id.example/keys#part",
        "id.example/keys",
        "https://[::1/keys",
        "",
    ],
)
def test_an_address_that_keys_must_not_come_from_is_refused_at_start(url):
    """Only https, nothing secret in it, one host."""
    with pytest.raises(ConfigError, match="jwks_url"):
        KeySet(url, {"RS256"})


@pytest.mark.parametrize("url", ["http://id.example/keys", "http://10.0.0.1/keys"])
def test_plain_http_is_for_this_machine_alone(url):
    """A private network is no reason to do without TLS."""
    with pytest.raises(ConfigError, match="https://"):
        KeySet(url, {"RS256"}, allow_private=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_public_addresses_are_told_from_private_ones(address, public):
    """Also where one is wrapped in another."""
    assert is_public(address) is public


def test_the_usual_authorities_are_trusted():
    """The context of a fetch asks for a certificate and for the right name in it."""
    context = KeySet("https://id.example/keys", {"RS256"})._trust()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
