"""The parts of the SDK that need no network."""

import asyncio
import stat
import threading
from collections import deque
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import Raw

from trunkline.messages import create_message
from trunkline.payloads import (
    ChatComplete,
    ChatStream,
    Cursor,
    RunRef,
    RunState,
    SessionInfo,
    ToolResult,
    ToolResultData,
    ToolStart,
    ToolUpdate,
)
from trunkline.sdk.answer import MAX_CHUNK, MAX_KEPT, Answer, Pieces
from trunkline.sdk.cursor import LogCursor, Place
from trunkline.sdk.errors import (
    ConnectionLost,
    InsecureConnection,
    OutcomeUnknown,
    SignInFailed,
    ToolError,
    TrunklineError,
)
from trunkline.sdk.events import Completed, RunEvents, Text, ToolFinished, ToolStarted, ToolUpdated
from trunkline.sdk.mailbox import Mailbox
from trunkline.sdk.outbox import Outbox, Pace
from trunkline.sdk.policy import Backoff, after_close, after_refusal, endpoint
from trunkline.sdk.state import ClientState, StateFile
from trunkline.sdk.throttle import Throttle
from trunkline.sdk.tools import Tool


class TestEndpoint:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("ws://127.0.0.1:18789", "ws://127.0.0.1:18789/ws"),
            ("http://localhost:1/", "ws://localhost:1/ws"),
            ("https://gateway.example", "wss://gateway.example/ws"),
            ("wss://gateway.example/other?x=1#y", "wss://gateway.example/other?x=1"),
            ("ws://[::1]:80/ws", "ws://[::1]:80/ws"),
        ],
    )
    def test_completes_an_address(self, url, expected):
        """HTTP addresses and missing paths become what a WebSocket needs."""
        assert endpoint(url, secret=True) == expected

    @pytest.mark.parametrize(
        "url",
        [
            "ws://gateway.example",
            "http://192.168.1.7:18789",
            "ws://127.0.0.1.example.com",
            "ws://localhost.example.com",
        ],
    )
    def test_a_credential_stays_off_the_open_network(self, url):
        """Without encryption a credential goes to this machine only, unless one insists."""
        with pytest.raises(InsecureConnection):
            endpoint(url, secret=True)

        assert endpoint(url, secret=True, insecure=True).startswith("ws://")
        assert endpoint(url, secret=False).startswith("ws://")

    @pytest.mark.parametrize(
        "url",
        ["ftp://host", "127.0.0.1:18789", "ws://", "ws://me:pw@localhost", "ws://h/ws?token=abc"],
    )
    def test_refuses_what_is_no_address(self, url):
        """Other schemes, and credentials inside the address, are errors."""
        with pytest.raises(ValueError, match=r"address"):
            endpoint(url, secret=False)


class TestPolicy:
    @pytest.mark.parametrize(
        ("code", "reason", "again", "after"),
        [
            (1006, "", True, None),
            (1001, "reconnect=yes;afterMs=1500;draining", True, 1.5),
            (1011, "", True, None),
            (4008, "reconnect=yes;too slow", True, None),
            (4029, "reconnect=yes;afterMs=250", True, 0.25),
            (1000, "", False, None),
            (1002, "", False, None),
            (1009, "reconnect=no;too large", False, None),
            (4004, "reconnect=no;kicked", False, None),
            (4009, "reconnect=no", False, None),
            (1001, "afterMs=never", True, None),
        ],
    )
    def test_close_codes_decide(self, code, reason, again, after):
        """Whether and when to come back follows from the close frame."""
        verdict = after_close(code, reason)

        assert (verdict.again, verdict.after) == (again, after)
        assert isinstance(verdict.error, ConnectionLost)
        assert verdict.error.code == code

    @pytest.mark.parametrize("code", [4001, 4003])
    def test_a_dead_credential_is_not_tried_again(self, code):
        """Codes that ask for another credential raise the sign-in's error."""
        verdict = after_close(code, "reconnect=no")

        assert isinstance(verdict.error, SignInFailed)
        assert not verdict.again

    def test_an_announcement_counts_where_the_reason_says_nothing(self):
        """`going_away` says when to come back, unless the close frame knows better."""
        assert after_close(1001, "reconnect=yes", 3.0).after == 3.0
        assert after_close(1001, "reconnect=yes;afterMs=500", 3.0).after == 0.5

    @pytest.mark.parametrize(
        ("status", "again"), [(302, False), (400, False), (403, False), (429, True), (503, True)]
    )
    def test_http_refusals_decide(self, status, again):
        """An overloaded gateway is asked again, a refusing one is not."""
        verdict = after_refusal(status, "7")

        assert (verdict.again, verdict.after) == (again, 7.0)

    def test_backoff_grows_to_its_cap_with_full_jitter(self):
        """Waits are a random share of a bound that doubles up to a cap."""
        backoff = Backoff(base=1.0, cap=8.0, chance=lambda: 0.5)

        waits = [backoff.next() for _ in range(6)]
        backoff.reset()

        assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
        assert backoff.next() == 0.5


