"""Signing in to a gateway with the tokens of an identity provider, over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from peers import (
    WebSocketPeer,
    connect,
    error_of,
    guarded_config,
    hang_up,
    register,
    upgrade_to,
)
from processes import clean_environ, finished
from provider import Provider
from rawsocket import RawSocket
from tokens import SECRET, claims, jwt_config, private_key, public_pem, sign

from trunkline.auth import Credential
from trunkline.authdb import AuthDatabase
from trunkline.clients import Identity
from trunkline.config import AuthConfig, GatewayConfig, WebSocketTransportConfig
from trunkline.credentials import Credentials
from trunkline.errors import ConfigError
from trunkline.jwts import LEEWAY, JwtVerifier
from trunkline.server import GatewayServer
from trunkline.settings import load_settings
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway

OWNERS_TOKEN = "the-owner's-token"


def config(**more: Any) -> WebSocketTransportConfig:
    return guarded_config(
        auth=AuthConfig(token=OWNERS_TOKEN, jwt=jwt_config("RS256", "HS256", "EdDSA"), **more)
    )


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[WebSocketGateway]:
    """A gateway with tokens of a provider, stored ones, and the owner's."""
    database = AuthDatabase(tmp_path / "auth.db")
    async with WebSocketGateway(config(), authdb=database) as gateway:
        yield gateway
        await hang_up(gateway)
    database.close()


def ending(seconds: float, **changes: Any) -> str:
    """A token whose sign-in ends in so many seconds."""
    end = time.time() - LEEWAY + seconds
    return sign(claims(exp=end, iat=int(end) - 600, **changes))


async def signed_in(gateway: WebSocketGateway, token: str) -> WebSocketPeer:
    peer = await connect(gateway)
    answer = await peer.ask("auth", {"token": token})
    assert answer.type == "auth_success", answer
    return peer


class TestBothWays:
    async def test_in_the_header_of_the_upgrade(self, gateway: WebSocketGateway) -> None:
        """The welcome says that no sign-in is needed any more."""
        peer = await connect(gateway, sign(claims(roles=["control"])))
        hello = await peer.ask("connect", {"deviceId": "d"})

        assert hello.data()["authRequired"] is False
        assert [c.user_id for c in gateway.clients] == ["jwt:ada"]

    async def test_in_a_message(self, gateway: WebSocketGateway) -> None:
        """The answer tells what was granted."""
        peer = await connect(gateway)
        token = sign(claims(roles=["webchat"], scope="approve other", sessions=["team-*"]))
        answer = (await peer.ask("auth", {"token": token})).data()

        assert answer["userId"] == "jwt:ada"
        assert answer["role"] == "webchat"
        assert answer["scopes"] == ["approve"]
        assert answer["sessionPatterns"] == ["team-*"]
        assert answer["expiresAt"] > time.time() * 1000

    async def test_with_a_key_that_has_to_be_fetched_first(self, tmp_path: Path) -> None:
        """The upgrade is granted, and what the client sends waits for the verdict."""
        async with Provider(tmp_path).serving() as provider:
            jwt = jwt_config(
                jwks_url=provider.url, allow_private_jwks=True, jwks_ca_file=provider.cert
            )
            auth = AuthConfig(token=OWNERS_TOKEN, jwt=jwt)
            async with WebSocketGateway(guarded_config(auth=auth)) as gateway:
                provider.gate.clear()
                good = await connect(gateway, sign(claims(), kid="rsa"))
                forged = await connect(
                    gateway, sign(claims(), kid="rsa", key=private_key("stranger"))
                )
                asked = await good.send("health")
                provider.gate.set()
                answer = await good.next(reply_to=asked)
                closed = await forged.gone()
                await hang_up(gateway)

        assert answer.type == "health"
        assert closed[0] == 4003
        assert provider.asked == 1


WRONG = {
    "words": "a.b.c",
    "wrong": sign(claims(), key=private_key("stranger")),
    "expired": sign(claims(exp=int(time.time()) - 61)),
    "of another audience": sign(claims(aud="other")),
    "signed with the public key": sign(claims(), "HS256", key=public_pem("RSA"), kid="RS256"),
    "unsigned": sign(claims(), head={"alg": "none"}),
    "doubled": f"{sign(claims())}{sign(claims())}",
    "joined": f"{sign(claims())}.{sign(claims())}",
    "the secret itself": SECRET,
}


