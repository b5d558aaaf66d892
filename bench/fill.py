"""
Write a long log: `python bench/fill.py FOLDER`.

A program of its own, because only it needs the gateway to be importable.
"""

from __future__ import annotations

import asyncio
import sys
from hashlib import sha256
from pathlib import Path

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.history import Append, Entry, HistoryError, Position
from trunkline.history.sqlite import SqliteHistory
from trunkline.records.sqlite import SqliteRecords
from trunkline.run import LOG_FILE
from trunkline.server import GatewayServer

SESSIONS = 100
MESSAGES = 10_000
"""In each session: as many as the gateway keeps."""
AT_ONCE = 500
"""Messages in one commit."""

TEXT = "x" * 200


async def fill(folder: Path) -> None:
    """Make a log of a million messages through the gateway's own store."""
    history = SqliteHistory(folder / LOG_FILE)
    records = SqliteRecords(history.database)
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    gateway = GatewayServer(config, history=history, records=records)
    await gateway.start()
    for number in range(SESSIONS):
        session = await gateway.sessions.create_session(f"bench-{number}", owner="owner")
        await _fill_session(history, session.id)
    await gateway.stop()


async def _fill_session(history: SqliteHistory, session: str) -> None:
    end = Position((await history.bounds(session)).epoch, 0)
    while end.seq < MESSAGES:
        entries = [_entry(session, end.seq + i) for i in range(1, AT_ONCE + 1)]
        (outcome,) = await history.append([Append(session, entries, end)])
        if isinstance(outcome, HistoryError):
            raise outcome
        end = outcome


def _entry(session: str, seq: int) -> Entry:
    body = (
        f'{{"type":"chat","id":"m{seq}","sessionId":"{session}","payload":{{"message":"{TEXT}"}},'
        f'"timestamp":1700000000000,"from":{{"clientId":"c_1","userId":"owner","role":"control",'
        f'"kind":"user"}},"seq":{seq},"addressed":[]}}'
    ).encode()
    return Entry(f"owner\0\0m{seq}", sha256(body).digest(), body)


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1])))
