"""``trunkline backup``: copy what the data folder holds, while the gateway runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli_client import FAILED, DataDir, complain


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder; nothing is replaced.")],
    data_dir: DataDir = None,
) -> None:
    """
    Copy sessions, logs, credentials and the audit log into a folder, while the gateway runs.

    To go back to it, stop the gateway and put the files in the place of those of
    the same names in the data folder, without the files beside them. Clients
    notice, and do not take a restored log for the one they knew.
    """
    from trunkline.errors import ConfigError
    from trunkline.settings import data_folder

    source = data_folder(os.environ, data_dir)
    try:
        copied = _copy(source, folder)
    except FileExistsError:
        complain(f"{folder} exists already", FAILED)
    except (OSError, ConfigError) as error:
        complain(f"no backup of {source}: {error}", FAILED)
    print(f"{' and '.join(copied)} of {source} are copied to {folder}", flush=True)


def _copy(source: Path, folder: Path) -> list[str]:
    from trunkline.authdb import AUTH_FILE, copy_auth
    from trunkline.history.sqlite import backup_file
    from trunkline.run import LOG_FILE

    # Credentials last: a revocation that was made meanwhile is in the copy.
    copiers = {LOG_FILE: backup_file, AUTH_FILE: copy_auth}
    there = [name for name in copiers if (source / name).exists()]
    if not there:
        raise FileNotFoundError(f"there is neither {' nor '.join(copiers)}")
    with _all_or_nothing(folder) as partial:
        for name in there:
            copiers[name](source / name, partial / name)
    return there


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """Make a folder, for its owner alone, that is there when it is complete, or not at all."""
    if folder.exists():
        raise FileExistsError(f"there is a {folder}")
    # A name of its own: what a killed backup left behind is in nobody's way.
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        yield partial
        _sync(partial)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
