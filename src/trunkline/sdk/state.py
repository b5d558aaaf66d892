"""
What a client keeps in a file, so that a restarted one continues where it was.

The file holds the device's name, how far each session was read, and the
messages that were not acknowledged. It is replaced atomically and readable by
its owner only; two clients must not share one.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

import msgspec

from trunkline.payloads import Cursor
from trunkline.sdk.errors import TrunklineError
from trunkline.sdk.outbox import Entry


def _new_device() -> str:
    return secrets.token_hex(8)


class ClientState(msgspec.Struct, kw_only=True):
    """What outlives a client's process."""

    device_id: str = msgspec.field(default_factory=_new_device)
    """Part of the key under which the gateway recognises a message sent twice."""
    cursors: dict[str, Cursor] = msgspec.field(default_factory=dict)
    outbox: list[Entry] = msgspec.field(default_factory=list)


class StateFile:
    """
    A client's state on disk.

    Args:
        path: The file; it need not exist, its folder must.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def load(self) -> ClientState:
        """
        Read the state; a new one if there is no file.

        Raises:
            TrunklineError: The file is damaged, or not such a file.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=ClientState)
        except FileNotFoundError:
            return ClientState()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TrunklineError(f"{self._path} is no client state: {error}") from error

    def save(self, state: ClientState) -> None:
        """Replace the file; a reader finds the old state or the new one, never a mixture."""
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(state))
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise
