"""The command line, driven as a person drives it: whole processes, real sockets."""

import json
import os
import re
import signal
import socket
import stat
import tomllib
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Running, clean_environ, finished, invoke, wait_until_gone


@pytest.fixture
def environ(tmp_path):
    return clean_environ(tmp_path)


@pytest.fixture
def trunkline(environ):
    """Run a command to its end."""

    def run(*args, input="", **changes):
        return invoke(environ | changes, *args, input=input)

    return run


@pytest.fixture
def start(environ):
    """Start a command; it is gone after the test."""
    started = []

    def start(*args, **changes):
        started.append(Running(environ | changes, *args))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def serve(start):
    """Start a gateway and return it with its address."""

    def serve(*args, **changes):
        gateway = start("serve", "--port", "0", *args, **changes)
        gateway.url = gateway.wait_for(r"listening on (http\S+)")[1]
        return gateway

    return serve


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A demo that tests share which only use it; a command at it, run to its end."""
    environ = clean_environ(tmp_path_factory.mktemp("shared"))
    running = Running(environ, "demo", "--port", "0")
    environ["TRUNKLINE_URL"] = running.wait_for(r"listening on (http\S+)")[1]
    running.wait_for("Ctrl-C")

    def run(*args, input=""):
        return invoke(environ, *args, input=input)

    run.environ = environ
    run.url = environ["TRUNKLINE_URL"]
    run.printed = running.printed
    yield run
    running.end()
    running.close()


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """A gateway without any agent that tests share; a command at it, run to its end."""
    environ = clean_environ(tmp_path_factory.mktemp("lonely"))
    running = Running(environ, "serve", "--port", "0")
    url = running.wait_for(r"listening on (http\S+)")[1]

    def run(*args, input=""):
        return invoke(environ | {"TRUNKLINE_URL": url}, *args, input=input)

    run.url = url
    yield run
    running.end()
    running.close()


@pytest.fixture
def demo(start):
    """Start a demo and return it with its address, once its agent is there."""

    def demo():
        running = start("demo", "--port", "0")
        running.url = running.wait_for(r"listening on (http\S+)")[1]
        running.wait_for("Ctrl-C")
        return running

    return demo


class TestVersion:
    def test_is_printed(self, environ):
        """`version` prints the name and number."""
        done = finished(environ, "version")

        assert re.fullmatch(r"trunkline \d+\.\d+\.\d+\n", done.stdout)
        assert done.returncode == 0

    def test_can_be_json(self, trunkline):
        """With --json a program can read it."""
        assert set(json.loads(trunkline("version", "--json").stdout)) == {"version"}


class TestConfig:
    def test_default_is_a_file_that_check_accepts(self, trunkline, tmp_path):
        """What `config default` prints is a configuration."""
        path = tmp_path / "trunkline.toml"
        path.write_text(trunkline("config", "default").stdout)

        done = trunkline("config", "check", str(path))

        assert tomllib.loads(path.read_text())["port"] == 18789
        assert (done.stdout, done.exit_code) == ("ok\n", 0)

    def test_check_names_the_error_and_ends_with_2(self, trunkline, tmp_path):
        """A misspelt key is named with its path."""
        path = tmp_path / "trunkline.toml"
        path.write_text("[limits]\nmax_bufferd = 3\n")

        done = trunkline("config", "check", str(path))

        assert "$.limits.max_bufferd" in done.stderr
        assert (done.stdout, done.exit_code) == ("", 2)


class TestUnsafeStarts:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--host", "0.0.0.0", "--auth", "none"], "without sign-in"),
            (["--bind", "all", "--auth", "none"], "without sign-in"),
            (["--auth", "password"], "auth.password_file"),
            (["--trusted-proxy", "10.0.0.1/8"], "10.0.0.1/8"),
            (["--origin", "*"], "*"),
            (["--tls-cert", "/nonexistent"], "tls.cert"),
            (["--config", "/nonexistent"], "/nonexistent"),
            (["--port", "70000"], "$.port"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_are_refused_with_a_sentence_and_2(self, trunkline, args, message):
        """A configuration that cannot work is refused before anything listens."""
        done = trunkline("serve", *args)

        assert message in done.stderr
        assert (done.stdout, done.exit_code) == ("", 2)

    def test_without_the_tailscale_program_are_refused(self, environ):
        """Sharing over a tailnet needs tailscale, and the sentence says so."""
        done = finished(environ | {"PATH": "/nonexistent"}, "serve", "--bind", "tailscale")

        assert "install tailscale" in done.stderr
        assert "Traceback" not in done.stderr
        assert (done.stdout, done.returncode) == ("", 2)

    def test_leave_no_token_behind(self, trunkline, tmp_path):
        """A start that is refused writes nothing."""
        trunkline("serve", "--origin", "*")

        assert list(tmp_path.iterdir()) == []

    def test_of_an_unknown_variable_are_refused(self, trunkline):
        """A misspelt variable does not pass silently."""
        done = trunkline("serve", TRUNKLINE_PROT="1")

        assert "TRUNKLINE_PROT" in done.stderr
        assert done.exit_code == 2


class TestServe:
    def test_says_where_it_listens_and_ends_in_order(self, serve):
        """One line tells that connections are accepted; SIGTERM ends it with 0."""
        gateway = serve()

        with urllib.request.urlopen(f"{gateway.url}/healthz") as answer:
            body = json.load(answer)
        code = gateway.end()

        assert body == {"status": "ok"}
        assert re.fullmatch(
            r"trunkline \S+ listening on http://127\.0\.0\.1:\d+\n", gateway.printed
        )
        assert gateway.process.stdout.read() == ""
        assert code == 0

    def test_ends_with_0_on_ctrl_c(self, serve):
        """Ctrl-C is how a person ends it, so it is no failure."""
        gateway = serve()

        assert gateway.end(signal.SIGINT) == 0

    def test_shows_a_new_token_once(self, serve, tmp_path):
        """The first run makes a token, stores it 0600 and shows it; the second does not."""
        first = serve()
        first.end()
        token = (tmp_path / ".local/state/trunkline/token").read_text().strip()
        second = serve()
        second.end()

        assert token in first.rest
        assert token not in second.rest
        assert len(token) == 43
        mode = (tmp_path / ".local/state/trunkline/token").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600

    def test_listens_on_loopback_only(self, lonely):
        """By default no other machine reaches the port."""
        port = int(lonely.url.rpartition(":")[2])

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))

    def test_takes_settings_from_the_environment(self, serve):
        """A variable sets what a flag would."""
        gateway = serve(TRUNKLINE_AUTH__MODE="none", TRUNKLINE_LOG__FORMAT="json")
        gateway.end()

        lines = gateway.rest.splitlines()
        assert any("sign-in is off" in json.loads(line)["event"] for line in lines)

    def test_says_when_the_port_is_taken(self, environ):
        """A port in use is a sentence with a way out, and code 1."""
        with taken_port() as port:
            done = finished(environ, "serve", "--port", str(port))

        assert "in use" in done.stderr
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 1


class TestHistory:
    def test_in_sqlite_outlives_a_kill(self, serve, trunkline):
        """What was acknowledged is there after kill -9 and a new start."""
        first = serve("--history", "sqlite")
        before = json.loads(trunkline("send", "lobby", "a", "--url", first.url, "--json").stdout)
        first.end(signal.SIGKILL)
        second = serve("--history", "sqlite")

        after = json.loads(trunkline("send", "lobby", "b", "--url", second.url, "--json").stdout)

        assert (before["seq"], before["durability"]) == (1, "process")
        assert after["seq"] == 2

    def test_in_sqlite_belongs_to_one_gateway(self, serve, trunkline):
        """A second gateway on the same data folder is refused, with a way out."""
        serve("--history", "sqlite")

        done = trunkline("serve", "--port", "0", "--history", "sqlite")

        assert "data_dir" in done.stderr
        assert done.exit_code == 2


class TestClients:
    def test_find_the_local_token_by_themselves(self, shared):
        """On the gateway's own machine and account no token needs to be typed."""
        status = json.loads(shared("status", "--json").stdout)

        assert (status["status"], status["url"]) == ("ok", shared.url)
        assert (status["agentsOnline"], status["clients"]) == (1, 2)

    def test_take_url_and_token_from_the_environment(self, serve, trunkline):
        """The documented variables stand for the flags."""
        gateway = serve("--token", "a-token-of-ones-own")

        refused = trunkline("status", TRUNKLINE_URL=gateway.url)
        let_in = trunkline(
            "status", TRUNKLINE_URL=gateway.url, TRUNKLINE_TOKEN="a-token-of-ones-own"
        )

        assert (refused.exit_code, let_in.exit_code) == (4, 0)

    def test_sign_in_with_a_password(self, serve, trunkline):
        """--password implies --auth password, at either end."""
        gateway = serve("--password", "correct horse")

        done = trunkline("status", "--url", gateway.url, "--password", "correct horse")

        assert done.exit_code == 0

    def test_a_user_without_a_password_is_wrong_usage(self, shared):
        """Nobody named on the command line is signed in as the owner in silence."""
        done = shared("status", "--user", "ada")

        assert done.exit_code == 2
        assert "--password" in done.stderr

    def test_send_tells_where_it_was_stored(self, shared):
        """The sender learns the place in the log, and who will answer."""
        done = shared("send", "sent", "-", input="from a pipe")

        assert re.fullmatch(r"stored as message \d+ \(process\); demo will answer\n", done.stdout)

    def test_list_sessions(self, shared):
        """A session that was written to is listed with its messages."""
        shared("send", "listed", "hi")

        rows = [line.split() for line in shared("sessions").stdout.splitlines()]
        as_json = json.loads(shared("sessions", "--json").stdout)

        assert rows[0] == ["SESSION", "NAME", "MEMBERS", "MESSAGES", "CREATED"]
        assert "listed" in [row[0] for row in rows]
        assert "listed" in [entry["sessionId"] for entry in as_json]

    def test_list_agents(self, shared):
        """The demo's agent is registered under its name, with its tools."""
        (agent,) = json.loads(shared("agents", "--json").stdout)
        rows = shared("agents").stdout.splitlines()

        assert (agent["id"], agent["status"]) == ("demo", "online")
        assert rows[1].split()[:2] == ["demo", "online"]
        assert rows[1].endswith("clock, calculate, count_text, roll_dice")

    def test_explain_a_route(self, shared):
        """Each candidate, whether it would be asked, and why."""
        (chosen,) = json.loads(shared("route", "explain", "--capability", "clock", "--json").stdout)
        rows = shared(
            "route", "explain", "--agent", "demo", "--label", "room=7"
        ).stdout.splitlines()
        nobody = shared("route", "explain", "--capability", "fly", "--policy", "round_robin")

        assert (chosen["agentId"], chosen["chosen"]) == ("demo", True)
        assert rows[1].split(maxsplit=2) == ["demo", "no", "its label room is not 7"]
        assert (nobody.stdout, nobody.exit_code) == ("no agent offers this\n", 0)

    @pytest.mark.parametrize(
        "args", [[], ["--capability", "clock", "--label", "room"], ["--policy", "random"]]
    )
    def test_a_route_that_cannot_be_meant_is_wrong_usage(self, shared, args):
        """No agent and no capability; a label without a value; an unknown policy."""
        assert shared("route", "explain", *args).exit_code == 2

    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["status", "--url", "http://127.0.0.1:9"], 3),
            (["status", "--url", "ftp://127.0.0.1"], 2),
            (["status", "--url", "http://192.0.2.1", "--token", "x"], 2),
            (["status", "--nonsense"], 2),
            (["nonsense"], 2),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_end_with_the_documented_code(self, trunkline, args, code):
        """Scripts can tell one failure from another."""
        done = trunkline(*args)

        assert done.stderr
        assert (done.stdout, done.exit_code) == ("", code)

    def test_end_with_4_when_the_credential_is_refused(self, shared):
        """A wrong token is told from a gateway that is not there."""
        done = shared("agents", "--token", "wrong-token")

        assert "--token" in done.stderr
        assert done.exit_code == 4


