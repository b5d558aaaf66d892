"""
A program that becomes an agent: it reads lines of JSON and writes lines of JSON.

    trunkline agent exec --id liner --chat --tool count --session lobby -- python examples/line_agent.py

Nothing of Trunkline is imported here, and any other language would do.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def say(id: str, **what: Any) -> None:
    print(json.dumps({"id": id, **what}), flush=True)


def chat(ask: dict[str, Any]) -> None:
    """Answer word by word, then end the answer."""
    for word in ask["text"].upper().split():
        say(ask["id"], chunk=f"{word} ")
    say(ask["id"], text="!")


def count(ask: dict[str, Any]) -> None:
    """Count the words of a text, or say what is missing."""
    text = ask["args"].get("text")
    if text is None:
        say(ask["id"], error="count needs a text")
        return
    say(ask["id"], progress=50, message="counting")
    say(ask["id"], result=len(text.split()))


def main() -> None:
    for line in sys.stdin:
        ask = json.loads(line)
        print(f"got a {ask['type']}", file=sys.stderr)  # this goes to the agent's log
        if ask["type"] == "chat":
            chat(ask)
        elif ask["type"] == "call":
            count(ask)


if __name__ == "__main__":
    main()
