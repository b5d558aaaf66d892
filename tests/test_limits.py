"""Rates, lockouts and budgets, to the unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.errors import GatewayError
from trunkline.limits import Budget, Lockout, Rate


def locked(lockout: Lockout, key: str, now: float) -> float | None:
    """Try once, and be wrong; returns the time to wait if the attempt was not judged."""
    try:
        lockout.attempt(key, now)
    except GatewayError as error:
        return error.retry_after if error.code == "AUTH_LOCKED" else None
    lockout.failed(key, now)
    return None


# Rate


def test_a_burst_is_taken_at_once_and_the_next_event_waits():
    """Exactly so many, and then one more per interval."""
    rate = Rate(10, 3)
    state = 0.0

    for _ in range(3):
        state = rate.take(state, 100.0)
    with pytest.raises(GatewayError, match="RATE_LIMITED") as refused:
        rate.take(state, 100.0)

    assert refused.value.retry_after == pytest.approx(0.1)
    rate.take(state, 100.1)


@given(
    gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=60),
    per_second=st.integers(1, 50),
    burst=st.integers(1, 10),
)
def test_no_stretch_of_time_has_more_than_the_burst_and_its_share(gaps, per_second, burst):
    """Whatever the pauses between the events."""
    rate = Rate(per_second, burst)
    state, now, taken = 0.0, 1_000.0, []

    for gap in gaps:
        now += gap
        try:
            state = rate.take(state, now)
        except GatewayError:
            continue
        taken.append(now)

    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = burst + (taken[last] - taken[first]) * per_second
            assert last - first + 1 <= allowed + 1e-6


# Lockout


def test_the_tenth_failure_within_a_minute_locks_for_five():
    """Ten are judged, and then none until the lock is over."""
    lockout = Lockout(10, 60, 300)

    judged = [locked(lockout, "ip", 1.0 * n) is None for n in range(12)]

    assert judged == [True] * 10 + [False] * 2
    assert locked(lockout, "ip", 100.0) == pytest.approx(209.0)
    assert locked(lockout, "ip", 308.9) is not None
    assert locked(lockout, "ip", 309.1) is None


def test_failures_further_apart_than_the_window_never_lock():
    """The count begins anew."""
    lockout = Lockout(3, 60, 300)

    assert [locked(lockout, "ip", 31.0 * n) for n in range(20)] == [None] * 20


def test_addresses_do_not_share_a_count():
    """A correct credential from elsewhere still works."""
    lockout = Lockout(1, 60, 300)
    locked(lockout, "one", 0.0)

    assert locked(lockout, "one", 1.0) is not None
    assert locked(lockout, "two", 1.0) is None


def test_attempts_are_counted_before_they_are_judged():
    """Of five hundred at once, ten are compared; those right in the end lock nobody out."""
    lockout = Lockout(10, 60, 300)

    waits = []
    for _ in range(500):
        try:
            lockout.attempt("ip", 0.0)
        except GatewayError as error:
            waits.append(error.retry_after)
    for _ in range(10):
        lockout.take_back("ip")

    assert waits == [1.0] * 490
    assert locked(lockout, "ip", 1.0) is None


def test_right_attempts_do_not_count():
    """However many there are between wrong ones."""
    lockout = Lockout(2, 60, 300)
    locked(lockout, "ip", 0.0)

    for _ in range(100):
        lockout.attempt("ip", 1.0)
        lockout.take_back("ip")

    assert locked(lockout, "ip", 2.0) is None
    assert locked(lockout, "ip", 3.0) is not None


def test_an_address_without_failures_is_not_kept():
    """The table holds failures only."""
    lockout = Lockout(10, 60, 300)
    lockout.attempt("ip", 0.0)
    lockout.take_back("ip")

    assert len(lockout) == 0


def test_the_table_is_bounded_and_keeps_the_locked():
    """A flood of other addresses does not free one that is locked out."""
    lockout = Lockout(1, 60, 300, size=100)
    locked(lockout, "bad", 0.0)

    for number in range(1_000):
        lockout.attempt(f"other{number}", 1.0)

    assert len(lockout) == 100
    assert locked(lockout, "bad", 2.0) is not None


def test_a_table_full_of_locked_addresses_is_as_quick_as_any():
    """Whoever owns a large network must not make every attempt a walk through the table."""
    lockout = Lockout(1, 60, 300, size=10_000)

    for number in range(60_000):  # with a walk this takes minutes
        lockout.attempt(f"ip{number}", number / 1000)
        assert lockout.failed(f"ip{number}", number / 1000)

    assert len(lockout) == 10_000
    assert locked(lockout, "ip59999", 61.0) is not None
    assert locked(lockout, "ip0", 61.0) is None


def test_a_table_full_of_locked_addresses_still_counts_newcomers():
    """Nobody gets to guess without end by locking as many addresses as the table holds."""
    lockout = Lockout(10, 60, 300, size=100)
    for number in range(100):
        for _ in range(10):
            locked(lockout, f"ip{number}", 0.0)

    waits = [locked(lockout, "guesser", 1.0) for _ in range(20)]

    assert waits == [None] * 10 + [300.0] * 10


def test_a_lock_that_has_ended_makes_room_first():
    """An address with a few failures is not forgotten for one whose lock is over."""
    lockout = Lockout(2, 60, 10, size=3)
    for time in (0.0, 0.0):
        locked(lockout, "over", time)
    locked(lockout, "failing", 1.0)

    for number in range(2):
        lockout.attempt(f"new{number}", 11.0)

    locked(lockout, "failing", 12.0)
    assert locked(lockout, "failing", 12.0) is not None


# Budget


def test_a_budget_is_exact_overall_and_by_key():
    """At N it gives, at N + 1 it does not, and what is given back is there again."""
    budget = Budget(3, 2)

    taken = [budget.take(key) for key in ("a", "a", "a", "b", "c")]
    budget.give("a")
    again = budget.take("c")

    assert taken == [True, True, False, True, False]
    assert again is True
    assert budget.count == 3


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_a_budget_agrees_with_a_count_of_what_is_held(acts):
    """Giving back what was never taken changes nothing."""
    budget, held = Budget(5, 3), []

    for take, key in acts:
        if take and budget.take(key):
            held.append(key)
        elif not take:
            budget.give(key)
            if key in held:
                held.remove(key)

        assert budget.count == len(held) <= 5
        assert max(map(held.count, "abc")) <= 3
