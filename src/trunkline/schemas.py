"""
The JSON Schemas of tools: compiled once, so that arguments are checked cheaply.

A schema comes from an agent and is not trusted: it is small, refers to nothing
outside itself, and its patterns give up rather than try without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec
from msgspec import Raw

from trunkline.errors import ErrorCode, GatewayError
from trunkline.messages import encode
from trunkline.payloads import AgentCapabilities, ToolSpec

MAX_SCHEMA = 64 * 1024
"""Bytes of one tool's schema as JSON."""

MAX_SENTENCE = 300
"""Characters of a complaint, which may quote the arguments."""

BACKTRACKS = 10_000
"""Steps after which a pattern with look-around counts as not matched."""

_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)

Validators = Mapping[str, jsonschema_rs.Validator | None]
"""The tools of an agent, by name; None where there is nothing to check against."""


def compile_tools(capabilities: AgentCapabilities) -> Validators:
    """
    Compile the schemas of an agent's tools.

    Raises:
        GatewayError: ``INVALID_PAYLOAD``: one is too large, or is no schema.
    """
    found: dict[str, jsonschema_rs.Validator | None] = {}
    for number, tool in enumerate(capabilities.tools):
        if not isinstance(tool, ToolSpec):
            found[tool] = None
        elif tool.input_schema is None:
            found[tool.name] = None
        else:
            path = f"$.capabilities.tools[{number}].inputSchema"
            found[tool.name] = _compile(tool.input_schema, path)
    return found


def _compile(schema: dict[str, Any], path: str) -> jsonschema_rs.Validator:
    source = encode(schema)
    if len(source) > MAX_SCHEMA:
        raise GatewayError(
            ErrorCode.INVALID_PAYLOAD,
            "the schema is too large",
            details={"path": path, "limit": MAX_SCHEMA},
        )
    try:
        return _validator(source)
    except ValueError as error:
        sentence = f"this is no JSON Schema: {str(error).splitlines()[0][:MAX_SENTENCE]}"
        raise GatewayError(ErrorCode.INVALID_PAYLOAD, sentence, details={"path": path}) from None


@lru_cache(maxsize=1_000)
def _validator(source: bytes) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        msgspec.json.decode(source), retriever=_refuse, pattern_options=_PATTERNS
    )


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is outside the schema")


def check_arguments(validator: jsonschema_rs.Validator, params: Raw) -> None:
    """
    Check the arguments of a tool; absent ones count as ``{}``.

    Raises:
        GatewayError: ``INVALID_PAYLOAD`` with the path, such as ``$.params.x``.
    """
    raw = bytes(params)
    arguments = {} if raw == b"null" else msgspec.json.decode(raw)
    if validator.is_valid(arguments):
        return
    error = next(iter(validator.iter_errors(arguments)))
    raise GatewayError(
        ErrorCode.INVALID_PAYLOAD,
        error.message[:MAX_SENTENCE],
        details={"path": _path(error.instance_path), "delivered": False},
    )


def _path(parts: list[str | int]) -> str:
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return "$.params" + "".join(steps)
