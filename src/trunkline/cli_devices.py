"""
``trunkline devices``: who may come in with a key of their own.

These commands write to the data folder itself: whoever may do that is the
gateway's owner. A running gateway acts on it within a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast

import typer

from trunkline.cli_client import FAILED, USAGE, AsJson, DataDir, columns, complain, show
from trunkline.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from trunkline.devices import Device, Devices, PairingRequest
    from trunkline.messages import Role

app = typer.Typer(help="Paired devices, and those that wait for approval.", no_args_is_help=True)

RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST", help="The request's id, or the device's.")
]
DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.")]


class _Desk:
    """The open file, and what is noted there of each decision."""

    def __init__(self, data_dir: str | None) -> None:
        from trunkline.audit import Audit
        from trunkline.authdb import AUTH_FILE, AuthDatabase
        from trunkline.credentials import Credentials
        from trunkline.devices import Devices
        from trunkline.settings import data_folder

        self._database = AuthDatabase(data_folder(os.environ, data_dir) / AUTH_FILE)
        self._audit = Audit(self._database)
        self.devices: Devices = Devices(self._database, Credentials(self._database))

    def note(self, action: str, record: PairingRequest | Device) -> None:
        """Write into the audit log what was done."""
        from trunkline.challenges import fingerprint
        from trunkline.events import AuditEntry

        detail = {"fingerprint": fingerprint(record.public_key), "by": "command line"}
        entry = AuditEntry(action=action, actor="owner", target=record.device_id, detail=detail)
        self._audit.append(entry)

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        self._audit.close()
        self._database.close()


@contextmanager
def _desk(data_dir: str | None) -> Iterator[_Desk]:
    try:
        desk = _Desk(data_dir)
    except ConfigError as error:
        complain(str(error), USAGE)
    try:
        yield desk
    except LookupError as error:
        complain(str(error.args[0]), FAILED)
    except GatewayError as error:
        complain(error.message, FAILED)
    except ValueError as error:
        complain(str(error), USAGE)
    finally:
        desk.close()


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
        waiting.append((*names, *facts, _time(request.expires_at, "%H:%M"), hint))
    known = [("DEVICE", "NAME", "FINGERPRINT", "USER", "ROLES", "SCOPES", "APPROVED")]
    for device in paired:
        names = device.device_id, device.name or "", fingerprint(device.public_key)
        rights = device.user_id, ", ".join(sorted(device.roles)), ", ".join(sorted(device.scopes))
        known.append((*names, *rights, _time(device.approved_at, "%Y-%m-%d %H:%M")))
    facts_ = {"pending": [*map(to_public, pending)], "devices": [*map(to_public, paired)]}
    parts = [columns(waiting) if pending else "no device waits for approval"]
    parts.append(columns(known) if paired else "no device is paired")
    show(facts_, "\n\n".join(parts), as_json)


def _time(at: int, form: str) -> str:
    return datetime.fromtimestamp(at / 1000).strftime(form)


@app.command()
def approve(
    request: RequestId,
    user: Annotated[
        str | None, typer.Option(help="Whose device it is; a user of its own by default.")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="What it may be; repeatable; webchat by default.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="A right beyond the roles; repeatable.")
    ] = None,
    session: Annotated[
        list[str] | None, typer.Option(help="Pattern of sessions that it may see; repeatable.")
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Pattern of agents that it may see; repeatable.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """
    Pair a device that waits.

    Compare the fingerprint with what the device shows: its id and name are only what it says.
    """
    from trunkline.auth import OWNER
    from trunkline.challenges import fingerprint
    from trunkline.devices import Approval, to_public

    approval = Approval(
        user_id=user,
        roles=cast("frozenset[Role]", frozenset(role or ("webchat",))),
        scopes=frozenset(scope or ()),
        session_patterns=tuple(session or ("*",)),
        agent_patterns=tuple(agent or ("*",)),
    )
    with _desk(data_dir) as desk:
        device = desk.devices.approve(request, approval, OWNER)
        desk.note("device.approve", device)
    roles, key = ", ".join(sorted(device.roles)), fingerprint(device.public_key)
    text = f"{device.device_id} ({key}) is paired: {device.user_id} as {roles}"
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
        rotated = desk.devices.rotate(device, by="owner")
        desk.note("device.rotate", rotated)
    show(to_public(rotated), f"the token of {device} has ended; its key stays paired", as_json)


@app.command()
def revoke(device: DeviceId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Forget a device: its key, its token and its connections end."""
    from trunkline.devices import to_public

    with _desk(data_dir) as desk:
        revoked = desk.devices.revoke(device, by="owner")
        desk.note("device.revoke", revoked)
    show(to_public(revoked), f"{device} is no longer paired", as_json)
