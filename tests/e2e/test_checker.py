"""The checker itself: it accepts good histories, and catches each way to break one."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from e2e.checker import check, main
from e2e.records import (
    Ack,
    AnyEvent,
    Attach,
    Event,
    Fault,
    Final,
    Live,
    Logged,
    Nack,
    Recorder,
    Recv,
    Send,
    load,
)

E = TypeVar("E", bound=Event)

READERS = ("ana", "ben", "cleo")
PUBLISHERS = ("dora", "emil")


class Maker:
    """Makes up the events of a good run of one session."""

    def __init__(self, seed: int, messages: int = 200) -> None:
        self.rng = random.Random(seed)
        self.events: list[AnyEvent] = []
        self.log: list[Logged] = []
        self.cursors: dict[str, int] = {}
        self.attachments: dict[str, str] = {}
        for reader in READERS:
            self.join(reader)
        for n in range(messages):
            self.publish(self.rng.choice(PUBLISHERS), n)
            for reader in READERS:
                if self.rng.random() < 0.5:
                    self.read(reader)
                if self.rng.random() < 0.04:
                    self.join(reader)
        for reader in READERS:
            self.read(reader)
            self.add(Live(proc=reader, session="s", last=self.cursors[reader], epoch="e"))
        self.add(Final(session="s", epoch="e", log=self.log))

    def add(self, event: AnyEvent) -> None:
        event.t = len(self.events)
        self.events.append(event)

    def join(self, reader: str) -> None:
        known = self.cursors.get(reader)
        self.attachments[reader] = f"{reader}/{len(self.events)}"
        self.cursors.setdefault(reader, 0)
        self.add(
            Attach(
                proc=reader,
                session="s",
                att=self.attachments[reader],
                mode="fresh" if known is None else "resumed",
                epoch="e",
                start=(known or 0) + 1,
            )
        )

    def publish(self, publisher: str, n: int) -> None:
        """Send once or twice; it is refused, stored, or stored with the ack lost."""
        chance, conn = self.rng.random(), n // 50
        self.send(publisher, n, conn)
        if chance < 0.05:
            self.add(Nack(proc=publisher, session="s", id=f"m{n}", code="OVERLOADED"))
            return
        place = len(self.log) + 1
        self.log.append(Logged(seq=place, id=f"m{n}", principal=publisher, sha=f"h{n}"))
        if chance < 0.15:
            self.send(publisher, n, conn + 1)
        if chance < 0.9:
            self.add(Ack(proc=publisher, session="s", id=f"m{n}", epoch="e", seq=place))

    def send(self, publisher: str, n: int, conn: int) -> None:
        self.add(
            Send(
                proc=publisher,
                session="s",
                id=f"m{n}",
                principal=publisher,
                n=n,
                conn=conn,
                sha=f"h{n}",
            )
        )

    def read(self, reader: str) -> None:
        for entry in self.log[self.cursors[reader] :]:
            self.add(
                Recv(
                    proc=reader,
                    session="s",
                    att=self.attachments[reader],
                    epoch="e",
                    seq=entry.seq,
                    id=entry.id,
                    principal=entry.principal,
                    sha=entry.sha,
                )
            )
        self.cursors[reader] = len(self.log)


class Broken:
    """A good run, to be broken in one place."""

    def __init__(self, seed: int) -> None:
        made = Maker(seed)
        self.rng = made.rng
        # A copy, so that the log's entries are not shared with anything.
        copied = msgspec.json.decode(msgspec.json.encode(made.events), type=list[AnyEvent])
        self.events: list[AnyEvent] = copied
        self.log = self.some(Final).log

    def all(self, kind: type[E], skip: int = 0) -> list[E]:
        events: list[Event] = [*self.events]
        return [event for event in events if isinstance(event, kind)][skip:]

    def some(self, kind: type[E], skip: int = 0) -> E:
        return self.rng.choice(self.all(kind, skip))

    def resumed(self) -> Attach:
        return self.rng.choice([a for a in self.all(Attach) if a.mode == "resumed"])

    def position(self, event: AnyEvent) -> int:
        return next(n for n, other in enumerate(self.events) if other is event)


def lose_the_tail(run: Broken) -> None:
    ack = run.some(Ack, skip=20)
    del run.log[ack.seq - 1 :]


def change_the_epoch(run: Broken) -> None:
    run.some(Final).epoch = "f"


def store_twice(run: Broken) -> None:
    first = run.rng.choice(run.log)
    run.log.append(msgspec.structs.replace(first, seq=len(run.log) + 1))


def ack_elsewhere(run: Broken) -> None:
    ack = run.some(Ack)
    again = msgspec.structs.replace(ack, seq=ack.seq + 1)
    run.events.insert(run.position(ack) + 1, again)


def leave_a_hole(run: Broken) -> None:
    del run.log[len(run.log) // 2]


def change_a_delivery(run: Broken) -> None:
    run.some(Recv).sha = "x"


def change_the_log(run: Broken) -> None:
    run.rng.choice(run.log).sha = "x"


def skip_a_delivery(run: Broken) -> None:
    received = [e for e in run.all(Recv) if e.proc == "ana" and e.seq < 100]
    run.events.remove(run.rng.choice(received))


def repeat_a_delivery(run: Broken) -> None:
    event = run.some(Recv)
    run.events.insert(run.position(event), msgspec.structs.replace(event))


def swap_deliveries(run: Broken) -> None:
    received = [e for e in run.all(Recv) if e.proc == "ben"]
    at = run.rng.randrange(len(received) - 1)
    one, other = run.position(received[at]), run.position(received[at + 1])
    run.events[one], run.events[other] = run.events[other], run.events[one]


def change_epoch_while_attached(run: Broken) -> None:
    run.some(Recv).epoch = "f"


def skip_at_the_seam(run: Broken) -> None:
    run.resumed().start += 1


def repeat_at_the_seam(run: Broken) -> None:
    run.resumed().start -= 1


def reset_for_nothing(run: Broken) -> None:
    run.resumed().mode = "reset"


def resume_from_nowhere(run: Broken) -> None:
    run.all(Attach)[0].mode = "resumed"


def store_out_of_order(run: Broken) -> None:
    once = {(s.proc, s.id): s for s in run.all(Send)}
    repeated = {s.id for s in run.all(Send) if once[s.proc, s.id] is not s}
    mine = [e for e in run.log if e.principal == "dora" and e.id not in repeated]
    pairs = [
        (a, b) for a, b in pairwise(mine) if once["dora", a.id].conn == once["dora", b.id].conn
    ]
    one, other = run.rng.choice(pairs)
    one.id, other.id, one.sha, other.sha = other.id, one.id, other.sha, one.sha


def store_what_nobody_sent(run: Broken) -> None:
    run.log.append(Logged(seq=len(run.log) + 1, id="ghost", principal="dora", sha="x"))


def store_under_another_name(run: Broken) -> None:
    run.rng.choice(run.log).principal = "mallory"


def store_what_was_refused(run: Broken) -> None:
    nack = run.some(Nack)
    run.log.append(Logged(seq=len(run.log) + 1, id=nack.id, principal=nack.proc, sha=nack.id))


def deliver_from_another_sender(run: Broken) -> None:
    run.some(Recv).principal = "mallory"


def deliver_another_session(run: Broken) -> None:
    run.some(Recv).session = "other"


def deliver_before_the_join(run: Broken) -> None:
    run.events.remove(run.all(Attach)[0])


def store_a_late_message_early(run: Broken) -> None:
    acked = {(a.proc, a.id): a for a in run.all(Ack)}
    sends = {(s.proc, s.id): s.t for s in run.all(Send)[::-1]}
    one = next(e for e in run.log[10:] if (e.principal, e.id) in acked)
    late = next(e for e in run.log[one.seq :] if sends[e.principal, e.id] > one.seq)
    early = run.log[0]
    early.id, late.id = late.id, early.id
    early.principal, late.principal = late.principal, early.principal


def end_behind_the_head(run: Broken) -> None:
    run.some(Live).last -= 1


BREAKS: list[tuple[Callable[[Broken], None], str]] = [
    (lose_the_tail, "R1"),
    (change_the_epoch, "R1"),
    (store_twice, "R2"),
    (ack_elsewhere, "R3"),
    (leave_a_hole, "R4"),
    (change_a_delivery, "R5"),
    (change_the_log, "R5"),
    (skip_a_delivery, "R6"),
    (repeat_a_delivery, "R6"),
    (swap_deliveries, "R6"),
    (change_epoch_while_attached, "R6"),
    (skip_at_the_seam, "R7"),
    (repeat_at_the_seam, "R7"),
    (reset_for_nothing, "R7"),
    (resume_from_nowhere, "R7"),
    (store_out_of_order, "R8"),
    (store_what_nobody_sent, "R9"),
    (store_under_another_name, "R9"),
    (store_what_was_refused, "R9"),
    (change_the_log, "R9"),
    (deliver_from_another_sender, "R9"),
    (deliver_another_session, "R10"),
    (deliver_before_the_join, "R10"),
    (store_a_late_message_early, "R11"),
    (end_behind_the_head, "R12"),
]


@pytest.mark.parametrize("seed", range(20))
def test_a_good_history_has_no_violations(seed: int) -> None:
    """Reconnects, lost acks, repeated sends and refusals are all legal."""
    events = Maker(seed).events

    assert check(events) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("spoil", "rule"), BREAKS, ids=[f"{rule}-{spoil.__name__}" for spoil, rule in BREAKS]
)
def test_a_broken_history_is_caught(spoil: Callable[[Broken], None], rule: str, seed: int) -> None:
    """Every rule is able to fail."""
    run = Broken(seed)

    spoil(run)

    assert rule in {violation.rule for violation in check(run.events)}


def test_a_reset_is_legal_once_the_log_was_destroyed() -> None:
    """A new epoch after damage is what clients must be told of."""
    run = Broken(1)
    reset_for_nothing(run)

    run.events.insert(0, Fault(kind="epoch"))

    assert check(run.events) == []


def test_a_reset_is_legal_behind_retention() -> None:
    """Who was away for longer than messages are kept starts anew."""
    log = [Logged(seq=seq, id=f"m{seq}", principal="p", sha="") for seq in (8, 9)]
    events: list[AnyEvent] = [
        Attach(proc="ana", session="s", att="1", mode="fresh", epoch="e", start=4),
        Attach(proc="ana", session="s", att="2", mode="reset", epoch="e", start=8),
        *(Send(proc="p", session="s", id=e.id, principal="p", n=e.seq, conn=1) for e in log),
        Final(session="s", epoch="e", log=log, trimmed=7),
    ]

    assert check(events) == []


def test_a_run_is_judged_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What several processes wrote is put in order and read as one run."""
    run = Broken(2)
    lose_the_tail(run)
    paths = [tmp_path / "one", tmp_path / "two"]
    recorders = [Recorder(path) for path in paths]
    for number, event in enumerate(run.events):
        recorders[number % 2].add(event)
    for recorder in recorders:
        recorder.close()

    code = main(map(str, paths))

    assert code == 1
    assert "R1 s: " in capsys.readouterr().out
    assert len(load(paths)) == len(run.events)