class TestWrongTokens:
    @pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
    async def test_get_401_in_the_header_and_an_error_in_a_message(
        self, gateway: WebSocketGateway, token: str
    ) -> None:
        """Neither way lets in what the other refuses."""
        async with await RawSocket.connect(gateway.port) as upgrade:
            upgrade.send(upgrade_to(gateway, f"Authorization: Bearer {token}"))
            by_header = await upgrade.head()
        peer = await connect(gateway)
        by_message = await peer.ask("auth", {"token": token})

        assert by_header.status == 401
        assert error_of(by_message) == "AUTH_FAILED"
        assert not gateway.clients.ready()

    async def test_two_headers_are_one_too_many(self, gateway: WebSocketGateway) -> None:
        """Whichever of two credentials were meant, neither counts."""
        good = f"Authorization: Bearer {sign(claims())}"
        async with await RawSocket.connect(gateway.port) as peer:
            peer.send(upgrade_to(gateway, good, good))

            assert (await peer.head()).status in (400, 401)

    @pytest.mark.parametrize("field", ["password", "code"])
    async def test_a_token_in_the_place_of_another_credential_is_refused(
        self, gateway: WebSocketGateway, field: str
    ) -> None:
        """A token is no password."""
        peer = await connect(gateway)

        assert (await peer.ask("auth", {field: sign(claims())})).type == "error"

    async def test_lock_their_address_out_like_any_other(self, gateway: WebSocketGateway) -> None:
        """Ten forgeries are judged; after them even a good token waits."""
        peer = await connect(gateway)
        forged = [sign(claims(), key=private_key("stranger"))] * 20
        answers = [error_of(await peer.ask("auth", {"token": token})) for token in forged]
        good = await peer.ask("auth", {"token": sign(claims())})

        assert answers == ["AUTH_FAILED"] * 10 + ["AUTH_LOCKED"] * 10
        assert error_of(good) == "AUTH_LOCKED"


class TestBesideOtherCredentials:
    async def test_each_form_has_its_own_verifier(self, gateway: WebSocketGateway) -> None:
        """The owner's token and stored tokens go on beside those of the provider."""
        assert isinstance(gateway.credentials, Credentials)
        _, stored = gateway.credentials.create(name="x", user_id="bob", roles={"webchat"})
        users = []
        for token in (OWNERS_TOKEN, stored, sign(claims())):
            peer = await connect(gateway)
            users.append((await peer.ask("auth", {"token": token})).data()["userId"])

        assert users == ["owner", "bob", "jwt:ada"]

    def test_an_owners_token_of_this_form_does_not_start(self) -> None:
        """Nobody could ever sign in with it."""
        auth = AuthConfig(token="a.b.c", jwt=jwt_config("RS256"))

        with pytest.raises(ConfigError, match=r"auth\.token has the form"):
            WebSocketGateway(guarded_config(auth=auth))

    async def test_a_gateway_needs_no_secret_of_its_own(self) -> None:
        """The provider's tokens are enough to sign in with."""
        auth = AuthConfig(jwt=jwt_config("RS256"))
        async with WebSocketGateway(guarded_config(auth=auth)) as gateway:
            await connect(gateway, sign(claims()))
            await hang_up(gateway)

    async def test_a_gateway_without_a_listener_takes_a_verifier(self) -> None:
        """The core fetches nothing by itself, so it is given what does."""
        with pytest.raises(ConfigError, match="JwtVerifier"):
            GatewayServer(GatewayConfig(auth=AuthConfig(jwt=jwt_config("RS256"))))
        verifier = JwtVerifier(jwt_config("RS256"))
        async with GatewayServer(GatewayConfig(), authenticator=verifier) as gateway:
            answer = await PeerClient(gateway).ask("auth", {"token": sign(claims())})

        assert answer.type == "auth_success"


