"""
For tests of one's own handlers and agents: a gateway driven without a socket.

`AgentHarness` puts an agent to work on a gateway in memory. `MemoryTransport`
is a list standing in for the wire; `PeerClient` speaks over it as a client
would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from msgspec.structs import replace
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from trunkline.clients import Client, Identity, Peer
from trunkline.config import AuthConfig, GatewayConfig
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.payloads import Ack
from trunkline.sdk.agent import Agent
from trunkline.sdk.client import GatewayClient
from trunkline.sdk.events import Completed, Event
from trunkline.sdk.messages import Message
from trunkline.sdk.session import Session
from trunkline.sdk.sockets import SignIn
from trunkline.server import GatewayServer
from trunkline.transport import Batch


class MemoryTransport:
    """
    A pipe into a list.

    Attributes:
        sent: The messages that were written, encoded.
        closed: Code and reason once it is closed.
        stuck: Bytes that it claims are waiting, to play a slow reader.
        paused: Whether the gateway has stopped reading.

    Args:
        on_close: Called once with code and reason, from the loop, as a real
            pipe would: never from within the call that closes it.
    """

    def __init__(self, on_close: Callable[[int, str], object] | None = None) -> None:
        self.sent: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.stuck = 0
        self.paused = False
        self._news = asyncio.Event()
        self._on_close = on_close

    def write(self, message: bytes) -> None:
        """Keep one message."""
        if self.closed is None:
            self.sent.append(message)
            self._news.set()

    def write_batch(self, batch: Batch) -> None:
        """Keep the messages of a batch."""
        if self.closed is None:
            self.sent.extend(batch.messages)
            self._news.set()

    def close(self, code: int, reason: str) -> None:
        """Close; what is written afterwards is dropped."""
        if self.closed is None:
            self.closed = (code, reason)
            self._news.set()
            if self._on_close is not None:
                asyncio.get_running_loop().call_soon(self._on_close, code, reason)

    def buffered(self) -> int:
        """Return `stuck`."""
        return self.stuck

    def pause_reading(self) -> None:
        """Set `paused`."""
        self.paused = True

    def resume_reading(self) -> None:
        """Clear `paused`."""
        self.paused = False

    async def changed(self) -> None:
        """Wait until something was written, or the pipe was closed."""
        await self._news.wait()
        self._news.clear()


class PeerClient:
    """
    A client of a `GatewayServer`, without a socket.

    Args:
        gateway: A started gateway.
        identity: Who it is; None leaves the sign-in to the test.
        address: Where it claims to come from.
        patience: Seconds that `next` and `gone` wait before they raise `TimeoutError`.
    """

    def __init__(
        self,
        gateway: GatewayServer,
        identity: Identity | None = None,
        address: str = "memory",
        patience: float = 10.0,
    ) -> None:
        self.gateway = gateway
        self.transport = MemoryTransport(self._closed)
        self._patience = patience
        self.client: Client = gateway.on_connect(self.transport, Peer(address, address), identity)
        self._read = 0

    def send(self, type: str, payload: Any = None, session: str | None = None, **more: Any) -> str:
        """Send a message; returns its id."""
        message = create_message(type, payload, session, **more)
        return self.send_message(message)

    def send_message(self, message: GatewayMessage) -> str:
        """Send a message that was made already; returns its id."""
        self.send_text(encode(message).decode())
        return message.id

    def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        self.gateway.on_message(self.client, text)

    def received(self) -> list[GatewayMessage]:
        """Return the messages that came since the last call."""
        new = self.transport.sent[self._read :]
        self._read = len(self.transport.sent)
        return [decode_message(frame) for frame in new]

    async def next(self, type: str | None = None, reply_to: str | None = None) -> GatewayMessage:
        """
        Wait for the next message, of a type or answering a message; others are passed over.

        Raises:
            ConnectionError: The gateway closed the connection, and all was read.
            TimeoutError: Nothing fits that came in time.
        """
        async with asyncio.timeout(self._patience):
            while True:
                while self._read < len(self.transport.sent):
                    message = decode_message(self.transport.sent[self._read])
                    self._read += 1
                    if type in (None, message.type) and reply_to in (None, message.reply_to):
                        return message
                if self.transport.closed is not None:
                    raise ConnectionError(f"closed: {self.transport.closed}")
                await self.transport.changed()

    async def ask(
        self, type: str, payload: Any = None, session: str | None = None
    ) -> GatewayMessage:
        """Send a message and wait for the one that answers it."""
        return await self.next(reply_to=self.send(type, payload, session))

    async def gone(self) -> tuple[int, str]:
        """Wait until the gateway has closed the connection; returns code and reason."""
        async with asyncio.timeout(self._patience):
            while self.transport.closed is None:
                await self.transport.changed()
        return self.transport.closed

    def disconnect(self, code: int = 1006, reason: str = "") -> None:
        """Go away."""
        self.transport.close(code, reason)
        self.gateway.on_disconnect(self.client, code, reason)

    def _closed(self, code: int, reason: str) -> None:
        self.gateway.on_disconnect(self.client, code, reason)


class MemorySocket:
    """
    What the SDK has in place of a WebSocket: a pipe to a gateway in this program.

    Args:
        gateway: A started gateway.
    """

    def __init__(self, gateway: GatewayServer) -> None:
        self.transport = MemoryTransport(self._closed)
        self._gateway = gateway
        self._client = gateway.on_connect(self.transport, Peer("memory", "memory", local=True))
        self._read = 0

    async def recv(self) -> bytes:
        """Wait for the next frame; ``ConnectionClosed`` once the gateway has closed."""
        while self._read == len(self.transport.sent):
            if self.transport.closed is not None:
                raise ConnectionClosedError(Close(*self.transport.closed), None)
            await self.transport.changed()
        self._read += 1
        return self.transport.sent[self._read - 1]

    async def send(self, frame: bytes) -> None:
        """Hand a frame to the gateway, and let it work."""
        self._gateway.on_message(self._client, frame.decode())
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Close with 1000."""
        self.transport.close(1000, "")

    def abort(self) -> None:
        """Go away, as a lost connection does."""
        self.transport.close(1006, "")

    def _closed(self, code: int, reason: str) -> None:
        self._gateway.on_disconnect(self._client, code, reason)


