"""
Keep the reference true: ``python tools/docs.py`` rewrites it, ``--check`` compares.

Pages are written by hand; what the code knows better stands in them between
``<!-- generated: NAME -->`` and ``<!-- end -->``. JSON Schema, AsyncAPI and
OpenAPI are generated as a whole.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from pathlib import Path

from docs_blocks import BLOCKS
from docs_schemas import asyncapi, http_api, json_schema

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"

_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may hold generated blocks."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Return a page with its generated blocks made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}", text)


def current() -> dict[Path, str]:
    """Return every page and generated file as it should be."""
    files = {path: filled(path.read_text(encoding="utf-8")) for path in pages()}
    for name, content in (
        ("protocol.schema.json", json_schema()),
        ("asyncapi.json", asyncapi()),
        ("openapi.json", http_api()),
    ):
        files[REFERENCE / name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return files


def difference(path: Path, wanted: str) -> str:
    """Return how a file differs from what it should be; empty if it does not."""
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    name = str(path.relative_to(ROOT))
    lines = difflib.unified_diff(
        found.splitlines(keepends=True), wanted.splitlines(keepends=True), name, f"{name} (current)"
    )
    return "".join(lines)


def main() -> int:
    """Write or check; 1 where a check found something stale."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; 1 if something is stale"
    )
    check = parser.parse_args().check
    stale = {path: text for path, text in current().items() if difference(path, text)}
    for path, text in stale.items():
        if check:
            sys.stdout.write(difference(path, text))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    if stale and check:
        print("\nThe reference is stale: run make docs.", file=sys.stderr)
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