class TestChatInAPipe:
    def test_prints_the_answer_and_nothing_else(self, shared):
        """`echo ... | trunkline chat --once` is the answer on standard output, and 0."""
        done = finished(shared.environ, "chat", "--once", input="2*(3+4)")

        assert (done.stdout, done.stderr, done.returncode) == ("2*(3+4) = 14\n", "", 0)

    def test_prints_what_the_agent_says_of_a_failed_tool(self, shared):
        """A tool that fails is part of the answer, not a failure of the command."""
        done = shared("chat", "--once", input="1/0")

        assert (done.stdout, done.exit_code) == ("Nobody can divide by zero.\n", 0)

    def test_answers_line_by_line_in_any_session(self, shared):
        """Without --once each line is a message; a new session gets an agent."""
        done = shared("chat", "--session", "new", input="1+1\n\n2+2\n")

        assert done.stdout == "1+1 = 2\n2+2 = 4\n"

    def test_prints_events_as_json(self, shared):
        """With --json a program sees the tool at work, the chunks and the end."""
        done = shared("chat", "--once", "--json", input="1+1")

        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert list(dict.fromkeys(event["event"] for event in events)) == [
            "tool_started",
            "tool_updated",
            "tool_finished",
            "text",
            "completed",
        ]
        assert "".join(e["text"] for e in events if e["event"] == "text") == "1+1 = 2"
        assert events[-1]["content"] == "1+1 = 2"

    def test_fails_where_nobody_answers(self, lonely):
        """No agent is a failure that says so, not an empty answer."""
        done = lonely("chat", "--once", input="hi")

        assert "no agent answers" in done.stderr
        assert (done.stdout, done.exit_code) == ("", 1)


