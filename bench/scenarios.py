"""What is measured, how much of it, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Scenario:
    """One row of the report: a run of the load generator against each server."""

    name: str
    program: str | None
    """The generator's own word for it (`bench/load/scenario.c`); None: only the start counts."""
    unit: str
    """What one unit of work is."""
    warmup: int
    """Units before the measured ones."""
    count: int
    """Measured units; in `fanout` and `latency`, messages and not deliveries."""
    metrics: tuple[str, ...] = ("cpu_us",)
    """Which of the figures are reported; less is better, except `per_second`."""
    options: dict[str, int] = field(default_factory=dict)
    """Further options of the generator."""
    servers: tuple[str, ...] = ("trunkline", "node", "send", "joined")
    """Which kinds of servers it runs against."""

    def arguments(self) -> list[str]:
        """The generator's command line, without the server's address."""
        assert self.program is not None
        options = {"warmup": self.warmup, "count": self.count, **self.options}
        return [self.program, *(word for k, v in options.items() for word in (f"--{k}", str(v)))]

    def quick(self) -> Scenario:
        """The same with a quarter of the work: less precise, as useful for a first look."""
        return replace(self, warmup=max(self.warmup // 4, 1), count=self.count // 4)


@dataclass(frozen=True)
class Target:
    """A figure to reach: absolute, or compared with another server's."""

    scenario: str
    metric: str
    limit: float
    baseline: str | None = None
    """The server that `limit` multiplies; none: `limit` is in the metric's own unit."""
    against: str | None = None
    """The scenario that the baseline's figure is of; none: the same."""
    server: str = "trunkline"
    """Whose figure it is."""
    difference: bool = False
    """Whether `limit` is added to the baseline's figure instead."""
    at_least: bool = False
    """Whether more is better."""


CPU = "cpu_us"
SATURATING = {"publishers": 4, "depth": 16, "size": 100}
"""64 messages in flight, from four members at once."""

RESUMING = {"connections": 5000, "depth": 16, "size": 180}

SCENARIOS = [
    Scenario(
        "echo", "echo", "ping to pong, 50 connections with 8 in flight", 20_000, 100_000,
        options={"connections": 50, "depth": 8},
    ),
    Scenario(
        "echo-1", "echo", "the same with 1 in flight", 20_000, 100_000,
        options={"connections": 50, "depth": 1},
    ),
    Scenario(
        "fanout-2", "fanout", "delivery of a chat to the other of 2 members", 8_000, 40_000,
        options={"connections": 2, "publishers": 2, "depth": 32, "size": 100},
    ),
    Scenario(
        "fanout-10", "fanout", "delivery of a chat to one of 10 members", 4_000, 20_000,
        options={"connections": 10, **SATURATING},
    ),
    Scenario(
        "fanout-100", "fanout", "delivery of a chat to one of 100 members", 1_000, 5_000,
        options={"connections": 100, **SATURATING},
    ),
    Scenario(
        "fanout-1000", "fanout", "delivery of a chat to one of 1,000 members", 128, 400,
        options={"connections": 1000, **SATURATING},
    ),
    Scenario(
        "request", "request", "request to an agent and back, 8 askers", 8_000, 40_000,
        options={"connections": 9, "depth": 8, "size": 100},
    ),
    Scenario(
        "route-1000", "request", "the same, one of 1,000 agents on one connection", 8_000, 40_000,
        options={"connections": 9, "agents": 1000, "depth": 8, "size": 100},
        servers=("trunkline",),
    ),
    Scenario(
        "stream", "stream", "one of 100 chunks of an answer, 8 askers", 100, 1_000,
        options={"connections": 9, "chunks": 100, "depth": 1, "size": 100},
    ),
    Scenario("connect", "connect", "TCP accept to session_info, bearer header", 500, 3_000),
    Scenario(
        "idle", "idle", "kB of resident memory per idle connection", 100, 10_000,
        metrics=("rss_kb",),
    ),
    Scenario(
        "latency", "latency", "50 messages/s to 100 members, send to delivery", 50, 150,
        metrics=("p50_us", "p99_us"),
        options={"connections": 100, "rate": 50, "size": 100},
    ),
    Scenario(
        "publish", "publish", "chat of 200 B to its ack, 50 sessions, 64 in flight each",
        10_000, 60_000,
        metrics=("per_second", CPU),
        options={"connections": 50, "sessions": 50, "depth": 64, "size": 180},
        servers=("trunkline", "process", "unpinned", "disk"),
    ),
    Scenario(
        "durable-fanout", "fanout", "fanout-100 with the log in a file", 1_000, 5_000,
        options={"connections": 100, **SATURATING},
        servers=("trunkline", "process"),
    ),
    Scenario(
        "durable-latency", "latency", "latency with the log in a file", 50, 150,
        metrics=("p50_us", "p99_us"),
        options={"connections": 100, "rate": 50, "size": 100},
        servers=("trunkline", "process", "disk"),
    ),
    Scenario(
        "resume-50", "resume", "5,000 clients lost at once to live, 100 messages behind",
        0, 100,
        metrics=("seconds", "cpu_s"),
        options={"sessions": 50, **RESUMING},
        servers=("process",),
    ),
    Scenario(
        "resume-1", "resume", "the same, all in one session",
        0, 100,
        metrics=("seconds", "cpu_s"),
        options={"sessions": 1, **RESUMING},
        servers=("process",),
    ),
    Scenario(
        "ready", None, "start to /readyz, with an empty log and a million messages", 0, 0,
        metrics=("seconds", "rss_mb"),
        servers=("process", "loaded"),
    ),
]  # fmt: skip

TARGETS = [
    Target("fanout-100", CPU, 2.5, "joined"),
    Target("fanout-100", CPU, 1 / 20, "node"),
    Target("echo", CPU, 0.8, "node"),
    Target("echo-1", CPU, 0.8, "node"),
    Target("request", CPU, 0.8, "node"),
    Target("route-1000", CPU, 5.0, "trunkline", against="request", difference=True),
    Target("stream", CPU, 1.0, "trunkline", against="fanout-2"),
    Target("connect", CPU, 0.8, "node"),
    Target("idle", "rss_kb", 14.0),
    Target("latency", "p99_us", 1.0, "node"),
    Target("publish", "per_second", 30_000, server="process", at_least=True),
    Target("publish", CPU, 1e6 / 30_000, server="process"),
    Target("durable-fanout", CPU, 1.5, "trunkline", server="process"),
    Target("durable-latency", "p50_us", 2_000, "trunkline", server="process", difference=True),
    Target("resume-50", "seconds", 10.0, server="process"),
    Target("resume-1", "seconds", 10.0, server="process"),
    Target("ready", "seconds", 2.0, server="loaded"),
    Target("ready", "rss_mb", 1.05, "process", server="loaded"),
]
