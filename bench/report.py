"""The report: one table of figures, the targets, and the facts of the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from operator import ge, le
from pathlib import Path
from statistics import median

from scenarios import TARGETS, Scenario, Target
from servers import CONFIG, NODE, Kind

Figures = dict[tuple[str, str, str], list[float]]
"""(scenario, metric, server) to one figure per round."""

UNITS = {
    "cpu_us": "CPU µs",
    "cpu_s": "CPU s",
    "per_second": "per second",
    "seconds": "seconds",
    "rss_kb": "RSS kB",
    "rss_mb": "RSS MB",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
}


def digits(value: float) -> str:
    """A figure with three significant digits, never in exponents."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """The median, with the lowest and highest where there are several."""
    if len(values) == 1:
        return digits(values[0])
    return f"{digits(median(values))} [{digits(min(values))} .. {digits(max(values))}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text in columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def figure_table(scenarios: Iterable[Scenario], kinds: Sequence[Kind], figures: Figures) -> str:
    """Every figure, ours beside the baselines'."""
    rows = [["scenario", "figure", *(kind.title for kind in kinds)]]
    for scenario in scenarios:
        for metric in scenario.metrics:
            found = [figures.get((scenario.name, metric, kind.name)) for kind in kinds]
            cells = [spread(values) if values else "-" for values in found]
            rows.append([scenario.name, UNITS[metric], *cells])
    return aligned(rows)


def reached(target: Target, figures: Figures) -> list[float]:
    """Our figure in terms of the target, one per round; empty if something was not measured."""
    ours = figures.get((target.scenario, target.metric, target.server), [])
    if target.baseline is None:
        return ours
    against = target.against or target.scenario
    theirs = figures.get((against, target.metric, target.baseline), [])
    # Within a round, since the rounds are interleaved: what slows one slows both.
    pairs = zip(ours, theirs, strict=False)
    return [a - b if target.difference else a / b for a, b in pairs]


def target_table(figures: Figures) -> str:
    """Each target with what was reached, or an empty text if none was measured."""
    rows = [["scenario", "server", "figure", "against", "target", "reached", ""]]
    for target in TARGETS:
        values = reached(target, figures)
        if values:
            rows.append(_target_row(target, values))
    return aligned(rows) if len(rows) > 1 else ""


def _target_row(target: Target, values: list[float]) -> list[str]:
    sign, relation = ("≥", ge) if target.at_least else ("≤", le)
    unit = "x" if target.baseline and not target.difference else ""
    limit = f"{sign} {'+' * target.difference}{digits(target.limit)}{unit}"
    verdict = "ok" if relation(median(values), target.limit) else "missed"
    against = target.against or target.baseline or "-"
    what = [target.scenario, target.server, UNITS[target.metric], against]
    return [*what, limit, spread(values), verdict]


def noise(figures: Figures) -> str:
    """How far the rounds lie apart, in one sentence."""
    spreads = [(max(v) - min(v)) / median(v) for v in figures.values() if len(v) > 1]
    if not spreads:
        return "One round: the noise of this run is unknown."
    return (
        f"Noise: between the rounds a figure moves by {median(spreads):.0%} of its median "
        f"(half of the figures by less), at worst by {max(spreads):.0%}."
    )


def steal_ticks() -> tuple[int, int]:
    """CPU time that the hypervisor gave to others, and all CPU time, in ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return ticks[7], sum(ticks[:8])


def machine_facts() -> dict[str, str]:
    """What a reader needs to compare these figures with others."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {models[0] if models else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _package(name) for name in ("trunkline", "picows", "uvloop", "msgspec")},
        "node": _first_line(["node", "--version"]),
        "ws": json.loads((NODE / "package.json").read_text())["dependencies"]["ws"],
        "cc": _first_line(["cc", "--version"]),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _package(name: str) -> str:
    return _or_missing(lambda: version(name), PackageNotFoundError)


def _first_line(command: list[str]) -> str:
    return _or_missing(
        lambda: subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0],
        OSError,
    )


def _or_missing(read: Callable[[], str], error: type[Exception]) -> str:
    try:
        return read()
    except error:
        return "missing"


def settings() -> str:
    """The gateway's configuration of this run, without comments."""
    lines = [line for line in CONFIG.read_text().splitlines() if line and line[0] != "#"]
    return "\n".join(lines) or "(defaults)"


def as_json(figures: Figures, facts: dict[str, str], failures: Sequence[str]) -> str:
    """The whole run, for programs."""
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (scenario, metric, server), values in figures.items():
        results.setdefault(scenario, {}).setdefault(metric, {})[server] = values
    targets = [{**asdict(target), "reached": reached(target, figures)} for target in TARGETS]
    whole = {"machine": facts, "results": results, "targets": targets, "failures": list(failures)}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
