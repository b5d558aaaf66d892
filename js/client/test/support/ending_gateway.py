"""A gateway that ends connections when it is told to, and whose tokens can end soon."""

from __future__ import annotations

import asyncio
import time

from trunkline import Client, GatewayMessage, Identity, WebSocketGateway, WebSocketTransportConfig
from trunkline.config import AuthConfig

SOON = 1.5
"""Seconds after which the token ``short`` ends."""


class EndingGateway(WebSocketGateway):
    """Knows two tokens, ``long`` and ``short``, and the message ``kick_me``."""

    async def validate_token(self, token: str) -> Identity | None:
        """Return whose token it is."""
        if token not in ("long", "short"):
            return None
        end = round((time.time() + SOON) * 1000) if token == "short" else None
        return Identity(user_id="ada", expires_at=end)


async def main() -> None:
    """Run it until it is killed."""
    config = WebSocketTransportConfig(
        port=0, auth=AuthConfig(mode="token", token="x" * 32)
    )
    gateway = EndingGateway(config)

    async def kick(client: Client, message: GatewayMessage) -> None:
        gateway.kick_client(client.id, "as you wished")

    gateway.register_handler("kick_me", kick)
    async with gateway:
        print(f"listening on {gateway.address}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
