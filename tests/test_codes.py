"""Sign-in codes: links that are worth one sign-in on this machine."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from peers import connect, error_of, guarded_config, hang_up, person, token_of
from processes import Running, clean_environ, finished, invoke

from trunkline.auth import OWNER
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.clients import Peer
from trunkline.codes import KEPT, LIFETIME, SESSION_LIFETIME, SignInCodes
from trunkline.config import AuthConfig
from trunkline.credentials import Credentials
from trunkline.ids import now_ms
from trunkline.transports.websocket import WebSocketGateway

HERE = Peer("127.0.0.1", "127.0.0.1", local=True)
AWAY = Peer("127.0.0.1", "127.0.0.1", local=False)


@pytest.fixture
def database(tmp_path):
    opened = AuthDatabase(tmp_path / AUTH_FILE)
    yield opened
    opened.close()


@pytest.fixture
def codes(database, clock):
    return SignInCodes(database, Credentials(database, lambda: clock.now))


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = now_ms()

    monkeypatch.setattr("trunkline.codes.now_ms", lambda: Clock.now)
    return Clock


@asynccontextmanager
async def gateway_with(path=None, **groups):
    database = AuthDatabase(path)
    async with WebSocketGateway(guarded_config(**groups), authdb=database) as gateway:
        yield gateway
        await hang_up(gateway)
    database.close()


@pytest.fixture
async def gateway():
    async with gateway_with() as gateway:
        yield gateway


# The codes


def test_a_code_is_worth_its_makers_rights_and_no_more(codes):
    """As a session's token that ends."""
    maker = person("ada", "webchat", "approve", session_patterns=("acme-*",))
    code, _ = codes.create(maker)

    identity, token = codes.redeem(code, HERE)

    assert identity.user_id == "ada"
    assert (identity.roles, identity.scopes) == (maker.roles, maker.scopes)
    assert identity.session_patterns == ("acme-*",)
    assert token.startswith("tl_s_")


def test_a_code_is_good_once(codes):
    """The second time it is as wrong as any."""
    code, _ = codes.create(OWNER)

    assert codes.redeem(code, HERE) is not None
    assert codes.redeem(code, HERE) is None


def test_a_code_is_good_for_two_minutes(codes, clock):
    """Not a millisecond longer."""
    code, ends = codes.create(OWNER)
    late, _ = codes.create(OWNER)

    assert ends == clock.now + LIFETIME == clock.now + 120_000
    clock.now = ends - 1
    assert codes.redeem(code, HERE) is not None
    clock.now = ends
    assert codes.redeem(late, HERE) is None


def test_the_session_ends_after_twelve_hours_or_with_its_maker(codes, clock):
    """Whatever comes first."""
    long, _ = codes.create(OWNER)
    short, _ = codes.create(person("ada", expires_at=clock.now + 5_000))

    assert codes.redeem(long, HERE).identity.expires_at == clock.now + SESSION_LIFETIME
    assert codes.redeem(short, HERE).identity.expires_at == clock.now + 5_000


def test_elsewhere_a_code_is_not_even_looked_at(codes):
    """And stays valid for this machine."""
    code, _ = codes.create(OWNER)

    assert codes.redeem(code, AWAY) is None
    assert codes.redeem(code, HERE) is not None


@pytest.mark.parametrize("code", ["", "tl_c_", "tl_c_" + "A" * 43, "\ud800", "ü"])
def test_any_other_text_is_wrong(codes, code):
    """Without an exception."""
    codes.create(OWNER)

    assert codes.redeem(code, HERE) is None


def test_a_code_has_256_bits_and_is_kept_as_its_hash(codes, database):
    """The file holds nothing that could be used."""
    code, _ = codes.create(OWNER)

    assert len(code) == len("tl_c_") + 43
    kept = database.rows("SELECT * FROM codes")
    assert not any(code[4:] in str(value) for row in kept for value in tuple(row))


