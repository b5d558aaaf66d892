"""`trunkline token` and `trunkline users`: the database of credentials from the command line."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import websockets
from processes import PATIENCE, Running, clean_environ, invoke

from trunkline.cli_store import parse_duration
from trunkline.credentials import PREFIXES
from trunkline.messages import create_message, decode_message, encode


@pytest.fixture
def environ(tmp_path):
    return clean_environ(tmp_path)


def told(environ, *args, input=""):
    """What a command prints as JSON."""
    result = invoke(environ, *args, "--json", input=input)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def create(environ, *args):
    return told(environ, "token", "create", "--name", "phone", "--role", "webchat", *args)


class TestTokens:
    def test_a_token_is_made_and_shown_once(self, environ):
        """Alone on stdout; what it is for stands on stderr, and it is nowhere else."""
        made = invoke(environ, "token", "create", "--name", "phone", "--role", "webchat")

        secret = made.stdout.strip()
        assert re.fullmatch(r"tl_[A-Za-z0-9_-]{43}", secret)
        assert "phone" in made.stderr
        assert secret not in made.stderr
        for command in (("token", "list"), ("token", "inspect", "phone"), ("audit",)):
            assert secret not in invoke(environ, *command, "--json").output

    def test_everything_that_was_granted_is_listed(self, environ):
        """As JSON with the times in milliseconds."""
        made = create(
            environ,
            *("--role", "node", "--scope", "approve", "--session", "acme-*", "--agent", "bot"),
            *("--user", "ada", "--expires", "30d"),
        )

        [listed] = told(environ, "token", "list")

        assert {**listed, "token": made["token"]} == made
        assert (listed["name"], listed["userId"], listed["status"]) == ("phone", "ada", "valid")
        assert (listed["roles"], listed["scopes"]) == (["node", "webchat"], ["approve"])
        assert (listed["sessionPatterns"], listed["agentPatterns"]) == (["acme-*"], ["bot"])
        assert listed["expiresAt"] - listed["createdAt"] in range(30 * 86_400_000 + 1_000)
        assert (listed["createdBy"] != "", listed["lastUsedAt"]) == (True, None)

    def test_a_token_belongs_to_the_user_of_its_name(self, environ):
        """Unless another one is named; it has no bounds and no end of its own accord."""
        made = create(environ)

        assert (made["userId"], made["expiresAt"]) == ("phone", None)
        assert (made["sessionPatterns"], made["agentPatterns"]) == (["*"], ["*"])

    def test_a_token_is_revoked_by_its_name_or_id(self, environ):
        """Once; a second time there is nothing to do."""
        made = create(environ)

        assert told(environ, "token", "revoke", "phone")["status"] == "revoked"
        again = invoke(environ, "token", "revoke", made["id"])

        assert (again.exit_code, "revoked before" in again.stderr) == (1, True)
        assert told(environ, "token", "inspect", made["id"])["status"] == "revoked"

    def test_a_rotated_token_keeps_its_id(self, environ):
        """The new secret is known by what is pasted, the old one not any more."""
        made = create(environ)

        rotated = told(environ, "token", "rotate", "phone")

        assert rotated["id"] == made["id"]
        pasted = told(environ, "token", "inspect", input=rotated["token"] + "\n")
        assert (pasted["id"], "token" in pasted) == (made["id"], False)
        old = invoke(environ, "token", "inspect", "-", input=made["token"] + "\n")
        assert (old.exit_code, "no token of this gateway" in old.stderr) == (1, True)

    def test_a_token_in_the_command_itself_is_not_looked_at(self, environ):
        """Others on the machine can see it there."""
        made = create(environ)

        result = invoke(environ, "token", "inspect", made["token"])

        assert (result.exit_code, "stdin" in result.stderr) == (1, True)

    def test_two_tokens_of_one_name_are_told_apart_by_their_ids(self, environ):
        """The message says so."""
        create(environ)
        create(environ)

        result = invoke(environ, "token", "revoke", "phone")

        assert (result.exit_code, "2 tokens have this name" in result.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("--role", "boss"), "no role 'boss'"),
            (("--scope", "everything"), "no scope 'everything'"),
            (("--session", "a b"), "pattern"),
            (("--expires", "soon"), "duration"),
            (("--expires", "0d"), "duration"),
            (("--user", ""), None),
        ],
    )
    def test_what_cannot_be_granted_is_wrong_usage(self, environ, args, says):
        """Exit code 2, with a sentence; an empty user is the token's name."""
        result = invoke(environ, "token", "create", "--name", "phone", *args)

        assert result.exit_code == (2 if says else 0)
        assert says is None or says in result.stderr
        assert len(told(environ, "token", "list")) == (0 if says else 1)

    def test_what_is_done_is_put_on_record(self, environ):
        """With the user of this machine who did it."""
        made = create(environ)
        told(environ, "token", "rotate", made["id"])
        told(environ, "token", "revoke", made["id"])

        lines = invoke(environ, "audit", "--json").stdout.splitlines()
        entries = [json.loads(line) for line in reversed(lines)]

        actions = [entry["action"] for entry in entries]
        assert actions == ["token.create", "token.rotate", "token.revoke"]
        assert {entry["target"] for entry in entries} == {made["id"]}

    def test_tables_are_for_people(self, environ):
        """Without JSON, with a status for each."""
        create(environ, "--session", "acme-*")

        shown = invoke(environ, "token", "list").stdout

        assert all(word in shown for word in ("phone", "valid", "webchat", "session=acme-*"))


