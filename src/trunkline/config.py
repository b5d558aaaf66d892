"""
The configuration: typed groups, every number with its unit and range.

Durations are seconds and sizes bytes. Unknown keys are errors that name their
path. Nothing here reads a file or the environment; `trunkline.settings` does.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from trunkline.errors import ConfigError
from trunkline.messages import Role
from trunkline.patterns import valid_pattern

Seconds = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
PerSecond = Annotated[float, Meta(gt=0)]

BindMode = Literal["loopback", "all", "tailscale"]
AuthMode = Literal["token", "password", "none"]

AsymmetricAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
SignatureAlgorithm = Literal["HS256", "HS384", "HS512", AsymmetricAlgorithm]


_BEARER = re.compile(r"[\x21-\x7e]+")


class Secret(str):
    """A string that does not show itself in a ``repr`` or a log."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"


class Group(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
):
    """Base of every group of settings."""


class JwtKeyConfig(Group, frozen=True, kw_only=True):
    """One key that tokens are signed with: a secret for ``HS...``, a public key for the others."""

    algorithm: SignatureAlgorithm
    """The one algorithm that the key is used with."""
    kid: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """The name that tokens call the key by; absent: for tokens that name none, or none that
    could come from `jwks_url`."""
    secret: str | None = None
    """The shared secret. Prefer `secret_file`."""
    secret_file: str | None = None
    """A file that holds the shared secret."""
    public_key: str | None = None
    """The public key or certificate, in PEM."""
    public_key_file: str | None = None
    """A PEM file that holds the public key or certificate."""

    def __repr__(self) -> str:
        return f"JwtKeyConfig(algorithm={self.algorithm!r}, kid={self.kid!r}, secret=***)"


class JwtConfig(Group, frozen=True, kw_only=True):
    """Sign-in with the tokens of an identity provider (JWT); on when `issuer` is set."""

    issuer: str | None = None
    """The ``iss`` of the tokens, to the letter."""
    audience: str | None = None
    """What a token's ``aud`` must be or hold."""
    jwks_url: str | None = None
    """The https address of the provider's public keys (JWKS)."""
    jwks_algorithms: tuple[AsymmetricAlgorithm, ...] = ("RS256", "ES256", "EdDSA")
    """The algorithms that those keys are used with."""
    jwks_max_age: Annotated[float, Meta(ge=30)] = 3600.0
    """Seconds after which the keys are fetched anew; old ones stay until that succeeds."""
    jwks_ca_file: str | None = None
    """A PEM file with certificates that the address is trusted by, beside the usual ones."""
    allow_private_jwks: bool = False
    """Allow an address within private networks, and plain http to this machine."""
    max_lifetime: Annotated[float, Meta(gt=0, le=86_400)] = 86_400.0
    """Seconds from a token's beginning (``iat``) to its end (``exp``)."""
    user_claim: str = "sub"
    """The claim that names the user. A dot steps into a claim that is an object."""
    user_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@|+-]{0,32}\Z")] = "jwt:"
    """What the names of these users begin with here, so that they are nobody else's."""
    roles_claim: str = "roles"
    """The claim with the roles: a list, or words; those that the gateway does not know are left out."""
    scopes_claim: str = "scope"
    """The claim with the scopes, likewise."""
    sessions_claim: str = "sessions"
    """The claim with the patterns of the sessions that the user may know of."""
    agents_claim: str = "agents"
    """The claim with the patterns of the agents that the user may register, see and ask."""
    default_roles: tuple[Role, ...] = ()
    """Roles of a token without the roles claim; none: it is refused."""
    default_sessions: tuple[str, ...] = ("*",)
    """Patterns of a token without the sessions claim."""
    default_agents: tuple[str, ...] = ("*",)
    """Patterns of a token without the agents claim."""
    keys: tuple[JwtKeyConfig, ...] = ()
    """Keys that tokens are signed with, beside those of `jwks_url`."""

    @property
    def enabled(self) -> bool:
        """Whether such tokens are taken at all."""
        return self.issuer is not None


