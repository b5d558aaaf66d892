"""What the SDK hands to the application: the protocol's envelope, with a few readings of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from trunkline.messages import GatewayMessage, Sender, create_message

_TEXT_FIELDS = {"chat": "message", "chat_stream": "content", "chat_complete": "content"}


class Message(GatewayMessage):
    """
    One message of a session or connection, as it was received.

    `seq` is its place in the session's log; ephemeral messages have none.
    `data()` reads the payload as a dictionary.
    """

    @property
    def text(self) -> str:
        """What a ``chat``, ``chat_stream`` or ``chat_complete`` says; else empty."""
        field = _TEXT_FIELDS.get(self.type)
        return self.data()[field] if field else ""

    @property
    def author(self) -> str:
        """Who speaks: the agent's id, else the user's; empty if unknown."""
        return "" if self.sender is None else self.sender.agent_id or self.sender.user_id


class Page(NamedTuple):
    """A piece of a session's log, oldest message first."""

    messages: list[Message]
    first: int
    """The oldest `seq` that the log still has."""
    head: int
    """The newest."""
    epoch: str
    more: bool
    """Whether there is more in the direction of reading."""


decode = msgspec.json.Decoder(Message).decode
"""Decode one frame of the gateway."""


def own_message(frame: bytes, seq: int, sender: Sender | None) -> Message:
    """Make what others receive from what was sent and acknowledged."""
    message = decode(frame)
    message.seq = seq
    message.sender = sender
    return message


def notice(type: str, session_id: str, facts: dict[str, Any]) -> Message:
    """Make a message that the SDK itself has for the application."""
    made = create_message(type, facts, session_id)
    return Message(**msgspec.structs.asdict(made))
