"""What clients may ask of sessions: create, join, patch, invite, remove, close, list, read."""

from __future__ import annotations

import asyncio

import pytest
from peers import details_of, error_of, person, register

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.messages import GatewayMessage
from trunkline.records.memory import MemoryRecords
from trunkline.server import GatewayServer
from trunkline.testing import PeerClient


async def create(peer: PeerClient, session_id: str = "lobby", **payload) -> GatewayMessage:
    return await peer.ask("session_create", {"sessionId": session_id, **payload})


async def join(peer: PeerClient, session_id: str = "lobby") -> GatewayMessage:
    return await peer.ask("session_join", {"sessionId": session_id})


async def patch(peer: PeerClient, session_id: str = "lobby", **changes) -> GatewayMessage:
    return await peer.ask("session_patch", {"sessionId": session_id, "patch": changes})


async def settled(peer: PeerClient) -> list[GatewayMessage]:
    """Everything that came, once nothing is queued for the peer any more."""
    last = peer.send("session_list")
    messages = []
    while not messages or messages[-1].reply_to != last:
        messages.append(await peer.next())
    return messages[:-1]


def user(gateway: GatewayServer, name: str, role: str = "webchat", *scopes: str) -> PeerClient:
    return PeerClient(gateway, person(name, role, *scopes))


# Create


async def test_the_creator_is_a_member_and_is_told_of_the_session(gateway):
    """Everything that a member needs to know stands in the answer."""
    ada = user(gateway, "ada")

    info = await create(ada, name="The lobby", metadata={"topic": "birds"})
    data = info.data()

    assert (info.type, data["status"], data["sessionId"]) == ("session_info", "created", "lobby")
    assert (data["name"], data["metadata"]) == ("The lobby", {"topic": "birds"})
    assert (data["head"], data["next"], data["memberCount"]) == (0, 1, 1)
    assert [m["userId"] for m in data["members"]] == ["ada"]
    assert (data["runs"], data["approvals"], data["recovery"]) == ([], [], "fresh")
    assert len(data["epoch"]) <= 64


async def test_a_session_without_an_id_gets_a_random_one(gateway):
    """At least 128 bits, and the answer tells it."""
    ada = user(gateway, "ada")

    info = await ada.ask("session_create", {})

    assert len(info.data()["sessionId"]) >= 22


async def test_an_id_in_use_is_session_exists_and_joins_nobody(gateway):
    """Whoever owns it."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)

    refusal = await create(bob)

    assert error_of(refusal) == "SESSION_EXISTS"
    assert gateway.sessions.get_clients("lobby") == [ada.client.id]


async def test_join_if_exists_makes_it_a_join_in_every_respect(gateway):
    """With the answer of a join, and the rights of one."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await create(ada, "secret", visibility="private")

    joined = await create(bob, joinIfExists=True, name="Mine now")
    refused = await create(bob, "secret", joinIfExists=True)

    assert (joined.data()["status"], joined.data().get("name")) == ("joined", None)
    assert gateway.sessions.get_record("lobby").owner == "ada"
    assert error_of(refused) == "SESSION_NOT_FOUND"


async def test_metadata_has_a_limit(gateway):
    """On creating and on patching; the path says where."""
    ada = user(gateway, "ada")
    await create(ada)
    large = {"text": "x" * 70_000}

    created = await create(ada, "other", metadata=large)
    patched = await patch(ada, metadata=large)

    assert [error_of(created), error_of(patched)] == ["INVALID_PAYLOAD"] * 2
    assert details_of(created)["path"] == "$.metadata"
    assert details_of(patched)["path"] == "$.patch.metadata"


async def test_metadata_cannot_grow_past_its_limit_by_small_patches(gateway):
    """The sum counts."""
    ada = user(gateway, "ada")
    await create(ada)

    answers = [await patch(ada, metadata={f"k{n}": "x" * 20_000}) for n in range(4)]

    assert [a.type for a in answers] == ["session_info"] * 3 + ["error"]


