"""``/openapi.json``: the API's description, made from the same table that serves it."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import msgspec
from msgspec import Raw

from trunkline.http.table import BASE, IDEMPOTENCY_KEY, LAST_EVENT_ID, Endpoint, Table
from trunkline.ids import ID_PATTERN
from trunkline.payloads import MESSAGE_TYPES
from trunkline.rights import HTTP_RIGHTS, RIGHTS, ROLES

JsonObject = dict[str, Any]

DESCRIPTION = (
    "The HTTP side of a Trunkline gateway. A call is a client like any other: the same table of "
    "rights, the same rates and the same refusals as on the WebSocket, whose types these are."
)

_HEADERS = {
    IDEMPOTENCY_KEY: "An id of one's own: a repetition with the same key and body has no second "
    "effect and gets the same answer; with another body it is 409.",
    LAST_EVENT_ID: "`epoch:seq` of the last event that was seen; wins over `since`.",
}

_PARAMETERS = {
    "since": "`epoch:seq` of the last message that is known; absent: only what is new.",
    "after": "Go on after this one.",
    "before": "The page that ends before this `seq`.",
}

_ERROR: JsonObject = {
    "type": "object",
    "description": "Why a request was refused.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "status": {"type": "integer", "description": "The HTTP status."},
                "code": {
                    "type": "string",
                    "description": "An error code of the protocol; absent where the listener "
                    "refused the request before it was looked at.",
                },
                "message": {"type": "string", "description": "A sentence for people."},
                "details": {"type": "object", "description": "Facts for programs."},
                "retryAfterMs": {"type": "integer"},
            },
            "required": ["status", "message"],
        }
    },
    "required": ["error"],
}


def openapi(table: Table) -> JsonObject:
    """Return the OpenAPI 3.1 document of a table of endpoints."""
    kinds = frozenset(k for e in table.endpoints for k in (e.body, e.answer) if k is not None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trunkline",
            "version": "1",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"bearer": []}],
        "paths": _paths(table),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, **_components(kinds)},
            "responses": {
                "Error": {
                    "description": "The request was refused.",
                    "content": _json({"$ref": "#/components/schemas/Error"}),
                }
            },
        },
    }


@cache  # slow, and the same for every gateway of a process
def _components(kinds: frozenset[type[msgspec.Struct]]) -> dict[str, JsonObject]:
    return schemas(sorted(kinds, key=lambda k: k.__name__), "#/components/schemas/{name}")


def _paths(table: Table) -> JsonObject:
    paths: JsonObject = {}
    for endpoint in table.endpoints:
        operation = _operation(endpoint)
        paths.setdefault(BASE + endpoint.path, {})[endpoint.method.lower()] = operation
    return paths


def _operation(endpoint: Endpoint) -> JsonObject:
    operation: JsonObject = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "description": rights_of(endpoint.right),
        "responses": {
            str(endpoint.status): _success(endpoint),
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if parameters := _parameters(endpoint):
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"content": _json(schema)}
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words = endpoint.path.replace("{id}", "one").strip("/").split("/")
    return "_".join([endpoint.method.lower(), *words])


def rights_of(right: str) -> str:
    """Say in words who may ask, from the table of rights."""
    row = HTTP_RIGHTS.get(right) or RIGHTS[right]
    roles = [(role, row.condition(role)) for role in ROLES]
    words = [
        f"`{role}`" if condition in ("always", "seen") else f"`{role}` ({condition})"
        for role, condition in roles
        if condition is not None
    ]
    kind = "the message" if right in MESSAGE_TYPES else "the row"
    return f"For {', '.join(words)}; the right of {kind} `{right}`."


def _success(endpoint: Endpoint) -> JsonObject:
    if endpoint.stream:
        return {
            "description": "Events: `event` is the frame's type, `data` the whole frame, `id` the "
            "place `epoch:seq` of a durable one. `reset` comes first where the log has another "
            "epoch or was trimmed, `close` last where the gateway ends it.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    if endpoint.answer is None:
        return {"description": "Done."}
    schema = {"$ref": f"#/components/schemas/{endpoint.answer.__name__}"}
    content = _json(schema)
    if endpoint.right == "route_request":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": _summary(endpoint.answer), "content": content}


def _parameters(endpoint: Endpoint) -> list[JsonObject]:
    found: list[JsonObject] = []
    if "{id}" in endpoint.path:
        schema = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
        found.append({"name": "id", "in": "path", "required": True, "schema": schema})
    for name, kind in endpoint.query.items():
        parameter = {"name": name, "in": "query", "schema": _plain_schema(kind)}
        if name in _PARAMETERS:
            parameter["description"] = _PARAMETERS[name]
        found.append(parameter)
    for name in endpoint.headers:
        schema = {"type": "string"}
        found.append(
            {"name": name, "in": "header", "description": _HEADERS[name], "schema": schema}
        )
    return found


def _plain_schema(kind: Any) -> JsonObject:
    """Return the schema of a parameter: absent is how it is left out, not null."""
    schema = msgspec.json.schema(kind)
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if len(choices) == 1 else schema


def _json(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}


def schemas(kinds: list[type[msgspec.Struct]], reference: str) -> dict[str, JsonObject]:
    """
    Return the schemas of structs and of what stands in them, by name.

    Args:
        reference: How they point at each other, with ``{name}`` in it.
    """
    _, found = msgspec.json.schema_components(map(without_raw, kinds), ref_template=reference)
    for kind in kinds:
        schema = found[kind.__name__]
        schema["description"] = _summary(kind)
        for field in msgspec.structs.fields(kind):
            if isinstance(field.default, Raw):
                del schema["properties"][field.encode_name]["default"]
    return found


def _summary(kind: type[msgspec.Struct]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def without_raw(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a struct like `kind`; msgspec makes no schema of a default that is `Raw`."""
    fields = msgspec.structs.fields(kind)
    if not any(isinstance(field.default, Raw) for field in fields):
        return kind
    described: list[tuple[str, Any, Any]] = []
    for field in fields:
        options: JsonObject = {"name": field.encode_name}
        if isinstance(field.default, Raw):
            options["default"] = None
        elif not field.required:
            options |= {"default": field.default, "default_factory": field.default_factory}
        described.append((field.name, field.type, msgspec.field(**options)))
    return msgspec.defstruct(kind.__name__, described, kw_only=True)
