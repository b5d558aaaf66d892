"""
The gateway, as a client sees it.

    async with trunkline.connect("ws://127.0.0.1:18789", token=token) as gateway:
        session = await gateway.join("lobby")
        async for event in session.chat("hi"):
            print(event)
"""

from __future__ import annotations

import asyncio
import os
import ssl as ssl_module
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, TypedDict, Unpack
from weakref import WeakValueDictionary

import msgspec
from msgspec import Raw

from trunkline.messages import Role, create_message, encode
from trunkline.payloads import (
    Ack,
    AgentEntry,
    AgentList,
    AgentListing,
    AgentType,
    Broadcast,
    Cursor,
    HelloOk,
    RouteAnswer,
    RouteCandidate,
    RouteExplain,
    RouteExplained,
    RoutePolicy,
    RouteRequest,
    SessionCreate,
    SessionEntry,
    SessionInfo,
    SessionList,
    SessionListing,
    StateSnapshot,
    Visibility,
    read,
)
from trunkline.sdk.connection import State
from trunkline.sdk.errors import (
    ConnectionLost,
    OutcomeUnknown,
    RequestFailed,
    TimedOut,
    refusal,
    route_refusal,
)
from trunkline.sdk.keys import DeviceKey
from trunkline.sdk.mailbox import Mailbox
from trunkline.sdk.messages import Message
from trunkline.sdk.policy import endpoint
from trunkline.sdk.session import Session
from trunkline.sdk.sockets import Dial, SignIn, dial
from trunkline.sdk.state import ClientState, StateFile
from trunkline.sdk.wire import Wire

ANSWER_GRACE = 5.0
"""Seconds past a request's deadline in which the gateway has to say that it passed."""


class Options(TypedDict, total=False):
    """How to connect; each may be left out."""

    token: str | None
    """A bearer token. It travels in the upgrade's header, encrypted or to this machine only."""
    password: str | None
    """The user's password; without `user` the gateway's own, where it asks for one."""
    user: str | None
    """Who signs in with the password."""
    role: Role | None
    """Which of the credential's roles to take; None: the first granted."""
    device_id: str | None
    """A name for this client, stable across restarts; None: that of the key, of the state file, or a
    random one."""
    device_name: str | None
    """Its name for people."""
    device_key: DeviceKey | str | os.PathLike[str] | None
    """The device's key, or the file that holds it: signs in a paired device without a token. A gateway
    that does not know it yet is waited for, up to ten minutes, until somebody approves the device."""
    state_file: str | os.PathLike[str] | None
    """Where to keep what a restarted client needs to continue; one file per client."""
    open_timeout: float
    """Seconds to keep trying for the first connection, 10 by default; 0 tries once."""
    request_timeout: float
    """Seconds that a request waits for its answer, reconnects included; 30 by default."""
    ssl: ssl_module.SSLContext | None
    """For ``wss://`` with a certificate of one's own."""
    dial: Dial | None
    """What opens sockets; None: a WebSocket to the address, on the calling loop."""
    insecure: bool
    """Send the credential unencrypted to another machine all the same."""