class Delivery(RuleBasedStateMachine):
    """
    A client's outbox and cursor against a model of the gateway's log.

    Frames travel through two queues that a cut empties; the gateway stores a
    message once per id, answers in order, and replays after a join.
    """

    @initialize()
    def begin(self):
        self.log = []
        self.generation = 0
        self.outbox, self.cursor = Outbox(), LogCursor()
        self.delivered, self.unknown, self.published = [], set(), []
        self.connected = False
        self.attached = self.member = False
        self.up, self.down = deque(), deque()
        self.throttle = Throttle(self.outbox, lambda frame: self.up.append(("publish", frame)))

    @property
    def epoch(self):
        return f"e{self.generation}"

    def _join(self):
        self.up.append(("join", self.cursor.position))

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self):
        self.connected = True
        self._join()

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self):
        self.connected = self.attached = self.member = False
        self.throttle.clear()
        self.up.clear()
        self.down.clear()

    @rule()
    def publish(self):
        id = f"m{len(self.published)}"
        self.published.append(id)
        self.outbox.add(id, "s", id.encode())
        if self.attached:
            self.throttle.send(id)

    @rule()
    def somebody_else_publishes(self):
        self._store(f"o{len(self.log)}", mine=False)

    @rule()
    def the_log_is_lost(self):
        """The gateway restarts without what it had."""
        if self.connected:
            self.cut()
        self.generation += 1
        self.log = []

    def _store(self, id, *, mine):
        self.log.append(id)
        if mine:
            self.down.append(("ack", id, len(self.log), False))
        elif self.member:
            self.down.append(("message", id, len(self.log)))

    @precondition(lambda self: self.up)
    @rule()
    def the_gateway_reads(self):
        kind, value = self.up.popleft()
        if kind == "join":
            self._replay(value)
        elif value.decode() in self.log:
            id = value.decode()
            self.down.append(("ack", id, self.log.index(id) + 1, True))
        else:
            self._store(value.decode(), mine=True)

    def _replay(self, since):
        self.member = True
        head = len(self.log)
        if since is None:
            answer = {"recovery": "fresh", "next": head + 1}
        elif since.epoch == self.epoch:
            answer = {"recovery": "resumed", "next": since.seq + 1}
        else:
            answer = {"recovery": "reset", "reason": "epoch", "next": 1}
        info = SessionInfo(session_id="s", status="joined", epoch=self.epoch, head=head, **answer)
        self.down.append(("joined", info))
        for seq in range(info.next, head + 1):
            self.down.append(("message", self.log[seq - 1], seq))

    @precondition(lambda self: self.down)
    @rule()
    def the_client_reads(self):
        kind, *frame = self.down.popleft()
        if kind == "joined":
            self._joined(frame[0])
        elif kind == "message":
            self._take(frame[0], frame[1])
        else:
            id, seq, duplicate = frame
            assert self.outbox.settle(id) is not None
            self.throttle.settled(id)
            if not duplicate:
                self._take(id, seq)

    def _joined(self, info):
        if self.cursor.joined(info) is not None:
            self.delivered = []
            lost = self.outbox.forget_sent("s")
            self.unknown |= {entry.id for entry in lost}
            for entry in lost:
                self.throttle.settled(entry.id)
        self.attached = True
        self.throttle.flush("s")

    def _take(self, id, seq):
        place = self.cursor.place(seq)
        assert place is not Place.AHEAD, "a correct gateway leaves no hole"
        if place is Place.NEXT:
            self.cursor.advance()
            self.delivered.append((seq, id))

    @invariant()
    def delivery_is_in_order_and_exactly_once(self):
        numbers = [seq for seq, _ in self.delivered]
        assert numbers == list(range(self.cursor.last - len(numbers) + 1, self.cursor.last + 1))
        if self.attached and self.cursor.epoch == self.epoch:
            assert all(self.log[seq - 1] == id for seq, id in self.delivered)

    @invariant()
    def nothing_is_stored_twice(self):
        assert len(set(self.log)) == len(self.log)

    @invariant()
    def what_is_unknown_is_never_sent_again(self):
        assert not self.unknown & set(self.log)

    def teardown(self):
        if not self.connected:
            self.connect()
        while self.up or self.down:
            (self.the_gateway_reads if self.up else self.the_client_reads)()
        if self.delivered:
            assert self.delivered[-1] == (len(self.log), self.log[-1])
        assert len(self.outbox) == 0


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestOutbox:
    def test_only_what_never_left_can_be_withdrawn(self):
        """A message that may have reached the gateway stays until it is answered."""
        outbox = Outbox()
        outbox.add("a", "s", b"a")
        outbox.add("b", "s", b"b")
        outbox.get("a").sent = True

        assert not outbox.withdraw("a")
        assert outbox.withdraw("b")
        assert [entry.frame for entry in outbox.of("s")] == [b"a"]

    def test_entries_of_an_earlier_process_count_as_sent(self):
        """What a state file holds may have been sent, so a reset makes it unknown."""
        before = Outbox()
        before.add("a", "s", b"a")

        after = Outbox(before.entries())

        assert [entry.id for entry in after.forget_sent("s")] == ["a"]


