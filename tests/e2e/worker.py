"""
A process with several agents, to be killed: ``python -m e2e.worker URL FIRST COUNT GRACE_MS``.

It prints one line when all of them are registered. Each answers what it is
asked after a moment, and a little of it not at all.
"""

from __future__ import annotations

import asyncio
import random
import sys

import websockets

from e2e.client import TOKEN
from trunkline.messages import create_message, decode_message, encode
from trunkline.payloads import AgentCapabilities, AgentRegister

CAPABILITY = "work"


async def serve(url: str, number: int, grace_ms: int, ready: asyncio.Event) -> None:
    """Register one agent and answer until killed."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with websockets.connect(
        url, additional_headers=headers, compression=None, proxy=None
    ) as socket:

        async def send(type: str, payload: object) -> None:
            await socket.send(encode(create_message(type, payload)).decode())

        async def answer(request_id: str) -> None:
            await asyncio.sleep(random.random() / 50)
            await send("route_response", {"requestId": request_id, "result": number})

        await send("connect", {"deviceId": f"worker-{number}", "role": "node"})
        register = AgentRegister(
            id=f"worker-{number}",
            capabilities=AgentCapabilities(tools=[CAPABILITY]),
            max_concurrent=4,
            grace_ms=grace_ms,
        )
        await send("agent_register", register)
        tasks: set[asyncio.Task[None]] = set()
        async for text in socket:
            message = decode_message(text)
            if message.type == "agent_registered":
                ready.set()
            elif message.type == "route_request" and random.random() > 0.03:
                task = asyncio.create_task(answer(message.data()["requestId"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def main(url: str, first: int, count: int, grace_ms: int) -> None:
    """Serve `count` agents."""
    ready = [asyncio.Event() for _ in range(count)]
    serving = asyncio.gather(
        *(serve(url, first + n, grace_ms, event) for n, event in enumerate(ready))
    )
    for event in ready:
        await event.wait()
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
