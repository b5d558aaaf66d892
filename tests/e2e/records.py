"""
What happened, as clients saw it: one JSON line per event.

All clocks are one machine's monotonic nanoseconds, so the events of several
processes can be put in one order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

Mode = Literal["fresh", "resumed", "reset"]


class Event(msgspec.Struct, tag_field="ev", kw_only=True):
    """Base of all events."""

    t: int = 0
    """Monotonic nanoseconds."""


class Send(Event, tag="send", kw_only=True):
    """A client began to publish, for the first time or again."""

    proc: str
    session: str
    id: str
    principal: str
    n: int
    """Counts the client's messages; the same when it sends one again."""
    conn: int
    """Counts the client's connections."""
    sha: str = ""
    """Of what it sent; empty: not noted."""


class Ack(Event, tag="ack", kw_only=True):
    """The gateway said: stored."""

    proc: str
    session: str
    id: str
    epoch: str
    seq: int


class Nack(Event, tag="nack", kw_only=True):
    """The gateway said: not stored. Neither this nor an ack: it may be stored, at most once."""

    proc: str
    session: str
    id: str
    code: str


class Attach(Event, tag="attach", kw_only=True):
    """A join was answered; what follows begins at `start`."""

    proc: str
    session: str
    att: str
    mode: Mode
    epoch: str
    start: int = msgspec.field(name="from")


class Recv(Event, tag="recv", kw_only=True):
    """A message came, or, for one's own, the ack that stands in its place."""

    proc: str
    session: str
    att: str
    epoch: str
    seq: int
    id: str
    principal: str
    sha: str


class Live(Event, tag="live", kw_only=True):
    """A client was still attached after the quiet period, and this far."""

    proc: str
    session: str
    last: int
    epoch: str


class Fault(Event, tag="fault", kw_only=True):
    """The test did something; ``epoch``: it destroyed the log, so a reset is legal."""

    kind: str


class Logged(msgspec.Struct, kw_only=True):
    """One message of a log."""

    seq: int
    id: str
    principal: str
    sha: str


class Final(Event, tag="final", kw_only=True):
    """A session's log, as read back after the run."""

    session: str
    epoch: str
    log: list[Logged]
    trimmed: int = 0
    """Messages up to here are gone by retention."""


AnyEvent = Send | Ack | Nack | Attach | Recv | Live | Fault | Final

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AnyEvent).decode


class Recorder:
    """
    Writes events to a file; each is there, whatever kills the process, once `add` returns.

    Args:
        path: The file; it is appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, event: AnyEvent) -> None:
        """Write an event with the time of now."""
        event.t = time.monotonic_ns()
        os.write(self._file, _encode(event) + b"\n")

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


def load(paths: Iterable[Path]) -> list[AnyEvent]:
    """Read files of events, in the order of time."""
    events = [_decode(line) for path in paths for line in path.read_bytes().splitlines()]
    return sorted(events, key=lambda event: event.t)
