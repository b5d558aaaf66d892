"""The terminal client: typing, watching answers stream, and working in a pipe."""

import signal
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import Running, Terminal, clean_environ
from rich.cells import cell_len
from rich.console import Console

from trunkline.cli_editor import LineEditor
from trunkline.cli_transcript import Transcript, visible, welcome
from trunkline.messages import Sender, create_message

KEYS = st.sampled_from(
    (
        *("a", "é", "漢", " ", "\r", "\x7f", "\x01", "\x05", "\x0b", "\x15", "\x17"),
        *("\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1b[3~", "\x1bOH", "\x1bx"),
        *("\x1b", "\x1b[", "\x1b[200~", "\x1b[201~"),
    )
)


def typed(*keys):
    editor = LineEditor()
    entered = editor.feed("".join(keys))
    return entered, editor.text, editor.cursor


class TestTyping:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ("hi\r", (["hi"], "", 0)),
            ("  \r", ([], "", 0)),
            ("a\rb\nc", (["a", "b"], "c", 1)),
            ("ab\x7f", ([], "a", 1)),
            ("ab\x1b[D\x1b[DX", ([], "Xab", 1)),
            ("ab\x01\x1b[3~", ([], "b", 0)),
            ("ab\x01\x04", ([], "b", 0)),
            ("ab\x1b[H\x1b[FX", ([], "abX", 3)),
            ("one two\x17", ([], "one ", 4)),
            ("one two\x02\x02\x02\x15", ([], "two", 0)),
            ("one two\x02\x02\x02\x0b", ([], "one ", 4)),
            ("a\x1bxb\x1b[5~", ([], "ab", 2)),
        ],
    )
    def test_keys_edit_the_line(self, keys, expected):
        """The keys of other command lines do what they do there."""
        assert typed(keys) == expected

    def test_earlier_lines_come_back(self):
        """Up and down walk through what was entered; the unfinished line is kept."""
        editor = LineEditor()
        editor.feed("one\rtwo\rthr")

        editor.feed("\x1b[A\x1b[A")
        oldest = editor.text
        editor.feed("\x1b[B\x1b[B")

        assert (oldest, editor.text) == ("one", "thr")

    def test_pasted_lines_stay_one_line(self):
        """Line ends in pasted text do not send it."""
        assert typed("\x1b[200~a\r\nb\x1b[201~") == ([], "a  b", 4)

    def test_ctrl_d_ends_only_an_empty_line(self):
        """Ctrl-D in the middle of a line deletes; on an empty one it ends."""
        editor = LineEditor()

        editor.feed("a\x01\x04")
        before = editor.closed
        editor.feed("\x04")

        assert (before, editor.closed) == (False, True)

    @given(keys=st.lists(KEYS), cuts=st.lists(st.integers(0, 60)))
    def test_does_not_depend_on_how_the_terminal_splits_keys(self, keys, cuts):
        """A key in two pieces is the same key; nothing makes the editor fail."""
        text = "".join(keys)
        whole, pieces = LineEditor(), LineEditor()
        entered = whole.feed(text)

        edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
        again = [line for a, b in pairwise(edges) for line in pieces.feed(text[a:b])]

        assert again == entered
        assert (pieces.text, pieces.cursor) == (whole.text, whole.cursor)
        assert 0 <= whole.cursor <= len(whole.text)

    @given(keys=st.lists(KEYS, max_size=40), width=st.integers(8, 40))
    def test_is_shown_in_one_row_with_its_cursor(self, keys, width):
        """However long the line, the row fits the terminal and shows the cursor."""
        editor = LineEditor()
        editor.feed("".join(keys))

        row = editor.render("> ", width)

        assert cell_len(row.plain) <= width
        assert any(span.style == "reverse" and span.start < span.end for span in row.spans)


CONSOLE = Console(width=60, height=20)
DEMO = Sender(client_id="c1", user_id="owner", role="node", kind="agent", agent_id="demo")
ADA = Sender(client_id="c2", user_id="owner", role="control", kind="user", device_name="Ada")


def said(type, payload, sender=DEMO, seq=None):
    message = create_message(type, payload, "lobby")
    message.sender, message.seq = sender, seq
    return message


def shown(transcript, *messages):
    return [row.plain for message in messages for row in transcript.show(message)]


def going_on(transcript, rows=10, console=CONSOLE):
    return [row.plain for row in transcript.going_on(console, rows)]