async def test_an_agent_may_be_assigned_by_id_capability_or_type(gateway):
    """It becomes a member, is told so, and the log says it."""
    bot = user(gateway, "bot", "node")
    await register(bot, "helper", "add", agent_type="pi")
    ada = user(gateway, "ada")

    wishes = {"agentId": "helper"}, {"capability": "tools:add"}, {"agentType": "pi"}
    for number, wish in enumerate(wishes):
        await create(ada, f"s{number}", **wish)
        told = await bot.next("session_info")
        noted = await ada.next("session_info")
        await bot.next("session_info")

        assert (told.data()["status"], told.data()["agentId"]) == ("assigned", "helper")
        assert (told.data()["sessionId"], told.data()["head"]) == (f"s{number}", 0)
        assert (noted.data()["status"], noted.data()["agentId"]) == ("assigned", "helper")
        assert (noted.seq, noted.sender.kind) == (1, "gateway")
        assert bot.client.id in gateway.sessions.get_clients(f"s{number}")


async def test_a_chat_pipelined_behind_a_create_reaches_the_assigned_agent(gateway):
    """The agent is in before the creator's next message is judged."""
    bot = user(gateway, "bot", "node")
    await register(bot, "helper")
    ada = user(gateway, "ada")

    ada.send("session_create", {"sessionId": "lobby", "agentId": "helper"})
    chat = ada.send("chat", {"message": "hi"}, "lobby")

    ack = await ada.next(reply_to=chat)
    assert [r["agentId"] for r in ack.data()["runs"]] == ["helper"]


async def test_an_agent_that_does_not_fit_is_not_assigned(gateway):
    """The session is not created either."""
    ada = user(gateway, "ada")

    for wish in ({"agentId": "nobody"}, {"capability": "fly"}, {"agentType": "pi"}):
        assert error_of(await create(ada, **wish)) == "AGENT_NOT_FOUND"

    assert gateway.sessions.get_record("lobby") is None


# Join and leave


async def test_a_shared_session_is_joined_by_whoever_knows_its_id(gateway):
    """Observers too."""
    await create(user(gateway, "ada"))

    for role in ("observer", "webchat", "node", "control"):
        assert (await join(user(gateway, "x", role))).data()["status"] == "joined"


async def test_a_private_session_is_for_its_owner_the_invited_and_control(gateway):
    """Who may not join is told what an absent session would be told."""
    ada = user(gateway, "ada")
    await create(ada, visibility="private")
    await ada.ask("session_invite", {"sessionId": "lobby", "userId": "bob"})

    answers = {
        name: await join(user(gateway, name, role))
        for name, role in (("ada", "webchat"), ("bob", "webchat"), ("eve", "webchat"),
                           ("root", "control"))
    }  # fmt: skip

    assert [a.type for a in answers.values()] == [
        "session_info", "session_info", "error", "session_info",
    ]  # fmt: skip
    absent = await join(user(gateway, "eve"), "absent")
    assert answers["eve"].data() == absent.data()


async def test_the_right_to_join_is_checked_at_every_join(gateway):
    """A member who lost it may not resume."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada, visibility="private")
    await ada.ask("session_invite", {"sessionId": "lobby", "userId": "bob"})
    epoch = (await join(bob)).data()["epoch"]

    await ada.ask("session_remove", {"sessionId": "lobby", "userId": "bob"})
    since = {"epoch": epoch, "seq": 0}
    answer = await bob.ask("session_join", {"sessionId": "lobby", "since": since})

    assert error_of(answer) == "SESSION_NOT_FOUND"


async def test_a_join_that_was_pipelined_behind_a_removal_is_refused(gateway):
    """The right is judged at the join's place in the queue."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada, visibility="private")
    await ada.ask("session_invite", {"sessionId": "lobby", "userId": "bob"})

    ada.send("session_remove", {"sessionId": "lobby", "userId": "bob"})
    answer = await join(bob)

    assert answer.type == "error"
    assert gateway.sessions.get_clients("lobby") == [ada.client.id]


async def test_at_most_a_hundred_members_are_listed(gateway):
    """Their number is told in full."""
    await gateway.sessions.create_session("lobby")
    for _ in range(120):
        await join(PeerClient(gateway))

    info = await join(PeerClient(gateway))

    assert len(info.data()["members"]) == 100
    assert info.data()["memberCount"] == 121


async def test_leaving_is_answered_and_ends_the_delivery(gateway):
    """Who left gets nothing more."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await join(bob)

    left = await bob.ask("session_leave", {"sessionId": "lobby"})
    await ada.ask("chat", {"message": "hi"}, "lobby")

    assert left.data() == {"sessionId": "lobby", "status": "left"}
    assert await settled(bob) == []


async def test_who_is_not_in_a_session_cannot_leave_it(gateway):
    """`NOT_A_MEMBER` for who might join; the others learn nothing."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await create(ada, "secret", visibility="private")

    shared = await bob.ask("session_leave", {"sessionId": "lobby"})
    private = await bob.ask("session_leave", {"sessionId": "secret"})

    assert (error_of(shared), error_of(private)) == ("NOT_A_MEMBER", "SESSION_NOT_FOUND")


