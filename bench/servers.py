"""The servers under load: our gateway and the baselines it is compared with."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

BENCH = Path(__file__).resolve().parent
BUILD = BENCH / ".build"
LOAD = BUILD / "load"
FLOOR = BUILD / "floor"
NODE = BENCH / "baselines" / "node"
CONFIG = BENCH / "config.toml"
DATA = BUILD / "data"
"""The gateway's data folder, which each run begins without."""
FILLED = BUILD / "filled"
"""Another one, with a log of a million messages."""

START_TIMEOUT = 15.0
"""Seconds until a server that has not told its port has failed."""

LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)")


class BenchError(Exception):
    """A server or the generator did not do its part; the text says why."""


@dataclass(frozen=True)
class Kind:
    """One kind of server: a column of the report."""

    name: str
    title: str
    command: tuple[str, ...]
    """How to start it; `TOKEN` stands for the credential of the run."""
    one_core: bool = True
    """Whether it is kept on a core of its own; else it may use all."""


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    pid: int
    port: int
    token: str
    log: Path
    began: float
    """When it was started, by the monotonic clock."""


def _gateway(*more: str) -> tuple[str, ...]:
    program = str(Path(sys.executable).parent / "trunkline")
    credential = ("--auth", "token", "--token", "TOKEN")
    return (program, "serve", "--port", "0", *credential, "--config", str(CONFIG), *more)


def _stored(durability: str, folder: Path = DATA) -> tuple[str, ...]:
    return _gateway("--history", "sqlite", "--durability", durability, "--data-dir", str(folder))


TRUNKLINE = Kind("trunkline", "Trunkline", _gateway("--history", "memory"))
PROCESS = Kind("process", "SQLite, process", _stored("process"))
UNPINNED = Kind("unpinned", "the same, unpinned", _stored("process"), one_core=False)
DISK = Kind("disk", "SQLite, disk", _stored("disk"))
LOADED = Kind("loaded", "SQLite, 1M messages", _stored("process", FILLED))
NODE_WS = Kind("node", "Node ws", ("node", str(NODE / "server.js"), "TOKEN"))
FLOOR_SEND = Kind("send", "C, send", (str(FLOOR), "--token", "TOKEN", "--mode", "send"))
FLOOR_JOINED = Kind("joined", "C, joined", (str(FLOOR), "--token", "TOKEN", "--mode", "joined"))


def compile_c(output: Path, sources: Sequence[Path]) -> None:
    """Compile C sources into one program; raises `BenchError` with the compiler's words."""
    BUILD.mkdir(exist_ok=True)
    command = ["cc", "-O2", "-std=gnu11", "-Wall", "-o", str(output), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"cc failed:\n{done.stderr}")


def install_node_modules() -> None:
    """Install what the lock file of the Node baseline names; raises `BenchError`."""
    command = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
    done = subprocess.run(command, cwd=NODE, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"npm ci failed:\n{done.stdout}{done.stderr}")


def prepare() -> tuple[list[Kind], list[str]]:
    """
    Build the load generator and every server that this machine can run.

    Returns:
        The kinds that can be started, and a sentence for each that cannot.

    Raises:
        BenchError: There is no C compiler: then there is no load.
    """
    if not shutil.which("cc"):
        raise BenchError("the load generator is written in C, and there is no cc here")
    compile_c(LOAD, sorted((BENCH / "load").glob("*.c")))
    compile_c(FLOOR, [BENCH / "baselines" / "floor.c"])
    kinds, skipped = [FLOOR_SEND, FLOOR_JOINED], []
    reason = _why_no_node()
    if reason:
        skipped.append(f"{NODE_WS.title} is left out: {reason}")
    else:
        kinds.insert(0, NODE_WS)
    if Path(TRUNKLINE.command[0]).exists():
        kinds = [TRUNKLINE, *kinds, PROCESS, UNPINNED, DISK, LOADED]
    else:
        skipped.append(f"{TRUNKLINE.title} is left out: it is not installed beside this Python")
    return kinds, skipped


def _why_no_node() -> str:
    if not shutil.which("node") or not shutil.which("npm"):
        return "there is no node and npm here"
    try:
        install_node_modules()
    except BenchError as error:
        return str(error)
    return ""


def fill() -> None:
    """Make the long log anew; raises `BenchError` if that fails."""
    shutil.rmtree(FILLED, ignore_errors=True)
    command = [sys.executable, str(BENCH / "fill.py"), str(FILLED)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the long log could not be written:\n{done.stderr}")


def cores() -> tuple[set[int], set[int]]:
    """The cores of the server and of the load: one each, or all for both where there is one."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, {usable[1]}) if len(usable) > 1 else (set(usable), set(usable))


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """Processes started in the block stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(kind: Kind) -> Iterator[Running]:
    """A fresh server on its core, killed at the end: nothing is carried from run to run."""
    token = secrets.token_hex(32)
    log = BUILD / f"{kind.name}.log"
    command = [token if word == "TOKEN" else word for word in kind.command]
    shutil.rmtree(DATA, ignore_errors=True)
    usable = cores()[0] if kind.one_core else os.sched_getaffinity(0)
    began = time.monotonic()
    with log.open("wb") as output, pinned(usable):
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=_environment()
        )
    try:
        port = _wait_for_port(kind, process, log)
        yield Running(process.pid, port, token, log, began)
    finally:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """Ours, without what would configure the gateway behind the committed file's back."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
    return {**kept, "TRUNKLINE_DATA_DIR": str(DATA), "NODE_ENV": "production"}


def _wait_for_port(kind: Kind, process: subprocess.Popen[bytes], log: Path) -> int:
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up and process.poll() is None:
        found = LISTENING.search(log.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.01)
    raise BenchError(f"{kind.title} did not start:\n{tail(log)}")


def wait_until_ready(server: Running) -> float:
    """Wait until the gateway says that it is ready; returns the seconds since its start."""
    try:
        with urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=START_TIMEOUT):
            return time.monotonic() - server.began
    except OSError as error:
        raise BenchError(f"the gateway is not ready: {error}") from error


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a server's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
