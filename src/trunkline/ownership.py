"""
Whose an agent id is, kept in the records.

An id belongs to the user that first registered it, across restarts, until an
admin releases it or it was not in use for thirty days. Ids that differ only in
case are one, for a mention folds case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from trunkline.errors import ErrorCode, GatewayError
from trunkline.messages import encode
from trunkline.records import Conflict, Records

ID_RETENTION = 30 * 86_400.0
"""Seconds after which an unused agent id is anybody's again."""

KIND = "agent"


class Ownership(msgspec.Struct):
    """One record."""

    owner: str
    generation: int
    used_at: float
    """Seconds since the epoch; 0 once the id was released."""


class Claim(NamedTuple):
    """What became of an id that a user has taken."""

    generation: int
    changed_hands: bool
    """Whether it was another user's before."""


class Owners:
    """The owners of all agent ids."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def claim(self, agent_id: str, owner: str, in_use: Callable[[], bool]) -> Claim:
        """
        Take an id for a user.

        Args:
            in_use: Tells whether the id is in use at this moment.

        Raises:
            GatewayError: ``AGENT_ID_TAKEN``: the id belongs to another user.
        """
        changed_hands = False

        def claimed(held: Ownership | None) -> Ownership:
            nonlocal changed_hands
            now = time.time()
            changed_hands = held is not None and held.owner != owner
            if held is None:
                return Ownership(owner, 1, now)
            if held.owner != owner and (now - held.used_at < ID_RETENTION or in_use()):
                raise GatewayError(ErrorCode.AGENT_ID_TAKEN, "the id belongs to another user")
            return Ownership(owner, held.generation + 1, now)

        owned = await self._change(agent_id, claimed)
        assert owned is not None
        return Claim(owned.generation, changed_hands)

    async def release(self, agent_id: str) -> bool:
        """Let anybody register an id from now on; False if it was nobody's."""

        def released(held: Ownership | None) -> Ownership | None:
            # The generation stays, for it fences old connections off.
            return held and Ownership(held.owner, held.generation, 0.0)

        return await self._change(agent_id, released) is not None

    async def note_use(self, agent_id: str, owner: str) -> None:
        """Let the thirty days of an id begin anew."""

        def used(held: Ownership | None) -> Ownership | None:
            # Released meanwhile, or another's: it is not for us to take it back.
            if held is None or held.owner != owner or not held.used_at:
                return None
            return Ownership(held.owner, held.generation, time.time())

        await self._change(agent_id, used)

    async def _change(
        self, agent_id: str, change: Callable[[Ownership | None], Ownership | None]
    ) -> Ownership | None:
        key = agent_id.lower()
        while True:
            record = await self._records.get(KIND, key)
            held = msgspec.json.decode(record.value, type=Ownership) if record else None
            new = change(held)
            if new is None:
                return None
            try:
                await self._records.put(KIND, key, encode(new), record.version if record else 0)
            except Conflict:
                continue
            return new
