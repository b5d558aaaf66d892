"""
Measure the gateway beside its baselines: `python bench/run.py --help`.

One server at a time does a fixed number of units of work on a core of its own,
the load generator has another, and the server's CPU time is divided by the
units. Servers take turns within each round, so that what disturbs the machine
for a while disturbs all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import groupby, product
from pathlib import Path

import report
from scenarios import SCENARIOS, Scenario
from servers import (
    LOAD,
    LOADED,
    BenchError,
    Kind,
    cores,
    fill,
    pinned,
    prepare,
    resident,
    running,
    tail,
    wait_until_ready,
)

DEADLINE = 90
"""Seconds until the generator gives up on a run."""

BUDGET = 440
"""Seconds past which no further round would end, unless rounds were asked for."""

FILES_BESIDE_SOCKETS = 200


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the gateway beside its baselines.")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="one round with a quarter of the work")
    parser.add_argument(
        "--rounds", type=int, help="interleaved rounds (default: up to 3 in 8 minutes)"
    )
    parser.add_argument("--only", action="append", choices=names, help="only this scenario")
    parser.add_argument("--server", action="append", help="only this server (may be repeated)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser.parse_args()


def choose_scenarios(only: list[str] | None, quick: bool) -> list[Scenario]:
    """The scenarios to run, in the report's order."""
    chosen = [s for s in SCENARIOS if not only or s.name in only]
    return [scenario.quick() for scenario in chosen] if quick else chosen


def allow_many_files(scenarios: list[Scenario]) -> None:
    """Raise the limit of open files as far as needed; raises `BenchError` where it cannot be."""
    needed = FILES_BESIDE_SOCKETS + max(
        s.options.get("connections", s.warmup + s.count) for s in scenarios
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        try:
            allowed = hard if hard == resource.RLIM_INFINITY else max(hard, needed)
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, allowed))
        except (OSError, ValueError) as error:
            raise BenchError(f"{needed} open files are needed, {hard} allowed") from error


def run_once(scenario: Scenario, kind: Kind) -> dict[str, float]:
    """One fresh server under one load; returns the generator's figures or raises `BenchError`."""
    with running(kind) as server:
        if scenario.program is None:
            seconds = wait_until_ready(server)
            return {"seconds": seconds, "rss_mb": resident(server.pid) / 1e6}
        address = ["--port", str(server.port), "--pid", str(server.pid), "--token", server.token]
        command = [str(LOAD), *scenario.arguments(), *address, "--deadline", str(DEADLINE)]
        with pinned(cores()[1]):
            load = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        output, complaint = load.communicate()
        if load.returncode:
            raise BenchError(f"{complaint.strip() or 'load was killed'}\n{tail(server.log)}")
    figures: dict[str, float] = json.loads(output)
    return figures


class Runs:
    """All runs, interleaved; a pair that failed once is not tried again."""

    def __init__(self, scenarios: list[Scenario], kinds: list[Kind]) -> None:
        self.figures: report.Figures = {}
        self.rounds = 0
        self._pairs = [(s, k) for s, k in product(scenarios, kinds) if k.name in s.servers]
        self._failures: dict[tuple[str, str], str] = {}

    @property
    def failures(self) -> list[str]:
        """A sentence for each pair that failed."""
        return [f"FAILED: {s} on {k}: {why}" for (s, k), why in self._failures.items()]

    def go(self, rounds: int | None) -> None:
        """Run so many rounds; None: up to three, as many as should end within `BUDGET`."""
        began = time.monotonic()
        while self.rounds < (rounds or 3):
            spent = time.monotonic() - began
            if not rounds and self.rounds and spent + spent / self.rounds > BUDGET:
                break
            self.rounds += 1
            for scenario, kind in self._pairs:
                if (scenario.name, kind.name) not in self._failures:
                    self._run(scenario, kind)

    def _run(self, scenario: Scenario, kind: Kind) -> None:
        what = f"round {self.rounds}: {scenario.name}, {kind.title}"
        try:
            found = run_once(scenario, kind)
        except BenchError as error:
            self._failures[scenario.name, kind.name] = str(error).splitlines()[0]
            tell(f"{what}: FAILED: {error}")
            return
        for metric in scenario.metrics:
            self.figures.setdefault((scenario.name, metric, kind.name), []).append(found[metric])
        tell(f"{what}: " + ", ".join(f"{report.UNITS[m]} {found[m]:.3f}" for m in scenario.metrics))


def tell(line: str) -> None:
    """Progress goes to stderr, the report to stdout."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run and report; 1 if a run failed, 0 otherwise, whatever the figures are."""
    arguments = parse_arguments()
    scenarios = choose_scenarios(arguments.only, arguments.quick)
    began, stolen_before = time.monotonic(), report.steal_ticks()
    facts = report.machine_facts()
    try:
        allow_many_files(scenarios)
        kinds, skipped = prepare()
        if LOADED in kinds and any(LOADED.name in s.servers for s in scenarios):
            fill()
    except BenchError as error:
        tell(f"bench: {error}")
        return 1
    if arguments.server:
        kinds = [kind for kind in kinds if kind.name in arguments.server]
    runs = Runs(scenarios, kinds)
    runs.go(arguments.rounds or (1 if arguments.quick else None))
    stolen, total = (b - a for a, b in zip(stolen_before, report.steal_ticks(), strict=True))
    facts["stolen by the hypervisor"] = f"{stolen / total:.1%}"
    facts["duration"] = f"{time.monotonic() - began:.0f} s"
    print_report(scenarios, kinds, runs, facts, [*skipped, *runs.failures])
    if arguments.json:
        arguments.json.write_text(report.as_json(runs.figures, facts, runs.failures))
    return 1 if runs.failures else 0


def print_report(
    scenarios: list[Scenario],
    kinds: list[Kind],
    runs: Runs,
    facts: dict[str, str],
    remarks: list[str],
) -> None:
    """Print the tables and what is needed to judge them."""
    figures = runs.figures
    print(f"\nMedian of {runs.rounds} interleaved rounds [lowest .. highest].")
    for servers, group in groupby(scenarios, key=lambda s: s.servers):
        columns = [kind for kind in kinds if kind.name in servers]
        print("\n" + report.figure_table(list(group), columns, figures))
    print("\n" + "\n".join(f"{s.name}: {s.unit}" for s in scenarios))
    print("\nTargets; a multiple is the median of the multiples within each round.\n")
    print(report.target_table(figures) or "Nothing that has a target was measured.")
    print("\n" + report.noise(figures))
    print("\n" + "\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"\nThe gateway's configuration:\n{report.settings()}")
    for remark in remarks:
        print(f"\n{remark}")


if __name__ == "__main__":
    sys.exit(main())
