"""What the source says of itself: attribute docstrings, and types in words."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

from trunkline.payloads import Id

ID_PATTERN = types.type_info(Id).pattern  # type: ignore[attr-defined]

_NAME = re.compile(r"(?<!`)`(\w+)`(?!`)")


class Field(NamedTuple):
    """One field of a struct, ready for a table."""

    name: str
    """As the wire spells it."""
    type: str
    """In words, with its range."""
    default: str
    """What stands for an absent field; ``required`` where it must be there."""
    doc: str


@cache
def _tree(file: str) -> ast.Module:
    with open(file, encoding="utf-8") as source:
        return ast.parse(source.read())


@cache
def attribute_docs(kind: type) -> dict[str, str]:
    """Return the docstrings that follow the attributes of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("trunkline"):
            found.update(_own_docs(base))
    return found


def _own_docs(kind: type) -> Iterator[tuple[str, str]]:
    names = wire_names(kind)
    tree = _tree(inspect.getsourcefile(kind) or "")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
            for attribute, text in _documented(node.body):
                yield attribute, markdown(text, names)


def wire_names(kind: type) -> dict[str, str]:
    """Return how the wire spells the fields of a class, if it is a struct."""
    if not issubclass(kind, msgspec.Struct):
        return {}
    return {field.name: field.encode_name for field in msgspec.structs.fields(kind)}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, after in pairwise(body):
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                name = _assigned(statement)
                if name:
                    yield name, text


def _assigned(statement: ast.stmt) -> str | None:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def markdown(text: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """
    Bring a docstring into one line of Markdown.

    Args:
        names: How to spell the Python names that stand in single backticks.
    """
    spelled = _NAME.sub(lambda match: f"`{names.get(match[1], match[1])}`", text)
    return " ".join(spelled.replace("``", "`").split())


def summary(kind: type) -> str:
    """Return a class's docstring as one line of Markdown."""
    return markdown(kind.__doc__ or "", wire_names(kind))


def members(kind: type[Enum]) -> Iterator[tuple[Any, str]]:
    """Yield the members of an enumeration with their docstrings."""
    docs = attribute_docs(kind)
    for member in kind:
        yield member, docs.get(member.name, "")


def fields(kind: type[msgspec.Struct]) -> list[Field]:
    """Return the fields of a struct in their order, required ones first."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    docs = attribute_docs(kind)
    found = [
        Field(field.encode_name, in_words(field.type), _default(field), docs.get(field.name, ""))
        for field in info.fields
    ]
    return sorted(found, key=lambda field: field.default != "required")


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    value = None if field.default is msgspec.NODEFAULT else field.default
    if value is None or value is msgspec.UNSET or isinstance(value, msgspec.Raw):
        return ""
    return f"`{msgspec.json.encode(value).decode()}`"


def reachable(*roots: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Return structs and all that stand inside them, however deep."""
    found: dict[type[msgspec.Struct], None] = {}
    waiting = list(roots)
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found[kind] = None
            info = types.type_info(kind)
            assert isinstance(info, types.StructType)
            for field in info.fields:
                waiting += _structs(field.type)
    return list(found)


def _structs(kind: types.Type) -> Iterator[type[msgspec.Struct]]:
    match kind:
        case types.StructType(cls=cls):
            yield cls
        case types.UnionType(types=choices):
            for choice in choices:
                yield from _structs(choice)
        case types.ListType(item_type=item):
            yield from _structs(item)


def in_words(kind: types.Type) -> str:
    """Describe a type as a reader of the reference needs it."""
    match kind:
        case types.Metadata(type=inner):
            return in_words(inner)
        case types.UnionType(types=choices):
            return " or ".join(in_words(c) for c in choices if not isinstance(c, types.NoneType))
        case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
            return f"list of {in_words(item)}"
        case types.LiteralType(values=values):
            return "one of " + ", ".join(f"`{value}`" for value in sorted(values, key=str))
        case types.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case types.DictType(value_type=types.AnyType()):
            return "object"
        case types.DictType(value_type=value):
            return f"object of {in_words(value)}"
    return _scalar(kind)


def _scalar(kind: types.Type) -> str:
    match kind:
        case types.StrType(pattern=pattern) if pattern == ID_PATTERN:
            return "id"
        case types.StrType(max_length=int(limit)):
            return f"string, at most {limit:,} characters"
        case types.StrType():
            return "string"
        case types.BoolType():
            return "boolean"
        case types.IntType():
            return "integer" + _range(kind)
        case types.FloatType():
            return "number" + _range(kind)
        case types.AnyType() | types.RawType():
            return "any JSON"
    raise TypeError(f"no words for {kind}")


def _range(kind: types.IntType | types.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f", {kind.ge:,} to {kind.le:,}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for name, word in words.items():
        bound = getattr(kind, name)
        if bound is not None:
            return f", {word} {bound:,}"
    return ""
