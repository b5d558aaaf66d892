"""A session, as one client takes part in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Literal

from trunkline.errors import ErrorCode
from trunkline.messages import GatewayMessage, Sender, create_message
from trunkline.payloads import (
    Ack,
    ApprovalRequest,
    ApprovalResponse,
    Chat,
    Cursor,
    Head,
    HistoryPage,
    Patch,
    Presence,
    RunCancel,
    RunRef,
    RunState,
    SessionClose,
    SessionCreate,
    SessionHistory,
    SessionInfo,
    SessionInvite,
    SessionJoin,
    SessionLeave,
    SessionPatch,
    SessionRemove,
    read,
)
from trunkline.sdk.cursor import LogCursor, Place
from trunkline.sdk.errors import (
    ConnectionLost,
    OutcomeUnknown,
    RequestFailed,
    TimedOut,
    TrunklineError,
)
from trunkline.sdk.events import Event, RunEvents
from trunkline.sdk.mailbox import Mailbox
from trunkline.sdk.messages import Message, Page, decode, notice, own_message
from trunkline.sdk.outbox import Entry
from trunkline.sdk.wire import Wire

log = logging.getLogger("trunkline.sdk")

GAP_PATIENCE = 1.0
"""Seconds that something may be missing before it is asked for."""

RESET = "reset"
"""The type of the message that says: reading begins anew, see `Session`."""


class Session:
    """
    A group of clients with one ordered log.

    ``async for message in session`` gives everything, one's own messages
    included: what is in the log exactly once and in order, across
    reconnects; what is not (``chat_stream``, ``tool_update``, ``presence``) as
    it comes. One loop at a time. A message of type ``reset`` with ``{reason,
    epoch, next}`` says that what was read before is no longer a prefix of the
    log, because it was trimmed or replaced; reading goes on with `next`.

    A loop that is slower than the session makes the gateway wait, or reads the
    log again later; it loses nothing but ephemeral messages. The loop ends
    when the session or the client is closed, and raises `TrunklineError` when
    the connection is lost for good.
    """

    def __init__(
        self, wire: Wire, session_id: str, *, position: Cursor | None = None, create: bool = False
    ) -> None:
        self.id = session_id
        self.attached = False
        """Whether it is joined on the present connection."""
        self.info: SessionInfo | None = None
        """What the gateway said at the last join or change."""
        self.position = position
        """Up to where the application has taken the log; to be stored with what it did."""
        self.joined: list[Callable[[SessionInfo], None]] = []
        """Called after each join, the first and every later one."""
        self._wire = wire
        self._create = create
        self._cursor = LogCursor(position)
        self._inbox = Mailbox[Message]()
        self._current: Message | None = None
        self._members: dict[str, Sender] = {}
        self._streams: dict[str, _RunStream] = {}
        self._wanted = False
        self._joining = False
        self._lagging = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()  # joined, or over

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    # Saying something

    async def send(
        self,
        text: str,
        *,
        mentions: Sequence[str] | None = None,
        context: dict[str, Any] | None = None,
    ) -> Ack:
        """
        Say something, and wait until it is stored.

        Args:
            text: What to say.
            mentions: The agents that are to answer; None: as the session is set up.
            context: Anything that may help them.

        Returns:
            Where it is stored, and the runs that will answer it.

        Raises:
            RequestFailed: The gateway refused.
            OutcomeUnknown: The log was reset, or the connection is over, before an answer.
        """
        return await self._wire.publish(self, self._chat(text, mentions, context))

    async def chat(
        self,
        text: str,
        *,
        mentions: Sequence[str] | None = None,
        context: dict[str, Any] | None = None,
    ) -> AsyncIterator[Event]:
        """
        Say something, and follow the answers until all of them have ended.

        Without an agent in the session there are no events. Leaving the loop
        early does not stop the agents; `cancel` does. Arguments and errors are
        those of `send`.
        """
        message = self._chat(text, mentions, context)
        stream = self._streams[message.id] = _RunStream()
        try:
            await self._wire.publish(self, message)
            while (event := await stream.next()) is not None:
                yield event
        finally:
            del self._streams[message.id]

    def _chat(
        self, text: str, mentions: Sequence[str] | None, context: dict[str, Any] | None
    ) -> GatewayMessage:
        named = None if mentions is None else list(mentions)
        return self._message("chat", Chat(message=text, mentions=named, context=context))

    async def publish(self, type: str, payload: Any, *, reply_to: str | None = None) -> Ack:
        """Store a durable message of any type; see `send` for what may be raised."""
        return await self._wire.publish(self, self._message(type, payload, reply_to))

    def post(
        self, type: str, payload: Any, *, id: str | None = None, reply_to: str | None = None
    ) -> None:
        """Send an ephemeral message; without a connection it is dropped."""
        self._wire.post(create_message(type, payload, self.id, id=id, reply_to=reply_to))

    async def approve(
        self, request: Message | ApprovalRequest, *, allow: bool, reason: str | None = None
    ) -> Ack:
        """
        Answer an agent that asks whether it may run a tool; needs the scope ``approve``.

        Args:
            request: The ``approval_request``, as it was received.
            allow: Whether the agent may.
            reason: A few words for the agent and the log.

        Raises:
            RequestFailed: ``ALREADY_DECIDED``: somebody was faster, or too much time has passed.
        """
        asked = read(request, ApprovalRequest) if isinstance(request, Message) else request
        answer = ApprovalResponse(
            approval_id=asked.approval_id,
            decision="allow" if allow else "deny",
            digest=asked.digest,
            reason=reason,
        )
        return await self.publish("approval_response", answer)

    def presence(self, status: Literal["online", "offline", "away", "typing"]) -> None:
        """Tell the other members how one is."""
        self.post("presence", Presence(status=status))

    def cancel(self, run_id: str) -> None:
        """Stop a run; its `Completed` event says how it went."""
        self.post("run_cancel", RunCancel(run_id=run_id))

    def _message(self, type: str, payload: Any, reply_to: str | None = None) -> GatewayMessage:
        return create_message(type, payload, self.id, reply_to=reply_to)

    # What the gateway knows about it

    @property
    def members(self) -> tuple[Sender, ...]:
        """Who is here: connections, this one included; in large sessions the first 100."""
        return tuple(self._members.values())

    @property
    def runs(self) -> tuple[RunState, ...]:
        """The runs that were open at the last join."""
        return tuple((self.info and self.info.runs) or ())

    @property
    def approvals(self) -> tuple[Message, ...]:
        """The ``approval_request`` messages that were open at the last join."""
        return tuple(decode(raw) for raw in (self.info and self.info.approvals) or ())

    async def history(
        self, *, after: int | None = None, before: int | None = None, limit: int = 50
    ) -> Page:
        """
        Read a page of the log without moving one's place in it.

        Args:
            after: Read forward from the message after this `seq`.
            before: Read the page that ends before this `seq`; neither: the last page.
            limit: At most so many messages, up to 300.
        """
        ask = SessionHistory(after=after, before=before, limit=limit)
        page = read(await self._wire.call("session_history", ask, self.id), HistoryPage)
        messages = [decode(raw) for raw in page.messages]
        return Page(messages, page.first, page.head, page.epoch, page.more)

    async def patch(self, **changes: Any) -> SessionInfo:
        """
        Change settings: `name`, `visibility`, `activation`, `metadata`, ... (see `Patch`).

        Returns:
            The session after the change, `metadata` included.
        """
        patch = SessionPatch(patch=Patch(**changes))
        return await self._change("session_patch", patch)

    async def invite(self, user_id: str) -> None:
        """Let a user into a private session."""
        await self._change("session_invite", SessionInvite(user_id=user_id))

    async def remove(self, user_id: str) -> None:
        """Take a user's invitation back and remove their connections."""
        await self._change("session_remove", SessionRemove(user_id=user_id))

    async def close(self, *, delete: bool = False) -> None:
        """End the session for everybody; `delete` removes its log too."""
        await self._change("session_close", SessionClose(delete=delete))

    async def leave(self) -> None:
        """Leave the session, after all that was sent before."""
        self._wanted = False
        try:
            await self._change("session_leave", SessionLeave())
        except RequestFailed as error:
            # A gateway that was restarted meanwhile may know no more of it.
            if error.code not in (ErrorCode.NOT_A_MEMBER, ErrorCode.SESSION_NOT_FOUND):
                raise
        self.ended(StopAsyncIteration())

    async def _change(self, type: str, payload: Any) -> SessionInfo:
        return read(await self._wire.call(type, payload, self.id), SessionInfo)

    # Reading

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Message:
        self._reading = True
        self.taken()
        message = self._current = await self._inbox.get()
        if self._lagging and self._inbox.half_empty:
            self._lagging = False
            self.rejoin()
        return message

    def taken(self) -> None:
        """The application is done with the message that it got last."""
        message, self._current = self._current, None
        if message is None:
            return
        if message.type == RESET and message.sender is None:
            facts = message.data()
            self.position = Cursor(epoch=facts["epoch"], seq=facts["next"] - 1)
        elif message.seq is not None and self.position is not None:
            self.position = Cursor(epoch=self.position.epoch, seq=message.seq)
            self._wire.save_later()

    # Joining

    async def ready(self) -> None:
        """
        Wait until it is joined on the present connection.

        Raises:
            TimedOut: There is no connection for as long as a request would wait.
            TrunklineError: It is over.
        """
        try:
            async with asyncio.timeout(self._wire.request_timeout):
                while not self.attached:
                    if self._settled.is_set():
                        raise self._wire.error or ConnectionLost("the session is over")
                    await self._settled.wait()
        except TimeoutError:
            raise TimedOut(f"session {self.id} was not joined again in time") from None

    async def join(self, tail: int | None = None) -> None:
        """Join for the first time; raises as `GatewayClient.join` does."""
        ask = SessionJoin(since=self._cursor.position, tail=tail)
        try:
            await self._wire.call("session_join", ask, self.id, then=self._on_joined)
        except RequestFailed as error:
            if error.code != ErrorCode.SESSION_NOT_FOUND or not self._create:
                raise
            make = SessionCreate(join_if_exists=True)
            await self._wire.call("session_create", make, self.id, then=self._on_joined)

    def rejoin(self) -> None:
        """Join again where reading stopped; does nothing while that is under way."""
        if self._wanted and not self._joining:
            self._joining = True
            ask = SessionJoin(since=self._cursor.position)
            self._wire.ask(self._message("session_join", ask), self._on_rejoined)

    def _on_rejoined(self, reply: Message | TrunklineError) -> None:
        self._joining = False
        if isinstance(reply, Message):
            self._on_joined(reply)
        elif isinstance(reply, RequestFailed):
            self._on_refused(reply)

    def _on_refused(self, error: RequestFailed) -> None:
        if error.retryable:
            asyncio.get_running_loop().call_later(error.retry_after or 1.0, self.rejoin)
        elif error.code == ErrorCode.SESSION_NOT_FOUND and self._create:
            # The gateway has forgotten the session; the new one has another epoch.
            self._create, self._joining = False, True
            make = SessionCreate(join_if_exists=True)
            self._wire.ask(self._message("session_create", make), self._on_rejoined)
        else:
            self.ended(error)

    def _on_joined(self, message: Message) -> None:
        self.enter(read(message, SessionInfo))

    def enter(self, info: SessionInfo) -> None:
        """Take part from here on, as `info` says."""
        reason = self._cursor.joined(info)
        self.info = info
        self._members = {m.client_id: m for m in info.members or ()}
        me = self._members.get(self._wire.connection.client_id)
        if me is not None:
            self._wire.connection.user_id = me.user_id
        self._wanted = self.attached = True
        self._settled.set()
        if self.position is None:
            self.position = self._cursor.position
        if reason is not None:
            self._on_reset(reason)
        for stream in self._streams.values():
            stream.events.rejoined(info.runs or ())
        self._wire.flush(self.id)
        for callback in self.joined:
            callback(info)

    def _on_reset(self, reason: str) -> None:
        self._wire.give_up_sent(self.id, reason)
        for stream in self._streams.values():
            if stream.events.opened:
                stream.fail(OutcomeUnknown(f"the session's log was reset ({reason})"))
        facts = {"reason": reason, "epoch": self._cursor.epoch, "next": self._cursor.last + 1}
        self._inbox.put(notice(RESET, self.id, facts))

    def detached(self) -> None:
        """The connection is gone; `rejoin` comes with the next."""
        self.attached = self._joining = False
        self._settled.clear()
        self._stop_timer()

    def ended(self, error: Exception) -> None:
        """Take part no more; who reads gets `error` after what is left."""
        self.detached()
        self._wanted = False
        self._settled.set()
        over = error if isinstance(error, TrunklineError) else ConnectionLost("the session is over")
        if self._wire.error is None:
            self._wire.sessions.pop(self.id, None)
            self._wire.give_up(self.id, over)
            self._wire.forget_position(self.id)
        for stream in self._streams.values():
            stream.fail(over)
        self._inbox.end(error)

    # What the gateway sends

    def receive(self, message: Message) -> Awaitable[None] | None:
        """Take a frame of the session; see `Connection` for the result."""
        if message.seq is None:
            self._on_ephemeral(message)
            return None
        self._feed(message)
        place = self._cursor.place(message.seq)
        if place is Place.AHEAD:
            self._watch()
        elif place is Place.NEXT and not self._lagging:
            if self._inbox.full:
                return self._accept_later(message)
            self._accept(message)
        return None

    def _on_ephemeral(self, message: Message) -> None:
        if message.type == "head":
            head = read(message, Head)
            self._cursor.saw_head(head.epoch, head.head)
            self._watch()
            return
        if message.type in ("session_info", "ack", "error"):
            return
        self._feed(message)
        if message.type == "presence":
            self._on_presence(message)
        if not self._inbox.full:
            self._inbox.put(message, len(message.payload))

    def _on_presence(self, message: Message) -> None:
        sender = message.sender
        if sender is None:
            return
        if read(message, Presence).status == "offline":
            self._members.pop(sender.client_id, None)
        else:
            self._members[sender.client_id] = sender

    def _feed(self, message: Message) -> None:
        mine = self._streams.get(message.id) if message.type == "chat" else None
        if mine is not None and message.seq is not None:
            # Replayed before its acknowledgement came: the runs may follow at once.
            agents = message.addressed or ()
            mine.open([RunRef(run_id=f"{message.seq}.{a}", agent_id=a) for a in agents])
        for stream in self._streams.values():
            stream.feed(message)

    async def _accept_later(self, message: Message) -> None:
        # Who waits for an answer may be the very reader; the answer must not wait for it.
        if self._reading and not self._wire.awaited:
            await self._inbox.room()
        if self._inbox.full:
            self._lagging = True
        else:
            self._accept(message)

    def _accept(self, message: Message) -> None:
        self._cursor.advance()
        self._inbox.put(message, len(message.payload))
        if message.type == "session_info":
            self._on_change(read(message, SessionInfo))

    def _on_change(self, info: SessionInfo) -> None:
        sent_out = info.status == "removed" and info.user_id == self._wire.connection.user_id
        if sent_out or info.status == "closed":
            self.ended(StopAsyncIteration())
        elif info.status == "patched" and self.info is not None:
            self.info.name = info.name
            self.info.metadata = info.metadata
            self.info.visibility = info.visibility

    def stored(self, entry: Entry, ack: Ack) -> None:
        """One's own message has its place in the log, and takes it in the reading too."""
        stream = self._streams.get(entry.id)
        if stream is not None:
            stream.open(ack.runs or [])
        # A duplicate was stored earlier: the replay has it, in its place.
        if ack.seq is None or ack.duplicate or ack.epoch != self._cursor.epoch:
            return
        place = self._cursor.place(ack.seq)
        if place is Place.AHEAD:
            self._watch()
        elif place is Place.NEXT and not self._lagging:
            if self._inbox.full:
                self._lagging = True
            else:
                self._accept(own_message(entry.frame, ack.seq, self._me()))

    def _me(self) -> Sender | None:
        connection = self._wire.connection
        known = self._members.get(connection.client_id)
        if known is not None or not connection.user_id:
            return known
        return Sender(
            client_id=connection.client_id,
            user_id=connection.user_id,
            role="",
            kind="user",
            device_id=self._wire.device_id,
        )

    # Holes

    def _watch(self) -> None:
        """Look again in a moment whether something is missing."""
        if self._timer is None and self.attached and self._cursor.behind:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GAP_PATIENCE, self._check, self._cursor.last)

    def _check(self, last: int) -> None:
        self._timer = None
        if self._lagging or self._joining or not self._cursor.behind:
            return
        if self._cursor.last > last:
            # A replay is on its way.
            self._watch()
        else:
            log.warning("session %s: messages after %d are missing; joining again", self.id, last)
            self.rejoin()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _RunStream:
    """The events of one chat's runs, to be waited for."""

    def __init__(self) -> None:
        self.events = RunEvents()
        self._news = asyncio.Event()

    def open(self, runs: Sequence[RunRef]) -> None:
        self.events.open(runs)
        self._news.set()

    def feed(self, message: Message) -> None:
        if self.events.feed(message):
            self._news.set()

    def fail(self, error: TrunklineError) -> None:
        self.events.fail(error)
        self._news.set()

    async def next(self) -> Event | None:
        while True:
            event = self.events.take()
            if event is not None or self.events.finished:
                return event
            self._news.clear()
            await self._news.wait()
