"""What the demo agent understands, and what its tools give."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.demo import (
    HELP,
    answer,
    calculate,
    clock,
    count_text,
    reply,
    roll_dice,
    understand,
)
from trunkline.sdk.errors import ToolError


@pytest.mark.parametrize(
    ("message", "tool", "args"),
    [
        ("what time is it in Tokyo?", "clock", {"zone": "Tokyo"}),
        ("What time is it?", "clock", {"zone": "UTC"}),
        ("2*(3+4)", "calculate", {"expression": "2*(3+4)"}),
        ("what is 2^10?", "calculate", {"expression": "2^10"}),
        ("@demo 1 + 1 =", "calculate", {"expression": "1 + 1"}),
        ("roll 3d6", "roll_dice", {"dice": "3d6"}),
        ("please roll a die!", "roll_dice", {"dice": "1d6"}),
        ("count one two", "count_text", {"text": "one two"}),
    ],
)
def test_a_question_finds_its_tool(message, tool, args):
    """The documented questions call the tool that answers them."""
    assert understand(message) == (tool, args)


@pytest.mark.parametrize("message", ["hello", "we had a good time", "12", "1" * 10_000, "()", ""])
def test_other_messages_call_no_tool(message):
    """What is no question is answered without a tool."""
    assert understand(message) is None


@given(st.text())
def test_any_message_is_understood_or_not(message):
    """No message makes the agent fail."""
    call = understand(message)

    assert call is not None or isinstance(reply(message), str)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2*(3+4)", "14"),
        ("7/2", "3.5"),
        ("7//2", "3"),
        ("2^10", "1024"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
    ],
)
def test_the_calculator_knows_arithmetic(expression, value):
    """Results are exact for integers and short for fractions."""
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "(10**400)**4",
        "1/0",
        "1e308*10 - 1e308*10**400",
        "__import__('os')",
        "(1).real",
        "[1]*9",
        "True+1",
        "'a'*3",
        "(-8)**0.5",
        "(" * 150,
        "1" * 300,
        "",
    ],
)
def test_the_calculator_refuses_what_is_not_arithmetic_or_too_large(expression):
    """Nothing but bounded arithmetic is worked out."""
    with pytest.raises(ToolError):
        calculate(expression)


@given(st.text("0123456789+-*/%^(). ", max_size=60))
def test_the_calculator_gives_a_number_or_an_error(expression):
    """Any text of its characters ends in bounded time with one of the two."""
    try:
        value = calculate(expression)
    except ToolError:
        value = "0"

    assert re.fullmatch(r"-?[\d.]+(e[+-]\d+)?|-?inf|nan", value)


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        ("Tokyo", "Asia/Tokyo"),
        ("new york", "America/New_York"),
        ("europe/berlin", "Europe/Berlin"),
        ("UTC", "UTC"),
    ],
)
def test_the_clock_knows_zones_and_cities(zone, name):
    """A city's name is enough, in any case."""
    assert re.fullmatch(rf"\d\d:\d\d on \w+day, \d\d \w+ \d{{4}} \({name}\)", clock(zone))


def test_the_clock_refuses_a_place_it_does_not_know():
    """The error names the place."""
    with pytest.raises(ToolError, match="Atlantis"):
        clock("Atlantis")


@given(number=st.integers(1, 100), sides=st.integers(2, 9999))
def test_dice_have_their_number_and_sides(number, sides):
    """Each die shows one of its sides."""
    rolled = roll_dice(f"{number}d{sides}")

    assert len(rolled) == number
    assert all(1 <= die <= sides for die in rolled)


@pytest.mark.parametrize("dice", ["", "d1", "101d6", "six", "0d6", "1d99999"])
def test_dice_that_cannot_be_rolled_are_refused(dice):
    """The error says how to write dice."""
    with pytest.raises(ToolError, match="3d6"):
        roll_dice(dice)


def test_a_text_is_counted():
    """Characters, words and sentences are told apart."""
    counts = count_text("One two. Three!")

    assert counts == {"characters": 15, "words": 3, "sentences": 2}


def test_an_answer_is_a_sentence():
    """What a tool gave is told in words."""
    call = understand("count One two.")

    assert answer(call, count_text("One two.")) == "I count 8 characters, 2 words, 1 sentence."


def test_a_greeting_is_answered_with_what_the_agent_can():
    """Help is one word away."""
    assert reply("hello") == HELP
    assert "say help" in reply("nonsense")
