"""Gateways to test against: in memory, and on a real socket."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from peers import People, guarded_config, hang_up
from sizes import Sizes

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.server import GatewayServer
from trunkline.transports.websocket import WebSocketGateway

if importlib.util.find_spec("sniffio") is None:
    # httpx tries to import it for every request, which costs more than the request.
    sys.modules["sniffio"] = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """No test inherits the set-up of the logs that another one made."""
    *processors, renderer = structlog.get_config()["processors"]
    assert isinstance(renderer, structlog.dev.ConsoleRenderer)
    # Its own way to show a traceback takes a second on a busy machine.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors, plain])
    configured, level = structlog.get_config()["processors"], logging.root.level
    yield
    logging.root.setLevel(level)
    if structlog.get_config()["processors"] is not configured:
        logging.basicConfig(force=True)
    structlog.reset_defaults()


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayServer]:
    """A gateway in memory that asks nobody to sign in."""
    async with GatewayServer(GatewayConfig(auth=AuthConfig(mode="none"))) as gateway:
        yield gateway


@pytest.fixture
async def guarded() -> AsyncIterator[GatewayServer]:
    """A gateway in memory with sign-in; `peers.People` knows whom a token names."""
    config = GatewayConfig(auth=AuthConfig(token="the-owner's-token"))
    async with GatewayServer(config, authenticator=People()) as gateway:
        yield gateway


@pytest.fixture
async def ws_gateway() -> AsyncIterator[WebSocketGateway]:
    """A gateway on a free port of loopback with sign-in; `peers.People` knows the tokens."""
    async with WebSocketGateway(guarded_config(), authenticator=People()) as gateway:
        yield gateway
        await hang_up(gateway)


@pytest.fixture
def sized() -> Sizes:
    """Picks the size of a proof for the battery that runs."""
    return Sizes()
