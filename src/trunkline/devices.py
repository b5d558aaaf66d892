"""
Paired devices, and those that ask to be: what ``auth.db`` holds of them.

A device is its key. Its name, ``deviceId``, is only a word that anybody may
say: a record is found by name *and* key, and a new key under a known name has
to be approved like that of a stranger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict

from trunkline.authdb import AuthDatabase
from trunkline.challenges import fingerprint
from trunkline.clients import Identity
from trunkline.credentials import Credentials
from trunkline.errors import ErrorCode, GatewayError
from trunkline.events import AuditEntry
from trunkline.grants import Grant, from_row, make_grant, may_grant, to_row
from trunkline.ids import now_ms, random_id, valid_id
from trunkline.messages import Role

LIFETIME = 600_000
"""Milliseconds that a device may wait for its approval."""

_TABLES = """
CREATE TABLE IF NOT EXISTS devices (
    device_id TEXT PRIMARY KEY,
    name TEXT,
    public_key BLOB NOT NULL,
    user_id TEXT NOT NULL,
    roles TEXT NOT NULL,
    scopes TEXT NOT NULL,
    session_patterns TEXT NOT NULL,
    agent_patterns TEXT NOT NULL,
    expires_at INTEGER,
    credential_id TEXT,
    revision TEXT NOT NULL,
    approved_by TEXT NOT NULL,
    approved_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pairings (
    request_id TEXT PRIMARY KEY,
    device_id TEXT NOT NULL,
    public_key BLOB NOT NULL,
    name TEXT,
    role TEXT,
    address TEXT NOT NULL,
    address_key TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (device_id, public_key)
) STRICT;
"""


class Approval(Grant, frozen=True, kw_only=True):
    """What an approver gives to a device."""

    roles: frozenset[Role] = frozenset({"webchat"})
    user_id: str | None = None
    """Whose device it is; absent: a user of its own, see `own_user`."""
    expires_at: int | None = None
    """When the pairing ends, milliseconds since the epoch; absent: with the approver's own rights."""


class PairingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device that waits for approval, and has proved its key; times as everywhere."""

    request_id: str
    device_id: str
    name: str | None
    """What it calls itself, for people; any characters."""
    public_key: bytes
    role: Role | None
    """The role that it asks for; None: any."""
    address: str
    created_at: int
    """Milliseconds since the epoch, like every time here."""
    expires_at: int
    replaces: bool = False
    """Whether another key is paired under this name, and would be no more."""


class Device(Grant, frozen=True, kw_only=True):
    """A device that is paired."""

    device_id: str
    name: str | None
    public_key: bytes
    user_id: str
    expires_at: int | None
    credential_id: str | None
    """Its token's record; None: it gets one when it proves its key the next time."""
    approved_by: str
    approved_at: int
    revision: str
    """Another after every change; connections made under an earlier one are closed."""

    @property
    def identity(self) -> Identity:
        """What its key grants."""
        return Identity(
            user_id=self.user_id,
            roles=self.roles,
            scopes=self.scopes,
            expires_at=self.expires_at,
            session_patterns=self.session_patterns,
            agent_patterns=self.agent_patterns,
        )


def to_public(record: PairingRequest | Device) -> dict[str, Any]:
    """
    Make plain data of a record, for JSON: names in camelCase, ``deviceName``, the fingerprint.

    The key itself and the revision are left out.
    """
    data = msgspec.to_builtins(record, order="deterministic")
    del data["public_key"]
    data.pop("revision", None)
    data["device_name"] = data.pop("name")
    data["fingerprint"] = fingerprint(record.public_key)
    return {_camel(name): value for name, value in data.items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def audit_entry(
    action: str, record: PairingRequest | Device, actor: str = "", address: str = ""
) -> AuditEntry:
    """Return what the audit log says of something that was done about a device."""
    detail = {"fingerprint": fingerprint(record.public_key)}
    if isinstance(record, Device):
        detail |= {"user": record.user_id, "roles": " ".join(sorted(record.roles))}
        detail["scopes"] = " ".join(sorted(record.scopes))
    target = record.device_id
    return AuditEntry(action=action, actor=actor, target=target, address=address, detail=detail)


def own_user(device_id: str, public_key: bytes) -> str:
    """
    Return the user that a device is where nobody names one.

    The key is part of it, so that another key under the same name never
    becomes the owner of what the first one left.
    """
    return f"device:{device_id[:96]}:{hashlib.sha256(public_key).hexdigest()[:16]}"


class Devices:
    """
    The records. Not for several threads.

    Args:
        database: Where they are; another process may change them too.
        credentials: Makes and ends the devices' tokens.
    """

    def __init__(self, database: AuthDatabase, credentials: Credentials) -> None:
        self._db = database
        self._credentials = credentials
        database.create(_TABLES)

    # Those that ask

    def request(
        self,
        *,
        device_id: str,
        public_key: bytes,
        name: str | None,
        role: Role | None,
        address: str,
        address_key: str,
        total: int,
        per_address: int,
    ) -> tuple[PairingRequest, bool]:
        """
        Note that a device has proved a key that nobody approved.

        One that asks again keeps its request, and the end of it.

        Args:
            total: Requests that may wait at most.
            per_address: The same, of one address key.

        Returns:
            The request, and whether it is a new one.

        Raises:
            GatewayError: ``OVERLOADED``: too many wait.
        """
        now = now_ms()
        with self._db.transaction():
            self._db.write("DELETE FROM pairings WHERE expires_at <= ?", now)
            before = self._asked(device_id, public_key)
            if before is None:
                self._check_room(address_key, total, per_address, now)
                self._db.write(
                    "INSERT INTO pairings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    *(random_id("p_"), device_id, public_key, name, role),
                    *(address, address_key, now, now + LIFETIME),
                )
            elif before.role != role:
                self._db.write(
                    "UPDATE pairings SET role = ? WHERE request_id = ?", role, before.request_id
                )
            request = self._asked(device_id, public_key)
        assert request is not None
        return request, before is None

    def _asked(self, device_id: str, public_key: bytes) -> PairingRequest | None:
        found = self._requests("WHERE device_id = ? AND public_key = ?", device_id, public_key)
        return found[0] if found else None

    def _check_room(self, address_key: str, total: int, per_address: int, now: int) -> None:
        row = self._db.row(
            "SELECT count(*) AS total, count(*) FILTER (WHERE address_key = ?) AS mine,"
            " min(expires_at) AS first FROM pairings",
            address_key,
        )
        assert row is not None
        if row["total"] >= total or row["mine"] >= per_address:
            raise GatewayError(
                ErrorCode.OVERLOADED,
                "too many devices wait for approval",
                retry_after=max(1.0, (row["first"] - now) / 1000) if row["first"] else 60.0,
            )

    def pending(self) -> Sequence[PairingRequest]:
        """Return the requests that wait, the oldest first."""
        return self._requests("WHERE expires_at > ? ORDER BY created_at, request_id", now_ms())

    def find_request(self, word: str) -> PairingRequest:
        """
        Return the request with an id, or the only one of a device.

        Raises:
            LookupError: There is none, or several devices call themselves so.
        """
        requests = self.pending()
        for request in requests:
            if request.request_id == word:
                return request
        found = [request for request in requests if request.device_id == word]
        if len(found) > 1:
            raise LookupError(
                f"{len(found)} devices with different keys call themselves {word}: "
                "compare the fingerprints and name the request"
            )
        if not found:
            raise LookupError(f"no device waits under {word}")
        return found[0]

    def forget(self, device_id: str, public_key: bytes) -> None:
        """Remove the request of a key, if there is one."""
        self._db.write(
            "DELETE FROM pairings WHERE device_id = ? AND public_key = ?", device_id, public_key
        )

    # Deciding

    def approve(self, request_id: str, approval: Approval, by: Identity) -> Device:
        """
        Pair the device of a request, in place of any other of its name.

        Args:
            request_id: The request, see `find_request`.
            approval: What the device gets.
            by: Who approves; gives at most what is theirs.

        Raises:
            LookupError: There is no such request (any more).
            ValueError: No such role, scope, pattern or user, or not the role
                that the device asks for.
            GatewayError: ``FORBIDDEN``: more than the approver's own, or in
                place of a device that has more.
        """
        request = self.find_request(request_id)
        device = _approved(request, approval, by)
        before = self.get(request.device_id)
        if before is not None:
            _check_rights(before, by)
        row = to_row(device)
        with self._db.transaction():
            if not self._db.write(
                "DELETE FROM pairings WHERE request_id = ? AND expires_at > ?",
                *(request.request_id, now_ms()),
            ):
                raise LookupError(f"no device waits under {request_id}")
            columns, marks = ", ".join(row), ", ".join("?" for _ in row)
            self._db.write(
                f"INSERT OR REPLACE INTO devices ({columns}) VALUES ({marks})", *row.values()
            )
        if before is not None:
            self._end_token(before, by)
        return device

    def reject(self, request_id: str) -> PairingRequest:
        """
        Remove a request; its device may ask again.

        Raises:
            LookupError: There is no such request (any more).
        """
        request = self.find_request(request_id)
        self._db.write("DELETE FROM pairings WHERE request_id = ?", request.request_id)
        return request

    # Those that are paired

    def list(self) -> Sequence[Device]:
        """Return the paired devices, by name."""
        return self._devices("ORDER BY device_id")

    def get(self, device_id: str) -> Device | None:
        """Return the device of a name."""
        found = self._devices("WHERE device_id = ?", device_id)
        return found[0] if found else None

    def revisions(self) -> dict[str, str]:
        """Return the present revision of every paired device."""
        return dict(map(tuple, self._db.rows("SELECT device_id, revision FROM devices")))

    def known(self, device_id: str, public_key: bytes) -> Device | None:
        """Return the device of a name and key, if its pairing has not ended."""
        device = self.get(device_id)
        if device is None or device.public_key != public_key:
            return None
        ended = device.expires_at is not None and device.expires_at <= now_ms()
        return None if ended else device

    def issue(self, device: Device) -> str | None:
        """Make a device's token, if it has none yet; returns it, this once."""
        if device.credential_id is not None:
            return None
        stored, secret = self._credentials.create(
            name=device.device_id,
            user_id=device.user_id,
            roles=device.roles,
            scopes=device.scopes,
            session_patterns=device.session_patterns,
            agent_patterns=device.agent_patterns,
            expires_at=device.expires_at,
            kind="device",
            device_id=device.device_id,
            created_by=device.approved_by,
        )
        issued = self._db.write(
            "UPDATE devices SET credential_id = ? WHERE device_id = ? AND revision = ?"
            " AND credential_id IS NULL",
            *(stored.id, device.device_id, device.revision),
        )
        if not issued:  # changed meanwhile, by another process
            self._credentials.revoke(stored.id)
            return None
        return secret

    def rotate(self, device_id: str, by: Identity) -> Device:
        """
        End a device's token and its connections; it gets another token once it proves its key.

        Raises:
            LookupError: No such device is paired.
            GatewayError: ``FORBIDDEN``: it has more than is `by`'s own.
        """
        device = self._paired(device_id)
        _check_rights(device, by)
        self._end_token(device, by)
        self._db.write(
            "UPDATE devices SET credential_id = NULL, revision = ? WHERE device_id = ?",
            *(random_id(), device_id),
        )
        return self._paired(device_id)

    def revoke(self, device_id: str, by: Identity) -> Device:
        """
        Forget a device: its key and its token are worth nothing any more.

        Raises:
            LookupError: No such device is paired.
            GatewayError: ``FORBIDDEN``: it has more than is `by`'s own.
        """
        device = self._paired(device_id)
        _check_rights(device, by)
        self._end_token(device, by)
        self._db.write("DELETE FROM devices WHERE device_id = ?", device_id)
        return device

    def _paired(self, device_id: str) -> Device:
        device = self.get(device_id)
        if device is None:
            raise LookupError(f"no device is paired as {device_id}")
        return device

    def _end_token(self, device: Device, by: Identity) -> None:
        if device.credential_id is not None:
            self._credentials.revoke(device.credential_id, by.user_id)

    # Rows

    def _requests(self, rest: str, *values: object) -> Sequence[PairingRequest]:
        keys = dict(map(tuple, self._db.rows("SELECT device_id, public_key FROM devices")))
        rows = self._db.rows(f"SELECT * FROM pairings {rest}", *values)
        return [
            PairingRequest(
                request_id=row["request_id"],
                device_id=row["device_id"],
                name=row["name"],
                public_key=row["public_key"],
                role=row["role"],
                address=row["address"],
                created_at=row["created_at"],
                expires_at=row["expires_at"],
                replaces=keys.get(row["device_id"], row["public_key"]) != row["public_key"],
            )
            for row in rows
        ]

    def _devices(self, rest: str, *values: object) -> Sequence[Device]:
        rows = self._db.rows(f"SELECT * FROM devices {rest}", *values)
        return [from_row(row, Device) for row in rows]


def _check_rights(device: Device, by: Identity) -> None:
    """Refuse to change a device that has more than is one's own."""
    if not may_grant(
        by, device.roles, device.scopes, device.session_patterns, device.agent_patterns
    ):
        raise GatewayError(ErrorCode.FORBIDDEN, "the device has more than is your own")


def _approved(request: PairingRequest, approval: Approval, by: Identity) -> Device:
    """Return the record of an approval, if it may be given."""
    own = own_user(request.device_id, request.public_key)
    bounds = approval.session_patterns, approval.agent_patterns
    grant = make_grant(approval.roles, approval.scopes, *bounds)
    user = approval.user_id if approval.user_id is not None else own
    if not valid_id(user):
        raise ValueError("a user has not the grammar of an id")
    if request.role is not None and request.role not in grant.roles:
        raise ValueError(
            f"the device asks for the role {request.role}: grant it too, or reject the device"
        )
    ends = approval.expires_at if approval.expires_at is not None else by.expires_at
    if ends is not None and ends <= now_ms():
        raise ValueError("the pairing would have ended already")
    if not (
        may_grant(by, grant.roles, grant.scopes, *bounds)
        and (user in (own, by.user_id) or "admin" in by.scopes)
        and (by.expires_at is None or (ends is not None and ends <= by.expires_at))
    ):
        raise GatewayError(ErrorCode.FORBIDDEN, "nobody can grant more than is their own")
    return Device(
        device_id=request.device_id,
        name=request.name,
        public_key=request.public_key,
        user_id=user,
        expires_at=ends,
        credential_id=None,
        approved_by=by.user_id,
        approved_at=now_ms(),
        revision=random_id(),
        **asdict(grant),
    )
