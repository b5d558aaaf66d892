"""
The envelope that every frame wears (protocol.md section 2).

`GatewayMessage` is both directions' envelope. Its payload stays unread bytes
(`msgspec.Raw`) until a handler asks for it with `read`, so what is only
relayed is never parsed.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from trunkline.errors import GatewayError
from trunkline.ids import new_id, now_ms

PROTOCOL_VERSION = 1
"""The version of the wire protocol that this package speaks."""

SUBPROTOCOL = "trunkline.v1"
"""The WebSocket subprotocol, echoed when offered."""

EMPTY_PAYLOAD = msgspec.Raw(b"{}")

Role = Literal["control", "webchat", "node", "observer"]
"""What a connection may be; a credential grants a set of them."""

Kind = Literal["user", "agent", "gateway"]
"""Who speaks: a person's client, an agent, or the gateway itself."""


class Sender(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """The proven sender of a relayed message; only the gateway writes it."""

    client_id: str
    """The connection."""
    user_id: str
    """The user, from the credential."""
    role: str
    """The connection's role."""
    kind: Kind
    """``agent`` when the connection has a registered agent."""
    device_id: str | None = None
    """The device, as ``connect`` named it."""
    device_name: str | None = None
    """The device's name for people."""
    agent_id: str | None = None
    """The agent that speaks, when ``kind`` is ``agent``."""


class GatewayMessage(msgspec.Struct, rename="camel", omit_defaults=True):
    """One message, in either direction."""

    type: str
    """What the payload is."""
    id: str
    """Unique per sender; a reply carries it in `reply_to`."""
    session_id: str | None = None
    """The session that the message belongs to."""
    payload: msgspec.Raw = EMPTY_PAYLOAD
    """The typed content, as unread JSON."""
    timestamp: int = 0
    """Milliseconds since the Unix epoch."""
    reply_to: str | None = None
    """The `id` of the message that this one answers."""
    source: str | None = None
    """Control messages: the client or agent that sends."""
    target: str | None = None
    """Control messages: the agent that is meant."""
    sender: Sender | None = msgspec.field(name="from", default=None)
    """The proven sender; set by the gateway only."""
    seq: int | None = None
    """Place in the session's log, from 1; set by the gateway only."""
    addressed: list[str] | None = None
    """On a stored ``chat``: the agents that are to answer; set by the gateway only."""
    trace: str | None = None
    """W3C traceparent, passed on untouched."""

    def data(self) -> dict[str, Any]:
        """Read the payload as a plain dictionary."""
        value: dict[str, Any] = msgspec.json.decode(self.payload)
        return value


class ReceivedMessage(GatewayMessage):
    """
    A frame as it came from a client, who is not believed.

    The fields that only the gateway may set accept anything, since a client
    that sends them must not be able to spoil its message; `decode_received`
    clears them.
    """

    sender: Any = msgspec.field(name="from", default=None)
    seq: Any = None
    addressed: Any = None


class RelayedMessage(GatewayMessage):
    """A frame on its way out, whose sender is written already."""

    sender: Any = msgspec.field(name="from", default=None)
    """`Sender`, or the same as `msgspec.Raw`."""


class OutgoingMessage(RelayedMessage):
    """A frame on its way out whose payload is encoded with it, in one go."""

    payload: Any = EMPTY_PAYLOAD
    """A payload struct, or bytes of JSON as `msgspec.Raw`."""


ControlMessage = GatewayMessage
"""A message that coordinates the gateway and its agents; the envelope is the same."""

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
"""Encode a message or payload as JSON bytes."""

decode_message = msgspec.json.Decoder(GatewayMessage).decode
"""Decode one frame. Raises `msgspec.DecodeError`, `msgspec.ValidationError` or `RecursionError`."""

_decode_received = msgspec.json.Decoder(ReceivedMessage).decode


def decode_received(frame: str | bytes) -> ReceivedMessage:
    """
    Decode a client's frame without believing the fields that are not its to set.

    Raises as `decode_message` does.
    """
    message = _decode_received(frame)
    if message.sender is not None:
        message.sender = None
    if message.seq is not None:
        message.seq = None
    if message.addressed is not None:
        message.addressed = None
    return message


def create_message(
    type: str,
    payload: Any = None,
    session_id: str | None = None,
    *,
    id: str | None = None,
    reply_to: str | None = None,
) -> GatewayMessage:
    """
    Make a message with an id and a timestamp.

    Args:
        type: The message type.
        payload: A payload struct, a dictionary, or None for ``{}``.
        session_id: The session that it belongs to.
        id: An id of one's own instead of a new one.
        reply_to: The id of the message that this one answers.
    """
    raw = EMPTY_PAYLOAD if payload is None else msgspec.Raw(encode(payload))
    return GatewayMessage(
        type=type,
        id=id or new_id(),
        session_id=session_id,
        payload=raw,
        timestamp=now_ms(),
        reply_to=reply_to,
    )


def create_error_message(
    code: str,
    message: str,
    details: dict[str, Any] | None = None,
    *,
    reply_to: str | None = None,
) -> GatewayMessage:
    """Make an ``error`` message with a structured payload."""
    return error_message(GatewayError(code, message, details=details), reply_to)


def error_message(error: GatewayError, reply_to: str | None = None) -> GatewayMessage:
    """Make the ``error`` message that tells a client of `error`."""
    payload: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        payload["details"] = error.details
    if error.retryable:
        payload["retryable"] = True
    if error.retry_after is not None:
        payload["retryAfterMs"] = max(1, round(error.retry_after * 1000))
    return create_message("error", payload, reply_to=reply_to)


def create_control_message(
    type: str, source: str, payload: Any = None, target: str | None = None
) -> ControlMessage:
    """
    Make a control message, which coordinates the gateway and its agents.

    Args:
        type: The message type, such as ``route_request``.
        source: The client or agent that sends.
        payload: A payload struct or dictionary.
        target: The agent that is meant.
    """
    message = create_message(type, payload)
    message.source = source
    message.target = target
    return message