class TestDemo:
    def test_introduces_itself(self, shared):
        """It prints the address, the token and the next command, which works."""
        home = Path(shared.environ["HOME"])

        token = (home / ".local/state/trunkline/token").read_text().strip()
        assert f"address  {shared.url}" in shared.printed
        assert f"token    {token}" in shared.printed
        assert re.search(rf"chat --url {shared.url}\n", shared.printed)

    def test_ends_both_on_ctrl_c(self, demo):
        """After Ctrl-C neither the gateway nor the agent runs, and nobody complains."""
        gateway = demo()
        (agent,) = gateway.children()

        code = gateway.end(signal.SIGINT)
        wait_until_gone(agent)

        assert code == 0
        assert gateway.rest == ""

    def test_agent_ends_with_a_gateway_that_was_killed(self, demo):
        """No agent is left behind, however the gateway went."""
        gateway = demo()
        (agent,) = gateway.children()

        gateway.end(signal.SIGKILL)

        wait_until_gone(agent)

    def test_starts_a_lost_agent_again(self, demo):
        """An agent that died is reported and replaced."""
        gateway = demo()
        (agent,) = gateway.children()

        os.kill(agent, signal.SIGKILL)
        gateway.wait_for("the demo agent ended and will be started again", "stderr")
        gateway.wait_for("the demo agent is back", "stderr")

        (another,) = gateway.children()
        assert another != agent

    def test_says_when_the_port_is_taken(self, environ):
        """The sentence holds the command that uses another port."""
        with taken_port() as port:
            done = finished(environ, "demo", "--port", str(port))

        assert "in use" in done.stderr
        assert "trunkline demo --port" in done.stderr
        assert done.returncode == 1


@contextmanager
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
