"""
Pairing: a device proves its key, and somebody approves it.

The feature's state is which connections wait and which have proved a key that
is paired; what is pending, approved and rejected stands in ``auth.db``, where
the command line changes it under a running gateway (`Pairing.refresh`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trunkline.access import Access
from trunkline.auth import Door
from trunkline.challenges import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    challenge_text,
    from_base64url,
)
from trunkline.clients import Client, Identity, Phase
from trunkline.codes import SignInCodes
from trunkline.config import GatewayConfig
from trunkline.devices import (
    Approval,
    Device,
    Devices,
    PairingRequest,
    audit_entry,
    own_user,
)
from trunkline.errors import CloseCode, Disconnect, ErrorCode, GatewayError
from trunkline.events import Events
from trunkline.handlers import close_with
from trunkline.ids import now_ms
from trunkline.messages import Role, create_message, error_message
from trunkline.payloads import Connect, DeviceApproved, HelloOk
from trunkline.payloads import Pairing as PairingInfo

# Points of small order, without the sign: a "signature" under such a key fits many texts.
_WEAK_KEYS = frozenset(
    bytes.fromhex(key)
    for key in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


log = structlog.get_logger(__name__)


def _is_weak(key: bytes) -> bool:
    return key[:-1] + bytes([key[-1] & 0x7F]) in _WEAK_KEYS


def verify(public_key: str, signature: str, text: bytes) -> bytes | None:
    """
    Check a device's signature.

    Args:
        public_key: Ed25519, base64url.
        signature: The same.
        text: What was signed, see `challenge_text`.

    Returns:
        The key's bytes; None if the signature is not by this key, or either
        is malformed.
    """
    key = from_base64url(public_key, KEY_BYTES)
    signed = from_base64url(signature, SIGNATURE_BYTES)
    if key is None or signed is None or _is_weak(key):
        return None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed, text)
    except (InvalidSignature, ValueError):
        return None
    return key


_LOCAL_ROLES: frozenset[Role] = frozenset({"webchat", "node", "observer"})


class Pairing:
    """
    The devices of a running gateway.

    What approves and ends them here is for the gateway's own HTTP routes: it
    checks what the approver may give, acts at once and tells the audit log.

    Args:
        config: Whether devices on this machine need no approval, and how many may wait.
        devices: The records.
        door: Lets clients in.
        events: Where it is told of.
        end: Closes a connection with 4003.

    Attributes:
        devices: The records.
        waits_now: Called when a connection begins to wait.
    """

    def __init__(
        self,
        config: GatewayConfig,
        devices: Devices,
        door: Door,
        events: Events,
        end: Callable[[Client, str], None],
    ) -> None:
        self._config = config
        self._door = door
        self._events = events
        self._end = end
        self._waiting: dict[str, tuple[Client, PairingRequest]] = {}
        self._proven: dict[str, tuple[Client, Device]] = {}
        self.devices = devices
        self.waits_now: list[Callable[[Client], None]] = []
        door.keys = self
        events.on("client:disconnect", self._gone)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on; who waits goes on waiting."""
        self._config = config

    # What others ask

    def is_paired(self, client: Client) -> bool:
        """Whether a connection has proved a key that is paired, or shown its device's token."""
        if client.id in self._proven:
            return True
        shown = client.identity.credential_id if client.identity is not None else None
        if shown is None or client.device_id is None:
            return False
        device = self.devices.get(client.device_id)
        return device is not None and device.credential_id == shown

    def describe(self, client: Client, hello: HelloOk) -> None:
        """Say in a ``hello_ok`` whether the device is paired, and with which request it waits."""
        hello.paired = self.is_paired(client)
        waiting = self._waiting.get(client.id)
        if waiting is not None:
            request = waiting[1]
            hello.pairing = PairingInfo(
                request_id=request.request_id, expires_at=request.expires_at
            )

    def waits(self, client: Client) -> bool:
        """Whether a connection waits for approval, and so longer than others for its sign-in."""
        return client.id in self._waiting

    # The device's side

    def prove(self, client: Client, payload: Connect) -> bytes | None:
        """
        Return the key that a ``connect`` proves; None if it speaks of none.

        Each challenge is judged once, whatever comes of it; ``hello_ok`` names the next.

        Raises:
            GatewayError: ``AUTH_FAILED``, after which the address is nearer
                to its lock; ``AUTH_LOCKED``.
        """
        if payload.public_key is None and payload.challenge_response is None:
            return None
        nonce, client.nonce = client.nonce, secrets.token_urlsafe(24)
        with self._door.attempt(client.peer):
            key = None
            if nonce is not None:
                text = challenge_text(
                    nonce, payload.device_id, payload.role, payload.protocol_version
                )
                key = verify(payload.public_key or "", payload.challenge_response or "", text)
            if key is None:
                raise GatewayError(ErrorCode.AUTH_FAILED, "the key is not proved")
        return key

    def greet(self, client: Client, key: bytes) -> None:
        """
        Let a connection that proved a key in, or have it wait for approval.

        Raises:
            GatewayError: ``FORBIDDEN``: the device may not take the role;
                ``OVERLOADED``: too many wait.
        """
        assert client.device_id is not None
        device = self.devices.known(client.device_id, key)
        if device is not None:
            self._enter(client, device)
        elif self._config.auth.skip_local_pairing and client.peer.local:
            self._enter_unpaired(client, key)
        else:
            self._ask(client, key)

    def _enter(self, client: Client, device: Device) -> None:
        if client.phase is not Phase.READY:
            self._door.admit(client, device.identity)
        token = self.devices.issue(device)
        self._waiting.pop(client.id, None)
        self._proven[client.id] = (client, device)
        if token is not None:
            self._hand_over(client, device, token)

    def _hand_over(self, client: Client, device: Device, token: str) -> None:
        approved = DeviceApproved(device_token=token, scopes=sorted(device.scopes))
        client.send(create_message("device_approved", approved))

    def _enter_unpaired(self, client: Client, key: bytes) -> None:
        assert client.device_id is not None
        if client.phase is not Phase.READY:
            user = own_user(client.device_id, key)
            self._door.admit(client, Identity(user_id=user, roles=_LOCAL_ROLES))

    def _ask(self, client: Client, key: bytes) -> None:
        assert client.device_id is not None
        request, new = self.devices.request(
            device_id=client.device_id,
            public_key=key,
            name=client.device_name,
            role=client.role,
            address=client.peer.address,
            address_key=client.peer.key,
            total=self._config.limits.pending_pairings,
            per_address=self._config.limits.pending_pairings_per_address,
        )
        for other, asked in list(self._waiting.values()):
            if asked.request_id == request.request_id and other is not client:
                del self._waiting[other.id]
                close_with(other, CloseCode.REPLACED, "the device has connected anew")
        self._waiting[client.id] = (client, request)
        if new:
            entry = audit_entry("device.ask", request, address=client.peer.address)
            self._events.emit("audit", entry)
        for callback in self.waits_now:
            callback(client)

    def _gone(self, client: Client) -> None:
        self._waiting.pop(client.id, None)
        self._proven.pop(client.id, None)

    # The approver's side

    def pending(self) -> Sequence[PairingRequest]:
        """Return the requests that wait, the oldest first."""
        return self.devices.pending()

    def list(self) -> Sequence[Device]:
        """Return the paired devices, by name."""
        return self.devices.list()

    def approve(
        self, request_id: str, approval: Approval, by: Identity, address: str = ""
    ) -> Device:
        """
        Pair a device: its connection is READY, and gets its token, before this returns.

        Args:
            request_id: The request.
            approval: What the device gets.
            by: Who approves, and gives at most what is theirs.
            address: Where the approver is, for the audit log.

        Raises:
            LookupError: There is no such request (any more).
            ValueError: No such role, scope, pattern or user, or not the role
                that the device asks for.
            GatewayError: ``FORBIDDEN``: more than the approver's own.
        """
        device = self.devices.approve(request_id, approval, by)
        self._audit("device.approve", device, by, address)
        self.refresh()
        return device

    def reject(self, request_id: str, by: Identity, address: str = "") -> PairingRequest:
        """
        Send a waiting device away, with 4003; it may ask again.

        Raises:
            LookupError: There is no such request (any more).
        """
        request = self.devices.reject(request_id)
        self._audit("device.reject", request, by, address)
        self.refresh()
        return request

    def rotate(self, device_id: str, by: Identity, address: str = "") -> Device:
        """
        End a device's token and connections; it gets a new token when it proves its key again.

        Raises:
            LookupError: No such device is paired.
            GatewayError: ``FORBIDDEN``: it has more than is `by`'s own.
        """
        device = self.devices.rotate(device_id, by)
        self._audit("device.rotate", device, by, address)
        self.refresh()
        return device

    def revoke(self, device_id: str, by: Identity, address: str = "") -> Device:
        """
        Forget a device; its token, its key and its connections end.

        Raises:
            LookupError: No such device is paired.
            GatewayError: ``FORBIDDEN``: it has more than is `by`'s own.
        """
        device = self.devices.revoke(device_id, by)
        self._audit("device.revoke", device, by, address)
        self.refresh()
        return device

    def _audit(
        self, action: str, record: PairingRequest | Device, by: Identity, address: str
    ) -> None:
        self._events.emit("audit", audit_entry(action, record, by.user_id, address))

    # What time and other processes bring

    def refresh(self) -> None:
        """Act on what stands in the records now: let in, send away."""
        revisions = self.devices.revisions() if self._proven else {}
        for client, device in list(self._proven.values()):
            if revisions.get(device.device_id) != device.revision:
                del self._proven[client.id]
                self._end(client, "the pairing has changed or ended")
        if not self._waiting:
            return
        open_requests = {request.request_id for request in self.devices.pending()}
        for client, request in list(self._waiting.values()):
            try:
                self._settle(client, request, waits=request.request_id in open_requests)
            except Exception:  # one device that fails must not keep the others waiting
                log.exception("a device cannot be let in", device=request.device_id)
                self._waiting.pop(client.id, None)
                close_with(client, CloseCode.INTERNAL, "the device cannot be let in")

    def _settle(self, client: Client, request: PairingRequest, *, waits: bool) -> None:
        device = self.devices.known(request.device_id, request.public_key)
        if device is not None:
            self._approved(client, device)
        elif not waits:
            self._refused(client, request)

    def _approved(self, client: Client, device: Device) -> None:
        self.devices.forget(device.device_id, device.public_key)
        self._waiting.pop(client.id, None)
        try:
            self._enter(client, device)
        except GatewayError as error:
            client.send(error_message(error))
            self._end(client, "the role is not granted")
        except Disconnect as error:
            client.transport.close(error.code, error.reason)

    def _refused(self, client: Client, request: PairingRequest) -> None:
        del self._waiting[client.id]
        if client.phase is Phase.READY:
            return
        if request.expires_at <= now_ms():
            close_with(client, CloseCode.NOT_SIGNED_IN, "nobody approved the device in time")
        else:
            self._end(client, "the pairing was rejected")

    def tick(self) -> None:
        """Send away whose time to wait is over, once a second."""
        if self._waiting:
            self.refresh()


def compose_pairing(
    config: GatewayConfig, access: Access, door: Door, events: Events
) -> tuple[Pairing | None, SignInCodes | None]:
    """Put together what is there where clients sign in and there is a database: devices, codes."""
    database, credentials, users = access.database, access.credentials, access.users
    if not config.auth.required or database is None or credentials is None or users is None:
        return None, None
    pairing = Pairing(config, Devices(database, credentials), door, events, access.end)
    door.codes = codes = SignInCodes(database, credentials, access.holds)
    users.changed.append(lambda change: codes.refresh())
    access.refreshed += [pairing.refresh, codes.refresh]
    return pairing, codes