class TestTheEnd:
    async def test_closes_the_connection_with_4003(self, gateway: WebSocketGateway) -> None:
        """By itself, and the client was warned."""
        peer = await connect(gateway, ending(1.5))

        code, reason = await peer.gone()

        assert code == 4003
        assert "expired" in reason
        assert "auth_expiring" in [message.type for message in peer.heard]

    async def test_is_put_off_by_a_newer_token_in_band(self, gateway: WebSocketGateway) -> None:
        """Of two connections with one token, the one that refreshed stays."""
        token = ending(2.0)
        refreshed, left = await signed_in(gateway, token), await signed_in(gateway, token)
        answer = await refreshed.ask("auth", {"token": sign(claims())})
        await left.gone()

        assert answer.type == "auth_success"
        assert (await refreshed.ask("ping")).type == "pong"

    async def test_is_not_put_off_by_somebody_else_s_token(self, gateway: WebSocketGateway) -> None:
        """A connection keeps its user."""
        peer = await signed_in(gateway, ending(60))
        end = next(iter(gateway.clients)).expires_at
        answer = await peer.ask("auth", {"token": sign(claims(sub="eve"))})

        assert error_of(answer) == "ALREADY_AUTHENTICATED"
        assert next(iter(gateway.clients)).expires_at == end

    async def test_of_a_refresh_grants_nothing_more(self, gateway: WebSocketGateway) -> None:
        """A newer token with more scopes prolongs, and no more."""
        peer = await signed_in(gateway, sign(claims()))
        answer = await peer.ask("auth", {"token": sign(claims(scope="admin"))})

        assert answer.type == "error" or answer.data()["scopes"] == []
        assert next(iter(gateway.clients)).scopes == frozenset()


class TestRights:
    async def test_roles_are_those_of_the_token(self, gateway: WebSocketGateway) -> None:
        """What a client says of itself grants nothing."""
        peer = await connect(gateway)
        hello = await peer.ask("connect", {"deviceId": "d", "role": "control"})
        refused = await peer.ask("auth", {"token": sign(claims(roles=["webchat"]))})
        observer = await signed_in(gateway, sign(claims(roles="observer")))
        silent = await observer.ask("session_create", {"sessionId": "team-1"})

        assert hello.type == "hello_ok"
        assert error_of(refused) == "FORBIDDEN"
        assert error_of(silent) == "FORBIDDEN"

    async def test_sessions_beyond_the_patterns_are_as_good_as_absent(
        self, gateway: WebSocketGateway
    ) -> None:
        """Two tenants share a gateway and know nothing of each other."""
        one = await signed_in(gateway, sign(claims(sub="one", sessions=["one-*"])))
        two = await signed_in(gateway, sign(claims(sub="two", sessions=["two-*"])))
        for peer, name in ((one, "one-a"), (two, "two-a")):
            answer = await peer.ask("session_create", {"sessionId": name})
            assert answer.type != "error", answer
        theirs = await two.ask("session_history", {"sessionId": "one-a"}, "one-a")
        absent = await two.ask("session_history", {"sessionId": "one-b"}, "one-b")
        listed = await two.ask("session_list")

        assert error_of(theirs) == error_of(absent)
        assert [entry["sessionId"] for entry in listed.data()["sessions"]] == ["two-a"]

    async def test_agents_beyond_the_patterns_cannot_be_registered(
        self, gateway: WebSocketGateway
    ) -> None:
        """An agent's id is within its credential's patterns."""
        peer = await signed_in(gateway, sign(claims(roles=["node"], agents="one-*")))

        assert (await register(peer, "one-bot")).type != "error"
        assert (await register(peer, "two-bot")).type == "error"


