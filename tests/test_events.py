"""Events: who listens, in which order, and that nobody harms the others."""

from __future__ import annotations

import pytest

from trunkline.events import EVENTS, Events


def test_listeners_run_in_the_order_in_which_they_were_added():
    """At once, with the event's arguments."""
    events, heard = Events(), []
    events.on("error", lambda error: heard.append(("first", error)))
    events.on("error", lambda error: heard.append(("second", error)))

    events.emit("error", "x")

    assert heard == [("first", "x"), ("second", "x")]


def test_on_is_a_decorator_without_a_listener():
    """The function stays what it was."""
    events, heard = Events(), []

    @events.on("started")
    def started() -> None:
        heard.append("started")

    events.emit("started")
    started()

    assert heard == ["started", "started"]


def test_on_returns_how_to_stop_listening():
    """Calling it again does nothing; a listener that was added twice is removed once."""
    events, heard = Events(), []

    def listener() -> None:
        heard.append(1)

    stop = events.on("started", listener)
    events.on("started", listener)
    stop()
    events.emit("started")

    assert heard == [1]


def test_a_listener_that_raises_harms_nobody(capsys):
    """The others run, and the log has the failure."""
    events, heard = Events(), []

    def broken() -> None:
        raise RuntimeError("boom")

    events.on("started", broken)
    events.on("started", lambda: heard.append("fine"))
    events.emit("started")

    assert heard == ["fine"]
    assert "listener failed" in capsys.readouterr().out


def test_a_listener_may_stop_listening_while_it_runs():
    """The event reaches the others all the same."""
    events, heard = Events(), []

    def once() -> None:
        heard.append("once")
        stop()

    stop = events.on("started", once)
    events.on("started", lambda: heard.append("always"))
    for _ in range(2):
        events.emit("started")

    assert heard == ["once", "always", "always"]


def test_an_unknown_event_is_refused_with_the_names_that_there_are():
    """A typing error would otherwise wait for good."""
    with pytest.raises(ValueError, match="client:connect"):
        Events().on("client:conect", print)  # type: ignore[call-overload]


def test_whether_anyone_listens_is_known():
    """Before, during and after."""
    events = Events()
    before = events.listened("message")
    stop = events.on("message", print)
    during = events.listened("message")
    stop()

    assert (before, during, events.listened("message")) == (False, True, False)


@pytest.mark.parametrize(
    "name",
    [
        "client:connect", "client:disconnect", "client:disconnect:details", "client:auth",
        "session:create", "session:join", "session:leave", "message", "error", "started",
        "stopped", "agent:registered", "agent:unregistered", "agent:status-changed",
        "agent:offline",
    ],
)  # fmt: skip
def test_every_event_of_the_design_exists_and_is_described(name):
    """With its arguments first."""
    assert EVENTS[name].startswith("(")
