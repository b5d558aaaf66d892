"""
A client that publishes, reads, loses its connection, resumes, and notes everything.

It speaks the protocol by itself, so that what it notes owes nothing to the
SDK: it joins with the last position that it has, then sends again what was not
acknowledged, in order and with the same ids, before anything new.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from collections import Counter, deque
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from e2e.checker import Cursor
from e2e.records import Ack, Attach, Live, Nack, Recorder, Recv, Send
from trunkline.messages import GatewayMessage, Sender, decode_message, encode
from trunkline.payloads import Ack as AckPayload
from trunkline.payloads import SessionInfo, read

TOKEN = "t" * 32

WINDOW = 4
"""Messages of one client that wait for their ack."""

NO_LINGER = struct.pack("ii", 1, 0)
"""With this, closing a socket resets the connection."""


class Plan(msgspec.Struct, kw_only=True):
    """What one client does."""

    name: str
    session: str
    seed: int
    address: str
    """The file that says where the gateway is."""
    pause: float = 0.2
    """Seconds between two messages, on average; 0: it only reads."""
    size: int = 100
    """Characters in a message, at most."""
    leaving: float = 0.0
    """The chance that it leaves after a message, one way or another."""
    heartbeat: float = 10.0
    """Seconds between pings, and until one without an answer ends the connection."""


class Pending(msgspec.Struct):
    """A message without an answer."""

    n: int
    frame: str
    sha: str
    sends: int = 0


def content_sha(payload: bytes) -> str:
    """Return what a message's content is compared by."""
    return hashlib.sha256(payload).hexdigest()[:16]


def principal(sender: Sender | None) -> str:
    """Return whose messages with one id are the same message."""
    return f"{sender.user_id}/{sender.device_id}" if sender is not None else "nobody"


def request(type: str, id: str, session: str | None = None, /, **payload: Any) -> str:
    """Make a frame."""
    frame = {"type": type, "id": id, "payload": payload}
    return encode(frame | ({"sessionId": session} if session else {})).decode()


async def dial(
    address: str, device: str, *, role: str = "control", heartbeat: float = 10.0
) -> ClientConnection:
    """Connect and sign in, as a device; the answers to both are still to be read."""
    socket = await connect(
        address,
        additional_headers={"Authorization": f"Bearer {TOKEN}"},
        compression=None,
        max_size=None,
        max_queue=256,
        proxy=None,
        open_timeout=2 * heartbeat,
        close_timeout=1,
        ping_interval=heartbeat,
        ping_timeout=heartbeat,
    )
    await socket.send(request("connect", "hello", deviceId=device, role=role))
    return socket


def reset(connection: ClientConnection) -> None:
    """Cut a connection, unless it is closed already, so that the other side gets a reset."""
    if connection.transport.is_closing():
        return
    raw: socket.socket = connection.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    connection.transport.abort()


def read_address(file: str) -> str:
    """Return where the gateway is now."""
    return Path(file).read_text()