class AuthConfig(Group, frozen=True, kw_only=True):
    """Who gets in."""

    enabled: bool = True
    """Whether clients must sign in."""
    mode: AuthMode = "token"
    """What they sign in with; ``none`` is the same as ``enabled = false``."""
    token: str | None = None
    """The owner's token. Prefer `token_file`."""
    token_file: str | None = None
    """A file that holds the owner's token."""
    password: str | None = None
    """The owner's password. Prefer `password_file`."""
    password_file: str | None = None
    """A file that holds the owner's password."""
    timeout: Seconds = 10.0
    """Seconds after the upgrade by which a client must have signed in."""
    max_failures: Count = 10
    """Wrong credentials from one address within `failure_window` before it is locked out."""
    failure_window: Seconds = 60.0
    """Seconds over which wrong credentials are counted."""
    lockout: Seconds = 300.0
    """Seconds that an address stays locked out."""
    skip_local_pairing: bool = False
    """Whether a device on this machine, without any proxy between, is let in by its key alone; it
    gets no control role, no scopes and no token."""
    jwt: JwtConfig = JwtConfig()

    @property
    def required(self) -> bool:
        """Whether clients must sign in."""
        return self.enabled and self.mode != "none"

    def __repr__(self) -> str:
        return f"AuthConfig(enabled={self.enabled}, mode={self.mode!r}, token=***, password=***)"


class LimitsConfig(Group, frozen=True, kw_only=True):
    """How much one client, session or agent may take."""

    max_message_size: Bytes = 1024 * 1024
    """Bytes of one message from a client."""
    pre_auth_message_size: Bytes = 16 * 1024
    """Bytes of one message before sign-in."""
    pre_auth_messages: Count = 32
    """Messages before sign-in."""
    pre_auth_bytes: Bytes = 64 * 1024
    """Bytes before sign-in."""
    pre_auth_connections: Count = 256
    """Connections that have not signed in yet."""
    pre_auth_per_address: Count = 64
    """Connections of one address that have not signed in yet."""
    pending_pairings: Count = 64
    """Devices that wait for approval, ten minutes at most."""
    pending_pairings_per_address: Count = 8
    """The same, of one address."""
    max_connections: Count = 10_000
    """Connections."""
    http_connections: Count = 512
    """Connections with an HTTP request, streams of events among them; past it there is 503."""
    connections_per_user: Count = 1_000
    """Connections of one user; the owner and the local user have no limit."""
    max_depth: Annotated[int, Meta(ge=2, le=128)] = 32
    """Nested brackets in one message, the envelope's included."""
    max_parse_errors: Count = 10
    """Unreadable messages of one connection in 60 s before it is closed."""
    publish_rate: PerSecond = 200.0
    """Messages per second of one connection."""
    publish_burst: Count = 400
    """Messages that a connection may send at once after a pause."""
    stream_rate: PerSecond = 2_000.0
    """``chat_stream``, ``tool_update`` and ``route_response`` messages per second of one connection."""
    stream_burst: Count = 4_000
    """The same, at once after a pause."""
    inbox_messages: Count = 256
    """Messages that wait behind a slow handler before reading pauses."""
    inbox_bytes: Bytes = 1024 * 1024
    """Bytes that wait behind a slow handler before reading pauses."""
    max_buffered: Bytes = 1024 * 1024
    """Bytes that may wait for a slow reader; past it the connection is closed with 4008."""
    lag_bytes: Bytes = 256 * 1024
    """Bytes in a reader's buffer past which it gets no more text chunks until drained."""
    sessions_per_user: Count = 1_000
    """Sessions that one user may own."""
    members_per_session: Count = 10_000
    """Connections in one session."""
    sessions_per_connection: Count = 128
    """Sessions that one connection may be in."""
    agents_per_user: Count = 100
    """Agents that one user may have registered."""
    requests_per_connection: Count = 256
    """Open requests of one connection."""


class SessionsConfig(Group, frozen=True, kw_only=True):
    """Sessions and what they keep."""

    grace: Seconds = 600.0
    """Seconds that a session without members stays in memory."""
    head_interval: Seconds = 25.0
    """Seconds without a frame after which members of a session get its ``head``."""
    run_timeout: Seconds = 600.0
    """Seconds without output after which a run is ended as lost."""
    run_recovery: Seconds = 30.0
    """Seconds that runs wait for their agent after a restart of the gateway."""
    max_run_bytes: Bytes = 768 * 1024
    """Bytes of JSON text kept of one open run."""


class HistoryConfig(Group, frozen=True, kw_only=True):
    """Where the sessions' logs live and for how long."""

    store: Literal["memory", "sqlite"] = "sqlite"
    """``sqlite`` keeps them in the data folder; ``memory`` forgets at exit. For `trunkline serve`
    and `demo`; a gateway made in Python keeps them where its ``history`` argument says."""
    durability: Literal["process", "disk"] = "process"
    """What acknowledged messages survive: a crash of the process, or a power loss."""
    max_messages: Annotated[int, Meta(ge=1)] = 10_000
    """Messages kept of one session."""
    max_age: Seconds = 7 * 86_400.0
    """Seconds that messages are kept."""
    max_bytes: Bytes = 256 * 1024 * 1024
    """Bytes kept of one session."""