class TestFromTheConfiguration:
    def test_keys_come_from_a_file_and_their_files(self, tmp_path: Path) -> None:
        """An array of tables in TOML; each key's file is read, and refused if it is absent."""
        (tmp_path / "provider.pem").write_text(public_pem("RSA"))
        (tmp_path / "secret").write_text(SECRET + "\n")
        file = tmp_path / "gateway.toml"
        file.write_text(TOML.format(folder=tmp_path))
        environ = {"HOME": str(tmp_path)}

        loaded = load_settings({}, environ, file).auth.jwt
        (tmp_path / "secret").unlink()

        assert [key.kid for key in loaded.keys] == ["RS256", "HS256"]
        for algorithm in ("RS256", "HS256"):
            granted = JwtVerifier(loaded).authenticate(Credential(token=sign(claims(), algorithm)))
            assert isinstance(granted, Identity)
        assert SECRET not in repr(loaded)
        with pytest.raises(ConfigError, match=r"auth\.jwt\.keys\[1\]\.secret_file"):
            load_settings({}, environ, file)

    def test_keys_come_from_the_environment_as_json(self, tmp_path: Path) -> None:
        """Tables have no other spelling there."""
        environ = {
            "HOME": str(tmp_path),
            "TRUNKLINE_AUTH__JWT__ISSUER": "https://id.example",
            "TRUNKLINE_AUTH__JWT__AUDIENCE": "trunkline",
            "TRUNKLINE_AUTH__JWT__KEYS": f'[{{"algorithm": "HS256", "secret": "{SECRET}"}}]',
        }

        loaded = load_settings({}, environ).auth.jwt

        assert [key.secret for key in loaded.keys] == [SECRET]

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("KEYS", "RS256", "JSON list of objects"),
            ("KEYS", "[1]", "JSON list of objects"),
            ("KEYS", '[{"algorithm": "none"}]', r"Invalid enum value 'none'.*keys\[0\]"),
            ("KEYS", '[{"algorithm": "RS256", "pem": ""}]', r"unknown field `pem`.*keys\[0\]"),
            ("KEYS", '[{"secret": ""}]', r"missing required field `algorithm`"),
            ("JWKS_ALGORITHMS", "HS256", "Invalid enum value 'HS256'"),
            ("USER_PREFIX", "a b", "user_prefix"),
            ("MAX_LIFETIME", "86401", "<= 86400"),
            ("DEFAULT_ROLES", "admin", "Invalid enum value 'admin'"),
            ("DEFAULT_SESSIONS", "a b", "pattern"),
            ("AUDIENCE", "", "neither empty"),
            ("JWKS_CA_FILE", "/nonexistent", "cannot read auth.jwt.jwks_ca_file"),
        ],
    )
    def test_what_cannot_be_right_is_refused(self, name: str, value: str, message: str) -> None:
        """The error names the setting."""
        environ = {
            "HOME": "/nonexistent",
            "TRUNKLINE_AUTH__JWT__ISSUER": "https://id.example",
            "TRUNKLINE_AUTH__JWT__AUDIENCE": "trunkline",
            "TRUNKLINE_AUTH__JWT__JWKS_URL": "https://id.example/keys",
            f"TRUNKLINE_AUTH__JWT__{name}": value,
        }

        with pytest.raises(ConfigError, match=message):
            load_settings({}, environ)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"auth.jwt.audience": "x"}, r"without auth\.jwt\.issuer"),
            ({"auth.jwt.issuer": "x"}, "both issuer and audience"),
            ({"auth.jwt.issuer": "x", "auth.jwt.audience": "y"}, "needs keys"),
            ({"auth.jwt.issuer": "x", "auth.mode": "none"}, "sign-in is off"),
        ],
    )
    def test_half_a_configuration_is_refused(self, flags: dict[str, str], message: str) -> None:
        """Nobody is left to believe that tokens are taken."""
        with pytest.raises(ConfigError, match=message):
            load_settings(flags, {"HOME": "/nonexistent"})

    def test_a_wrong_key_is_found_by_the_check_of_a_file(self, tmp_path: Path) -> None:
        """Before anything starts."""
        (tmp_path / "provider.pem").write_text("no key")
        (tmp_path / "secret").write_text(SECRET)
        file = tmp_path / "gateway.toml"
        file.write_text(TOML.format(folder=tmp_path))

        checked = finished(clean_environ(tmp_path), "config", "check", str(file))

        assert checked.returncode == 2
        assert "auth.jwt.keys[0]" in checked.stderr


TOML = """
[auth.jwt]
issuer = "https://id.example/realm"
audience = "trunkline"

[[auth.jwt.keys]]
kid = "RS256"
algorithm = "RS256"
public_key_file = "{folder}/provider.pem"

[[auth.jwt.keys]]
kid = "HS256"
algorithm = "HS256"
secret_file = "{folder}/secret"
"""


async def test_sixty_forgeries_at_once_are_ten_verdicts(gateway: WebSocketGateway) -> None:
    """Attempts are counted before they are judged."""
    token = sign(claims(), key=private_key("stranger"))

    async def attempt() -> int:
        async with await RawSocket.connect(gateway.port) as peer:
            peer.send(upgrade_to(gateway, f"Authorization: Bearer {token}"))
            return (await peer.head()).status

    answers = await asyncio.gather(*(attempt() for _ in range(60)))

    assert sorted(answers) == [401] * 10 + [429] * 50
    assert gateway.door.failures == 10
