"""Devices and sign-in codes over HTTP: who waits, who is paired, and a link for oneself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
from msgspec import Meta

from trunkline.challenges import fingerprint
from trunkline.devices import Approval, Device, PairingRequest
from trunkline.errors import ErrorCode, GatewayError
from trunkline.grants import make_grant
from trunkline.http.answers import Answer
from trunkline.http.callers import convert
from trunkline.http.failures import HttpFailure
from trunkline.http.table import Call, Endpoint
from trunkline.ids import now_ms
from trunkline.pairing import Pairing
from trunkline.payloads.base import Name

Words = list[Annotated[str, Meta(max_length=256)]]


class PendingDevice(Answer, kw_only=True):
    """A device that has proved its key and waits."""

    request_id: str
    device_id: str
    name: str | None
    """What it calls itself."""
    role: str | None
    """The role that it asks for."""
    address: str
    created_at: int
    expires_at: int
    replaces: bool
    """Whether another key is paired under its name, and would be no more."""
    fingerprint: str


class DeviceEntry(Answer, kw_only=True):
    """A device that is paired."""

    device_id: str
    name: str | None
    user_id: str
    roles: list[str]
    scopes: list[str]
    session_patterns: list[str]
    agent_patterns: list[str]
    expires_at: int | None
    approved_by: str
    approved_at: int
    fingerprint: str


class DeviceListing(Answer, kw_only=True):
    """Those that wait, the oldest first, and those that are paired."""

    pending: list[PendingDevice]
    """Empty for a credential with patterns: they belong to nobody yet."""
    devices: list[DeviceEntry]


class DeviceApproval(Answer, kw_only=True):
    """What a device gets; patterns that are left out are the caller's own."""

    roles: Words = msgspec.field(default_factory=lambda: ["webchat"])
    scopes: Words = []
    session_patterns: Words | None = None
    agent_patterns: Words | None = None
    user_id: Name | None = None
    """Whose device it is; absent: a user of its own."""
    expires_in: Annotated[float, Meta(gt=0, le=3_153_600_000)] | None = None
    """Seconds; absent: as long as the caller's own credential."""


class SignInCode(Answer, kw_only=True):
    """A code with which the caller signs in once more, from this machine."""

    code: str
    expires_at: int


def _pending(request: PairingRequest) -> PendingDevice:
    return PendingDevice(
        request_id=request.request_id,
        device_id=request.device_id,
        name=request.name,
        role=request.role,
        address=request.address,
        created_at=request.created_at,
        expires_at=request.expires_at,
        replaces=request.replaces,
        fingerprint=fingerprint(request.public_key),
    )


def _entry(device: Device) -> DeviceEntry:
    return DeviceEntry(
        device_id=device.device_id,
        name=device.name,
        user_id=device.user_id,
        roles=sorted(device.roles),
        scopes=sorted(device.scopes),
        session_patterns=list(device.session_patterns),
        agent_patterns=list(device.agent_patterns),
        expires_at=device.expires_at,
        approved_by=device.approved_by,
        approved_at=device.approved_at,
        fingerprint=fingerprint(device.public_key),
    )


def _pairing(call: Call) -> Pairing:
    """Check the right, and return what keeps the devices."""
    call.caller.require("pairing")
    found = call.caller.gateway.pairing
    if found is None:
        raise HttpFailure(404, "this gateway pairs no devices")
    return found


async def _list(call: Call) -> DeviceListing:
    pairing = _pairing(call)
    # What waits has no patterns yet, and so belongs to nobody.
    pending = pairing.pending() if call.caller.knows(None) else ()
    return DeviceListing(
        pending=[_pending(request) for request in pending],
        devices=[_entry(device) for device in pairing.list() if call.caller.knows(device)],
    )


@contextmanager
def _told() -> Iterator[None]:
    """Tell the caller what the devices' keeper refuses."""
    try:
        yield
    except ValueError as error:
        raise GatewayError(ErrorCode.INVALID_PAYLOAD, str(error)) from None
    except LookupError as error:
        raise HttpFailure(404, str(error.args[0])) from None


