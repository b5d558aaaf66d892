"""
What the gateway counts of itself: plain numbers, cheap where messages pass.

Nothing here knows who reads them. Every table has its keys from the start, so
that no word of a client's can make one grow.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from trunkline.errors import CloseCode, ErrorCode
from trunkline.payloads import MESSAGE_TYPES

OTHER = "other"
"""What everything counts as that has no row of its own."""

SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bounds in seconds for what should be over at once."""

LONG = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
"""Bounds in seconds for what may wait."""

LAG_INTERVAL = 0.5
"""Seconds between two looks at the event loop."""

LEFT = ("1005", "1006")
"""What stands for a close without a code, and for a connection that broke."""

_TYPE_AT = len('{"type":"')


class Tally:
    """Counters by name; what has no name here counts as ``other``."""

    __slots__ = ("_counts",)

    def __init__(self, names: Iterable[str]) -> None:
        self._counts = dict.fromkeys((*sorted(names), OTHER), 0)

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        counts = self._counts
        if name in counts:
            counts[name] += number
        else:
            counts[OTHER] += number

    def rows(self) -> dict[str, int]:
        """Return all counters."""
        return dict(self._counts)

    def seen(self) -> dict[str, int]:
        """Return the counters that are not zero."""
        return {name: count for name, count in self._counts.items() if count}


class Histogram:
    """
    How often something took how long.

    Attributes:
        bounds: Upper bounds of the buckets, in seconds; one more has no bound.
        counts: Observations by bucket.
        total: Their sum, in seconds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Take one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class LoopLag:
    """How late the event loop is: what everybody waits who waits for nothing else."""

    def __init__(self) -> None:
        self.times = Histogram(SHORT)
        self._recent: deque[float] = deque(maxlen=20)

    @property
    def worst(self) -> float:
        """The longest lag of the last ten seconds, in seconds."""
        return max(self._recent, default=0.0)

    async def watch(self) -> None:
        """Look again and again; never returns."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            lag = max(0.0, loop.time() - due)
            self.times.observe(lag)
            self._recent.append(lag)


class Measures:
    """
    The gateway's counters.

    Attributes:
        received: Messages from clients, by type.
        sent: Messages to clients, by type.
        errors: Requests refused, by code.
        closes: Connections that the gateway saw end, by close code.
        spared: Text chunks that lagging readers were spared.
        appends: How long the store took for one append.
        waits: How long requests waited for their agent.
        lag: How late the event loop is.
    """

    def __init__(self) -> None:
        self.received = Tally(MESSAGE_TYPES)
        self.sent = Tally(MESSAGE_TYPES)
        self.errors = Tally(ErrorCode)
        self.closes = Tally((*(str(int(code)) for code in CloseCode), *LEFT))
        self.spared = 0
        self.appends = Histogram(SHORT)
        self.waits = Histogram(LONG)
        self.lag = LoopLag()

    def wrote(self, frame: bytes, copies: int = 1) -> None:
        """Count a message to clients; its type leads in every frame that the gateway writes."""
        end = frame.find(b'"', _TYPE_AT)
        self.sent.add(frame[_TYPE_AT:end].decode("ascii", "replace"), copies)