class TestThrottle:
    """Frames that go out, with a gateway's answers played by the test."""

    @pytest.fixture
    def sent(self):
        return []

    @pytest.fixture
    def outbox(self):
        return Outbox()

    @pytest.fixture
    def throttle(self, outbox, sent):
        throttle = Throttle(outbox, sent.append)
        throttle.limit(1e6, 10)
        return throttle

    def add(self, outbox, *ids):
        for id in ids:
            outbox.add(id, "s", id.encode())

    def test_no_more_than_a_window_is_on_its_way(self, outbox, throttle, sent):
        """What waits after a reconnect follows as answers come, not all at once."""
        self.add(outbox, *"abcdef")

        throttle.flush("s")

        assert sent == [b"a", b"b", b"c", b"d"]
        outbox.settle("a")
        throttle.settled("a")
        assert sent == [b"a", b"b", b"c", b"d", b"e"]

    def test_a_flush_sends_nothing_that_is_on_its_way(self, outbox, throttle, sent):
        """A session that is joined anew on a living connection repeats nothing."""
        self.add(outbox, *"abcdef")
        throttle.flush("s")

        throttle.flush("s")
        for id in "abcdef":
            outbox.settle(id)
            throttle.settled(id)

        assert sent == [b"a", b"b", b"c", b"d", b"e", b"f"]

    async def test_a_refused_message_goes_before_those_behind_it(self, outbox, throttle, sent):
        """Whatever is refused, in whatever order, goes out again in the order of its making, one by one."""
        self.add(outbox, *"abcdef")
        throttle.flush("s")

        for id in "badc":
            throttle.refused(id, 0.0)
        goes_on = asyncio.Event()
        asyncio.get_running_loop().call_later(0.0, goes_on.set)
        await goes_on.wait()
        for count, id in enumerate("abcdef", 5):
            assert len(sent) == count
            outbox.settle(id)
            throttle.settled(id)

        assert sent[4:] == [b"a", b"b", b"c", b"d", b"e", b"f"]

    def test_what_was_given_up_is_not_sent(self, outbox, throttle, sent):
        """A message that was taken back while it waited leaves its place to the next."""
        self.add(outbox, *"abcdef")
        throttle.flush("s")

        outbox.withdraw("e")
        outbox.settle("a")
        throttle.settled("a")

        assert sent[4:] == [b"f"]

    def test_a_new_connection_begins_anew(self, outbox, throttle, sent):
        """What was on its way when the connection was lost goes out first on the next."""
        self.add(outbox, *"abc")
        throttle.flush("s")

        throttle.clear()
        throttle.flush("s")

        assert sent == [b"a", b"b", b"c"] * 2


