"""From a frame to its answer: the order of checks, custom handlers, the client's queue."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import details_of, error_of, person

from trunkline.config import AuthConfig, GatewayConfig, LimitsConfig
from trunkline.errors import Disconnect, GatewayError
from trunkline.handlers import nested_deeper
from trunkline.messages import decode_received
from trunkline.payloads import GATEWAY_PAYLOADS, Payload
from trunkline.rights import RIGHTS
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient


class Add(Payload, kw_only=True):
    """Add two numbers."""

    type = "add"
    left: int
    right: int


class Sum(Payload, kw_only=True):
    """What they make."""

    type = "sum"
    sent_by = "gateway"
    total: int


def limited(**limits) -> GatewayServer:
    return GatewayServer(GatewayConfig(auth=AuthConfig(mode="none"), limits=LimitsConfig(**limits)))


def frame(**fields) -> str:
    return json.dumps({"type": "ping", "id": "1", **fields})


def nested(depth: int) -> str:
    """A frame whose brackets nest `depth` deep, the envelope's brace being the first."""
    inner = "[" * (depth - 2) + "]" * (depth - 2)
    return f'{{"type":"ping","id":"1","payload":{{"x":{inner or 0}}}}}'


# Unreadable frames


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '{"type":"ping","id":"1"',
        '{"type":"ping","id":"1","payload":{"x":NaN}}',
        '{"type":"ping","id":"1","payload":{"x":"\\ud800"}}',
        '{"type":"ping","id":"\\ud800"}',
        '{"type":"ping","id":"1"} {}',
        "[" * 100_000,
        '{"type":"ping","id":"1","payload":' + '{"a":' * 50_000,
        '{"type":"ping","id":"1","payload":{"x":"\ud800"}}',
    ],
)
async def test_a_frame_that_is_not_json_is_a_parse_error_without_reply_to(gateway, text):
    """No id was readable, so none is named."""
    peer = PeerClient(gateway)

    peer.send_text(text)
    answer = await peer.next("error")

    assert error_of(answer) == "PARSE_ERROR"
    assert answer.reply_to is None


async def test_nesting_of_32_is_read_and_of_33_is_not(gateway):
    """The envelope's brace counts as the first."""
    peer = PeerClient(gateway)

    peer.send_text(nested(32))
    answer = await peer.next(reply_to="1")
    peer.send_text(nested(33))
    refusal = await peer.next("error")

    assert answer.type == "pong"
    assert error_of(refusal) == "PARSE_ERROR"


async def test_brackets_inside_strings_do_not_nest(gateway):
    """Only structure counts."""
    peer = PeerClient(gateway)

    peer.send_text(frame(payload={"x": '{["\\"[' * 100}))

    assert (await peer.next(reply_to="1")).type == "pong"


