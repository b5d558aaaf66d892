"""The envelope: what is believed of it, and what goes through it untouched."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.ids import valid_id
from trunkline.messages import (
    GatewayMessage,
    Sender,
    create_control_message,
    create_error_message,
    create_message,
    decode_message,
    decode_received,
    encode,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_made_message_has_an_id_and_a_timestamp():
    """`create_message` fills in what the sender has to set."""
    message = create_message("chat", {"message": "hi"}, "lobby")

    assert valid_id(message.id)
    assert message.timestamp > 1_600_000_000_000
    assert (message.type, message.session_id, message.data()) == (
        "chat",
        "lobby",
        {"message": "hi"},
    )


def test_no_two_made_messages_share_an_id():
    """Ids are unique within a process."""
    ids = {create_message("ping").id for _ in range(1_000)}

    assert len(ids) == 1_000


def test_a_made_error_has_code_message_and_details():
    """`create_error_message` makes the structured payload of an ``error``."""
    message = create_error_message("TIMEOUT", "too late", {"delivered": True}, reply_to="q1")

    assert message.type == "error"
    assert message.reply_to == "q1"
    assert message.data() == {
        "code": "TIMEOUT",
        "message": "too late",
        "details": {"delivered": True},
    }


def test_a_made_control_message_has_an_id_source_and_target():
    """Control messages have an id like all others."""
    message = create_control_message("route_request", "c1", {"capability": "add"}, "calculator")

    assert valid_id(message.id)
    assert (message.source, message.target) == ("c1", "calculator")


def test_absent_fields_are_left_out_of_the_frame():
    """What may be absent is absent, rather than null."""
    frame = json.loads(encode(GatewayMessage(type="ping", id="1")))

    assert frame == {"type": "ping", "id": "1"}


def test_the_wire_spells_names_in_camel_case_and_the_sender_as_from():
    """Python's names and the wire's are mapped in one place."""
    sender = Sender(client_id="c1", user_id="ada", role="control", kind="user")
    message = GatewayMessage(type="x", id="1", session_id="s", reply_to="q", sender=sender)

    frame = json.loads(encode(message))

    assert frame["sessionId"] == "s"
    assert frame["replyTo"] == "q"
    assert frame["from"] == {
        "clientId": "c1",
        "userId": "ada",
        "role": "control",
        "kind": "user",
    }


@given(payload=st.dictionaries(st.text(), JSON, max_size=4))
def test_a_payload_survives_the_envelope(payload):
    """What goes in as a payload comes out the same."""
    message = create_message("x", payload)

    assert decode_message(encode(message)).data() == payload


@given(sender=JSON, seq=JSON, addressed=JSON)
def test_the_fields_of_the_gateway_are_cleared_whatever_a_client_puts_there(sender, seq, addressed):
    """`from`, `seq` and `addressed` are dropped, even when of the wrong type."""
    frame = {"type": "chat", "id": "1", "from": sender, "seq": seq, "addressed": addressed}

    message = decode_received(json.dumps(frame))

    assert (message.sender, message.seq, message.addressed) == (None, None, None)


@pytest.mark.parametrize(
    "frame",
    ["{}", '{"type":"x"}', '{"id":"1"}', '{"type":1,"id":"1"}', '{"type":"x","id":7}', "[]", "5"],
)
def test_an_envelope_without_a_type_and_an_id_is_no_message(frame):
    """Both are strings and required."""
    with pytest.raises(msgspec.ValidationError):
        decode_received(frame)


def test_unknown_envelope_fields_are_ignored():
    """A newer client may send more."""
    message = decode_received('{"type":"x","id":"1","color":"red"}')

    assert message.id == "1"


def test_a_payload_keeps_its_bytes():
    """What is only relayed is not read, and so not changed."""
    message = decode_received('{"type":"x","id":"1","payload":{"a" : 1.50,"b":"\\u00e9"}}')

    assert bytes(message.payload) == b'{"a" : 1.50,"b":"\\u00e9"}'


def test_of_duplicate_keys_the_last_wins():
    """So does every other reader of JSON."""
    message = decode_received('{"type":"x","id":"1","id":"2"}')

    assert message.id == "2"
