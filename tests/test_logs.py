"""What reaches the operator's log, and what must not."""

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from trunkline.config import LogConfig
from trunkline.logs import FIELD_BYTES, Redactor, StormLimiter, configure_logs, cut, escape

CANARY = "canary-7Yk2vQ9s"


class Stream(io.StringIO):
    @property
    def lines(self):
        return self.getvalue().splitlines()

    @property
    def events(self):
        return [json.loads(line) for line in self.lines]


@pytest.fixture(autouse=True)
def restore_logs():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def log(stream):
    configure_logs(LogConfig(format="json"), secrets=[CANARY], stream=stream)
    return structlog.get_logger()


class TestSecrets:
    @pytest.mark.parametrize(
        "fields",
        [
            {"token": CANARY},
            {"password": CANARY},
            {"access_token": CANARY},
            {"Authorization": f"Bearer {CANARY}"},
            {"clientSecret": CANARY},
            {"headers": {"authorization": CANARY, "cookie": f"a={CANARY}"}},
            {"headers": [("Authorization", CANARY)]},
            {"headers": [(b"cookie", CANARY.encode())]},
            {"target": f"/ws?token={CANARY}&x=1"},
            {"target": f"/ws?code={CANARY}"},
            {"head": f"GET / HTTP/1.1\r\nAuthorization: Basic {CANARY}\r\n"},
            {"head": f"Cookie: session={CANARY}"},
            {"frame": f'{{"type":"auth","payload":{{"token":"{CANARY}"}}}}'},
            {"frame": {"payload": {"password": CANARY}}.__repr__()},
            {"note": f"given was tl_{CANARY}, a stored credential"},
            {"note": f"tl_d_{CANARY}"},
            {"note": f"eyJhbGciOiJub25lIn0.{CANARY}.{CANARY}"},
            {"upstream": f"https://ada:{CANARY}@example.com/"},
            {"target": f"/x?a=1&sig={CANARY}"},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_never_appear_wherever_they_stand(self, stream, fields):
        """A secret is hidden by its field's name or its place in a text, known or not."""
        configure_logs(LogConfig(format="json"), stream=stream)

        structlog.get_logger().info("refused", **fields)

        assert stream.lines
        assert CANARY not in stream.getvalue()

    def test_known_values_are_hidden_in_any_text(self, log, stream):
        """The gateway's own token does not appear even in the middle of a word."""
        event = f"strange {CANARY}x"

        log.warning(event, note=f"see{CANARY}")

        assert stream.events[0]["event"] == "strange ***x"
        assert stream.events[0]["note"] == "see***"

    def test_are_hidden_in_tracebacks(self, log, stream):
        """An exception's message goes through the same filter."""
        try:
            raise ValueError(f"token={CANARY} {CANARY}")
        except ValueError:
            log.exception("failed")

        assert "ValueError" in stream.events[0]["exception"]
        assert CANARY not in stream.getvalue()

    def test_numbers_under_such_names_stay(self, log, stream):
        """Counting a model's tokens is not a secret."""
        log.info("usage", output_tokens=512)

        assert stream.events[0]["output_tokens"] == 512

    @given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=6))
    def test_known_values_of_any_text_are_hidden(self, secret):
        """Whatever the secret, a text that holds it does not afterwards."""
        assert Redactor([secret]).text(f"<{secret}>") == "<***>"


