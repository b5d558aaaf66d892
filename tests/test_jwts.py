"""Which tokens of an identity provider are believed, and what they grant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs
from tokens import (
    AUDIENCE,
    ISSUER,
    SECRET,
    claims,
    jwt_config,
    key_config,
    private_key,
    private_pem,
    public_pem,
    sign,
    word,
)

from trunkline.auth import Credential
from trunkline.clients import Identity
from trunkline.config import JwtConfig, JwtKeyConfig
from trunkline.errors import ConfigError
from trunkline.jwts import LEEWAY, MAX_TOKEN, JwtVerifier
from trunkline.rights import ALL_SCOPES

NOW = 1_800_000_000
ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512"),
    *("PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
)


def verifier(*algorithms: str, **more: Any) -> JwtVerifier:
    config = jwt_config(*(algorithms or ALGORITHMS), **more)
    return JwtVerifier(config, clock=lambda: NOW)


def good(**changes: Any) -> dict[str, Any]:
    return claims(NOW, **changes)


def judge(token: str | None, by: JwtVerifier | None = None) -> Identity | None:
    granted = (by or verifier()).authenticate(Credential(token=token))
    assert granted is None or isinstance(granted, Identity)
    return granted


def twice(name: str, value: str, body: dict[str, Any]) -> str:
    """An object in which a name stands twice."""
    return json.dumps(body)[:-1] + f', "{name}": {value}}}'


def unsigned(algorithm: Any, signature: str = "") -> str:
    return f"{word({'alg': algorithm, 'typ': 'JWT'})}.{word(good())}.{signature}"


def tampered(token: str, **changes: Any) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{word(good(**changes))}.{signature}"


def padded(size: int) -> str:
    """A good token of about so many bytes."""
    return sign(good(note="x" * (size * 3 // 4)))


RS = private_key("RSA")
FORGED = "forged with what everybody knows: "

VALID: dict[str, str] = {
    **{f"signed with {a}": sign(good(), a) for a in ALGORITHMS},
    "aud is a list that holds ours": sign(good(aud=["other", AUDIENCE])),
    "exp is a float": sign(good(exp=NOW + 60.5)),
    "exp is past, within the leeway": sign(good(iat=NOW - 900, exp=NOW - 59)),
    "iat is ahead, within the leeway": sign(good(iat=NOW + 59)),
    "nbf is ahead, within the leeway": sign(good(nbf=NOW + 59)),
    "nbf is past": sign(good(nbf=NOW - 5)),
    "without iat": sign(good(iat=None)),
    "without typ": sign(good(), head=json.dumps({"alg": "RS256", "kid": "RS256"})),
    "typ of an access token": sign(good(), head={"typ": "at+JWT"}),
    "typ as a media type": sign(good(), head={"typ": "application/jwt"}),
    "lives exactly a day": sign(good(exp=NOW + 86_400)),
    "unknown claims and head fields": sign(good(jti="1", azp="x"), head={"x5t": "abc"}),
    "roles as words": sign(good(roles="webchat observer")),
    "close to the limit of 8 KiB": padded(7500),
}

INVALID: dict[str, str] = {
    # The algorithm
    "none": unsigned("none"),
    "None": unsigned("None"),
    "nOnE with a signature": unsigned("nOnE", "AAAA"),
    "none with a signature": unsigned("none", sign(good()).split(".")[2]),
    "no algorithm": sign(good(), head='{"typ": "JWT", "kid": "RS256"}'),
    "algorithm is a list": sign(good(), head={"alg": ["RS256"]}),
    "algorithm is empty": sign(good(), head={"alg": ""}),
    "algorithm in lower case": sign(good(), head={"alg": "rs256"}),
    "HS256 with the public key as the secret": sign(
        good(), "HS256", key=public_pem("RSA"), kid="RS256"
    ),
    "HS256 with the public key, no kid": sign(good(), "HS256", key=public_pem("RSA"), kid=None),
    "HS256 with the public key, head says RS256": sign(
        good(), "HS256", key=public_pem("RSA"), head={"alg": "RS256", "kid": "RS256"}
    ),
    "another algorithm of the same key": sign(good(), "RS384", kid="RS256"),
    "PSS under the name of an RS256 key": sign(good(), "PS256", kid="RS256"),
    # The key
    "a stranger's RSA key": sign(good(), key=private_key("stranger")),
    "a stranger's curve": sign(good(), "ES256", key=private_key("ES384")),
    "a stranger's secret": sign(good(), "HS256", key=FORGED + "x" * 64),
    "the empty secret": sign(good(), "HS256", key=""),
    "unknown kid": sign(good(), kid="other"),
    "no kid where every key has one": sign(good(), kid=None),
    "kid of another key": sign(good(), kid="ES256"),
    "kid is a path": sign(good(), "HS256", key="", kid="../../../../dev/null"),
    "kid is a query": sign(good(), kid="RS256' OR '1'='1"),
    "kid is an address": sign(good(), kid="https://evil.example/keys"),
    "kid is a number": sign(good(), kid=1),
    "kid is a list": sign(good(), kid=["RS256"]),
    "kid is null": sign(good(), head={"kid": None}),
    "kid is empty": sign(good(), head={"kid": ""}),
    "kid is too long": sign(good(), kid="k" * 129),
    # The head
    "jku": sign(good(), head={"jku": "https://evil.example/jwks.json"}),
    "x5u": sign(good(), head={"x5u": "https://evil.example/cert.pem"}),
    "jwk": sign(good(), key=private_key("stranger"), head={"jwk": {"kty": "RSA"}}),
    "x5c": sign(good(), head={"x5c": ["AAAA"]}),
    "crit of something unknown": sign(good(), head={"crit": ["exp"]}),
    "crit that is empty": sign(good(), head={"crit": []}),
    "crit of b64": sign(good(), head={"crit": ["b64"], "b64": True}),
    "zip": sign(good(), head={"zip": "DEF"}),
    "typ of another kind": sign(good(), head={"typ": "dpop+jwt"}),
    "typ is a number": sign(good(), head={"typ": 1}),
    "alg stands twice": sign(good(), head=twice("alg", '"RS256"', {"alg": "none", "kid": "RS256"})),
    "head is a list": sign(good(), head='["RS256"]'),
    "head is no JSON": sign(good(), head="{alg: RS256}"),
    "head nests deeply": sign(good(), head="[" * 2000 + "]" * 2000),
    # The form
    "the empty text": "",
    "two words": ".".join(sign(good()).split(".")[:2]),
    "four words": sign(good()) + ".AAAA",
    "five words": sign(good()) + ".AAAA.AAAA",
    "no signature": ".".join([*sign(good()).split(".")[:2], ""]),
    "a signature cut short": sign(good())[:-8],
    "a signature with a padding": sign(good(), "HS256") + "=",
    "another alphabet": sign(good()).replace(".", "+.", 1),
    "a space before": " " + sign(good()),
    "a line end behind": sign(good()) + "\n",
    "letters beyond ASCII": sign(good()) + "é",
    "10 KiB": padded(10 * 1024),
    "8 KiB and a byte": "x" * (MAX_TOKEN + 1),
    # The claims as a whole
    "tampered": tampered(sign(good()), sub="mallory"),
    "tampered roles": tampered(sign(good()), roles=["control"]),
    "claims are a list": sign([good()]),
    "claims are text": sign('"ada"'),
    "claims are no JSON": sign("{"),
    "claims with NaN": sign(json.dumps(good())[:-1] + ', "n": NaN}'),
    "claims in another encoding": sign(json.dumps(good()).encode("utf-16")),
    "exp stands twice": sign(twice("exp", str(NOW + 60), good())),
    "sub stands twice": sign(twice("sub", '"mallory"', good())),
    # Issuer and audience
    "iss is absent": sign(good(iss=None)),
    "iss is a part of ours": sign(good(iss=ISSUER[:-1])),
    "iss is the scheme of ours": sign(good(iss="https")),
    "iss begins with ours": sign(good(iss=ISSUER + ".evil.example")),
    "iss with a slash behind": sign(good(iss=ISSUER + "/")),
    "iss in capitals": sign(good(iss=ISSUER.upper())),
    "iss is a list": sign(good(iss=[ISSUER])),
    "aud is absent": sign(good(aud=None)),
    "aud is another": sign(good(aud="other")),
    "aud is a part of ours": sign(good(aud=AUDIENCE[:-1])),
    "aud holds ours in a word": sign(good(aud=f"other {AUDIENCE}")),
    "aud is an empty list": sign(good(aud=[])),
    "aud is a list of others": sign(good(aud=["a", "b"])),
    "aud is a list with a number": sign(good(aud=[AUDIENCE, 1])),
    "aud is an object": sign(good(aud={AUDIENCE: True})),
    "aud is a list in a list": sign(good(aud=[[AUDIENCE]])),
    # Times
    "exp is absent": sign(good(exp=None)),
    "exp is null": sign(json.dumps({**good(), "exp": None})),
    "exp is past": sign(good(exp=NOW - 60)),
    "exp is text": sign(good(exp=str(NOW + 60))),
    "exp is 1e400": sign(json.dumps(good(exp=None))[:-1] + ', "exp": 1e400}'),
    "exp is beyond all time": sign(json.dumps(good(exp=None))[:-1] + f', "exp": {10**400}}}'),
    "exp is true": sign(good(exp=True)),
    "exp is negative": sign(good(exp=-1)),
    "exp is a list": sign(good(exp=[NOW + 60])),
    "exp is a day and a second away": sign(good(exp=NOW + 86_401)),
    "exp is a year away, without iat": sign(good(iat=None, exp=NOW + 365 * 86_400)),
    "lived more than a day already": sign(good(iat=NOW - 86_400, exp=NOW + 1)),
    "exp is before iat": sign(good(iat=NOW + 30, exp=NOW + 20)),
    "iat is ahead": sign(good(iat=NOW + 61)),
    "iat is text": sign(good(iat=str(NOW))),
    "iat is null": sign(json.dumps({**good(), "iat": None})),
    "nbf is ahead": sign(good(nbf=NOW + 61)),
    "nbf is text": sign(good(nbf=str(NOW - 5))),
    "nbf is 1e400": sign(json.dumps(good())[:-1] + ', "nbf": 1e400}'),
    # The user
    "sub is absent": sign(good(sub=None)),
    "sub is a number": sign(good(sub=7)),
    "sub is empty": sign(good(sub="")),
    "sub has a space": sign(good(sub="ada lovelace")),
    "sub has a line end": sign(good(sub="ada\n")),
    "sub has letters beyond ASCII": sign(good(sub="adа")),  # noqa: RUF001
    "sub is too long": sign(good(sub="a" * 129)),
    "sub is markup": sign(good(sub="<img>")),
    # What it grants
    "roles are absent": sign(good(roles=None)),
    "roles are empty": sign(good(roles=[])),
    "roles are unknown": sign(good(roles=["superuser", "Control"])),
    "roles are an object": sign(good(roles={"webchat": True})),
    "roles hold a number": sign(good(roles=["webchat", 1])),
    "roles are null": sign(json.dumps({**good(), "roles": None})),
    "scopes are a number": sign(good(scope=1)),
    "sessions are true": sign(good(sessions=True)),
    "sessions hold a path": sign(good(sessions=["../x"])),
    "too many sessions": sign(good(sessions=[f"s{n}" for n in range(65)])),
    "agents hold a space": sign(good(agents=["a b"])),
}


@pytest.mark.parametrize("token", VALID.values(), ids=VALID)
def test_a_good_token_gets_in(token: str) -> None:
    """What the provider signed, and is meant for us, now, is believed."""
    identity = judge(token)

    assert identity is not None
    assert identity.user_id == "jwt:ada"
    assert "webchat" in identity.roles


@pytest.mark.parametrize("token", INVALID.values(), ids=INVALID)
def test_any_other_token_does_not(token: str) -> None:
    """One thing wrong is enough, and nothing is raised."""
    assert judge(token) is None


def test_no_token_is_nobody() -> None:
    """A password is not looked at."""
    assert verifier().authenticate(Credential(password=sign(good()))) is None


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (sign(good(aud="canary")), "aud does not hold the configured audience"),
        (sign(good(sub="canary!")), "its user is not 1 to 128 letters, digits or ._:@|+-"),
        (sign(good(canary=1), key=private_key("stranger")), "its signature is wrong"),
        (sign(good(), kid="canary"), "no key is known for it"),
    ],
)
def test_the_log_says_why_and_nothing_that_stood_in_the_token(token: str, why: str) -> None:
    """An operator can mend a configuration; a reader of logs learns no token."""
    with capture_logs() as logs:
        judge(token)

    assert [line["why"] for line in logs] == [why]
    assert "canary" not in repr(logs)
    assert token not in repr(logs)


@given(st.text(max_size=300) | st.from_regex(r"\A[\w-]+\.[\w-]+\.[\w-]+\Z"))
def test_nothing_that_a_stranger_sends_raises(text: str) -> None:
    """Whatever stands in place of a token is a refusal."""
    assert judge(text, STRICT) is None


@given(st.integers(0), st.integers(1, 255))
def test_a_token_with_one_byte_changed_does_not_get_in(place: int, change: int) -> None:
    """No byte of a token is beyond its signature."""
    token = bytearray(GOOD.encode())
    token[place % len(token)] ^= change

    assert judge(token.decode("latin-1"), STRICT) is None


STRICT = verifier()
GOOD = sign(good(), "EdDSA")


class TestGrants:
    def test_the_claims_become_an_identity(self) -> None:
        """Roles, scopes and patterns are those of the token; its end is ours, with the leeway."""
        token = sign(
            good(
                roles=["node", "control", "unheard-of"],
                scope="openid approve session:admin",
                sessions=["team-*", "lobby"],
                agents="bot-1 bot-2",
            )
        )

        assert judge(token) == Identity(
            user_id="jwt:ada",
            roles=frozenset({"node", "control"}),
            scopes=frozenset({"approve", "session:admin"}),
            expires_at=round((NOW + 3600 + LEEWAY) * 1000),
            session_patterns=("team-*", "lobby"),
            agent_patterns=("bot-1", "bot-2"),
        )

    def test_absent_claims_have_the_configured_defaults(self) -> None:
        """Without the claims a token grants what the operator says, and no scope."""
        config = {"default_roles": ("observer",), "default_sessions": (), "default_agents": ("a*",)}

        identity = judge(sign(good(roles=None)), verifier("RS256", **config))

        assert identity is not None
        assert identity.roles == {"observer"}
        assert identity.scopes == frozenset()
        assert not identity.allows_session("lobby")
        assert identity.allows_agent("ada")

    def test_empty_claims_grant_nothing(self) -> None:
        """An empty list is an answer, not an absence."""
        identity = judge(sign(good(scope="", sessions=[], agents="")))

        assert identity is not None
        assert not identity.allows_session("lobby")
        assert not identity.allows_agent("a")

    def test_all_scopes_can_be_granted(self) -> None:
        """The gateway's scopes pass, and no other word does."""
        identity = judge(sign(good(scope=" ".join([*ALL_SCOPES, "root"]))))

        assert identity is not None
        assert identity.scopes == ALL_SCOPES

    def test_claims_may_have_other_names(self) -> None:
        """A name with dots is a claim of that name, or else a way into an object."""
        config = {
            "roles_claim": "https://id.example/roles",
            "scopes_claim": "realm.access.scopes",
            "user_claim": "email",
        }
        body = good(
            email="ada@id.example",
            realm={"access": {"scopes": ["approve"]}},
            **{"https://id.example/roles": ["node"]},
        )

        identity = judge(sign(body), verifier("RS256", **config))

        assert identity is not None
        assert identity.user_id == "jwt:ada@id.example"
        assert identity.roles == {"node"}
        assert identity.scopes == {"approve"}

    def test_a_day_can_be_made_shorter(self) -> None:
        """Tokens that live longer than the operator wants are refused."""
        token = sign(good(exp=NOW + 301))

        assert judge(token, verifier("RS256", max_lifetime=300)) is None
        assert judge(token, verifier("RS256", max_lifetime=301)) is not None

    @pytest.mark.parametrize("user", ["owner", "local", "gateway", "Owner", "LOCAL", "system"])
    def test_no_token_stands_for_a_user_of_the_gateway(self, user: str) -> None:
        """Without a prefix the reserved names are refused; with one they are other users."""
        assert judge(sign(good(sub=user)), verifier("RS256", user_prefix="")) is None
        assert judge(sign(good(sub=user[1:])), verifier("RS256", user_prefix=user[0])) is None
        identity = judge(sign(good(sub=user)))
        assert identity is not None
        assert identity.user_id == f"jwt:{user}"