class TestPace:
    @given(st.lists(st.floats(0, 2), max_size=60), st.integers(1, 5))
    def test_no_second_has_more_than_rate_and_burst(self, gaps, burst):
        """However messages come, what goes out within a second is bounded; and nothing waits without need."""
        pace, now, sent = Pace(rate=4, burst=burst), 0.0, []
        for gap in gaps:
            now += gap
            wait = pace.take(now)
            if not wait:
                sent.append(now)
                continue
            now += wait
            assert pace.take(now + 1e-9) == 0.0
            sent.append(now)

        assert all(sum(at <= s < at + 1 for s in sent) <= 4 + burst for at in sent)

    def test_without_limits_nothing_waits(self):
        """A gateway that announces no rate gets everything at once."""
        pace = Pace()

        assert [pace.take(0.0) for _ in range(1_000)] == [0.0] * 1_000

    def test_a_rate_that_was_rounded_to_nothing_is_slow(self):
        """A gateway that tells 0 takes something all the same, now and then."""
        pace = Pace(rate=0, burst=1)

        assert pace.take(0.0) == 0.0
        assert pace.take(0.0) > 0


class TestCursor:
    def test_a_head_beyond_the_last_message_means_a_lost_tail(self):
        """The gateway's `head` shows that something is missing, in this epoch or another."""
        here, elsewhere = (LogCursor(Cursor(epoch="e", seq=3)) for _ in range(2))

        here.saw_head("e", 4)
        elsewhere.saw_head("other", 1)

        assert here.behind
        assert elsewhere.behind

    def test_the_same_head_means_nothing_is_missing(self):
        """A quiet session's `head` changes nothing."""
        cursor = LogCursor(Cursor(epoch="e", seq=3))

        cursor.saw_head("e", 3)

        assert not cursor.behind

    def test_a_hole_is_noticed(self):
        """A number above the next one is ahead, and shows that the reader is behind."""
        cursor = LogCursor(Cursor(epoch="e", seq=3))

        place = cursor.place(5)

        assert place is Place.AHEAD
        assert cursor.behind


def chunk(index, text, run="1.a", **fields):
    return create_message(
        "chat_stream", ChatStream(content=text, index=index, run_id=run, **fields), "s"
    )


def numbered(seq, type, payload):
    message = create_message(type, payload, "s")
    message.seq = seq
    return message


def complete(seq, text, run="1.a"):
    return numbered(seq, "chat_complete", ChatComplete(content=text, run_id=run))


def opened(*agents):
    events = RunEvents()
    events.open([RunRef(run_id=f"1.{agent}", agent_id=agent) for agent in agents])
    return events


def drain(events):
    found = []
    while (event := events.take()) is not None:
        found.append(event)
    return found


