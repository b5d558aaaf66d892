"""A log that was damaged while nobody looked is refused or cut, and never served as it is not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from sizes import Sizes

from e2e.processes import Gateway, Refused
from e2e.records import Final
from e2e.trial import Peer, peer, read_log, trial

SESSIONS = [f"s{n}" for n in range(5)]

FILES = ("log.db", "log.db-wal", "log.db.trace")


async def write_logs(folder: Path) -> dict[str, Final]:
    """Let clients fill some sessions, and kill the gateway; return what the logs hold."""
    async with trial(folder) as running:
        await running.add_load(20, pause=0.02, size=2000)
        await running.progress(200)
        report = await running.judge()
        assert report.violations == []
        async with peer(running.gateway.url) as asking:
            logs = {session: await read_log(asking, session) for session in SESSIONS}
    return logs


def flip_a_bit(path: Path, rng: random.Random) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    bit = rng.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def cut_the_tail(path: Path, rng: random.Random) -> None:
    """Lose the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


async def served(asking: Peer, session: str, cursor: Final) -> tuple[Final, str]:
    """Return a session's log, and how a client that holds all of the old one is received."""
    last = cursor.log[-1].seq
    answer = await asking.ask("session_join", session, since={"epoch": cursor.epoch, "seq": last})
    log = await read_log(asking, session)
    # Reading may find what was not looked at before; then there is another answer.
    again = await asking.ask("session_join", session, since={"epoch": cursor.epoch, "seq": last})
    recovery = again.data().get("recovery", "refused")
    return log, recovery if answer.type == "session_info" else "refused"


def check_honest(before: Final, after: Final, recovery: str) -> None:
    """Check what a gateway makes of a log that may have been damaged."""
    known = {entry.seq: entry for entry in before.log}
    assert all(known.get(entry.seq) == entry for entry in after.log)
    assert [e.seq for e in after.log] == [
        *range(after.trimmed + 1, after.trimmed + 1 + len(after.log))
    ]
    if after.epoch == before.epoch:
        assert after == before
    else:
        assert recovery == "reset"


async def test_a_damaged_log_is_never_served(tmp_path: Path, sized: Sizes) -> None:
    """Wherever a bit flips or a file ends early: a clear refusal, a new epoch, or the whole log."""
    whole = tmp_path / "whole"
    whole.mkdir()
    logs = await write_logs(whole)
    for seed in range(sized(2, 20, 200)):
        rng = random.Random(seed)
        folder = tmp_path / f"copy{seed}"
        shutil.copytree(whole, folder)
        damage = cut_the_tail if seed % 2 else flip_a_bit
        damage(folder / "data" / rng.choices(FILES, [5, 5, 1])[0], rng)

        gateway = Gateway(folder)
        try:
            await check_start(gateway, logs)
        finally:
            await gateway.kill()
        shutil.rmtree(folder)


async def check_start(gateway: Gateway, logs: dict[str, Final]) -> None:
    """Start a gateway on a damaged folder, and check whatever it says."""
    try:
        await gateway.start()
    except Refused:
        assert "restore a backup" in gateway.errors
    else:
        async with peer(gateway.url) as asking:
            for session, before in logs.items():
                after, recovery = await served(asking, session, before)
                check_honest(before, after, recovery)
    assert "Traceback" not in gateway.errors
