"""Asking agents over HTTP: answers, refusals, streams, and no more than once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from http_peers import API, Events, code_of, http, until
from peers import PATIENCE, People, WebSocketPeer, connect, guarded_config, register, token_of

from trunkline.config import LimitsConfig
from trunkline.http import requests as http_requests
from trunkline.http.answers import RequestAnswer
from trunkline.http.requests import Job, Jobs
from trunkline.transports.websocket import WebSocketGateway

ADA = token_of("ada")
TARGET = f"{API}/requests"


@pytest.fixture
async def bot(ws_gateway):
    """An agent, its answers written by the test."""
    peer = await connect(ws_gateway, token_of("bots", "node"))
    await register(peer, "bot", "add")
    return peer


async def reply(bot: WebSocketPeer, **answer: Any) -> dict[str, Any]:
    """Answer the next request; returns what was asked."""
    asked = (await bot.next("route_request")).data()
    await bot.send("route_response", {"requestId": asked["requestId"], **answer})
    return asked


async def test_an_agent_answers(ws_gateway, bot):
    """With a result, or by saying that it could not."""
    async with http(ws_gateway, ADA) as ada:
        asking = asyncio.create_task(ada.post(TARGET, json={"capability": "add", "params": [1, 2]}))
        asked = await reply(bot, result=3)
        good = await asking
        asking = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}))
        await reply(bot, ok=False, error={"code": "NO", "message": "not now"})
        bad = await asking

    assert (asked["params"], good.status_code) == ([1, 2], 200)
    assert good.json()["result"] == 3
    assert (good.json()["ok"], good.json()["agentId"]) == (True, "bot")
    assert good.json()["requestId"] == asked["requestId"]
    assert (bad.status_code, bad.json()["ok"]) == (200, False)
    assert bad.json()["error"] == {"code": "NO", "message": "not now"}


async def test_pieces_of_an_answer_are_collected(ws_gateway, bot):
    """For who did not ask to have them as they come."""
    async with http(ws_gateway, ADA) as ada:
        asking = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}))
        id = (await bot.next("route_request")).data()["requestId"]
        for piece in ("a", "b"):
            await bot.send("route_response", {"requestId": id, "chunk": piece, "done": False})
        await bot.send("route_response", {"requestId": id, "result": "ab"})
        answer = await asking

    assert answer.json()["chunks"] == ["a", "b"]
    assert answer.json()["result"] == "ab"


async def test_pieces_of_an_answer_are_streamed(ws_gateway, bot):
    """As events, until the last one."""
    body = {"agentId": "bot", "stream": True}
    async with http(ws_gateway, ADA) as ada, ada.stream("POST", TARGET, json=body) as answer:
        stream = Events(answer)
        id = (await bot.next("route_request")).data()["requestId"]
        await bot.send("route_response", {"requestId": id, "chunk": "a", "done": False})
        first = await stream.next()
        await bot.send("route_response", {"requestId": id, "result": "ab"})
        last = await stream.next()
        await stream.over()

    assert answer.headers["content-type"] == "text/event-stream"
    assert (first.name, first.data["payload"]["chunk"]) == ("route_response", "a")
    assert last.data["payload"]["result"] == "ab"
    await until(lambda: len(ws_gateway.clients) == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_have_the_protocols_codes(ws_gateway, bot, stream):
    """With a status that says the same, before any event."""
    async with http(ws_gateway, ADA) as ada:
        absent = await ada.post(TARGET, json={"agentId": "nobody", "stream": stream})
        nobody = await ada.post(TARGET, json={"stream": stream})
        late = await ada.post(TARGET, json={"agentId": "bot", "timeoutMs": 1})

    assert (absent.status_code, code_of(absent)) == (404, "AGENT_NOT_FOUND")
    assert absent.json()["error"]["details"] == {"delivered": False}
    assert (nobody.status_code, code_of(nobody)) == (400, "INVALID_PAYLOAD")
    assert (late.status_code, code_of(late)) == (504, "TIMEOUT")
    assert late.json()["error"]["details"] == {"delivered": True}


async def test_a_caller_that_leaves_cancels_its_request(ws_gateway, bot):
    """The agent is told, and free for others."""
    async with http(ws_gateway, ADA) as ada:
        asking = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}))
        await bot.next("route_request")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await bot.next("route_cancel")

    assert ws_gateway.router.ends == {"CANCELLED": 1}


# With a key


async def test_a_request_with_a_key_is_asked_once(ws_gateway, bot):
    """At the same time or later: the agent sees one, and all get its answer."""
    body = {"agentId": "bot", "params": {"n": 1}}
    async with http(ws_gateway, ADA, **{"Idempotency-Key": "k"}) as ada:
        asking = [asyncio.create_task(ada.post(TARGET, json=body)) for _ in range(5)]
        await reply(bot, result="once")
        answers = [await a for a in asking]
        answers.append(await ada.post(TARGET, json=body))

    assert {a.content for a in answers} == {answers[0].content}
    assert answers[0].json()["result"] == "once"
    assert [m.type for m in await bot.left()] == []


async def test_a_key_is_for_one_request(ws_gateway, bot):
    """Another body is a conflict, whatever became of the first; another user's is another."""
    async with http(ws_gateway, ADA, **{"Idempotency-Key": "k"}) as ada:
        asking = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot", "params": 1}))
        asked = await bot.next("route_request")
        early = await ada.post(TARGET, json={"agentId": "bot", "params": 2})
        await bot.send("route_response", {"requestId": asked.data()["requestId"], "result": 1})
        await asking
        late = await ada.post(TARGET, json={"agentId": "bot", "params": 2})
        async with http(ws_gateway, token_of("bob"), **{"Idempotency-Key": "k"}) as bob:
            asking = asyncio.create_task(bob.post(TARGET, json={"agentId": "bot", "params": 2}))
            await reply(bot, result=2)
            other = await asking

    assert (early.status_code, code_of(early)) == (409, "ID_CONFLICT")
    assert (late.status_code, code_of(late)) == (409, "ID_CONFLICT")
    assert other.json()["result"] == 2


