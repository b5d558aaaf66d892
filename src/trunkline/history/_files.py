"""The small files beside a database: who holds it, and how far it had come."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

from trunkline.errors import ConfigError
from trunkline.ids import random_id


def create_private(path: Path) -> int:
    """Open a file for reading and writing, made for the owner alone if it is new."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def sync_folder(path: Path) -> None:
    """Make the names in a file's folder survive a power loss."""
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def boot_id() -> str:
    """
    Name this start of the machine.

    Where the system does not tell, every call gives another name, as if the
    machine had been restarted: the careful answer.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return random_id()


class Lock:
    """
    The right to use a database, held until `release` or the process's end.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, path: Path, guarded: Path) -> None:
        self._handle = create_private(path)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise ConfigError(
                f"{guarded} is in use by another gateway (process {holder}): "
                "stop that one, or give this one another data_dir"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: removing it would race with the next holder."""
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def holder_of(path: Path) -> str | None:
    """Return the id of the process that holds a `Lock` at this moment, if one does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(handle)
    return None


class Trace(NamedTuple):
    """What the last user of a database left behind."""

    commits: int
    """How many commits it had made."""
    clean: bool
    """Whether it closed the database and wrote it to the disk."""
    disk: bool
    """Whether each of its commits was on the disk before it was acknowledged."""
    boot: str
    """The start of the machine that it ran in."""


_MAGIC = b"TLtrace1"
_COUNT = struct.Struct("<QQ")
_REST = struct.Struct("<??64s")
_SIZE = len(_MAGIC) + _COUNT.size + _REST.size
_MASK = 2**64 - 1


class TraceFile:
    """
    A mapped file that knows how many commits a database must hold.

    SQLite opens a database whose newest commits were lost without a word. The
    count here is raised after every commit and before anyone hears of it, by
    one store to mapped memory: it costs nothing and outlives the process.
    """

    def __init__(self, path: Path) -> None:
        self.left = self._read(path)
        """What the last user left behind; None if that cannot be told."""
        handle = create_private(path)
        try:
            # Written, not just extended: a hole could not be filled on a full disk.
            os.pwrite(handle, os.pread(handle, _SIZE, 0).ljust(_SIZE, b"\0"), 0)
            self._map = mmap.mmap(handle, _SIZE)
        finally:
            os.close(handle)

    @staticmethod
    def _read(path: Path) -> Trace | None:
        try:
            data = path.read_bytes()
            count, check = _COUNT.unpack_from(data, len(_MAGIC))
            clean, disk, boot = _REST.unpack_from(data, len(_MAGIC) + _COUNT.size)
            if not data.startswith(_MAGIC) or count != check ^ _MASK:
                return None
            return Trace(count, clean, disk, boot.rstrip(b"\0").decode())
        except (OSError, struct.error, UnicodeDecodeError):
            return None

    def write(self, trace: Trace) -> None:
        """Write everything, down to the disk."""
        rest = _REST.pack(trace.clean, trace.disk, trace.boot.encode())
        self._map[:] = _MAGIC + _COUNT.pack(trace.commits, trace.commits ^ _MASK) + rest
        self._map.flush()

    def count(self, commits: int) -> None:
        """Note how many commits there are now."""
        # One copy of 16 bytes, so that no kill finds it half done; if one ever
        # does, the two halves disagree and the file counts as unreadable.
        self._map[8:24] = _COUNT.pack(commits, commits ^ _MASK)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
