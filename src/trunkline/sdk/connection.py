"""
One logical connection to a gateway, over as many sockets as it takes.

`Connection` opens the socket, signs in, reads and writes, and comes back after
a loss as the close code and the backoff say. What goes over it is its
listener's business: the listener is called in the order of the frames, and
again at each new beginning and end.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable
from enum import StrEnum
from typing import Protocol

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from trunkline.errors import ErrorCode
from trunkline.messages import PROTOCOL_VERSION, create_message, encode
from trunkline.payloads import Auth, AuthSuccess, Connect, GoingAway, HelloOk, SessionInfo, read
from trunkline.sdk.errors import ConnectionLost, RequestFailed, SignInFailed, refusal
from trunkline.sdk.messages import Message, decode
from trunkline.sdk.policy import Backoff, Verdict, after_close, after_refusal, after_sign_in
from trunkline.sdk.sockets import HANDSHAKE_TIMEOUT, Dial, SignIn, Socket

log = logging.getLogger("trunkline.sdk")

STABLE = 5.0
"""Seconds after which a connection was good, and the backoff begins anew."""

HIGH_WATER = 256 * 1024
"""Bytes waiting to be written above which `Connection.drain` waits."""


class State(StrEnum):
    """What a connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class Listener(Protocol):
    """What a connection tells its owner; nothing here may raise."""

    def on_ready(self) -> None:
        """Signed in; what is posted now goes first."""

    def on_message(self, message: Message) -> Awaitable[None] | None:
        """A frame came; the next is not read before what is returned is done."""

    def on_lost(self, error: Exception) -> None:
        """The socket is gone; another may come."""

    def on_state(self, state: State) -> None:
        """The state has changed."""