class TestTranscript:
    def test_an_answer_grows_and_is_then_said_whole(self):
        """Chunks are shown as they come; the end replaces them by the whole answer."""
        transcript = Transcript()

        early = shown(
            transcript,
            said("chat_stream", {"content": "Hel", "index": 0, "runId": "1.demo"}),
            said("chat_stream", {"content": "lo", "index": 1, "runId": "1.demo"}),
        )
        meanwhile = going_on(transcript)
        end = shown(transcript, said("chat_complete", {"content": "Hello!", "runId": "1.demo"}))

        assert (early, meanwhile, end) == ([], ["demo: Hello"], ["demo: Hello!"])
        assert going_on(transcript) == []

    def test_a_joined_chunk_replaces_what_came_before(self):
        """After a reconnect the text so far comes in one piece and is not doubled."""
        transcript = Transcript()

        shown(
            transcript,
            said("chat_stream", {"content": "Hel", "index": 0, "runId": "1.demo"}),
            said("chat_stream", {"content": "Hello", "index": 1, "first": 0, "runId": "1.demo"}),
        )

        assert going_on(transcript) == ["demo: Hello"]

    def test_two_answers_go_on_side_by_side(self):
        """Chunks of two runs are not mixed."""
        transcript = Transcript()

        for run, text in (("1.demo", "a"), ("2.demo", "b"), ("1.demo", "c")):
            shown(transcript, said("chat_stream", {"content": text, "runId": run}))

        assert going_on(transcript) == ["demo: ac", "demo: b"]

    def test_a_long_answer_shows_its_end(self):
        """Only as many rows as there is room for, the newest ones."""
        transcript = Transcript()
        text = " ".join(f"word{n}" for n in range(1000))

        shown(transcript, said("chat_stream", {"content": text, "runId": "1.demo"}))

        rows = going_on(transcript, rows=3)
        assert len(rows) == 3
        assert rows[-1].endswith("word999")
        assert all(cell_len(row) <= 60 for row in rows)

    def test_a_tool_call_has_its_progress_and_result(self):
        """A call is shown with its arguments, how far it is, and what it gave."""
        transcript = Transcript()
        call = {"tool": "clock", "toolCallId": "t1", "runId": "1.demo"}

        shown(
            transcript,
            said("tool_start", call | {"args": {"zone": "Tokyo"}}),
            said("tool_update", call | {"progress": 50, "message": "looking"}),
        )
        meanwhile = going_on(transcript)
        result = {"success": True, "output": "12:00"}
        end = shown(transcript, said("tool_result", call | {"result": result}))

        assert "clock zone=Tokyo" in meanwhile[0]
        assert "50 %  looking" in meanwhile[0]
        assert end == ["  ✓ clock zone=Tokyo → 12:00"]
        assert going_on(transcript) == []

    def test_a_failed_tool_call_says_why(self):
        """The error stands where the result would."""
        result = {"success": False, "error": "no such city"}

        rows = shown(
            Transcript(),
            said("tool_result", {"tool": "clock", "toolCallId": "t1", "result": result}),
        )

        assert rows == ["  ✗ clock → no such city"]

    @pytest.mark.parametrize("status", ["error", "cancelled", "lost"])
    def test_an_answer_that_did_not_end_well_is_told(self, status):
        """The reader learns that an answer is not whole."""
        rows = shown(Transcript(), said("chat_complete", {"content": "Hel", "status": status}))

        assert rows == ["demo: Hel", f"· demo's answer ended {status}"]

    def test_people_come_and_go(self):
        """Presence is told by the name of the device."""
        transcript = Transcript()

        rows = shown(
            transcript,
            said("presence", {"status": "online"}, ADA),
            said("chat", {"message": "hi"}, ADA, seq=1),
            said("presence", {"status": "typing"}, ADA),
            said("presence", {"status": "offline"}, ADA),
        )

        assert rows == ["· Ada is here", "Ada: hi", "· Ada left"]

    def test_the_welcome_names_who_is_there(self):
        """Names appear once; those beyond the list are counted."""
        assert welcome("lobby", [ADA, ADA, DEMO], 5).plain == (
            "· in session lobby with Ada, demo and 2 more"
        )

    @pytest.mark.parametrize(
        "message",
        [
            said("chat", {"message": "\x1b]0;owned\x07\u202e"}, ADA),
            said("chat_complete", {"content": "\x1b[2J", "status": "error", "error": "\x1b[2J"}),
            said(
                "tool_result",
                {
                    "tool": "\x1b[2J",
                    "toolCallId": "t",
                    "result": {"success": False, "error": "\x1b"},
                },
            ),
            said("error", {"code": "\x1b[2J", "message": "\x1b[2J"}),
            said("chat", {"message": "x"}, Sender("c", "\x1b[2J", "control", "user")),
        ],
    )
    def test_strangers_cannot_steer_the_terminal(self, message):
        """Escape sequences and direction marks appear as text, wherever they stand."""
        rows = shown(Transcript(), message)

        assert rows
        assert all(row.isprintable() for row in rows)

    @given(st.text())
    def test_visible_text_keeps_only_line_ends(self, text):
        """Any text becomes lines that a terminal shows as they are."""
        assert all(line.isprintable() for line in visible(text).split("\n"))


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    return clean_environ(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def demo_url(environ):
    """The address of a demo with its agent."""
    running = Running(environ, "demo", "--port", "0")
    url = running.wait_for(r"listening on (http\S+)")[1]
    running.wait_for("Ctrl-C")
    yield url
    running.end()
    running.close()


@pytest.fixture
def chat(environ):
    """Begin chats at terminals of their own, each by somebody else."""
    terminals = []

    def chat(url, user="ada", session="lobby"):
        terminal = Terminal(environ | {"USER": user}, "chat", "--session", session, "--url", url)
        terminals.append(terminal)
        terminal.wait_for("/quit ends")
        return terminal

    yield chat
    for terminal in terminals:
        terminal.close()


class TestAtATerminal:
    def test_an_answer_streams_with_its_tool_call(self, chat, demo_url):
        """The person sees the tool at work, what it gave, and the answer grow."""
        terminal = chat(demo_url, session="streams")

        terminal.type("2*(3+4)\r")
        progress = terminal.wait_for("% ")
        terminal.wait_for("✓ calculate expression=2*(3+4) → 14")
        terminal.wait_for("demo: 2*(3+4) = 14")

        assert "you: 2*(3+4)" in progress
        assert "working it out" in progress

    def test_two_people_see_each_other(self, chat, demo_url):
        """Who comes, what they say and that they left appears at the other terminal."""
        ada = chat(demo_url, "ada", "two")

        bob = chat(demo_url, "bob", "two")
        ada.wait_for("bob is here")
        bob.type("hello ada\r")
        ada.wait_for("bob: hello ada")
        bob.type("/quit\r")
        ada.wait_for("bob left")

        assert "ada" in bob.shown
        assert bob.process.wait(10) == 0

    def test_incoming_text_does_not_tear_the_typed_line(self, chat, demo_url):
        """What was typed stays whole below what arrives, and is sent whole."""
        ada = chat(demo_url, "ada", "tear")
        bob = chat(demo_url, "bob", "tear")

        ada.type("count half a")
        ada.wait_for("> count half a")
        bob.type("1+1\r")
        arrived = ada.wait_for("demo: 1+1 = 2\r\n> count half a")
        ada.type(" line\r")
        ada.wait_for("I count 11 characters")

        rows = [row for row in arrived.replace("\r", "\n").split("\n") if "count" in row]
        assert all(row.strip() == "> count half a" for row in rows)

    def test_who_tells_who_is_there(self, chat, demo_url):
        """/who lists the members."""
        ada = chat(demo_url, "ada", "who")

        ada.type("/who\r")
        ada.wait_for("in session who with")

        assert "demo" in ada.wait_for("> ") or "demo" in ada.shown

    @pytest.mark.parametrize("keys", ["/quit\r", "\x04"], ids=["quit", "ctrl-d"])
    def test_ending_gives_the_terminal_back(self, chat, demo_url, keys):
        """After the end the terminal echoes and edits lines as before."""
        terminal = chat(demo_url)
        during = terminal.restored

        terminal.type(keys)

        assert terminal.process.wait(10) == 0
        assert (during, terminal.restored) == (False, True)

    def test_ctrl_c_ends_it_too(self, chat, demo_url):
        """Ctrl-C is 130, and the terminal is as it was."""
        terminal = chat(demo_url)

        terminal.process.send_signal(signal.SIGINT)

        assert terminal.process.wait(10) == 130
        assert terminal.restored

    def test_a_lost_connection_is_shown_and_comes_back(self, chat, environ):
        """A gateway that restarts interrupts the conversation, not the client."""
        with closing(Running(environ, "serve", "--history", "memory", "--port", "0")) as first:
            url = first.wait_for(r"listening on (http\S+)")[1]
            terminal = chat(url)
            first.end(signal.SIGKILL)
        terminal.wait_for("the connection was lost")

        with closing(
            Running(environ, "serve", "--history", "memory", "--port", url.rpartition(":")[2])
        ) as second:
            terminal.wait_for("connected again")
            terminal.type("still here\r")
            terminal.wait_for("you: still here")
            code = second.end()

        assert code == 0


class TestApprovals:
    def request(self, **more):
        payload = {"approvalId": "a", "tool": "delete", "args": {"path": "x\x1b[2J"}, "digest": "0"}
        message = create_message(
            "approval_request", {**payload, "expiresAt": 0, "runId": "1.demo"} | more
        )
        message.sender = DEMO
        return message

    def test_a_question_is_shown_whole_and_waits_for_an_answer(self):
        """What would steer the terminal is made visible; the replay does not repeat it."""
        transcript = Transcript()

        rows = transcript.show(self.request())
        again = transcript.show(self.request())

        assert rows[0].plain == ('· demo asks: may it run delete {"path":"x\\u001b[2J"}?')
        assert again == []
        assert transcript.asked().tool == "delete"

    def test_an_answer_is_shown_and_settles_the_question(self):
        """Whoever gave it."""
        transcript = Transcript()
        transcript.show(self.request())
        answer = {"approvalId": "a", "decision": "deny", "digest": "0", "reason": "no"}
        message = create_message("approval_response", answer)
        message.sender = ADA

        rows = transcript.show(message)

        assert [row.plain for row in rows] == ["· Ada denied delete: no"]
        assert transcript.asked() is None

    def test_the_end_of_the_run_settles_its_questions(self):
        """Nobody waits for the answer any more."""
        transcript = Transcript()
        transcript.show(self.request())
        end = create_message("chat_complete", {"runId": "1.demo", "content": "done"})

        transcript.show(end)

        assert transcript.asked() is None