@given(
    value=st.recursive(
        st.text('[]{}"\\', max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=6
    )
)
def test_the_depth_of_any_json_is_found(value):
    """`nested_deeper` agrees with a walk over the value."""

    def depth(value) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    text = json.dumps(value)

    assert nested_deeper(text, depth(value)) is False
    assert depth(value) == 0 or nested_deeper(text, depth(value) - 1) is True


@given(text=st.text('{}[]":,\\ud8a0x1eE.-+ntrfals \t\n', max_size=40))
def test_what_json_refuses_is_never_accepted(text):
    """The gateway's reader is at least as strict as Python's."""
    body = f'{{"type":"ping","id":"1","payload":{{"x":{text}}}}}'
    try:
        message = decode_received(body)
    except Exception:
        return

    json.loads(body, parse_constant=lambda name: pytest.fail(name))
    json.loads(bytes(message.payload))


async def test_the_tenth_parse_error_within_a_minute_closes_with_1008(gateway):
    """Repeated junk is no client."""
    peer = PeerClient(gateway)

    for _ in range(9):
        peer.send_text("junk")
    assert peer.transport.closed is None
    peer.send_text("junk")

    code, reason = await peer.gone()
    assert code == 1008
    assert reason.startswith("reconnect=no")


async def test_other_errors_do_not_count_as_parse_errors(gateway):
    """A client may be wrong in other ways as often as its rate allows."""
    peer = PeerClient(gateway)

    for _ in range(50):
        peer.send_text("[]")
        peer.send("no_such_type")

    assert peer.transport.closed is None


# The envelope


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "5",
        "{}",
        frame(id="no spaces"),
        frame(id=""),
        frame(id="x" * 129),
        frame(id=".."),
        frame(type="Ping"),
        frame(type="1ping"),
        frame(type="x" * 65),
        frame(sessionId="a b"),
        frame(sessionId=5),
        frame(timestamp="now"),
        frame(payload=[]),
        frame(payload=None),
        frame(payload="x"),
    ],
)
async def test_a_wrong_envelope_is_an_invalid_message(gateway, text):
    """Types and grammar of the envelope's fields are checked."""
    peer = PeerClient(gateway)

    peer.send_text(text)

    assert error_of(await peer.next("error")) == "INVALID_MESSAGE"


async def test_a_refusal_names_the_message_if_its_id_was_readable(gateway):
    """Even if the rest of the envelope was wrong."""
    peer = PeerClient(gateway)

    peer.send_text(frame(id="mine", payload=[]))

    assert (await peer.next("error")).reply_to == "mine"


async def test_fields_of_the_gateway_are_ignored_even_if_of_the_wrong_type(gateway):
    """They are dropped, and spoil nothing."""
    peer = PeerClient(gateway)

    peer.send_text(frame(**{"from": 5, "seq": "x", "addressed": {"a": 1}}))

    assert (await peer.next(reply_to="1")).type == "pong"


async def test_an_absent_payload_is_an_empty_one(gateway):
    """`payload` may be left out."""
    peer = PeerClient(gateway)

    peer.send_text('{"type":"health","id":"1"}')

    assert (await peer.next(reply_to="1")).type == "health"


# Types and rights


async def test_an_unknown_type_is_told_so_when_nobody_listens(gateway):
    """`UNKNOWN_TYPE`."""
    peer = PeerClient(gateway)

    assert error_of(await peer.ask("wobble")) == "UNKNOWN_TYPE"


async def test_an_unknown_type_goes_to_the_message_event_if_someone_listens(gateway):
    """Whoever listens answers, or nobody does."""
    heard = []
    gateway.on("message", lambda client, message: heard.append((client, message.type)))
    peer = PeerClient(gateway)

    peer.send("wobble")

    assert heard == [(peer.client, "wobble")]
    assert [m.type for m in peer.received()] == ["session_info"]


@pytest.mark.parametrize("type", sorted(set(GATEWAY_PAYLOADS) - set(RIGHTS)))
async def test_what_only_the_gateway_sends_is_forbidden_to_clients(gateway, type):
    """Even to the owner, and even if somebody listens to unknown types."""
    heard = []
    gateway.on("message", lambda client, message: heard.append(message.type))
    peer = PeerClient(gateway)

    answer = await peer.ask(type)

    assert error_of(answer) == "FORBIDDEN"
    assert heard == []


async def test_a_type_that_the_role_may_not_send_is_forbidden(gateway):
    """Before its payload is looked at."""
    peer = PeerClient(gateway, person("ada", "observer"))

    assert error_of(await peer.ask("chat", {"no": "message"})) == "FORBIDDEN"


async def test_a_wrong_payload_names_the_path_of_what_is_wrong(gateway):
    """The path is relative to the payload."""
    peer = PeerClient(gateway)

    answer = await peer.ask("session_patch", {"sessionId": "s", "patch": {"activation": "loud"}})

    assert error_of(answer) == "INVALID_PAYLOAD"
    assert details_of(answer) == {"path": "$.patch.activation"}


