"""
Judges what clients saw against the guarantees of delivery.

* R1   an acknowledged message is not in the log
* R2   a message was stored twice
* R3   two acks of one message disagree
* R4   the log has a hole
* R5   a reader got something else than the log says
* R6   a gap, a repeat or another order within one attachment
* R7   a hole or repeat at the seam of a resume, or a reset without a cause
* R8   one connection's messages are stored in another order than they were sent
* R9   a message that nobody sent, or that was refused, is in the log or was delivered
* R10  something was delivered outside an attachment
* R11  a message sent after another's ack is stored before it
* R12  a reader that is still attached after the quiet period has not got everything

Run it on files of events: ``python checker.py FILE...``
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from e2e.records import (
    Ack,
    AnyEvent,
    Attach,
    Fault,
    Final,
    Live,
    Logged,
    Nack,
    Recv,
    Send,
    load,
)


class Violation(NamedTuple):
    """One broken promise."""

    rule: str
    """``R1`` to ``R12``."""
    what: str
    """What was seen, for people."""


class Cursor(NamedTuple):
    """How far a client has got."""

    epoch: str
    seq: int


Message = tuple[str, str, str]
"""Session, principal, id: what makes two messages the same."""

Own = tuple[str, str, str]
"""Session, client, id."""


class History:
    """
    The events of one run, by what they are about.

    Args:
        events: In the order of time.
    """

    def __init__(self, events: Sequence[AnyEvent]) -> None:
        self.events = events
        self.finals: dict[str, Final] = {}
        self.sends: dict[Message, list[Send]] = defaultdict(list)
        self.acks: dict[Own, list[Ack]] = defaultdict(list)
        self.nacks: set[Own] = set()
        self.log: dict[tuple[str, str, int], Logged] = {}
        """By session, epoch and seq."""
        self.places: dict[Message, int] = {}
        """Where each message is stored."""
        self.destroyed = False
        """Whether the test destroyed a log."""
        for event in events:
            self._take(event)

    def _take(self, event: AnyEvent) -> None:
        if isinstance(event, Send):
            self.sends[event.session, event.principal, event.id].append(event)
        elif isinstance(event, Ack):
            self.acks[event.session, event.proc, event.id].append(event)
        elif isinstance(event, Nack):
            self.nacks.add((event.session, event.proc, event.id))
        elif isinstance(event, Fault):
            self.destroyed = self.destroyed or event.kind == "epoch"
        elif isinstance(event, Final):
            self.finals[event.session] = event
            for entry in event.log:
                self.log[event.session, event.epoch, entry.seq] = entry
                self.places.setdefault((event.session, entry.principal, entry.id), entry.seq)


def check(events: Sequence[AnyEvent]) -> list[Violation]:
    """Return every broken promise in a run's events, which are in the order of time."""
    history = History(events)
    rules = (_logs, _acks, _stored, _deliveries, _live, _publisher_order, _real_time)
    return [violation for rule in rules for violation in rule(history)]


def _logs(history: History) -> Iterator[Violation]:
    """R2, R4: each log by itself."""
    for session, final in history.finals.items():
        start = final.trimmed + 1
        if [entry.seq for entry in final.log] != [*range(start, start + len(final.log))]:
            yield Violation("R4", f"{session}: the log is not contiguous")
        seen: set[tuple[str, str]] = set()
        for entry in final.log:
            key = (entry.principal, entry.id)
            if key in seen:
                yield Violation("R2", f"{session}: {key} is stored twice")
            seen.add(key)


def _acks(history: History) -> Iterator[Violation]:
    """R1, R3: what was acknowledged is where the ack says."""
    for (session, _, id), acks in history.acks.items():
        if len({(ack.epoch, ack.seq) for ack in acks}) > 1:
            yield Violation("R3", f"{session}: the acks of {id} disagree")
        final = history.finals.get(session)
        if final is None:
            continue
        for ack in acks:
            if ack.epoch != final.epoch:
                if not history.destroyed:
                    yield Violation("R1", f"{session}: {id} was acked in an epoch that is gone")
            elif ack.seq > final.trimmed:
                entry = history.log.get((session, ack.epoch, ack.seq))
                if entry is None or entry.id != id:
                    yield Violation("R1", f"{session}: {id} was acked at {ack.seq} and is lost")


def _stored(history: History) -> Iterator[Violation]:
    """R9: everything in a log was sent, as it is, and not refused."""
    for (session, _, _), entry in history.log.items():
        sends = history.sends.get((session, entry.principal, entry.id))
        if not sends:
            yield Violation("R9", f"{session}: nobody sent {entry.principal} {entry.id}")
            continue
        if sends[0].sha not in ("", entry.sha):
            yield Violation("R9", f"{session}: {entry.id} was sent with another content")
        own = (session, sends[0].proc, entry.id)
        if own in history.nacks and own not in history.acks:
            yield Violation("R9", f"{session}: {entry.id} was refused and is stored")


