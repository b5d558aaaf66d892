"""
Where the configuration comes from: flags, environment, a TOML file, defaults.

Flags win over the environment (``TRUNKLINE_`` and the path, ``__`` between its
levels: ``TRUNKLINE_LIMITS__MAX_BUFFERED``), which wins over the TOML file, which
wins over the defaults. A setting may be an array of tables. Everything here follows from the groups in
`trunkline.config`: names, types, ranges and documentation exist once.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import os
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import fields, replace

from trunkline import config as groups
from trunkline.config import (
    AuthConfig,
    Group,
    Secret,
    WebSocketTransportConfig,
    check_config,
    convert_config,
)
from trunkline.errors import ConfigError

ENVIRONMENT_PREFIX = "TRUNKLINE_"
"""What the names of all our environment variables begin with."""

CLIENT_VARIABLES = {
    "TRUNKLINE_URL": "Where the client commands find the gateway.",
    "TRUNKLINE_TOKEN": "What the client commands sign in with.",
    "TRUNKLINE_PASSWORD": "What the client commands sign in with where the gateway asks for a password.",
    "TRUNKLINE_USER": "Whose password that is; without it the owner's.",
    "TRUNKLINE_CONFIG": "The TOML file that `serve` and `demo` read.",
    "TRUNKLINE_FAILPOINT": "For tests: where `serve` ends itself, see `trunkline.failpoints`.",
}
"""Variables that are no settings of the gateway, with their meaning."""

TOKEN_FILE = "token"
"""The file in the data folder that holds the token of the first run."""

_SECRETS = {"token": "token_file", "password": "password_file"}
_KEYS = {"secret": "secret_file", "public_key": "public_key_file"}

G = TypeVar("G", bound=Group)


class Setting(NamedTuple):
    """One setting of the gateway."""

    path: str
    """Its place, such as ``limits.max_buffered``."""
    type: Any
    """Its type, with the range of a number."""
    default: Any
    doc: str
    """What it means, with its unit."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.path.replace(".", "__").upper()

    @property
    def tables(self) -> type[Group] | None:
        """What each table of it holds, if it is an array of tables."""
        kind = get_args(self.type)[0] if get_origin(self.type) is tuple else None
        return kind if _is_group(kind) else None


@cache
def _docs(kind: type[Group]) -> dict[str, str]:
    # Attribute docstrings are not kept at run time, so they are read from the source.
    tree = ast.parse(inspect.getsource(groups))
    found: dict[str, str] = {}
    for name in reversed([base.__name__ for base in kind.__mro__]):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                found.update(_attribute_docs(node.body))
    return found


def _attribute_docs(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, doc in pairwise(body):
        match field, doc:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)


@cache
def settings_table() -> dict[str, Setting]:
    """Return every setting by its path: first those outside groups, then group by group."""
    return {setting.path: setting for setting in _walk(WebSocketTransportConfig, "")}


def _walk(kind: type[Group], prefix: str) -> Iterator[Setting]:
    yield from settings_of(kind, prefix)
    for field in fields(kind):
        if _is_group(field.type):
            yield from _walk(field.type, f"{prefix}{field.name}.")


def settings_of(kind: type[Group], prefix: str = "") -> list[Setting]:
    """Return the settings that stand in a group itself, their paths behind `prefix`."""
    docs = _docs(kind)
    return [
        Setting(prefix + field.name, field.type, field.default, docs.get(field.name, ""))
        for field in fields(kind)
        if not _is_group(field.type)
    ]


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Group)


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config_path: str | Path | None = None,
) -> WebSocketTransportConfig:
    """
    Put the configuration together, and refuse one that is wrong or unsafe.

    Args:
        flags: Values by path, such as ``{"auth.mode": "none"}``; None is "not given".
        environ: The environment; variables without our prefix are not looked at.
        config_path: A TOML file.

    Returns:
        The configuration, its secrets read from their files, its data folder set.

    Raises:
        ConfigError: The sentence names the key or variable, and what to do.
    """
    config = convert_config(_collect(flags, environ, config_path))
    config = replace(
        config,
        auth=_read_secrets(config.auth),
        data_dir=str(data_folder(environ, config.data_dir)),
    )
    _check_credential(config.auth)
    _check_files(config)
    check_config(config)
    return config


