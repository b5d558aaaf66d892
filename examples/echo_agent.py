"""
The smallest agent: it joins the session ``lobby`` and repeats what is said there.

    TRUNKLINE_TOKEN=... python examples/echo_agent.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import trunkline

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:18789")

agent = trunkline.Agent("echo", name="Echo", sessions=["lobby"])


@agent.on_chat
async def reply(ctx: trunkline.RunContext, message: trunkline.Message) -> AsyncIterator[str]:
    """Repeat the chat, word by word; each `yield` is shown at once."""
    for word in message.text.split():
        yield f"{word} "


if __name__ == "__main__":
    # Ctrl-C lets it finish what it is saying.
    agent.run(URL, token=os.environ.get("TRUNKLINE_TOKEN"))
