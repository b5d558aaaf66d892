"""The tables and diagrams of the documentation, made from the code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docs_source as source
import msgspec
import typer
from typer.models import ArgumentInfo

from trunkline.cli import app
from trunkline.clients import TRANSITIONS
from trunkline.config import AuthConfig, GatewayConfig, WebSocketTransportConfig
from trunkline.errors import RECONNECT, RETRYABLE, CloseCode, ErrorCode
from trunkline.events import EVENTS
from trunkline.messages import GatewayMessage, Sender
from trunkline.payloads import MESSAGE_TYPES, PAYLOADS, Payload
from trunkline.rights import RIGHTS, ROLES
from trunkline.server import GatewayServer
from trunkline.settings import CLIENT_VARIABLES, Setting, settings_of, settings_table

SENDERS = {
    "client": "client → gateway",
    "gateway": "gateway → client",
    "both": "client → gateway → client",
}


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    heads = tuple(heads)
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def fields(kind: type[msgspec.Struct]) -> str:
    """Return the table of a struct's fields."""
    rows = [(f"`{f.name}`", f.type, f.default, f.doc) for f in source.fields(kind)]
    return table(("field", "type", "default", "meaning"), rows) if rows else "No fields."


def envelope() -> str:
    """Return the envelope's fields, and those of ``from``."""
    return (
        f"{fields(GatewayMessage)}\n\n#### Sender\n\n{source.summary(Sender)}\n\n{fields(Sender)}"
    )


# Messages


def type_index() -> str:
    """Return the table of all message types."""
    rows = [
        (f"[`{type}`](#{type})", " · ".join(_directions(type)), _log(type), _roles(type))
        for type in sorted(MESSAGE_TYPES)
    ]
    return table(("type", "from → to", "in the log", "who may send it"), rows)


def _kinds(type: str) -> list[type[Payload]]:
    return [kind for kind in PAYLOADS if kind.type == type]


def _directions(type: str) -> list[str]:
    return [SENDERS[kind.sent_by] for kind in _kinds(type)]


def _log(type: str) -> str:
    return "yes" if any(kind.durable for kind in _kinds(type)) else ""


def _roles(type: str) -> str:
    right = RIGHTS.get(type)
    if right is None:
        return "the gateway only"
    if type not in handled_types():
        return "nobody yet: this release answers `UNKNOWN_TYPE`"
    return ", ".join(role for role in ROLES if right.condition(role))


@cache
def handled_types() -> frozenset[str]:
    """Return the types that a gateway handles without anybody's help."""
    config = GatewayConfig(auth=AuthConfig(mode="none"))
    return GatewayServer(config).handlers.types


def messages(area: str) -> str:
    """Return the reference of the messages of one module of `trunkline.payloads`."""
    kinds = [kind for kind in PAYLOADS if kind.__module__ == f"trunkline.payloads.{area}"]
    names = list(dict.fromkeys(kind.type for kind in kinds))
    return "\n\n".join(_message(name) for name in names)


def _message(type: str) -> str:
    log = "stored in the session's log" if _log(type) else "not stored"
    head = f"### `{type}`\n\nWho may send it: {_roles(type)} · {log}"
    return "\n\n".join([head, *map(_payload, _kinds(type))])


def _payload(kind: type[Payload]) -> str:
    return f"**{SENDERS[kind.sent_by]}.** {source.summary(kind)}\n\n{fields(kind)}"


def parts() -> str:
    """Return what stands inside payloads."""
    found = set(source.reachable(*PAYLOADS)) - {*PAYLOADS, Sender}
    ordered = sorted(found, key=lambda part: part.__name__)
    return "\n\n".join(f"#### {p.__name__}\n\n{source.summary(p)}\n\n{fields(p)}" for p in ordered)


# Refusals, endings, rights, events, the life of a client


def error_codes() -> str:
    """Return the table of error codes."""
    rows = [
        (f"`{code}`", doc, "yes" if code in RETRYABLE else "")
        for code, doc in source.members(ErrorCode)
    ]
    return table(("code", "meaning", "may succeed later unchanged"), rows)


def close_codes() -> str:
    """Return the table of close codes."""
    rows = [
        (int(code), doc, "yes" if code in RECONNECT else "no")
        for code, doc in source.members(CloseCode)
    ]
    return table(("code", "meaning", "reconnect by itself?"), rows)


def rights() -> str:
    """Return the table of rights."""
    roles = ("anonymous", *reversed(ROLES))
    rows = [
        (f"`{type}`", *(getattr(right, role) or "" for role in roles))
        for type, right in RIGHTS.items()
    ]
    return table(("type", *roles), rows)


def events() -> str:
    """Return the table of events."""
    rows = []
    for name, text in EVENTS.items():
        arguments, _, meaning = text.partition(") ")
        rows.append((f"`{name}`", f"`{arguments.removeprefix('(')}`".replace("``", ""), meaning))
    return table(("event", "arguments", "when"), rows)


