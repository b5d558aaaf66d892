"""Answers that were streaming when the gateway died go on, or end with a word."""

from __future__ import annotations

import signal
from pathlib import Path

from e2e.trial import Trial, agent, peer, trial


async def die_in_the_middle(running: Trial) -> tuple[str, dict[str, object]]:
    """Kill the gateway while an answer streams; return the run, and where the asker was."""
    async with (
        agent(running.gateway.url, "s0") as (ada, _),
        peer(running.gateway.url, "asker") as ben,
    ):
        await ben.ask("session_join", "s0")
        ack = (await ben.ask("chat", "s0", message="tell me")).data()
        [run] = ack["runs"]
        for index, text in enumerate(("once upon ", "a time")):
            await ada.send_chunk("s0", run["runId"], index, text)
        await ben.next(lambda m: m.type == "chat_stream" and m.data()["index"] == 1)
        await running.gateway.kill()
    return run["runId"], {"epoch": ack["epoch"], "seq": ack["seq"]}


async def test_a_returning_agent_ends_its_answer(tmp_path: Path) -> None:
    """Its run is rebuilt from the log; it sends its text again in one piece, and goes on."""
    async with trial(tmp_path, sessions=1) as running:
        run, since = await die_in_the_middle(running)
        await running.gateway.start()
        async with (
            agent(running.gateway.url, "s0") as (ada, registered),
            peer(running.gateway.url, "asker") as ben,
        ):
            joined = await ben.ask("session_join", "s0", since=since)
            await ada.send_chunk("s0", run, 0, "once upon a time")
            chunk = await ben.next(lambda m: m.type == "chat_stream")
            await ada.ask("chat_complete", "s0", runId=run, content="once upon a time, the end")
            end = await ben.next(lambda m: m.type == "chat_complete")

    assert registered.data()["runs"] == [{"sessionId": "s0", "runId": run, "index": -1}]
    assert joined.data()["recovery"] == "resumed"
    assert joined.data()["runs"] == [{"runId": run, "agentId": "ada", "index": -1}]
    assert chunk.data()["content"] == "once upon a time"
    assert end.data()["content"] == "once upon a time, the end"
    assert end.data()["runId"] == run


async def test_an_agent_that_does_not_return_is_lost(tmp_path: Path) -> None:
    """Who waits for an answer is told so, once the agent had its time to come back."""
    async with trial(tmp_path, {"SESSIONS__RUN_RECOVERY": "0.5"}, sessions=1) as running:
        run, since = await die_in_the_middle(running)
        await running.gateway.start()
        async with peer(running.gateway.url, "asker") as ben:
            await ben.ask("session_join", "s0", since=since)
            end = await ben.next(lambda m: m.type == "chat_complete")

    assert end.data()["runId"] == run
    assert end.data()["status"] == "lost"
    assert end.seq == 2


async def test_a_drain_waits_for_the_answer_to_end(tmp_path: Path) -> None:
    """An answer that is under way when the gateway is asked to stop is brought to its end."""
    async with trial(tmp_path, sessions=1) as running:
        async with (
            agent(running.gateway.url, "s0") as (ada, _),
            peer(running.gateway.url, "asker") as ben,
        ):
            await ben.ask("session_join", "s0")
            ack = (await ben.ask("chat", "s0", message="tell me")).data()
            run = ack["runs"][0]["runId"]
            async with peer(running.gateway.url, "idle") as idle:
                running.gateway.send(signal.SIGTERM)
                await idle.next(lambda m: m.type == "going_away")
            done = await ada.ask("chat_complete", "s0", runId=run, content="the end")
            end = await ben.next(lambda m: m.type == "chat_complete")
            await ben.next(lambda m: m.type == "going_away")
            await ada.next(lambda m: m.type == "going_away")
        code = await running.gateway.died()

    assert done.type == "ack"
    assert end.data()["content"] == "the end"
    assert code == 0
