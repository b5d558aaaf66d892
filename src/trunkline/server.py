"""
The gateway's core: the parts put together, without a socket.

`GatewayServer` is driven by a transport's side: `on_connect` takes a pipe in,
`on_message` takes one frame, `on_disconnect` lets the client go. Everything it
depends on is an argument of the constructor, so two gateways live in one test.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, overload

import structlog

from trunkline.access import Access
from trunkline.agents import AgentRegistry
from trunkline.approvals import Approvals
from trunkline.assignments import Assignments
from trunkline.auth import LOCAL, Authenticator, Credential, Door, Granted, SharedSecret
from trunkline.authdb import AuthDatabase
from trunkline.clients import Client, Clients, Identity, Peer, Phase
from trunkline.codes import SignInCodes
from trunkline.config import (
    DEFAULT_GATEWAY_CONFIG,
    GatewayConfig,
    JwtConfig,
    bind_address,
    check_config,
)
from trunkline.credentials import Credentials
from trunkline.errors import CloseCode, ConfigError, Disconnect
from trunkline.events import AuditEntry, EventName, Events, L
from trunkline.fanout import Pump
from trunkline.greeting import Greeting
from trunkline.handlers import HandlerFunction, Handlers, close_with
from trunkline.history import History
from trunkline.history.memory import MemoryHistory
from trunkline.ids import id_counter
from trunkline.logs import configure_unless_configured
from trunkline.measures import Measures
from trunkline.messages import (
    GatewayMessage,
    Role,
    create_message,
    encode,
)
from trunkline.pairing import Pairing, compose_pairing
from trunkline.payloads import (
    DURABLE_TYPES,
    GoingAway,
    Payload,
)
from trunkline.posts import GatewayPost
from trunkline.presence import PresenceBoard
from trunkline.records import Records
from trunkline.records.memory import MemoryRecords
from trunkline.routing import Router
from trunkline.runs import Runs
from trunkline.session_handlers import SessionHandlers
from trunkline.sessions import SessionManager
from trunkline.transport import Transport
from trunkline.users import Users

F = TypeVar("F", bound=HandlerFunction)

log = structlog.get_logger(__name__)


class GatewayServer:
    """
    The transport-agnostic gateway.

    Args:
        config: The configuration; the defaults if absent.
        authenticator: Knows credentials; absent: the token or password of the
            configuration. Overriding `validate_token` is another way.
        history: Where the sessions' logs live; absent: in memory.
        records: Where small facts live; absent: in memory.
        authdb: Where stored credentials and users live; absent: there are none.
            Whoever opened it closes it.
        failpoint: See `Pump`.
        clock: Seconds, from any start; grace times, heads, deadlines and silent
            runs go by it.

    Raises:
        ConfigError: The configuration is unsafe, or sign-in is on and there
            is nothing to sign in with.
    """

    def __init__(
        self,
        config: GatewayConfig | None = None,
        *,
        authenticator: Authenticator | None = None,
        history: History | None = None,
        records: Records | None = None,
        authdb: AuthDatabase | None = None,
        failpoint: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = check_config(config or DEFAULT_GATEWAY_CONFIG)
        self.events = Events()
        self.clients = Clients()
        self.access = Access(authdb, self.clients, self.events, self._ended)
        self._given = authenticator
        self._authenticator = self._choose_authenticator(self.config)
        kept = self.config.history
        self.history = history or MemoryHistory(
            max_messages=kept.max_messages, max_age=kept.max_age, max_bytes=kept.max_bytes
        )
        self.records = records or MemoryRecords()
        self.handlers = Handlers(self.config.limits, self.events)
        self._clock = clock
        self.measures = Measures()
        self._pump = Pump(self.history, clock, failpoint, self.measures)
        self._next_client_id = id_counter("c_")
        self._started_at: float | None = None
        self._draining = False
        self._chores: list[asyncio.Task[None]] = []
        self._compose()
        self.setup_default_handlers()

    def _choose_authenticator(self, config: GatewayConfig) -> Authenticator:
        auth, given, jwts = config.auth, self._given, self._jwt_verifier(config.auth.jwt)
        secret = SharedSecret(auth)
        own = given is not None or type(self).validate_token is not GatewayServer.validate_token
        others = own or self.authdb is not None or jwts is not None
        if auth.required and not secret.usable and not others:
            raise ConfigError(
                f"sign-in is on, but there is no {auth.mode}: set auth.{auth.mode} (or "
                f"auth.{auth.mode}_file), pass an authenticator, or override validate_token"
            )
        owner = given or secret
        chain = self.access.chain(owner, jwts)
        if auth.token and chain.choose(Credential(token=auth.token)) is not owner:
            raise ConfigError(
                "auth.token has the form of a token that others judge: choose another"
            )
        return chain

    def _jwt_verifier(self, config: JwtConfig) -> Authenticator | None:
        """Return what knows the tokens of an identity provider; the core fetches no keys."""
        if config.enabled:
            raise ConfigError("auth.jwt needs a WebSocketGateway, or a JwtVerifier passed to this")
        return None

    def _compose(self) -> None:
        config, clients, events = self.config, self.clients, self.events
        self.sessions = SessionManager(
            config, clients, events, self.history, self.records, self._pump, self._clock
        )
        self.agents = AgentRegistry(clients, events, self.records, config.limits, self._clock)
        self.assignments = Assignments(self.sessions, self.agents, events)
        self.runs = Runs(self.sessions, self.assignments, config.sessions, self._clock)
        self.agents.lost.append(self.runs.agent_lost)
        self.agents.open_runs = self.runs.open_of
        self.approvals = Approvals(self.sessions, self.runs)
        self.router = Router(self.agents, self.sessions, clients, config.limits, self._clock)
        self.router.find_run = self.runs.of_agent
        self.runs.ended.append(self.router.run_ended)
        self.presence = PresenceBoard(self.sessions, events, self._clock)
        self._session_handlers = SessionHandlers(self.sessions, self.assignments, config)
        self.greeting = Greeting(
            config,
            clients,
            self.presence,
            self._session_handlers,
            self.agents,
            uptime=lambda: self.uptime,
            draining=lambda: self._draining,
        )
        self.door = Door(
            config.auth,
            config.limits.connections_per_user,
            self._verify,
            self.access.holds,
            self.greeting.hello,
            events,
        )
        self.pairing: Pairing | None
        self.codes: SignInCodes | None
        self.pairing, self.codes = compose_pairing(config, self.access, self.door, events)
        events.on("agent:registered", self._agent_changed)
        events.on("agent:unregistered", self._agent_changed)

    def reconfigure(self, config: GatewayConfig) -> None:
        """
        Go by another configuration, as far as it can change while the gateway runs.

        Raises:
            ConfigError: It is unsafe or contradicts itself; nothing has changed.
        """
        check_config(config)
        if config.auth.jwt != self.config.auth.jwt:  # or else the keys that it knows are kept
            self._authenticator = self._choose_authenticator(config)
        self.config = config
        for part in (
            *(self.handlers, self.sessions, self._session_handlers, self.agents),
            *(self.runs, self.router, self.greeting, self.door),
        ):
            part.reconfigure(config)
        if self.pairing is not None:
            self.pairing.reconfigure(config)

    def setup_default_handlers(self) -> None:
        """Add the handlers of all built-in message types."""
        for feature in (
            self.greeting,
            self.door,
            self._session_handlers,
            self.runs,
            self.approvals,
            self.presence,
            self.agents,
            self.router,
        ):
            feature.install(self.handlers)

    # Extension

    @overload
    def on(self, name: EventName) -> Callable[[L], L]: ...

    @overload
    def on(self, name: EventName, listener: Callable[..., object]) -> Callable[[], None]: ...

    def on(self, name: EventName, listener: Callable[..., object] | None = None) -> Any:
        """Listen to an event; see `trunkline.events.EVENTS`. Without a listener a decorator."""
        return self.events.on(name) if listener is None else self.events.on(name, listener)

    def handler(
        self,
        type: str,
        payload: type[Payload] | None = None,
        *,
        roles: Iterable[Role] | None = None,
        concurrent: bool = False,
    ) -> Callable[[F], F]:
        """Register the decorated function for a message type; see `register_handler`."""

        def decorate(function: F) -> F:
            self.register_handler(type, function, payload, roles=roles, concurrent=concurrent)
            return function

        return decorate

    def register_handler(
        self,
        type: str,
        function: HandlerFunction,
        payload: type[Payload] | None = None,
        *,
        roles: Iterable[Role] | None = None,
        concurrent: bool = False,
    ) -> None:
        """
        Handle a message type; for a built-in type, instead of its own handler.

        Args:
            function: ``fn(client, message)``, with a third argument if `payload`
                is given. It returns a payload to reply or None, and raises
                `GatewayError` to fail the request or `Disconnect` to close.
            payload: What the message's payload is read as.
            roles: Who may send a custom type; absent: all but observers.
            concurrent: Whether a coroutine function runs beside the client's
                queue rather than in it.
        """
        self.handlers.register(type, function, payload, roles=roles, concurrent=concurrent)

    def unregister_handler(self, type: str) -> None:
        """Stop handling a type; a built-in handler comes back in its place."""
        self.handlers.unregister(type)

    def default_handler(self, type: str) -> HandlerFunction | None:
        """Return the built-in handler of a type."""
        return self.handlers.default(type)

    def validate_token(self, token: str) -> Granted | Awaitable[Granted]:
        """
        Return whose a token is; override to bring your own.

        True stands for the owner, an `Identity` for anyone else, False or None
        for nobody. May be a coroutine function.
        """
        return self._authenticator.authenticate(Credential(token=token))

    def _verify(self, credential: Credential) -> Granted | Awaitable[Granted]:
        alone = credential.password is None and credential.user is None
        if credential.token is not None and alone and self.config.auth.mode != "password":
            return self.validate_token(credential.token)
        return self._authenticator.authenticate(credential)

    # The transport's side

    def on_connect(
        self,
        transport: Transport,
        peer: Peer | None = None,
        identity: Identity | None = None,
        *,
        passing: bool = False,
    ) -> Client:
        """
        Take a new connection in.

        Args:
            transport: The pipe to the peer.
            peer: Where it comes from.
            identity: Who it is, if its credential has been judged already.
            passing: Whether it is here for one request only; see `Client`.
        """
        client = Client(self._next_client_id(), transport, peer or Peer(), self.measures)
        client.passing = passing
        client.opened_at = client.heard_at = self._clock()
        client.refresh_sender()
        self.clients.add(client)
        if identity is None and not self.config.auth.required:
            identity = LOCAL
        if not passing:
            self.events.emit("client:connect", client)
        if identity is not None:
            try:
                self.door.admit(client, identity)
            except Disconnect as error:
                client.transport.close(error.code, error.reason)
                return client
        if not passing:
            self.greeting.welcome(client)
        return client

    def on_message(self, client: Client, text: str) -> None:
        """Take one frame of a client, in the order in which they came. Never raises."""
        client.heard_at = self._clock()
        self.handlers.receive(client, text)

    def note_life(self, client: Client) -> None:
        """Note that a client is alive, by a sign that is no message, such as a pong."""
        client.heard_at = self._clock()

    def on_disconnect(self, client: Client, code: int = 1006, reason: str = "") -> None:
        """Let a client go; a second call does nothing."""
        if client.phase is Phase.CLOSED:
            return
        client.advance("close")
        self.clients.remove(client)
        self.door.disconnected(client)
        self.router.disconnected(client)
        self.agents.disconnected(client)
        self.sessions.disconnected(client)
        self.on_drained(client)
        if not client.passing:
            self.measures.closes.add(str(int(code)))
            self.events.emit("client:disconnect", client)

    def _ended(self, client: Client, code: int, reason: str) -> None:
        self.on_disconnect(client, code, reason)

    def on_lagging(self, client: Client) -> None:
        """Note that a client's buffer is long: it gets no text chunks until `on_drained`."""
        client.lagging = True

    def on_drained(self, client: Client) -> None:
        """Note that a client has read its buffer empty enough."""
        lagged, client.lagging = client.lagging, False
        wakeup, client.wakeup = client.wakeup, []
        for event in wakeup:
            event.set()
        if lagged and client.phase is Phase.READY:
            self.runs.drained(client)

    # Sending

    def send_to_client(self, client_id: str, message: GatewayMessage) -> bool:
        """Send a message to one client; False if it is not connected."""
        client = self.clients.get(client_id)
        if client is None:
            return False
        client.send(message)
        return True

    def broadcast(
        self, message: GatewayMessage, filter: Callable[[Client], bool] | None = None
    ) -> int:
        """
        Send a message to every signed-in client, or those that `filter` takes.

        Returns:
            How many it was written to.
        """
        frame = encode(message)
        targets = [c for c in self.clients.ready() if filter is None or filter(c)]
        for client in targets:
            client.write(frame)
        return len(targets)

    def broadcast_to_session(
        self, session_id: str, message: GatewayMessage, exclude_client_id: str | None = None
    ) -> int:
        """
        Send a message to a session's members, behind what is queued there.

        A durable type goes through the session's log, as the gateway's own,
        and reaches every member; leaving one out is for ephemeral types only.

        Returns:
            How many members it goes to; 0 for an unknown session.

        Raises:
            ValueError: A durable message cannot leave a member out.
        """
        session = self.sessions.get_session(session_id)
        if session is None:
            return 0
        excluded = self.clients.get(exclude_client_id) if exclude_client_id else None
        message.session_id = session_id
        if message.type in DURABLE_TYPES:
            if excluded is not None:
                raise ValueError("a durable message goes to every member")
            session.feed.submit(GatewayPost(message))
            return len(session.members)
        session.feed.relay(encode(message), excluded)
        return len(session.members) - (excluded in session.members)

    def kick_client(self, client_id: str, reason: str = "kicked", actor: str = "") -> bool:
        """Disconnect a client with code 4004, for `actor`; False if it is not connected."""
        client = self.clients.get(client_id)
        if client is None:
            return False
        detail = {"user": client.user_id}
        entry = AuditEntry(action="client.kick", actor=actor, target=client_id, detail=detail)
        self.events.emit("audit", entry)
        close_with(client, CloseCode.KICKED, reason)
        return True

    # Life

    async def start(self) -> None:
        """Start; a second call does nothing."""
        if self._started_at is not None:
            return
        self._started_at = time.monotonic()
        auth = self.config.auth
        configure_unless_configured(self.config.log, secrets=[auth.token, auth.password])
        await self.history.open()
        await self.records.open()
        await self.sessions.load()
        self._pump.start()
        work = self._tick_forever(), self.access.watch(), self.runs.recover()
        self._chores = [asyncio.create_task(w) for w in (*work, self.measures.lag.watch())]
        self.events.emit("started")

    async def drain(self, timeout: float | None = None) -> None:
        """
        Send everybody away in good order; `stop` does the rest.

        No new connections, runs and requests; messages are taken until each
        connection's close. Clients go first, spread so that they do not all
        come back at once; those that watch a run, and the agents, when the
        runs and requests have ended or the time is up.

        Args:
            timeout: Seconds that it may take; absent: ``drain_timeout``.
        """
        timeout = self.config.drain_timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        self._draining = self.runs.closing = self.router.closing = True
        await self._send_away([c for c in self.clients if not self._at_work(c)], timeout / 2)
        # Two features must be done, and neither knows of the other.
        while (self.runs.count() or len(self.router)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for agents in (False, True):
            rest = [c for c in self.clients if bool(c.agents) is agents]
            await self._send_away(rest, max(0.0, deadline - time.monotonic()))

    def _at_work(self, client: Client) -> bool:
        """Whether a client speaks for agents, waits for one, or watches a run."""
        sessions = map(self.sessions.get_session, client.sessions)
        watching = any(session.runs for session in sessions if session is not None)
        return bool(client.agents or client.requests or watching)

    async def _send_away(self, clients: list[Client], seconds: float) -> None:
        """Send clients away, at most a hundred a second unless that takes too long."""
        random.shuffle(clients)
        pause = min(0.01, seconds / max(1, len(clients)))
        for client in clients:
            wait = random.randint(500, 5_000)
            client.send(create_message("going_away", GoingAway(reconnect_in_ms=wait)))
            close_with(client, CloseCode.GOING_AWAY, "the gateway stops", after=wait / 1000)
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Close every client, finish what is queued, and stop; a second call does nothing."""
        if self._started_at is None:
            return
        self._started_at = None
        self._draining = True
        for client in self.clients:
            close_with(client, CloseCode.GOING_AWAY, "the gateway stops")
            self.on_disconnect(client, CloseCode.GOING_AWAY)
        self.agents.close()
        for chore in self._chores:
            chore.cancel()
        await asyncio.wait(self._chores)
        await self.assignments.stop()
        self.handlers.cancel()
        await self.handlers.drain()
        self.access.close()
        await self._pump.stop()
        self.sessions.unload()
        await self.records.close()
        await self.history.close()
        self._draining = self.runs.closing = self.router.closing = False
        self.events.emit("stopped")

    async def __aenter__(self) -> Any:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def authdb(self) -> AuthDatabase | None:
        """The database of credentials and users, if there is one."""
        return self.access.database

    @property
    def credentials(self) -> Credentials | None:
        """The stored credentials, if there is a database."""
        return self.access.credentials

    @property
    def users(self) -> Users | None:
        """The users with passwords, if there is a database."""
        return self.access.users

    @property
    def ready(self) -> bool:
        """Whether new clients are welcome."""
        return self._started_at is not None and not self._draining

    @property
    def uptime(self) -> float:
        """Seconds since the start; 0 before."""
        return time.monotonic() - self._started_at if self._started_at is not None else 0.0

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.tick()
            except Exception as error:
                log.exception("the sweep failed")
                self.events.emit("error", error)

    async def tick(self) -> None:
        """Do once a second what depends on time: deadlines, grace, heads, silent runs."""
        deadline = self._clock() - self.config.auth.timeout
        for client in self.clients:
            late = client.phase is not Phase.READY and client.opened_at <= deadline
            if late and not (self.pairing is not None and self.pairing.waits(client)):
                close_with(client, CloseCode.NOT_SIGNED_IN, "not signed in in time")
        if self.pairing is not None:
            self.pairing.tick()
        self.access.check_expiries()
        await self.agents.tick()
        self.runs.tick()
        self.approvals.tick()
        await self.sessions.tick()

    # Telling

    def get_bind_address(self) -> str:
        """Return the address that the configuration binds."""
        return bind_address(self.config)

    def get_stats(self) -> dict[str, Any]:
        """Return what goes on: clients, sessions, agents, requests, deliveries, refusals."""
        return {
            "uptime": self.uptime,
            "clients": len(self.clients.staying()),
            "authenticated": len(self.clients.ready()),
            "sessions": len(self.sessions.get_all_sessions()),
            "agents": self.agents.get_stats(),
            "open_requests": len(self.router),
            "requests": dict(self.router.ends),
            "stray_responses": self.router.strays,
            "deliveries": self._pump.deliveries,
            "refused": self.handlers.errors,
            "auth_failures": self.door.failures,
            "state_version": self.clients.state_version,
        }

    def _agent_changed(self, agent: Any) -> None:
        if agent.client is not None:
            self.sessions.agents_changed(agent.client)
