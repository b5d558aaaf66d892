"""
Who calls over HTTP: a client like any other, made for the call.

It signs in through the same door and sends the same messages through the same
handlers as a WebSocket, so that rights, rates, schemas and refusals cannot
differ. What belongs to one credential shares its rates, however many calls it
makes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from starlette.requests import HTTPConnection

from trunkline.auth import Credential
from trunkline.clients import Client, Identity, Peer
from trunkline.errors import CloseCode, ErrorCode, GatewayError
from trunkline.handlers import payload_error
from trunkline.http.failures import ended
from trunkline.http.mailbox import Mailbox
from trunkline.limits import Spent
from trunkline.messages import GatewayMessage, create_message, decode_message, encode
from trunkline.patterns import ANY, within
from trunkline.payloads import ErrorPayload
from trunkline.rights import HTTP_RIGHTS, RIGHTS

if TYPE_CHECKING:
    from trunkline.server import GatewayServer

RATES_KEPT = 10_000
"""Credentials whose rates are remembered; who was quiet longest is forgotten first."""

T = TypeVar("T")


class Patterned(Protocol):
    """Whatever is bounded by patterns: identities, stored credentials, devices."""

    @property
    def session_patterns(self) -> tuple[str, ...]:
        """Ids of sessions."""

    @property
    def agent_patterns(self) -> tuple[str, ...]:
        """Ids of agents."""


class Entrance(Protocol):
    """What the listener's side knows of a request's way here."""

    def peer_of(self, request: HTTPConnection) -> Peer:
        """Return where a request comes from, as far as proxies are believed."""


class Caller:
    """
    One call's client.

    Attributes:
        client: The client, as the core knows it.
        mailbox: What the core wrote to it and nobody has read.
    """

    def __init__(self, gateway: GatewayServer, client: Client, mailbox: Mailbox) -> None:
        self.gateway = gateway
        self.client = client
        self.mailbox = mailbox

    @property
    def key(self) -> tuple[str, str | None]:
        """Whose calls belong together: the user's, by one credential."""
        return _key(self.client.identity)

    @property
    def identity(self) -> Identity:
        """What the credential grants."""
        assert self.client.identity is not None
        return self.client.identity

    @property
    def address(self) -> str:
        """Where the call comes from."""
        return self.client.peer.address

    def knows(self, other: Patterned | None) -> bool:
        """
        Whether somebody, or something granted, lies within the caller's patterns.

        Args:
            other: What has patterns; None: somebody who has not signed in, and is anybody's.
        """
        mine = self.identity
        sessions = ANY if other is None else other.session_patterns
        agents = ANY if other is None else other.agent_patterns
        return within(sessions, mine.session_patterns) and within(agents, mine.agent_patterns)

    def require(self, right: str) -> None:
        """
        Check a row of the table of rights, and take one message from the rate.

        Raises:
            GatewayError: ``FORBIDDEN`` or ``RATE_LIMITED``.
        """
        self.gateway.handlers.spend(self.client, time.monotonic())
        self.check(right)

    def check(self, right: str) -> None:
        """Check a row of the table of rights; raises ``FORBIDDEN``."""
        client = self.client
        row = HTTP_RIGHTS.get(right) or RIGHTS[right]
        condition = row.condition(client.role) if client.role else None
        if condition is None:
            raise GatewayError(ErrorCode.FORBIDDEN, f"{client.role} may not ask for {right}")
        if condition in ("credential:admin", "metrics") and not client.has_scope(condition):
            raise GatewayError(ErrorCode.FORBIDDEN, f"this needs the scope {condition}")
        if condition == "loopback" and not client.peer.local:
            raise GatewayError(ErrorCode.FORBIDDEN, "only this machine may ask for this")

    async def ask(
        self, type: str, payload: Any = None, session_id: str | None = None, id: str | None = None
    ) -> GatewayMessage:
        """
        Send a message and wait for what answers it.

        Raises:
            GatewayError: The answer is an error, or the client was closed.
        """
        message = create_message(type, payload, session_id, id=id)
        self.send(message)
        return await self.answer(message.id)

    def send(self, message: GatewayMessage) -> None:
        """
        Send a message.

        Raises:
            GatewayError: ``MESSAGE_TOO_LARGE``.
        """
        frame = encode(message)
        limit = self.gateway.config.limits.max_message_size
        if len(frame) > limit:
            raise GatewayError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"a message may have {limit} bytes",
                details={"limit": limit},
            )
        self.gateway.on_message(self.client, frame.decode())

    async def answer(self, message_id: str) -> GatewayMessage:
        """Wait for the next answer to a message; raises as `ask` does."""
        while (frame := await self.mailbox.next()) is not None:
            message = decode_message(frame)
            if message.reply_to == message_id:
                self.raise_error(message)
                return message
        raise ended(self.mailbox.closed)

    @staticmethod
    def raise_error(message: GatewayMessage) -> None:
        """Raise the error that a message tells of, if it tells of one."""
        if message.type != "error":
            return
        told = msgspec.json.decode(message.payload, type=ErrorPayload)
        wait = told.retry_after_ms
        raise GatewayError(
            told.code,
            told.message,
            details=told.details,
            retry_after=None if wait is None else wait / 1000,
        )

    def leave(self) -> None:
        """Let the client go."""
        code = self.mailbox.closed[0] if self.mailbox.closed else CloseCode.NORMAL
        self.mailbox.close(CloseCode.NORMAL, "")
        self.gateway.on_disconnect(self.client, code)


