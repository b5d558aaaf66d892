"""
Look the locked dependencies up in the database of known vulnerabilities.

Ends with 1 if one is known. Where the database cannot be asked it says so and
ends with 0: a machine without the internet can still check the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "dev.txt"
PATIENCE = 120.0
"""Seconds until the database counts as out of reach."""


def report() -> list[dict[str, Any]] | None:
    """Return what is known of each dependency; None if nobody could be asked."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(LOCK)),
        *("--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return found


def main() -> int:
    """Print what was found; return the exit code."""
    found = report() or []
    asked = [entry for entry in found if "skip_reason" not in entry]
    vulnerable = [entry for entry in asked if entry["vulns"]]
    for entry in vulnerable:
        for vulnerability in entry["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
            print(f"{entry['name']} {entry['version']}: {vulnerability['id']}, fixed in {fixed}")
    if not asked:
        print("the vulnerability database could not be asked: nothing was audited")
    else:
        print(f"{len(asked)} of {len(found)} dependencies audited, {len(vulnerable)} vulnerable")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
