"""How what went wrong is told over HTTP: the protocol's codes, and a status for each."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from trunkline.errors import CloseCode, ErrorCode, GatewayError
from trunkline.messages import encode, error_message

STATUS: dict[str, int] = {
    ErrorCode.PARSE_ERROR: 400,
    ErrorCode.INVALID_MESSAGE: 400,
    ErrorCode.INVALID_PAYLOAD: 400,
    ErrorCode.MESSAGE_TOO_LARGE: 413,
    ErrorCode.UNKNOWN_TYPE: 404,
    ErrorCode.UNSUPPORTED_PROTOCOL: 400,
    ErrorCode.AUTH_REQUIRED: 401,
    ErrorCode.AUTH_FAILED: 401,
    ErrorCode.AUTH_LOCKED: 429,
    ErrorCode.AUTH_EXPIRED: 401,
    ErrorCode.ALREADY_AUTHENTICATED: 409,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.CLIENT_NOT_FOUND: 404,
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.SESSION_EXISTS: 409,
    ErrorCode.SESSION_FULL: 409,
    ErrorCode.SESSION_LIMIT: 409,
    ErrorCode.NOT_A_MEMBER: 403,
    ErrorCode.ID_CONFLICT: 409,
    ErrorCode.STORAGE_FULL: 507,
    ErrorCode.RUN_ENDED: 409,
    ErrorCode.ALREADY_DECIDED: 409,
    ErrorCode.DIGEST_MISMATCH: 409,
    ErrorCode.AGENT_NOT_FOUND: 404,
    ErrorCode.AGENT_ID_TAKEN: 409,
    ErrorCode.AGENT_LOST: 502,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.CANCELLED: 409,
    ErrorCode.HANDLER_ERROR: 500,
}
"""The status of each code; a custom handler's own code is 400."""

_BY_STATUS = {
    400: ErrorCode.INVALID_MESSAGE,
    401: ErrorCode.AUTH_REQUIRED,
    403: ErrorCode.FORBIDDEN,
    408: ErrorCode.TIMEOUT,
    413: ErrorCode.MESSAGE_TOO_LARGE,
    415: ErrorCode.INVALID_MESSAGE,
    503: ErrorCode.OVERLOADED,
}
"""The code for what only HTTP can get wrong; otherwise ``UNKNOWN_TYPE``."""

_CLOSED = {
    CloseCode.GOING_AWAY: ErrorCode.OVERLOADED,
    CloseCode.REVOKED: ErrorCode.AUTH_EXPIRED,
    CloseCode.KICKED: ErrorCode.FORBIDDEN,
    CloseCode.TOO_SLOW: ErrorCode.OVERLOADED,
    CloseCode.POLICY: ErrorCode.RATE_LIMITED,
    CloseCode.OVER_QUOTA: ErrorCode.RATE_LIMITED,
}


class HttpFailure(Exception):
    """
    What only HTTP can get wrong: a path, a method, a content type.

    Args:
        status: The HTTP status.
        message: A sentence for people.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.message = message
        self.headers = headers or {}
        super().__init__(status, message)


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return STATUS.get(code, 400)


def code_of(status: int) -> str:
    """Return the error code for a failure that only HTTP knows."""
    return _BY_STATUS.get(status, ErrorCode.UNKNOWN_TYPE)


def ended(closed: tuple[int, str] | None) -> GatewayError:
    """Make the error for a client that was closed before its answer came."""
    code, reason = closed or (CloseCode.INTERNAL, "")
    # "reconnect=yes;afterMs=20;words": only the words are for people.
    words = [part for part in reason.split(";") if part and "=" not in part]
    wait = next((p[8:] for p in reason.split(";") if p.startswith("afterMs=")), "")
    try:
        found = _CLOSED.get(CloseCode(code), ErrorCode.HANDLER_ERROR)
    except ValueError:
        found = ErrorCode.HANDLER_ERROR
    return GatewayError(
        found,
        words[-1] if words else "the gateway ended this request",
        retry_after=int(wait) / 1000 if wait.isdigit() else None,
    )


def failure_response(failure: GatewayError | HttpFailure) -> Response:
    """Make the answer that tells of a failure."""
    headers = {}
    if isinstance(failure, GatewayError):
        status = status_of(failure.code)
        body: dict[str, Any] = error_message(failure).data()
        body.pop("retryable", None)
        if failure.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(failure.retry_after)))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
    else:
        status, headers = failure.status, dict(failure.headers)
        body = {"code": code_of(status), "message": failure.message}
    content = encode({"error": {"status": status, **body}})
    return Response(content, status, headers, "application/json")
