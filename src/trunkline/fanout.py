"""
One queue per session, one commit per turn of the loop.

Everything that a session tells its members goes through its `Feed`, in order:
durable messages, ephemeral frames, answers that must keep their place, and
changes of membership. The `Pump` takes what all feeds collected in a turn,
stores the durable part with a single append, and only then writes: what the
turn produced is joined once and written once to each member. The sender's own
copy has the ``ack`` in its message's place, so on every connection the order
of the log, of the acks and of the replies is the same.

A client that uses several sessions gets its answers in the order in which it
asked: its entry for another session waits for the next turn (`Pump.submit`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from time import perf_counter
from typing import Any

import msgspec
import structlog

from trunkline.clients import Client
from trunkline.errors import CloseCode, ErrorCode, GatewayError, close_reason
from trunkline.history import (
    Append,
    Bounds,
    Entry,
    Fenced,
    History,
    HistoryError,
    Known,
    Outcome,
    Position,
    StorageFull,
)
from trunkline.measures import Measures
from trunkline.messages import encode, error_message
from trunkline.transport import Batch

log = structlog.get_logger(__name__)


class Item:
    """Something in a feed's queue. `client` is whose answer it holds, if anyone's."""

    __slots__ = ("client",)

    def __init__(self, client: Client | None) -> None:
        self.client = client


class Ephemeral(Item):
    """
    A frame that is not stored.

    Args:
        client: The sender, who does not get it.
        frame: The encoded message.
        droppable: Whether a lagging reader may miss it.
        only: The one member that gets it, instead of all.
    """

    __slots__ = ("droppable", "frame", "only")

    def __init__(
        self,
        client: Client | None,
        frame: bytes,
        *,
        droppable: bool = False,
        only: Client | None = None,
    ) -> None:
        self.client = client
        self.frame = frame
        self.droppable = droppable
        self.only = only

    def out(self) -> Out:
        """Return what is written; called at the frame's place in the order."""
        if self.only is not None:
            return Out(None, self.only, self.frame)
        return Out(self.frame, self.client, None, self.droppable)


class Call(Item):
    """A function to run at this place of the queue; it may write to the client."""

    __slots__ = ("run",)

    def __init__(self, client: Client | None, run: Callable[[], None]) -> None:
        self.client = client
        self.run = run


