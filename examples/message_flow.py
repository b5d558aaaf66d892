"""
A client connects and signs in, frame by frame.

Start a gateway with ``trunkline serve``, then:

    TRUNKLINE_TOKEN=... python examples/message_flow.py
"""

from __future__ import annotations

import asyncio
import os

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket

from trunkline import GatewayMessage, create_message
from trunkline.messages import decode_message, encode

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:18789").replace("http", "ws", 1)


async def receive(socket: ClientConnection) -> GatewayMessage:
    """Wait for one frame of the gateway, and show it."""
    message = decode_message(await socket.recv())
    print(f"<- {message.type}: {message.data()}")
    return message


async def ask(socket: ClientConnection, message: GatewayMessage) -> GatewayMessage:
    """Send one frame, and wait for the one that answers it."""
    print(f"-> {message.type}")
    await socket.send(encode(message).decode())
    answer = await receive(socket)
    assert answer.reply_to == message.id
    return answer


async def main(url: str, token: str) -> list[str]:
    """Walk through the flow; returns the types of the gateway's messages in their order."""
    async with open_websocket(url) as socket:
        # The gateway speaks first: our connection's id, and whether we must sign in.
        welcome = await receive(socket)
        # We say what we are, and learn what the gateway is.
        hello = await ask(
            socket, create_message("connect", {"deviceId": "walkthrough", "role": "control"})
        )
        # We prove who we are. A wrong token is answered with an `error` instead.
        proof = await ask(socket, create_message("auth", {"token": token}))
        return [welcome.type, hello.type, proof.type]


if __name__ == "__main__":
    asyncio.run(main(f"{URL}/ws", os.environ["TRUNKLINE_TOKEN"]))