class TestKeys:
    def test_a_key_without_a_name_takes_tokens_of_any_name(self) -> None:
        """A provider with one key need not call it anything."""
        config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, keys=(key_config("ES256"),))
        by = JwtVerifier(config, clock=lambda: NOW)

        assert judge(sign(good(), "ES256", kid=None), by) is not None
        assert judge(sign(good(), "ES256", kid="any"), by) is not None
        assert judge(sign(good(), "HS256", kid=None), by) is None

    def test_two_keys_may_share_a_name_while_one_follows_the_other(self) -> None:
        """Each of them is tried."""
        new = replace(key_config("RS256", "main"), public_key=public_pem("new"))
        by = JwtVerifier(
            JwtConfig(issuer=ISSUER, audience=AUDIENCE, keys=(new, key_config("RS256", "main"))),
            clock=lambda: NOW,
        )

        assert judge(sign(good(), kid="main"), by) is not None
        assert judge(sign(good(), kid="main", key=private_key("new")), by) is not None

    def test_a_certificate_is_a_public_key(self, tmp_path: Path) -> None:
        """The key within a certificate is taken."""
        cert, key = map(Path, write_certificate(tmp_path))
        config = JwtKeyConfig(algorithm="ES256", public_key=cert.read_text())
        by = JwtVerifier(
            JwtConfig(issuer=ISSUER, audience=AUDIENCE, keys=(config,)), clock=lambda: NOW
        )

        token = sign(good(), "ES256", key=load_pem_private_key(key.read_bytes(), None))

        assert judge(token, by) is not None

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            (JwtKeyConfig(algorithm="HS256"), "needs secret"),
            (JwtKeyConfig(algorithm="RS256"), "needs public_key"),
            (JwtKeyConfig(algorithm="HS256", secret="short"), "32 bytes"),
            (JwtKeyConfig(algorithm="HS512", secret="x" * 63), "64 bytes"),
            (JwtKeyConfig(algorithm="HS256", secret=public_pem("RSA")), "is no secret"),
            (JwtKeyConfig(algorithm="HS256", secret=private_pem("RSA")), "is no secret"),
            (JwtKeyConfig(algorithm="HS256", secret='{"kty": "RSA"}' + "x" * 50), "is no secret"),
            (
                JwtKeyConfig(
                    algorithm="HS256", secret="".join(public_pem("RSA").split("\n")[1:-2])
                ),
                "is no secret",
            ),
            (JwtKeyConfig(algorithm="HS256", public_key=public_pem("RSA")), "takes a secret"),
            (JwtKeyConfig(algorithm="RS256", secret=SECRET), "takes a public_key"),
            (JwtKeyConfig(algorithm="RS256", public_key=private_pem("RSA")), "issuer alone"),
            (JwtKeyConfig(algorithm="RS256", public_key="no key"), "in PEM"),
            (JwtKeyConfig(algorithm="RS256", public_key=public_pem("ES256")), "not one for RS256"),
            (JwtKeyConfig(algorithm="ES256", public_key=public_pem("ES384")), "not one for ES256"),
            (JwtKeyConfig(algorithm="EdDSA", public_key=public_pem("RSA")), "not one for EdDSA"),
        ],
    )
    def test_a_key_that_is_wrong_for_its_algorithm_is_refused_at_start(
        self, key: JwtKeyConfig, message: str
    ) -> None:
        """Weak secrets, public keys as secrets, and keys of another kind are errors."""
        config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, keys=(key,))

        with pytest.raises(ConfigError, match=message):
            JwtVerifier(config)

    def test_no_key_shows_itself(self) -> None:
        """A representation of the configuration holds no secret."""
        assert SECRET not in repr(jwt_config("HS256"))
