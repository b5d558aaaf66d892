"""What the end of a log still has open, for a session that comes back to life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from trunkline.history import History, Stored
from trunkline.messages import Sender
from trunkline.payloads import RunState

PAGE_MESSAGES = 300
"""Messages read in one turn."""

RECOVERY_DEPTH = 1_000
"""Messages at the end of a log that are searched for open runs and approvals after a restart."""


class OpenRun(NamedTuple):
    """A run that a log opened and did not end."""

    run_id: str
    agent_id: str
    chat_id: str
    asker: str


class _LoggedPayload(msgspec.Struct, rename="camel"):
    run_id: str | None = None
    runs: list[RunState] | None = None
    """Runs that were given to another agent."""


class _Logged(msgspec.Struct, rename="camel"):
    """What a stored frame tells of runs."""

    type: str
    id: str
    seq: int
    sender: Sender | None = msgspec.field(name="from", default=None)
    addressed: list[str] = []
    payload: _LoggedPayload = msgspec.field(default_factory=_LoggedPayload)


_decode_logged = msgspec.json.Decoder(_Logged).decode


async def last_messages(history: History, session_id: str, head: int) -> AsyncIterator[Stored]:
    """Read the end of a log that is searched after a restart."""
    after = max(0, head - RECOVERY_DEPTH)
    while after < head:
        page = await history.read(session_id, after, PAGE_MESSAGES, 1024 * 1024)
        if not page:
            return
        for stored in page:
            yield stored
        after = page[-1].seq


async def open_runs(history: History, session_id: str, head: int) -> list[OpenRun]:
    """Return the runs that the last messages of a log opened and did not end."""
    found: dict[str, OpenRun] = {}
    async for stored in last_messages(history, session_id, head):
        logged = _decode_logged(stored.body)
        asker = logged.sender.user_id if logged.sender else ""
        for agent_id in logged.addressed:
            run_id = f"{logged.seq}.{agent_id}"
            found[run_id] = OpenRun(run_id, agent_id, logged.id, asker)
        if logged.type == "session_info":
            for moved in logged.payload.runs or ():
                if moved.run_id in found:
                    run = found[moved.run_id]
                    found[moved.run_id] = run._replace(agent_id=moved.agent_id)
        if logged.type == "chat_complete" and logged.payload.run_id is not None:
            found.pop(logged.payload.run_id, None)
    return list(found.values())