# Patch


async def test_a_patch_reaches_every_member_in_the_log(gateway):
    """The requester gets the same frame with `replyTo`."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await join(bob)

    answer = await patch(ada, name="New", thinkingLevel="high", verbose=True)
    news = await bob.next("session_info")

    assert (answer.seq, news.seq, news.reply_to) == (1, 1, None)
    assert answer.data() == news.data()
    assert (answer.data()["status"], answer.data()["name"]) == ("patched", "New")
    assert answer.data()["metadata"] == {"thinkingLevel": "high", "verbose": True}
    assert news.sender.user_id == "ada"


async def test_metadata_is_merged_one_level_deep_and_null_deletes(gateway):
    """Nested objects are replaced."""
    ada = user(gateway, "ada")
    await create(ada, metadata={"keep": 1, "drop": 2, "deep": {"a": 1}})

    answer = await patch(ada, metadata={"drop": None, "deep": {"b": 2}})

    assert answer.data()["metadata"] == {"keep": 1, "deep": {"b": 2}}


async def test_null_clears_a_patched_value(gateway):
    """The session's default is then in force again."""
    ada = user(gateway, "ada")
    await create(ada)
    await patch(ada, thinkingLevel="high", name="X")

    answer = await patch(ada, thinkingLevel=None, name=None)

    assert answer.data()["metadata"] == {}
    assert answer.data().get("name") is None


async def test_unknown_patch_keys_are_refused_with_their_path(gateway):
    """A typing error is not silently nothing."""
    ada = user(gateway, "ada")
    await create(ada)

    answer = await patch(ada, colour="red")

    assert (error_of(answer), details_of(answer)["path"]) == ("INVALID_PAYLOAD", "$.patch")


async def test_only_the_owner_and_control_may_patch(gateway):
    """A member is told that it may not; a stranger to a private session that there is none."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    root = user(gateway, "root", "control")
    await create(ada)
    await create(ada, "secret", visibility="private")
    await join(bob)

    assert error_of(await patch(bob, name="Mine")) == "FORBIDDEN"
    assert error_of(await patch(bob, "secret", name="Mine")) == "SESSION_NOT_FOUND"
    assert (await patch(root, name="Ours")).data()["status"] == "patched"


GUARDED = [{"model": "big"}, {"elevated": True}, {"sendPolicy": "off"}]


@pytest.mark.parametrize("change", GUARDED)
async def test_guarded_keys_need_the_scope_session_admin(gateway, change):
    """Being the owner or having the role control is not enough."""
    ada = user(gateway, "ada")
    await create(ada)
    root = user(gateway, "root", "control")
    admin = user(gateway, "admin", "control", "session:admin")

    assert error_of(await patch(ada, **change)) == "FORBIDDEN"
    assert error_of(await patch(root, **change)) == "FORBIDDEN"
    assert (await patch(admin, **change)).data()["metadata"] == change


@pytest.mark.parametrize("change", GUARDED)
async def test_guarded_keys_have_no_side_door_through_metadata(gateway, change):
    """Neither in a patch nor on creating."""
    ada = user(gateway, "ada")
    await create(ada)

    patched = await patch(ada, metadata=change)
    cleared = await patch(ada, metadata=dict.fromkeys(change))
    created = await create(ada, "other", metadata=change)

    assert [error_of(a) for a in (patched, cleared, created)] == ["FORBIDDEN"] * 3
    assert gateway.sessions.get_record("lobby").metadata == {}


async def test_the_owner_with_the_scope_may_patch_guarded_keys(gateway):
    """A webchat user may hold it."""
    ada = user(gateway, "ada", "webchat", "session:admin")
    await create(ada)

    assert (await patch(ada, model="big")).data()["metadata"] == {"model": "big"}


async def test_making_a_session_private_keeps_its_members(gateway):
    """Only new joins are judged by it."""
    ada, bob, eve = user(gateway, "ada"), user(gateway, "bob"), user(gateway, "eve")
    await create(ada)
    await join(bob)

    answer = await patch(ada, visibility="private")

    assert answer.data()["visibility"] == "private"
    assert (await bob.ask("chat", {"message": "still here"}, "lobby")).type == "ack"
    assert error_of(await join(eve)) == "SESSION_NOT_FOUND"


class SlowRecords(MemoryRecords):
    """Records whose writes take a turn of the loop, as those on a disk do."""

    async def put(self, kind: str, key: str, value: bytes, expected: int) -> int:
        await asyncio.sleep(0)
        return await super().put(kind, key, value, expected)


async def test_patches_at_the_same_time_are_all_kept():
    """They are applied one after the other, none on top of an old record."""
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    async with GatewayServer(config, records=SlowRecords()) as gateway:
        peers = [PeerClient(gateway) for _ in range(10)]
        await create(peers[0])

        answers = await asyncio.gather(
            *(patch(p, metadata={f"k{n}": n}) for n, p in enumerate(peers))
        )

        assert [a.type for a in answers] == ["session_info"] * 10
        assert gateway.sessions.get_record("lobby").metadata == {f"k{n}": n for n in range(10)}


# Invite, remove, close


async def test_an_invitation_is_in_the_log_and_lets_in(gateway):
    """The members are told who was invited by whom."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada, visibility="private")

    answer = await ada.ask("session_invite", {"sessionId": "lobby", "userId": "bob"})

    assert (answer.data()["status"], answer.data()["userId"], answer.seq) == ("invited", "bob", 1)
    assert (await join(bob)).data()["status"] == "joined"


