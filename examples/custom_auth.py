"""A gateway that asks its own user table who a token belongs to."""

from __future__ import annotations

import asyncio
import hashlib
import secrets

from trunkline import Identity, WebSocketGateway, WebSocketTransportConfig


def digest(token: str) -> bytes:
    """Return what the table keeps instead of the token itself."""
    return hashlib.sha256(token.encode()).digest()


class TableGateway(WebSocketGateway):
    """
    Signs in the users of a table.

    Args:
        config: The configuration; it needs no token of its own.
        users: Token digests, and whose they are.
    """

    def __init__(self, config: WebSocketTransportConfig, users: dict[bytes, Identity]) -> None:
        super().__init__(config)
        self._users = users

    async def validate_token(self, token: str) -> Identity | None:
        """Return whose token it is; None refuses it, and the gateway counts the attempt."""
        # A coroutine may wait for a database here. Only the digest is looked up, so
        # the time that takes tells nothing about the token.
        return self._users.get(digest(token))


async def main() -> None:
    """Run a gateway for Ada, who may watch and chat but not administrate, until Ctrl-C."""
    token = secrets.token_urlsafe(32)
    ada = Identity(user_id="ada", roles=frozenset({"webchat", "observer"}))
    async with TableGateway(WebSocketTransportConfig(), {digest(token): ada}) as gateway:
        print(f"listening on {gateway.address}; Ada's token is {token}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