def _hide_waiting(call: Call, pairing: Pairing) -> None:
    """Answer as if none waited, unless the caller may see it or was told its id, which no one guesses."""
    told = call.caller.knows(None) or any(r.request_id == call.id for r in pairing.pending())
    if not told:
        raise LookupError(f"no device waits under {call.id}")


async def _approve(call: Call) -> DeviceEntry:
    pairing = _pairing(call)
    given = convert(call.plain(), DeviceApproval, "$")
    caller = call.caller
    wait = given.expires_in
    with _told():
        _hide_waiting(call, pairing)
        grant = make_grant(
            given.roles,
            given.scopes,
            given.session_patterns or caller.identity.session_patterns,
            given.agent_patterns or caller.identity.agent_patterns,
        )
        approval = Approval(
            roles=grant.roles,
            scopes=grant.scopes,
            session_patterns=grant.session_patterns,
            agent_patterns=grant.agent_patterns,
            user_id=given.user_id,
            expires_at=None if wait is None else now_ms() + round(wait * 1000),
        )
        return _entry(pairing.approve(call.id, approval, caller.identity, caller.address))


async def _reject(call: Call) -> None:
    pairing = _pairing(call)
    with _told():
        _hide_waiting(call, pairing)
        pairing.reject(call.id, call.caller.identity, call.caller.address)


def _hide(call: Call, pairing: Pairing) -> None:
    """Answer for a device beyond the caller's patterns as for one that is not there."""
    device = pairing.devices.get(call.id)
    if device is not None and not call.caller.knows(device):
        raise LookupError(f"no device is paired as {call.id}")


async def _rotate(call: Call) -> DeviceEntry:
    pairing = _pairing(call)
    with _told():
        _hide(call, pairing)
        return _entry(pairing.rotate(call.id, call.caller.identity, call.caller.address))


async def _revoke(call: Call) -> None:
    pairing = _pairing(call)
    with _told():
        _hide(call, pairing)
        pairing.revoke(call.id, call.caller.identity, call.caller.address)


async def _code(call: Call) -> SignInCode:
    call.caller.require("code")
    codes = call.caller.gateway.codes
    if codes is None:
        raise HttpFailure(404, "this gateway makes no sign-in codes")
    with _told():
        code, expires_at = codes.create(call.caller.identity)
    return SignInCode(code=code, expires_at=expires_at)


def device_endpoints() -> list[Endpoint]:
    """Return the endpoints of devices and sign-in codes."""
    return [
        Endpoint(
            method="GET",
            path="/devices",
            right="pairing",
            run=_list,
            summary="The devices that wait and those that are paired.",
            answer=DeviceListing,
        ),
        Endpoint(
            method="POST",
            path="/devices/{id}/approve",
            right="pairing",
            run=_approve,
            summary="Pair a device that waits: its request's id, or its own if only one has it.",
            body=DeviceApproval,
            answer=DeviceEntry,
        ),
        Endpoint(
            method="POST",
            path="/devices/{id}/reject",
            right="pairing",
            run=_reject,
            summary="Send a waiting device away; it may ask again.",
            status=204,
        ),
        Endpoint(
            method="POST",
            path="/devices/{id}/rotate",
            right="pairing",
            run=_rotate,
            summary="End a device's token; it gets another when it proves its key again.",
            answer=DeviceEntry,
        ),
        Endpoint(
            method="DELETE",
            path="/devices/{id}",
            right="pairing",
            run=_revoke,
            summary="Forget a device: its key, its token and its connections end.",
            status=204,
        ),
        Endpoint(
            method="POST",
            path="/codes",
            right="code",
            run=_code,
            summary="A single-use code for a sign-in link, valid two minutes on this machine.",
            answer=SignInCode,
            status=201,
        ),
    ]