class Publish(Item, ABC):
    """
    A durable message on its way into the log.

    Subclasses say what is stored (`frame`), what happens once it is (`stored`)
    and what its sender is told (`ack`).
    """

    __slots__ = ("body", "digest", "key", "request_id", "seq")

    def __init__(
        self, client: Client | None, request_id: str | None, key: str, digest: bytes
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.key = key
        self.digest = digest
        self.seq = 0
        self.body = b""

    @abstractmethod
    def frame(self, feed: Feed, seq: int) -> bytes:
        """
        Return the message as members get it, with its place in the log.

        Raises:
            GatewayError: It is refused after all; nothing is stored.
        """

    def stored(self, feed: Feed) -> None:
        """Act on the message; it is stored, and nobody has seen it yet."""

    def failed(self, feed: Feed) -> None:
        """Take back what was done in the hope of it being stored."""

    def ack(self, feed: Feed) -> bytes | None:
        """Return what the sender gets in the message's place."""
        return None

    def duplicate(self, feed: Feed, seq: int, body: bytes) -> bytes | None:
        """Return what the sender gets whose message was stored before."""
        return None


class Out(msgspec.Struct, gc=False):
    """What one item writes: `frame` to the members, `own` to one client instead."""

    frame: bytes | None
    client: Any = None
    own: bytes | None = None
    droppable: bool = False


class Feed:
    """A session's queue, its members, and where its log stands."""

    __slots__ = (
        "_pump",
        "doubted",
        "epoch",
        "first",
        "head",
        "known",
        "members",
        "quiet_since",
        "session_id",
        "turn",
        "watchers",
    )

    def __init__(
        self, session_id: str, pump: Pump, bounds: Bounds, known: Iterable[Known] = ()
    ) -> None:
        self.session_id = session_id
        self.epoch, self.first, self.head = bounds
        self.members: dict[Client, None] = {}
        self.watchers: set[asyncio.Event] = set()
        self.known = {k.key: (k.seq, k.digest) for k in known}
        self.turn = 0
        self.quiet_since = 0.0
        self.doubted = False
        self._pump = pump

    @property
    def durability(self) -> str:
        """What an ack of this session promises."""
        return self._pump.history.durability

    def submit(self, item: Item) -> None:
        """Queue an item."""
        self._pump.submit(self, item)

    def relay(self, frame: bytes, client: Client | None = None, *, droppable: bool = False) -> None:
        """Queue a frame for all members but its sender."""
        self._pump.submit(self, Ephemeral(client, frame, droppable=droppable))

    def private(self, client: Client, frame: bytes) -> None:
        """Queue a frame for one client, behind everything queued before it."""
        self._pump.submit(self, Ephemeral(client, frame, only=client))

    def call(self, run: Callable[[], None], client: Client | None = None) -> None:
        """Run a function behind everything queued before it."""
        self._pump.submit(self, Call(client, run))

    async def run(self, step: Callable[[], None], client: Client | None = None) -> None:
        """Run a function behind everything queued before it, and wait until it has run."""
        done = asyncio.Event()

        def run() -> None:
            try:
                step()
            finally:
                done.set()

        self.call(run, client)
        await done.wait()

    def compare(self, bounds: Bounds) -> None:
        """Take over what the store says now: it deletes old messages, and may find damage."""
        if bounds.epoch == self.epoch:
            self.trimmed(bounds.first)
        elif not self.doubted:
            self.doubted = True
            self.call(lambda: None)  # so that there is a turn, which looks the log up first

    def position(self) -> Position:
        """Return where the log ends."""
        return Position(self.epoch, self.head)

    def trimmed(self, first: int) -> None:
        """Forget the ids of messages that retention has deleted."""
        self.first = first
        # Ids were learnt in the order of the log, so the old ones lead.
        old = takewhile(lambda pair: pair[1][0] < first, self.known.items())
        for key in [key for key, _ in old]:
            del self.known[key]


Turn = dict[Feed, list[Item]]


class Pump:
    """
    Moves all feeds' queues: one append per turn, then the writes.

    One append is in flight at a time and the next turn collects meanwhile.

    Args:
        clock: Seconds, from any start.
        failpoint: Called with ``before-append``, ``after-append`` and
            ``before-deliver`` when a turn gets there; for tests that kill the process.
        measures: Counts what goes by.
    """

    def __init__(
        self,
        history: History,
        clock: Callable[[], float],
        failpoint: Callable[[str], None] | None = None,
        measures: Measures | None = None,
    ) -> None:
        self.history = history
        self._measures = measures or Measures()
        self._clock = clock
        self._failpoint = failpoint
        self._turns: deque[Turn] = deque()
        self._base = 0  # the number of the first turn that has not begun
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.deliveries = 0
        """Frames written to members so far."""

    def start(self) -> None:
        """Begin to move."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        if self._task is None:
            return
        await self._idle.wait()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    def submit(self, feed: Feed, item: Item) -> None:
        """Queue an item, in the first turn that keeps every order."""
        number = max(self._base, feed.turn)
        client = item.client
        if client is not None:
            if client.pending:
                number = max(number, client.turn + (client.feed is not feed))
            client.feed = feed
            client.turn = number
            client.pending += 1
        feed.turn = number
        while number - self._base >= len(self._turns):
            self._turns.append({})
        self._turns[number - self._base].setdefault(feed, []).append(item)
        if not self._wake.is_set():
            self._wake.set()
            self._idle.clear()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            while self._turns:
                turn = self._turns.popleft()
                self._base += 1
                try:
                    await self._move(turn)
                except Exception:
                    log.exception("a turn failed")
            self._wake.clear()
            self._idle.set()

    async def _move(self, turn: Turn) -> None:
        """Store and deliver one turn."""
        for feed in turn:
            if feed.doubted:
                await self._resynchronise(feed)
        prepared = [_Prepared(feed, items) for feed, items in turn.items()]
        appends = [p.append() for p in prepared if p.entries]
        outcomes: dict[str, Outcome] = {}
        if appends:
            begun = perf_counter()
            found = await self._append(appends)
            self._measures.appends.observe(perf_counter() - begun)
            outcomes = dict(zip((a.session for a in appends), found, strict=True))
        for p in prepared:
            outcome = outcomes.get(p.feed.session_id)
            await self._look_up(p, outcome)
            if self._failpoint is not None:
                self._failpoint("before-deliver")
            try:
                self.deliveries += p.deliver(outcome, self._clock(), self._measures)
            except Exception:
                log.exception("delivery failed", session=p.feed.session_id)

    async def _look_up(self, part: _Prepared, outcome: Outcome | None) -> None:
        """Read what the answers of one feed's part need from the store."""
        try:
            await part.read_duplicates(self.history)
        except HistoryError:
            log.exception("history failed", session=part.feed.session_id)
        if isinstance(outcome, Fenced):
            await self._resynchronise(part.feed)

    async def _resynchronise(self, feed: Feed) -> None:
        """
        Take over how a log really ends: its store found damage, or another owner wrote.

        Under a new epoch the members' places in it are void, so they are sent
        to resume.
        """
        epoch = feed.epoch
        try:
            # Reading the ids may find damage, so where the log ends is asked after it.
            known = await self.history.ids(feed.session_id)
            bounds = await self.history.bounds(feed.session_id)
        except HistoryError:
            log.exception("history failed", session=feed.session_id)
            return
        feed.doubted = False
        feed.epoch, feed.first, feed.head = bounds
        feed.known = {k.key: (k.seq, k.digest) for k in known}
        if feed.epoch != epoch:
            reason = close_reason(CloseCode.TOO_SLOW, "the log has changed")
            for member in list(feed.members):
                member.transport.close(CloseCode.TOO_SLOW, reason)

    async def _append(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        try:
            if self._failpoint is None:
                return await self.history.append(appends)
            self._failpoint("before-append")
            outcomes = await self.history.append(appends)
            self._failpoint("after-append")
            return outcomes
        except Exception:
            log.exception("history failed")
            return [HistoryError("the store failed")] * len(appends)


class _Prepared:
    """One feed's part of a turn."""

    def __init__(self, feed: Feed, items: list[Item]) -> None:
        self.feed = feed
        self.items = items
        self.entries: list[Entry] = []
        self._refused: dict[Publish, bytes] = {}
        self._duplicates: dict[Publish, int] = {}
        self._bodies: dict[int, bytes] = {}
        self._news: dict[str, tuple[int, bytes]] = {}
        for item in items:
            if isinstance(item, Publish):
                self._prepare(item)

    def append(self) -> Append:
        """Return what the store is asked to add."""
        return Append(self.feed.session_id, self.entries, self.feed.position())

    def _prepare(self, item: Publish) -> None:
        feed = self.feed
        known = feed.known.get(item.key) or self._news.get(item.key)
        if known is not None:
            self._seen(item, known)
            return
        seq = feed.head + len(self.entries) + 1
        try:
            item.body = item.frame(feed, seq)
        except GatewayError as error:
            self._refuse(item, error)
            return
        except Exception:
            log.exception("message could not be prepared", session=feed.session_id)
            self._refuse(item, GatewayError(ErrorCode.HANDLER_ERROR, "the message failed"))
            return
        item.seq = seq
        self._news[item.key] = (seq, item.digest)
        self.entries.append(Entry(item.key, item.digest, item.body))

    def _seen(self, item: Publish, known: tuple[int, bytes]) -> None:
        seq, digest = known
        if digest == item.digest:
            self._duplicates[item] = seq
        else:
            error = GatewayError(
                ErrorCode.ID_CONFLICT, "this id was used for another message", details={"seq": seq}
            )
            self._refuse(item, error)

    def _refuse(self, item: Publish, error: GatewayError) -> None:
        self._refused[item] = encode(error_message(error, item.request_id))

    async def read_duplicates(self, history: History) -> None:
        """Fetch what the duplicates' first copies look like."""
        for seq in set(self._duplicates.values()):
            for stored in await history.read(self.feed.session_id, seq - 1, 1, 1):
                self._bodies[stored.seq] = stored.body

    def deliver(self, outcome: Outcome | None, now: float, measures: Measures) -> int:
        """
        Take the outcome in, then write; returns the number of deliveries.

        The feed's head moves with the items, so that a call in the middle
        sees the log as it was at its own place.
        """
        if isinstance(outcome, Position):
            self.feed.known.update(self._news)
            failure = None
        else:
            failure = storage_error(outcome)
        outs: list[Out] = []
        count = 0
        for item in self.items:
            client = item.client
            if client is not None:
                client.pending -= 1
            if isinstance(item, Publish):
                outs.append(self._publish(item, failure))
            elif isinstance(item, Ephemeral):
                outs.append(item.out())
            elif isinstance(item, Call):
                count += _write(self.feed, outs, now, measures)
                outs = []
                _run_call(item)
        return count + _write(self.feed, outs, now, measures)

    def _publish(self, item: Publish, failure: GatewayError | None) -> Out:
        refused = self._refused.get(item)
        if refused is not None:
            item.failed(self.feed)
            return Out(None, item.client, refused)
        seq = self._duplicates.get(item)
        if seq is not None:
            body = self._bodies.get(seq)
            if body is None:  # its first copy could not be stored, or not be read
                return Out(
                    None, item.client, encode(error_message(storage_error(None), item.request_id))
                )
            return Out(None, item.client, item.duplicate(self.feed, seq, body))
        if failure is not None:
            item.failed(self.feed)
            return Out(None, item.client, encode(error_message(failure, item.request_id)))
        self.feed.head = item.seq
        item.stored(self.feed)
        return Out(item.body, item.client, item.ack(self.feed))


def _run_call(item: Call) -> None:
    try:
        item.run()
    except Exception:
        log.exception("queued call failed")


def storage_error(outcome: Outcome | None) -> GatewayError:
    """Turn a store's failure into what a client is told; None stands for an unknown one."""
    if isinstance(outcome, StorageFull):
        return GatewayError(ErrorCode.STORAGE_FULL, "the log is full", retry_after=1.0)
    if isinstance(outcome, Fenced):
        return GatewayError(ErrorCode.OVERLOADED, "the log has changed", retry_after=0.1)
    return GatewayError(ErrorCode.OVERLOADED, "the log cannot be written", retry_after=1.0)


def _write(feed: Feed, outs: Sequence[Out], now: float, measures: Measures) -> int:
    """Write what a stretch of the queue produced: joined once, one write for each member."""
    if not outs:
        return 0
    frames = [out.frame for out in outs if out.frame is not None]
    special = {out.client for out in outs if out.client is not None}
    count = whole = 0
    if frames:
        feed.quiet_since = now
        shared = Batch(frames)
        kept: Batch | None = None
        for member in feed.members:
            if member in special:
                continue
            if member.lagging:
                if kept is None:
                    kept = Batch([o.frame for o in outs if o.frame is not None and not o.droppable])
                member.transport.write_batch(kept)
                _count(kept.messages, 1, measures)
                measures.spared += len(frames) - len(kept.messages)
                count += len(kept.messages)
            else:
                member.transport.write_batch(shared)
                whole += 1
        _count(frames, whole, measures)
        count += whole * len(frames)
    for client in special:
        mine = _copy_for(client, outs, member=client in feed.members)
        if mine:
            client.transport.write_batch(Batch(mine))
            _count(mine, 1, measures)
            count += len(mine)
    return count


def _count(frames: Sequence[bytes], copies: int, measures: Measures) -> None:
    if copies:
        for frame in frames:
            measures.wrote(frame, copies)


def _copy_for(client: Client, outs: Sequence[Out], *, member: bool) -> list[bytes]:
    """Return one client's copy, its own messages replaced by their answers."""
    mine: list[bytes] = []
    for out in outs:
        if out.client is client:
            if out.own is not None:
                mine.append(out.own)
        elif member and out.frame is not None and not (client.lagging and out.droppable):
            mine.append(out.frame)
    return mine