class MetricsConfig(Group, frozen=True, kw_only=True):
    """Numbers for Prometheus. On the gateway's own port they need the scope ``metrics``."""

    enabled: bool = False
    """Whether they are also served on a port of their own, without sign-in."""
    host: str = "127.0.0.1"
    """The address of that port; only this machine's."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 18790
    """The TCP port; 0 takes any free one."""


class LogConfig(Group, frozen=True, kw_only=True):
    """What the gateway tells its operator."""

    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines to show."""


class AuditConfig(Group, frozen=True, kw_only=True):
    """How long the log of who did what is kept."""

    max_age: Seconds = 365 * 86_400.0
    """Seconds that entries are kept."""
    max_entries: Annotated[int, Meta(ge=1)] = 1_000_000
    """Entries kept."""


class GatewayConfig(Group, frozen=True, kw_only=True):
    """Everything that the transport-agnostic core needs."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 18789
    """TCP port; 0 takes any free one."""
    bind: BindMode = "loopback"
    """``loopback``: this machine only; ``all``: every address; ``tailscale``: loopback, shared by tailscale."""
    auth: AuthConfig = AuthConfig()
    limits: LimitsConfig = LimitsConfig()
    sessions: SessionsConfig = SessionsConfig()
    history: HistoryConfig = HistoryConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    audit: AuditConfig = AuditConfig()
    data_dir: str | None = None
    """Folder of the gateway's files; absent: ``$XDG_STATE_HOME/trunkline`` or its default."""
    drain_timeout: Seconds = 20.0
    """Seconds over which clients are sent away when the gateway stops."""


class OriginConfig(Group, frozen=True, kw_only=True):
    """Which web pages and host names may reach the gateway (security.md section 6)."""

    allowed_origins: tuple[str, ...] = ()
    """Origins of pages that may connect, such as ``https://*.example.com``."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, with an optional port, under which the gateway is reached."""
    dangerously_allow_any_origin: bool = False
    """Let every web page connect."""
    strict: bool = False
    """Refuse requests without an Origin too."""


class ProxyConfig(Group, frozen=True, kw_only=True):
    """Which reverse proxies are believed."""

    trusted: tuple[str, ...] = ()
    """Strict CIDRs of proxies whose forwarding headers count."""
    family: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """The one family of forwarding headers that is read."""
    use_forwarded_host: bool = False
    """Whether the forwarded host stands for the request's own."""


class TlsConfig(Group, frozen=True, kw_only=True):
    """Encryption on the gateway's own port."""

    cert: str | None = None
    """PEM file with the certificate chain."""
    key: str | None = None
    """PEM file with the private key."""


class TailscaleConfig(Group, frozen=True, kw_only=True):
    """Sharing over a tailnet; only with ``bind = "tailscale"``."""

    mode: Literal["serve", "funnel"] = "serve"
    """``serve``: inside the tailnet; ``funnel``: to the internet."""
    command: str = "tailscale"
    """The program to run."""
    reset_on_exit: bool = True
    """Whether to take the sharing back when the gateway stops."""


class CompressionConfig(Group, frozen=True, kw_only=True):
    """permessage-deflate (RFC 7692)."""

    enabled: bool = False
    """Whether it is negotiated with clients that offer it."""
    min_size: Bytes = 1024
    """Bytes below which a message is sent as it is."""


class WebSocketTransportConfig(GatewayConfig, frozen=True, kw_only=True):
    """Everything that the gateway with a listener needs."""

    path: Annotated[str, Meta(pattern="^/[A-Za-z0-9._~/-]*$")] = "/ws"
    """The path of the WebSocket."""
    host: str | None = None
    """An address to bind instead of the one that `bind` means."""
    heartbeat_interval: Annotated[float, Meta(gt=0)] = 25.0
    """Seconds of silence after which a client is pinged."""
    heartbeat_timeout: Annotated[float, Meta(gt=0)] = 8.0
    """Seconds that a pinged client has to show life."""
    max_payload: Bytes | None = None
    """The hard cap of one message; absent: ``limits.max_message_size``."""
    insecure: bool = False
    """Allow a bind beyond loopback without sign-in."""
    compression: CompressionConfig = CompressionConfig()
    origins: OriginConfig = OriginConfig()
    proxies: ProxyConfig = ProxyConfig()
    tls: TlsConfig = TlsConfig()
    tailscale: TailscaleConfig = TailscaleConfig()

    @property
    def client_timeout(self) -> float:
        """Seconds of silence after which a client is gone."""
        return self.heartbeat_interval + self.heartbeat_timeout

    @property
    def max_frame(self) -> int:
        """Bytes of one message past which the connection is closed with 1009."""
        return self.max_payload or self.limits.max_message_size


