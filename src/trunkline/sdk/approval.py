"""Asking the people in a session before something is done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Raw

from trunkline.ids import now_ms, random_id
from trunkline.messages import encode
from trunkline.payloads import ApprovalRequest, ApprovalResponse, read
from trunkline.sdk.messages import Message

if TYPE_CHECKING:
    from trunkline.sdk.context import RunContext

PATIENCE = 5.0
"""Seconds past the deadline in which the gateway's own denial should come."""


class Decision(NamedTuple):
    """What was decided; it is true if the tool may run."""

    allowed: bool
    reason: str | None = None
    by: str = ""
    """The user who decided; the gateway where nobody did in time."""

    def __bool__(self) -> bool:
        return self.allowed


async def ask_approval(
    run: RunContext, tool: str, args: Mapping[str, Any], digest: str, timeout: float
) -> Decision:
    """Ask, and wait for the first answer; none in time is a no."""
    request = ApprovalRequest(
        approval_id=random_id("a_"),
        tool=tool,
        args=Raw(encode(args)),
        digest=digest,
        expires_at=now_ms() + round(timeout * 1000),
        run_id=run.run_id,
    )
    decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

    def answered(message: Message) -> None:
        response = read(message, ApprovalResponse)
        if response.approval_id != request.approval_id or decided.done():
            return
        fits = response.digest.lower() == digest
        by = "" if message.sender is None else message.sender.user_id
        decided.set_result(Decision(fits and response.decision == "allow", response.reason, by))

    forget = run.gateway.on("approval_response", answered)
    try:
        await run.session.publish("approval_request", request, reply_to=run.message.id)
        async with asyncio.timeout(timeout + PATIENCE):
            return await decided
    except TimeoutError:
        return Decision(False, "no answer came in time")
    finally:
        forget()
