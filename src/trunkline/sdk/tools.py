"""
Python functions as tools: schema, checked arguments, a call. No network here.

The parameters' type hints become a JSON Schema, and the arguments of a call
are checked against the same types, so what the function gets is what it says.
A parameter called ``ctx`` is not an argument: it gets the call's context.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from trunkline.errors import ErrorCode
from trunkline.ids import valid_id
from trunkline.payloads import ToolSpec
from trunkline.sdk.errors import ToolError

CONTEXT = "ctx"
"""The parameter that gets the call's context."""

_END = object()


class AnyTool(ABC):
    """
    What an agent offers under a name; a subclass says how it is carried out.

    Args:
        spec: How it is announced.
        streams: Whether `stream` yields more than one piece.
    """

    def __init__(self, spec: ToolSpec, *, streams: bool = False) -> None:
        self.name = spec.name
        self.spec = spec
        self.streams = streams

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def check(self, params: msgspec.Raw | bytes) -> dict[str, Any]:
        """
        Read the arguments of a call; absent ones are none.

        Raises:
            ToolError: They are not an object.
        """
        try:
            return msgspec.json.decode(_given(params), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ToolError(str(error), ErrorCode.INVALID_PAYLOAD) from None

    @abstractmethod
    async def call(self, arguments: dict[str, Any], context: Any = None) -> Any:
        """Carry out a call and return its result."""

    async def stream(self, arguments: dict[str, Any], context: Any = None) -> AsyncIterator[Any]:
        """Carry out a call and yield its result piece by piece."""
        yield await self.call(arguments, context)


class Tool(AnyTool):
    """
    One function that an agent offers.

    A plain function runs in a thread, a coroutine function on the agent's
    loop; a generator, plain or asynchronous, streams what it yields.

    Args:
        function: The function; every parameter can be passed by name.
        name: What it is called on the wire; None: the function's name.
        description: What it does; None: the function's docstring.
        input_schema: JSON Schema of the arguments; given, it stands in place
            of the one from the type hints, and the arguments are passed on
            unchecked. None: from the type hints.

    Raises:
        TypeError: A parameter cannot be passed by name, or has a type without a schema.
        ValueError: The name is not usable on the wire.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        input_schema: dict[str, Any] | None = None,
    ) -> None:
        name = name or str(getattr(function, "__name__", ""))
        if not valid_id(name):
            raise ValueError(f"not a tool's name: {name!r}")
        self._function = function
        parameters = inspect.signature(function).parameters
        self._wants_context = CONTEXT in parameters
        self._arguments = None if input_schema else _arguments(name, function)
        schema = input_schema or _schema(self._arguments)
        text = description if description is not None else inspect.getdoc(function)
        super().__init__(
            ToolSpec(name=name, description=text, input_schema=schema),
            streams=inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function),
        )

    def check(self, params: msgspec.Raw | bytes) -> dict[str, Any]:
        """
        Turn JSON into the function's arguments.

        Raises:
            ToolError: They do not fit; the text names the place, like ``$.a``.
        """
        if self._arguments is None:
            return super().check(params)
        try:
            values = msgspec.json.decode(_given(params), type=self._arguments)
        except msgspec.MsgspecError as error:
            raise ToolError(str(error), ErrorCode.INVALID_PAYLOAD) from None
        return {f: getattr(values, f) for f in values.__struct_fields__}

    async def call(self, arguments: dict[str, Any], context: Any = None) -> Any:
        """Run the function; what a generator yields is returned as a list."""
        if self.streams:
            return [piece async for piece in self.stream(arguments, context)]
        if inspect.iscoroutinefunction(self._function):
            return await self._function(**self._with(arguments, context))
        return await asyncio.to_thread(self._function, **self._with(arguments, context))

    async def stream(self, arguments: dict[str, Any], context: Any = None) -> AsyncIterator[Any]:
        """Run a generator and yield what it yields; other functions yield their result."""
        if inspect.isasyncgenfunction(self._function):
            async for piece in self._function(**self._with(arguments, context)):
                yield piece
        elif self.streams:
            pieces: Iterator[Any] = self._function(**self._with(arguments, context))
            while (piece := await asyncio.to_thread(next, pieces, _END)) is not _END:
                yield piece
        else:
            yield await self.call(arguments, context)

    def _with(self, arguments: dict[str, Any], context: object) -> dict[str, Any]:
        return {**arguments, CONTEXT: context} if self._wants_context else arguments


def _given(params: msgspec.Raw | bytes) -> msgspec.Raw | bytes:
    return b"{}" if bytes(params) == b"null" else params


def _arguments(name: str, function: Callable[..., Any]) -> type[msgspec.Struct]:
    """Make a struct of a function's parameters."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == CONTEXT:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: {parameter} cannot be passed by name")
        hint = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint, _default(parameter.default)))
    return msgspec.defstruct(
        name.title().replace("-", "_").replace(".", "_").replace(":", "_"),
        fields,
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _default(value: Any) -> Any:
    if isinstance(value, (list, dict, set, bytearray)):
        return msgspec.field(default_factory=lambda: copy.deepcopy(value))
    return msgspec.field(default=value)


def _schema(arguments: type[msgspec.Struct] | None) -> dict[str, Any]:
    """Return the JSON Schema of a struct, without a reference at its top."""
    (top,), parts = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = parts.pop(top["$ref"].removeprefix("#/$defs/"))
    del schema["title"]
    if parts:
        schema["$defs"] = parts
    return schema
