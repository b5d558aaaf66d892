"""The HTTP API on a real port: who may ask what, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from http_peers import API, code_of, head, http
from peers import connect, guarded_config, hang_up, open_config, register, token_of
from rawsocket import RawSocket

from trunkline.authdb import AuthDatabase
from trunkline.config import AuthConfig, LimitsConfig, OriginConfig
from trunkline.errors import ErrorCode
from trunkline.http.failures import STATUS
from trunkline.http.table import BASE, Endpoint, Table
from trunkline.rights import HTTP_RIGHTS, RIGHTS, ROLES
from trunkline.transports.websocket import WebSocketGateway

SCOPES = ("credential:admin", "metrics")


@pytest.fixture
async def stored() -> AsyncIterator[WebSocketGateway]:
    """A gateway with stored credentials; its owner's token is ``owners``."""
    database = AuthDatabase()
    config = guarded_config(auth=AuthConfig(token="owners"))
    async with WebSocketGateway(config, authdb=database) as gateway:
        yield gateway
        await hang_up(gateway)
    database.close()


def table_of(gateway: WebSocketGateway) -> list[Endpoint]:
    return gateway.api.table.endpoints


async def asked(
    gateway: WebSocketGateway, method: str, path: str, token: str | None = None, **more: Any
) -> httpx.Response:
    async with http(gateway, token) as client:
        return await client.request(method, path, **more)


# Rights


def test_a_route_without_a_row_of_rights_does_not_start():
    """Nobody can forget the check."""

    async def run(call: Any) -> None: ...

    with pytest.raises(ValueError, match="no row for 'secrets'"):
        Table([Endpoint(method="GET", path="/x", right="secrets", run=run, summary="")])


async def test_every_route_is_for_the_roles_of_its_row(ws_gateway):
    """Whoever has no condition there is `FORBIDDEN`, and whoever lacks its scope."""
    for endpoint in table_of(ws_gateway):
        if endpoint.stream:
            continue
        row = HTTP_RIGHTS.get(endpoint.right) or RIGHTS[endpoint.right]
        target = BASE + endpoint.path.replace("{id}", "absent")
        body = {"json": {}} if endpoint.body is not None else {}
        for role in ROLES:
            condition = row.condition(role)
            token = token_of(f"user-{role}", role, "approve")

            answer = await asked(ws_gateway, endpoint.method, target, token, **body)

            forbidden = answer.status_code == 403
            assert forbidden is (condition is None or condition in SCOPES), (target, role)
            if condition in SCOPES:
                token = token_of("boss", role, condition)
                answer = await asked(ws_gateway, endpoint.method, target, token, **body)
                assert answer.status_code != 403, (target, role)


SESSION_ROUTES = [
    ("GET", "", None),
    ("PATCH", "", {"patch": {"name": "Mine"}}),
    ("DELETE", "", None),
    ("DELETE", "?delete=true", None),
    ("GET", "/messages", None),
    ("POST", "/messages", {"message": "hi"}),
    ("GET", "/events", None),
    ("GET", "/events?since=x:1", None),
]


@pytest.mark.parametrize(("method", "rest", "body"), SESSION_ROUTES)
async def test_anothers_session_looks_like_one_that_is_not_there(ws_gateway, method, rest, body):
    """Byte for byte, whatever the role; and nothing happens to it."""
    await ws_gateway.sessions.create_session("theirs", owner="somebody", visibility="private")
    for role in ("observer", "webchat", "node"):
        more = {} if body is None else {"json": body}

        answers = [
            await asked(
                ws_gateway, method, f"{API}/sessions/{id}{rest}", token_of("x", role), **more
            )
            for id in ("theirs", "absent")
        ]

        assert answers[0].status_code in (403, 404)
        assert answers[0].content == answers[1].content
        assert answers[0].status_code == answers[1].status_code
    record = ws_gateway.sessions.get_record("theirs")
    assert record is not None
    assert record.name is None