class TestRunEvents:
    def test_tells_the_whole_story_of_a_run(self):
        """Text, tool calls and the end come as typed events, in order."""
        events = opened("a")

        told = []
        for message in (
            chunk(0, "let me see"),
            numbered(2, "tool_start", ToolStart(tool="add", tool_call_id="c", run_id="1.a")),
            create_message("tool_update", ToolUpdate(tool_call_id="c", progress=50, run_id="1.a")),
            numbered(
                3,
                "tool_result",
                ToolResult(tool_call_id="c", result=ToolResultData(success=True), run_id="1.a"),
            ),
            chunk(1, ": 3"),
            complete(4, "let me see: 3"),
        ):
            events.feed(message)
            told += drain(events)

        kinds = [type(event) for event in told]
        assert kinds == [Text, ToolStarted, ToolUpdated, ToolFinished, Text, Completed]
        assert events.finished

    def test_ends_when_all_runs_have_ended(self):
        """Two agents answer one message; the events end with the second end."""
        events = opened("a", "b")

        events.feed(complete(2, "one"))
        drain(events)
        early = events.finished
        events.feed(complete(3, "two", run="1.b"))
        drain(events)

        assert (early, events.finished) == (False, True)

    def test_the_end_brings_what_was_missed(self):
        """Chunks that went by during an absence are in the whole text, and given from there."""
        events = opened("a")
        events.feed(chunk(0, "one, "))
        events.feed(chunk(2, "three"))

        events.feed(complete(2, "one, two, three"))
        *texts, end = drain(events)

        assert "".join(event.text for event in texts) == end.content == "one, two, three"

    def test_a_message_that_nobody_answers_has_no_events(self):
        """Without runs there is nothing to wait for."""
        assert opened().finished

    @given(
        pieces=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=12),
        data=st.data(),
    )
    def test_the_pieces_add_up_to_the_text_whatever_is_repeated(self, pieces, data):
        """Repeated, joined and late chunks change neither text nor order."""
        events = opened("a")
        got = ""

        for index, piece in enumerate(pieces):
            sent = [chunk(index, piece)]
            if data.draw(st.booleans()):
                sent.append(chunk(index, piece))
            if data.draw(st.booleans()):
                sent.append(chunk(index, "".join(pieces[: index + 1]), first=0))
            if data.draw(st.booleans()):
                sent = sent[-1:] if len(sent) > 1 else sent
            for message in sent:
                events.feed(message)
            if data.draw(st.booleans()):
                got += "".join(event.text for event in drain(events))
        got += "".join(event.text for event in drain(events))

        assert got == "".join(pieces)

    def test_text_that_nobody_takes_grows_in_place(self):
        """A slow consumer gets longer pieces, not a longer queue."""
        events = opened("a")

        for index in range(1_000):
            events.feed(chunk(index, "x"))

        assert [event.text for event in drain(events)] == ["x" * 1_000]

    def test_an_answer_begun_anew_says_so(self):
        """When the text so far is no longer its beginning, the piece starts at offset 0."""
        events = opened("a")
        events.feed(chunk(0, "from the lost agent"))
        drain(events)

        events.feed(chunk(0, "anew", first=0))

        assert [(e.offset, e.text) for e in drain(events)] == [(0, "anew")]

    @given(text=st.text(min_size=2, max_size=20), data=st.data())
    def test_an_answer_told_again_after_a_restart_goes_on(self, text, data):
        """A gateway that lost the text gets it in other chunks, and nothing is given twice."""
        given_until = data.draw(st.integers(1, len(text)))
        cuts = sorted({0, len(text), *data.draw(st.sets(st.integers(0, len(text))))})
        events = opened("a")
        events.feed(chunk(0, text[:given_until]))
        got = "".join(event.text for event in drain(events))

        events.rejoined([RunState(run_id="1.a", agent_id="a", index=-1)])
        for index, (begin, end) in enumerate(pairwise(cuts)):
            events.feed(chunk(index, text[begin:end]))
        got += "".join(event.text for event in drain(events))

        assert got == text

    def test_a_replay_changes_nothing(self):
        """Numbered messages that come again after a reconnect are not told again."""
        events = opened("a")
        start = numbered(2, "tool_start", ToolStart(tool="t", tool_call_id="c", run_id="1.a"))
        events.feed(start)
        drain(events)

        news = events.feed(start)

        assert not news

    def test_a_failure_comes_after_what_was_told(self):
        """Events that are there are given before the error that ends them."""
        events = opened("a")
        events.feed(chunk(0, "so far"))
        events.fail(OutcomeUnknown("reset"))

        first = events.take()

        assert isinstance(first, Text)
        with pytest.raises(OutcomeUnknown):
            events.take()


