"""Deadlines: called once at their time, for what is open, and nothing kept of what has ended."""

from __future__ import annotations

import asyncio
import time

from trunkline.deadlines import SLACK, Deadlines


class Book:
    """What is open, and what expired."""

    def __init__(self, clock=time.monotonic) -> None:
        self.open: set[str] = set()
        self.expired: list[str] = []
        self.changed = asyncio.Event()
        self.deadlines = Deadlines(self.open.__contains__, self.expire, clock)

    def add(self, at: float, id: str) -> None:
        self.open.add(id)
        self.deadlines.add(at, id)

    def expire(self, id: str) -> None:
        self.open.remove(id)
        self.expired.append(id)
        self.changed.set()

    async def until(self, *ids: str) -> None:
        async with asyncio.timeout(10):
            while not set(ids) <= set(self.expired):
                self.changed.clear()
                await self.changed.wait()


async def test_deadlines_pass_in_the_order_of_their_times():
    """Whatever the order in which they were set."""
    book, now = Book(), time.monotonic()
    book.add(now + 0.03, "last")
    book.add(now + 0.01, "first")
    book.add(now + 0.02, "second")

    await book.until("last")

    assert book.expired == ["first", "second", "last"]


async def test_what_has_ended_does_not_expire():
    """Its entry is passed over."""
    book, now = Book(), time.monotonic()
    book.add(now, "ended")
    book.add(now + 0.01, "open")
    book.open.remove("ended")

    await book.until("open")

    assert book.expired == ["open"]


async def test_a_deadline_set_by_one_that_passes_is_kept():
    """As when a parent's end makes somebody ask anew."""
    book = Book()
    expire = book.expire

    def expire_and_add(id: str) -> None:
        expire(id)
        if id == "parent":
            book.add(time.monotonic(), "child")

    book.deadlines = Deadlines(book.open.__contains__, expire_and_add, time.monotonic)
    book.add(time.monotonic(), "parent")

    await book.until("child")

    assert book.expired == ["parent", "child"]


async def test_a_timer_that_rings_early_waits_for_the_rest():
    """The loop's clock need not be the deadlines' own."""
    late = 0.05
    book = Book(clock=lambda: time.monotonic() - late)
    book.add(time.monotonic() - late, "due")
    await book.until("due")

    assert book.expired == ["due"]


async def test_ended_entries_do_not_pile_up():
    """A heap of long deadlines stays in proportion to what is open."""
    book = Book()
    for number in range(10 * SLACK):
        id = str(number)
        book.add(time.monotonic() + 3_600, id)
        if number % 100:
            book.open.remove(id)

    assert len(book.deadlines) <= 2 * len(book.open) + SLACK + 1