async def test_a_removed_user_is_told_and_gets_nothing_more(gateway):
    """Every connection of theirs leaves, after the news."""
    ada, bob = user(gateway, "ada"), [user(gateway, "bob") for _ in range(2)]
    await create(ada)
    for peer in bob:
        await join(peer)

    answer = await ada.ask("session_remove", {"sessionId": "lobby", "userId": "bob"})
    await ada.ask("chat", {"message": "alone"}, "lobby")

    assert answer.data()["status"] == "removed"
    for peer in bob:
        last = [m for m in await settled(peer) if m.type != "presence"][-1]
        assert (last.type, last.data()["status"], last.seq) == ("session_info", "removed", 1)
    assert gateway.sessions.get_clients("lobby") == [ada.client.id]


async def test_closing_sends_everybody_out(gateway):
    """Each member is told; the log has it; a join revives the session."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await join(bob)

    answer = await ada.ask("session_close", {"sessionId": "lobby"})
    news = await bob.next("session_info")
    again = await join(bob)

    assert (answer.data()["status"], answer.seq) == ("closed", 1)
    assert (news.data()["status"], news.seq) == ("closed", 1)
    assert (again.data()["status"], again.data()["head"]) == ("joined", 1)


async def test_closing_with_delete_removes_record_and_log(gateway):
    """If the id comes again, its epoch is another."""
    ada = user(gateway, "ada")
    epoch = (await create(ada)).data()["epoch"]

    await ada.ask("session_close", {"sessionId": "lobby", "delete": True})
    gone = await join(ada)
    again = await create(ada)

    assert error_of(gone) == "SESSION_NOT_FOUND"
    assert (again.data()["status"], again.data()["head"]) == ("created", 0)
    assert again.data()["epoch"] != epoch


async def test_a_chat_that_races_a_close_leaves_the_session_usable(gateway):
    """Whatever became of the chat."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await join(bob)

    close = ada.send("session_close", {"sessionId": "lobby"})
    for number in range(5):
        bob.send("chat", {"message": str(number)}, "lobby")
        await asyncio.sleep(0)
    await ada.next(reply_to=close)
    await join(bob)

    assert (await bob.ask("chat", {"message": "back"}, "lobby")).type == "ack"


@pytest.mark.parametrize("type", ["session_invite", "session_remove", "session_close"])
async def test_only_the_owner_and_control_may_administer(gateway, type):
    """A member is not enough."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    root = user(gateway, "root", "control")
    await create(ada)
    await join(bob)
    payload = {"sessionId": "lobby", "userId": "somebody"}

    assert error_of(await bob.ask(type, payload)) == "FORBIDDEN"
    assert (await root.ask(type, payload)).type == "session_info"


# List and history


async def test_the_list_shows_what_one_owns_is_in_or_is_invited_to(gateway):
    """Control sees all; the order is that of the ids."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada, "owned", name="Mine")
    await ada.ask("session_leave", {"sessionId": "owned"})
    await create(bob, "joined")
    await join(ada, "joined")
    await create(bob, "invited", visibility="private")
    await bob.ask("session_invite", {"sessionId": "invited", "userId": "ada"})
    await create(bob, "other")

    mine = (await ada.ask("session_list")).data()
    everything = (await user(gateway, "root", "control").ask("session_list")).data()

    assert [s["sessionId"] for s in mine["sessions"]] == ["invited", "joined", "owned"]
    assert [s["sessionId"] for s in everything["sessions"]] == [
        "invited", "joined", "other", "owned",
    ]  # fmt: skip
    owned = mine["sessions"][2]
    assert (owned["name"], owned["memberCount"], owned["head"]) == ("Mine", 0, 0)
    assert owned["createdAt"] > 1_600_000_000_000


