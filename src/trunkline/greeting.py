"""What the gateway tells of itself: the welcome, the hello, its health, the state that one may see."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Literal

from trunkline.agents import AgentRegistry
from trunkline.clients import Client, Clients
from trunkline.config import GatewayConfig, WebSocketTransportConfig
from trunkline.handlers import Handlers
from trunkline.ids import new_id, now_ms
from trunkline.messages import PROTOCOL_VERSION, GatewayMessage, create_message
from trunkline.payloads import Health, HealthReport, HelloOk, SessionInfo, StateSnapshot
from trunkline.presence import PresenceBoard
from trunkline.session_handlers import SessionHandlers
from trunkline.version import package_version

MAX_FRAME_FROM_GATEWAY = 2 * 1024 * 1024
"""Bytes of the largest frame that the gateway sends."""

FEATURES = ["sessions", "history", "resume", "runs", "agents", "requests", "presence"]
"""What this gateway can do, for clients that also know gateways that cannot."""


class Greeting:
    """
    The welcome and the handlers of ``ping``, ``health`` and ``sync_state``.

    Args:
        uptime: Seconds since the start.
        draining: Whether the gateway is about to stop.
    """

    def __init__(
        self,
        config: GatewayConfig,
        clients: Clients,
        presence: PresenceBoard,
        sessions: SessionHandlers,
        agents: AgentRegistry,
        *,
        uptime: Callable[[], float],
        draining: Callable[[], bool],
    ) -> None:
        self._config = config
        self._clients = clients
        self._presence = presence
        self._sessions = sessions
        self._agents = agents
        self._uptime = uptime
        self._draining = draining

    def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration from now on."""
        self._config = config

    def install(self, handlers: Handlers) -> None:
        """Add the handlers."""
        handlers.add("ping", self._on_ping)
        handlers.add("health", self._on_health)
        handlers.add("sync_state", self._on_sync_state)

    def welcome(self, client: Client) -> None:
        """Send a new connection what it needs to sign in."""
        client.nonce = secrets.token_urlsafe(24)
        info = SessionInfo(
            session_id=client.id,
            status="connected",
            auth_required=not client.authenticated,
            protocol_version=PROTOCOL_VERSION,
            challenge_nonce=client.nonce,
            limits=self._limits(),
        )
        client.send(create_message("session_info", info))

    def hello(self, client: Client) -> HelloOk:
        """Answer ``connect``."""
        ready = client.authenticated
        config = self._config
        heartbeat = (
            config.heartbeat_interval if isinstance(config, WebSocketTransportConfig) else 25.0
        )
        return HelloOk(
            paired=False,
            challenge_nonce=client.nonce,
            uptime=self._uptime_ms(),
            state_version=self._clients.state_version,
            presence=self._presence.snapshot(client) if ready else [],
            health=Health(status=self._status(), checked_at=now_ms()),
            auth_required=not ready,
            protocol_version=PROTOCOL_VERSION,
            server_version=package_version(),
            client_id=client.id,
            features=FEATURES,
            limits=self._limits(),
            heartbeat_interval_ms=round(heartbeat * 1000),
            role=client.role if ready else None,
            scopes=sorted(client.scopes) if ready else None,
        )

    def _limits(self) -> dict[str, int | float]:
        limits = self._config.limits
        return {
            "maxMessageSize": limits.max_message_size,
            "maxFrameFromGateway": MAX_FRAME_FROM_GATEWAY,
            "maxDepth": limits.max_depth,
            "publishRate": limits.publish_rate,
            "publishBurst": limits.publish_burst,
            "streamRate": limits.stream_rate,
            "streamBurst": limits.stream_burst,
            "sessionsPerConnection": limits.sessions_per_connection,
            "requestsPerConnection": limits.requests_per_connection,
        }

    def _status(self) -> Literal["ok", "draining"]:
        return "draining" if self._draining() else "ok"

    def _uptime_ms(self) -> int:
        return round(self._uptime() * 1000)

    def _on_ping(self, client: Client, message: GatewayMessage) -> None:
        pong = (
            f'{{"type":"pong","id":"{new_id()}","payload":'
            f'{{"clientId":"{client.id}"}},"timestamp":{now_ms()},"replyTo":"{message.id}"}}'
        )
        client.write(pong.encode())

    def _on_health(self, client: Client, message: GatewayMessage) -> HealthReport:
        return HealthReport(status=self._status(), checked_at=now_ms(), uptime=self._uptime_ms())

    async def _on_sync_state(self, client: Client, message: GatewayMessage) -> StateSnapshot:
        return StateSnapshot(
            state_version=self._clients.state_version,
            sessions=await self._sessions.visible_entries(client),
            agents=self._agents.entries(client),
            presence=self._presence.snapshot(client),
        )
