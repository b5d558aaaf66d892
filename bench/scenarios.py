"""What is measured, how much of it, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Scenario:
    """One row of the report: a run of the load generator against each server."""

    name: str
    program: str
    """The generator's own word for it (`bench/load/scenario.c`)."""
    unit: str
    """What one unit of work is."""
    warmup: int
    """Units before the measured ones."""
    count: int
    """Measured units; in `fanout` and `latency`, messages and not deliveries."""
    metrics: tuple[str, ...] = ("cpu_us",)
    """Which of the generator's figures are reported; less is better for all of them."""
    options: dict[str, int] = field(default_factory=dict)
    """Further options of the generator."""
    only_gateway: bool = False
    """Whether there is nothing to compare with in the baselines."""
    by_default: bool = True
    """Whether it runs when it is not asked for by name."""

    def arguments(self) -> list[str]:
        """The generator's command line, without the server's address."""
        options = {"warmup": self.warmup, "count": self.count, **self.options}
        return [self.program, *(word for k, v in options.items() for word in (f"--{k}", str(v)))]

    def quick(self) -> Scenario:
        """The same with a quarter of the work: less precise, as useful for a first look."""
        return replace(self, warmup=max(self.warmup // 4, 1), count=self.count // 4)


@dataclass(frozen=True)
class Target:
    """A figure to reach: absolute, or as a multiple of a baseline's."""

    scenario: str
    metric: str
    limit: float
    baseline: str | None = None
    """The baseline that `limit` multiplies; none: `limit` is in the metric's own unit."""


CPU = "cpu_us"
SATURATING = {"publishers": 4, "depth": 16, "size": 100}
"""64 messages in flight, from four members at once."""

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
    Scenario("connect", "connect", "TCP accept to session_info, bearer header", 500, 3_000),
    Scenario(
        "idle", "idle", "kB of resident memory per idle connection", 100, 10_000,
        metrics=("rss_kb",),
    ),
    Scenario(
        "latency", "latency", "50 messages/s to 100 members, send to delivery", 50, 250,
        metrics=("p50_us", "p99_us"),
        options={"connections": 100, "rate": 50, "size": 100},
    ),
    Scenario(
        "publish", "publish", "durable chat to its ack, 50 sessions with 64 in flight",
        8_000, 40_000,
        options={"connections": 50, "depth": 64, "size": 180},
        by_default=False,
    ),
]  # fmt: skip

TARGETS = [
    Target("fanout-100", CPU, 2.5, "joined"),
    Target("fanout-100", CPU, 1 / 20, "node"),
    Target("echo", CPU, 0.8, "node"),
    Target("echo-1", CPU, 0.8, "node"),
    Target("request", CPU, 0.8, "node"),
    Target("connect", CPU, 0.8, "node"),
    Target("idle", "rss_kb", 14.0),
    Target("latency", "p99_us", 1.0, "node"),
]
