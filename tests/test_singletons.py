"""One gateway for a whole program."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from peers import guarded_config, open_config

from trunkline.config import AuthConfig, GatewayConfig
from trunkline.errors import ConfigError
from trunkline.singletons import (
    get_gateway_server,
    get_websocket_gateway,
    reset_gateway_server,
    reset_websocket_gateway,
)

OPEN = GatewayConfig(auth=AuthConfig(mode="none"))


@pytest.fixture(autouse=True)
async def fresh() -> AsyncIterator[None]:
    """No singleton before, none after."""
    yield
    await reset_gateway_server()
    await reset_websocket_gateway()


async def test_asking_again_gives_the_same_gateway():
    """With or without the same configuration."""
    server, gateway = get_gateway_server(OPEN), get_websocket_gateway(open_config())

    assert get_gateway_server() is get_gateway_server(OPEN) is server
    assert get_websocket_gateway() is get_websocket_gateway(open_config()) is gateway


async def test_asking_again_with_another_configuration_is_an_error():
    """Rather than silence."""
    get_gateway_server(OPEN)
    get_websocket_gateway(open_config())

    with pytest.raises(ConfigError, match="another configuration"):
        get_gateway_server(GatewayConfig(auth=AuthConfig(token="t")))
    with pytest.raises(ConfigError, match="another configuration"):
        get_websocket_gateway(guarded_config())


async def test_a_reset_stops_the_gateway_and_forgets_it():
    """The next one is new; resetting twice is harmless."""
    server, gateway = get_gateway_server(OPEN), get_websocket_gateway(open_config())
    await server.start()
    await gateway.start()

    for _ in range(2):
        await reset_gateway_server()
        await reset_websocket_gateway()

    assert (server.ready, gateway.ready) == (False, False)
    assert get_gateway_server(OPEN) is not server
    assert get_websocket_gateway(open_config()) is not gateway