class TestPieces:
    @given(sizes=st.lists(st.integers(2, MAX_KEPT // 2), max_size=12), received=st.integers(0, 12))
    def test_what_is_missing_is_known_or_said_to_be_unknown(self, sizes, received):
        """Never a part of it: the asker would get a hole."""
        pieces, sent = Pieces(), []
        for size in sizes:
            sent.append(create_message("route_response", Raw(b'"' + b"x" * (size - 2) + b'"')))
            pieces.add(sent[-1])
        received = min(received, len(sent))

        missing = pieces.after(received)

        assert missing == sent[received:] or missing is None
        assert missing is not None or sum(sizes[received:]) > MAX_KEPT
        assert pieces.size <= max(MAX_KEPT, *sizes, 0)


class TestAnswer:
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.text(max_size=6)),
                st.tuples(st.just("take"), st.just(0)),
                st.tuples(st.just("rewind"), st.integers(-1, 6)),
            ),
            max_size=40,
        )
    )
    def test_the_gateway_ends_up_with_the_text(self, steps):
        """Whatever was lost and is told again, chunks by index make the whole text."""
        answer, gateway = Answer(), []

        for step, value in steps:
            if step == "write":
                answer.write(value)
            elif step == "take":
                self._send(answer, gateway)
            else:
                del gateway[value + 1 :]
                answer.rewind(len(gateway) - 1)
        while self._send(answer, gateway):
            pass

        assert "".join(gateway) == answer.text

    @staticmethod
    def _send(answer, gateway):
        taken = answer.take()
        if taken is None:
            return False
        assert taken[0] == len(gateway), "indexes have no hole"
        gateway.append(taken[1])
        return True

    def test_a_long_text_goes_in_several_chunks(self):
        """No chunk is larger than a message may be."""
        answer = Answer()
        answer.write("x" * (MAX_CHUNK + 1))

        sizes = [len(chunk) for _, chunk in iter(answer.take, None)]

        assert sizes == [MAX_CHUNK, 1]


class TestMailbox:
    async def test_refuses_above_its_limits(self):
        """Items and bytes are both bounded."""
        many, large = Mailbox(max_items=1), Mailbox(max_bytes=10)

        many.put("x", 0)
        large.put("x", 10)

        assert many.full
        assert large.full
        assert not await many.room(patience=0)

    async def test_who_waits_for_room_goes_on_when_something_is_taken(self):
        """A consumer that takes an item lets the reader go on."""
        box = Mailbox(max_items=1)
        box.put("x")
        waiting = asyncio.create_task(box.room(patience=5))
        await asyncio.sleep(0)

        await box.get()

        assert await waiting

    async def test_gives_what_is_left_and_then_the_end(self):
        """The end does not overtake what came before it."""
        box = Mailbox()
        box.put("last")
        box.end(TrunklineError("over"))

        assert await box.get() == "last"
        with pytest.raises(TrunklineError, match="over"):
            await box.get()


