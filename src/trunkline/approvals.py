"""
Approvals: an agent asks whether it may run a tool, and a member answers once.

Both messages stand in the session's log, whose order decides between two
answers. The gateway itself computes the digest of what is asked for, denies
what nobody has answered in time, and forgets what belonged to a run that ended.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw

from trunkline.clients import Client
from trunkline.digests import approval_digest
from trunkline.errors import ErrorCode, GatewayError
from trunkline.events import AuditEntry
from trunkline.fanout import Feed
from trunkline.handlers import Handlers
from trunkline.ids import now_ms
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.payloads import ApprovalRequest, ApprovalResponse, read
from trunkline.posts import GatewayPost, Post
from trunkline.recovery import last_messages
from trunkline.run_posts import Run, RunPost
from trunkline.runs import Runs
from trunkline.sessions import Session, SessionManager

MAX_AHEAD = 24 * 3_600_000
"""Milliseconds for which an agent may wait for an answer."""

MAX_OPEN = 100
"""Open approvals of one session."""

SETTLED_KEPT = 512
"""Approvals that a session remembers once they are settled."""

Decision = Literal["allow", "deny"]


class Approval:
    """
    One approval that was asked for.

    Attributes:
        frame: The request as it was delivered; empty until it is stored.
        answered: The decision that is on its way into the log.
    """

    __slots__ = ("agent_id", "answered", "asker", "frame", "request", "run_id")

    def __init__(
        self, request: ApprovalRequest, run_id: str, agent_id: str, asker: Client | None
    ) -> None:
        self.request = request
        self.run_id = run_id
        self.agent_id = agent_id
        self.asker = asker
        self.frame = b""
        self.answered: Decision | None = None

    @property
    def id(self) -> str:
        """The agent's id of it."""
        return self.request.approval_id


class Approvals:
    """The handlers of ``approval_*``, and what is open in each session."""

    def __init__(self, sessions: SessionManager, runs: Runs) -> None:
        self._sessions = sessions
        self._runs = runs
        sessions.opened.append(self._rebuild)
        runs.ended.append(self._run_ended)

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("approval_request", self._on_request, ApprovalRequest)
        handlers.add("approval_response", self._on_response, ApprovalResponse)

    # Asking

    def _on_request(
        self, client: Client, message: GatewayMessage, payload: ApprovalRequest
    ) -> None:
        session = self._runs.agent_session(client, message, payload)
        self._runs.post(
            session,
            client,
            message,
            payload,
            lambda run: _RequestPost(self, client, message, session, run, payload),
        )

    def admit(self, session: Session, approval: Approval) -> None:
        """Check a request and reserve its id; raises `GatewayError`."""
        request = approval.request
        ahead = request.expires_at - now_ms()
        if not 0 < ahead <= MAX_AHEAD:
            raise _invalid("it must expire within the next 24 hours", "$.expiresAt")
        if approval.id in session.approvals or approval.id in session.settled:
            raise GatewayError(ErrorCode.ID_CONFLICT, "the session has had this approval id")
        if len(session.approvals) >= MAX_OPEN:
            raise GatewayError(ErrorCode.OVERLOADED, "too many approvals are open in this session")
        try:
            digest = approval_digest(request.tool, msgspec.json.decode(request.args))
        except (ValueError, msgspec.DecodeError) as error:
            raise _invalid(str(error), "$.args") from None
        if digest != request.digest.lower():
            raise _mismatch()
        session.approvals[approval.id] = approval

    # Answering

    def _on_response(
        self, client: Client, message: GatewayMessage, payload: ApprovalResponse
    ) -> None:
        session = self._sessions.member(client, message, payload)
        if not client.has_scope("approve"):
            raise GatewayError(ErrorCode.FORBIDDEN, "this needs the scope approve")
        session.feed.submit(_ResponsePost(self, client, message, session, payload))

    def answer(self, session: Session, client: Client, response: ApprovalResponse) -> Approval:
        """Check an answer and take it as the first; raises `GatewayError`."""
        approval = session.approvals.get(response.approval_id)
        if approval is None or not approval.frame:
            raise _no_more(session, response.approval_id)
        if approval.asker is client or approval.agent_id in client.agents:
            raise GatewayError(ErrorCode.FORBIDDEN, "nobody answers their own request")
        if approval.answered is not None:
            raise _decided(approval.answered)
        if approval.request.expires_at <= now_ms():
            raise _decided("deny")
        if response.digest.lower() != approval.request.digest.lower():
            raise _mismatch()
        approval.answered = response.decision
        return approval

    def settle(self, session: Session, approval: Approval) -> None:
        """Close an approval whose answer is stored; None stands for its run's end."""
        session.approvals.pop(approval.id, None)
        session.settled[approval.id] = approval.answered
        while len(session.settled) > SETTLED_KEPT:
            del session.settled[next(iter(session.settled))]

    def decided(self, session: Session, approval: Approval, client: Client | None) -> None:
        """Tell the audit log of a decision; without a client it is the gateway's own."""
        detail = {
            "decision": approval.answered or "",
            "tool": approval.request.tool,
            "agent": approval.agent_id,
            "session": session.id,
        }
        entry = AuditEntry(action="approval.decide", target=approval.id, detail=detail)
        if client is not None:
            entry = client.did("approval.decide", approval.id, **detail)
        self._sessions.events.emit("audit", entry)

    def _run_ended(self, session: Session, run: Run) -> None:
        for approval in list(session.approvals.values()):
            if approval.run_id == run.run_id:
                self.settle(session, approval)

    def tick(self) -> None:
        """Once a second: deny what nobody has answered in time."""
        now = now_ms()
        for session in self._sessions.get_all_sessions():
            for approval in session.approvals.values():
                late = approval.frame and approval.request.expires_at <= now
                if late and approval.answered is None:
                    approval.answered = "deny"
                    session.feed.submit(_Denial(self, session, approval))

    # After a restart

    async def _rebuild(self, session: Session) -> None:
        """Open the approvals again that a session's log has left open, in runs that are open."""
        if not session.runs:
            return
        history, feed = self._sessions.history, session.feed
        async for stored in last_messages(history, session.id, feed.head):
            if b'"approval_re' not in stored.body:
                continue
            message = decode_message(stored.body)
            if message.type == "approval_request":
                self._reopen(session, message, stored.body)
            elif message.type == "approval_response":
                response = read(message, ApprovalResponse)
                approval = session.approvals.get(response.approval_id)
                if approval is not None:
                    approval.answered = response.decision
                    self.settle(session, approval)

    @staticmethod
    def _reopen(session: Session, message: GatewayMessage, frame: bytes) -> None:
        request = read(message, ApprovalRequest)
        run = session.runs.get(request.run_id or "")
        if run is not None:
            approval = Approval(request, run.run_id, run.agent_id, None)
            approval.frame = frame
            session.approvals[approval.id] = approval


