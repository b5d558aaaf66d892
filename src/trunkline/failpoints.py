"""
Named places at which a test may end or freeze the process.

A gateway that promises to survive a kill at any moment must be killed at the
moments that matter: between a message's being stored and its being
acknowledged, say. The parts that have such places take a function to call
there; without one they call nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Literal

from trunkline.errors import ConfigError

VARIABLE = "TRUNKLINE_FAILPOINT"
"""The environment variable that `parse_failpoint` reads: ``name:count[:action]``."""

POINTS = (
    "before-append",
    "before-commit",
    "after-commit",
    "after-count",
    "after-append",
    "before-deliver",
    "checkpoint",
    "backup",
)
"""Every place, the first six in the order in which a message passes them."""

Action = Literal["kill", "freeze"]

_SIGNALS = {"kill": "SIGKILL", "freeze": "SIGSTOP"}


class Failpoint:
    """
    Ends or freezes the process when it comes by a place for the `count`-th time.

    Args:
        name: One of `POINTS`.
        count: 1 for the first time.
        action: ``kill`` as with ``kill -9``; ``freeze`` until ``kill -CONT``.
    """

    def __init__(self, name: str, count: int, action: Action = "kill") -> None:
        self.name = name
        self.count = count
        self.action = action

    def __call__(self, name: str) -> None:
        """Note that the process has come by a place."""
        if name != self.name:
            return
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.Signals[_SIGNALS[self.action]])


def parse_failpoint(text: str | None) -> Failpoint | None:
    """
    Read ``name:count[:action]``; None or an empty text is no failpoint.

    Raises:
        ConfigError: There is no such place or action, or the count is not a number from 1.
    """
    if not text:
        return None
    name, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    if name not in POINTS:
        raise ConfigError(f"{VARIABLE}: there is no {name!r}; there are {', '.join(POINTS)}")
    if not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise ConfigError(f"{VARIABLE}: write {name}:COUNT, with a number from 1")
    if action in ("", "kill"):
        return Failpoint(name, int(count))
    if action == "freeze":
        return Failpoint(name, int(count), "freeze")
    raise ConfigError(f"{VARIABLE}: {action!r} is neither kill nor freeze")
