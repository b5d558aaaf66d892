"""What all payloads are made of: the base classes and the fields' grammar."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from trunkline.ids import ID_PATTERN

_END = r"(?![\s\S])"  # "$" would let a trailing newline pass
Id = Annotated[str, Meta(pattern=rf"^(?!\.\.?{_END}){ID_PATTERN}{_END}")]
NULL = msgspec.Raw(b"null")
"""What an absent JSON value is read as."""
Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
MAX_COUNT = 2**53 - 1
"""The largest number that every JSON implementation reads exactly."""
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Limit = Annotated[int, Meta(ge=1, le=300)]

SentBy = Literal["client", "gateway", "both"]
RoutePolicy = Literal["least_busy", "round_robin"]
"""Which of several agents is asked: the one with the least to do, or each in turn."""

AgentType = Literal["pi", "cli", "webchat", "companion", "channel", "custom"]
Visibility = Literal["shared", "private"]
Durability = Literal["memory", "process", "disk", "replicated"]
RunStatus = Literal["ok", "error", "cancelled", "lost"]


class Payload(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of every payload."""

    type: ClassVar[str] = ""
    """The word on the wire."""
    sent_by: ClassVar[SentBy] = "client"
    """Who sends it."""
    durable: ClassVar[bool] = False
    """Whether it goes into the session's log and so has a ``seq``."""


class Part(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Base of what stands inside payloads."""


class SessionPayload(Payload, kw_only=True):
    """Base of payloads that belong to a session; the envelope may name it instead."""

    session_id: Id | None = None
    """The session, if the envelope does not name it."""
    session_key: Id | None = None
    """Another spelling of `session_id`."""