def test_every_error_code_has_a_status():
    """None is left to a default."""
    assert set(STATUS) == {str(code) for code in ErrorCode}
    assert all(400 <= status < 600 for status in STATUS.values())


# Strangers


async def test_nothing_below_api_is_told_to_who_has_not_signed_in(ws_gateway):
    """Neither what is there, nor what is not, nor which methods there are."""
    paths = [BASE + endpoint.path.replace("{id}", "x") for endpoint in table_of(ws_gateway)]
    for path in {
        *paths,
        "/api",
        "/api/",
        "/api/v1",
        "/api/v2/stats",
        "/api/v1/nothing",
        "/metrics",
    }:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = await asked(ws_gateway, method, path)

            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert code_of(answer) == "AUTH_REQUIRED"


SPELLINGS = [
    "/api/v1/%73tats", "/api/v1%2fstats", "/api%2Fv1/stats", "//api/v1/stats", "/api//v1/stats",
    "/api/v1//stats", "/api/v1/stats/", "/API/v1/stats", "/Api/V1/Stats", "/api/v1/stats;x=1",
    "/api;/v1/stats", "/api/v1/./stats", "/api/v1/../v1/stats", "/healthz/../api/v1/stats",
    "/%61pi/v1/stats", "/api/v1/stats%20", "/api/v1/stats%00", "/api/v1/stats%2e", "/api/v1/.%2e/v1/stats",
    "/api/v1/stats%3f", "/api/v1/stats%23", "/api\\v1\\stats", "/api/v1/stats%5c", "/%2e/api/v1/stats",
    "/api/v1/\u017ftats", "/metrics/", "//metrics", "/%6detrics", "/METRICS", "/metrics;",
]  # fmt: skip


@pytest.mark.parametrize("path", SPELLINGS)
async def test_another_spelling_of_a_path_opens_nothing(ws_gateway, path):
    """Not to strangers, and to those who signed in it is no path either."""
    for headers in ([], [f"Authorization: Bearer {token_of('boss', 'control', 'admin')}"]):
        async with await RawSocket.connect(ws_gateway.port) as peer:
            peer.send(head(ws_gateway.port, path, *headers))
            answer = await peer.answer()

        assert answer.status >= 400


async def test_wrong_bearers_are_counted_like_any_other_credential(ws_gateway):
    """Ten, then the address is locked out, over HTTP and WebSocket alike."""
    answers = [await asked(ws_gateway, "GET", f"{API}/stats", "wrong") for _ in range(11)]

    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert code_of(answers[0]) == "AUTH_FAILED"
    assert code_of(answers[10]) == "AUTH_LOCKED"
    assert int(answers[10].headers["retry-after"]) > 1
    assert ws_gateway.door.failures == 10


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "Token x", ""])
async def test_only_a_bearer_is_a_credential(ws_gateway, header):
    """A header of another form is refused."""
    async with http(ws_gateway, Authorization=header) as client:
        answer = await client.get(f"{API}/stats")

    assert answer.status_code == 401


async def test_a_cookie_is_no_credential(ws_gateway):
    """Nor is anything in the URL, which is refused at once."""
    token = token_of("boss", "control")
    async with http(ws_gateway, Cookie=f"token={token}; Authorization=Bearer {token}") as client:
        assert (await client.get(f"{API}/stats")).status_code == 401
        assert (await client.get(f"{API}/stats?token={token}")).status_code == 400
        assert (await client.get(f"{API}/stats?access_token={token}")).status_code == 400


async def test_without_sign_in_everybody_is_local_but_pages_are_judged(free_gateway):
    """The Origin rules hold all the same."""
    assert (await asked(free_gateway, "GET", f"{API}/stats")).status_code == 200
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        answer = await asked(free_gateway, "GET", f"{API}/stats", headers=headers)
        assert answer.status_code == 403


@pytest.fixture
async def free_gateway() -> AsyncIterator[WebSocketGateway]:
    """A gateway that asks nobody to sign in, and lets one page in."""
    origins = OriginConfig(allowed_origins=("https://app.example",))
    async with WebSocketGateway(open_config(origins=origins)) as gateway:
        yield gateway


