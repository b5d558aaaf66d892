"""
The web console: files that Vite built from js/console, served from memory.

They are package data, read once. What is served is looked up by its whole name
in what was read, so no path leads out of the folder. Without a build ``/`` says
how to make one.
"""

from __future__ import annotations

import gzip
import mimetypes
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from trunkline.http.app import SECURITY_HEADERS, error_response

FOLDER = Path(__file__).parent / "console"
"""Where the build is."""

PAGE_POLICY = (
    f"{SECURITY_HEADERS['Content-Security-Policy']}; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The Content-Security-Policy of the page: no text ever becomes markup or code."""

COMPRESS_MIN = 1024
"""Bytes below which a file is sent as it is."""

MISSING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Trunkline</title>
<h1>The console is not built</h1>
<p>The gateway runs. Its web console is made with Node.js 20 or newer: install it, then run</p>
<pre>make setup</pre>
<p>in Trunkline's folder, and start the gateway again.</p>
</html>
"""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    content: bytes
    compressed: bytes | None
    media_type: str


def console_routes(folder: Path = FOLDER) -> list[Route]:
    """
    Make ``/`` and ``/assets/{name}``.

    Args:
        folder: Where the build is; it may be missing.
    """
    page, assets = _read(folder)

    async def index(request: Request) -> Response:
        if page is None:
            return HTMLResponse(MISSING, status_code=404)
        return _answer(request, page, {"Content-Security-Policy": PAGE_POLICY})

    async def asset(request: Request) -> Response:
        file = assets.get(request.path_params["name"])
        if file is None:
            return error_response(404, "Not Found")
        # The name holds a hash of the content, so another content has another name.
        return _answer(request, file, {"Cache-Control": "public, max-age=31536000, immutable"})

    return [Route("/", index), Route("/assets/{name}", asset)]


def _read(folder: Path) -> tuple[_File | None, dict[str, _File]]:
    page = folder / "index.html"
    if not page.is_file():
        return None, {}
    found = sorted(path for path in (folder / "assets").glob("*") if path.is_file())
    return _file(page), {path.name: _file(path) for path in found}


def _file(path: Path) -> _File:
    content = path.read_bytes()
    # What the system's own table says of .js differs between machines.
    known = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _File(
        content=content,
        compressed=gzip.compress(content, mtime=0) if len(content) >= COMPRESS_MIN else None,
        media_type=known.get(path.suffix, guessed),
    )


def _answer(request: Request, file: _File, headers: dict[str, str]) -> Response:
    content = file.content
    if file.compressed is not None:
        headers = {**headers, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            content = file.compressed
            headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=file.media_type, headers=headers)
