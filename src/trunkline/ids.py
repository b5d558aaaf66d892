"""
Identifiers: how they look, and how they are made.

Two kinds. What must not be guessed (sessions, challenges, requests) has 128
random bits. What need only be unique (message ids) is a random prefix made
once per process and a counter: twenty times cheaper than ``uuid4``.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import count

ID_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
"""Grammar of message, session, device, agent and tool call ids."""

TYPE_PATTERN = r"[a-z][a-z0-9_.:]{0,63}"
"""Grammar of message types."""

_BLOCK = 4096
"""Random bytes fetched at a time."""

_is_id = re.compile(ID_PATTERN).fullmatch
_is_type = re.compile(TYPE_PATTERN).fullmatch


def valid_id(value: str) -> bool:
    """Whether `value` has the grammar of an id; ``.`` and ``..`` have not."""
    return _is_id(value) is not None and value not in (".", "..")


def valid_type(value: str) -> bool:
    """Whether `value` has the grammar of a message type."""
    return _is_type(value) is not None


def random_id(prefix: str = "") -> str:
    """Make an id that cannot be guessed: 128 random bits."""
    return prefix + secrets.token_urlsafe(16)


def random_numbers() -> Iterator[str]:
    """
    Make ids that cannot be guessed, endlessly: 128 random bits each, as 32 hex digits.

    The bits are fetched from the kernel for many ids at once, which is what a single id costs most.
    """
    while True:
        digits = os.urandom(_BLOCK).hex()
        for start in range(0, len(digits), 32):
            yield digits[start : start + 32]


def id_counter(prefix: str = "") -> Callable[[], str]:
    """Make a cheap source of unique ids: `prefix`, 64 random bits, a counter."""
    base = f"{prefix}{secrets.token_hex(8)}."
    numbers = count(1)

    def next_id() -> str:
        return f"{base}{next(numbers)}"

    return next_id


new_id = id_counter()
"""Make a message id, unique to this process."""


def now_ms() -> int:
    """The wall clock, in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000