class LoadClient:
    """
    One client, through all its connections.

    Args:
        counts: What happened, by name; shared by the clients of a process.
    """

    def __init__(self, plan: Plan, recorder: Recorder, counts: Counter[str]) -> None:
        self.plan = plan
        self.cursor: Cursor | None = None
        self.publishing = plan.pause > 0
        self.leaving = plan.leaving
        self.attached = asyncio.Event()
        self._present = asyncio.Event()
        self._present.set()
        self._recorder = recorder
        self._counts = counts
        self._pauses = (0.02, 0.2)
        self._rng = random.Random(plan.seed)
        self._principal = f"owner/{plan.name}"
        self._outbox: dict[str, Pending] = {}
        self._refused: dict[str, Pending] = {}
        self._acked: deque[tuple[str, Pending]] = deque(maxlen=20)
        self._n = 0
        self._connections = 0
        self._attachment = ""
        self._connection: ClientConnection | None = None
        self._progress = asyncio.Event()

    # Life

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        while True:
            await self._present.wait()
            try:
                await self._live()
                self._pauses = (0.02, 0.2)
            except InvalidStatus as refused:
                self._pauses = (0.2, 0.6)
                self._counts[f"status {refused.response.status_code}"] += 1
            except (OSError, EOFError, WebSocketException):
                self._pauses = (0.2, 0.6)
                self._counts["failed connections"] += 1
            await asyncio.sleep(self._rng.uniform(*self._pauses))

    async def _live(self) -> None:
        self._connections += 1
        connection = await dial(
            read_address(self.plan.address), self.plan.name, heartbeat=self.plan.heartbeat
        )
        self._connection = connection
        publisher = asyncio.create_task(self._publish(connection))
        try:
            since = {} if self.cursor is None else {"since": self.cursor._asdict()}
            await connection.send(request("session_join", "join", self.plan.session, **since))
            async for frame in connection:
                self._receive(decode_message(frame))
        finally:
            self.attached.clear()
            self._connection = None
            publisher.cancel()
            connection.transport.abort()
            self._counts[f"close {connection.close_code}"] += 1

    def reset(self) -> None:
        """Cut the connection, if there is one."""
        if self._connection is not None:
            reset(self._connection)

    def stay_away(self, away: bool) -> None:
        """Cut the connection and make no more, or come back."""
        if away:
            self._present.clear()
            self.attached.clear()
            self.reset()
        else:
            self._present.set()

    async def settled(self) -> None:
        """Wait until nothing is without an answer."""
        while self._outbox or self._refused or not self.attached.is_set():
            await self._next_progress()

    async def reach(self, seq: int, patience: float) -> None:
        """Wait until the log has been read up to `seq`, or patience ends; note which."""
        try:
            async with asyncio.timeout(patience):
                while not self.attached.is_set() or self.cursor is None or self.cursor.seq < seq:
                    await self._next_progress()
        except TimeoutError:
            self._counts["late readers"] += 1
        if self.attached.is_set() and self.cursor is not None:
            self._recorder.add(
                Live(
                    proc=self.plan.name,
                    session=self.plan.session,
                    last=self.cursor.seq,
                    epoch=self.cursor.epoch,
                )
            )

    async def _next_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    # Publishing

    async def _publish(self, connection: ClientConnection) -> None:
        await self.attached.wait()
        for id, pending in [*self._outbox.items()]:
            await self._send(connection, id, pending)
        while True:
            await asyncio.sleep(self._rng.uniform(0, 2 * self.plan.pause) or 0.1)
            for id, pending in [*self._refused.items()]:
                del self._refused[id]
                await self._send(connection, id, pending)
            if self.publishing and len(self._outbox) < WINDOW:
                await self._send_new(connection)
            if self._rng.random() < self.leaving:
                await self._leave(connection)

    async def _send_new(self, connection: ClientConnection) -> None:
        if self._acked and self._rng.random() < 0.03:
            # Sending again what is stored must change nothing.
            id, pending = self._rng.choice(self._acked)
            if id not in self._outbox:
                await self._send(connection, id, pending)
            return
        self._n += 1
        id = f"m{self._n}"  # every client uses the same ids
        text = self.plan.name + "." * self._rng.randint(0, self.plan.size)
        payload = encode({"message": text, "n": self._n})
        frame = (
            f'{{"type":"chat","id":"{id}","sessionId":"{self.plan.session}",'
            f'"payload":{payload.decode()}}}'
        )
        await self._send(connection, id, Pending(self._n, frame, content_sha(payload)))

    async def _send(self, connection: ClientConnection, id: str, pending: Pending) -> None:
        pending.sends += 1
        self._outbox[id] = pending
        self._counts["sent"] += 1
        self._recorder.add(
            Send(
                proc=self.plan.name,
                session=self.plan.session,
                id=id,
                principal=self._principal,
                n=pending.n,
                conn=self._connections,
                sha=pending.sha,
            )
        )
        await connection.send(pending.frame)

    async def _leave(self, connection: ClientConnection) -> None:
        way = self._rng.choice(["close", "reset", "truncate"])
        self._counts[f"left by {way}"] += 1
        if way == "close":
            await connection.close()
            return
        if way == "truncate":
            connection.transport.write(b"\x81\xfe\x01")  # the beginning of a frame
        reset(connection)

    # Reading

    def _receive(self, message: GatewayMessage) -> None:
        if message.seq is not None:
            self._note(message.seq, message.id, principal(message.sender), message.payload)
        elif message.type == "ack":
            self._on_ack(message)
        elif message.type == "session_info" and message.reply_to == "join":
            self._on_joined(read(message, SessionInfo))
        elif message.type == "error":
            self._on_error(message)
        elif message.type == "going_away":
            self._counts["going_away"] += 1
        self._progress.set()

    def _note(self, seq: int, id: str, sender: str, payload: msgspec.Raw | str) -> None:
        self._counts["received"] += 1
        epoch = self.cursor.epoch if self.cursor is not None else ""
        self.cursor = Cursor(epoch, seq)
        self._recorder.add(
            Recv(
                proc=self.plan.name,
                session=self.plan.session,
                att=self._attachment,
                epoch=epoch,
                seq=seq,
                id=id,
                principal=sender,
                sha=payload if isinstance(payload, str) else content_sha(bytes(payload)),
            )
        )

    def _on_ack(self, message: GatewayMessage) -> None:
        ack = read(message, AckPayload)
        id = message.reply_to or ""
        pending = self._outbox.pop(id, None)
        if pending is None or ack.seq is None or ack.epoch is None:
            self._counts["strange acks"] += 1
            return
        self._counts["acked"] += 1
        self._counts["duplicates"] += bool(ack.duplicate)
        self._recorder.add(
            Ack(
                proc=self.plan.name,
                session=self.plan.session,
                id=id,
                epoch=ack.epoch,
                seq=ack.seq,
            )
        )
        self._acked.append((id, pending))
        if not ack.duplicate:
            self._note(ack.seq, id, self._principal, pending.sha)

    def _on_joined(self, info: SessionInfo) -> None:
        assert info.epoch is not None
        assert info.next is not None
        mode: Any = info.recovery
        self._counts[f"joins {mode}"] += 1
        if mode == "reset":
            self._outbox.clear()  # nobody can say any more what became of them
        self._attachment = f"{self.plan.name}/{self._connections}"
        self.cursor = Cursor(info.epoch, info.next - 1)
        self._recorder.add(
            Attach(
                proc=self.plan.name,
                session=self.plan.session,
                att=self._attachment,
                mode=mode,
                epoch=info.epoch,
                start=info.next,
            )
        )
        self.attached.set()

    def _on_error(self, message: GatewayMessage) -> None:
        code = message.data()["code"]
        self._counts[f"error {code}"] += 1
        id = message.reply_to or ""
        pending = self._outbox.pop(id, None)
        if pending is None:
            self._counts["strange errors"] += 1
        elif pending.sends > 1:
            # An earlier try may have been stored: only an answer to a later one can tell.
            self._refused[id] = pending
        else:
            self._recorder.add(
                Nack(proc=self.plan.name, session=self.plan.session, id=id, code=code)
            )
