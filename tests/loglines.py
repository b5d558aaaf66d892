"""The lines of a log, to be waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog.testing


class Lines(logging.Handler):
    """Keeps the lines of a logger, and wakes whoever waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())
        self._news.set()

    async def wait_for(self, text: str, times: int = 1) -> None:
        async with asyncio.timeout(20):
            while sum(text in line for line in self.seen) < times:
                self._news.clear()
                await self._news.wait()


@contextmanager
def lines_of(logger: logging.Logger) -> Iterator[Lines]:
    """Keep what `logger` says while the body runs."""
    lines, level = Lines(), logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(lines)


@contextmanager
def lines_of_structlog() -> Iterator[list[Any]]:
    """Keep what our own modules say while the body runs, as events."""
    with structlog.testing.capture_logs() as events:
        yield events