def _check_credential(auth: AuthConfig) -> None:
    # A missing token is made on the first run; a password is the owner's to choose.
    if auth.required and auth.mode == "password" and auth.password is None:
        raise ConfigError(
            'auth.mode is "password" and there is none: set auth.password_file or auth.password'
        )


def _collect(
    flags: Mapping[str, Any], environ: Mapping[str, str], config_path: str | Path | None
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if config_path is not None:
        _merge(data, read_toml(Path(config_path)))
    _merge(data, read_environment(environ))
    _merge(data, _nest({path: value for path, value in flags.items() if value is not None}))
    return data


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, Mapping) else value
        # A secret and the file that holds it are one setting in two spellings.
        for secret, file in _SECRETS.items():
            for given, other in ((secret, file), (file, secret)):
                if key == given and other not in above:
                    below.pop(other, None)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested


def read_toml(path: Path) -> dict[str, Any]:
    """
    Read a configuration file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or holds an unknown key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    _refuse_unknown(data, "", settings_table())
    return data


def _refuse_unknown(data: Mapping[str, Any], prefix: str, known: Mapping[str, Setting]) -> None:
    for key, value in data.items():
        path = prefix + key
        if path in known:
            continue
        if not any(name.startswith(f"{path}.") for name in known):
            raise ConfigError(f"unknown setting `$.{path}`{_hint(path, known)}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"`$.{path}` is a group of settings: write [{path}]")
        _refuse_unknown(value, f"{path}.", known)


def _hint(path: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """
    Read the settings that the environment holds; lists are separated by commas, arrays of
    tables are JSON.

    Raises:
        ConfigError: A variable with our prefix is unknown, or its value unreadable.
    """
    known = {setting.variable: setting for setting in settings_table().values()}
    found: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in CLIENT_VARIABLES:
            continue
        setting = known.get(name)
        if setting is None:
            raise ConfigError(
                f"unknown environment variable {name}{_hint(name, {**known, **CLIENT_VARIABLES})}"
            )
        if setting.tables is not None:
            found[setting.path] = _tables_from_text(name, environ[name])
        else:
            found[setting.path] = _from_text(name, environ[name], setting.type)
    return _nest(found)


def _tables_from_text(name: str, text: str) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(text or "[]", type=list[dict[str, Any]])
    except msgspec.DecodeError:
        raise ConfigError(f"{name} must be a JSON list of objects") from None


def _from_text(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is str or str in get_args(kind):
        return text
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from None


def data_folder(environ: Mapping[str, str], configured: str | None = None) -> Path:
    """
    Return the folder of the gateway's files, which may not exist yet.

    Args:
        environ: Where ``TRUNKLINE_DATA_DIR``, ``XDG_STATE_HOME`` and ``HOME`` are read.
        configured: The folder that the configuration names, if it names one.
    """
    named = configured or environ.get("TRUNKLINE_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute()
    state = Path(environ.get("XDG_STATE_HOME") or "")
    if not state.is_absolute():  # the XDG specification: a relative path is to be ignored
        state = Path(environ.get("HOME") or Path.home(), ".local", "state")
    return state / "trunkline"


def _read_secrets(auth: AuthConfig) -> AuthConfig:
    keys = (_with_files_read(k, f"auth.jwt.keys[{n}].", _KEYS) for n, k in enumerate(auth.jwt.keys))
    auth = replace(auth, jwt=replace(auth.jwt, keys=tuple(keys)))
    return _with_files_read(auth, "auth.", _SECRETS)


def _with_files_read(group: G, prefix: str, secrets: Mapping[str, str]) -> G:
    values: dict[str, Secret | None] = {}
    for name, file in secrets.items():
        value, path = getattr(group, name), getattr(group, file)
        if value is not None and path is not None:
            raise ConfigError(f"{prefix}{name} and {prefix}{file} are both set: keep one")
        if path is not None:
            value = _read_secret(Path(path).expanduser(), prefix + file)
        values[name] = None if value is None else Secret(value)
    return replace(group, **values)


def _read_secret(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {setting} {path}: {error}") from None


def secrets_of(config: WebSocketTransportConfig) -> list[str]:
    """Return the secrets that a configuration holds, so that no log line shows one."""
    auth = config.auth
    values = [auth.token, auth.password, *(key.secret for key in auth.jwt.keys)]
    return [value for value in values if value]


def _check_files(config: WebSocketTransportConfig) -> None:
    files = {
        "tls.cert": config.tls.cert,
        "tls.key": config.tls.key,
        "auth.jwt.jwks_ca_file": config.auth.jwt.jwks_ca_file,
    }
    for name, path in files.items():
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"cannot read {name}: {path}")


def ensure_token(
    config: WebSocketTransportConfig,
) -> tuple[WebSocketTransportConfig, bool]:
    """
    Give a gateway in token mode its token; the first run makes one.

    The token has 256 random bits and is kept in the data folder (0700), readable
    by its owner only (0600).

    Returns:
        The configuration with a token, and whether it is new and should be shown.

    Raises:
        ConfigError: The file cannot be made, is empty, or others may read it.
    """
    auth = config.auth
    if not auth.required or auth.mode != "token" or auth.token is not None:
        return config, False
    path = data_folder({}, config.data_dir) / TOKEN_FILE
    try:
        created = not path.exists() and _create_secret(path, secrets.token_urlsafe(32))
        token = _read_own_secret(path)
    except OSError as error:
        raise ConfigError(f"cannot keep the token in {path}: {error}") from None
    return replace(config, auth=replace(auth, token=Secret(token))), created


def _create_secret(path: Path, value: str) -> bool:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whole or not at all, and never over a file that another process made meanwhile.
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(handle)
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)


def _read_own_secret(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others may read {path}: run chmod 600 {path}")
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise ConfigError(f"{path} is empty: delete it to get a new token")
    return token


def local_token(environ: Mapping[str, str], data_dir: str | None = None) -> str | None:
    """Return the token that a gateway of this user keeps in its data folder, if any."""
    try:
        path = data_folder(environ, data_dir) / TOKEN_FILE
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def default_toml() -> str:
    """Return a TOML file of all settings with their defaults and documentation."""
    lines = [
        "# Trunkline's settings with their defaults. Durations are seconds, sizes bytes.",
        "# The environment overrides this file: TRUNKLINE_ and the path in capitals with",
        "# __ between its levels, such as TRUNKLINE_LIMITS__MAX_BUFFERED; flags override both.",
    ]
    group = ""
    for setting in settings_table().values():
        parent, _, name = setting.path.rpartition(".")
        if parent != group:
            group = parent
            lines += ["", f"[{group}]"]
        lines += ["", f"# {_describe(setting)}", *_assignment(name, setting)]
    return "\n".join(lines) + "\n"


def _describe(setting: Setting) -> str:
    text = " ".join(setting.doc.replace("``", '"').replace("`", "").split())
    bounds = _range(setting.type)
    return f"{text} ({bounds})" if bounds else text


def _range(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    meta = next((m for m in _metas(kind)), None)
    if meta is None:
        return ""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = ((word, getattr(meta, name)) for name, word in words.items())
    return ", ".join(f"{word} {value}" for word, value in parts if value is not None)


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta):
            yield meta
    for part in get_args(kind):
        yield from _metas(part)


def _assignment(name: str, setting: Setting) -> list[str]:
    if setting.tables is not None:
        inside = ", ".join(each.path for each in settings_of(setting.tables))
        return [f"# [[{setting.path}]]", f"# one such table each, with: {inside}"]
    if setting.default in (None, msgspec.NODEFAULT):
        return [f"# {name} ="]
    # JSON's spelling of booleans, numbers, strings and lists is TOML's too.
    return [f"{name} = {json.dumps(setting.default)}"]
