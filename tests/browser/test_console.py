"""People use the console: sign in, talk, decide, come back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

import trunkline
from browser.conftest import TOKEN, Watched, run_async


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def open_session(page: Page, session_id: str) -> None:
    page.evaluate("id => { location.hash = `#/chat/${id}` }", session_id)
    expect(page.get_by_role("region", name=f"Conversation {session_id}")).to_be_visible()


def create_session(page: Page, session_id: str) -> None:
    page.get_by_role("button", name="New session").click()
    page.get_by_label("Id", exact=True).fill(session_id)
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("region", name=f"Conversation {session_id}")).to_be_visible()


async def fill(url: str, session_id: str, texts: list[str]) -> None:
    async with trunkline.connect(url, token=TOKEN) as gateway:
        session = await gateway.join(session_id)
        await asyncio.gather(*(session.send(text) for text in texts))


class TestSigningIn:
    def test_a_wrong_token_is_told_and_a_right_one_lets_in(self, watched: Watched) -> None:
        """Who mistypes the token reads so, and can try again."""
        page = watched.page
        page.goto(watched.gateway.url)
        page.get_by_label("Token", exact=True).fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know this token")

        watched.sign_in()

        expect(page.get_by_role("heading", name="Sessions")).to_be_visible()

    def test_the_token_is_kept_only_if_asked(self, watched: Watched) -> None:
        """A reload asks for the token again, unless the person said otherwise."""
        page = watched.sign_in()
        assert page.evaluate("JSON.stringify([{...sessionStorage}, document.cookie])") == '[{},""]'
        page.reload()
        expect(page.get_by_label("Token", exact=True)).to_be_visible()

        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.get_by_label("Keep me signed in for this tab").check()
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
        page.reload()

        expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
        assert TOKEN not in page.evaluate("JSON.stringify({...localStorage})")


class TestTalking:
    def test_an_answer_streams_and_its_tool_is_shown(self, watched: Watched) -> None:
        """A question gets a card for the tool, and an answer that grows."""
        page = watched.sign_in("/#/chat/lobby")
        say(page, "@demo what is 2*(3+4)")

        run = page.locator(".run").last
        expect(run.locator(".tool-name")).to_have_text("calculate")
        expect(run).to_contain_text("2*(3+4) = 14")
        run.locator("summary").click()
        expect(run.locator(".tool-body")).to_contain_text('"expression": "2*(3+4)"')
        expect(page.get_by_label("Message", exact=True)).to_have_value("")

    def test_a_long_answer_can_be_stopped(self, watched: Watched) -> None:
        """An answer that is being written is shown as far as it is, and stops when told."""
        page = watched.sign_in("/#/chat/lobby")
        say(page, "repeat " + "word " * 300)
        run = page.locator(".run").last
        expect(run).to_contain_text("word word word")
        run.get_by_role("button", name="Stop").click()

        expect(run.locator(".msg-head")).to_contain_text("stopped")

    def test_two_people_see_the_same(self, open_page: Callable[..., Watched]) -> None:
        """Who is in the session sees that another one writes, and what they say."""
        ada, bob = open_page().sign_in("/#/chat/lobby"), open_page().sign_in("/#/chat/lobby")
        expect(bob.get_by_label("Message", exact=True)).to_be_visible()
        ada.get_by_label("Message", exact=True).press_sequentially("hi th")
        expect(bob.locator(".typing")).to_contain_text("owner is writing")
        ada.get_by_label("Message", exact=True).press_sequentially("ere, count me\n")

        expect(bob.locator(".msg").filter(has_text="hi there, count me").first).to_be_visible()

    def test_a_reload_in_the_middle_of_an_answer_loses_nothing(self, watched: Watched) -> None:
        """After a reload the answer goes on from its beginning."""
        page = watched.sign_in("/#/chat/lobby")
        page.get_by_role("button", name="You: owner").click()
        page.get_by_label("Keep me signed in for this tab").check()
        words = " ".join(f"w{n}" for n in range(40))
        say(page, f"please repeat: {words}")
        expect(page.locator(".run").last).to_contain_text("w5 w6")
        page.reload()

        run = page.locator(".run").last
        expect(run).to_contain_text(f"You said: please repeat: {words}")
        expect(run).to_contain_text("I only know a few tricks")

    def test_a_mention_is_completed(self, watched: Watched) -> None:
        """Typing @ offers the agents, and Enter takes one."""
        page = watched.sign_in("/#/chat/lobby")
        box = page.get_by_label("Message", exact=True)
        box.press_sequentially("@dem")
        expect(page.get_by_role("option", name=re.compile("@demo"))).to_be_visible()
        box.press("Enter")

        expect(box).to_have_value("@demo ")


class TestApprovals:
    def test_an_approval_is_allowed_or_denied(self, open_page: Callable[..., Watched]) -> None:
        """The agent goes on as was decided, and everybody sees who decided."""
        page = open_page().sign_in("/#/chat/ops")
        for decision, answer in (("Allow", "Done: gateway 1.4.2"), ("Deny", "Then I leave it.")):
            say(page, "@deployer roll it out")
            card = page.locator(".run").last.locator(".approval")
            expect(card).to_contain_text('"version": "1.4.2"')
            card.get_by_role("button", name=decision).click()

            expect(page.locator(".run").last).to_contain_text(answer)
            expect(card).to_contain_text("by owner")


class TestComingBack:
    def test_a_killed_gateway_loses_nothing_and_moves_nothing(self, watched: Watched) -> None:
        """What is written meanwhile is sent once, and what one reads stays where it is."""
        gateway = watched.gateway
        run_async(fill(gateway.url, "long", [f"message {n}\n\nsecond line" for n in range(50)]))
        page = watched.sign_in("/#/chat/long")
        log = page.get_by_role("log")
        expect(log).to_contain_text("message 49")
        log.hover()
        page.mouse.wheel(0, -700)
        row = page.locator('[data-key="m40"]')
        before = settled(row)

        gateway.kill()
        expect(page.get_by_text("Reconnecting…")).to_be_visible()
        say(page, "written while it was away")
        gateway.start()

        expect(page.get_by_text("Reconnecting…")).to_be_hidden()
        expect(page.locator(".msg.sending")).to_have_count(0)
        mine = page.locator(".msg").filter(has_text="written while it was away")
        expect(mine).to_have_count(1)
        assert abs(settled(row) - before) <= 1
        assert numbers(page) == list(range(50))

    def test_older_messages_come_without_a_jump(self, watched: Watched) -> None:
        """Reading upwards, pages of history are put above while the line one reads stays."""
        run_async(fill(watched.gateway.url, "history", [f"message {n}" for n in range(400)]))
        page = watched.sign_in("/#/chat/history")
        expect(page.get_by_role("log")).to_contain_text("message 399")
        assert page.locator(".msg").count() < 200  # the end, and at most one page before it
        assert page.evaluate(MOVED) <= 1

        seen: set[int] = set()
        page.get_by_role("log").hover()
        for _ in range(200):
            ended = page.locator('[data-key="m1"]').is_visible()
            shown = numbers(page)
            # Far from the screen rows are not part of the page; those that are stand in order.
            assert shown == sorted(set(shown))
            assert len(shown) < 300
            seen |= set(shown)
            if ended:
                break
            page.mouse.wheel(0, -1500)
            page.wait_for_function(FRAME)

        assert seen == set(range(400))
        expect(page.get_by_text("The beginning of this session")).to_be_visible()


def settled(row: object) -> float:
    """Where a row stands, once it stands still for some frames."""
    return float(
        row.evaluate(  # type: ignore[attr-defined]
            """async (row) => {
                let top = NaN, still = 0;
                while (still < 10) {
                    await new Promise(requestAnimationFrame);
                    const now = row.getBoundingClientRect().top;
                    still = now === top ? still + 1 : 0;
                    top = now;
                }
                return top;
            }"""
        )
    )


MOVED = """async () => {
    const frame = () => new Promise(requestAnimationFrame);
    const log = document.querySelector(".log");
    const count = () => document.querySelectorAll(".msg").length;
    const row = document.querySelectorAll("[data-key]")[12];
    const rows = count();
    log.scrollTop = row.offsetTop - 50;
    await frame();
    const top = row.getBoundingClientRect().top;
    let moved = 0;
    for (let more = 0; more < 30; ) {
        await frame();
        moved = Math.max(moved, Math.abs(row.getBoundingClientRect().top - top));
        if (count() > rows) more++;
    }
    return moved;
}"""
"""How far a row moves, in pixels, while a page of older messages is put above it."""

FRAME = "() => new Promise((done) => requestAnimationFrame(() => done(true)))"


def numbers(page: Page) -> list[int]:
    """The numbers of the messages that are part of the page, from the top."""
    texts = page.locator(".msg").all_text_contents()
    return [int(found[1]) for text in texts if (found := re.search(r"message (\d+)", text))]


class TestKeyboard:
    def test_the_console_is_used_without_a_mouse(self, watched: Watched) -> None:
        """Views, help, palette, lists and the message field are reached by keys."""
        page = watched.sign_in("/#/chat/lobby")
        expect(page.get_by_label("Message", exact=True)).to_be_focused()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.keyboard.press("g")
        page.keyboard.press("a")
        expect(page.get_by_role("heading", name="Agents")).to_be_visible()
        page.keyboard.press("Control+k")
        expect(page.get_by_role("dialog", name="Go to")).to_be_visible()
        page.keyboard.type("lobby")
        page.keyboard.press("Enter")
        expect(page.get_by_role("region", name="Conversation lobby")).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        expect(page.get_by_label("Message", exact=True)).to_be_focused()


class TestSessions:
    def test_a_session_is_made_changed_and_closed(self, watched: Watched) -> None:
        """Its name and settings can be changed, and in the end it is gone."""
        page = watched.sign_in("/#/chat/lobby")
        create_session(page, "made.here")
        page.get_by_label("Name", exact=True).fill("A better name")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="A better name")).to_be_visible()
        page.get_by_label("Agents answer").select_option("mention")
        expect(page.locator(".notice").last).to_contain_text("owner changed the settings")
        page.get_by_label("Invite", exact=True).fill("bob")
        page.get_by_role("button", name="Invite").click()
        expect(page.locator(".notice").last).to_contain_text("owner invited bob")

        page.get_by_role("button", name="Close session…").click()
        page.get_by_label("Delete its record and its log too").check()
        page.get_by_role("button", name="Close and delete").click()

        expect(page.get_by_role("link", name=re.compile("A better name"))).to_have_count(0)


class TestAgents:
    def test_a_tool_is_called_by_its_form(self, watched: Watched) -> None:
        """The form is made of the tool's schema, says what is missing, and shows the result."""
        page = watched.sign_in("/#/agents/deployer")
        call = page.get_by_role("button", name="Call")
        call.click()
        expect(page.get_by_text("This is needed.").first).to_be_visible()
        page.get_by_label(re.compile("^service")).fill("gateway")
        page.get_by_label(re.compile("^version")).fill("2.0")
        call.click()

        expect(page.locator(".outcome")).to_contain_text("gateway 2.0 on 2 replicas")

    def test_a_routing_decision_is_explained(self, watched: Watched) -> None:
        """Who would be asked is marked, with the reason."""
        page = watched.sign_in("/#/agents/~routing")
        page.get_by_label("Capability or tool").fill("deploy")
        page.get_by_role("button", name="Explain").click()

        expect(page.locator(".candidates .chosen")).to_contain_text("deployer")


