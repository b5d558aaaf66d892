"""
An agent with tools, which it uses itself and offers to everybody else.

    TRUNKLINE_TOKEN=... python examples/tool_agent.py
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator

import trunkline

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:18789")

agent = trunkline.Agent("calculator", sessions=["lobby"])


@agent.tool
def add(ctx: trunkline.ToolContext, a: float, b: float) -> float:
    """Add two numbers."""
    ctx.progress(50, "carrying")  # seen where the tool runs within a chat
    return a + b


@agent.tool
def divide(a: float, b: float) -> float:
    """Divide one number by another."""
    if b == 0:
        raise trunkline.ToolError("nobody can divide by zero")
    return a / b


@agent.tool
def primes(below: int) -> Iterator[int]:
    """List the primes below a number, each as soon as it is found."""
    for n in range(2, below):
        if all(n % d for d in range(2, int(n**0.5) + 1)):
            yield n


@agent.on_chat
async def reply(ctx: trunkline.RunContext, message: trunkline.Message) -> AsyncIterator[str]:
    """Answer ``1 + 2``."""
    sum_ = re.fullmatch(r"\s*([\d.]+)\s*\+\s*([\d.]+)\s*", message.text)
    if sum_ is None:
        yield "I can add: try 1 + 2."
        return
    a, b = map(float, sum_.groups())
    yield "That is "
    yield f"{await ctx.tool('add', {'a': a, 'b': b}):g}."


if __name__ == "__main__":
    agent.run(URL, token=os.environ.get("TRUNKLINE_TOKEN"))
