"""``trunkline backup``, as processes against a real gateway that is used meanwhile."""

import json
import stat
from contextlib import closing

import pytest
from processes import Running, clean_environ, invoke

from trunkline.authdb import AUTH_FILE, AuthDatabase


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """A command at a gateway that keeps its sessions in a file; three messages in ``room``."""
    folder = tmp_path_factory.mktemp("gateway") / "data"
    environ = clean_environ(folder.parent) | {"TRUNKLINE_DATA_DIR": str(folder)}
    running = Running(environ, "serve", "--port", "0", "--history", "sqlite")
    environ["TRUNKLINE_URL"] = running.wait_for(r"listening on (http\S+)")[1]

    def run(*args, **extra):
        return invoke(environ | extra, *args)

    for text in ("one", "two", "three"):
        assert run("send", "room", text).exit_code == 0
    run.folder = folder
    run.environ = environ
    yield run
    running.end()
    running.close()


@pytest.fixture
def restored(cli):
    """Start gateways with a backup; the function returns how to use one from the command line."""
    started = []

    def start(folder):
        environ = cli.environ | {"TRUNKLINE_DATA_DIR": str(folder)}
        running = Running(environ, "serve", "--port", "0", "--history", "sqlite")
        started.append(running)
        environ["TRUNKLINE_URL"] = running.wait_for(r"listening on (http\S+)")[1]
        return lambda *args, **extra: invoke(environ | extra, *args)

    yield start
    for running in started:
        running.end()
        running.close()


def said(output):
    """The texts of the chats in NDJSON."""
    messages = [json.loads(line) for line in output.splitlines()]
    return [m["payload"]["message"] for m in messages if m["type"] == "chat"]


def made(cli, name):
    """The secret of a new token."""
    done = cli("token", "create", "--name", name, "--role", "control", "--json")
    return json.loads(done.stdout)["token"]


def test_a_copy_of_the_sessions_can_be_started(cli, restored, tmp_path):
    """It holds the messages."""
    done = cli("backup", str(tmp_path / "copy"))

    assert done.exit_code == 0, done.stderr
    export = restored(tmp_path / "copy")("sessions", "export", "room")
    assert said(export.stdout)[:3] == ["one", "two", "three"]


def test_a_copy_of_the_credentials_lets_in_whom_they_let_in(cli, restored, tmp_path):
    """Tokens that are good stay so, and a token that was revoked before stays revoked."""
    good, gone = made(cli, "good"), made(cli, "gone")
    assert cli("token", "revoke", "gone").exit_code == 0

    assert cli("backup", str(tmp_path / "copy")).exit_code == 0

    again = restored(tmp_path / "copy")
    assert again("sessions", TRUNKLINE_TOKEN=good).exit_code == 0
    assert again("sessions", TRUNKLINE_TOKEN=gone).exit_code == 4


def test_a_copy_that_is_made_while_others_write_is_whole(cli, tmp_path):
    """Each copy is the log of one moment, with an audit log in which nothing is missing."""
    writing = AuthDatabase(cli.folder / AUTH_FILE)
    writing.create("CREATE TABLE IF NOT EXISTS scratch (x TEXT) STRICT")
    with closing(writing), writing.transaction():
        writing.write("INSERT INTO scratch VALUES ('half of it')")
        during = cli("backup", str(tmp_path / "during"))
    after = cli("backup", str(tmp_path / "after"))

    assert during.exit_code == after.exit_code == 0
    for name, rows in (("during", 0), ("after", 1)):
        verdict = cli("audit", "verify", "--data-dir", str(tmp_path / name))
        with closing(AuthDatabase(tmp_path / name / AUTH_FILE)) as copy:
            assert copy.row("SELECT count(*) FROM scratch")[0] == rows
        assert "none changed or removed" in verdict.stdout


def test_a_copy_is_for_its_owner_alone(cli, tmp_path):
    """Two files in a folder, and none of them is for others; the owner's token is not there."""
    assert cli("backup", str(tmp_path / "copy")).exit_code == 0

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "copy").iterdir()}
    assert modes == {"log.db": 0o600, "auth.db": 0o600}
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700


def test_nothing_is_replaced(cli, tmp_path):
    """What is there stays as it is."""
    target = tmp_path / "copy"
    target.mkdir()
    (target / "log.db").write_text("mine")

    done = cli("backup", str(target))

    assert "exists already" in done.stderr
    assert done.exit_code == 1
    assert (target / "log.db").read_text() == "mine"


def test_what_a_killed_backup_left_is_in_nobodys_way(cli, tmp_path):
    """Half a copy never has the name that was asked for."""
    (tmp_path / "copy.partial").mkdir()
    (tmp_path / "copy.x.partial").mkdir()

    assert cli("backup", str(tmp_path / "copy")).exit_code == 0
    assert "parent" in cli("backup", str(tmp_path / "no-parent" / "copy")).stderr


def test_a_damaged_file_makes_no_backup(tmp_path):
    """Nothing is left behind that looks like one."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "auth.db").write_bytes(b"no database at all" * 400)

    done = invoke(
        clean_environ(tmp_path), "backup", "--data-dir", str(data), str(tmp_path / "copy")
    )

    assert "is damaged" in done.stderr
    assert done.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_where_there_is_nothing_there_is_no_backup(tmp_path):
    """An empty folder is said to be none of ours."""
    done = invoke(
        clean_environ(tmp_path), "backup", "--data-dir", str(tmp_path), str(tmp_path / "copy")
    )

    assert "neither log.db nor auth.db" in done.stderr
    assert done.exit_code == 1
