"""
What clients, sessions and agents share: requests, answers, the outbox.

`Wire` listens to the connection. It hands answers to those who wait for them,
keeps durable messages until they are acknowledged, and gives everything else
to the session or the callback that it is for. All of it runs in the order of
the frames, so an answer has taken effect before the frame after it is read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from trunkline.errors import ErrorCode
from trunkline.messages import GatewayMessage, create_message, encode
from trunkline.payloads import Ack, Cursor, read
from trunkline.sdk.connection import Connection, State
from trunkline.sdk.errors import (
    ConnectionLost,
    OutcomeUnknown,
    RequestFailed,
    TimedOut,
    TrunklineError,
    refusal,
)
from trunkline.sdk.mailbox import Mailbox
from trunkline.sdk.messages import Message
from trunkline.sdk.outbox import Entry, Outbox, Pace
from trunkline.sdk.sockets import Dial, SignIn
from trunkline.sdk.state import ClientState, StateFile
from trunkline.sdk.throttle import Throttle

log = logging.getLogger("trunkline.sdk")

MAX_UNACKED = 1_000
"""Durable messages on their way at a time; who sends more waits."""

BURST_SHARE = 0.8
"""How much of the gateway's burst of chunks goes out at once."""

SAVE_DELAY = 0.05
"""Seconds within which a cursor that moved is written to the state file."""

Answer = Callable[[Message | TrunklineError], None]
"""Called once, with the answer or with why there is none."""


class Attachment(Protocol):
    """A session, as the wire sees it."""

    id: str
    attached: bool
    position: Cursor | None

    def receive(self, message: Message) -> Awaitable[None] | None:
        """A frame of the session came."""

    def stored(self, entry: Entry, ack: Ack) -> None:
        """One's own message has its place in the log."""

    def rejoin(self) -> None:
        """There is a new connection."""

    def detached(self) -> None:
        """The connection is gone."""

    def ended(self, error: Exception) -> None:
        """The session is over for this client."""


