"""Handlers that raise, wait, block or want too much memory harm their own request only."""

import asyncio
import time

import pytest
from peers import connect, error_of, hang_up, open_config
from processes import PATIENCE

from trunkline.config import HistoryConfig
from trunkline.run import running


@pytest.fixture
async def gateway(tmp_path):
    """A gateway as `serve` runs it, with handlers that fail."""
    config = open_config(data_dir=str(tmp_path / "state"), history=HistoryConfig(store="memory"))
    async with running(config) as gateway:
        for name, handler in HANDLERS.items():
            gateway.register_handler(name, handler)
        yield gateway
        await hang_up(gateway)


def raises(client, message):
    raise RuntimeError("a bug")


def wants_memory(client, message):
    return bytearray(2**62)


def blocks(client, message):
    time.sleep(1.2)


async def waits(client, message):
    await released.wait()


HANDLERS = {"raises": raises, "wants_memory": wants_memory, "blocks": blocks, "waits": waits}
released = asyncio.Event()


async def logged(capsys, text):
    """Wait until the log holds a text; return all of it up to then."""
    seen = ""
    async with asyncio.timeout(PATIENCE):
        while text not in seen:
            await asyncio.sleep(0.05)
            seen += capsys.readouterr().err
    return seen


@pytest.mark.parametrize("type", ["raises", "wants_memory"])
async def test_an_exception_fails_one_request(gateway, type):
    """The client is told an id, and it and all others go on."""
    ada, bob = await connect(gateway), await connect(gateway)

    refusal = await ada.ask(type)

    assert error_of(refusal) == "HANDLER_ERROR"
    assert (await ada.ask("ping")).type == "pong"
    assert (await bob.ask("ping")).type == "pong"


async def test_a_handler_that_waits_holds_up_its_own_client_only(gateway):
    """Others are served meanwhile; the client's next request comes after it."""
    released.clear()
    ada, bob = await connect(gateway), await connect(gateway)
    await ada.send("waits")
    last = await ada.send("ping")

    assert (await bob.ask("ping")).type == "pong"
    released.set()
    assert (await ada.next(reply_to=last)).type == "pong"


async def test_a_handler_that_blocks_sets_off_an_alarm_and_cuts_nobody_off(gateway, capsys):
    """The log names the code that holds the loop up; afterwards all goes on."""
    ada, bob = await connect(gateway), await connect(gateway)

    await ada.send("blocks")
    seen = await logged(capsys, "the event loop goes on")

    assert "the event loop is held up" in seen
    assert "in blocks" in seen
    assert (await ada.ask("ping")).type == "pong"
    assert (await bob.ask("ping")).type == "pong"
