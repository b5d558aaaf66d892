"""
Every way to sign in with every kind of credential, right and wrong (T-S3).

Three kinds stand side by side in one gateway: the owner's secret, stored
tokens, users with passwords. Only what is right lets anybody in, and what one
kind refuses is not shown to another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from peers import (
    WebSocketPeer,
    connect,
    error_of,
    guarded_config,
    hang_up,
    host,
    raw,
    upgrade_to,
)
from rawsocket import RawSocket, request
from websockets import InvalidStatus

from trunkline.authdb import AuthDatabase
from trunkline.config import AuthConfig
from trunkline.ids import now_ms
from trunkline.transports.websocket import WebSocketGateway

OWNERS_TOKEN = "the-owner's-token"
OWNERS_PASSWORD = "the owner's password"
PASSWORD = "ada's password"

STATES = ["right", "wrong", "empty", "expired", "revoked", "rotated", "unknown", "the id", "longer"]

Frame = dict[str, Any]


class Gate:
    """A gateway and a credential of each kind in each state."""

    def __init__(self, gateway: WebSocketGateway) -> None:
        self.gateway = gateway
        self.tokens: dict[str, str] = {"wrong": "tl_" + "A" * 43, "empty": "", "unknown": "tl_"}
        credentials, users = gateway.credentials, gateway.users
        assert credentials is not None
        assert users is not None
        users.add("ada", PASSWORD)
        for state in ("right", "revoked", "rotated"):
            stored, self.tokens[state] = credentials.create(
                name=state, user_id="ada", roles={"webchat"}
            )
            if state == "right":
                self.tokens["the id"] = stored.id
                self.tokens["longer"] = self.tokens[state] + "A"
            elif state == "revoked":
                credentials.revoke(stored.id)
            else:
                credentials.rotate(stored.id)

    def expire(self) -> None:
        """Make the token that has expired, by a clock that was behind."""
        credentials = self.gateway.credentials
        assert credentials is not None
        clock, credentials._clock = credentials._clock, lambda: now_ms() - 10_000
        _, self.tokens["expired"] = credentials.create(
            name="expired", user_id="ada", roles={"webchat"}, expires_at=now_ms() - 5_000
        )
        credentials._clock = clock


@pytest.fixture(params=["token", "password"])
async def gate(request: pytest.FixtureRequest) -> AsyncIterator[Gate]:
    """For both modes of the owner's secret."""
    auth = AuthConfig(
        mode=request.param,
        token=OWNERS_TOKEN,
        password=OWNERS_PASSWORD,
        max_failures=1_000,
    )
    database = AuthDatabase()
    async with WebSocketGateway(guarded_config(auth=auth), authdb=database) as gateway:
        gate = Gate(gateway)
        gate.expire()
        yield gate
        await hang_up(gateway)
    database.close()


async def by_header(gate: Gate, secret: str) -> str | None:
    """The user that a bearer signs in, or None."""
    try:
        peer = await connect(gate.gateway, secret)
    except InvalidStatus as refused:
        answer = refused.response
    else:
        client = list(gate.gateway.clients)[-1]
        await peer.close()
        return client.user_id
    assert answer.status_code == 401
    assert "WWW-Authenticate" in answer.headers
    return None


async def by_frame(peer: WebSocketPeer, frame: Frame) -> str | None:
    """The user that an `auth` signs in, or None."""
    answer = await peer.ask("auth", frame)
    if answer.type == "error":
        assert error_of(answer) == "AUTH_FAILED"
        return None
    user: str = answer.data()["userId"]
    return user


@pytest.mark.parametrize("state", STATES)
async def test_only_the_right_stored_token_signs_in_by_the_header(gate, state):
    """Before the upgrade; the others are refused with 401."""
    user = await by_header(gate, gate.tokens[state])

    assert user == ("ada" if state == "right" else None)


async def by_call(gate: Gate, *secrets: str) -> int:
    """The status of an HTTP call with so many bearers."""
    bearers = [f"Authorization: Bearer {secret}" for secret in secrets]
    async with await RawSocket.connect(gate.gateway.port) as peer:
        peer.send(request("/api/v1/sessions", *bearers, host=host(gate.gateway)))
        return (await peer.answer()).status


@pytest.mark.parametrize("state", STATES)
async def test_only_the_right_stored_token_makes_a_call(gate, state):
    """Over HTTP, where each call is judged anew; two bearers are no request."""
    right = gate.tokens["right"]

    assert await by_call(gate, gate.tokens[state]) == (200 if state == "right" else 401)
    assert await by_call(gate, gate.tokens[state], right) == 400
    assert await by_call(gate) == 401
    for other in (PASSWORD, OWNERS_PASSWORD, f"ada:{PASSWORD}"):
        assert await by_call(gate, other) == 401