class Callers:
    """Makes the clients of HTTP calls."""

    def __init__(self, gateway: GatewayServer, entrance: Entrance) -> None:
        self._gateway = gateway
        self._entrance = entrance
        self._spent: OrderedDict[tuple[str, str | None], Spent] = OrderedDict()

    async def identify(self, request: HTTPConnection) -> tuple[Identity | None, Peer]:
        """
        Judge the bearer of a request as an upgrade's is judged.

        Returns:
            Who it is, None where nobody has to sign in; and where it comes from.

        Raises:
            GatewayError: ``AUTH_REQUIRED``, ``AUTH_FAILED`` or ``AUTH_LOCKED``.
        """
        peer = self._entrance.peer_of(request)
        if not self._gateway.config.auth.required:
            return None, peer
        header = request.headers.get("authorization")
        if header is None:
            raise GatewayError(ErrorCode.AUTH_REQUIRED, "sign in with Authorization: Bearer TOKEN")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise GatewayError(ErrorCode.AUTH_FAILED, "Authorization must be: Bearer TOKEN")
        judged = self._gateway.door.check(Credential(token=token.strip()), peer)
        return (await judged if isinstance(judged, Awaitable) else judged), peer

    def make(self, identity: Identity | None, peer: Peer, *, passing: bool) -> Caller:
        """Make a client; see `Client.passing`."""
        gateway = self._gateway
        if not gateway.ready:
            raise GatewayError(ErrorCode.OVERLOADED, "the gateway is stopping", retry_after=5.0)

        def lagging(yes: bool) -> None:
            (gateway.on_lagging if yes else gateway.on_drained)(client)

        mailbox = Mailbox(gateway.config.limits, lagging)
        client = gateway.on_connect(mailbox, peer, identity, passing=passing)
        if mailbox.closed is not None:  # its user has too many connections, or it has ended
            gateway.on_disconnect(client)
            raise ended(mailbox.closed)
        client.client_type = "http"
        client.spent = self._rates(_key(client.identity))
        return Caller(gateway, client, mailbox)

    def _rates(self, key: tuple[str, str | None]) -> Spent:
        spent = self._spent.setdefault(key, Spent())
        self._spent.move_to_end(key)
        if len(self._spent) > RATES_KEPT:
            self._spent.popitem(last=False)
        return spent


def _key(identity: Identity | None) -> tuple[str, str | None]:
    assert identity is not None
    return identity.user_id, identity.credential_id


def convert(value: Any, kind: type[T], path: str) -> T:
    """
    Read plain data as a type.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``, its path beginning with `path`.
    """
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        wrong = payload_error(error)
        assert wrong.details is not None
        wrong.details["path"] = path + str(wrong.details["path"])[1:]
        raise wrong from None