# Pages of other origins


ORIGINS = {
    None: True,
    "same": True,
    "https://app.example": True,
    "https://evil.example": False,
    "null": False,
    "https://app.example.evil.example": False,
}
CONTENT_TYPES = {
    "application/json": True,
    "application/json; charset=utf-8": True,
    "text/plain": False,
    "application/x-www-form-urlencoded": False,
    "multipart/form-data; boundary=x": False,
}


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("kind", CONTENT_TYPES)
async def test_a_page_changes_something_only_from_an_origin_that_is_listed(
    free_gateway, origin, kind
):
    """And only with JSON, which no form can send."""
    allowed = ORIGINS[origin] and CONTENT_TYPES[kind]
    named = f"http://127.0.0.1:{free_gateway.port}" if origin == "same" else origin
    headers = {"Content-Type": kind} | ({"Origin": named} if named else {})

    answer = await asked(
        free_gateway, "POST", f"{API}/sessions", content=b'{"sessionId":"tea"}', headers=headers
    )

    assert (answer.status_code == 201) is allowed
    assert (free_gateway.sessions.get_record("tea") is not None) is allowed
    if not ORIGINS[origin]:
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_a_listed_page_may_ask_first_and_read_the_answer(free_gateway):
    """A preflight is answered, never with a star or for cookies."""
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for origin, status in (("https://app.example", 204), ("https://evil.example", 403)):
        headers["Origin"] = origin
        answer = await asked(free_gateway, "OPTIONS", f"{API}/sessions", headers=headers)
        assert answer.status_code == status
        granted = answer.headers.get("access-control-allow-origin")
        assert granted == (origin if status == 204 else None)
        assert "access-control-allow-credentials" not in answer.headers
        assert "access-control-allow-headers" not in answer.headers or status == 204

    answer = await asked(
        free_gateway, "GET", f"{API}/stats", headers={"Origin": "https://app.example"}
    )
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "Origin" in answer.headers["vary"]


# Bodies and parameters