class TestFields:
    @pytest.mark.parametrize(
        "hostile", ["\r", "\n", "\x1b[31m", "\x9b", "\u202e", "\u2028", "\ud800"], ids=ascii
    )
    @pytest.mark.parametrize("form", ["json", "text"])
    def test_cannot_forge_a_line(self, stream, hostile, form):
        """Controls, line ends and direction marks are escaped; an event stays one line."""
        configure_logs(LogConfig(format=form), stream=stream)

        structlog.get_logger().info(f"event {hostile} x", note=f"a{hostile}b", **{f"k{hostile}": 1})

        assert len(stream.getvalue().splitlines()) == 1
        assert hostile not in stream.getvalue().rstrip("\n")

    def test_twenty_hostile_fields_are_one_json_line(self, log, stream):
        """Every line parses, whatever the fields hold."""
        hostile = "\r\n\x1b\u202e\u2028"

        log.info("upgrade", **{f"header{n}": hostile * n for n in range(20)})

        assert len(stream.events) == 1
        assert stream.events[0]["header1"] == r"\x0d\x0a\x1b\u202e\u2028"

    @given(st.text(alphabet=st.characters(exclude_categories=())))
    def test_are_at_most_256_bytes_of_visible_text(self, text):
        """Any text becomes at most 256 bytes that a terminal shows as they are."""
        shown = cut(escape(text))

        assert len(shown.encode()) <= FIELD_BYTES
        assert shown.isprintable()

    def test_of_any_type_are_bounded(self, log, stream):
        """A nested value is cut too, and a number that JSON lacks becomes text."""

        class Broken:
            def __str__(self):
                raise RuntimeError

        log.info("x", many=list(range(1000)), nan=float("nan"), broken=Broken(), large=10**30)

        event = stream.events[0]
        assert len(event["many"].encode()) == FIELD_BYTES
        assert event["nan"] == "NaN"
        assert event["broken"] == "<Broken: RuntimeError>"
        assert event["large"] == str(10**30)

    def test_of_a_traceback_stay_below_its_event(self, stream):
        """In text, what an exception says is indented, so it cannot pass for an event."""
        configure_logs(LogConfig(), stream=stream)

        try:
            raise ValueError("x\n2026-01-01T00:00:00Z error forged")
        except ValueError:
            structlog.get_logger().exception("failed")

        head, *below = stream.lines
        assert " error   failed" in head
        assert below
        assert all(line.startswith("    ") for line in below)


class TestStorms:
    def make(self):
        reports = []
        clock = iter(range(1000))
        now = [next(clock)]
        storms = StormLimiter(reports.append, limit=10, clock=lambda: now[0])
        return storms, reports, now

    def passed(self, storms, event, times):
        count = 0
        for _ in range(times):
            try:
                storms(None, "info", {"event": event})
                count += 1
            except structlog.DropEvent:
                pass
        return count

    def test_of_one_event_pass_ten_times_a_second(self):
        """The eleventh line of an event within a second is dropped; other events are not."""
        storms, _, _ = self.make()

        assert self.passed(storms, "refused", 25) == 10
        assert self.passed(storms, "other", 1) == 1

    def test_are_told_as_a_count(self):
        """When the second is over, one line says how many were dropped."""
        storms, reports, now = self.make()
        self.passed(storms, "refused", 25)

        now[0] = 1
        storms.flush()

        assert [(report["of"], report["dropped"]) for report in reports] == [("refused", 15)]
        assert self.passed(storms, "refused", 3) == 3

    def test_below_the_limit_report_nothing(self):
        """A quiet event leaves no line of its own."""
        storms, reports, now = self.make()
        self.passed(storms, "refused", 10)

        now[0] = 1
        storms.flush()

        assert reports == []

    def test_of_the_standard_library_are_told_by_their_template(self, log, stream):
        """Different arguments do not make a storm many events."""
        for n in range(50):
            logging.getLogger("uvicorn").warning("bad request %d", n)

        assert 10 <= len(stream.lines) <= 20


class TestSetup:
    def test_standard_library_records_take_the_same_way(self, log, stream):
        """A library's log line is redacted and formatted like ours."""
        logging.getLogger("asyncio").error("lost %s", f"Bearer {CANARY}")

        event = stream.events[0]
        assert (event["event"], event["level"], event["logger"]) == (
            "lost Bearer ***",
            "error",
            "asyncio",
        )

    def test_shows_only_what_is_important_enough(self, stream):
        """Below the configured level nothing is written."""
        configure_logs(LogConfig(format="json", level="warning"), stream=stream)

        structlog.get_logger().info("small")
        logging.getLogger("x").info("small")
        structlog.get_logger().warning("large")

        assert [event["event"] for event in stream.events] == ["large"]

    def test_text_is_made_for_people(self, stream):
        """A line has time, level, event and quoted fields."""
        configure_logs(LogConfig(), stream=stream)

        structlog.get_logger().info("client connected", address="127.0.0.1", name="a b", n=3)

        assert stream.lines[0].endswith('info    client connected address=127.0.0.1 name="a b" n=3')


def test_a_stream_that_is_gone_fails_nobody():
    """Logging to a closed terminal raises nothing."""
    stream = io.StringIO()
    logs = configure_logs(LogConfig(), stream=stream)
    stream.close()

    structlog.get_logger().warning("nobody hears this")
    logs.flush()