class TestStateFile:
    def test_what_is_saved_comes_back(self, tmp_path):
        """A restarted client finds its name, its cursors and its outbox."""
        file = StateFile(tmp_path / "state.json")
        outbox = Outbox()
        outbox.add("a", "s", b'{"type":"chat"}')
        state = ClientState(cursors={"s": Cursor(epoch="e", seq=7)}, outbox=outbox.entries())

        file.save(state)

        assert file.load() == state

    def test_is_for_its_owner_only(self, tmp_path):
        """Nobody else on the machine reads the messages, and no copy is left behind."""
        path = tmp_path / "state.json"

        StateFile(path).save(ClientState())

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_damage_is_an_error(self, tmp_path):
        """A file that makes no sense is not silently replaced."""
        path = tmp_path / "state.json"
        path.write_text("not a state")

        with pytest.raises(TrunklineError, match=r"state\.json"):
            StateFile(path).load()


class Point(msgspec.Struct):
    x: int
    y: int


class TestTool:
    def test_type_hints_become_a_schema(self):
        """Names, types, defaults and the docstring describe the tool."""

        def move(to: Point, speed: float = 1.0, tags: list[str] | None = None) -> None:
            """Move somewhere."""

        spec = Tool(move).spec

        assert (spec.name, spec.description) == ("move", "Move somewhere.")
        schema = spec.input_schema
        assert schema["required"] == ["to"]
        assert schema["properties"]["to"] == {"$ref": "#/$defs/Point"}
        assert schema["properties"]["speed"] == {"type": "number", "default": 1.0}
        assert schema["$defs"]["Point"]["properties"]["x"] == {"type": "integer"}

    def test_arguments_arrive_typed(self):
        """Structs in the hints are structs in the call."""

        def move(to: Point, speed: float = 1.0) -> None: ...

        assert Tool(move).check(b'{"to":{"x":1,"y":2}}') == {"to": Point(1, 2), "speed": 1.0}

    @pytest.mark.parametrize(
        ("params", "match"),
        [
            (b'{"to":{"x":"1","y":2}}', r"\$\.to\.x"),
            (b"{}", "to"),
            (b'{"to":{"x":1,"y":2},"typo":1}', "typo"),
            (b"[]", "object"),
            (b"{", "JSON|truncated"),
        ],
    )
    def test_a_bad_argument_names_its_place(self, params, match):
        """The asker learns which argument does not fit."""

        def move(to: Point) -> None: ...

        with pytest.raises(ToolError, match=match) as caught:
            Tool(move).check(params)

        assert caught.value.code == "INVALID_PAYLOAD"

    def test_the_context_is_no_argument(self):
        """A parameter called ctx is not part of the schema."""

        def tool(ctx, a: int) -> None: ...

        assert list(Tool(tool).spec.input_schema["properties"]) == ["a"]

    def test_a_default_is_not_shared_between_calls(self):
        """A mutable default is fresh in every call."""

        def tool(items: list[int] = [1]) -> None: ...  # noqa: B006

        offered = Tool(tool)
        offered.check(b"{}")["items"].append(2)

        assert offered.check(b"{}") == {"items": [1]}

    def test_parameters_that_have_no_name_are_refused(self):
        """A tool is called by name; *args cannot be."""

        def tool(*args: int) -> None: ...

        with pytest.raises(TypeError, match="by name"):
            Tool(tool)

    async def test_a_plain_function_runs_in_a_thread(self):
        """Blocking code does not hold the connection up."""

        def where() -> bool:
            return threading.current_thread() is threading.main_thread()

        async def here() -> bool:
            return where()

        assert not await Tool(where).call({})
        assert await Tool(here).call({})

    async def test_generators_stream(self):
        """Plain and asynchronous generators yield piece by piece; other results are one piece."""

        def plain(n: int):
            yield from range(n)

        async def fancy(n: int):
            for i in range(n):
                yield i

        def single(n: int) -> int:
            return n

        async def pieces(function):
            return [piece async for piece in Tool(function).stream({"n": 3})]

        assert [await pieces(f) for f in (plain, fancy, single)] == [[0, 1, 2], [0, 1, 2], [3]]
        assert await Tool(fancy).call({"n": 2}) == [0, 1]