class GatewayClient:
    """
    A connection to a gateway that comes back by itself.

    Use it as ``async with``, or call `open` and `close`. All coroutines wait
    for the connection while it is away, and raise `TrunklineError` once it is
    gone for good.

    Args:
        url: ``ws://``, ``wss://``, ``http://`` or ``https://``; without a path, ``/ws`` is meant.
        options: See `Options`.

    Raises:
        ValueError: The address is none, or holds a credential.
        InsecureConnection: A credential would travel unencrypted to another machine.
        TrunklineError: The state file is damaged.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        token, password = options.get("token"), options.get("password")
        path = options.get("state_file")
        file = None if path is None else StateFile(path)
        state = ClientState() if file is None else file.load()
        key = _device_key(options.get("device_key"))
        of_key = state.device_id if key is None else key.device_id
        state.device_id = options.get("device_id") or of_key
        # An approval answers with a token.
        secret = token is not None or password is not None or key is not None
        sign_in = SignIn(
            url=endpoint(url, secret=secret, insecure=options.get("insecure", False)),
            device_id=state.device_id,
            token=token,
            password=password,
            user=options.get("user"),
            device_name=options.get("device_name"),
            role=options.get("role"),
            device_key=key,
            ssl=options.get("ssl"),
        )
        self.wire = Wire(
            sign_in,
            dial=options.get("dial") or dial,
            open_timeout=options.get("open_timeout", 10.0),
            request_timeout=options.get("request_timeout", 30.0),
            state=state,
            file=file,
        )
        self._joins: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """
        Connect and sign in.

        Raises:
            SignInFailed: The credential is missing or wrong, or may not take the role.
            ConnectionLost: There is no gateway, or it refuses.
        """
        await self.wire.open()

    async def close(self) -> None:
        """
        Write what is queued, then close; a second call does nothing.

        Messages without an acknowledgement raise `OutcomeUnknown` where they are awaited.
        """
        await self.wire.close()

    async def __aenter__(self) -> GatewayClient:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            for session in self.wire.sessions.values():
                assert isinstance(session, Session)
                session.taken()
        await self.close()

    # The connection

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return State.CLOSED if self.wire.error is not None else self.wire.connection.state

    @property
    def client_id(self) -> str:
        """The gateway's name for the present connection."""
        return self.wire.connection.client_id

    @property
    def device_id(self) -> str:
        """This client's own name, the same on every connection."""
        return self.wire.device_id

    @property
    def hello(self) -> HelloOk:
        """What the gateway said of itself last: version, features, limits, who is there."""
        hello = self.wire.connection.hello
        if hello is None:
            raise RuntimeError("the client has not been opened")
        return hello

    def on_state(self, callback: Callable[[State], None]) -> Callable[[], None]:
        """Call back at every change of `state`; returns how to stop that."""
        return _add(self.wire.state_listeners, callback)

    def on(self, type: str, callback: Callable[[Message], None]) -> Callable[[], None]:
        """Call back for every message of `type` that is no answer; returns how to stop that."""
        return _add(self.wire.listeners.setdefault(type, []), callback)

    async def closed(self) -> None:
        """Wait until the connection is over, and raise why."""
        await self.wire.wait_over()

    async def ping(self) -> float:
        """Return the seconds that the gateway takes to answer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.wire.call("ping")
        return loop.time() - began

    # Sessions

    async def join(
        self,
        session_id: str,
        *,
        since: Cursor | None = None,
        tail: int | None = None,
        create: bool = True,
    ) -> Session:
        """
        Join a session; one that is joined already is returned as it is, after a reconnect if need be.

        Args:
            session_id: The session.
            since: Replay what came after this place; None: after the place in
                the state file, if there is one.
            tail: Without such a place: replay the last so many messages.
            create: Make the session if there is none, then and whenever the
                gateway has forgotten it.

        Raises:
            RequestFailed: There is no such session for this user, or it is full.
        """
        # Whoever else joins it meanwhile gets the same one.
        lock = self._joins.setdefault(session_id, asyncio.Lock())
        async with lock:
            known = self._session(session_id)
            if known is not None:
                await known.ready()
                return known
            return await self._join(session_id, since, tail, create)

    async def _join(
        self, session_id: str, since: Cursor | None, tail: int | None, create: bool
    ) -> Session:
        position = since or self.wire.stored_position(session_id)
        session = Session(self.wire, session_id, position=position, create=create)
        self.wire.sessions[session_id] = session
        try:
            await session.join(tail)
        except BaseException:
            if self.wire.sessions.get(session_id) is session:
                del self.wire.sessions[session_id]
            raise
        return session

    async def create(
        self,
        session_id: str | None = None,
        *,
        name: str | None = None,
        agent_id: str | None = None,
        agent_type: AgentType | None = None,
        capability: str | None = None,
        metadata: dict[str, Any] | None = None,
        visibility: Visibility = "shared",
    ) -> Session:
        """
        Make a session, own it and be in it.

        Args:
            session_id: Its id; None: one that nobody can guess.
            name: Its name for people.
            agent_id: Assign this agent to it.
            agent_type: Assign an online agent of this type.
            capability: Assign an online agent that can do this.
            metadata: Anything; agents see it.
            visibility: Who may join: who knows the id, or who is invited.

        Raises:
            RequestFailed: The id is in use, no agent fits, or a quota is used up.
        """
        ask = SessionCreate(
            session_id=session_id,
            name=name,
            agent_id=agent_id,
            agent_type=agent_type,
            capability=capability,
            metadata=metadata,
            visibility=visibility,
        )
        made: list[Session] = []

        def enter(message: Message) -> None:
            info = read(message, SessionInfo)
            made.append(self.enter(info))

        # Made twice, a session without an id would be two.
        await self.wire.call("session_create", ask, repeat=session_id is not None, then=enter)
        return made[0]

    def enter(self, info: SessionInfo) -> Session:
        """Take part in a session that the gateway has put this client into."""
        session = self._session(info.session_id)
        if session is None:
            session = Session(self.wire, info.session_id)
            self.wire.sessions[session.id] = session
        session.enter(info)
        return session

    def _session(self, session_id: str) -> Session | None:
        session = self.wire.sessions.get(session_id)
        assert session is None or isinstance(session, Session)
        return session

    async def sessions(self) -> list[SessionEntry]:
        """Return all sessions that one owns, is in or is invited to; with `control`, all."""
        found: list[SessionEntry] = []
        more = True
        while more:
            after = found[-1].session_id if found else None
            reply = await self.wire.call("session_list", SessionList(after=after))
            page = read(reply, SessionListing)
            found += page.sessions
            more = page.more
        return found

    # Agents

    async def agents(
        self,
        *,
        capability: str | None = None,
        type: AgentType | None = None,
        status: Literal["online", "busy", "offline"] | None = None,
    ) -> list[AgentEntry]:
        """Return the agents that fit all that is given."""
        ask = AgentList(capability=capability, agent_type=type, status=status)
        return read(await self.wire.call("agent_list", ask), AgentListing).agents

    async def explain(
        self,
        *,
        capability: str | None = None,
        agent_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        policy: RoutePolicy = "least_busy",
    ) -> list[RouteCandidate]:
        """
        Return whom such a request would reach and why, the chosen one first; needs `control`.

        Raises:
            RequestFailed: Neither a capability nor an agent is named, or the role is another.
        """
        ask = RouteExplain(
            capability=capability,
            agent_id=agent_id,
            labels=None if labels is None else dict(labels),
            policy=policy,
        )
        return read(await self.wire.call("route_explain", ask), RouteExplained).candidates

    async def sync_state(self) -> StateSnapshot:
        """Return the sessions, agents and presence that one may see."""
        return read(await self.wire.call("sync_state"), StateSnapshot)

    async def broadcast(
        self,
        message: Any,
        *,
        to: Literal["clients", "agents", "session"] = "clients",
        capability: str | None = None,
        session_id: str | None = None,
    ) -> int:
        """
        Tell many connections at once; nothing is stored.

        Returns:
            To how many connections it went.
        """
        ask = Broadcast(
            message=Raw(encode(message)), to=to, capability=capability, session_id=session_id
        )
        reply = await self.wire.call("broadcast", ask, repeat=False)
        return read(reply, Ack).delivered or 0

    async def request(
        self,
        *,
        capability: str | None = None,
        agent_id: str | None = None,
        method: str | None = None,
        params: Any = None,
        timeout: float = 60.0,
        idempotent: bool = False,
        labels: Mapping[str, str] | None = None,
        policy: RoutePolicy = "least_busy",
        parent_id: str | None = None,
        session_id: str | None = None,
    ) -> Any:
        """
        Ask an agent and return its result.

        Args:
            capability: What the agent must be able to do, such as a tool's name; or
            agent_id: the agent itself.
            method: The tool, where the capability does not say so.
            params: The tool's arguments.
            timeout: Seconds, at most an hour.
            idempotent: The request may be carried out twice: as long as nothing
                has been answered it may be given to another agent, and is
                repeated after a lost connection.
            labels: Labels that the agent must have.
            policy: Which of several agents is asked: the one with the least to do, or each in turn.
            parent_id: The run or request that one is serving with this.
            session_id: The session of that run.

        Raises:
            RequestFailed: No agent fits, it is busy, or it says no.
            OutcomeUnknown: The agent or the connection was lost on the way.
            TimedOut: No answer in time, and the agent was not asked.
        """
        ask = RouteRequest(
            capability=capability,
            agent_id=agent_id,
            method=method,
            params=Raw(encode(params)),
            timeout_ms=_milliseconds(timeout),
            idempotent=idempotent,
            labels=None if labels is None else dict(labels),
            policy=policy,
            parent_id=parent_id,
        )
        pieces = [piece async for piece in self._responses(ask, session_id)]
        return pieces[-1] if pieces else None

    async def request_stream(
        self,
        *,
        capability: str | None = None,
        agent_id: str | None = None,
        method: str | None = None,
        params: Any = None,
        timeout: float = 60.0,
        idempotent: bool = False,
        labels: Mapping[str, str] | None = None,
        policy: RoutePolicy = "least_busy",
        parent_id: str | None = None,
        session_id: str | None = None,
    ) -> AsyncIterator[Any]:
        """
        Ask an agent and yield its answer piece by piece, as `request` otherwise.

        A tool that does not stream yields its result. Leaving the loop early
        cancels the request.
        """
        ask = RouteRequest(
            capability=capability,
            agent_id=agent_id,
            method=method,
            params=Raw(encode(params)),
            timeout_ms=_milliseconds(timeout),
            stream=True,
            idempotent=idempotent,
            labels=None if labels is None else dict(labels),
            policy=policy,
            parent_id=parent_id,
        )
        async with aclosing(self._responses(ask, session_id)) as pieces:
            async for piece in pieces:
                yield piece

    async def _responses(
        self, ask: RouteRequest, session_id: str | None
    ) -> AsyncGenerator[Any, None]:
        deadline = asyncio.get_running_loop().time() + ask.timeout_ms / 1000
        answered = False
        while True:
            await self._ready_until(deadline)
            try:
                async with aclosing(self._attempt(ask, session_id, deadline)) as pieces:
                    async for piece in pieces:
                        answered = True
                        yield piece
                return
            except ConnectionLost as error:
                if answered or not ask.idempotent:
                    text = f"{error}; the request may have been carried out"
                    raise OutcomeUnknown(text) from None

    async def _ready_until(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.wire.ready()
        except TimeoutError:
            raise TimedOut("no connection in time") from None

    async def _attempt(
        self, ask: RouteRequest, session_id: str | None, deadline: float
    ) -> AsyncGenerator[Any, None]:
        """Ask once; raises `ConnectionLost` where the answer was lost with the connection."""
        left = deadline - asyncio.get_running_loop().time()
        ask = msgspec.structs.replace(ask, timeout_ms=max(1, round(left * 1000)))
        message = create_message("route_request", ask, session_id)
        box = self.wire.open_stream(message)
        ended = False
        try:
            while not ended:
                response = _response(await _take(box, deadline + ANSWER_GRACE))
                ended = response.done
                for part in (response.chunk, response.result):
                    if bytes(part) != b"null":
                        yield msgspec.json.decode(part)
        except RequestFailed as error:
            ended = True
            raise route_refusal(error) from None
        finally:
            self.wire.close_stream(message.id)
            if not ended:
                self.wire.cancel_request(message.id)


def connect(url: str, **options: Unpack[Options]) -> GatewayClient:
    """
    Return a client for the gateway at `url`, to be opened with ``async with``.

    Args and errors are those of `GatewayClient`.
    """
    return GatewayClient(url, **options)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


async def _take(box: Mailbox[Message], deadline: float) -> Message:
    try:
        async with asyncio.timeout_at(deadline):
            return await box.get()
    except TimeoutError:
        raise RequestFailed("TIMEOUT", "no answer in time", details={"delivered": True}) from None


def _response(message: Message) -> RouteAnswer:
    if message.type == "error":
        raise refusal(message)
    response = read(message, RouteAnswer)
    if not response.ok:
        error = response.error
        raise RequestFailed(
            error.code if error else "HANDLER_ERROR", error.message if error else ""
        )
    return response


def _device_key(given: DeviceKey | str | os.PathLike[str] | None) -> DeviceKey | None:
    return given if given is None or isinstance(given, DeviceKey) else DeviceKey.load(given)


def _add(callbacks: list[Any], callback: Callable[..., None]) -> Callable[[], None]:
    callbacks.append(callback)

    def stop() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return stop
