"""What operators look at and do over HTTP: statistics, connections, kicks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.answers import AgentStats, ClientEntry, ClientListing, Stats, Traffic
from trunkline.http.callers import Caller
from trunkline.http.table import Call, Endpoint
from trunkline.payloads.base import Id, Limit
from trunkline.version import package_version

if TYPE_CHECKING:
    from trunkline.server import GatewayServer


async def _stats(call: Call) -> Stats:
    caller = call.caller
    caller.require("stats")
    gateway = caller.gateway
    clients = [client for client in gateway.clients.staying() if caller.knows(client.identity)]
    sessions = gateway.sessions.get_all_sessions()
    requests = gateway.router.open_requests()
    return Stats(
        uptime=round(gateway.uptime, 3),
        version=package_version(),
        clients=len(clients),
        authenticated=sum(client.authenticated for client in clients),
        sessions=sum(caller.identity.allows_session(session.id) for session in sessions),
        agents=_agents(caller),
        open_requests=sum(caller.knows(request.asker.identity) for request in requests),
        buffered_bytes=sum(client.transport.buffered() for client in clients),
        slow_clients=sum(client.lagging for client in clients),
        connections=len(clients),
        loop_lag_ms=round(gateway.measures.lag.worst * 1000, 3),
        **(_counts(gateway) if caller.knows(None) else {}),
    )


def _agents(caller: Caller) -> AgentStats:
    agents = caller.gateway.agents.get_all_agents()
    known = [agent for agent in agents if caller.identity.allows_agent(agent.id)]
    return AgentStats(
        total=len(known),
        online=sum(agent.online for agent in known),
        by_type=dict(Counter(agent.type for agent in known)),
    )


def _counts(gateway: GatewayServer) -> dict[str, Any]:
    """Return what was counted since the start, of everybody together."""
    known, measures = gateway.get_stats(), gateway.measures
    names = (
        "requests",
        "stray_responses",
        "deliveries",
        "refused",
        "auth_failures",
        "state_version",
    )
    return {
        **{name: known[name] for name in names},
        "messages": Traffic(received=measures.received.seen(), sent=measures.sent.seen()),
        "errors": measures.errors.seen(),
    }


async def _clients(call: Call) -> ClientListing:
    call.caller.require("clients")
    after = call.query.get("after")
    limit = call.query.get("limit", 100)
    found = [
        client
        for client in call.caller.gateway.clients.staying()
        if call.caller.knows(client.identity)
        and (after is None or _number(client.id) > _number(after))
    ]
    entries = [
        ClientEntry(
            id=client.id,
            user_id=client.user_id,
            role=client.role,
            device_id=client.device_id,
            device_name=client.device_name,
            client_type=client.client_type,
            address=client.peer.address,
            connected_at=client.connected_at,
            sessions=sorted(client.sessions),
            agents=sorted(client.agents),
            buffered=client.transport.buffered(),
            lagging=client.lagging,
        )
        for client in found[:limit]
    ]
    return ClientListing(clients=entries, more=len(found) > limit)


def _number(client_id: str) -> int:
    """Return the place of a client in the order of their coming."""
    tail = client_id.rpartition(".")[2]
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 19 else 0


async def _kick(call: Call) -> None:
    caller = call.caller
    caller.require("kick")
    client = caller.gateway.clients.get(call.id)
    known = client is not None and caller.knows(client.identity)
    if not known or not caller.gateway.kick_client(call.id, actor=caller.client.user_id):
        raise GatewayError(ErrorCode.CLIENT_NOT_FOUND, "no such connection")


def operator_endpoints() -> list[Endpoint]:
    """Return the endpoints of operators."""
    paging: dict[str, Any] = {"after": Id, "limit": Limit}
    return [
        Endpoint(
            method="GET",
            path="/stats",
            right="stats",
            run=_stats,
            summary="What goes on in the gateway, as far as one may know of it.",
            answer=Stats,
        ),
        Endpoint(
            method="GET",
            path="/clients",
            right="clients",
            run=_clients,
            summary="The connections, the oldest first.",
            query=paging,
            answer=ClientListing,
        ),
        Endpoint(
            method="DELETE",
            path="/clients/{id}",
            right="kick",
            run=_kick,
            summary="Close a connection, with code 4004.",
            status=204,
        ),
    ]