class _RequestPost(RunPost):
    """A request on its way into the log; stored, it is open."""

    __slots__ = ("_approval", "_approvals", "_session")

    def __init__(
        self,
        approvals: Approvals,
        client: Client,
        message: GatewayMessage,
        session: Session,
        run: Run,
        payload: ApprovalRequest,
    ) -> None:
        super().__init__(client, message, run)
        self._approvals = approvals
        self._session = session
        self._approval = Approval(payload, run.run_id, run.agent_id, client)

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the request as members get it."""
        self._approvals.admit(self._session, self._approval)
        return super().frame(feed, seq)

    def stored(self, feed: Feed) -> None:
        """Open it."""
        self._approval.frame = self.body

    def failed(self, feed: Feed) -> None:
        """Give its id back, unless it is another's."""
        if self._session.approvals.get(self._approval.id) is self._approval:
            del self._session.approvals[self._approval.id]


class _ResponsePost(Post):
    """An answer on its way into the log; stored, it is the one that counts."""

    __slots__ = ("_approval", "_approvals", "_response", "_session")

    def __init__(
        self,
        approvals: Approvals,
        client: Client,
        message: GatewayMessage,
        session: Session,
        response: ApprovalResponse,
    ) -> None:
        super().__init__(client, message)
        self._approvals = approvals
        self._session = session
        self._response = response
        self._approval: Approval | None = None

    def frame(self, feed: Feed, seq: int) -> bytes:
        """Return the answer as members get it."""
        assert self.client is not None
        self._approval = self._approvals.answer(self._session, self.client, self._response)
        return super().frame(feed, seq)

    def stored(self, feed: Feed) -> None:
        """Close the approval."""
        if self._approval is not None:
            self._approvals.settle(self._session, self._approval)
            self._approvals.decided(self._session, self._approval, self.client)

    def failed(self, feed: Feed) -> None:
        """Let somebody else answer: this answer was not stored."""
        if self._approval is not None:
            self._approval.answered = None


class _Denial(GatewayPost):
    """The gateway's own answer to what nobody has answered in time."""

    __slots__ = ("_approval", "_approvals", "_session")

    def __init__(self, approvals: Approvals, session: Session, approval: Approval) -> None:
        response = ApprovalResponse(
            approval_id=approval.id,
            decision="deny",
            digest=approval.request.digest,
            reason="nobody answered in time",
        )
        super().__init__(create_message("approval_response", Raw(encode(response)), session.id))
        self._approval = approval
        self._approvals = approvals
        self._session = session

    def stored(self, feed: Feed) -> None:
        """Close the approval."""
        self._approvals.settle(self._session, self._approval)
        self._approvals.decided(self._session, self._approval, None)

    def failed(self, feed: Feed) -> None:
        """Try again at the next tick."""
        self._approval.answered = None


def _invalid(sentence: str, path: str) -> GatewayError:
    return GatewayError(ErrorCode.INVALID_PAYLOAD, sentence, details={"path": path})


def _mismatch() -> GatewayError:
    return GatewayError(
        ErrorCode.DIGEST_MISMATCH, "the digest is not that of the tool and its arguments"
    )


def _decided(decision: Decision) -> GatewayError:
    return GatewayError(
        ErrorCode.ALREADY_DECIDED, "this was decided before", details={"decision": decision}
    )


def _no_more(session: Session, approval_id: str) -> GatewayError:
    if approval_id not in session.settled:
        return _invalid("there is no such approval", "$.approvalId")
    decision = session.settled[approval_id]
    if decision is None:
        return GatewayError(ErrorCode.RUN_ENDED, "the run that asked for it has ended")
    return _decided(decision)
