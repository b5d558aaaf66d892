"""People for tests: who they are, and a plain WebSocket client that speaks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import websockets
from rawsocket import RawSocket, upgrade
from websockets.asyncio.client import ClientConnection

from trunkline.auth import Credential
from trunkline.clients import Identity
from trunkline.config import AuthConfig, WebSocketTransportConfig
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.payloads import AgentRegister
from trunkline.testing import PeerClient
from trunkline.transports.websocket import WebSocketGateway

PATIENCE = 5.0
"""Seconds after which an answer that a test waits for is missing."""


def person(name: str, role: str = "webchat", *scopes: str, **more: Any) -> Identity:
    """Make the identity of somebody with one role."""
    return Identity(
        user_id=name,
        roles=frozenset({role}),  # type: ignore[arg-type]
        scopes=frozenset(scopes),
        **more,
    )


def token_of(name: str, role: str = "webchat", *scopes: str) -> str:
    """Return the token under which `People` knows somebody."""
    return "/".join((name, role, *scopes))


class People:
    """An authenticator whose tokens say whom they are: ``name/role[/scope...]``."""

    def authenticate(self, credential: Credential) -> Identity | None:
        """Return whom a token names."""
        if credential.token is None or "/" not in credential.token:
            return None
        name, role, *scopes = credential.token.split("/")
        return person(name, role, *scopes)


def guarded_config(**groups: Any) -> WebSocketTransportConfig:
    """Make the configuration of a gateway on any free port with sign-in by token."""
    groups.setdefault("auth", AuthConfig(token="the-owner's-token"))
    return WebSocketTransportConfig(port=0, **groups)


def open_config(**groups: Any) -> WebSocketTransportConfig:
    """Make the configuration of a gateway on any free port without sign-in."""
    return WebSocketTransportConfig(port=0, auth=AuthConfig(mode="none"), **groups)


class WebSocketPeer:
    """
    One real WebSocket to a gateway.

    Attributes:
        heard: Every message that came, in order.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.heard: list[GatewayMessage] = []
        self._left: list[GatewayMessage] = []

    async def send(
        self, type: str, payload: Any = None, session: str | None = None, **more: Any
    ) -> str:
        """Send a message; returns its id."""
        return await self.send_message(create_message(type, payload, session, **more))

    async def send_message(self, message: GatewayMessage) -> str:
        """Send a message that was made already; returns its id."""
        await self.send_text(encode(message).decode())
        return message.id

    async def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        await self.socket.send(text)

    async def next(self, type: str | None = None, reply_to: str | None = None) -> GatewayMessage:
        """Wait for a message of a type or answering one; the others stay for later calls."""
        for number, message in enumerate(self._left):
            if _fits(message, type, reply_to):
                return self._left.pop(number)
        async with asyncio.timeout(PATIENCE):
            while True:
                message = decode_message(await self.socket.recv())
                self.heard.append(message)
                if _fits(message, type, reply_to):
                    return message
                self._left.append(message)

    async def ask(
        self, type: str, payload: Any = None, session: str | None = None
    ) -> GatewayMessage:
        """Send a message and wait for the one that answers it."""
        return await self.next(reply_to=await self.send(type, payload, session))

    async def left(self) -> list[GatewayMessage]:
        """Return what came and nobody asked for, up to now: a pong is awaited first."""
        await self.ask("ping")
        left, self._left = self._left, []
        return left

    async def gone(self) -> tuple[int, str]:
        """Wait until the gateway closes the connection; returns code and reason."""
        async with asyncio.timeout(PATIENCE):
            with suppress(websockets.ConnectionClosed):
                while True:
                    self.heard.append(decode_message(await self.socket.recv()))
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""

    async def close(self) -> None:
        """Close the connection."""
        await self.socket.close()


_visitors: WeakKeyDictionary[WebSocketGateway, list[WebSocketPeer]] = WeakKeyDictionary()


def _fits(message: GatewayMessage, type: str | None, reply_to: str | None) -> bool:
    return type in (None, message.type) and reply_to in (None, message.reply_to)


async def connect(
    gateway: WebSocketGateway, token: str | None = None, **more: Any
) -> WebSocketPeer:
    """
    Connect to a gateway; with a token, signed in by the upgrade's header.

    The welcome has been read, and stands in `WebSocketPeer.heard`.
    """
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    socket = await websockets.connect(
        f"ws://127.0.0.1:{gateway.port}/ws",
        additional_headers={**headers, **more.pop("additional_headers", {})},
        proxy=None,
        max_size=None,
        max_queue=None,
        ping_interval=None,
        compression=None,
        **more,
    )
    peer = WebSocketPeer(socket)
    _visitors.setdefault(gateway, []).append(peer)
    await peer.next("session_info")
    return peer


async def hang_up(gateway: WebSocketGateway) -> None:
    """Close every connection to a gateway that `connect` has made."""
    for peer in _visitors.pop(gateway, ()):
        await peer.close()


def host(gateway: WebSocketGateway) -> str:
    """The name under which a gateway is reached."""
    return f"127.0.0.1:{gateway.port}"


def upgrade_to(gateway: WebSocketGateway, *headers: str, target: str = "/ws") -> bytes:
    """Make the head of an upgrade that a gateway grants, if the headers let it."""
    head = upgrade(target, *headers)
    return head.replace(b"Host: 127.0.0.1\r\n", f"Host: {host(gateway)}\r\n".encode())


@asynccontextmanager
async def raw(gateway: WebSocketGateway, *headers: str) -> AsyncIterator[RawSocket]:
    """A raw WebSocket to a gateway, whose welcome has been read."""
    async with await RawSocket.connect(gateway.port) as peer:
        peer.send(upgrade_to(gateway, *headers))
        answer = await peer.head()
        assert answer.status == 101, answer
        await peer.text()
        yield peer


Speaker = PeerClient | WebSocketPeer
"""Whoever can be asked: in memory, or over a socket."""


async def register(peer: Speaker, agent_id: str, *tools: str, **more: Any) -> GatewayMessage:
    """Register an agent that chats and has tools; returns the answer."""
    payload = AgentRegister(
        id=agent_id,
        capabilities={"chat": True, "tools": list(tools)},
        **more,  # type: ignore[arg-type]
    )
    return await peer.ask("agent_register", payload)


def error_of(message: GatewayMessage) -> str:
    """Return the code of an ``error``; fails if it is none."""
    assert message.type == "error", message
    code: str = message.data()["code"]
    return code


def details_of(message: GatewayMessage) -> Any:
    """Return the details of an ``error``; fails if it is none."""
    assert message.type == "error", message
    return message.data().get("details")
