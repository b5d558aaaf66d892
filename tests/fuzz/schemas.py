"""Strategies made from the protocol's own schemas, and ways to spoil what they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from trunkline.payloads import CLIENT_PAYLOADS

Json = Any

_SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "protocol.schema.json"
_DEFINITIONS = json.loads(_SCHEMA.read_text())["$defs"]

KNOWN_IDS = ("room", "private", "bot", "1.bot", "c_1", "m0", "absent")
"""Ids of things that exist in the fuzzed gateway, and one that does not."""

known = st.sampled_from(KNOWN_IDS)
ids = known | known | known | st.text("azAZ09._:-", min_size=1, max_size=130)

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | ids
)

values: st.SearchStrategy[Json] = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Any JSON value."""


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    """Make a strategy for what a schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: fitting(_DEFINITIONS[name]))
    if "anyOf" in schema:
        return st.one_of([fitting(choice) for choice in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    made: st.SearchStrategy[Json] = _BY_TYPE.get(schema.get("type", ""), lambda _: values)(schema)
    return made


def _string(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    if "pattern" in schema:
        return ids
    return st.text(max_size=min(schema.get("maxLength", 40), 40)) | ids


def _integer(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    return st.integers(schema.get("minimum"), schema.get("maximum"))


def _array(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    return st.lists(fitting(schema.get("items", {})), max_size=3)


def _object(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    fields = schema.get("properties", {})
    if not fields:
        return st.dictionaries(
            st.text(max_size=8), fitting(schema.get("additionalProperties") or {}), max_size=3
        )
    required = schema.get("required", ())
    return st.fixed_dictionaries(
        {name: fitting(fields[name]) for name in required},
        optional={name: fitting(field) for name, field in fields.items() if name not in required},
    )


_BY_TYPE = {
    "string": _string,
    "integer": _integer,
    "number": lambda _: st.floats(allow_nan=False, allow_infinity=False),
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
    "array": _array,
    "object": _object,
}

PAYLOADS = {type: fitting(_DEFINITIONS[kind.__name__]) for type, kind in CLIENT_PAYLOADS.items()}
"""A strategy for the payload of each type that a client may send."""


@st.composite
def envelopes(draw: st.DrawFn) -> dict[str, Json]:
    """A message of some type, with a payload that fits, and now and then with forged fields."""
    type = draw(st.sampled_from(sorted(PAYLOADS)))
    message: dict[str, Json] = {"type": type, "id": "?", "payload": draw(PAYLOADS[type])}
    if draw(st.booleans()) and isinstance(message["payload"], dict):
        message["sessionId"] = "room"
        message["payload"].pop("sessionId", None)
        message["payload"].pop("sessionKey", None)
    more = {
        "sessionId": ids, "timestamp": st.integers(), "replyTo": ids, "source": ids,
        "target": ids, "from": values, "seq": st.integers(), "addressed": values,
        "trace": st.text(max_size=60), "epoch": ids,
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(sorted(more)), max_size=3, unique=True)):
        message[name] = draw(more[name])
    return message


@st.composite
def spoiled(draw: st.DrawFn, tree: Json) -> Json:
    """Replace, remove or repeat one place of a JSON value."""
    if isinstance(tree, dict) and tree:
        key = draw(st.sampled_from(sorted(tree)))
        way = draw(st.sampled_from(["deeper", "replace", "remove", "rename"]))
        rest = {name: value for name, value in tree.items() if name != key}
        if way == "remove":
            return rest
        if way == "rename":
            return rest | {draw(st.text(max_size=8)): tree[key]}
        return tree | {key: draw(values if way == "replace" else spoiled(tree[key]))}
    if isinstance(tree, list) and tree:
        place = draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], draw(spoiled(tree[place])), *tree[place:]]
    return draw(values)


SNIPPETS = (
    "NaN", "Infinity", "-0", "1e400", "9" * 400, r'"\ud800"', r'"\u0000"', r'"\x"', '"\x00"',
    "[" * 40, "{}" * 3, "'", ",,", "//", "\ufeff", "\u2028", "\u202e", "\U0001f600", "true", "01",
    '"type":"ping",', '"id":"x",', "\t", "\n",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """Cut a text, or put something into it."""
    place = draw(st.integers(0, len(text)))
    if draw(st.booleans()):
        return text[:place]
    piece = draw(st.sampled_from(SNIPPETS) | st.text(max_size=4))
    return text[:place] + piece + text[place + draw(st.integers(0, 3)) :]


@st.composite
def frames(draw: st.DrawFn) -> dict[str, Json] | str:
    """A message that fits, one that does not quite, or a text that may be no JSON at all."""
    message = draw(envelopes())
    way = draw(st.sampled_from([*["fits"] * 4, *["payload"] * 3, "spoiled", "damaged", "noise"]))
    if way == "fits":
        return message
    if way == "payload":
        return message | {"payload": draw(spoiled(message["payload"]))}
    if way == "spoiled":
        return draw(spoiled(message))  # type: ignore[no-any-return]
    if way == "damaged":
        return draw(damaged(json.dumps(message, ensure_ascii=draw(st.booleans()))))
    return draw(st.text(max_size=60))
