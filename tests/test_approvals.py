"""Approvals: asked in a run, answered once, kept in the log."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from peers import details_of, error_of, person, register

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.digests import approval_digest
from trunkline.history.memory import MemoryHistory
from trunkline.messages import GatewayMessage
from trunkline.records.memory import MemoryRecords
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient

OPEN = AuthConfig(mode="none")
ARGS = {"path": "a.txt", "size": 1.0}


async def asked(gateway: GatewayServer) -> tuple[PeerClient, PeerClient]:
    """A person who may approve, and an agent with an open run, in one session."""
    ada = PeerClient(gateway, person("ada", "webchat", "approve"))
    bot = PeerClient(gateway, person("bots", "node"))
    await register(bot, "bot")
    await ada.ask("session_create", {"sessionId": "lobby"})
    await bot.ask("session_join", {"sessionId": "lobby"})
    await ada.ask("chat", {"message": "delete it"}, "lobby")
    return ada, bot


def request(approval_id: str = "a1", **more: Any) -> dict[str, Any]:
    return {
        "approvalId": approval_id,
        "tool": "delete",
        "args": ARGS,
        "digest": approval_digest("delete", ARGS),
        "expiresAt": round(time.time() * 1000) + 60_000,
        **more,
    }


def response(decision: str = "allow", approval_id: str = "a1", **more: Any) -> dict[str, Any]:
    digest = approval_digest("delete", ARGS)
    return {"approvalId": approval_id, "decision": decision, "digest": digest, **more}


async def ask(bot: PeerClient, **more: Any) -> GatewayMessage:
    return await bot.ask("approval_request", request(**more), "lobby")


async def answer(peer: PeerClient, *args: Any, **more: Any) -> GatewayMessage:
    return await peer.ask("approval_response", response(*args, **more), "lobby")


async def test_a_request_and_its_answer_stand_in_the_log(gateway):
    """With the run's id and the proven senders."""
    ada, bot = await asked(gateway)

    stored = await ask(bot)
    question = await ada.next("approval_request")
    decided = await answer(ada, reason="fine")
    heard = await bot.next("approval_response")

    assert (stored.type, decided.type) == ("ack", "ack")
    assert (question.data()["runId"], question.data()["args"]) == ("1.bot", ARGS)
    assert question.sender.agent_id == "bot"
    assert (heard.data()["decision"], heard.data()["reason"]) == ("allow", "fine")
    assert (heard.sender.user_id, heard.seq) == ("ada", question.seq + 1)


async def test_the_first_answer_wins(gateway):
    """The others are told what was decided."""
    ada, bot = await asked(gateway)
    bob = PeerClient(gateway, person("bob", "webchat", "approve"))
    await bob.ask("session_join", {"sessionId": "lobby"})
    await ask(bot)

    first = ada.send("approval_response", response("deny"), "lobby")
    second = bob.send("approval_response", response("allow"), "lobby")
    won = await ada.next(reply_to=first)
    late = await bob.next(reply_to=second)
    again = await answer(ada, "allow")

    assert won.type == "ack"
    for refusal in (late, again):
        assert error_of(refusal) == "ALREADY_DECIDED"
        assert details_of(refusal) == {"decision": "deny"}
    assert (await bot.next("approval_response")).data()["decision"] == "deny"


@pytest.mark.parametrize("change", [{"args": {"path": "b.txt"}}, {"tool": "read"}, {"digest": "0"}])
async def test_the_gateway_computes_the_digest_itself(gateway, change):
    """An agent cannot show one thing and ask for another."""
    _, bot = await asked(gateway)

    assert error_of(await ask(bot, **change)) == "DIGEST_MISMATCH"


async def test_an_answer_names_what_it_answers(gateway):
    """Another digest is refused, and the approval stays open."""
    ada, bot = await asked(gateway)
    await ask(bot)

    refusal = await answer(ada, digest="0" * 64)
    accepted = await answer(ada)

    assert (error_of(refusal), accepted.type) == ("DIGEST_MISMATCH", "ack")


async def test_arguments_are_compared_by_value_not_by_spelling(gateway):
    """RFC 8785: order, white space and the spelling of numbers do not count."""
    _, bot = await asked(gateway)
    args = Raw(b'{ "size":1, "path" : "a\\u002etxt"}')

    assert (await ask(bot, args=args)).type == "ack"


async def test_approving_needs_the_scope_and_another_connection(gateway):
    """The agent itself never answers."""
    ada, bot = await asked(gateway)
    eve = PeerClient(gateway, person("eve"))
    await eve.ask("session_join", {"sessionId": "lobby"})
    await ask(bot)

    assert error_of(await answer(eve)) == "FORBIDDEN"
    assert error_of(await answer(bot)) == "FORBIDDEN"
    assert (await answer(ada)).type == "ack"


@pytest.mark.parametrize("ahead", [-1, 24 * 3_600_000 + 60_000])
async def test_a_request_expires_within_a_day(gateway, ahead):
    """Not in the past, and not later."""
    _, bot = await asked(gateway)

    refusal = await ask(bot, expiresAt=round(time.time() * 1000) + ahead)

    assert details_of(refusal) == {"path": "$.expiresAt"}


