"""
Everything that can go wrong, by what happens next.

* GatewayError     the request failed; the connection stays open
* Disconnect       the connection must close; carries a close code
* ConfigError      the configuration is wrong; raised before anything starts

A handler that raises `GatewayError` sends an ``error`` message to the sender.
A handler that raises `Disconnect` closes the connection. Anything else is a
bug: it is logged with a traceback and the sender gets ``HANDLER_ERROR`` with
the id under which the log has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """The codes of ``error`` messages (protocol.md section 6)."""

    PARSE_ERROR = "PARSE_ERROR"
    """The frame is not valid JSON, or nested too deeply."""
    INVALID_MESSAGE = "INVALID_MESSAGE"
    """The envelope is wrong: a field is missing, or of the wrong type or grammar."""
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    """The payload does not fit its type; ``details.path`` names the place."""
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    """The message is above ``details.limit`` bytes."""
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    """No handler and no listener knows this message type."""
    UNSUPPORTED_PROTOCOL = "UNSUPPORTED_PROTOCOL"
    """The gateway speaks only the versions in ``details.supported``."""
    AUTH_REQUIRED = "AUTH_REQUIRED"
    """Sign in first, or: the ``auth`` message held no credential."""
    AUTH_FAILED = "AUTH_FAILED"
    """The credential is wrong."""
    AUTH_LOCKED = "AUTH_LOCKED"
    """Too many wrong credentials from this address; wait ``retryAfterMs``."""
    AUTH_EXPIRED = "AUTH_EXPIRED"
    """The credential has expired."""
    ALREADY_AUTHENTICATED = "ALREADY_AUTHENTICATED"
    """This connection already belongs to another user, role or device."""
    FORBIDDEN = "FORBIDDEN"
    """This identity may not do this."""
    RATE_LIMITED = "RATE_LIMITED"
    """Too many messages; wait ``retryAfterMs``."""
    OVERLOADED = "OVERLOADED"
    """The gateway, or every agent that fits, has no room now."""
    CLIENT_NOT_FOUND = "CLIENT_NOT_FOUND"
    """No such connection."""
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    """No such session, or none that this identity may know of."""
    SESSION_EXISTS = "SESSION_EXISTS"
    """The session id is in use."""
    SESSION_FULL = "SESSION_FULL"
    """The session has as many members as it may have."""
    SESSION_LIMIT = "SESSION_LIMIT"
    """This user or connection has as many sessions as it may have."""
    NOT_A_MEMBER = "NOT_A_MEMBER"
    """Join the session first."""
    ID_CONFLICT = "ID_CONFLICT"
    """The message id was used before, with another content."""
    STORAGE_FULL = "STORAGE_FULL"
    """The log cannot take more; reads go on."""
    RUN_ENDED = "RUN_ENDED"
    """The run has ended, or never was."""
    ALREADY_DECIDED = "ALREADY_DECIDED"
    """Somebody else answered the approval; see ``details.decision``."""
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    """The digest is not that of the tool and arguments."""
    AGENT_NOT_FOUND = "AGENT_NOT_FOUND"
    """No online agent fits."""
    AGENT_ID_TAKEN = "AGENT_ID_TAKEN"
    """The agent id belongs to another user."""
    AGENT_LOST = "AGENT_LOST"
    """The agent went away; with ``details.delivered`` the outcome is unknown."""
    TIMEOUT = "TIMEOUT"
    """The deadline passed; with ``details.delivered`` the outcome is unknown."""
    CANCELLED = "CANCELLED"
    """The asker cancelled the request."""
    HANDLER_ERROR = "HANDLER_ERROR"
    """A bug in the gateway or its extension; the log has ``details.errorId``."""


RETRYABLE = frozenset(
    {
        ErrorCode.AUTH_LOCKED,
        ErrorCode.RATE_LIMITED,
        ErrorCode.OVERLOADED,
        ErrorCode.STORAGE_FULL,
        ErrorCode.AGENT_NOT_FOUND,
    }
)
"""The same request may succeed later without being changed."""


class GatewayError(Exception):
    """
    A request failed; the connection stays open.

    Args:
        code: One of `ErrorCode`, or a custom handler's own word.
        message: A sentence for people; never holds internals or secrets.
        details: Facts for programs, in wire spelling.
        retry_after: Seconds to wait before trying again, if that may help.
    """

    def __init__(
        self,
        code: ErrorCode | str,
        message: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.code = str(code)
        self.message = message or self.code.replace("_", " ").lower()
        self.details = dict(details) if details else None
        self.retry_after = retry_after
        super().__init__(self.code, self.message)

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in RETRYABLE

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class CloseCode(IntEnum):
    """WebSocket close codes that the gateway uses (protocol.md section 6)."""

    NORMAL = 1000
    """The work is done."""
    GOING_AWAY = 1001
    """The gateway is draining; come back after ``reconnectInMs``."""
    PROTOCOL_ERROR = 1002
    """The peer broke RFC 6455."""
    UNSUPPORTED_DATA = 1003
    """A binary frame; the protocol is text only."""
    INVALID_UTF8 = 1007
    """A text frame that is not UTF-8."""
    POLICY = 1008
    """A flood of control frames, or repeated junk."""
    TOO_LARGE = 1009
    """A message above the limit."""
    INTERNAL = 1011
    """The gateway failed."""
    NOT_SIGNED_IN = 4001
    """No credential came in time."""
    REVOKED = 4003
    """The credential was revoked or expired, or the pairing rejected."""
    KICKED = 4004
    """An operator closed the connection."""
    TOO_SLOW = 4008
    """The send queue passed its limit; reconnect and resume."""
    REPLACED = 4009
    """A newer connection took this one's agent over."""
    OVER_QUOTA = 4029
    """Over a quota; reconnect after ``afterMs``."""


RECONNECT = frozenset(
    {CloseCode.GOING_AWAY, CloseCode.INTERNAL, CloseCode.TOO_SLOW, CloseCode.OVER_QUOTA}
)
"""Close codes after which a client should connect again by itself."""


def close_reason(code: int, text: str = "", *, after: float | None = None) -> str:
    """
    Make a close reason: ``reconnect=yes|no[;afterMs=N][;text]``.

    Args:
        code: The close code, which decides whether to reconnect.
        text: A few words for people; cut so that the reason fits 123 bytes.
        after: Seconds to wait before reconnecting.
    """
    parts = ["reconnect=yes" if code in RECONNECT else "reconnect=no"]
    if after is not None:
        parts.append(f"afterMs={round(after * 1000)}")
    if text:
        parts.append(text)
    return ";".join(parts).encode()[:123].decode(errors="ignore")


class Disconnect(Exception):
    """
    The connection must close now.

    Args:
        code: A WebSocket close code, see `CloseCode`.
        text: A few words for people.
        after: Seconds to wait before reconnecting, if that may help.
    """

    def __init__(self, code: int, text: str = "", *, after: float | None = None) -> None:
        self.code = code
        self.text = text
        self.after = after
        super().__init__(code, text)

    @property
    def reason(self) -> str:
        """What goes into the close frame."""
        return close_reason(self.code, self.text, after=self.after)


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and the remedy."""
