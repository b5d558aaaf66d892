"""``auth.db``: shared by the gateway and the command line."""

import sqlite3
import stat

import pytest

from trunkline.authdb import AuthDatabase
from trunkline.errors import ConfigError

SCRIPT = "CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY) STRICT"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "auth.db"


def opened(path):
    database = AuthDatabase(path)
    database.create(SCRIPT)
    return database


def test_is_for_its_owner_alone(path):
    """The file is 0600 in a folder that is 0700."""
    opened(path).close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_refuses_a_file_that_others_may_read(path):
    """A file with open permissions is refused with the command that mends it."""
    opened(path).close()
    path.chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        AuthDatabase(path)


def test_notices_what_another_process_writes(path):
    """A write of somebody else is noticed once, one's own not at all."""
    mine, other = opened(path), opened(path)
    mine.write("INSERT INTO things VALUES ('a')")
    assert not mine.changed()

    other.write("INSERT INTO things VALUES ('b')")

    assert mine.changed()
    assert not mine.changed()
    mine.close()
    other.close()


def test_a_transaction_that_fails_leaves_nothing(path):
    """Several writes are done all or none."""
    database = opened(path)

    def twice():
        with database.transaction():
            database.write("INSERT INTO things VALUES ('a')")
            database.write("INSERT INTO things VALUES ('a')")

    with pytest.raises(sqlite3.IntegrityError):
        twice()

    assert database.rows("SELECT * FROM things") == []
    database.close()


def test_a_damaged_file_is_refused(path):
    """A file that is no database is an error, never an empty one."""
    opened(path).close()
    path.write_bytes(b"not a database at all" * 100)

    with pytest.raises(ConfigError, match="cannot use"):
        AuthDatabase(path)
