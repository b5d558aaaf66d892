"""What an approval is about: the hash of a tool and its arguments, the same in every language."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785


def approval_digest(tool: str, args: Any) -> str:
    """
    Hash a tool and its arguments: SHA-256, in hex, of the canonical JSON (RFC 8785).

    Raises:
        ValueError: The arguments have no canonical form, such as integers
            beyond 2⁵³ or a number that is not finite.
    """
    return hashlib.sha256(rfc8785.dumps({"tool": tool, "args": args})).hexdigest()
