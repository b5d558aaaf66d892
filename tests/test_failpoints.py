"""Where tests end the process: the variable that says so is read strictly."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from trunkline.errors import ConfigError
from trunkline.failpoints import POINTS, parse_failpoint


def test_there_is_none_unless_asked_for() -> None:
    """Without the variable, or with an empty one, nothing ever ends the process."""
    found = [parse_failpoint(None), parse_failpoint("")]

    assert found == [None, None]


@pytest.mark.parametrize("point", POINTS)
def test_it_is_read_from_one_word(point: str) -> None:
    """Name, count and action stand in one variable; to kill needs no action."""
    plain, frozen = parse_failpoint(f"{point}:3"), parse_failpoint(f"{point}:4:freeze")

    assert plain is not None
    assert frozen is not None
    assert (plain.name, plain.count, plain.action) == (point, 3, "kill")
    assert (frozen.name, frozen.count, frozen.action) == (point, 4, "freeze")


@pytest.mark.parametrize(
    "text",
    ["nowhere:1", "after-append", "after-append:0", "after-append:x", "after-append:1:dance"],
)
def test_a_mistake_in_it_is_an_error(text: str) -> None:
    """A test that names no place, or no count, must not pass for want of a kill."""
    with pytest.raises(ConfigError, match="TRUNKLINE_FAILPOINT"):
        parse_failpoint(text)


def test_it_ends_the_process_at_the_right_moment() -> None:
    """The process dies as it comes by the place for the n-th time, wherever else it was before."""
    code = (
        "from trunkline.failpoints import Failpoint\n"
        "here = Failpoint('after-append', 3)\n"
        "for n in range(5):\n"
        "    print(n, flush=True)\n"
        "    here('before-append')\n"
        "    here('after-append')\n"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == [b"0", b"1", b"2"]
