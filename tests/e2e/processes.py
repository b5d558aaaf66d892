"""The processes of a trial: the gateway, and loads of clients."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from e2e.client import TOKEN, Plan
from e2e.loader import Load, Order

PATIENCE = 60.0
"""Seconds after which something that should have happened has not."""

SERVE = (sys.executable, "-m", "trunkline", "serve")

TESTS = Path(__file__).resolve().parents[1]


def clean_environ(**more: str) -> dict[str, str]:
    """Return the environment without our variables, and with `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
    return kept | more


class Gateway:
    """
    A gateway that is started and ended, again and again, on one data folder.

    Args:
        folder: Its data folder, and the files that this class keeps.
        settings: Environment variables, without their prefix.
        wrap: A command that runs the gateway's.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        options: Sequence[str] = (),
        wrap: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.data = folder / "data"
        self.address = folder / "address"
        """The file that says where the gateway is."""
        self.port = 0
        self._errors = folder / "gateway.stderr"
        self._environ = clean_environ(
            TRUNKLINE_LIMITS__PUBLISH_RATE="100000",
            TRUNKLINE_LIMITS__PUBLISH_BURST="100000",
            **{f"TRUNKLINE_{name}": value for name, value in (settings or {}).items()},
        )
        self._environ.update(environ or {})
        self._command = (
            *wrap,
            *SERVE,
            *("--port", "0", "--auth", "token", "--token", TOKEN, "--history", "sqlite"),
            *("--data-dir", str(self.data)),
            *options,
        )
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, failpoint: str = "") -> None:
        """Start it and wait until it listens."""
        environ = self._environ | ({"TRUNKLINE_FAILPOINT": failpoint} if failpoint else {})
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self.process.stdout.readline()).decode()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            await self.process.wait()
            raise Refused(self.errors)
        self.port = int(found[1])
        announce(self.address, self.port)

    @property
    def running(self) -> asyncio.subprocess.Process:
        """The process."""
        assert self.process is not None
        return self.process

    @property
    def url(self) -> str:
        """Where its WebSocket is."""
        return websocket_url(self.port)

    @property
    def errors(self) -> str:
        """What it wrote to stderr, through all starts."""
        return self._errors.read_text(errors="replace")

    def memory(self) -> int:
        """Return the bytes of memory that it has now."""
        pages = int(Path(f"/proc/{self.running.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> int:
        """Return how many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.running.pid}/fd"))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.running.send_signal(number)

    async def died(self) -> int:
        """Wait for its end; return the exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self.running.wait()

    async def frozen(self) -> None:
        """Wait until it stands still."""
        stat = Path(f"/proc/{self.running.pid}/stat")
        async with asyncio.timeout(PATIENCE):
            # Nobody tells a process that has not traced another one of its stopping.
            while stat.read_text().rpartition(") ")[2][0] != "T":  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def stop(self) -> int:
        """End it in good order; return the exit code."""
        self.send(signal.SIGTERM)
        return await self.died()


class Refused(Exception):
    """The gateway did not start; says what it wrote."""


def websocket_url(port: int) -> str:
    """Return where a gateway's WebSocket is."""
    return f"ws://127.0.0.1:{port}/ws"


def announce(file: Path, port: int) -> None:
    """Write down where clients connect to; they never find half of it."""
    new = file.with_suffix(".new")
    new.write_text(websocket_url(port))
    new.replace(file)


class LoaderProcess:
    """A process full of clients; see `e2e.loader`."""

    def __init__(self, process: asyncio.subprocess.Process, record: Path) -> None:
        self._process = process
        self.record = record
        self.counts: dict[str, int] = {}
        """What happened, as of the last order."""

    @classmethod
    async def start(cls, record: Path, plans: Sequence[Plan]) -> LoaderProcess:
        """Start the process and its clients."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "e2e.loader"),
            cwd=TESTS,
            env=clean_environ(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self = cls(process, record)
        self._write(Load(plans=[*plans], record=str(record)))
        return self

    def _write(self, order: Load | Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def obey(self, order: Order) -> dict[str, int]:
        """Wait until an order is done; return the counts."""
        self._write(order)
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE + order.patience):
            line = await self._process.stdout.readline()
        assert line, "the load has died"
        self.counts = msgspec.json.decode(line, type=dict[str, int])
        return self.counts

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
