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
from itertools import product
from pathlib import Path

import report
from scenarios import SCENARIOS, Scenario
from servers import LOAD, BenchError, Kind, cores, pinned, prepare, running, tail

DEADLINE = 40
"""Seconds until the generator gives up on a run."""

FILES_BESIDE_SOCKETS = 200


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the gateway beside its baselines.")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="one round with a quarter of the work")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3)")
    parser.add_argument("--only", action="append", choices=names, help="only this scenario")
    parser.add_argument("--server", action="append", help="only this server (may be repeated)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser.parse_args()


def choose_scenarios(only: list[str] | None, quick: bool) -> list[Scenario]:
    """The scenarios to run, in the report's order."""
    chosen = [s for s in SCENARIOS if (s.name in only if only else s.by_default)]
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


def run_rounds(
    scenarios: list[Scenario], kinds: list[Kind], rounds: int
) -> tuple[report.Figures, list[str]]:
    """All runs, interleaved; a pair that failed once is not tried again."""
    figures: report.Figures = {}
    failures: dict[tuple[str, str], str] = {}
    for number, scenario, kind in product(range(1, rounds + 1), scenarios, kinds):
        if (scenario.name, kind.name) in failures:
            continue
        what = f"round {number}: {scenario.name}, {kind.title}"
        try:
            found = run_once(scenario, kind)
        except BenchError as error:
            failures[scenario.name, kind.name] = str(error).splitlines()[0]
            tell(f"{what}: FAILED: {error}")
            continue
        for metric in scenario.metrics:
            figures.setdefault((scenario.name, metric, kind.name), []).append(found[metric])
        tell(f"{what}: " + ", ".join(f"{report.UNITS[m]} {found[m]:.3f}" for m in scenario.metrics))
    return figures, [f"FAILED: {s} on {k}: {why}" for (s, k), why in failures.items()]


def tell(line: str) -> None:
    """Progress goes to stderr, the report to stdout."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run and report; 1 if a run failed, 0 otherwise, whatever the figures are."""
    arguments = parse_arguments()
    scenarios = choose_scenarios(arguments.only, arguments.quick)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    began, stolen_before = time.monotonic(), report.steal_ticks()
    facts = report.machine_facts()
    try:
        allow_many_files(scenarios)
        kinds, skipped = prepare()
    except BenchError as error:
        tell(f"bench: {error}")
        return 1
    if arguments.server:
        kinds = [kind for kind in kinds if kind.name in arguments.server]
    figures, failures = run_rounds(scenarios, kinds, rounds)
    stolen, total = (b - a for a, b in zip(stolen_before, report.steal_ticks(), strict=True))
    facts["stolen by the hypervisor"] = f"{stolen / total:.1%}"
    facts["duration"] = f"{time.monotonic() - began:.0f} s"
    print_report(scenarios, kinds, rounds, figures, facts, [*skipped, *failures])
    if arguments.json:
        arguments.json.write_text(report.as_json(figures, facts, failures))
    return 1 if failures else 0


def print_report(
    scenarios: list[Scenario],
    kinds: list[Kind],
    rounds: int,
    figures: report.Figures,
    facts: dict[str, str],
    remarks: list[str],
) -> None:
    """Print the tables and what is needed to judge them."""
    print(f"\nMedian of {rounds} interleaved rounds [lowest .. highest]; less is better.\n")
    print(report.figure_table(scenarios, kinds, figures))
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