DEFAULT_GATEWAY_CONFIG = GatewayConfig()
"""The core's defaults."""

DEFAULT_WS_CONFIG = WebSocketTransportConfig()
"""The defaults of the gateway with a listener."""


def bind_address(config: GatewayConfig) -> str:
    """Return the address that a configuration binds."""
    if isinstance(config, WebSocketTransportConfig) and config.host:
        return config.host
    return "0.0.0.0" if config.bind == "all" else "127.0.0.1"


def is_loopback_address(address: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def check_config(config: GatewayConfig) -> GatewayConfig:
    """
    Refuse a configuration that is unsafe or contradicts itself.

    Raises:
        ConfigError: The sentence names the setting and what to do.
    """
    _check_auth(config.auth)
    if isinstance(config, WebSocketTransportConfig):
        _check_exposure(config)
        _check_tailscale(config)
        if (config.tls.cert is None) != (config.tls.key is None):
            raise ConfigError("tls.cert and tls.key belong together: set both or neither")
    if not is_loopback_address(config.metrics.host):
        raise ConfigError(
            "metrics.host must be an address of this machine only: from elsewhere ask /metrics on "
            "the gateway's own port, with a token that has the scope metrics"
        )
    if config.history.durability == "disk" and config.history.store == "memory":
        raise ConfigError('history.durability = "disk" needs history.store = "sqlite"')
    return config


def _check_auth(auth: AuthConfig) -> None:
    for name in ("token", "password"):
        if getattr(auth, name) == "":
            raise ConfigError(f"auth.{name} is empty, so everybody would know it")
    if auth.token is not None and not _BEARER.fullmatch(auth.token):
        raise ConfigError("auth.token must be visible ASCII without spaces: it travels in a header")
    _check_jwt(auth)


def _check_jwt(auth: AuthConfig) -> None:
    jwt = auth.jwt
    if not jwt.enabled:
        if jwt != JwtConfig():
            raise ConfigError("auth.jwt is set without auth.jwt.issuer: set it, or remove the rest")
        return
    if not auth.required:
        raise ConfigError("auth.jwt is set, but sign-in is off: remove one of them")
    if not jwt.issuer or not jwt.audience:
        raise ConfigError("auth.jwt needs both issuer and audience, and neither empty")
    if not jwt.keys and jwt.jwks_url is None:
        raise ConfigError("auth.jwt needs keys: set auth.jwt.jwks_url or [[auth.jwt.keys]]")
    for name in ("default_sessions", "default_agents"):
        if not all(map(valid_pattern, getattr(jwt, name))):
            raise ConfigError(f"auth.jwt.{name} holds something that is no pattern of ids")
    if jwt.jwks_url is not None and not jwt.jwks_algorithms:
        raise ConfigError("auth.jwt.jwks_algorithms is empty, so no token could be right")


def _check_exposure(config: WebSocketTransportConfig) -> None:
    if config.auth.required or config.insecure:
        return
    if not is_loopback_address(bind_address(config)):
        raise ConfigError(
            f"refusing to listen on {bind_address(config)} without sign-in: "
            "set auth.mode to token or password, or pass --insecure if you mean it"
        )
    if config.bind == "tailscale":
        raise ConfigError(
            'refusing bind = "tailscale" without sign-in: set auth.mode to token or password, '
            "or pass --insecure if you mean it"
        )


def _check_tailscale(config: WebSocketTransportConfig) -> None:
    if config.bind != "tailscale":
        return
    if not is_loopback_address(bind_address(config)):
        raise ConfigError('bind = "tailscale" listens on loopback: remove host')
    if config.tls.cert is not None:
        raise ConfigError("tailscale encrypts by itself: remove tls.cert and tls.key")


def convert_config(data: dict[str, Any]) -> WebSocketTransportConfig:
    """
    Make a configuration from plain data, as a TOML file gives it.

    Raises:
        ConfigError: An unknown key or a value out of range, with its path.
    """
    try:
        return msgspec.convert(data, WebSocketTransportConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
