"""
Trunkline: the gateway that AI agents, tools and people share.

The public names. Each is imported when it is first used, so that a client does
not pay for the gateway, nor a short command for either.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trunkline.agents import AgentRegistry, RegisteredAgent
    from trunkline.auth import Authenticator, Credential
    from trunkline.clients import Client, ClientState, Identity
    from trunkline.config import (
        DEFAULT_GATEWAY_CONFIG,
        DEFAULT_WS_CONFIG,
        GatewayConfig,
        WebSocketTransportConfig,
    )
    from trunkline.errors import CloseCode, ConfigError, Disconnect, ErrorCode, GatewayError
    from trunkline.messages import (
        ControlMessage,
        GatewayMessage,
        create_control_message,
        create_error_message,
        create_message,
    )
    from trunkline.origins import is_origin_allowed
    from trunkline.payloads import Payload
    from trunkline.sdk import (
        Agent,
        Completed,
        ConnectionLost,
        DeviceKey,
        Event,
        GatewayClient,
        InsecureConnection,
        Message,
        Options,
        OutcomeUnknown,
        Page,
        RequestFailed,
        RunContext,
        Session,
        SignInFailed,
        State,
        Text,
        TimedOut,
        ToolContext,
        ToolError,
        ToolFinished,
        ToolStarted,
        ToolUpdated,
        TrunklineError,
        connect,
    )
    from trunkline.server import GatewayServer
    from trunkline.sessions import SessionManager
    from trunkline.singletons import (
        get_gateway_server,
        get_websocket_gateway,
        reset_gateway_server,
        reset_websocket_gateway,
    )
    from trunkline.transports.websocket import WebSocketGateway

__all__ = [
    "DEFAULT_GATEWAY_CONFIG",
    "DEFAULT_WS_CONFIG",
    "Agent",
    "AgentRegistry",
    "Authenticator",
    "Client",
    "ClientState",
    "CloseCode",
    "Completed",
    "ConfigError",
    "ConnectionLost",
    "ControlMessage",
    "Credential",
    "DeviceKey",
    "Disconnect",
    "ErrorCode",
    "Event",
    "GatewayClient",
    "GatewayConfig",
    "GatewayError",
    "GatewayMessage",
    "GatewayServer",
    "Identity",
    "InsecureConnection",
    "Message",
    "Options",
    "OutcomeUnknown",
    "Page",
    "Payload",
    "RegisteredAgent",
    "RequestFailed",
    "RunContext",
    "Session",
    "SessionManager",
    "SignInFailed",
    "State",
    "Text",
    "TimedOut",
    "ToolContext",
    "ToolError",
    "ToolFinished",
    "ToolStarted",
    "ToolUpdated",
    "TrunklineError",
    "WebSocketGateway",
    "WebSocketTransportConfig",
    "connect",
    "create_control_message",
    "create_error_message",
    "create_message",
    "get_gateway_server",
    "get_websocket_gateway",
    "is_origin_allowed",
    "reset_gateway_server",
    "reset_websocket_gateway",
]

_HOMES = {
    "agents": ("AgentRegistry", "RegisteredAgent"),
    "auth": ("Authenticator", "Credential"),
    "clients": ("Client", "ClientState", "Identity"),
    "config": (
        "DEFAULT_GATEWAY_CONFIG",
        "DEFAULT_WS_CONFIG",
        "GatewayConfig",
        "WebSocketTransportConfig",
    ),
    "errors": ("CloseCode", "ConfigError", "Disconnect", "ErrorCode", "GatewayError"),
    "messages": (
        "ControlMessage",
        "GatewayMessage",
        "create_control_message",
        "create_error_message",
        "create_message",
    ),
    "origins": ("is_origin_allowed",),
    "payloads": ("Payload",),
    "server": ("GatewayServer",),
    "sessions": ("SessionManager",),
    "singletons": (
        "get_gateway_server",
        "get_websocket_gateway",
        "reset_gateway_server",
        "reset_websocket_gateway",
    ),
    "transports.websocket": ("WebSocketGateway",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What has no other home is the SDK's, most of whose names are public.
    value = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'sdk')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
