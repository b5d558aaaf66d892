"""
What a stored credential or user may be given, and whether somebody may give it.

Nobody hands on more than they have: see `may_grant`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec
from msgspec.structs import asdict

from trunkline.messages import Role
from trunkline.patterns import ANY, valid_pattern, within
from trunkline.rights import ALL_SCOPES, ROLES

if TYPE_CHECKING:
    from trunkline.clients import Identity

_is_name = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff](?:[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*)"
)


T = TypeVar("T", bound="Grant")


class Row(Protocol):
    """A row of a table."""

    def __getitem__(self, name: str, /) -> Any: ...


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Roles, scopes and bounds, as a record of the gateway's own gives them."""

    roles: frozenset[Role]
    scopes: frozenset[str] = frozenset()
    session_patterns: tuple[str, ...] = ANY
    agent_patterns: tuple[str, ...] = ANY


def make_grant(
    roles: Iterable[str],
    scopes: Iterable[str] = (),
    session_patterns: Iterable[str] = ANY,
    agent_patterns: Iterable[str] = ANY,
) -> Grant:
    """
    Check what is to be granted.

    Raises:
        ValueError: A role, scope or pattern is unknown or malformed, or there is no role.
    """
    grant = Grant(
        roles=cast("frozenset[Role]", frozenset(roles)),
        scopes=frozenset(scopes),
        session_patterns=tuple(session_patterns),
        agent_patterns=tuple(agent_patterns),
    )
    if not grant.roles:
        raise ValueError("at least one role is needed")
    _known("role", grant.roles, ROLES)
    _known("scope", grant.scopes, sorted(ALL_SCOPES))
    for pattern in (*grant.session_patterns, *grant.agent_patterns):
        if not valid_pattern(pattern):
            raise ValueError(f"{pattern!r} cannot be a pattern: it is an id with * in it")
    return grant


def to_row(record: Grant) -> dict[str, Any]:
    """Return a record as columns of a table; its sets and lists are JSON."""
    return {
        name: msgspec.json.encode(value, order="deterministic").decode()
        if isinstance(value, (frozenset, tuple))
        else value
        for name, value in asdict(record).items()
    }


def from_row(row: Row, type: type[T]) -> T:
    """Return the record that `to_row` made a row of; other columns are left out."""
    lists = Grant.__struct_fields__
    fields = {
        name: msgspec.json.decode(row[name]) if name in lists else row[name]
        for name in type.__struct_fields__
    }
    return msgspec.convert(fields, type)


def _known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in sorted(given):
        if name not in known:
            raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(known)}")


def check_name(kind: str, name: str) -> str:
    """
    Return a name of a user or credential.

    Raises:
        ValueError: It is empty, longer than 128 characters, or has control characters.
    """
    if len(name) > 128 or _is_name.fullmatch(name) is None or name != name.strip():
        raise ValueError(f"a {kind} has 1 to 128 characters, and no control characters")
    return name


def may_grant(
    identity: Identity,
    roles: Iterable[str],
    scopes: Iterable[str] = (),
    session_patterns: Iterable[str] = ANY,
    agent_patterns: Iterable[str] = ANY,
) -> bool:
    """
    Whether somebody may make, approve or rotate a credential with these grants.

    It takes the scope ``credential:admin`` and the role ``control``, and everything
    that is granted must be the grantor's own.
    """
    held = ALL_SCOPES if "admin" in identity.scopes else identity.scopes
    return (
        "control" in identity.roles
        and "credential:admin" in held
        and identity.roles.issuperset(roles)
        and held.issuperset(scopes)
        and within(session_patterns, identity.session_patterns)
        and within(agent_patterns, identity.agent_patterns)
    )
