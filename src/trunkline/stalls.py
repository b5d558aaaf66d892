"""
Notice when the event loop is held up, and by which code.

Everything that the gateway does shares one thread, so a handler that waits or
computes without giving way stops everybody. A second thread looks whether the
loop still turns; when it does not, the log gets the place where it stands, at
once, in case it never goes on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from types import FrameType

import structlog

STALL = 0.5
"""Seconds without a turn of the loop that are worth an alarm."""

BEAT = 0.1
"""Seconds between two signs of life."""

FRAMES = 8
"""Calls that the alarm names, the innermost ones."""

log = structlog.get_logger(__name__)


class StallWatch:
    """
    Watches the running event loop from `start` to `stop`.

    Args:
        limit: Seconds without a turn that are worth an alarm.
    """

    def __init__(self, limit: float = STALL) -> None:
        self._limit = limit
        self._beat_at = 0.0
        self._told = False
        self._timer: asyncio.TimerHandle | None = None
        self._end = threading.Event()
        self._watched = 0
        self.stalls = 0
        """How often the loop was held up so far."""

    def start(self) -> None:
        """Watch the loop that runs this."""
        self._watched = threading.get_ident()
        self._beat_at = time.monotonic()
        self._beat()
        threading.Thread(target=self._watch, name="trunkline-stalls", daemon=True).start()

    def stop(self) -> None:
        """Stop watching; the thread ends by itself."""
        self._end.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        last, self._beat_at = self._beat_at, now
        if self._told:
            self._told = False
            log.warning("the event loop goes on", held_up_seconds=round(now - last, 1))
        self._timer = asyncio.get_running_loop().call_later(BEAT, self._beat)

    def _watch(self) -> None:
        while not self._end.wait(self._limit / 2):
            if self._told or time.monotonic() - self._beat_at < self._limit:
                continue
            frame = sys._current_frames().get(self._watched)
            self.stalls += 1
            self._told = True
            log.error("the event loop is held up", exception=_place(frame))


def _place(frame: FrameType | None) -> str:
    """Return where a thread stands: places only, no values."""
    if frame is None:
        return "its thread has ended"
    return "".join(traceback.format_stack(frame)[-FRAMES:]).rstrip()
