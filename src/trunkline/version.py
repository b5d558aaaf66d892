"""Which version of the package this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    """Return this package's version."""
    try:
        return version("trunkline")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0.0.0"
