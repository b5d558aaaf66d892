"""
What can go wrong for a user of the SDK, by what to do next.

* TrunklineError
    * RequestFailed          the gateway or an agent said no; `retryable` says whether later may help
        * SignInFailed       another credential is needed
    * ConnectionLost         there is no connection, and none will come by itself
    * OutcomeUnknown         it may or may not have happened; look before doing it again
    * TimedOut               no answer in time
    * InsecureConnection     a secret would have travelled in the clear
    * ToolError              raised by a tool's author, to tell the asker why
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trunkline.errors import RETRYABLE, ErrorCode
from trunkline.messages import GatewayMessage
from trunkline.payloads import ErrorPayload, read


class TrunklineError(Exception):
    """Base of every error that the SDK raises."""


class RequestFailed(TrunklineError):
    """
    The gateway, or the agent that was asked, refused.

    Args:
        code: One of `ErrorCode`, or an agent's own word.
        message: A sentence for people.
        details: Facts for programs, in wire spelling.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds to wait before that, if the gateway said so.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.code = code
        self.message = message or code.replace("_", " ").lower()
        self.details = dict(details or {})
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__(f"{code}: {self.message}")


class SignInFailed(RequestFailed):
    """The credential is missing, wrong, expired or revoked; or it may not take the role."""


class ConnectionLost(TrunklineError):
    """
    The connection has ended and will not come back by itself.

    Args:
        message: A sentence for people.
        code: The WebSocket close code or HTTP status, if one was received.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)


class OutcomeUnknown(TrunklineError):
    """The answer was lost: what was asked may have happened, or not. It is never repeated blindly."""


class TimedOut(TrunklineError, TimeoutError):
    """No answer came in time."""


class InsecureConnection(TrunklineError, ValueError):
    """A credential would travel unencrypted to another machine; use ``wss://``."""


class ToolError(TrunklineError):
    """
    Raised inside a tool to tell the asker why it failed.

    Any other exception reaches the asker as a generic failure, so that
    nothing internal leaks.
    """

    def __init__(self, message: str, code: str = "TOOL_ERROR") -> None:
        self.code = code
        self.message = message
        super().__init__(message)


def refusal(message: GatewayMessage) -> RequestFailed:
    """Turn an ``error`` message into the exception to raise."""
    error = read(message, ErrorPayload)
    wait = error.retry_after_ms or (error.details or {}).get("retryAfterMs")
    return RequestFailed(
        error.code,
        error.message,
        details=error.details,
        retryable=error.code in RETRYABLE if error.retryable is None else error.retryable,
        retry_after=None if wait is None else wait / 1000,
    )


def route_refusal(error: RequestFailed) -> TrunklineError:
    """Turn a routed request's end into the exception to raise."""
    ambiguous = error.code in (ErrorCode.AGENT_LOST, ErrorCode.TIMEOUT)
    if ambiguous and error.details.get("delivered"):
        return OutcomeUnknown(f"{error}; the agent had received the request")
    if error.code == ErrorCode.TIMEOUT:
        return TimedOut(str(error))
    return error