class AgentHarness:
    """
    An agent at work on a gateway of its own, all in memory; use it as ``async with``.

        async with AgentHarness(agent) as harness:
            assert await harness.chat("hi") == "You said: hi"
            assert await harness.call("add", a=1, b=2) == 3

    Gateway, protocol and SDK are the real ones; only the network is left out.
    What is still at work in the end is cancelled.

    Args:
        agent: The agent.
        others: Agents that it may ask.
        config: The gateway's configuration, but for the sign-in, which is left out.

    Attributes:
        gateway: The gateway, once entered.
        client: The connection of who asks.
        session: The session of `chat`, with the agent assigned to it.
    """

    def __init__(self, agent: Agent, *others: Agent, config: GatewayConfig | None = None) -> None:
        self.agent = agent
        self.gateway = GatewayServer(
            replace(config or GatewayConfig(), auth=AuthConfig(mode="none"))
        )
        self.client = GatewayClient(MEMORY, dial=self._dial)
        self.session: Session
        self._others = others
        self._stack = AsyncExitStack()

    async def _dial(self, sign_in: SignIn) -> MemorySocket:
        return MemorySocket(self.gateway)

    async def __aenter__(self) -> AgentHarness:
        leaving: list[Callable[[], Awaitable[None]]] = []
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.gateway)
            for agent in (*self._others, self.agent):
                serving = await stack.enter_async_context(agent.serving(MEMORY, dial=self._dial))
                # Before it would wait for what is at work.
                leaving.append(serving.close)
            await stack.enter_async_context(self.client)
            self.session = await self.client.create(agent_id=self.agent.id)
            for close in leaving:
                stack.push_async_callback(close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def events(self, text: str, *, allow: bool | None = None) -> list[Event]:
        """
        Say something to the agent and return everything that comes of it.

        Args:
            text: What to say.
            allow: What to answer where the agent asks whether it may run a tool;
                None: nothing, so that it waits.
        """
        answers: list[asyncio.Task[Ack]] = []

        def answer(request: Message) -> None:
            if allow is not None:
                approving = self.session.approve(request, allow=allow)
                answers.append(asyncio.create_task(approving))

        forget = self.client.on("approval_request", answer)
        try:
            chat = self.session.chat(text, mentions=[self.agent.id])
            events = [event async for event in chat]
        finally:
            forget()
        await asyncio.gather(*answers)
        return events

    async def chat(self, text: str, *, allow: bool | None = None) -> str:
        """
        Say something to the agent and return its whole answer; arguments are those of `events`.

        Raises:
            AssertionError: The answer did not end well; the text says how.
        """
        if self.agent.chat_handler is None:
            raise AssertionError(f"{self.agent} does not answer chats")
        end = (await self.events(text, allow=allow))[-1]
        if not isinstance(end, Completed) or end.status != "ok":
            raise AssertionError(f"the answer ended badly: {end}")
        return end.content

    async def call(self, tool: str, /, **params: Any) -> Any:
        """
        Call one of the agent's tools and return its result, of a generator the list of what it yields.

        Errors are those of `GatewayClient.request`.
        """
        return await self.client.request(agent_id=self.agent.id, method=tool, params=params)


MEMORY = "ws://127.0.0.1"
"""An address for clients that never look it up."""
