"""Whether the gateway lives, and whether it takes work; nothing else is told."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def health_routes(ready: Callable[[], bool]) -> list[Route]:
    """
    Make ``/healthz``, ``/health`` and ``/readyz``.

    Args:
        ready: Whether new connections are welcome; asked at every request.
    """

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "unavailable"}, status_code=503)

    return [
        Route("/healthz", healthz),
        Route("/health", healthz),
        Route("/readyz", readyz),
    ]