BAD_BODIES = [
    (b"[]", 400, "INVALID_PAYLOAD"),
    (b"1", 400, "INVALID_PAYLOAD"),
    (b"{", 400, "PARSE_ERROR"),
    (b'{"message":"\xff"}', 400, "PARSE_ERROR"),
    (b'{"message":"\\ud800"}', 400, "PARSE_ERROR"),
    (b'{"message":NaN}', 400, "PARSE_ERROR"),
    (b'{"message":"a","context":' + b"[" * 40 + b"]" * 40 + b"}", 400, "PARSE_ERROR"),
    (b'{"message":' + b"[" * 100_000, 400, "PARSE_ERROR"),
    (b'{"message":1}', 400, "INVALID_PAYLOAD"),
    (b"{}", 400, "INVALID_PAYLOAD"),
    (b'{"message":"a","sessionId":"other"}', 400, "INVALID_MESSAGE"),
    (b'{"message":"' + b"a" * 1_048_576 + b'"}', 413, None),
    (b'{"message":"' + b"a" * 1_048_550 + b'"}', 413, "MESSAGE_TOO_LARGE"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
async def test_a_body_that_does_not_fit_is_refused(ws_gateway, body, status, code):
    """With the code that a frame would get, and nothing is stored."""
    await ws_gateway.sessions.create_session("tea")

    answer = await asked(
        ws_gateway,
        "POST",
        f"{API}/sessions/tea/messages",
        token_of("ada"),
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert answer.status_code == status
    assert code is None or code_of(answer) == code
    assert (await ws_gateway.history.bounds("tea")).head == 0


@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=0", "limit=301", "limit=1&limit=2", "nothing=1", "after=-1", "limit="],
)
async def test_a_parameter_that_does_not_fit_is_refused(ws_gateway, query):
    """Its name is in the details."""
    await ws_gateway.sessions.create_session("tea")

    answer = await asked(
        ws_gateway, "GET", f"{API}/sessions/tea/messages?{query}", token_of("boss", "control")
    )

    assert (answer.status_code, code_of(answer)) == (400, "INVALID_PAYLOAD")
    assert answer.json()["error"]["details"]["path"].startswith(f"$.{query.partition('=')[0]}")


async def test_unknown_paths_and_methods_are_told_to_who_signed_in(ws_gateway):
    """As JSON, with what the path allows."""
    boss = token_of("boss", "control")

    absent = await asked(ws_gateway, "GET", f"{API}/nothing", boss)
    wrong = await asked(ws_gateway, "PUT", f"{API}/sessions", boss)

    assert (absent.status_code, code_of(absent)) == (404, "UNKNOWN_TYPE")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")


# Sessions


async def test_a_session_is_made_read_changed_and_closed(ws_gateway):
    """The answers are the protocol's payloads."""
    ada = token_of("ada")
    made = await asked(ws_gateway, "POST", f"{API}/sessions", ada, json={"name": "Tea"})
    id = made.json()["sessionId"]

    patched = await asked(
        ws_gateway, "PATCH", f"{API}/sessions/{id}", ada, json={"patch": {"visibility": "private"}}
    )
    shown = (await asked(ws_gateway, "GET", f"{API}/sessions/{id}", ada)).json()
    listed = (await asked(ws_gateway, "GET", f"{API}/sessions", ada)).json()
    closed = await asked(ws_gateway, "DELETE", f"{API}/sessions/{id}?delete=true", ada)

    assert (made.status_code, made.json()["status"]) == (201, "created")
    assert patched.json()["status"] == "patched"
    assert shown["owner"] == "ada"
    assert (shown["visibility"], shown["name"], shown["members"]) == ("private", "Tea", [])
    assert [s["sessionId"] for s in listed["sessions"]] == [id]
    assert closed.json()["status"] == "closed"
    assert (await asked(ws_gateway, "GET", f"{API}/sessions/{id}", ada)).status_code == 404


async def test_a_message_is_published_once_for_each_key(ws_gateway):
    """The key is the message's id, so the log knows a repetition for as long as it keeps it."""
    await ws_gateway.sessions.create_session("tea")
    async with http(ws_gateway, token_of("ada"), **{"Idempotency-Key": "one"}) as ada:
        target = f"{API}/sessions/tea/messages"
        first = (await ada.post(target, json={"message": "hi"})).json()
        again = (await ada.post(target, json={"message": "hi"})).json()
        quoted = await ada.post(
            target, json={"message": "hi"}, headers={"Idempotency-Key": '"one"'}
        )
        other = await ada.post(target, json={"message": "ho"})
        bad = await ada.post(target, json={"message": "ho"}, headers={"Idempotency-Key": "a b"})
        log = (await ada.get(target)).json()

    assert (first["seq"], first["durability"]) == (1, "memory")
    assert (again["seq"], again["duplicate"]) == (1, True)
    assert quoted.json()["duplicate"] is True
    assert (other.status_code, code_of(other)) == (409, "ID_CONFLICT")
    assert (bad.status_code, code_of(bad)) == (400, "INVALID_MESSAGE")
    assert [(m["id"], m["from"]["userId"]) for m in log["messages"]] == [("one", "ada")]


async def test_two_users_may_use_the_same_key(ws_gateway):
    """Neither can suppress the other's message."""
    await ws_gateway.sessions.create_session("tea")
    for name in ("ada", "bob"):
        answer = await asked(
            ws_gateway,
            "POST",
            f"{API}/sessions/tea/messages",
            token_of(name),
            json={"message": "hi"},
            headers={"Idempotency-Key": "one"},
        )
        assert "duplicate" not in answer.json()

    assert (await ws_gateway.history.bounds("tea")).head == 2


async def test_who_publishes_over_http_is_in_the_session_for_the_moment_only(ws_gateway):
    """Members get the message and no news of presence; the caller is gone afterwards."""
    bob = await connect(ws_gateway, token_of("bob"))
    await bob.ask("session_create", {"sessionId": "tea"})

    answer = await asked(
        ws_gateway, "POST", f"{API}/sessions/tea/messages", token_of("ada"), json={"message": "hi"}
    )
    told = await bob.next("chat")

    assert answer.status_code == 200
    assert (told.sender.user_id, told.data()["message"]) == ("ada", "hi")
    assert [m.type for m in await bob.left()] == []
    assert len(ws_gateway.sessions.get_clients("tea")) == 1
    assert len(ws_gateway.clients) == 1


async def test_an_agent_answers_what_was_said_over_http(ws_gateway):
    """The run is in the answer, and its end in the log."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "bot")
    await bot.ask("session_create", {"sessionId": "tea"})

    async with http(ws_gateway, token_of("ada")) as ada:
        target = f"{API}/sessions/tea/messages"
        said = (await ada.post(target, json={"message": "hi", "mentions": ["bot"]})).json()
        await bot.next("chat")
        await bot.ask("chat_complete", {"runId": said["runs"][0]["runId"], "content": "ho"}, "tea")
        log = (await ada.get(target, params={"after": 1})).json()

    assert [m["type"] for m in log["messages"]] == ["chat_complete"]
    assert log["messages"][0]["from"]["agentId"] == "bot"


async def test_a_credentials_rate_holds_over_all_its_calls():
    """A client for each call is no way around it; another user is not affected."""
    limits = LimitsConfig(publish_rate=0.01, publish_burst=3)
    async with WebSocketGateway(guarded_config(limits=limits), authenticator=_people()) as gateway:
        answers = [
            await asked(gateway, "GET", f"{API}/sessions", token_of("ada")) for _ in range(5)
        ]
        other = await asked(gateway, "GET", f"{API}/sessions", token_of("bob"))
        stats = await asked(gateway, "GET", f"{API}/stats", token_of("boss", "control"))

    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert code_of(answers[3]) == "RATE_LIMITED"
    assert int(answers[3].headers["retry-after"]) > 1
    assert other.status_code == 200
    assert stats.json()["errors"] == {"RATE_LIMITED": 2}


def _people() -> Any:
    from peers import People

    return People()


# Operating


async def test_operators_see_what_goes_on(ws_gateway):
    """Connections, messages by type, errors by code."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "bot")
    await bot.ask("nothing")

    stats = (await asked(ws_gateway, "GET", f"{API}/stats", token_of("boss", "control"))).json()

    assert (stats["clients"], stats["connections"], stats["authenticated"]) == (1, 1, 1)
    assert stats["agents"] == {"total": 1, "online": 1, "byType": {"custom": 1}}
    assert stats["messages"]["in"] == {"agent_register": 1, "other": 1}
    assert stats["errors"] == {"UNKNOWN_TYPE": 1}
    assert {"uptime", "version", "loopLagMs", "bufferedBytes"} <= set(stats)


async def test_connections_are_listed_page_by_page(ws_gateway):
    """The oldest first; who only calls over HTTP is not among them."""
    peers = [await connect(ws_gateway, token_of(name)) for name in ("ada", "bob", "eve")]
    await peers[0].ask("session_create", {"sessionId": "tea"})
    async with http(ws_gateway, token_of("boss", "control")) as boss:
        first = (await boss.get(f"{API}/clients", params={"limit": 2})).json()
        rest = (
            await boss.get(f"{API}/clients", params={"after": first["clients"][-1]["id"]})
        ).json()

    assert [c["userId"] for c in first["clients"]] == ["ada", "bob"]
    assert (first["more"], rest["more"]) == (True, False)
    assert first["clients"][0]["sessions"] == ["tea"]
    assert [c["userId"] for c in rest["clients"]] == ["eve"]


async def test_an_operator_kicks_a_connection(ws_gateway):
    """With code 4004; a second time there is none."""
    ada = await connect(ws_gateway, token_of("ada"))
    id = ws_gateway.clients.ready()[0].id
    boss = token_of("boss", "control")

    kicked = await asked(ws_gateway, "DELETE", f"{API}/clients/{id}", boss)
    code, _ = await ada.gone()
    again = await asked(ws_gateway, "DELETE", f"{API}/clients/{id}", boss)

    assert (kicked.status_code, kicked.content, code) == (204, b"", 4004)
    assert (again.status_code, code_of(again)) == (404, "CLIENT_NOT_FOUND")


# Tokens


async def test_a_token_is_made_used_rotated_and_revoked(stored):
    """Its secret is told once, and whatever it opened ends with it."""
    wanted = {"name": "ci", "userId": "ci", "roles": ["webchat"], "expiresIn": 3600}
    made = await asked(stored, "POST", f"{API}/tokens", "owners", json=wanted)
    token, id = made.json()["token"], made.json()["id"]
    peer = await connect(stored, token)

    rotated = await asked(stored, "POST", f"{API}/tokens/{id}/rotate", "owners")
    code, _ = await peer.gone()
    old = await asked(stored, "GET", f"{API}/sessions", token)
    new = await asked(stored, "GET", f"{API}/sessions", rotated.json()["token"])
    listed = await asked(stored, "GET", f"{API}/tokens", "owners")
    revoked = await asked(stored, "DELETE", f"{API}/tokens/{id}", "owners")
    gone = await asked(stored, "GET", f"{API}/sessions", rotated.json()["token"])

    assert (made.status_code, code, revoked.status_code) == (201, 4003, 204)
    assert (old.status_code, new.status_code, gone.status_code) == (401, 200, 401)
    assert [(t["name"], t["userId"], t["roles"]) for t in listed.json()["tokens"]] == [
        ("ci", "ci", ["webchat"])
    ]
    assert "token" not in listed.json()["tokens"][0]
    assert listed.json()["tokens"][0]["createdBy"] == "owner"


BEYOND = [
    {"roles": ["control", "node"]},
    {"roles": ["control"], "scopes": ["admin"]},
    {"roles": ["control"], "scopes": ["session:admin"]},
    {"roles": ["control"], "sessionPatterns": ["*"]},
    {"roles": ["control"], "agentPatterns": ["*"]},
]


@pytest.mark.parametrize("wanted", BEYOND)
async def test_nobody_makes_a_token_that_reaches_further_than_their_own(stored, wanted):
    """Roles, scopes and patterns, made or rotated; what is left out is one's own."""
    own = {
        "name": "deputy",
        "roles": ["control"],
        "scopes": ["credential:admin"],
        "sessionPatterns": ["team.*"],
        "agentPatterns": ["bot.*"],
        "expiresIn": 60,
    }
    deputy = (await asked(stored, "POST", f"{API}/tokens", "owners", json=own)).json()
    strong = (
        await asked(stored, "POST", f"{API}/tokens", "owners", json={**own, "scopes": [], **wanted})
    ).json()

    made = await asked(
        stored, "POST", f"{API}/tokens", deputy["token"], json={"name": "x", **wanted}
    )
    rotated = await asked(stored, "POST", f"{API}/tokens/{strong['id']}/rotate", deputy["token"])
    weaker = await asked(
        stored, "POST", f"{API}/tokens", deputy["token"], json={"name": "y", "roles": ["control"]}
    )

    assert (made.status_code, code_of(made)) == (403, "FORBIDDEN")
    # What reaches beyond one's patterns is as good as absent.
    beyond = {"sessionPatterns", "agentPatterns"} & set(wanted)
    assert rotated.status_code == (404 if beyond else 403)
    assert weaker.status_code == 201
    assert weaker.json()["sessionPatterns"] == ["team.*"]
    assert weaker.json()["expiresAt"] == deputy["expiresAt"]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"name": "x"},
        {"name": "x", "roles": []},
        {"name": "x", "roles": ["king"]},
        {"name": "x", "roles": ["webchat"], "scopes": ["all"]},
        {"name": "x", "roles": ["webchat"], "expiresIn": 0},
        {"name": "x", "roles": ["webchat"], "expiresIn": "soon"},
        {"name": "", "roles": ["webchat"]},
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(stored, wanted):
    """And none is stored."""
    answer = await asked(stored, "POST", f"{API}/tokens", "owners", json=wanted)

    assert (answer.status_code, code_of(answer)) == (400, "INVALID_PAYLOAD")
    assert (await asked(stored, "GET", f"{API}/tokens", "owners")).json() == {"tokens": []}


# The description


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(references, schema.values()))
    return set().union(*map(references, schema)) if isinstance(schema, list) else set()


