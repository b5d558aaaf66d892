"""Chat, answers that stream, tool calls and approvals (protocol.md section 4, "Runs")."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw

from trunkline.payloads.base import (
    NULL,
    Count,
    Id,
    Name,
    Part,
    RunStatus,
    SessionPayload,
    Text,
)


class Chat(SessionPayload, kw_only=True):
    """Say something in a session."""

    type = "chat"
    sent_by = "both"
    durable = True
    message: str
    context: dict[str, Any] | None = None
    stream: bool | None = None
    """Whether the answer should come in chunks."""
    mentions: list[Id] | None = None
    """
    The agents that are to answer; absent: as the session's ``activation`` says.

    An agent without the capability ``chat`` is passed over, named or not.
    """


class RunPayload(SessionPayload, kw_only=True):
    """Base of what an agent sends in a run."""

    run_id: Id | None = None
    """The run; absent: the one that `replyTo` names, or the only open one."""


class ChatStream(RunPayload, kw_only=True):
    """One chunk of an answer."""

    type = "chat_stream"
    sent_by = "both"
    content: str
    done: bool = False
    index: Count | None = None
    """The chunk's number, from 0, without gaps; absent: the next one."""
    first: int | None = None
    """On a joined chunk: the first index that it holds."""


class ChatComplete(RunPayload, kw_only=True):
    """The whole answer; it ends the run and replaces the chunks."""

    type = "chat_complete"
    sent_by = "both"
    durable = True
    content: str
    status: RunStatus = "ok"
    usage: dict[str, Any] | None = None
    error: str | dict[str, Any] | None = None


class ToolResultData(Part, kw_only=True):
    """How a tool call ended."""

    success: bool
    output: Any = None
    error: str | None = None


class ToolStart(RunPayload, kw_only=True):
    """A tool call begins."""

    type = "tool_start"
    sent_by = "both"
    durable = True
    tool: Name
    tool_call_id: Id
    args: Raw = NULL


class ToolUpdate(RunPayload, kw_only=True):
    """A tool call goes on."""

    type = "tool_update"
    sent_by = "both"
    tool: Name | None = None
    tool_call_id: Id
    progress: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Percent."""
    message: str | None = None


class ToolResult(RunPayload, kw_only=True):
    """A tool call has ended."""

    type = "tool_result"
    sent_by = "both"
    durable = True
    tool: Name | None = None
    tool_call_id: Id
    result: ToolResultData


class RunCancel(SessionPayload, kw_only=True):
    """Stop a run."""

    type = "run_cancel"
    sent_by = "both"
    run_id: Id


class ApprovalRequest(RunPayload, kw_only=True):
    """An agent asks whether it may run a tool."""

    type = "approval_request"
    sent_by = "both"
    durable = True
    approval_id: Id
    tool: Name
    args: Raw = NULL
    digest: Annotated[str, Meta(max_length=128)]
    """SHA-256 of the canonical JSON (RFC 8785) of ``{tool, args}``, in hex."""
    expires_at: Count


class ApprovalResponse(SessionPayload, kw_only=True):
    """A member answers an approval request."""

    type = "approval_response"
    sent_by = "both"
    durable = True
    approval_id: Id
    decision: Literal["allow", "deny"]
    digest: Annotated[str, Meta(max_length=128)]
    reason: Text | None = None