async def test_a_request_with_a_key_outlives_its_caller(ws_gateway, bot):
    """Who comes back gets the answer that it missed."""
    body = {"agentId": "bot"}
    async with http(ws_gateway, ADA, **{"Idempotency-Key": "k"}) as ada:
        asking = asyncio.create_task(ada.post(TARGET, json=body))
        asked = await bot.next("route_request")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        again = asyncio.create_task(ada.post(TARGET, json=body))
        await bot.send("route_response", {"requestId": asked.data()["requestId"], "result": 1})
        answer = await again

    assert answer.json()["result"] == 1
    assert ws_gateway.router.ends == {"ok": 1}


async def test_what_no_agent_got_may_be_tried_again_under_its_key(ws_gateway):
    """What one got may not: its outcome is unknown."""
    body = {"agentId": "bot", "timeoutMs": 50}
    async with http(ws_gateway, ADA, **{"Idempotency-Key": "k"}) as ada:
        absent = await ada.post(TARGET, json=body)
        bot = await connect(ws_gateway, token_of("bots", "node"))
        await register(bot, "bot")
        late = await ada.post(TARGET, json=body)
        same = await ada.post(TARGET, json=body)

    assert code_of(absent) == "AGENT_NOT_FOUND"
    assert (code_of(late), late.content) == ("TIMEOUT", same.content)
    assert len([m for m in await bot.left() if m.type == "route_request"]) == 1


async def test_a_streamed_answer_has_no_key(ws_gateway, bot):
    """For it could not be repeated."""
    async with http(ws_gateway, ADA, **{"Idempotency-Key": "k"}) as ada:
        answer = await ada.post(TARGET, json={"agentId": "bot", "stream": True})

    assert (answer.status_code, code_of(answer)) == (400, "INVALID_PAYLOAD")


async def test_answers_are_forgotten_after_a_while(ws_gateway, bot, monkeypatch):
    """By age and by their bytes; the oldest first."""
    jobs = ws_gateway.api.requests.jobs
    async with http(ws_gateway, ADA) as ada:

        async def ask(key: str) -> Any:
            asking = asyncio.create_task(
                ada.post(TARGET, json={"agentId": "bot"}, headers={"Idempotency-Key": key})
            )
            await reply(bot, result="x" * 1000)
            return (await asking).json()["result"]

        monkeypatch.setattr(http_requests, "ANSWERS_BYTES", 2_500)
        for key in "abc":
            await ask(key)
        assert len(jobs) == 2
        monkeypatch.setattr(http_requests, "ANSWERS_KEPT", 0.0)
        await ask("a")

    assert len(jobs) == 1