async def test_what_nobody_answers_the_gateway_denies(gateway):
    """In the log, like any answer; a later one comes too late."""
    ada, bot = await asked(gateway)
    await ask(bot, expiresAt=round(time.time() * 1000) + 30)
    while (
        time.time() * 1000
        < gateway.sessions.get_session("lobby").approvals["a1"].request.expires_at
    ):
        await gateway.tick()

    await gateway.tick()
    denial = await ada.next("approval_response")
    late = await answer(ada)

    assert denial.data()["decision"] == "deny"
    assert denial.sender.kind == "gateway"
    assert details_of(late) == {"decision": "deny"}


async def test_who_joins_gets_the_open_ones(gateway):
    """As they were delivered; answered ones are not among them."""
    ada, bot = await asked(gateway)
    for approval_id in ("a1", "a2"):
        await ask(bot, approval_id=approval_id)
    await answer(ada)

    joined = await PeerClient(gateway).ask("session_join", {"sessionId": "lobby"})

    (still_open,) = joined.data()["approvals"]
    assert still_open["type"] == "approval_request"
    assert still_open["payload"]["approvalId"] == "a2"
    assert still_open["seq"] == 3


async def test_the_end_of_its_run_cancels_an_approval(gateway):
    """Nobody waits for the answer any more."""
    ada, bot = await asked(gateway)
    await ask(bot)
    await bot.ask("chat_complete", {"content": "never mind"}, "lobby")

    refusal = await answer(ada)
    joined = await PeerClient(gateway).ask("session_join", {"sessionId": "lobby"})

    assert error_of(refusal) == "RUN_ENDED"
    assert joined.data()["approvals"] == []


async def test_an_approval_id_is_used_once(gateway):
    """A repeated message is the same request, another one is a conflict."""
    ada, bot = await asked(gateway)
    first = bot.send("approval_request", (payload := request()), "lobby", id="m1")
    again = bot.send("approval_request", payload, "lobby", id="m1")

    acks = [await bot.next(reply_to=first), await bot.next(reply_to=again)]
    conflict = await ask(bot)
    await answer(ada)

    assert [a.data().get("duplicate") for a in acks] == [None, True]
    assert error_of(conflict) == "ID_CONFLICT"
    assert error_of(await ask(bot)) == "ID_CONFLICT"


async def test_an_unknown_approval_cannot_be_answered(gateway):
    """The path says what is wrong."""
    ada, _ = await asked(gateway)

    assert details_of(await answer(ada)) == {"path": "$.approvalId"}


async def test_a_silenced_agent_may_not_ask(gateway):
    """`sendPolicy: off` holds for approvals too."""
    _, bot = await asked(gateway)
    root = PeerClient(gateway, person("root", "control", "session:admin"))
    await root.ask("session_patch", {"sessionId": "lobby", "patch": {"sendPolicy": "off"}})

    assert error_of(await ask(bot)) == "FORBIDDEN"


class KeptRecords(MemoryRecords):
    async def close(self) -> None:
        pass


class KeptHistory(MemoryHistory):
    durability = "process"

    async def close(self) -> None:
        pass


async def test_open_approvals_are_rebuilt_from_the_log_after_a_restart():
    """Answered ones are not, and the digest still counts."""
    records, history, config = KeptRecords(), KeptHistory(), GatewayConfig(auth=OPEN)
    async with GatewayServer(config, records=records, history=history) as gateway:
        ada = PeerClient(gateway, person("ada", "webchat", "approve"))
        bot = PeerClient(gateway, person("bots", "node"))
        await register(bot, "bot", grace_ms=60_000)
        await ada.ask("session_create", {"sessionId": "lobby"})
        await bot.ask("session_join", {"sessionId": "lobby"})
        await ada.ask("chat", {"message": "delete it"}, "lobby")
        for approval_id in ("a1", "a2"):
            await ask(bot, approval_id=approval_id)
        await answer(ada)
    async with GatewayServer(config, records=records, history=history) as gateway:
        ada = PeerClient(gateway, person("ada", "webchat", "approve"))

        joined = await ada.ask("session_join", {"sessionId": "lobby"})
        settled = await answer(ada, "allow", "a1")
        accepted = await answer(ada, "allow", "a2")

        assert [a["payload"]["approvalId"] for a in joined.data()["approvals"]] == ["a2"]
        assert error_of(settled) == "ALREADY_DECIDED"
        assert accepted.type == "ack"


# The digest


def test_the_digest_is_that_of_the_canonical_json():
    """Computed by hand for one example."""
    canonical = '{"args":{"a":1,"b":"€"},"tool":"t"}'

    digest = approval_digest("t", {"b": "€", "a": 1.0})

    assert digest == hashlib.sha256(canonical.encode()).hexdigest()


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**53) + 1, 2**53 - 1), max_size=5))
def test_the_digest_does_not_depend_on_the_order_of_keys(args):
    """Nor on how the dictionary was made."""
    backwards = dict(reversed(args.items()))

    assert approval_digest("t", args) == approval_digest("t", backwards)