class Connection:
    """
    A connection that comes back.

    Args:
        sign_in: Where to connect, and as whom.
        listener: Who is told.
        open_timeout: Seconds to keep trying for the first connection;
            0 tries once, infinity for ever.
        dial: Opens a socket.
    """

    def __init__(
        self, sign_in: SignIn, listener: Listener, open_timeout: float, dial: Dial
    ) -> None:
        self._sign_in = sign_in
        self._listener = listener
        self._open_timeout = open_timeout
        self._dial = dial
        self._socket: Socket | None = None
        self._out: deque[bytes] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._closing = False
        self._going_away: float | None = None
        self.state = State.CONNECTING
        self.hello: HelloOk | None = None
        self.user_id = ""
        """Who one is, as far as the gateway has said."""
        self.max_message_size = 1024 * 1024
        """Bytes; a larger message would end the connection."""
        self.limits: dict[str, int | float] = {}
        """What the gateway has said of its limits, in wire spelling."""

    @property
    def client_id(self) -> str:
        """The gateway's name for the present socket; empty before the first."""
        return "" if self.hello is None else self.hello.client_id

    @property
    def connected(self) -> bool:
        """Whether frames can be posted."""
        return self._socket is not None

    # Writing

    def post(self, frame: bytes) -> None:
        """Queue a frame, behind those before it; without a socket it is dropped."""
        if self._socket is None:
            return
        self._out.append(frame)
        self._waiting += len(frame)
        self._wake.set()

    async def drain(self) -> None:
        """Wait while much is queued; returns at once without a socket."""
        while self._waiting > HIGH_WATER:
            self._drained.clear()
            await self._drained.wait()

    async def flush(self) -> None:
        """Wait until all is written; returns at once without a socket."""
        while self._waiting:
            self._drained.clear()
            await self._drained.wait()

    async def _write(self, socket: Socket) -> None:
        while True:
            while self._out:
                frame = self._out.popleft()
                await socket.send(frame)
                self._waiting -= len(frame)
                self._drained.set()
            self._wake.clear()
            await self._wake.wait()

    # The life of the connection

    async def run(self) -> None:
        """
        Stay connected until `close`, or until it makes no sense any more.

        Raises:
            TrunklineError: Why there will be no connection.
        """
        self._listener.on_state(self.state)
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        give_up = loop.time() + self._open_timeout
        ever = False
        while True:
            began = loop.time()
            verdict = await self._live()
            if self._closing:
                return
            ever = ever or self.hello is not None
            wait = self._wait(verdict, backoff, good=loop.time() - began > STABLE)
            if not verdict.again or (not ever and loop.time() + wait >= give_up):
                raise verdict.error
            log.info("%s; trying again in %.1f s", verdict.error, wait)
            self._set_state(State.RECONNECTING if ever else State.CONNECTING)
            await asyncio.sleep(wait)

    def _wait(self, verdict: Verdict, backoff: Backoff, *, good: bool) -> float:
        if good:
            backoff.reset()
        wait = backoff.next()
        return wait if verdict.after is None else verdict.after

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._listener.on_state(state)

    async def close(self) -> None:
        """Write what is queued, for at most a second, and close with 1000."""
        self._closing = True
        socket = self._socket
        if socket is None:
            return
        try:
            async with asyncio.timeout(1):
                await self.flush()
        except TimeoutError:
            log.warning("%d bytes were not written", self._waiting)
        await socket.close()

    async def _live(self) -> Verdict:
        """Open a socket, use it until it ends, and judge the end."""
        try:
            socket = await self._dial(self._sign_in)
        except InvalidStatus as error:
            response = error.response
            return after_refusal(response.status_code, response.headers.get("Retry-After"))
        except ssl.SSLCertVerificationError as error:
            return Verdict(ConnectionLost(f"the gateway's certificate: {error}"), False)
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            return Verdict(ConnectionLost(f"no connection: {error or 'timed out'}"), True)
        try:
            return await self._use(socket)
        finally:
            socket.abort()

    async def _use(self, socket: Socket) -> Verdict:
        self._going_away = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT) as limit:
                hello = await self._greet(socket, limit)
            await self._talk(socket, hello)
        except RequestFailed as error:
            return after_sign_in(error)
        except ConnectionLost as error:
            return Verdict(error, False)
        except TimeoutError:
            return Verdict(ConnectionLost("the gateway fell silent"), True)
        except ConnectionClosed as error:
            # Our own close frame names what the gateway did wrong, if it sent none.
            end = error.rcvd or error.sent
            code = end.code if end else 1006
            return after_close(code, end.reason if end else "", self._going_away)
        raise AssertionError("unreachable: the reader ends with an exception")

    async def _greet(self, socket: Socket, limit: asyncio.Timeout) -> HelloOk:
        welcome = await _next(socket)
        if welcome.type == "error":
            raise refusal(welcome)
        if welcome.type != "session_info":
            raise ConnectionLost("the other side is no Trunkline gateway")
        info = read(welcome, SessionInfo)
        if info.limits:
            self.limits = info.limits
            self.max_message_size = int(info.limits.get("maxMessageSize", self.max_message_size))
        if info.auth_required and not self._by_key:
            await socket.send(self._auth())
        await socket.send(self._connect(info.challenge_nonce))
        while True:
            message = await _next(socket)
            if message.type == "hello_ok":
                hello = read(message, HelloOk)
                if not hello.auth_required:
                    return hello
                self._wait_for_approval(hello)
                limit.reschedule(None)  # the gateway says when it is over
            elif message.type in ("error", "auth_error"):
                raise refusal(message)
            elif message.type == "auth_success":
                self.user_id = read(message, AuthSuccess).user_id
            elif message.type == "device_approved" and limit.when() is None:
                await socket.send(self._connect(None))

    @property
    def _by_key(self) -> bool:
        """Whether the key is all that there is to sign in with."""
        me = self._sign_in
        return me.device_key is not None and me.token is None and me.password is None

    def _wait_for_approval(self, hello: HelloOk) -> None:
        key = self._sign_in.device_key
        if hello.pairing is None or key is None:
            raise SignInFailed(ErrorCode.AUTH_REQUIRED, "the gateway asks for a credential")
        log.warning(
            "this device waits for approval: request %s, fingerprint %s",
            *(hello.pairing.request_id, key.fingerprint),
        )

    def _auth(self) -> bytes:
        me = self._sign_in
        if me.token is None and me.password is None:
            raise SignInFailed(ErrorCode.AUTH_REQUIRED, "the gateway asks for a credential")
        proof = Auth(token=me.token, password=me.password, user=me.user)
        return encode(create_message("auth", proof))

    def _connect(self, nonce: str | None) -> bytes:
        me, key = self._sign_in, self._sign_in.device_key
        hello = Connect(
            device_id=me.device_id,
            device_name=me.device_name,
            role=me.role,
            protocol_version=PROTOCOL_VERSION,
        )
        if key is not None and nonce is not None:
            hello.public_key = key.public_key
            hello.challenge_response = key.sign(nonce, me.device_id, me.role)
        return encode(create_message("connect", hello))

    async def _talk(self, socket: Socket, hello: HelloOk) -> None:
        self.hello = hello
        self._socket = socket
        self._out.clear()
        self._waiting = 0
        writer = asyncio.create_task(self._write(socket))
        try:
            self._listener.on_ready()
            self._set_state(State.CONNECTED)
            await self._read(socket)
        finally:
            self._socket = None
            self._out.clear()
            self._waiting = 0
            self._drained.set()
            # Before anything is awaited: nobody may see a connection that is
            # neither there nor known to be lost.
            self._listener.on_lost(ConnectionLost("the connection was interrupted"))
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, socket: Socket) -> None:
        while True:
            frame = await socket.recv()
            try:
                message = decode(frame)
                if message.type == "going_away":
                    self._going_away = read(message, GoingAway).reconnect_in_ms / 1000
                waiting = self._listener.on_message(message)
            except msgspec.MsgspecError as error:
                log.warning("a frame of the gateway makes no sense: %s", error)
                continue
            if waiting is not None:
                await waiting


async def _next(socket: Socket) -> Message:
    try:
        return decode(await socket.recv())
    except msgspec.MsgspecError:
        raise ConnectionLost("the other side is no Trunkline gateway") from None
