"""What goes into a session's log, and what its sender is told."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Raw

from trunkline.clients import Client
from trunkline.fanout import Feed, Publish
from trunkline.ids import new_id, now_ms
from trunkline.messages import GatewayMessage, RelayedMessage, Sender, encode
from trunkline.payloads import RunRef

GATEWAY = Raw(
    encode(Sender(client_id="gateway", user_id="gateway", role="gateway", kind="gateway"))
)
"""The sender of what the gateway itself puts into a log."""

GATEWAY_KEY = "gateway"
"""The user in the dedupe keys of the gateway's own messages."""


def content_digest(type: str, payload: Raw) -> bytes:
    """Hash what a client sent: the type and the payload's bytes as they came."""
    digest = hashlib.sha256(type.encode())
    digest.update(b"\0")
    digest.update(payload)
    return digest.digest()


class Post(Publish):
    """
    A client's durable message.

    The dedupe key is (user, device, session, id); the session is the feed's.
    """

    __slots__ = ("message", "sender")

    def __init__(self, client: Client, message: GatewayMessage, payload: Raw | None = None) -> None:
        self.client = client
        self.request_id = message.id
        self.key = f"{client.user_id}\0{client.device_id or ''}\0{message.id}"
        self.digest = content_digest(message.type, message.payload)
        self.seq = 0
        self.body = b""
        self.sender = client.sender
        self.message = message
        if not client.agents:
            message.reply_to = None  # only agents answer; others could pose as an answer
        if payload is not None:
            message.payload = payload

    def addressed(self, feed: Feed, seq: int) -> list[str] | None:
        """Return the agents that are to answer; None for what is not a chat."""
        return None

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the message as members get it."""
        message = self.message
        return encode(
            RelayedMessage(
                type=message.type,
                id=message.id,
                session_id=feed.session_id,
                payload=message.payload,
                timestamp=now_ms(),
                reply_to=message.reply_to,
                sender=self.sender,
                seq=seq,
                addressed=self.addressed(feed, seq),
                trace=message.trace,
            )
        )

    def runs(self) -> list[RunRef] | None:
        """Return the runs that the message opened; None for what is not a chat."""
        return None

    def ack(self, feed: Feed) -> bytes:
        """Say where the message is stored."""
        return ack_frame(feed, self.message.id, self.seq, self.runs())

    def duplicate(self, feed: Feed, seq: int, body: bytes) -> bytes:
        """Say where the message was stored the first time."""
        return ack_frame(feed, self.message.id, seq, None, duplicate=True)


class GatewayPost(Publish):
    """A durable message of the gateway's own."""

    __slots__ = ("message",)

    def __init__(self, message: GatewayMessage) -> None:
        super().__init__(None, None, f"{GATEWAY_KEY}\0\0{message.id}", b"")
        self.message = message

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the message as members get it."""
        message = self.message
        return encode(
            RelayedMessage(
                type=message.type,
                id=message.id,
                session_id=feed.session_id,
                payload=message.payload,
                timestamp=now_ms(),
                sender=GATEWAY,
                seq=seq,
            )
        )


class StatusChange(Publish):
    """
    A durable ``session_info``: what somebody did to a session.

    The one who asked gets the same frame with ``replyTo``.
    """

    __slots__ = ("message", "payload", "sender")

    def __init__(self, client: Client, message: GatewayMessage, payload: Raw) -> None:
        super().__init__(client, message.id, f"{GATEWAY_KEY}\0\0{new_id()}", b"")
        self.message = message
        self.payload = payload
        self.sender = client.sender

    def _encode(self, feed: Feed, seq: int, reply_to: str | None) -> bytes:
        return encode(
            RelayedMessage(
                type="session_info",
                id=new_id(),
                session_id=feed.session_id,
                payload=self.payload,
                timestamp=now_ms(),
                reply_to=reply_to,
                sender=self.sender,
                seq=seq,
            )
        )

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the change as members get it."""
        return self._encode(feed, seq, None)

    def ack(self, feed: Feed) -> bytes:
        """Return the change as the one who asked gets it."""
        return self._encode(feed, self.seq, self.message.id)


def ack_frame(
    feed: Feed,
    request_id: str,
    seq: int,
    runs: list[RunRef] | None = None,
    *,
    duplicate: bool = False,
) -> bytes:
    """
    Encode an ``ack``.

    Written by hand, for it is the most frequent frame that the gateway makes;
    every string in it has the grammar of an id and needs no escaping.
    """
    tail = ',"duplicate":true' if duplicate else ""
    if runs is not None:
        tail += f',"runs":{encode(runs).decode()}'
    return (
        f'{{"type":"ack","id":"{new_id()}","sessionId":"{feed.session_id}",'
        f'"payload":{{"sessionId":"{feed.session_id}","seq":{seq},"epoch":"{feed.epoch}",'
        f'"durability":"{feed.durability}"{tail}}},'
        f'"timestamp":{now_ms()},"replyTo":"{request_id}"}}'
    ).encode()


def stamped(payload: Raw, fields: dict[str, str | int]) -> Raw:
    """
    Return a payload with fields set by the gateway, the rest byte for byte.

    A field that the payload spells already is replaced, which costs a full
    reading; usually it does not.
    """
    body = bytes(payload)
    missing = {k: v for k, v in fields.items() if f'"{k}"'.encode() not in body}
    if len(missing) < len(fields):
        return _restamped(body, fields)
    inside = body[1:].lstrip()
    head = encode(missing)[:-1]
    return Raw(head + (b"" if inside.startswith(b"}") else b",") + inside)


def _restamped(body: bytes, fields: dict[str, str | int]) -> Raw:
    values: dict[str, Raw] = msgspec.json.decode(body, type=dict[str, Raw])
    if all(k in values and bytes(values[k]) == encode(v) for k, v in fields.items()):
        return Raw(body)
    return Raw(encode({**values, **{k: Raw(encode(v)) for k, v in fields.items()}}))