class Wire:
    """
    Everything that goes over one logical connection.

    Args:
        sign_in: Where to connect, and as whom.
        dial: Opens sockets.
        open_timeout: Seconds to keep trying for the first connection.
        request_timeout: Seconds that a request waits for its answer, by default.
        state: What an earlier process left.
        file: Where to keep that up to date, if anywhere.
    """

    def __init__(
        self,
        sign_in: SignIn,
        *,
        dial: Dial,
        open_timeout: float,
        request_timeout: float,
        state: ClientState,
        file: StateFile | None,
    ) -> None:
        self.connection = Connection(sign_in, self, open_timeout, dial)
        self.device_id = sign_in.device_id
        self.sessions: dict[str, Attachment] = {}
        self.listeners: dict[str, list[Callable[[Message], None]]] = {}
        self.state_listeners: list[Callable[[State], None]] = []
        self.before_resume: Callable[[Callable[[], None]], None] | None = None
        """Called with `resume` at each new connection; has to call it in the end."""
        self.error: TrunklineError | None = None
        """Why the connection is over; None while it may still come back."""
        self.request_timeout = request_timeout
        self._state = state
        self._file = file
        self._outbox = Outbox(state.outbox)
        self._acks: dict[str, asyncio.Future[Ack]] = {}
        self._replies: dict[str, Answer] = {}
        self._streams: dict[str, Mailbox[Message]] = {}
        self._room = asyncio.Semaphore(MAX_UNACKED)
        self._throttle = Throttle(self._outbox, self.connection.post)
        self.stream_pace = Pace()
        """How fast chunks may go out."""
        self._settled = asyncio.Event()  # connected, or over
        self._ended = asyncio.Event()
        self._saving: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    # Opening and closing

    async def open(self) -> None:
        """Connect; raises `TrunklineError` if that fails for good."""
        self._task = asyncio.create_task(self._run())
        try:
            await self.ready()
        except BaseException:
            await self.close()
            raise

    async def _run(self) -> None:
        error: TrunklineError
        try:
            await self.connection.run()
            error = ConnectionLost("this client has been closed")
        except TrunklineError as reason:
            error = reason
        except Exception:
            log.exception("a bug in the SDK ended the connection")
            error = ConnectionLost("the SDK failed; the log has the traceback")
        self._over(error)

    def _over(self, error: TrunklineError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._throttle.clear()
        self.save()
        for session in list(self.sessions.values()):
            session.ended(StopAsyncIteration() if self._closing else error)
        for id, future in self._acks.items():
            unsent = self._outbox.withdraw(id)
            _fail(future, error if unsent else OutcomeUnknown(f"{error}; no acknowledgement came"))
        self._settled.set()
        self._ended.set()
        self.on_state(State.CLOSED)

    async def wait_over(self) -> None:
        """Wait until the connection is over; raises why."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Close the connection for good; a second call does nothing."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        await self.connection.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._over(ConnectionLost("this client has been closed"))

    async def ready(self) -> None:
        """Wait for a connection; raises `TrunklineError` if none will come."""
        while True:
            if self.error is not None:
                raise self.error
            if self._settled.is_set():
                return
            await self._settled.wait()

    # What the connection tells

    def on_ready(self) -> None:
        """Resume first; whatever is posted later goes behind."""
        limits = self.connection.limits
        if "publishRate" in limits and "publishBurst" in limits:
            self._throttle.limit(limits["publishRate"], limits["publishBurst"])
        rate, burst = limits.get("streamRate", math.inf), limits.get("streamBurst", 1)
        self.stream_pace = Pace(rate, burst * BURST_SHARE)
        if self.before_resume is None:
            self.resume()
        else:
            self.before_resume(self.resume)
        self._settled.set()

    def resume(self) -> None:
        """Join the sessions again where they were left."""
        for session in list(self.sessions.values()):
            session.rejoin()

    def on_lost(self, error: Exception) -> None:
        """Nobody will be answered over this socket any more."""
        self._settled.clear()
        self._throttle.clear()
        for session in list(self.sessions.values()):
            session.detached()
        replies, self._replies = self._replies, {}
        for answer in replies.values():
            answer(ConnectionLost(str(error)))
        for box in self._streams.values():
            box.end(ConnectionLost(str(error)))

    def on_state(self, state: State) -> None:
        """Tell the application."""
        for callback in list(self.state_listeners):
            guarded(callback, state)

    def on_message(self, message: Message) -> Awaitable[None] | None:
        """Hand a frame to whom it is for."""
        if message.reply_to is not None and self._answered(message):
            box = self._streams.get(message.reply_to)
            return None if box is None else self._offer(box, message)
        for callback in self.listeners.get(message.type, ()):
            guarded(callback, message)
        session = self.sessions.get(message.session_id or "")
        return None if session is None else session.receive(message)

    def _answered(self, message: Message) -> bool:
        """Whether the frame was an answer and is nothing else."""
        id = message.reply_to or ""
        if id in self._outbox and message.type in ("ack", "error"):
            self._settle(id, message)
            return True
        answer = self._replies.pop(id, None)
        if answer is not None:
            answer(refusal(message) if message.type == "error" else message)
            # A change of the session is the answer and a message of the log in one.
            return message.seq is None
        return id in self._streams

    async def _offer(self, box: Mailbox[Message], message: Message) -> None:
        await box.room()
        if not box.full:
            box.put(message, len(message.payload))
            return
        if message.reply_to is not None:
            self._streams.pop(message.reply_to, None)
            self.cancel_request(message.reply_to)
        box.end(TrunklineError("the answer was read too slowly; the request was cancelled"))

    # Requests

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._replies or self._acks)

    def frame(self, message: GatewayMessage) -> bytes:
        """Encode a message; raises `RequestFailed` if the gateway would not take it."""
        frame = encode(message)
        limit = self.connection.max_message_size
        if len(frame) > limit:
            raise RequestFailed(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"the message has {len(frame)} bytes, the gateway takes {limit}",
                details={"limit": limit},
            )
        return frame

    def post(self, message: GatewayMessage) -> None:
        """Send what is not answered; without a connection it is dropped."""
        self.connection.post(self.frame(message))

    def ask(self, message: GatewayMessage, answer: Answer) -> None:
        """Send a request; `answer` is called before the next frame is read."""
        frame = self.frame(message)
        if not self.connection.connected:
            answer(ConnectionLost("there is no connection"))
            return
        self._replies[message.id] = answer
        self.connection.post(frame)

    async def call(
        self,
        type: str,
        payload: Any = None,
        session_id: str | None = None,
        *,
        timeout: float | None = None,
        repeat: bool = True,
        then: Callable[[Message], None] | None = None,
    ) -> Message:
        """
        Send a request and wait for its answer.

        Args:
            type: The message type.
            payload: Its payload.
            session_id: The session that it concerns.
            timeout: Seconds, over all tries; None: the client's default.
            repeat: Ask again if the connection is lost before the answer.
            then: Called with the answer before the next frame is read.

        Raises:
            RequestFailed: The gateway refused.
            OutcomeUnknown: The connection was lost, and `repeat` is false.
            TimedOut: No answer in time.
            TrunklineError: The connection is over.
        """
        seconds = self.request_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.ready()
                    try:
                        return await self._ask(create_message(type, payload, session_id), then)
                    except ConnectionLost as error:
                        if not repeat:
                            raise OutcomeUnknown(f"{error}; no answer to {type}") from None
        except TimeoutError:
            raise TimedOut(f"no answer to {type} within {seconds:g} s") from None

    async def _ask(
        self, message: GatewayMessage, then: Callable[[Message], None] | None
    ) -> Message:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answer(reply: Message | TrunklineError) -> None:
            if future.done():
                return
            if isinstance(reply, TrunklineError):
                future.set_exception(reply)
                return
            if then is not None:
                then(reply)
            future.set_result(reply)

        self.ask(message, answer)
        try:
            return await future
        finally:
            self._replies.pop(message.id, None)

    def open_stream(self, message: GatewayMessage) -> Mailbox[Message]:
        """Send a request that is answered more than once; `close_stream` ends it."""
        frame = self.frame(message)
        box = self._streams[message.id] = Mailbox[Message]()
        self.connection.post(frame)
        return box

    def close_stream(self, id: str) -> None:
        """Nobody reads the answers any more."""
        self._streams.pop(id, None)

    def cancel_request(self, id: str) -> None:
        """Tell the gateway that nobody waits for a request's answer any more."""
        self.post(create_message("route_cancel", {"requestId": id}))

    # Durable messages

    async def publish(self, session: Attachment, message: GatewayMessage) -> Ack:
        """
        Store a message in a session's log, whatever happens to the connection.

        What the gateway refuses with ``RATE_LIMITED`` is sent again after the
        time that it asks for, in order with what was published behind it.
        Cancelling takes back only what has not been sent yet.

        Raises:
            RequestFailed: The gateway refused.
            OutcomeUnknown: It may or may not be stored.
            TrunklineError: The connection is over, and it was not sent.
        """
        frame = self.frame(message)
        async with self._room:
            if self.error is not None:
                raise self.error
            future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
            self._outbox.add(message.id, session.id, frame)
            self._acks[message.id] = future
            self.save()
            if session.attached:
                self._throttle.send(message.id)
            try:
                await self.connection.drain()
                return await future
            except asyncio.CancelledError:
                self._outbox.withdraw(message.id)
                raise
            finally:
                self._acks.pop(message.id, None)

    def flush(self, session_id: str) -> None:
        """Send all that waits for a session which has just been joined."""
        self._throttle.flush(session_id)

    def give_up_sent(self, session_id: str, reason: str) -> None:
        """The log cannot tell any more whether these were stored."""
        self._drop(
            self._outbox.forget_sent(session_id),
            OutcomeUnknown(f"the session's log was reset ({reason}) before the acknowledgement"),
        )

    def give_up(self, session_id: str, error: TrunklineError) -> None:
        """The session has ended."""
        self._drop(self._outbox.forget(session_id), error)

    def _drop(self, entries: list[Entry], error: TrunklineError) -> None:
        for entry in entries:
            future = self._acks.pop(entry.id, None)
            if future is None:
                log.warning("message %s of session %s: %s", entry.id, entry.session, error)
            else:
                _fail(future, error)
            self._throttle.settled(entry.id)
        self.save_later()

    def _settle(self, id: str, message: Message) -> None:
        error = refusal(message) if message.type == "error" else None
        if error is not None and error.code == ErrorCode.RATE_LIMITED:
            self._throttle.refused(id, error.retry_after or 1.0)
            return
        entry = self._outbox.settle(id)
        assert entry is not None
        future = self._acks.pop(id, None)
        self.save_later()
        self._throttle.settled(id)
        if error is not None:
            if future is not None:
                _fail(future, error)
            else:
                log.warning("message %s of session %s: %s", id, entry.session, error)
            return
        ack = read(message, Ack)
        session = self.sessions.get(entry.session)
        if session is not None:
            session.stored(entry, ack)
        if future is not None and not future.done():
            future.set_result(ack)

    # The state file

    def stored_position(self, session_id: str) -> Cursor | None:
        """Return how far an earlier process had read a session."""
        return self._state.cursors.get(session_id)

    def forget_position(self, session_id: str) -> None:
        """Forget how far a session was read: it is over."""
        self._state.cursors.pop(session_id, None)
        self.save_later()

    def save_later(self) -> None:
        """Write the state file soon, once for all changes until then."""
        if self._file is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_DELAY, self.save)

    def save(self) -> None:
        """Write the state file now, if there is one."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        if self._file is None:
            return
        for session in self.sessions.values():
            if session.position is not None:
                self._state.cursors[session.id] = session.position
        self._state.outbox = self._outbox.entries()
        self._file.save(self._state)


def _fail(future: asyncio.Future[Ack], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def guarded(callback: Callable[[Any], object], argument: object) -> None:
    """Call the application's `callback`; what it raises harms nobody."""
    try:
        callback(argument)
    except Exception:
        log.exception("a callback of the application failed")
