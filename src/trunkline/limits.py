"""How often and how much: rates, lockouts and budgets. Pure; the caller brings the clock."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from trunkline.errors import ErrorCode, GatewayError


class Rate:
    """
    A token bucket's settings (GCRA form).

    The state is one float per client, kept by the client: the time at which
    its bucket will be full again.

    Args:
        rate: Events per second in the long run.
        burst: Events at once after a pause.
    """

    __slots__ = ("_interval", "_window")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate
        self._window = burst / rate

    def take(self, full_at: float, now: float) -> float:
        """
        Take one event.

        Returns:
            The new state.

        Raises:
            GatewayError: ``RATE_LIMITED`` with the time to wait; the state is as it was.
        """
        full_at = (full_at if full_at > now else now) + self._interval
        if full_at - now > self._window + 1e-9:
            raise GatewayError(
                ErrorCode.RATE_LIMITED,
                "too many messages",
                retry_after=full_at - now - self._window,
            )
        return full_at


class Spent:
    """
    How much of its rates somebody has used up; one for each connection, or
    shared by what belongs together.

    Attributes:
        full_at: The state of the rate of messages; see `Rate`.
        stream_full_at: The same for streamed ones.
    """

    __slots__ = ("full_at", "stream_full_at")

    def __init__(self) -> None:
        self.full_at = 0.0
        self.stream_full_at = 0.0


class _Failures(msgspec.Struct):
    since: float
    failed: int = 0
    judged: int = 0
    """Attempts whose outcome is not known yet."""
    locked_until: float = 0.0


class Lockout:
    """
    Counts wrong credentials by address and locks addresses out.

    An attempt is counted before its credential is compared, so that parallel
    attempts cannot run past the limit. The table is bounded: the address that
    was quiet longest is forgotten first, but never one that is locked out
    while another is not.

    Args:
        failures: Attempts within `window` before the lock.
        window: Seconds over which they count.
        duration: Seconds that the lock lasts.
        size: Addresses kept at most.
    """

    def __init__(self, failures: int, window: float, duration: float, size: int = 10_000) -> None:
        self._limit = failures
        self._window = window
        self._duration = duration
        self._size = size
        self._table: OrderedDict[str, _Failures] = OrderedDict()
        # Apart, in the order of their ends: room must be found without a walk past them.
        self._locked: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table) + len(self._locked)

    def reconfigure(self, failures: int, window: float, duration: float) -> None:
        """Go by other numbers from now on; locks that hold go on as they began."""
        self._limit, self._window, self._duration = failures, window, duration

    def attempt(self, key: str, now: float) -> None:
        """
        Count one attempt of an address.

        Raises:
            GatewayError: ``AUTH_LOCKED`` with the time to wait; compare nothing.
        """
        locked = self._locked.get(key)
        if locked is not None and now < locked.locked_until:
            raise self._refusal(locked.locked_until - now)
        entry = self._locked.pop(key, None) or self._table.get(key) or _Failures(now)
        if entry.locked_until or now - entry.since > self._window:
            entry.since, entry.failed, entry.locked_until = now, 0, 0.0
        self._table[key] = entry
        self._table.move_to_end(key)
        if entry.failed + entry.judged >= self._limit:
            raise self._refusal(1.0)  # the others' outcome will be known by then
        entry.judged += 1
        if len(self) > self._size:
            self._forget(now)

    def failed(self, key: str, now: float) -> bool:
        """Note that an attempt was wrong; whether it was the last that is allowed, and locked it."""
        entry = self._table.get(key) or self._locked.get(key)
        if entry is None:
            return False
        entry.judged -= 1
        entry.failed += 1
        if entry.failed < self._limit:
            return False
        entry.locked_until = now + self._duration
        self._table.pop(key, None)
        self._locked[key] = entry
        self._locked.move_to_end(key)
        return True

    def take_back(self, key: str) -> None:
        """Note that an attempt was right, or could not be judged: it does not count."""
        entry = self._table.get(key) or self._locked.get(key)
        if entry is not None:
            entry.judged -= 1
            if not entry.failed and not entry.judged:
                del self._table[key]

    @staticmethod
    def _refusal(wait: float) -> GatewayError:
        return GatewayError(
            ErrorCode.AUTH_LOCKED,
            "too many wrong credentials from this address",
            details={"retryAfterMs": max(1, round(wait * 1000))},
            retry_after=wait,
        )

    def _forget(self, now: float) -> None:
        # The attempt at hand is the newest in the table, and stays.
        ended = next(iter(self._locked.values())).locked_until <= now if self._locked else False
        crowd = self._locked if ended or len(self._table) == 1 else self._table
        crowd.popitem(last=False)


class Tally:
    """Counts how many of something each user has."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        return self._counts.get(key, 0)

    def add(self, key: str) -> None:
        """Count one more."""
        self._counts[key] = self._counts.get(key, 0) + 1

    def drop(self, key: str) -> None:
        """Count one less."""
        left = self._counts.pop(key) - 1
        if left:
            self._counts[key] = left


class Budget:
    """
    Bounds how many of something exist, overall and by key.

    Args:
        total: At most so many overall.
        per_key: At most so many under one key.
    """

    def __init__(self, total: int, per_key: int) -> None:
        self._total = total
        self._per_key = per_key
        self._by_key: dict[str, int] = {}
        self.count = 0
        """How many there are."""

    def reconfigure(self, total: int, per_key: int) -> None:
        """Go by other bounds from now on; places that are taken stay so."""
        self._total, self._per_key = total, per_key

    def take(self, key: str) -> bool:
        """Take a place; False if there is none."""
        held = self._by_key.get(key, 0)
        if self.count >= self._total or held >= self._per_key:
            return False
        self._by_key[key] = held + 1
        self.count += 1
        return True

    def give(self, key: str) -> None:
        """Give a place back."""
        held = self._by_key.get(key, 0)
        if held > 1:
            self._by_key[key] = held - 1
        else:
            self._by_key.pop(key, None)
        if held:
            self.count -= 1