class TestUsers:
    def test_a_user_is_added_listed_changed_and_removed(self, environ):
        """The password comes from stdin, or a prompt."""
        added = told(environ, "users", "add", "ada", "--scope", "approve", input="secret\n")
        assert (added["userId"], added["roles"], added["scopes"]) == (
            "ada", ["webchat"], ["approve"],
        )  # fmt: skip

        told(environ, "users", "passwd", "ada", input="other\n")
        assert [user["userId"] for user in told(environ, "users", "list")] == ["ada"]

        told(environ, "token", "create", "--name", "x", "--user", "ada")
        assert told(environ, "users", "remove", "ada")["tokensRevoked"] == 1
        assert told(environ, "users", "list") == []

    def test_what_cannot_be_is_said(self, environ):
        """Exit codes 1 and 2."""
        told(environ, "users", "add", "ada", input="secret\n")

        twice = invoke(environ, "users", "add", "ada", input="x\n")
        empty = invoke(environ, "users", "add", "bob", input="\n")
        owner = invoke(environ, "users", "add", "owner", input="x\n")
        nobody = [invoke(environ, "users", c, "eve", input="x\n") for c in ("passwd", "remove")]

        assert (twice.exit_code, "already" in twice.stderr) == (1, True)
        assert (empty.exit_code, "empty" in empty.stderr) == (2, True)
        assert (owner.exit_code, "own" in owner.stderr) == (2, True)
        assert [result.exit_code for result in nobody] == [1, 1]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("15m", 900_000), ("12h", 43_200_000), ("30d", 2_592_000_000), ("1w", 604_800_000)],
)
def test_durations_have_a_unit(text, milliseconds):
    """A number and a letter."""
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "0s", "30 d", "1y"])
def test_what_is_no_duration_is_refused(text):
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_the_file_must_be_ones_own(environ, tmp_path):
    """If others may read it, nothing is done."""
    create(environ)
    [path] = tmp_path.rglob("auth.db")
    path.chmod(0o644)

    result = invoke(environ, "token", "list")

    assert (result.exit_code, "chmod 600" in result.stderr) == (2, True)


# Beside a running gateway


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The environment of a gateway that runs, and of who uses it."""
    return clean_environ(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def served(home):
    """A gateway as a process, on that data folder; the tests share it."""
    running = Running(home, "serve", "--port", "0")
    yield running.wait_for(r"listening on http(://\S+)")[1]
    running.end()
    running.close()


async def opened(address, secret):
    """A connection that has signed in."""
    headers = {"Authorization": f"Bearer {secret}"}
    socket = await websockets.connect(
        f"ws{address}/ws", additional_headers=headers, proxy=None, open_timeout=PATIENCE
    )
    await socket.recv()
    return socket


async def called(environ, *args):
    """A command, run to its end; the gateway is another process."""
    result = await asyncio.to_thread(invoke, environ, *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def close_of(socket):
    """The code with which the gateway closes a connection."""
    async with asyncio.timeout(PATIENCE):
        await socket.wait_closed()
    return socket.close_code


@pytest.mark.parametrize("how", ["revoke", "rotate"])
async def test_a_running_gateway_closes_what_a_token_opened(home, served, how):
    """And takes the token no more; the others' connections stay."""
    made = await called(home, "token", "create", "--name", f"{how}-phone")
    other = await called(home, "token", "create", "--name", f"{how}-laptop")
    phone, laptop = await opened(served, made["token"]), await opened(served, other["token"])

    await called(home, "token", how, f"{how}-phone")

    assert await close_of(phone) == 4003
    with pytest.raises(websockets.InvalidStatus) as refused:
        await opened(served, made["token"])
    assert refused.value.response.status_code == 401
    await laptop.send(encode(create_message("ping")).decode())
    assert decode_message(await laptop.recv()).type == "pong"
    await laptop.close()


async def test_a_running_gateway_knows_a_user_at_once(home, served):
    """On the command line too, and signs the user out who was removed."""
    await asyncio.to_thread(invoke, home, "users", "add", "ada", input="secret\n")
    as_ada = home | {"TRUNKLINE_PASSWORD": "secret", "TRUNKLINE_URL": f"http{served}"}
    assert (await called(as_ada, "status", "--user", "ada"))["status"] == "ok"
    assert await called(as_ada | {"TRUNKLINE_USER": "ada"}, "agents") == []
    socket = await websockets.connect(f"ws{served}/ws", proxy=None)
    await socket.recv()
    sign_in = create_message("auth", {"user": "ada", "password": "secret"})
    await socket.send(encode(sign_in).decode())
    assert decode_message(await socket.recv()).type == "auth_success"

    await called(home, "users", "remove", "ada")

    assert await close_of(socket) == 4003


def test_there_are_three_kinds_of_secrets():
    """The prefixes are documented, for scanners of leaked secrets."""
    assert PREFIXES == {"token": "tl_", "device": "tl_d_", "session": "tl_s_"}