async def test_a_missing_payload_field_is_an_invalid_payload(gateway):
    """The path is where it should have been."""
    peer = PeerClient(gateway, person("bot", "node"))

    answer = await peer.ask("agent_register", {})

    assert error_of(answer) == "INVALID_PAYLOAD"
    assert details_of(answer) == {"path": "$"}


async def test_unknown_payload_fields_are_ignored(gateway):
    """A newer client may send more."""
    peer = PeerClient(gateway)

    assert (await peer.ask("session_list", {"color": "red"})).type == "session_list"


# Custom handlers


async def test_a_plain_function_answers_with_a_dictionary(gateway):
    """The reply has the request's type, session and id."""
    gateway.register_handler("greet", lambda client, message: {"hello": message.data()["name"]})
    peer = PeerClient(gateway)

    answer = await peer.ask("greet", {"name": "Ada"}, "somewhere")

    assert (answer.type, answer.session_id) == ("greet", "somewhere")
    assert answer.data() == {"hello": "Ada"}


async def test_a_handler_may_read_its_payload_as_a_type_and_answer_with_one(gateway):
    """The type is parsed before the handler runs."""

    @gateway.handler("add", Add)
    def add(client, message, payload: Add) -> Sum:
        return Sum(total=payload.left + payload.right)

    peer = PeerClient(gateway)

    good = await peer.ask("add", {"left": 2, "right": 3})
    bad = await peer.ask("add", {"left": "two", "right": 3})

    assert (good.type, good.data()) == ("sum", {"total": 5})
    assert (error_of(bad), details_of(bad)) == ("INVALID_PAYLOAD", {"path": "$.left"})


async def test_a_coroutine_function_answers_when_it_has_finished(gateway):
    """Its result is the reply."""

    async def slow(client, message):
        await asyncio.sleep(0)
        return {"done": True}

    gateway.register_handler("slow", slow)
    peer = PeerClient(gateway)

    assert (await peer.ask("slow")).data() == {"done": True}


async def test_a_plain_function_may_return_a_task(gateway):
    """Whatever can be awaited is."""

    async def work():
        return {"done": True}

    gateway.register_handler("later", lambda client, message: asyncio.ensure_future(work()))
    peer = PeerClient(gateway)

    assert (await peer.ask("later")).data() == {"done": True}


async def test_a_handler_that_returns_nothing_stays_silent(gateway):
    """None is no answer."""
    gateway.register_handler("hush", lambda client, message: None)
    peer = PeerClient(gateway)
    peer.received()

    peer.send("hush")

    assert peer.received() == []


async def test_a_handler_that_raises_a_gateway_error_fails_the_request(gateway):
    """Code, details and the time to wait reach the client."""

    def refuse(client, message):
        raise GatewayError("TOO_EARLY", "not yet", details={"hour": 9}, retry_after=1.5)

    gateway.register_handler("wake", refuse)
    peer = PeerClient(gateway)

    answer = await peer.ask("wake")

    assert answer.data() == {
        "code": "TOO_EARLY",
        "message": "not yet",
        "details": {"hour": 9},
        "retryAfterMs": 1500,
    }


async def test_a_handler_that_raises_disconnect_closes_the_connection(gateway):
    """With its code, and a reason that says whether to come back."""

    def out(client, message):
        raise Disconnect(4029, "enough")

    gateway.register_handler("out", out)
    peer = PeerClient(gateway)

    peer.send("out")

    assert await peer.gone() == (4029, "reconnect=yes;enough")


@pytest.mark.parametrize("coroutine", [False, True])
async def test_a_bug_in_a_handler_is_told_by_an_id_and_nothing_else(gateway, coroutine, capsys):
    """The log has the id and the traceback; the client never sees internals."""

    def broken(client, message):
        raise RuntimeError("the secret is 42")

    async def broken_later(client, message):
        broken(client, message)

    gateway.register_handler("broken", broken_later if coroutine else broken)
    peer = PeerClient(gateway)

    answer = await peer.ask("broken")

    assert error_of(answer) == "HANDLER_ERROR"
    assert "secret" not in str(answer.data())
    assert details_of(answer)["errorId"] in "".join(capsys.readouterr())
    assert (await peer.ask("ping")).type == "pong"


