"""
Events: what the gateway tells its host program.

Listeners run at once, in the order in which they were added. One that raises
harms nobody: the failure is logged and the others run. Whoever needs to wait
starts a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import msgspec
import structlog

EventName = Literal[
    "client:connect",
    "client:disconnect",
    "client:disconnect:details",
    "client:auth",
    "session:create",
    "session:join",
    "session:leave",
    "message",
    "error",
    "started",
    "stopped",
    "agent:registered",
    "agent:unregistered",
    "agent:status-changed",
    "agent:offline",
    "audit",
]

EVENTS: dict[EventName, str] = {
    "client:connect": "(client) A connection opened.",
    "client:disconnect": "(client) A connection is gone; exactly once for each.",
    "client:disconnect:details": "(details) The same, with code, reason and uptime.",
    "client:auth": "(client) A client signed in.",
    "session:create": "(session) A session was created.",
    "session:join": "(session, client) A connection became a member.",
    "session:leave": "(session, client) A connection is no longer a member.",
    "message": "(client, message) A message of a type that nobody handles.",
    "error": "(error) Something failed that no request can be told of.",
    "started": "() The gateway is ready.",
    "stopped": "() The gateway has stopped.",
    "agent:registered": "(agent) An agent registered, or changed what it announces.",
    "agent:unregistered": "(agent) An agent is no longer registered.",
    "agent:status-changed": "(agent) An agent's status changed.",
    "agent:offline": "(agent) An agent's connection is gone.",
    "audit": "(entry) Somebody did what the audit log keeps; an `AuditEntry`.",
}
"""Every event with its arguments and meaning."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to what, and from where; never contents or secrets."""

    action: str
    """What was done, such as ``auth.failed`` or ``token.revoke``."""
    actor: str = ""
    """The user who did it, as far as that is proven."""
    target: str = ""
    """What it was done to: the id of a session, credential, device, client or approval."""
    outcome: Literal["ok", "refused"] = "ok"
    """How it ended."""
    address: str = ""
    """Where it came from."""
    detail: dict[str, str] = {}
    """A few more facts by name."""


Listener = Callable[..., object]
L = TypeVar("L", bound=Listener)

log = structlog.get_logger(__name__)


class Events:
    """A set of listeners by event name."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}

    @overload
    def on(self, name: EventName) -> Callable[[L], L]: ...

    @overload
    def on(self, name: EventName, listener: Listener) -> Callable[[], None]: ...

    def on(
        self, name: EventName, listener: Listener | None = None
    ) -> Callable[[], None] | Callable[[L], L]:
        """
        Listen to an event.

        Without a listener it is a decorator.

        Returns:
            A function that stops listening; calling it again does nothing.

        Raises:
            ValueError: There is no event of that name.
        """
        if name not in EVENTS:
            raise ValueError(f"no event is called {name!r}; there are {', '.join(EVENTS)}")
        if listener is None:

            def decorate(function: L) -> L:
                self._listeners.setdefault(name, []).append(function)
                return function

            return decorate

        entry = listener
        self._listeners.setdefault(name, []).append(entry)

        def disconnect() -> None:
            if entry in self._listeners.get(name, ()):
                self._listeners[name].remove(entry)

        return disconnect

    def listened(self, name: EventName) -> bool:
        """Whether anyone listens to an event."""
        return bool(self._listeners.get(name))

    def emit(self, name: EventName, *args: Any) -> None:
        """Call every listener of an event. Never raises."""
        for listener in tuple(self._listeners.get(name, ())):
            try:
                listener(*args)
            except Exception:
                log.exception("listener failed", event_name=name)
