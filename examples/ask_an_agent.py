"""
Ask agents for what they can do; run ``tool_agent.py`` beside it.

    TRUNKLINE_TOKEN=... python examples/ask_an_agent.py
"""

from __future__ import annotations

import asyncio
import os

import trunkline

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:18789")


async def main(url: str, token: str | None) -> list[str]:
    """Ask in four ways, and return what came of it."""
    said: list[str] = []
    async with trunkline.connect(url, token=token) as gateway:
        # Whoever can add: the gateway chooses the least busy.
        total = await gateway.request(capability="add", params={"a": 1, "b": 2})
        said.append(f"1 + 2 = {total:g}")

        # A certain agent, and an answer that comes piece by piece.
        pieces = gateway.request_stream(
            agent_id="calculator", method="primes", params={"below": 12}
        )
        said.append("primes: " + " ".join([str(prime) async for prime in pieces]))

        # What goes wrong is an exception that says why.
        try:
            await gateway.request(capability="divide", params={"a": 1, "b": 0})
        except trunkline.RequestFailed as error:
            said.append(error.message)

        # In a session everybody sees question, tool calls and answer.
        session = await gateway.join("lobby")
        async for event in session.chat("20 + 3"):
            match event:
                case trunkline.ToolStarted(tool=tool, args=args):
                    said.append(f"{event.agent_id} calls {tool} with {args}")
                case trunkline.Completed(content=content):
                    said.append(f"{event.agent_id} says: {content}")
    return said


if __name__ == "__main__":
    print("\n".join(asyncio.run(main(URL, os.environ.get("TRUNKLINE_TOKEN")))))