async def test_a_custom_type_is_not_for_observers_unless_declared(gateway):
    """The default is webchat, node and control."""
    gateway.register_handler("custom", lambda client, message: {})
    gateway.register_handler("open", lambda client, message: {}, roles=["observer"])
    observer = PeerClient(gateway, person("olga", "observer"))
    webchat = PeerClient(gateway, person("wim", "webchat"))

    assert error_of(await observer.ask("custom")) == "FORBIDDEN"
    assert (await observer.ask("open")).type == "open"
    assert (await webchat.ask("custom")).type == "custom"
    assert error_of(await webchat.ask("open")) == "FORBIDDEN"


async def test_a_registered_handler_takes_the_place_of_a_built_in_one(gateway):
    """`default_handler` gives the old one, and `unregister_handler` brings it back."""
    builtin = gateway.default_handler("health")
    gateway.register_handler("health", lambda client, message: {"mine": True})
    peer = PeerClient(gateway)

    mine = await peer.ask("health")
    gateway.unregister_handler("health")
    theirs = await peer.ask("health")

    assert mine.data() == {"mine": True}
    assert theirs.data()["status"] == "ok"
    assert gateway.default_handler("health") is builtin


async def test_a_built_in_type_keeps_its_rights_under_another_handler(gateway):
    """Replacing a handler opens no door."""
    gateway.register_handler("broadcast", lambda client, message: {}, roles=["webchat"])
    webchat = PeerClient(gateway, person("wim", "webchat"))

    assert error_of(await webchat.ask("broadcast")) == "FORBIDDEN"


async def test_an_unregistered_custom_type_is_unknown_again(gateway):
    """Nothing of it stays."""
    gateway.register_handler("custom", lambda client, message: {})
    gateway.unregister_handler("custom")

    assert error_of(await PeerClient(gateway).ask("custom")) == "UNKNOWN_TYPE"


def test_a_type_without_a_row_of_rights_cannot_be_built_in(gateway):
    """A handler without a row fails the build."""
    with pytest.raises(ValueError, match="no row"):
        gateway.handlers.add("wobble", lambda client, message: None)


def test_a_custom_type_must_have_the_grammar_of_a_type(gateway):
    """Otherwise no message could ever reach it."""
    with pytest.raises(ValueError, match="message type"):
        gateway.register_handler("No Way", lambda client, message: None)


# The client's queue


async def test_frames_behind_a_coroutine_wait_for_it(gateway):
    """Frames of one connection are handled in order."""
    gate, order = asyncio.Event(), []

    async def slow(client, message):
        await gate.wait()
        order.append("slow")

    gateway.register_handler("slow", slow)
    gateway.register_handler("fast", lambda client, message: order.append("fast"))
    peer = PeerClient(gateway)

    peer.send("slow")
    peer.send("fast")
    assert order == []
    gate.set()
    await peer.ask("health")

    assert order == ["slow", "fast"]


async def test_a_concurrent_coroutine_holds_nobody_up(gateway):
    """It runs beside the client's queue."""
    gate = asyncio.Event()

    async def slow(client, message):
        await gate.wait()
        return {}

    gateway.register_handler("slow", slow, concurrent=True)
    peer = PeerClient(gateway)

    slow_id = peer.send("slow")
    assert (await peer.ask("health")).type == "health"
    gate.set()

    assert (await peer.next(reply_to=slow_id)).type == "slow"


