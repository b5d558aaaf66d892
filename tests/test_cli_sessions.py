"""``trunkline sessions``, as processes against a real gateway."""

import json

import pytest
from processes import Running, clean_environ, invoke


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """A command at a gateway that keeps its sessions in a file; three messages in ``room``."""
    folder = tmp_path_factory.mktemp("gateway")
    environ = clean_environ(folder)
    running = Running(environ, "serve", "--port", "0", "--history", "sqlite")
    environ["TRUNKLINE_URL"] = running.wait_for(r"listening on (http\S+)")[1]

    def run(*args):
        return invoke(environ, *args)

    for text in ("one", "two", "three"):
        assert run("send", "room", text).exit_code == 0
    run.folder = folder
    run.environ = environ
    yield run
    running.end()
    running.close()


def said(output):
    """The texts of the chats in NDJSON."""
    messages = [json.loads(line) for line in output.splitlines()]
    return [m["payload"]["message"] for m in messages if m["type"] == "chat"]


def test_sessions_are_listed(cli):
    """Without a command, the sessions are listed."""
    done = cli("sessions")

    assert "room" in done.stdout


def test_history_prints_a_page(cli):
    """The last messages are printed, oldest first."""
    done = cli("sessions", "history", "room", "--limit", "2")

    assert said(done.stdout) == ["two", "three"]


def test_history_begins_where_it_is_told(cli):
    """``--after`` reads forward."""
    done = cli("sessions", "history", "room", "--after", "0", "--limit", "1")

    assert said(done.stdout) == ["one"]


def test_export_prints_the_whole_log(cli):
    """Everything that the log holds comes, one object a line."""
    done = cli("sessions", "export", "room")

    assert said(done.stdout) == ["one", "two", "three"]


def test_export_replaces_no_file(cli, tmp_path):
    """A file that is there stays as it is."""
    target = tmp_path / "room.ndjson"
    target.write_text("mine")

    done = cli("sessions", "export", "room", "--output", str(target))

    assert "exists" in done.stderr
    assert done.exit_code == 1
    assert target.read_text() == "mine"


def test_tail_follows_a_session(cli):
    """What is said while it runs is printed at once."""
    running = Running(cli.environ, "sessions", "tail", "room", "--lines", "1")
    try:
        running.wait_for("three")
        cli("send", "room", "four")

        assert running.wait_for('"message":"four"')
    finally:
        running.close()


def test_an_unknown_session_is_an_error(cli):
    """Nothing is made by looking at it."""
    done = cli("sessions", "history", "nowhere")

    assert "SESSION_NOT_FOUND" in done.stderr
    assert done.exit_code == 1


def test_close_with_delete_removes_the_log(cli):
    """A deleted session is not there any more."""
    cli("send", "gone", "hello")

    done = cli("sessions", "close", "gone", "--delete")

    assert done.exit_code == 0
    assert cli("sessions", "history", "gone").exit_code == 1
