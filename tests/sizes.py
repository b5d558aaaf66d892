"""
How long the proofs take: ``make test``, ``make battery-quick`` or ``make battery``.

The environment variable ``BATTERY`` is empty, ``quick`` or ``full``.
"""

from __future__ import annotations

import os

BATTERY = os.environ.get("BATTERY", "")


class Sizes:
    """Picks a number for the battery that runs."""

    def __call__(self, test: int, quick: int, full: int) -> int:
        """Return what to use in ``make test``, ``make battery-quick`` and ``make battery``."""
        return {"": test, "quick": quick, "full": full}[BATTERY]