async def test_a_slow_handler_stops_neither_its_clients_pings_nor_anyone_else(gateway):
    """A pong may overtake; other clients never notice."""
    gate = asyncio.Event()

    async def slow(client, message):
        await gate.wait()
        return {}

    gateway.register_handler("slow", slow)
    peer, other = PeerClient(gateway), PeerClient(gateway)

    slow_id = peer.send("slow")

    assert (await peer.ask("ping")).type == "pong"
    assert (await other.ask("health")).type == "health"
    gate.set()
    assert (await peer.next(reply_to=slow_id)).type == "slow"


async def test_a_full_inbox_pauses_reading_until_there_is_room():
    """Behind a slow handler only so many frames wait."""
    async with limited(inbox_messages=3) as gateway:
        gate = asyncio.Event()

        async def slow(client, message):
            await gate.wait()

        gateway.register_handler("slow", slow)
        peer = PeerClient(gateway)

        peer.send("slow")
        peer.send("health")
        peer.send("health")
        assert not peer.transport.paused
        last = peer.send("health")
        assert peer.transport.paused
        gate.set()
        await peer.next(reply_to=last)

        assert not peer.transport.paused


async def test_a_full_inbox_is_counted_in_bytes_too():
    """Few large frames fill it as well as many small ones."""
    async with limited(inbox_bytes=1_000) as gateway:
        gate = asyncio.Event()

        async def slow(client, message):
            await gate.wait()

        gateway.register_handler("slow", slow)
        peer = PeerClient(gateway)

        peer.send("slow")
        peer.send("health", {"filler": "x" * 2_000})

        assert peer.transport.paused
        gate.set()


async def test_what_waits_in_the_inbox_of_a_client_that_left_is_dropped(gateway):
    """Nobody is there to be answered."""
    gate, handled = asyncio.Event(), []

    async def slow(client, message):
        await gate.wait()

    gateway.register_handler("slow", slow)
    gateway.register_handler("fast", lambda client, message: handled.append(message))
    peer = PeerClient(gateway)

    peer.send("slow")
    peer.send("fast")
    peer.disconnect()
    gate.set()
    await gateway.handlers.drain()

    assert handled == []


async def test_stopping_the_gateway_cancels_handlers_that_never_end(gateway):
    """`stop` returns although one waits for good."""
    cancelled = asyncio.Event()

    async def forever(client, message):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    gateway.register_handler("forever", forever)
    peer = PeerClient(gateway)
    peer.send("forever")
    await asyncio.sleep(0)

    await gateway.stop()

    assert cancelled.is_set()


# Rates


async def test_messages_beyond_the_burst_are_rate_limited_with_a_time_to_wait():
    """The client is told how long; the message was not handled."""
    async with limited(publish_rate=1, publish_burst=3) as gateway:
        peer = PeerClient(gateway)

        answers = [await peer.ask("ping") for _ in range(4)]

        assert [a.type for a in answers] == ["pong"] * 3 + ["error"]
        assert error_of(answers[3]) == "RATE_LIMITED"
        assert answers[3].data()["retryable"] is True
        assert 0 < answers[3].data()["retryAfterMs"] <= 1_000


async def test_stream_chunks_have_a_rate_of_their_own():
    """Talking fast does not silence an agent's other messages."""
    async with limited(publish_rate=1, publish_burst=2, stream_rate=1, stream_burst=5) as gateway:
        peer = PeerClient(gateway)

        for _ in range(5):
            assert error_of(await peer.ask("chat_stream", {"content": ""}, "s")) != "RATE_LIMITED"

        assert (await peer.ask("ping")).type == "pong"
        assert error_of(await peer.ask("chat_stream", {"content": ""}, "s")) == "RATE_LIMITED"


async def test_the_rate_is_judged_before_the_right():
    """A flood of refusals is a flood."""
    async with limited(publish_rate=1, publish_burst=1) as gateway:
        peer = PeerClient(gateway, person("ada", "observer"))

        first, second = await peer.ask("chat"), await peer.ask("chat")

        assert (error_of(first), error_of(second)) == ("FORBIDDEN", "RATE_LIMITED")
