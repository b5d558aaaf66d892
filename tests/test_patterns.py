"""Patterns of ids: what fits one, and what fits another's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.errors import GatewayError
from trunkline.ids import valid_id
from trunkline.patterns import ANY, fitting_id, matches, valid_pattern, within

PATTERNS = st.text("ab-*", min_size=1, max_size=8)
NAMES = st.text("ab-", max_size=10)


@given(NAMES, PATTERNS)
def test_a_star_stands_for_any_characters(name, pattern):
    """As the same pattern does as a regular expression."""
    wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None

    assert matches(name, (pattern,)) is wanted


@given(PATTERNS, PATTERNS, NAMES)
def test_what_fits_a_pattern_fits_those_it_is_within(narrow, wide, name):
    """And only then is it within."""
    if within((narrow,), (wide,)) and matches(name, (narrow,)):
        assert matches(name, (wide,))


@given(PATTERNS, PATTERNS)
def test_a_pattern_that_is_not_within_has_an_id_outside(narrow, wide):
    """Put a character that no pattern has in the place of each star."""
    assert within((narrow,), (wide,)) is matches(narrow.replace("*", "#"), (wide,))


def test_many_stars_take_no_time():
    """Nobody can make an id or a pattern that keeps the gateway busy."""
    assert not matches("a" * 128, ("*a" * 49 + "b",))


@pytest.mark.parametrize(
    ("pattern", "valid"),
    [
        *(("acme-*", True), ("*", True), ("a.b:c_d", True), ("x" * 100, True)),
        *(("", False), ("a b", False), ("é", False), ("x" * 101, False), ("a\n", False)),
    ],
)
def test_a_pattern_is_an_id_with_stars(pattern, valid):
    """Of at most 100 characters, so that a made id has room."""
    assert valid_pattern(pattern) is valid


@given(st.lists(PATTERNS, min_size=1))
def test_a_made_id_fits_the_patterns(patterns):
    """Unless each of them is one id."""
    if not any("*" in pattern for pattern in patterns):
        with pytest.raises(GatewayError):
            fitting_id(patterns)
        return

    made = fitting_id(patterns)

    assert matches(made, patterns)
    assert valid_id(made)
    assert made != fitting_id(patterns)


def test_a_made_id_begins_with_the_prefix_where_any_id_fits():
    """As before there were patterns."""
    assert fitting_id(ANY, "s_").startswith("s_")
    assert fitting_id(("acme-*", "*"), "s_").startswith("acme-")
