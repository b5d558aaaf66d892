"""The console's files, over a real port."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rawsocket import Answer, RawSocket, request

from trunkline.http.app import create_app
from trunkline.http.console import console_routes
from trunkline.transports.listener import Listener

Ask = Callable[..., Awaitable[Answer]]

SCRIPT = b"console.log('hello');\n" * 100


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Ask]:
    listener = await Listener.start(
        "127.0.0.1",
        0,
        on_head=lambda *_: None,
        http_app=create_app(ready=lambda: True, routes=console_routes(folder)),
    )

    async def ask(target: str, *headers: str, method: str = "GET") -> Answer:
        async with await RawSocket.connect(listener.port) as peer:
            peer.send(request(target, *headers, method=method))
            return await peer.answer()

    try:
        yield ask
    finally:
        await listener.stop()


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Ask]:
    build = tmp_path / "console"
    (build / "assets" / "deeper").mkdir(parents=True)
    (build / "index.html").write_text("<!doctype html><title>page</title>")
    (build / "manifest.json").write_text("{}")
    (build / "assets" / "index-abc.js").write_bytes(SCRIPT)
    (build / "assets" / "index-abc.css").write_text("body{}")
    (build / "assets" / "deeper" / "file.js").write_text("x")
    (tmp_path / "secret.txt").write_text("secret")
    async with serving(build) as ask:
        yield ask


async def test_the_page_is_never_stored_and_has_a_strict_policy(ask: Ask) -> None:
    """Another build is seen at the next visit, and no text becomes code in it."""
    answer = await ask("/")

    assert (answer.status, answer.body) == (200, b"<!doctype html><title>page</title>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert policy.endswith("require-trusted-types-for 'script'; trusted-types 'none'")


async def test_assets_are_kept_for_ever(ask: Ask) -> None:
    """Their names change with their content."""
    answer = await ask("/assets/index-abc.css")

    assert (answer.status, answer.body) == (200, b"body{}")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_who_reads_gzip_gets_it(ask: Ask) -> None:
    """And who does not gets the file as it is."""
    plain = await ask("/assets/index-abc.js")
    packed = await ask("/assets/index-abc.js", "Accept-Encoding: br, gzip")

    assert plain.body == SCRIPT
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == SCRIPT
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "target",
    [
        "/assets/",
        "/assets/other.js",
        "/assets/deeper/file.js",
        "/assets/deeper%2ffile.js",
        "/assets/../index.html",
        "/assets/..%2findex.html",
        "/assets/..%2f..%2fsecret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "/assets/..%5c..%5csecret.txt",
        "/assets/index-abc.js%00",
        "/assets/index-abc.js/",
        "/assets/INDEX-ABC.JS",
        "/manifest.json",
        "/index.html",
        "//",
    ],
)
async def test_nothing_else_is_served(ask: Ask, target: str) -> None:
    """Only whole names of built files are known."""
    assert (await ask(target)).status == 404


@pytest.mark.parametrize("target", ["/", "/assets/index-abc.js"])
async def test_the_files_are_only_read(ask: Ask, target: str) -> None:
    """Other methods are refused."""
    assert (await ask(target, method="POST")).status == 405


async def test_without_a_build_the_page_says_how_to_make_one(tmp_path: Path) -> None:
    """The gateway runs all the same."""
    async with serving(tmp_path / "nothing") as ask:
        answer = await ask("/")
        asset = await ask("/assets/index.js")

    assert answer.status == 404
    assert b"make setup" in answer.body
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert asset.status == 404
