"""A full disk stops writing only, and only for as long as it is full."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from e2e.processes import Gateway
from e2e.trial import Peer, Report, Trial, peer, read_log

MIB = 1024 * 1024

ENOUGH = 400
"""Messages of 20,000 characters that no disk of these tests has room for."""


def can_mount() -> bool:
    """Whether this user may mount a file system in a namespace of its own."""
    return os.geteuid() == 0 and shutil.which("unshare") is not None


async def publish_until_refused(running: Trial, asking: Peer) -> tuple[int, dict[str, object]]:
    """Publish until the gateway refuses; return the last place in the log, and the error."""
    seq = 0
    for _ in range(ENOUGH):
        answer = await running.publish(asking, "s0", "x" * 20_000)
        if answer.type == "error":
            return seq, answer.data()
        seq = answer.data()["seq"]
    raise AssertionError("the disk was never full")


async def publish_until_stored(running: Trial, asking: Peer) -> None:
    """Publish until the gateway stores again, for at most five seconds."""
    async with asyncio.timeout(5):
        answer = await running.publish(asking, "s0", "x" * 20_000)
        while answer.type == "error":
            await asyncio.sleep(answer.data()["retryAfterMs"] / 1000)
            answer = await running.publish(asking, "s0", "x" * 20_000)


async def check_full_disk(
    running: Trial, fill: Callable[[], None], free: Callable[[], None]
) -> Report:
    """Fill the disk under load, look at what goes on, and make room again."""
    await running.begin()
    await running.add_load(20)
    await running.progress(20)
    async with peer(running.gateway.url) as asking:
        await asking.ask("session_join", "s0")
        fill()
        last, error = await publish_until_refused(running, asking)
        before = await read_log(asking, "s0")
        resumed = await asking.ask(
            "session_join", "s0", since={"epoch": before.epoch, "seq": last - 1}
        )
        pong = await asking.ask("ping")
        free()
        await publish_until_stored(running, asking)
    await running.progress(20)

    assert (error["code"], error["retryable"]) == ("STORAGE_FULL", True)
    assert before.log[-1].seq >= last
    assert resumed.data()["recovery"] == "resumed"
    assert pong.type == "pong"
    return await running.judge()


def intact(data: Path) -> bool:
    """Whether SQLite finds nothing wrong with the log's file."""
    with closing(sqlite3.connect(data / "log.db")) as db:
        return bool(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))


async def test_a_limit_on_files_is_survived(tmp_path: Path) -> None:
    """Where the system grants no more room, appends are refused, reads and resumes go on."""
    gateway = Gateway(tmp_path)
    running = Trial(tmp_path, gateway)

    def limit(size: int) -> None:
        pid = gateway.running.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    try:
        report = await check_full_disk(
            running, lambda: limit(1 * MIB), lambda: limit(resource.RLIM_INFINITY)
        )
        code = await gateway.stop()
    finally:
        await running.end()

    assert report.violations == []
    assert code == 0
    assert intact(gateway.data)
    assert "Traceback" not in gateway.errors


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small file system")
async def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """On a file system of 4 MiB that fills up, appends are refused, reads and resumes go on."""
    (tmp_path / "data").mkdir()
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    wrap = ("unshare", "--mount", "sh", "-c", mount, str(tmp_path / "data"))
    gateway = Gateway(tmp_path, wrap=wrap)
    running = Trial(tmp_path, gateway)

    def filler() -> Path:
        # The file system exists for the gateway only, so it is reached through its process.
        return Path(f"/proc/{gateway.running.pid}/root{tmp_path}/data/filler")

    def fill() -> None:
        filler().write_bytes(b"x" * MIB)

    try:
        report = await check_full_disk(running, fill, lambda: filler().unlink())
        code = await gateway.stop()
    finally:
        await running.end()

    assert report.violations == []
    assert code == 0
    assert "Traceback" not in gateway.errors
