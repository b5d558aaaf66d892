"""``/metrics``: what Prometheus reads, who may read it, and that labels are bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from http_peers import PLAIN, code_of, head, http
from peers import People, connect, guarded_config, register, token_of
from prometheus_client.parser import text_string_to_metric_families
from rawsocket import RawSocket

from trunkline.config import DEFAULT_WS_CONFIG, MetricsConfig, check_config
from trunkline.errors import ConfigError
from trunkline.transports.websocket import WebSocketGateway

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

SCRAPER = token_of("prometheus", "observer", "metrics")


@pytest.fixture
async def scraped() -> AsyncIterator[WebSocketGateway]:
    """A gateway with a port for metrics."""
    config = guarded_config(metrics=MetricsConfig(enabled=True, port=0))
    async with WebSocketGateway(config, authenticator=People()) as gateway:
        yield gateway


def read(text: str) -> Samples:
    """Return the samples by name and labels; fails where the format is not kept."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(gateway: WebSocketGateway) -> Samples:
    async with http(gateway, SCRAPER) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return read(answer.text)


async def test_what_goes_on_is_told_to_prometheus(ws_gateway):
    """Messages, requests, agents, refusals; the wait and the store have histograms."""
    bot = await connect(ws_gateway, token_of("bots", "node"))
    await register(bot, "bot")
    ada = await connect(ws_gateway, token_of("ada"))
    await ada.ask("session_create", {"sessionId": "tea"})
    await ada.ask("chat", {"message": "hi"}, "tea")
    await ada.ask("nothing")
    asked = await ada.send("route_request", {"agentId": "bot"})
    request = (await bot.next("route_request")).data()["requestId"]
    await bot.send("route_response", {"requestId": request, "result": 1})
    await ada.next(reply_to=asked)

    told = await scrape(ws_gateway)

    assert told["trunkline_connections", (("state", "ready"),)] == 2
    assert told["trunkline_messages_total", (("direction", "in"), ("type", "chat"))] == 1
    assert told["trunkline_messages_total", (("direction", "in"), ("type", "other"))] == 1
    assert told["trunkline_messages_total", (("direction", "out"), ("type", "ack"))] == 1
    assert told["trunkline_errors_total", (("code", "UNKNOWN_TYPE"),)] == 1
    assert told["trunkline_recoveries_total", (("outcome", "fresh"),)] == 1
    assert told["trunkline_requests_total", (("outcome", "ok"),)] == 1
    assert told["trunkline_request_wait_seconds_count", ()] == 1
    assert told["trunkline_history_append_seconds_count", ()] == 1
    assert told["trunkline_agents", (("state", "online"),)] == 1
    assert told["trunkline_deliveries_total", ()] == 1
    assert any(name == "trunkline_build_info" for name, _ in told)
    assert any(name == "trunkline_event_loop_lag_seconds_bucket" for name, _ in told)


async def test_no_client_makes_a_series(ws_gateway):
    """However many types, ids, names and sessions there are."""
    ada = await connect(ws_gateway, token_of("ada"))
    before = await scrape(ws_gateway)
    client = ws_gateway.clients.ready()[0]
    for number in range(100_000):
        client.spent.full_at = 0.0
        client.measures.received.add(f"my.type{number}")
        client.measures.sent.add(f"my.type{number}")
        client.measures.errors.add(f"CODE{number}")
        client.measures.closes.add(str(number))
        ws_gateway.router.ends[f"CODE{number}"] += 1
    for number in range(300):
        await ada.ask(f"my.type{number}")
        if number < 100:
            await ada.ask("session_create", {"sessionId": f"s{number}", "name": f"n{number}"})
        client.spent.full_at = 0.0

    after = await scrape(ws_gateway)

    assert after.keys() == before.keys()
    assert after["trunkline_messages_total", (("direction", "in"), ("type", "other"))] == 100_300
    assert after["trunkline_requests_total", (("outcome", "other"),)] == 100_000


async def test_histograms_are_cumulative(ws_gateway):
    """As Prometheus wants them: the last bucket is the count."""
    waits = ws_gateway.measures.waits
    for seconds in (0.0005, 0.2, 0.2, 1e6):
        waits.observe(seconds)

    told = await scrape(ws_gateway)

    buckets = [
        v for (name, _), v in told.items() if name == "trunkline_request_wait_seconds_bucket"
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == told["trunkline_request_wait_seconds_count", ()] == 4
    assert told["trunkline_request_wait_seconds_bucket", (("le", "0.5"),)] == 3


@pytest.mark.parametrize(
    ("token", "status"),
    [
        (None, 401),
        ("wrong", 401),
        (token_of("ada"), 403),
        (token_of("boss", "control"), 403),
        (token_of("boss", "control", "credential:admin"), 403),
        (token_of("boss", "control", "admin"), 200),
        (SCRAPER, 200),
    ],
)
async def test_on_the_main_port_metrics_need_their_scope(ws_gateway, token, status):
    """``metrics``, or ``admin``."""
    async with http(ws_gateway, token) as client:
        answer = await client.get("/metrics")

    assert answer.status_code == status
    assert ("trunkline_" in answer.text) is (status == 200)


async def test_metrics_have_a_port_of_their_own_where_that_is_wanted(scraped):
    """Where nobody signs in, and nothing else is served."""
    async with httpx.AsyncClient(trust_env=False, verify=PLAIN) as client:
        base = f"http://127.0.0.1:{scraped.metrics_port}"
        metrics = await client.get(f"{base}/metrics")
        others = [await client.get(base + path) for path in ("/", "/api/v1/stats", "/openapi.json")]

    assert metrics.status_code == 200
    assert read(metrics.text)["trunkline_sessions", ()] == 0
    assert [answer.status_code for answer in others] == [404] * 3


async def test_a_page_that_was_rebound_reads_no_metrics(scraped):
    """Its Host is not the port's; neither is an upgrade taken there."""
    async with await RawSocket.connect(scraped.metrics_port) as peer:
        port = scraped.metrics_port
        peer.send(head(port, "/metrics", name=f"evil.example:{port}"))
        assert (await peer.answer()).status == 421


async def test_the_port_closes_with_the_gateway(scraped):
    """And a port that is taken stops the start."""
    port = scraped.metrics_port
    taken = guarded_config(metrics=MetricsConfig(enabled=True, port=port))
    with pytest.raises(OSError, match="in use"):
        await WebSocketGateway(taken, authenticator=People()).start()

    await scraped.stop()

    assert scraped.metrics_port is None
    async with httpx.AsyncClient(trust_env=False, verify=PLAIN) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/metrics")


def test_metrics_are_off_and_never_outside():
    """By default there is no port, and an address that others reach is refused."""
    assert DEFAULT_WS_CONFIG.metrics.enabled is False
    with pytest.raises(ConfigError, match=r"metrics\.host"):
        check_config(guarded_config(metrics=MetricsConfig(enabled=True, host="0.0.0.0")))


async def test_only_reading_is_possible(ws_gateway):
    """Another method is refused once one has signed in."""
    async with http(ws_gateway, SCRAPER) as client:
        answer = await client.post("/metrics")

    assert (answer.status_code, code_of(answer)) == (405, "UNKNOWN_TYPE")
