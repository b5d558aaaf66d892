"""
``/metrics``: the gateway's counters in the format of Prometheus.

Nothing is counted here. At a scrape the plain numbers of `trunkline.measures`
and of the parts are read; all labels come from tables of ours, so that the
number of series never depends on what clients send.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from trunkline.errors import CloseCode, ErrorCode
from trunkline.measures import OTHER, Histogram
from trunkline.version import package_version

if TYPE_CHECKING:
    from trunkline.server import GatewayServer

ENDS = (
    "ok",
    "failed",
    *(
        str(code)
        for code in (
            ErrorCode.AGENT_LOST,
            ErrorCode.AGENT_NOT_FOUND,
            ErrorCode.CANCELLED,
            ErrorCode.INVALID_PAYLOAD,
            ErrorCode.TIMEOUT,
        )
    ),
)
"""How requests end; everything else is ``other``."""


class Exporter:
    """
    The metrics of one gateway, in a registry of their own.

    Args:
        gateway: Whose counters are read.
    """

    def __init__(self, gateway: GatewayServer) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_GatewayCollector(gateway))

    async def response(self, request: Request) -> Response:
        """Answer a scrape."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": kind})


class _GatewayCollector(Collector):
    def __init__(self, gateway: GatewayServer) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        return []  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        """Read all counters."""
        yield from self._about()
        yield from self._connections()
        yield from self._messages()
        yield from self._requests()
        measures = self._gateway.measures
        yield _histogram(
            "history_append_seconds", "How long the store took for one append.", measures.appends
        )
        yield _histogram(
            "event_loop_lag_seconds", "How late the event loop was.", measures.lag.times
        )

    def _about(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "trunkline_uptime_seconds", "Time since start.", self._gateway.uptime
        )
        info = GaugeMetricFamily(
            "trunkline_build_info", "What runs; always 1.", labels=("version", "python")
        )
        info.add_metric((package_version(), platform.python_version()), 1)
        yield info

    def _connections(self) -> Iterator[Metric]:
        gateway, measures = self._gateway, self._gateway.measures
        clients = gateway.clients.staying()
        ready = sum(client.authenticated for client in clients)
        states = {"ready": ready, "waiting": len(clients) - ready}
        yield _gauges("connections", "Open connections.", "state", states)
        yield _gauge("sessions", "Sessions in memory.", len(gateway.sessions.get_all_sessions()))
        queued = sum(client.transport.buffered() for client in clients)
        yield _gauge("queue_bytes", "Bytes that wait for slow readers.", queued)
        lagging = sum(client.lagging for client in clients)
        yield _gauge("slow_clients", "Readers that are behind.", lagging)
        yield _counters(
            "closes", "Connections that ended, by close code.", "code", measures.closes.rows()
        )
        drops = {
            "lagging": measures.spared,
            "too_slow": measures.closes.rows()[str(int(CloseCode.TOO_SLOW))],
            "stray_response": gateway.router.strays,
        }
        text = "Chunks spared for lagging readers, readers sent away, answers nobody asked for."
        yield _counters("drops", text, "reason", drops)
        yield _counter("auth_failures", "Wrong credentials.", gateway.door.failures)

    def _messages(self) -> Iterator[Metric]:
        gateway, measures = self._gateway, self._gateway.measures
        found = CounterMetricFamily(
            "trunkline_messages", "Messages by type and direction.", labels=("direction", "type")
        )
        for direction, tally in (("in", measures.received), ("out", measures.sent)):
            for type, count in tally.rows().items():
                found.add_metric((direction, type), count)
        yield found
        deliveries = gateway.get_stats()["deliveries"]
        yield _counter("deliveries", "Messages written to members of sessions.", deliveries)
        yield _counters("errors", "Refusals by code.", "code", measures.errors.rows())
        recoveries = {o: gateway.sessions.recoveries[o] for o in ("fresh", "resumed", "reset")}
        yield _counters("recoveries", "Joins by how they continued.", "outcome", recoveries)

    def _requests(self) -> Iterator[Metric]:
        gateway = self._gateway
        ends = {end: gateway.router.ends[end] for end in ENDS}
        ends[OTHER] = gateway.router.ends.total() - sum(ends.values())
        yield _counters("requests", "Requests by how they ended.", "outcome", ends)
        yield _gauge("open_requests", "Requests without an answer.", len(gateway.router))
        yield _histogram(
            "request_wait_seconds",
            "How long requests waited for their agent.",
            gateway.measures.waits,
        )
        states = Counter(agent.status for agent in gateway.agents.get_all_agents())
        known = {state: states[state] for state in ("online", "busy", "offline")}
        yield _gauges("agents", "Registered agents.", "state", known)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"trunkline_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"trunkline_{name}", text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"trunkline_{name}", text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"trunkline_{name}", text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family


def _histogram(name: str, text: str, seen: Histogram) -> Metric:
    bounds = [*map(str, seen.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
    return HistogramMetricFamily(f"trunkline_{name}", text, buckets=buckets, sum_value=seen.total)