def lifecycle() -> str:
    """Return the diagram of a connection's life."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for phase, moves in TRANSITIONS.items():
        for event, following in moves.items():
            arrows.setdefault((phase.name, following.name), []).append(event)
    lines = [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    first, last = next(iter(TRANSITIONS)).name, list(TRANSITIONS)[-1].name
    ends = [f"    [*] --> {first}", *lines, f"    {last} --> [*]"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *ends, "```"])


# Configuration and command line


def settings() -> str:
    """Return every setting, group by group."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings_table().values():
        groups.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    return "\n\n".join(_group(name, found) for name, found in groups.items())


def _group(name: str, found: list[Setting]) -> str:
    head = f"### `[{name}]`\n\n{_group_doc(name)}" if name else "### Outside any group"
    inner = [
        f"### `[[{s.path}]]`\n\n{source.summary(s.tables)}\n\n{_settings(settings_of(s.tables))}"
        for s in found
        if s.tables is not None
    ]
    return "\n\n".join([head, _settings(found), *inner])


def _settings(found: list[Setting]) -> str:
    rows = [
        (f"`{s.path}`", _setting_type(s), _setting_default(s), source.markdown(s.doc))
        for s in found
    ]
    return table(("setting", "type", "default", "meaning"), rows)


def _group_doc(path: str) -> str:
    kind: Any = WebSocketTransportConfig
    for name in path.split("."):
        kind = next(f.type for f in msgspec.structs.fields(kind) if f.name == name)
    return source.summary(kind)


def _setting_type(setting: Setting) -> str:
    if setting.tables is not None:
        return "array of tables, see below"
    return source.in_words(msgspec.inspect.type_info(setting.type))


def _setting_default(setting: Setting) -> str:
    if setting.default is msgspec.NODEFAULT:
        return "required"
    if setting.default is None:
        return "none"
    return f"`{msgspec.json.encode(setting.default).decode()}`"


def variables() -> str:
    """Return the environment variables that are no settings."""
    rows = [(f"`{name}`", source.markdown(doc)) for name, doc in CLIENT_VARIABLES.items()]
    return table(("variable", "meaning"), rows)


def commands() -> str:
    """Return every command with its arguments and options."""
    return "\n\n".join(_command(name, function) for name, function in walk(app, "trunkline"))


def walk(group: typer.Typer, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every command of the command line: its full name and its function."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name or command.callback.__name__}", command.callback
    for below in group.registered_groups:
        assert below.typer_instance is not None
        callback = below.typer_instance.registered_callback
        if callback is not None and callback.callback is not None:
            yield f"{name} {below.name}", callback.callback
        yield from walk(below.typer_instance, f"{name} {below.name}")


def _command(name: str, function: Callable[..., Any]) -> str:
    hints = get_type_hints(function, include_extras=True)
    rows = [
        _parameter(p, *get_args(hints[p.name]))
        for p in signature(function).parameters.values()
        if hints[p.name] is not typer.Context
    ]
    head = f"### `{name}`\n\n{source.markdown(function.__doc__ or '')}"
    if not rows:
        return head
    return f"{head}\n\n{table(('argument or option', 'value', 'default', 'meaning'), rows)}"


def _parameter(parameter: Parameter, kind: Any, info: Any) -> tuple[str, str, str, str]:
    if isinstance(info, ArgumentInfo):
        spelling = info.metavar or parameter.name.upper()
    else:
        # Typer keeps the first declaration of an annotated option as its default.
        named = info.default if isinstance(info.default, str) else None
        spelling = named or f"--{parameter.name.replace('_', '-')}"
    value = "flag" if kind is bool else _value_words(kind)
    return f"`{spelling}`", value, _parameter_default(parameter, info), info.help or ""


def _value_words(kind: Any) -> str:
    choices = [c for c in get_args(kind) if c is not type(None)]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in choices)
    if get_origin(kind) is list:
        return _value_words(choices[0])
    if choices:
        return _value_words(choices[0])
    return {int: "number", Path: "path", str: "text"}[kind]


def _parameter_default(parameter: Parameter, info: Any) -> str:
    if parameter.default is Parameter.empty:
        return "required"
    shown = f"`{parameter.default}`" if parameter.default not in (None, False) else ""
    variable = f"`${info.envvar}`" if info.envvar else ""
    return " or ".join(text for text in (variable, shown) if text)


BLOCKS: dict[str, Callable[[], str]] = {
    "envelope": envelope,
    "types": type_index,
    "messages-connection": lambda: messages("connection"),
    "messages-sessions": lambda: messages("sessions"),
    "messages-runs": lambda: messages("runs"),
    "messages-agents": lambda: messages("agents"),
    "parts": parts,
    "error-codes": error_codes,
    "close-codes": close_codes,
    "rights": rights,
    "events": events,
    "lifecycle": lifecycle,
    "settings": settings,
    "variables": variables,
    "commands": commands,
}
"""What may stand between ``<!-- generated: NAME -->`` and ``<!-- end -->``."""
