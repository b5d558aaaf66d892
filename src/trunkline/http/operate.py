"""What operators look at and do over HTTP: statistics, connections, kicks."""

from __future__ import annotations

from typing import Any

from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.answers import AgentStats, ClientEntry, ClientListing, Stats, Traffic
from trunkline.http.table import Call, Endpoint
from trunkline.payloads.base import Id, Limit
from trunkline.version import package_version


async def _stats(call: Call) -> Stats:
    call.caller.require("stats")
    gateway = call.caller.gateway
    known, measures = gateway.get_stats(), gateway.measures
    agents = known["agents"]
    clients = gateway.clients.staying()
    return Stats(
        uptime=round(known["uptime"], 3),
        version=package_version(),
        clients=known["clients"],
        authenticated=known["authenticated"],
        sessions=known["sessions"],
        agents=AgentStats(
            total=agents["total"], online=agents["online"], by_type=agents["by_type"]
        ),
        open_requests=known["open_requests"],
        requests=known["requests"],
        stray_responses=known["stray_responses"],
        deliveries=known["deliveries"],
        messages=Traffic(received=measures.received.seen(), sent=measures.sent.seen()),
        refused=known["refused"],
        errors=measures.errors.seen(),
        auth_failures=known["auth_failures"],
        buffered_bytes=sum(client.transport.buffered() for client in clients),
        slow_clients=sum(client.lagging for client in clients),
        state_version=known["state_version"],
        connections=len(clients),
        loop_lag_ms=round(measures.lag.worst * 1000, 3),
    )


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
            summary="What goes on in the gateway.",
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
