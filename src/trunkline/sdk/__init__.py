"""
The Python SDK: clients and agents for a Trunkline gateway.

It knows the protocol's vocabulary and nothing of the gateway itself.
"""

from trunkline.sdk.agent import Agent
from trunkline.sdk.client import GatewayClient, Options, connect
from trunkline.sdk.connection import State
from trunkline.sdk.context import RunContext, ToolContext
from trunkline.sdk.errors import (
    ConnectionLost,
    InsecureConnection,
    OutcomeUnknown,
    RequestFailed,
    SignInFailed,
    TimedOut,
    ToolError,
    TrunklineError,
)
from trunkline.sdk.events import (
    Completed,
    Event,
    Text,
    ToolFinished,
    ToolStarted,
    ToolUpdated,
)
from trunkline.sdk.keys import DeviceKey
from trunkline.sdk.messages import Message, Page
from trunkline.sdk.session import Session

__all__ = [
    "Agent",
    "Completed",
    "ConnectionLost",
    "DeviceKey",
    "Event",
    "GatewayClient",
    "InsecureConnection",
    "Message",
    "Options",
    "OutcomeUnknown",
    "Page",
    "RequestFailed",
    "RunContext",
    "Session",
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
    "connect",
]
