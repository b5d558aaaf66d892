"""The machine-readable reference: JSON Schema, AsyncAPI and OpenAPI, made from the code."""

from __future__ import annotations

from typing import Any

import msgspec
from docs_source import attribute_docs, markdown, reachable, summary

from trunkline.config import DEFAULT_WS_CONFIG, AuthConfig, WebSocketTransportConfig
from trunkline.http.openapi import openapi, without_raw
from trunkline.ids import ID_PATTERN, TYPE_PATTERN
from trunkline.messages import PROTOCOL_VERSION, SUBPROTOCOL, GatewayMessage
from trunkline.payloads import CLIENT_PAYLOADS, GATEWAY_PAYLOADS, PAYLOADS, Payload
from trunkline.transports.websocket import WebSocketGateway

JsonObject = dict[str, Any]

DESCRIPTION = (
    "Messages between a Trunkline gateway and its clients: one JSON object per WebSocket text "
    "frame. Unknown fields are allowed everywhere but in `session_patch.patch`. Fields that "
    "only the gateway sets (`from`, `seq`, `replyTo`, `addressed`) are dropped when a client "
    "sends them."
)


def json_schema() -> JsonObject:
    """Return the JSON Schema of every message in both directions."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Trunkline wire protocol, version {PROTOCOL_VERSION}",
        "description": DESCRIPTION,
        "anyOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/GatewayFrame"}],
        "$defs": {
            **components("#/$defs/{name}"),
            "ClientMessage": _any_of("What a client sends.", CLIENT_PAYLOADS),
            "GatewayFrame": _any_of("What the gateway sends.", GATEWAY_PAYLOADS),
        },
    }


def _any_of(description: str, payloads: dict[str, type[Payload]]) -> JsonObject:
    choices = [_message(payloads[type], "#/$defs/{}") for type in sorted(payloads)]
    return {"description": description, "anyOf": choices}


def _message(kind: type[Payload], reference: str) -> JsonObject:
    """Return the schema of the envelope with one type of payload in it."""
    return {
        "allOf": [{"$ref": reference.format("GatewayMessage")}],
        "properties": {
            "type": {"const": kind.type},
            "payload": {"$ref": reference.format(kind.__name__)},
        },
        "required": ["type", "id"],
    }


def components(reference: str) -> JsonObject:
    """
    Return the schemas of the envelope, the payloads and their parts, by name.

    Args:
        reference: How they point at each other, with ``{name}`` in it.
    """
    roots: list[type[msgspec.Struct]] = [GatewayMessage, *PAYLOADS]
    _, found = msgspec.json.schema_components(map(without_raw, roots), ref_template=reference)
    structs = {kind.__name__: kind for kind in reachable(*roots)}
    for name, schema in found.items():
        _describe(schema, structs[name])
    envelope = found["GatewayMessage"]["properties"]
    envelope["type"]["pattern"] = f"^{TYPE_PATTERN}$"
    for name in ("id", "sessionId", "replyTo"):
        _string(envelope[name])["pattern"] = f"^{ID_PATTERN}$"
    envelope["payload"]["type"] = "object"
    return found


def _string(schema: JsonObject) -> JsonObject:
    """Return the part of a schema that says string, where null is allowed beside it."""
    choices: list[JsonObject] = schema.get("anyOf", [schema])
    return next(choice for choice in choices if choice["type"] == "string")


def _describe(schema: JsonObject, kind: type[msgspec.Struct]) -> None:
    schema["description"] = summary(kind)
    docs = attribute_docs(kind)
    for field in msgspec.structs.fields(kind):
        described = schema["properties"][field.encode_name]
        if field.name in docs:
            described["description"] = docs[field.name]
        if isinstance(field.default, msgspec.Raw):
            del described["default"]


def http_api() -> JsonObject:
    """Return the OpenAPI document of the HTTP API."""
    gateway = WebSocketGateway(WebSocketTransportConfig(auth=AuthConfig(mode="none")))
    return openapi(gateway.api.table)


def asyncapi() -> JsonObject:
    """Return the AsyncAPI 3.0 document of the gateway."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Trunkline",
            "version": str(PROTOCOL_VERSION),
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": _server()},
        "channels": {"gateway": _channel()},
        "operations": {
            "receive": _operation("receive", "What clients send.", CLIENT_PAYLOADS),
            "send": _operation("send", "What the gateway sends.", GATEWAY_PAYLOADS),
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": components("#/components/schemas/{name}"),
            "messages": {kind.__name__: _asyncapi_message(kind) for kind in PAYLOADS},
        },
    }


def _server() -> JsonObject:
    return {
        "host": f"127.0.0.1:{DEFAULT_WS_CONFIG.port}",
        "protocol": "ws",
        "description": f"A gateway with its defaults; subprotocol `{SUBPROTOCOL}`.",
        "security": [{"$ref": "#/components/securitySchemes/bearer"}],
    }


def _channel() -> JsonObject:
    names = [kind.__name__ for kind in PAYLOADS]
    return {
        "address": DEFAULT_WS_CONFIG.path,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"ws": {"method": "GET"}},
    }


def _operation(action: str, description: str, payloads: dict[str, type[Payload]]) -> JsonObject:
    names = [payloads[type].__name__ for type in sorted(payloads)]
    return {
        "action": action,
        "channel": {"$ref": "#/channels/gateway"},
        "summary": description,
        "messages": [{"$ref": f"#/channels/gateway/messages/{name}"} for name in names],
    }


def _asyncapi_message(kind: type[Payload]) -> JsonObject:
    return {
        "name": kind.type,
        "title": kind.__name__,
        "summary": markdown(kind.__doc__ or ""),
        "payload": _message(kind, "#/components/schemas/{}"),
    }