async def test_the_description_is_complete_and_holds_together(ws_gateway):
    """Every route is in it, every reference leads somewhere, every schema is one."""
    document = (await asked(ws_gateway, "GET", "/openapi.json")).json()

    assert document["openapi"] == "3.1.0"
    for endpoint in table_of(ws_gateway):
        operation = document["paths"][BASE + endpoint.path][endpoint.method.lower()]
        assert endpoint.right in operation["description"]
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_answers_fit_their_schemas(ws_gateway):
    """What is told of statistics and connections is what the description says."""
    await connect(ws_gateway, token_of("ada"))
    await ws_gateway.sessions.create_session("tea")
    boss = token_of("boss", "control")
    document = (await asked(ws_gateway, "GET", "/openapi.json")).json()
    for path in ("/stats", "/clients", "/requests", "/sessions", "/agents"):
        answer = await asked(ws_gateway, "GET", API + path, boss)
        operation = document["paths"][BASE + path]["get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


async def test_calls_end_with_the_gateway(ws_gateway):
    """Whoever calls while it stops is told to come again."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "bot", grace_ms=5_000)
    async with http(ws_gateway, token_of("ada")) as ada:
        calls = [
            asyncio.create_task(
                ada.post(f"{API}/requests", json={"agentId": "bot"}, headers=headers)
            )
            for headers in ({}, {"Idempotency-Key": "k"})
        ]
        for _ in calls:
            await bot.next("route_request")
        stopping = asyncio.create_task(ws_gateway.stop())
        answers = [await call for call in calls]
        await stopping

    for answer in answers:
        assert (answer.status_code, code_of(answer)) == (503, "OVERLOADED")
        assert msgspec.json.decode(answer.content)["error"]["message"] == "the gateway stops"
    assert len(ws_gateway.api.requests.jobs) == 0


WORDS = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"1e999", b"-0", b"true", b"\\ud800", b"\xff",
    b'"message"', b'"roles"', b'"agentId"', b'"patch"', b'"params"', b'"timeoutMs"', b'"sessionId"',
    b'"expiresIn"', b'"stream"', b'"', b" ", b"\n", b"99999999999999999999",
)  # fmt: skip


async def test_no_body_and_no_parameter_makes_the_gateway_fail(stored):
    """Whatever it is made of: an answer, or a refusal with its code; never a 5xx."""
    random = Random(20)
    await stored.sessions.create_session("tea")
    changing = [e for e in table_of(stored) if not e.stream and e.body is not None]
    async with http(stored, "owners") as client:
        for number in range(300):
            endpoint = changing[number % len(changing)]
            seeds = (b'{"message":"a","roles":["node"],"name":"x","timeoutMs":5}', b"", b"{}")
            body = bytearray(random.choice(seeds))
            for _ in range(random.randint(1, 6)):
                body[random.randint(0, len(body)) : 0] = random.choice(WORDS)
            answer = await client.request(
                endpoint.method,
                BASE + endpoint.path.replace("{id}", "tea"),
                content=bytes(body),
                headers={"Content-Type": "application/json"},
                params={random.choice(["limit", "x"]): "1"} if random.random() < 0.1 else {},
            )
            assert answer.status_code < 500, (endpoint.path, body)
            assert answer.status_code < 300 or code_of(answer)
