"""
Programs that run beside us: their restarts, and what they say to people.

What ends is started again, at growing intervals. What it writes to its standard
error goes to our log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from trunkline.sdk.policy import Backoff

log = logging.getLogger("trunkline.bridges")

STABLE = 10.0
"""Seconds after which a start was good, and the intervals begin anew."""


async def keep_alive(what: str, live: Callable[[], Awaitable[str]]) -> NoReturn:
    """
    Call `live` again whenever it returns, until cancelled.

    Args:
        what: What lives, for the log.
        live: Lives once and returns how that ended; an `OSError` is such an end too.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff()
    while True:
        began = loop.time()
        try:
            end = await live()
        except OSError as error:
            end = f"could not be started: {error.strerror or error}"
        if loop.time() - began > STABLE:
            backoff.reset()
        wait = backoff.next()
        log.warning("%s %s; starting it again in %.1f s", what, end, wait)
        await asyncio.sleep(wait)


async def log_lines(what: str, stream: asyncio.StreamReader) -> None:
    """Log what a program says, line by line; of an endless line, pieces."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            if not end.partial:
                return
            line = end.partial
        except asyncio.LimitOverrunError as error:
            line = await stream.read(error.consumed)
        log.info("%s: %s", what, line.decode("utf-8", "replace").rstrip())
