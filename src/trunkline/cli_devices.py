"""
``trunkline devices``: who may come in with a key of their own.

These commands write to the data folder itself: whoever may do that is the
gateway's owner. A running gateway acts on it within a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from trunkline.cli_client import FAILED, AsJson, DataDir, columns, complain, show
from trunkline.cli_store import (
    AgentPattern,
    Role,
    Scope,
    SessionPattern,
    bounds,
    opened,
    parse_duration,
    when,
)
from trunkline.errors import GatewayError

if TYPE_CHECKING:
    from trunkline import messages
    from trunkline.audit import Audit
    from trunkline.clients import Identity
    from trunkline.devices import Device, Devices, PairingRequest

app = typer.Typer(help="Paired devices, and those that wait for approval.", no_args_is_help=True)

RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST", help="The request's id, or the device's.")
]
DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.")]


class _Desk(NamedTuple):
    devices: Devices
    audit: Audit
    by: Identity
    """The owner, under the name of who runs the command."""

    def note(self, action: str, record: PairingRequest | Device) -> None:
        """Write into the audit log what was done."""
        from trunkline.devices import audit_entry

        self.audit.append(audit_entry(action, record, self.by.user_id))


@contextmanager
def _desk(data_dir: str | None) -> Iterator[_Desk]:
    from msgspec.structs import replace

    from trunkline.audit import Audit
    from trunkline.auth import OWNER
    from trunkline.devices import Devices

    with opened(data_dir) as store:
        audit = Audit(store.database)
        try:
            devices = Devices(store.database, store.credentials)
            yield _Desk(devices, audit, replace(OWNER, user_id=store.actor))
        except LookupError as error:
            complain(str(error.args[0]), FAILED)
        except GatewayError as error:
            complain(error.message, FAILED)
        finally:
            audit.close()


@app.command("list")
def list_devices(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the devices that wait, and those that are paired."""
    from trunkline.challenges import fingerprint
    from trunkline.devices import to_public

    with _desk(data_dir) as desk:
        pending, paired = desk.devices.pending(), desk.devices.list()
    waiting = [("REQUEST", "DEVICE", "NAME", "FINGERPRINT", "ROLE", "FROM", "UNTIL", "")]
    for request in pending:
        names = request.request_id, request.device_id, request.name or ""
        facts = fingerprint(request.public_key), request.role or "any", request.address
        hint = "another key is paired under this id" if request.replaces else ""
        waiting.append((*names, *facts, when(request.expires_at), hint))
    known = [("DEVICE", "NAME", "FINGERPRINT", "USER", "RIGHTS", "APPROVED", "ENDS")]
    for device in paired:
        names = device.device_id, device.name or "", fingerprint(device.public_key)
        rights = device.user_id, bounds(device)
        known.append((*names, *rights, when(device.approved_at), when(device.expires_at)))
    parts = [columns(waiting) if pending else "no device waits for approval"]
    parts.append(columns(known) if paired else "no device is paired")
    data = {"pending": [*map(to_public, pending)], "devices": [*map(to_public, paired)]}
    show(data, "\n\n".join(parts), as_json)


@app.command()
def approve(
    request: RequestId,
    user: Annotated[
        str | None, typer.Option(help="Whose device it is; a user of its own by default.")
    ] = None,
    role: Role = None,
    scope: Scope = None,
    session: SessionPattern = None,
    agent: AgentPattern = None,
    expires: Annotated[
        str | None, typer.Option(help="How long it is paired, such as 30d; for good by default.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """
    Pair a device that waits.

    Compare the fingerprint with what the device shows: its id and name are only what it says.
    Without --role it gets webchat.
    """
    from trunkline.challenges import fingerprint
    from trunkline.devices import Approval, to_public
    from trunkline.ids import now_ms

    with _desk(data_dir) as desk:
        approval = Approval(
            user_id=user,
            roles=cast("frozenset[messages.Role]", frozenset(role or ("webchat",))),
            scopes=frozenset(scope or ()),
            session_patterns=tuple(session or ("*",)),
            agent_patterns=tuple(agent or ("*",)),
            expires_at=now_ms() + parse_duration(expires) if expires else None,
        )
        device = desk.devices.approve(request, approval, desk.by)
        desk.note("device.approve", device)
    key = fingerprint(device.public_key)
    text = f"{device.device_id} ({key}) is paired: {device.user_id}, {bounds(device)}"
    show(to_public(device), text, as_json)


@app.command()
def reject(request: RequestId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Send a device away that waits; it may ask again."""
    from trunkline.devices import to_public

    with _desk(data_dir) as desk:
        rejected = desk.devices.reject(request)
        desk.note("device.reject", rejected)
    show(to_public(rejected), f"{rejected.device_id} is rejected", as_json)


@app.command()
def rotate(device: DeviceId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a device's token and connections; when it proves its key again it gets another token."""
    from trunkline.devices import to_public

    with _desk(data_dir) as desk:
        rotated = desk.devices.rotate(device, desk.by)
        desk.note("device.rotate", rotated)
    show(to_public(rotated), f"the token of {device} has ended; its key stays paired", as_json)


@app.command()
def revoke(device: DeviceId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Forget a device: its key, its token and its connections end."""
    from trunkline.devices import to_public

    with _desk(data_dir) as desk:
        revoked = desk.devices.revoke(device, desk.by)
        desk.note("device.revoke", revoked)
    show(to_public(revoked), f"{device} is no longer paired", as_json)