class TestPhone:
    def test_everything_fits_a_narrow_screen(self, open_page: Callable[..., Watched]) -> None:
        """At 375 pixels no view is wider than the screen, and one comes back from each."""
        page = open_page(viewport={"width": 375, "height": 720}, has_touch=True).sign_in()
        for path in ("chat", "chat/lobby", "agents", "agents/demo", "operate/overview"):
            page.evaluate("path => { location.hash = `#/${path}` }", path)
            expect(page.locator("#main, .side").first).to_be_attached()
            assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
        page.evaluate("location.hash = '#/chat/lobby'")
        say(page, "from a phone")
        expect(page.locator(".msg").filter(has_text="from a phone").first).to_be_visible()
        page.get_by_role("link", name="All sessions").click()
        expect(page.get_by_role("heading", name="Sessions")).to_be_visible()


class TestOperating:
    def test_the_gateway_is_seen_at_a_glance(self, watched: Watched) -> None:
        """Numbers and charts of what goes on, which move by themselves."""
        page = watched.sign_in("/#/operate/overview")

        expect(page.locator(".tile").filter(has_text="Agents online")).to_contain_text(
            re.compile("[23]")
        )
        expect(page.locator(".chart canvas")).to_have_count(6)
        expect(page.locator(".breakdown").first).to_be_visible()

    def test_a_token_is_made_shown_once_and_revoked(self, watched: Watched) -> None:
        """Its secret signs in until it is revoked, which ends the connection at once."""
        page = watched.sign_in("/#/operate/tokens")
        page.get_by_role("button", name="New token").click()
        page.get_by_label("Name", exact=True).fill("for a test")
        page.get_by_label("User", exact=True).fill("carol")
        page.get_by_role("button", name="Make token").click()
        secret = page.get_by_label("The secret").input_value()
        page.get_by_role("button", name="I have stored it").click()
        row = page.get_by_role("row", name=re.compile("for a test"))
        expect(row).to_contain_text("good")
        assert secret not in page.content()

        row.get_by_role("button", name="Revoke").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()

        expect(row).to_contain_text("revoked")

    def test_a_connection_is_kicked(self, open_page: Callable[..., Watched]) -> None:
        """Whom the operator kicks is told so, and is not signed in any more."""
        operator, other = open_page(), open_page()
        kicked = other.sign_in("/#/chat/lobby")
        expect(kicked.get_by_label("Message", exact=True)).to_be_visible()
        page = operator.sign_in("/#/operate/connections")
        row = page.get_by_role("row").filter(has_text="console").filter(has_not_text="you").last
        row.get_by_role("button", name="Kick").click()
        page.get_by_role("dialog").get_by_role("button", name="Kick").click()

        expect(kicked.get_by_role("alert")).to_contain_text("closed the connection")

    def test_what_happened_is_in_the_audit_log(self, watched: Watched) -> None:
        """The newest first, by user and action."""
        page = watched.sign_in("/#/operate/audit")
        page.get_by_label("Only this action").fill("auth.*")

        expect(page.get_by_role("row").nth(1)).to_contain_text("auth.ok")
        expect(page.get_by_role("row").nth(1)).to_contain_text("owner")

    def test_a_sign_in_link_signs_in_once(self, open_page: Callable[..., Watched]) -> None:
        """Its code is worth one sign-in, with all that the one who made it may do."""
        first = open_page()
        page = first.sign_in()
        code = page.evaluate(
            """token => fetch("/api/v1/codes", {
                method: "POST", headers: {authorization: `Bearer ${token}`},
            }).then((answer) => answer.json()).then((answer) => answer.code)""",
            TOKEN,
        )
        link = f"{first.gateway.url}/#code={code}"
        second, third = open_page().page, open_page().page
        second.goto(link)
        expect(second.get_by_role("heading", name="Sessions")).to_be_visible()
        second.evaluate("location.hash = '#/operate/connections'")
        expect(second.get_by_role("row", name=re.compile("you"))).to_be_visible()
        assert code not in second.url

        third.goto(link)

        expect(third.get_by_role("alert")).to_contain_text("was used before")
