"""The commands of the how-to page for the HTTP API, run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from peers import WebSocketPeer, connect, guarded_config, hang_up, register

from trunkline.authdb import AuthDatabase
from trunkline.config import AuthConfig
from trunkline.transports.websocket import WebSocketGateway

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "use-the-http-api.md"
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
TIMED_OUT = 28
"""What curl exits with where an answer goes on and its time is up."""


async def serve(peer: WebSocketPeer) -> None:
    """Add whatever two numbers one is asked for."""
    while True:
        with suppress(TimeoutError):
            asked = (await peer.next("route_request")).data()
            result = asked["params"]["a"] + asked["params"]["b"]
            await peer.send("route_response", {"requestId": asked["requestId"], "result": result})


async def run(command: str, environ: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "sh", "-ec", command, env=environ, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_the_commands_of_the_page_work_one_after_the_other():
    """On a gateway with an agent that can add."""
    database = AuthDatabase()
    config = guarded_config(auth=AuthConfig(token="owners"))
    async with WebSocketGateway(config, authdb=database) as gateway:
        bot = await connect(gateway, "owners")
        await bot.ask("connect", {"role": "node", "deviceId": "bot"})
        await register(bot, "bot", "add")
        serving = asyncio.create_task(serve(bot))
        environ = {**os.environ, "URL": gateway.address, "TOKEN": "owners"}
        printed = []
        for command in COMMANDS:
            limited = command.replace("curl -sN", "curl -sN --max-time 0.5")
            code, out = await run(limited, environ)
            assert code == (TIMED_OUT if "-sN" in command else 0), (command, out)
            printed.append(out)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await hang_up(gateway)
    database.close()

    assert '"status":"created"' in printed[0]
    assert '"seq":1' in printed[1]
    assert "Version 2041 is live" in printed[2]
    assert "event: session_info" in printed[3]
    assert '"result":3' in printed[4]
    assert '"openRequests":0' in printed[5]
    assert '"token":"tl_' in printed[6]
    assert "trunkline_build_info" in printed[7]