class _Reader:
    """What one run's readers hold, event by event."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._attached: dict[str, Attach] = {}
        self._next: dict[str, int] = {}
        self._cursors: dict[tuple[str, str], Cursor] = {}

    def attach(self, event: Attach) -> Iterator[Violation]:
        """R7: where a join goes on."""
        who = (event.proc, event.session)
        cursor = self._cursors.get(who)
        if event.mode == "resumed":
            if cursor is None:
                yield Violation("R7", f"{event.att}: resumed without a cursor")
            elif cursor.epoch != event.epoch:
                yield Violation("R7", f"{event.att}: resumed across epochs")
            elif event.start != cursor.seq + 1:
                yield Violation("R7", f"{event.att}: resumed after {cursor.seq} at {event.start}")
        elif event.mode == "reset" and not self._explained(event.session, cursor):
            yield Violation("R7", f"{event.att}: reset without a cause")
        self._attached[event.att] = event
        self._next[event.att] = event.start
        self._cursors[who] = Cursor(event.epoch, event.start - 1)

    def _explained(self, session: str, cursor: Cursor | None) -> bool:
        final = self._history.finals.get(session)
        return self._history.destroyed or (
            final is not None
            and cursor is not None
            and cursor.epoch == final.epoch
            and cursor.seq < final.trimmed
        )

    def receive(self, event: Recv) -> Iterator[Violation]:
        """R5, R6, R9, R10: one delivery."""
        attach = self._attached.get(event.att)
        if attach is None or (attach.session, attach.proc) != (event.session, event.proc):
            yield Violation("R10", f"{event.proc}: {event.session} {event.seq} came unasked")
            return
        expected = self._next[event.att]
        if event.epoch != attach.epoch:
            yield Violation("R6", f"{event.att}: the epoch changed")
        if event.seq != expected:
            yield Violation("R6", f"{event.att}: {event.seq} came instead of {expected}")
        self._next[event.att] = event.seq + 1
        self._cursors[event.proc, event.session] = Cursor(event.epoch, event.seq)
        yield from self._compare(event)

    def _compare(self, event: Recv) -> Iterator[Violation]:
        session, seq = event.session, event.seq
        entry = self._history.log.get((session, event.epoch, seq))
        final = self._history.finals.get(session)
        if entry is None:
            if final is not None and final.epoch == event.epoch and seq > final.trimmed:
                yield Violation("R5", f"{session}: {seq} was delivered and is not in the log")
        elif (entry.id, entry.principal, entry.sha) != (event.id, event.principal, event.sha):
            yield Violation("R5", f"{session}: {event.proc} got another message at {seq}")
        if (session, event.principal, event.id) not in self._history.sends:
            yield Violation("R9", f"{session}: nobody sent {event.principal} {event.id}")


def _deliveries(history: History) -> Iterator[Violation]:
    """R5, R6, R7, R9, R10: what readers got."""
    reader = _Reader(history)
    for event in history.events:
        if isinstance(event, Attach):
            yield from reader.attach(event)
        elif isinstance(event, Recv):
            yield from reader.receive(event)


def _live(history: History) -> Iterator[Violation]:
    """R12: who was there to the end has everything."""
    for event in history.events:
        if not isinstance(event, Live):
            continue
        final = history.finals.get(event.session)
        if final is not None and (event.epoch, event.last) != (
            final.epoch,
            final.trimmed + len(final.log),
        ):
            yield Violation("R12", f"{event.session}: {event.proc} ended at {event.last}")


def _publisher_order(history: History) -> Iterator[Violation]:
    """R8: what one connection sent once is stored in the order of sending."""
    sent: dict[tuple[str, str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for message, sends in history.sends.items():
        place = history.places.get(message)
        if place is not None and len(sends) == 1:
            [send] = sends
            sent[send.session, send.proc, send.conn].append((send.n, place, send.id))
    for (session, proc, _), messages in sent.items():
        for (_, first, one), (_, second, other) in pairwise(sorted(messages)):
            if first >= second:
                yield Violation("R8", f"{session}: {proc} sent {one} before {other}")


def _real_time(history: History) -> Iterator[Violation]:
    """R11: a message sent after another one's ack comes later in the log."""
    moments: dict[str, list[tuple[int, bool, int, str]]] = defaultdict(list)
    for (session, _, id), acks in history.acks.items():
        final = history.finals.get(session)
        if final is not None and acks[0].epoch == final.epoch:
            moments[session].append((min(ack.t for ack in acks), False, acks[0].seq, id))
    for message, sends in history.sends.items():
        place = history.places.get(message)
        if place is not None:
            moments[message[0]].append((min(s.t for s in sends), True, place, message[2]))
    for session, events in moments.items():
        newest = 0
        for _, sending, place, id in sorted(events):
            if not sending:
                newest = max(newest, place)
            elif place < newest:
                yield Violation("R11", f"{session}: {id} was sent after the ack of {newest}")


def main(paths: Iterable[str]) -> int:
    """Print the violations of a run; the number says whether there are any."""
    violations = check(load(map(Path, paths)))
    for violation in violations[:50]:
        print(violation.rule, violation.what)
    print(len(violations), "violations")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