@pytest.mark.parametrize("state", STATES)
async def test_only_the_right_stored_token_signs_in_by_the_frame(gate, state):
    """Afterwards; the connection stays and may try again."""
    peer = await connect(gate.gateway)

    user = await by_frame(peer, {"token": gate.tokens[state]})

    assert user == ("ada" if state == "right" else None)
    assert await by_frame(peer, {"token": gate.tokens["right"]}) == "ada"


@pytest.mark.parametrize(
    "password", ["", "wrong", PASSWORD + " ", OWNERS_PASSWORD, OWNERS_TOKEN, "the token"]
)
@pytest.mark.parametrize("user", ["ada", "nobody", "owner", ""])
async def test_only_the_right_password_signs_a_user_in(gate, user, password):
    """Neither the owner's secrets nor a token of the same user are one."""
    peer = await connect(gate.gateway)
    given = gate.tokens["right"] if password == "the token" else password

    assert await by_frame(peer, {"user": user, "password": given}) is None
    assert await by_frame(peer, {"user": user, "password": PASSWORD}) == (
        "ada" if user == "ada" else None
    )


async def test_only_the_owners_own_secret_signs_the_owner_in(gate):
    """The one of the mode, in its own field."""
    mode = gate.gateway.config.auth.mode
    right = {"token": OWNERS_TOKEN} if mode == "token" else {"password": OWNERS_PASSWORD}
    wrong: list[Frame] = [
        {"token": OWNERS_PASSWORD},
        {"password": OWNERS_TOKEN},
        {"token": OWNERS_TOKEN} if mode == "password" else {"password": OWNERS_PASSWORD},
        {"token": PASSWORD},
        {"password": PASSWORD},
        {"password": gate.tokens["right"]},
    ]
    peer = await connect(gate.gateway)

    assert [await by_frame(peer, frame) for frame in wrong] == [None] * len(wrong)
    assert await by_frame(peer, right) == "owner"
    assert await by_header(gate, OWNERS_TOKEN) == ("owner" if mode == "token" else None)


async def test_two_credentials_at_once_are_none(gate):
    """Even if both are right: nobody could say which one counts."""
    both: list[Frame] = [
        {"token": gate.tokens["right"], "password": OWNERS_PASSWORD},
        {"token": OWNERS_TOKEN, "password": OWNERS_PASSWORD},
        {"token": gate.tokens["right"], "user": "ada", "password": PASSWORD},
        {"token": gate.tokens["right"], "user": "ada"},
    ]
    peer = await connect(gate.gateway)

    assert [await by_frame(peer, frame) for frame in both] == [None] * len(both)


async def test_no_credential_at_all_is_not_a_failure(gate):
    """It is asked for, and nothing is counted."""
    peer = await connect(gate.gateway)

    answers = [await peer.ask("auth", frame) for frame in ({}, {"user": "ada"}, {"token": None})]

    assert [error_of(answer) for answer in answers] == ["AUTH_REQUIRED"] * 3
    assert gate.gateway.door.failures == 0


@pytest.mark.parametrize("scheme", ["", "Basic ", "Bearer", "bearer  "])
async def test_a_header_that_is_no_bearer_is_refused(gate, scheme):
    """With 401; the scheme's case and spaces do not matter."""
    header = f"Authorization: {scheme}{gate.tokens['right']}"
    async with await RawSocket.connect(gate.gateway.port) as peer:
        peer.send(upgrade_to(gate.gateway, header))

        assert (await peer.head()).status == (101 if scheme == "bearer  " else 401)


async def test_two_headers_are_refused(gate):
    """Before either is compared."""
    header = f"Authorization: Bearer {gate.tokens['right']}"
    async with await RawSocket.connect(gate.gateway.port) as peer:
        peer.send(upgrade_to(gate.gateway, header, header))

        assert (await peer.head()).status == 400


async def test_a_wrong_frame_leaves_what_the_header_opened(gate):
    """And another user's credential too."""
    header = f"Authorization: Bearer {gate.tokens['right']}"
    async with raw(gate.gateway, header):
        [client] = gate.gateway.clients
        identity = client.identity
    peer = await connect(gate.gateway, gate.tokens["right"])
    client = next(c for c in gate.gateway.clients if c.identity is not identity)
    before = client.identity

    assert await by_frame(peer, {"token": gate.tokens["revoked"]}) is None
    mode = gate.gateway.config.auth.mode
    owners = {"token": OWNERS_TOKEN} if mode == "token" else {"password": OWNERS_PASSWORD}
    assert error_of(await peer.ask("auth", owners)) == "ALREADY_AUTHENTICATED"
    assert client.identity is before
