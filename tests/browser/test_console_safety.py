"""What a hostile neighbour, address, page or name can do to the console: nothing."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import trunkline
from browser.agents import PAYLOADS
from browser.conftest import TOKEN, Gateway, Watched, run_async

AXE = Path(__file__).parents[2] / "js" / "console" / "node_modules" / "axe-core" / "axe.min.js"


class Trap:
    """Counts who connects."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        async def caught(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            writer.close()

        async with await asyncio.start_server(caught, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await end.wait()


@contextmanager
def trap() -> Iterator[Trap]:
    """Listen for connections that should never be made."""
    caught, ready, end = Trap(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(caught.serve(ready, end),))
    thread.start()
    ready.wait(10)
    try:
        yield caught
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()


class TestAddresses:
    @pytest.mark.parametrize(
        "path",
        [
            "/?gatewayUrl=ws://127.0.0.1:{port}&token=t",
            "/#gatewayUrl=ws://127.0.0.1:{port}&token=t",
            "/?url=ws://127.0.0.1:{port}/ws",
            "/#/chat/lobby?gatewayUrl=ws://127.0.0.1:{port}",
            "/#code=ws://127.0.0.1:{port}",
        ],
    )
    def test_no_address_chooses_the_server(self, watched: Watched, path: str) -> None:
        """A link that names another server makes no connection to it, signed in or not."""
        with trap() as caught:
            page = watched.page
            address = path.format(port=caught.port)
            answer = page.goto(watched.gateway.url + address)
            assert answer is not None
            # A credential in the query is refused before anything looks at it.
            assert answer.status == (400 if "token=t" in address.partition("#")[0] else 200)
            watched.sign_in(address if answer.ok else "/")
            page.evaluate(
                "url => postMessage({gatewayUrl: url, url, token: 't', type: 'connect'}, '*')",
                f"ws://127.0.0.1:{caught.port}",
            )
            page.reload()
            expect(page.get_by_label("Token", exact=True)).to_be_visible()

            assert caught.connections == 0

    def test_a_token_in_the_address_signs_nobody_in(self, watched: Watched) -> None:
        """Only typing signs in; a link with a token changes nothing."""
        watched.page.goto(f"{watched.gateway.url}/#token={TOKEN}")

        expect(watched.page.get_by_label("Token", exact=True)).to_have_value("")

    def test_a_code_leaves_the_address_at_once(self, watched: Watched) -> None:
        """A sign-in link's code is neither in the address nor in the history."""
        page = watched.page
        page.goto(f"{watched.gateway.url}/#code=not-a-real-code")

        expect(page.get_by_role("alert")).to_contain_text("Ask for a new one")
        assert "code" not in page.url
        assert page.evaluate("history.length") <= 2


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class TestOtherPages:
    def test_a_page_from_elsewhere_cannot_connect(
        self, open_page: Callable[..., Watched], gateway: Gateway
    ) -> None:
        """A web page on another port is refused before the WebSocket opens."""
        with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            watched = open_page()
            watched.page.goto(f"http://127.0.0.1:{server.server_port}/")
            outcome = watched.page.evaluate(
                """url => new Promise((resolve) => {
                    const socket = new WebSocket(url);
                    socket.onopen = () => resolve("open");
                    socket.onclose = () => resolve("refused");
                })""",
                f"ws://127.0.0.1:{gateway.port}/ws",
            )
            server.shutdown()
            thread.join(10)
            watched.faults.clear()

        assert outcome == "refused"

    def test_the_page_cannot_be_framed(self, gateway: Gateway, watched: Watched) -> None:
        """The headers forbid frames, sniffing, and anything inline or from elsewhere."""
        answer = watched.page.goto(gateway.url)
        assert answer is not None
        policy = answer.headers["content-security-policy"]

        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy


async def plant(url: str) -> None:
    """Say, name and announce everything hostile, where people may."""
    async with trunkline.connect(url, token=TOKEN, device_name=PAYLOADS[1]) as gateway:
        session = await gateway.join("hostile")
        await session.patch(name=PAYLOADS[1], metadata={PAYLOADS[0]: PAYLOADS[1]})
        for payload in PAYLOADS:
            await session.send(f"@nobody {payload}", mentions=[])
        await session.send("go", mentions=["hostile"])


class TestText:
    def test_hostile_text_stays_text(self, watched: Watched, gateway: Gateway) -> None:
        """In names, messages, tools, schemas, results and errors: no script, load or dialog."""
        run_async(plant(gateway.url))
        page = watched.sign_in("/#/chat/hostile")
        run = page.locator(".run").last
        expect(run.locator(".approval.pending")).to_be_visible()
        for summary in run.locator("summary").all():
            summary.click()
        run.get_by_role("button", name="Deny").click()
        expect(run.locator(".msg-head")).to_contain_text("failed")
        page.get_by_label("Message", exact=True).press_sequentially("@host")
        page.keyboard.press("Control+k")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.evaluate("location.hash = '#/agents/hostile'")
        page.get_by_text("Schema", exact=True).click()
        page.get_by_role("button", name="Call").click()
        expect(page.locator(".outcome pre")).to_contain_text("onerror")
        for section in ("overview", "connections", "sessions", "audit"):
            page.evaluate("section => { location.hash = `#/operate/${section}` }", section)
            expect(page.locator(".page-body > *").first).to_be_visible()

        assert page.evaluate("window.pwned") is None
        assert page.locator("#app :is(script, iframe, img:not(.mark), object, style)").count() == 0
        assert page.locator("#app a:not([href^=http], [href^='#'])").count() == 0


VIEWS = [
    "chat/lobby",
    "agents/deployer",
    "agents/~routing",
    "operate/overview",
    "operate/connections",
    "operate/sessions",
    "operate/requests",
    "operate/devices",
    "operate/tokens",
    "operate/audit",
]


class TestAccessibility:
    @pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; run make setup")
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_no_serious_problem(
        self, open_page: Callable[..., Watched], scheme: str
    ) -> None:
        """Every view, signing in included, in light and dark."""
        watched = open_page(
            viewport={"width": 1280, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
        )
        page = watched.page
        page.goto(watched.gateway.url)
        expect(page.get_by_label("Token", exact=True)).to_be_visible()
        page.evaluate(AXE.read_text(encoding="utf-8"))
        assert serious(page) == []
        watched.sign_in()
        page.evaluate(AXE.read_text(encoding="utf-8"))
        for view in VIEWS:
            page.evaluate("view => { location.hash = `#/${view}` }", view)
            expect(page.locator("#main :is(h2, h3)").first).to_be_visible()
            assert serious(page) == [], view
        page.keyboard.press("?")
        assert serious(page) == [], "shortcuts"


def serious(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
