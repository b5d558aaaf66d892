"""
Patterns of ids, in which ``*`` stands for any characters.

A credential is bounded by patterns of the sessions and agents that it may know
of, so that several tenants share one gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trunkline.errors import ErrorCode, GatewayError
from trunkline.ids import random_id, valid_id

ANY = ("*",)
"""The patterns of a credential without bounds."""

_is_pattern = re.compile(r"[A-Za-z0-9._:*-]{1,100}").fullmatch  # room for a random part


def valid_pattern(value: str) -> bool:
    """Whether `value` has the grammar of a pattern: that of an id, with ``*``, of 100 characters."""
    return _is_pattern(value) is not None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether an id fits one of the patterns."""
    return patterns == ANY or any(_fits(name, pattern) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    # No regular expression: one with many stars takes minutes for an id made for it.
    first, *middle = pattern.split("*")
    if not middle:
        return name == pattern
    last = middle.pop()
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    place, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


def within(narrow: Iterable[str], wide: Iterable[str]) -> bool:
    """Whether every id that fits one of `narrow` fits one pattern of `wide`."""
    # A star of the narrow pattern is no character of an id, so only a star can stand for it.
    return wide == ANY or all(matches(pattern, wide) for pattern in narrow)


def fitting_id(patterns: Iterable[str], prefix: str = "") -> str:
    """
    Make an id that cannot be guessed and fits the first pattern that leaves room for it.

    Args:
        prefix: What it begins with where any id fits.

    Raises:
        GatewayError: ``FORBIDDEN``: each pattern is a single id, of which one must be named.
    """
    if patterns == ANY:
        return random_id(prefix)
    for pattern in patterns:
        first, star, rest = pattern.partition("*")
        made = f"{first}{random_id()}{rest.replace('*', '')}"
        if star and valid_id(made):
            return made
    raise GatewayError(ErrorCode.FORBIDDEN, "name one of the ids that the credential allows")