def test_only_so_many_codes_are_kept(codes, database):
    """The oldest go first."""
    first, _ = codes.create(OWNER)
    for _ in range(KEPT):
        last, _ = codes.create(OWNER)

    assert database.row("SELECT count(*) FROM codes")[0] == KEPT
    assert codes.redeem(first, HERE) is None
    assert codes.redeem(last, HERE) is not None


def test_of_two_who_come_at_once_one_gets_in(tmp_path):
    """In two processes or threads, each with its own connection to the file."""
    path = tmp_path / AUTH_FILE
    database = AuthDatabase(path)
    maker = SignInCodes(database, Credentials(database))
    wanted = [maker.create(OWNER)[0] for _ in range(20)]
    start = threading.Barrier(2)
    won: list[list[str]] = [[], []]

    def take(number):
        own = AuthDatabase(path)
        mine = SignInCodes(own, Credentials(own))
        start.wait()
        for code in wanted:
            if mine.redeem(code, HERE) is not None:
                won[number].append(code)
        own.close()

    threads = [threading.Thread(target=take, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(won[0] + won[1]) == sorted(wanted)
    database.close()


# At the door


async def test_a_code_signs_in_and_brings_a_token_for_later(gateway):
    """The token signs in by itself, until it is revoked."""
    code, _ = gateway.codes.create(OWNER)
    peer = await connect(gateway)

    answer = await peer.ask("auth", {"code": code})
    token = answer.data()["token"]
    again = await connect(gateway, token)

    assert answer.data()["userId"] == "owner"
    assert answer.data()["expiresAt"]
    assert (await again.ask("health")).type == "health"
    gateway.credentials.revoke(gateway.credentials.find(token).id)
    assert (await again.gone())[0] == (await peer.gone())[0] == 4003


async def test_a_wrong_code_is_auth_failed_and_locks_out_after_ten(gateway):
    """Like any wrong credential."""
    code, _ = gateway.codes.create(OWNER)
    peer = await connect(gateway)

    answers = [error_of(await peer.ask("auth", {"code": f"tl_c_{n}"})) for n in range(10)]
    locked = await peer.ask("auth", {"code": code})

    assert set(answers) == {"AUTH_FAILED"}
    assert error_of(locked) == "AUTH_LOCKED"
    assert gateway.door.failures == 10


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_a_code_that_came_through_a_proxy_is_wrong(gateway, header):
    """A proxy on this machine makes nobody local."""
    code, _ = gateway.codes.create(OWNER)
    peer = await connect(gateway, additional_headers={header: "127.0.0.1"})

    assert error_of(await peer.ask("auth", {"code": code})) == "AUTH_FAILED"


async def test_a_code_beside_another_credential_is_wrong(gateway):
    """Nobody signs in as two; the code is not spent."""
    code, _ = gateway.codes.create(OWNER)
    peer = await connect(gateway)

    both = await peer.ask("auth", {"code": code, "token": "the-owner's-token"})

    assert error_of(both) == "AUTH_FAILED"
    assert (await peer.ask("auth", {"code": code})).type == "auth_success"


async def test_a_code_is_no_token(gateway):
    """Nor is it a code's token."""
    code, _ = gateway.codes.create(OWNER)
    peer = await connect(gateway)

    assert error_of(await peer.ask("auth", {"token": code})) == "AUTH_FAILED"


async def test_a_code_that_does_not_grant_the_role_leaves_no_session_behind(gateway):
    """The client asked for more than its maker has."""
    code, _ = gateway.codes.create(person("ada", "webchat"))
    peer = await connect(gateway)
    await peer.ask("connect", {"deviceId": "d", "role": "control"})

    assert error_of(await peer.ask("auth", {"code": code})) == "FORBIDDEN"
    assert not [c for c in gateway.credentials.list() if c.revoked_at is None]


async def test_without_stored_credentials_a_code_is_wrong(ws_gateway):
    """There is nowhere to keep one."""
    peer = await connect(ws_gateway)

    assert error_of(await peer.ask("auth", {"code": "tl_c_x"})) == "AUTH_FAILED"
    assert (await peer.ask("auth", {"token": token_of("ada")})).type == "auth_success"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_session_ends_with_the_credential_that_made_it(gateway, when):
    """Whether that ended before its code was used or afterwards."""
    stored, token = gateway.credentials.create(name="t", user_id="ada", roles=["webchat"])
    maker = await connect(gateway, token)
    code, _ = gateway.codes.create(gateway.clients.ready()[0].identity)
    peer = await connect(gateway)

    if when == "before":
        gateway.credentials.revoke(stored.id)
        assert error_of(await peer.ask("auth", {"code": code})) == "AUTH_FAILED"
    else:
        await peer.ask("auth", {"code": code})
        gateway.credentials.revoke(stored.id)
        assert (await peer.gone())[0] == 4003
    assert (await maker.gone())[0] == 4003


async def test_the_command_line_makes_codes_that_a_running_gateway_takes(tmp_path):
    """In the same file; revoking the maker's token there ends the session here."""
    folder = tmp_path / "data"
    async with gateway_with(folder / AUTH_FILE) as gateway:
        done = invoke(
            clean_environ(tmp_path), "open", "--print",
            "--url", gateway.address, "--data-dir", str(folder),
        )  # fmt: skip
        link = urlsplit(done.stdout.strip())

        peer = await connect(gateway)
        answer = await peer.ask("auth", {"code": link.fragment.removeprefix("code=")})

        assert done.exit_code == 0
        assert (link.netloc, link.path, link.query) == (f"127.0.0.1:{gateway.port}", "/", "")
        assert answer.data()["userId"] == "owner"
        assert answer.data()["scopes"] == sorted(OWNER.scopes)


# trunkline open


def test_open_says_that_no_gateway_is_there(tmp_path):
    """Exit code 3, and no code is made."""
    done = finished(clean_environ(tmp_path), "open", "--print", "--url", "http://127.0.0.1:9")

    assert done.returncode == 3
    assert "cannot reach the gateway" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("url", ["https://example.com", "ftp://127.0.0.1", "127.0.0.1:18789"])
def test_open_refuses_another_machine(tmp_path, url):
    """A link would be worth nothing there."""
    done = invoke(clean_environ(tmp_path), "open", "--print", "--url", url)

    assert done.exit_code == 2
    assert "error:" in done.stderr


async def test_open_opens_the_link_in_the_browser(tmp_path, monkeypatch):
    """And prints where, without the code."""
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda link: opened.append(link) or True)
    async with gateway_with(tmp_path / AUTH_FILE) as gateway:
        done = invoke(
            clean_environ(tmp_path),
            *("open", "--url", gateway.address, "--data-dir", str(tmp_path)),
        )

    assert done.exit_code == 0
    assert opened[0].startswith(f"{gateway.address}/#code=tl_c_") or "#code=tl_c_" in opened[0]
    assert "code" not in done.stdout


def test_the_demo_prints_a_link_that_signs_in(tmp_path):
    """Fresh, with how long it is good and how to get another."""
    environ = clean_environ(tmp_path)
    running = Running(environ, "demo", "--port", "0", "--data-dir", str(tmp_path / "data"))
    try:
        link = running.wait_for(r"http://127\.0\.0\.1:\d+/#code=(tl_c_\S+)")
        running.wait_for("Ctrl-C")
        assert "two minutes" in running.printed
        assert " open " in running.printed
    finally:
        running.end()
        running.close()
    assert link[1] in running.printed


def test_a_password_mode_gateway_takes_codes_too():
    """Codes are beside the configured credential."""
    config = guarded_config(auth=AuthConfig(mode="password", password="sesame"))
    database = AuthDatabase()

    gateway = WebSocketGateway(config, authdb=database)

    assert gateway.codes is not None
    database.close()