async def test_a_user_keeps_only_so_many_answers(ws_gateway, bot, monkeypatch):
    """The oldest go, and never one that is at work."""
    monkeypatch.setattr(http_requests, "ANSWERS_PER_USER", 2)
    async with http(ws_gateway, ADA) as ada:
        for key in "abcd":
            headers = {"Idempotency-Key": key}
            asking = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}, headers=headers))
            await reply(bot, result=key)
            await asking

    assert len(ws_gateway.api.requests.jobs) == 2


class WatchedJob(Job):
    """A job that counts how often it was looked at, it and all others."""

    looks = 0

    @property
    def ended_at(self) -> float | None:
        WatchedJob.looks += 1
        return self.end

    @ended_at.setter
    def ended_at(self, end: float | None) -> None:
        self.end = end


async def test_adding_a_request_looks_at_no_more_of_the_others_however_many_there_are():
    """Half of them are answered, half are at work, by two users."""
    looks = []
    for count in (10, 200):
        jobs, never = Jobs(), asyncio.Event()

        async def answer(at_work: bool, never: asyncio.Event = never) -> RequestAnswer:
            if at_work:
                await never.wait()
            return RequestAnswer(request_id="r", agent_id="a", ok=True)

        def add(number: int, at_work: bool, jobs: Jobs = jobs) -> Job:
            owner, key = (f"user {number // 2 % 2}", None), f"key {number}"
            assert jobs.find(owner, key, b"") is None
            job = WatchedJob(b"", asyncio.create_task(answer(at_work)))
            jobs.add(owner, key, job)
            return job

        made = [add(number, at_work=number % 2 == 0) for number in range(count)]
        await asyncio.gather(*(job.task for job in made[1::2]))
        WatchedJob.looks = 0
        add(count, at_work=True)
        looks.append(WatchedJob.looks)
        await jobs.stop()

    assert looks[0] == looks[1]


async def test_a_credential_has_only_so_many_open_requests():
    """However many connections it makes for them."""
    limits = LimitsConfig(requests_per_connection=2)
    async with WebSocketGateway(guarded_config(limits=limits), authenticator=People()) as gateway:
        bot = await connect(gateway, token_of("bots", "node"))
        await register(bot, "bot")
        async with http(gateway, ADA) as ada:
            asking = [
                asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}, headers=headers))
                for headers in ({}, {"Idempotency-Key": "k"})
            ]
            requests = [(await bot.next("route_request")).data()["requestId"] for _ in asking]
            refused = await ada.post(TARGET, json={"agentId": "bot"})
            for id in requests:
                await bot.send("route_response", {"requestId": id, "result": 1})
            answers = [await a for a in asking]
            again = asyncio.create_task(ada.post(TARGET, json={"agentId": "bot"}))
            await reply(bot, result=2)
            after = await again
        await bot.close()

    assert (refused.status_code, code_of(refused)) == (503, "OVERLOADED")
    assert [a.status_code for a in answers] == [200, 200]
    assert after.json()["result"] == 2


# Looking


async def test_open_requests_are_listed_for_operators(ws_gateway, bot):
    """Who asked, whom, and since when."""
    async with http(ws_gateway, ADA) as ada, http(ws_gateway, token_of("boss", "control")) as boss:
        asking = asyncio.create_task(ada.post(TARGET, json={"capability": "add"}))
        asked = await bot.next("route_request")
        (entry,) = (await boss.get(TARGET)).json()["requests"]
        await bot.send("route_response", {"requestId": asked.data()["requestId"]})
        await asking
        empty = (await boss.get(TARGET)).json()["requests"]

    assert entry["id"] == asked.data()["requestId"]
    assert (entry["userId"], entry["capability"], entry["agent"]) == ("ada", "add", "bot")
    assert (entry["waiting"], entry["timeoutMs"]) == (False, 60_000)
    assert 0 <= entry["age"] < PATIENCE
    assert empty == []


async def test_a_decision_is_explained_and_agents_are_listed(ws_gateway, bot):
    """The answers are the protocol's payloads."""
    async with http(ws_gateway, token_of("boss", "control")) as boss:
        explained = (await boss.post(f"{TARGET}/explain", json={"capability": "add"})).json()
        listed = (await boss.get(f"{API}/agents", params={"capability": "add"})).json()
        none = (await boss.get(f"{API}/agents", params={"type": "pi"})).json()
        wrong = await boss.get(f"{API}/agents", params={"status": "asleep"})

    assert [c["agentId"] for c in explained["candidates"]] == ["bot"]
    assert [a["id"] for a in listed["agents"]] == ["bot"]
    assert none == {"agents": []}
    assert (wrong.status_code, code_of(wrong)) == (400, "INVALID_PAYLOAD")
