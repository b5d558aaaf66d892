"""Users with passwords: what is kept, and how they are judged."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from trunkline.authdb import AuthDatabase
from trunkline.errors import GatewayError
from trunkline.users import _NOBODY, PasswordPool, Users, _hasher


@pytest.fixture
def path(tmp_path):
    return tmp_path / "auth.db"


@pytest.fixture
def users(path):
    database = AuthDatabase(path)
    users = Users(database)
    yield users
    users.close()
    database.close()


async def test_a_user_is_known_by_the_password(users):
    """And by nothing else."""
    ada = users.add("ada", "open sesame", roles={"webchat", "node"}, scopes={"approve"})

    assert await users.verify("ada", "open sesame") == ada
    assert (ada.roles, ada.scopes) == ({"webchat", "node"}, {"approve"})
    for id, password in [("ada", ""), ("ada", "Open sesame"), ("bob", "open sesame"), ("", "")]:
        assert await users.verify(id, password) is None


async def test_a_new_password_takes_the_place_of_the_old_one(users):
    """And what the old one opened does not stand any more."""
    ada = users.add("ada", "first")

    assert users.set_password("ada", "second")

    assert await users.verify("ada", "first") is None
    new = await users.verify("ada", "second")
    assert users.holds("ada", new.version)
    assert not users.holds("ada", ada.version)
    assert not users.set_password("nobody", "x")


async def test_a_user_that_was_removed_and_made_again_is_another_one(users):
    """Nothing of the first one stands."""
    first = users.add("ada", "first")
    assert users.remove("ada")
    assert not users.remove("ada")
    assert await users.verify("ada", "first") is None

    second = users.add("ada", "second")

    assert users.holds("ada", second.version)
    assert second.version == first.version or not users.holds("ada", first.version)


async def test_another_process_changes_who_gets_in_at_once(users, path):
    """Every attempt is judged by what the file says then."""
    other = Users(AuthDatabase(path))
    other.add("ada", "secret")
    assert await users.verify("ada", "secret") is not None

    other.remove("ada")

    assert await users.verify("ada", "secret") is None


def test_no_password_is_in_the_file_or_in_a_repr(users, path):
    """Only its argon2id."""
    user = users.add("ada", "xyzzy-canary")

    written = b"".join(Path(path.parent, name).read_bytes() for name in os.listdir(path.parent))
    assert b"xyzzy-canary" not in written
    assert b"$argon2id$v=19$" in written
    assert "canary" not in repr((user, users.list()))


@pytest.mark.parametrize("id", ["owner", "local", "gateway", "", "a\nb", "x" * 129])
def test_some_users_cannot_be_made(users, id):
    """Those that the gateway itself makes, and what is no name."""
    with pytest.raises(ValueError, match="user id"):
        users.add(id, "secret")


def test_a_user_cannot_be_made_twice_or_without_a_password(users):
    """The first one stays."""
    users.add("ada", "secret")

    with pytest.raises(ValueError, match="already"):
        users.add("ada", "other")
    with pytest.raises(ValueError, match="empty"):
        users.add("bob", "")

    assert [user.id for user in users.list()] == ["ada"]


def test_a_user_that_is_not_there_costs_as_much_as_one_that_is():
    """The hash in its place is made with the same parameters."""
    made = _hasher.hash("x")

    assert _NOBODY.split("$")[:4] == made.split("$")[:4]
    assert [len(part) for part in _NOBODY.split("$")] == [len(part) for part in made.split("$")]
    assert not _hasher.check_needs_rehash(_NOBODY)


async def test_only_so_many_passwords_are_judged_and_wait():
    """The next is refused, with the time after which it may be tried again."""
    pool, gate, busy = PasswordPool(workers=2, queue=3), threading.Event(), []

    def judge() -> bool:
        busy.append(threading.current_thread())
        return gate.wait(10)

    judged = [asyncio.ensure_future(pool.run(judge)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(GatewayError) as refused:
        await pool.run(judge)
    gate.set()

    assert await asyncio.gather(*judged) == [True] * 5
    assert (refused.value.code, refused.value.retry_after) == ("OVERLOADED", 1.0)
    assert len(set(busy)) <= 2
    assert await pool.run(judge)
    pool.close()
