"""
A real browser before a real gateway, with the demo agent and those of `browser.agents`.

The tests are left out where Chromium is not installed or the console not built.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright
from processes import PATIENCE, Running, clean_environ

from trunkline.http.console import FOLDER

CHROMIUM = shutil.which("chromium")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TOKEN = "the-token-of-the-browser-tests"

AGENTS = Path(__file__).with_name("agents.py")

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why the tests of this folder are left out, where they are."""
    reason = ""
    if CHROMIUM is None:
        reason = "there is no command chromium; on Debian: apt-get install chromium"
    elif not (FOLDER / "index.html").is_file():
        reason = "the console is not built; with Node 20 or newer: make setup"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


class Gateway:
    """``trunkline demo`` on one port and data folder, started and ended again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environ = clean_environ(folder) | {
            "TRUNKLINE_AUTH__TOKEN": TOKEN,
            "TRUNKLINE_LIMITS__PUBLISH_RATE": "100000",
            "TRUNKLINE_LIMITS__PUBLISH_BURST": "100000",
        }
        self.port = 0
        self._running: Running | None = None
        self._agents: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where the console is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        data = str(self._folder / "data")
        self._running = Running(self._environ, "demo", "--port", str(self.port), "--data-dir", data)
        self.port = int(self._running.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1])

    def start_agents(self) -> None:
        """Start the agents of `browser.agents`, and wait until they are registered."""
        self._agents = subprocess.Popen(
            [sys.executable, str(AGENTS), self.url, TOKEN],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._agents.stdout is not None
        assert self._agents.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        assert self._running is not None
        self._running.end(signal.SIGKILL)
        self._running.close()

    def close(self) -> None:
        """End everything."""
        if self._agents is not None:
            self._agents.communicate("", PATIENCE)
        if self._running is not None:
            self._running.end()
            self._running.close()


class Watched:
    """A page, and what it did that no page of ours may do."""

    def __init__(self, page: Page, gateway: Gateway) -> None:
        self.page = page
        self.gateway = gateway
        self.faults: list[str] = []
        page.add_init_script(WATCH)
        page.on("dialog", self._on_dialog)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._on_request(request.url))
        page.on("websocket", lambda socket: self._on_request(socket.url))

    def _on_dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, url: str) -> None:
        if not re.match(rf"(http|ws)://127\.0\.0\.1:{self.gateway.port}/|data:image/|blob:", url):
            self.faults.append(f"request: {url}")

    def check(self) -> None:
        """Fail if it did anything of that."""
        violations = self.page.evaluate("window.violations || []")
        assert [*self.faults, *violations] == []

    def sign_in(self, path: str = "/") -> Page:
        """Open the console and sign in with the token."""
        self.page.goto(self.gateway.url + path)
        self.page.get_by_label("Token", exact=True).fill(TOKEN)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("navigation", name="Views")).to_be_visible()
        return self.page


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for all tests of a module."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    try:
        gateway.start()
        gateway.start_agents()
        yield gateway
    finally:
        gateway.close()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright, gone before tests with a loop of their own begin."""
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Chromium."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Browser, gateway: Gateway) -> Iterator[Callable[..., Watched]]:
    """Open pages, each with storage of its own; none of them may do what `Watched` forbids."""
    opened: list[Watched] = []

    def open_page(**options: Any) -> Watched:
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        opened.append(Watched(context.new_page(), gateway))
        return opened[-1]

    yield open_page
    for watched in opened:
        watched.check()
        watched.page.context.close()


@pytest.fixture
def watched(open_page: Callable[..., Watched]) -> Watched:
    """A page on a desk."""
    return open_page(viewport={"width": 1440, "height": 900})


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine beside Playwright's own loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result(PATIENCE)
