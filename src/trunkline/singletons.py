"""One gateway for a whole program, for those who want it (the source's singletons)."""

from __future__ import annotations

from trunkline.config import GatewayConfig, WebSocketTransportConfig
from trunkline.errors import ConfigError
from trunkline.server import GatewayServer
from trunkline.transports.websocket import WebSocketGateway

_server: GatewayServer | None = None
_websocket: WebSocketGateway | None = None


def get_gateway_server(config: GatewayConfig | None = None) -> GatewayServer:
    """
    Return the program's `GatewayServer`, made at the first call.

    Raises:
        ConfigError: It exists already, with another configuration.
    """
    global _server
    if _server is None:
        _server = GatewayServer(config)
    _same(config, _server.config)
    return _server


async def reset_gateway_server() -> None:
    """Stop the program's `GatewayServer` and forget it."""
    global _server
    if _server is not None:
        await _server.stop()
    _server = None


def get_websocket_gateway(config: WebSocketTransportConfig | None = None) -> WebSocketGateway:
    """
    Return the program's `WebSocketGateway`, made at the first call.

    Raises:
        ConfigError: It exists already, with another configuration.
    """
    global _websocket
    if _websocket is None:
        _websocket = WebSocketGateway(config)
    _same(config, _websocket.config)
    return _websocket


async def reset_websocket_gateway() -> None:
    """Stop the program's `WebSocketGateway` and forget it."""
    global _websocket
    if _websocket is not None:
        await _websocket.stop()
    _websocket = None


def _same(asked: GatewayConfig | None, existing: GatewayConfig) -> None:
    if asked is not None and asked != existing:
        raise ConfigError("the gateway exists already, with another configuration")
