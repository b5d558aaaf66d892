"""
Two people in one session: each reads everything, exactly once and in order.

    TRUNKLINE_TOKEN=... python examples/two_clients.py
"""

from __future__ import annotations

import asyncio
import os

import trunkline

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:18789")


async def read(session: trunkline.Session, count: int) -> list[str]:
    """Return the next chats of a session, whoever says them."""
    chats: list[str] = []
    async for message in session:
        if message.type == "chat":
            chats.append(f"{message.seq}: {message.text}")
        if len(chats) == count:
            break
    return chats


async def main(url: str, token: str | None) -> list[str]:
    """Let Ada and Bob talk, and return what both of them have read."""
    async with (
        trunkline.connect(url, token=token, device_name="Ada") as ada,
        trunkline.connect(url, token=token, device_name="Bob") as bob,
    ):
        at_adas = await ada.create(name="Tea")
        at_bobs = await bob.join(at_adas.id)

        await at_adas.send("Is the tea ready?")
        at_bobs.presence("typing")
        await at_bobs.send("Nearly.")

        adas, bobs = await asyncio.gather(read(at_adas, 2), read(at_bobs, 2))
        assert adas == bobs
        return adas


if __name__ == "__main__":
    print("\n".join(asyncio.run(main(URL, os.environ.get("TRUNKLINE_TOKEN")))))
