"""
Agents for the browser tests, in a process of their own: `deployer` asks before it acts, and
`hostile` puts text that would do something in a careless page wherever an agent can write.

``python agents.py URL TOKEN`` prints a line when they are there, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

from trunkline import Agent
from trunkline.sdk.context import RunContext, ToolContext
from trunkline.sdk.errors import ToolError
from trunkline.sdk.messages import Message

PAYLOADS = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<iframe src=javascript:window.parent.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<body onload=window.pwned=1>",
    "<input autofocus onfocus=window.pwned=1>",
    "<select autofocus onfocus=window.pwned=1>",
    "<textarea autofocus onfocus=window.pwned=1>",
    "<details open ontoggle=window.pwned=1>",
    "<video><source onerror=window.pwned=1>",
    "<audio src=x onerror=window.pwned=1>",
    "<marquee onstart=window.pwned=1>",
    "<object data=javascript:window.pwned=1>",
    "<embed src=javascript:window.pwned=1>",
    "<math><a xlink:href=javascript:window.pwned=1>x",
    "<a href=javascript:window.pwned=1>x</a>",
    "<form action=javascript:window.pwned=1><button>x",
    "<button formaction=javascript:window.pwned=1>x",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=javascript:window.pwned=1'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<link rel=import href=https://evil.example/>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "<style>*{background:url(https://evil.example/)}</style>",
    "<div style='background:url(https://evil.example/)'>",
    "<table background=https://evil.example/>",
    "<template><script>window.pwned=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>",
    "<math><mi><mglyph><style><img src=x onerror=window.pwned=1>",
    "<svg><foreignObject><iframe onload=window.pwned=1>",
    "<xss onpointerenter=window.pwned=1 style=display:block>x</xss>",
    "'\"><script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "';window.pwned=1;//",
    '";window.pwned=1;//',
    "`${window.pwned=1}`",
    "{{constructor.constructor('window.pwned=1')()}}",
    "${window.pwned=1}",
    "<%= window.pwned=1 %>",
    "javascript:window.pwned=1",
    "data:text/html,<script>opener.pwned=1</script>",
    "[x](javascript:window.pwned=1)",
    "[x](javascript&colon;window.pwned=1)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "![x](https://evil.example/pixel.png)",
    "![x](javascript:window.pwned=1)",
    "<https://evil.example/ onmouseover=window.pwned=1>",
    "[x]: javascript:window.pwned=1\n\n[x]",
    "```html\n<script>window.pwned=1</script>\n```",
    '```"><img/src=x/onerror=window.pwned=1>\nx\n```',
    "| <img src=x onerror=window.pwned=1> |\n| --- |\n| <svg onload=window.pwned=1> |",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "&#60;img src=x onerror=window.pwned=1&#62;",
    "\u202e<script>window.pwned=1</script>",
    "</title><script>window.pwned=1</script>",
    "</textarea><script>window.pwned=1</script>",
    "<!--><script>window.pwned=1</script>-->",
]
"""What a careless page would run, load or obey."""


def deployer() -> Agent:
    """Make an agent that asks before it acts."""
    agent = Agent("deployer", name="Deployer", sessions=["ops"], labels={"region": "eu"})

    @agent.tool
    def deploy(service: str, version: str, replicas: int = 2, dry_run: bool = True) -> str:
        """Roll a version of a service out."""
        return f"{service} {version} on {replicas} replicas"

    @agent.on_chat
    async def talk(run: RunContext, message: Message) -> AsyncGenerator[str, None]:
        yield "I can do that. "
        args = {"service": "gateway", "version": "1.4.2", "dry_run": False}
        if await run.approve("deploy", args):
            yield f"Done: {await run.tool('deploy', args)}."
        else:
            yield "Then I leave it."

    return agent


def hostile() -> Agent:
    """Make an agent that is careful about nothing."""
    text = PAYLOADS[1]
    agent = Agent(
        "hostile",
        name=text,
        sessions=["hostile"],
        labels={"<b>": text[:60]},
        metadata={text: text},
        modes=[PAYLOADS[2]],
    )

    def attack(given: str = "", ctx: ToolContext | None = None) -> dict[str, str]:
        if ctx is not None:
            ctx.progress(50, text)
        if given == "fail":
            raise ToolError(text)
        return {payload: payload for payload in PAYLOADS}

    given = {"type": "string", "title": text, "description": text, "default": text}
    agent.add_tool(
        attack,
        description=text,
        input_schema={
            "type": "object",
            "properties": {"given": given, text: {"enum": [text, {text: text}]}},
        },
    )

    @agent.on_chat
    async def talk(run: RunContext, message: Message) -> AsyncGenerator[str, None]:
        await run.tool("attack", {"given": text})
        with contextlib.suppress(ToolError):
            await run.tool("attack", {"given": "fail"})
        for payload in PAYLOADS:
            yield f"{payload}\n\n"
        await run.approve(text, {text: PAYLOADS})
        raise ToolError(text)

    return agent


async def main(url: str, token: str) -> None:
    """Serve until standard input ends."""
    async with (
        deployer().serving(url, token=token),
        hostile().serving(url, token=token),
    ):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