async def test_the_list_comes_in_pages(gateway):
    """`after` names the last id of the page before."""
    ada = user(gateway, "ada")
    for number in range(5):
        await create(ada, f"s{number}")

    first = (await ada.ask("session_list", {"limit": 2})).data()
    second = (await ada.ask("session_list", {"limit": 3, "after": "s1"})).data()

    assert ([s["sessionId"] for s in first["sessions"]], first["more"]) == (["s0", "s1"], True)
    assert [s["sessionId"] for s in second["sessions"]] == ["s2", "s3", "s4"]
    assert second["more"] is False


async def history(peer: PeerClient, **payload) -> dict:
    answer = await peer.ask("session_history", {"sessionId": "lobby", **payload})
    assert answer.type == "session_history", answer.data()
    return answer.data()


async def test_history_is_read_forwards_and_backwards(gateway):
    """Oldest first, with the log's bounds and whether there is more that way."""
    ada = user(gateway, "ada")
    epoch = (await create(ada)).data()["epoch"]
    for number in range(1, 8):
        await ada.ask("chat", {"message": str(number)}, "lobby")

    last = await history(ada, limit=3)
    before = await history(ada, before=5, limit=10)
    after = await history(ada, after=2, limit=2)
    end = await history(ada, after=7)

    assert [m["seq"] for m in last["messages"]] == [5, 6, 7]
    assert (last["first"], last["head"], last["epoch"], last["more"]) == (1, 7, epoch, True)
    assert ([m["seq"] for m in before["messages"]], before["more"]) == ([1, 2, 3, 4], False)
    assert ([m["seq"] for m in after["messages"]], after["more"]) == ([3, 4], True)
    assert (end["messages"], end["more"]) == ([], False)


async def test_history_holds_the_frames_as_they_were_delivered(gateway):
    """Byte for byte, with `from` and `seq`."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await join(bob)
    await ada.ask("chat", {"message": "hi"}, "lobby")
    await bob.next("chat")
    delivered = next(f for f in bob.transport.sent if f.startswith(b'{"type":"chat"'))

    ada.send("session_history", {"sessionId": "lobby"})
    await ada.next("session_history")

    assert delivered in ada.transport.sent[-1]


async def test_a_page_of_history_ends_at_half_a_mebibyte(gateway):
    """In both directions, but has at least one message."""
    ada = user(gateway, "ada")
    await create(ada)
    for _ in range(4):
        await ada.ask("chat", {"message": "x" * 200_000}, "lobby")

    backward = await history(ada)
    forward = await history(ada, after=0)

    assert [m["seq"] for m in backward["messages"]] == [3, 4]
    assert backward["more"] is forward["more"] is True
    assert forward["messages"][0]["seq"] == 1
    assert len(forward["messages"]) <= 3


@pytest.mark.parametrize(
    "payload",
    [
        {"limit": 0},
        {"limit": 301},
        {"after": -1},
        {"after": 2**63},
        {"before": 0},
        {"before": 2**53},
    ],
)
async def test_history_refuses_what_is_out_of_range(gateway, payload):
    """The path names the field."""
    ada = user(gateway, "ada")
    await create(ada)

    answer = await ada.ask("session_history", {"sessionId": "lobby", **payload})

    assert details_of(answer) == {"path": f"$.{next(iter(payload))}"}


async def test_history_is_for_members_and_control(gateway):
    """Others are told as little as when they chat."""
    ada, bob = user(gateway, "ada"), user(gateway, "bob")
    await create(ada)
    await create(ada, "secret", visibility="private")

    shared = await bob.ask("session_history", {"sessionId": "lobby"})
    private = await bob.ask("session_history", {"sessionId": "secret"})
    root = await user(gateway, "root", "control").ask("session_history", {"sessionId": "secret"})

    assert (error_of(shared), error_of(private)) == ("NOT_A_MEMBER", "SESSION_NOT_FOUND")
    assert root.type == "session_history"
