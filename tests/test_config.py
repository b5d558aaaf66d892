"""The configuration: ranges, unknown keys, and what it refuses to start with."""

from __future__ import annotations

import msgspec
import pytest

from trunkline.config import (
    DEFAULT_GATEWAY_CONFIG,
    DEFAULT_WS_CONFIG,
    AuthConfig,
    GatewayConfig,
    HistoryConfig,
    TlsConfig,
    WebSocketTransportConfig,
    bind_address,
    check_config,
    convert_config,
)
from trunkline.errors import ConfigError


def test_the_defaults_are_those_of_the_design():
    """Loopback, token sign-in, compression off, the documented limits."""
    config, limits = DEFAULT_WS_CONFIG, DEFAULT_WS_CONFIG.limits

    assert (config.port, config.path, config.bind) == (18789, "/ws", "loopback")
    assert (config.auth.enabled, config.auth.mode, config.auth.timeout) == (True, "token", 10)
    assert config.compression.enabled is False
    assert (config.heartbeat_interval, config.heartbeat_timeout) == (25, 8)
    assert (config.client_timeout, config.max_frame) == (33, 1024 * 1024)
    assert config.origins.allowed_origins == ()
    assert (limits.max_depth, limits.publish_rate, limits.publish_burst) == (32, 200, 400)
    assert (limits.pre_auth_connections, limits.pre_auth_per_address) == (256, 64)
    assert (limits.pre_auth_messages, limits.pre_auth_bytes) == (32, 64 * 1024)
    assert (limits.inbox_messages, limits.max_buffered) == (256, 1024 * 1024)
    assert (limits.sessions_per_connection, limits.requests_per_connection) == (128, 256)
    assert config.sessions.grace == 600
    assert DEFAULT_GATEWAY_CONFIG.limits == limits


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"colour": "red"}, "colour"),
        ({"limits": {"max_bufferd": 1}}, "$.limits"),
        ({"limits": {"max_depth": 1}}, "$.limits.max_depth"),
        ({"limits": {"max_depth": 129}}, "$.limits.max_depth"),
        ({"limits": {"publish_rate": 0}}, "$.limits.publish_rate"),
        ({"limits": {"max_message_size": 0}}, "$.limits.max_message_size"),
        ({"auth": {"timeout": -1}}, "$.auth.timeout"),
        ({"auth": {"mode": "magic"}}, "$.auth.mode"),
        ({"port": 65_536}, "$.port"),
        ({"port": "18789"}, "$.port"),
        ({"path": "ws"}, "$.path"),
        ({"bind": "everywhere"}, "$.bind"),
        ({"heartbeat_interval": 0}, "$.heartbeat_interval"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_with_its_path(data, path):
    """A typing error is not silently nothing."""
    with pytest.raises(ConfigError) as refused:
        convert_config(data)

    assert path in str(refused.value)


def test_plain_data_becomes_typed_groups():
    """As a TOML file gives it."""
    config = convert_config({"port": 0, "auth": {"mode": "none"}, "limits": {"max_depth": 8}})

    assert (config.port, config.auth.required, config.limits.max_depth) == (0, False, 8)


@pytest.mark.parametrize("bind", ["loopback", "all", "tailscale"])
@pytest.mark.parametrize(
    "auth",
    [
        AuthConfig(token="t"),
        AuthConfig(mode="password", password="p"),
        AuthConfig(mode="none"),
        AuthConfig(enabled=False, token="t"),
    ],
    ids=["token", "password", "none", "disabled"],
)
@pytest.mark.parametrize("insecure", [False, True])
def test_nobody_gets_in_from_outside_without_sign_in_unless_it_is_meant(bind, auth, insecure):
    """Every bind with every way to sign in."""
    config = WebSocketTransportConfig(bind=bind, auth=auth, insecure=insecure)

    if auth.required or bind == "loopback" or insecure:
        assert check_config(config) is config
    else:
        with pytest.raises(ConfigError, match="insecure"):
            check_config(config)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_a_host_beyond_loopback_needs_sign_in_too(host):
    """However it is spelled."""
    with pytest.raises(ConfigError, match="without sign-in"):
        check_config(WebSocketTransportConfig(host=host, auth=AuthConfig(mode="none")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_host_of_loopback_is_as_good_as_the_bind_mode(host):
    """Only this machine reaches it."""
    config = WebSocketTransportConfig(host=host, auth=AuthConfig(mode="none"))

    assert bind_address(check_config(config)) == host


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (GatewayConfig(auth=AuthConfig(token="")), "auth.token is empty"),
        (GatewayConfig(auth=AuthConfig(mode="password", password="")), "auth.password is empty"),
        (GatewayConfig(auth=AuthConfig(token="two words")), "visible ASCII"),
        (GatewayConfig(auth=AuthConfig(token="naïve")), "visible ASCII"),
        (WebSocketTransportConfig(tls=TlsConfig(cert="c.pem")), "belong together"),
        (WebSocketTransportConfig(tls=TlsConfig(key="k.pem")), "belong together"),
        (WebSocketTransportConfig(bind="tailscale", host="0.0.0.0"), "remove host"),
        (
            WebSocketTransportConfig(bind="tailscale", tls=TlsConfig(cert="c", key="k")),
            "tailscale encrypts",
        ),
        (GatewayConfig(history=HistoryConfig(durability="disk", store="memory")), "sqlite"),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_remedy(config, word):
    """Before anything starts."""
    with pytest.raises(ConfigError, match=word):
        check_config(config)


def test_a_configuration_cannot_be_changed_afterwards():
    """It is what was checked."""
    with pytest.raises(AttributeError):
        DEFAULT_WS_CONFIG.port = 1  # type: ignore[misc]


def test_a_configuration_never_shows_its_secrets():
    """Not even inside the whole."""
    config = WebSocketTransportConfig(auth=AuthConfig(token="hush", password="hush-too"))

    assert "hush" not in repr(config)
    assert "***" in repr(config)


def test_a_configuration_survives_being_written_and_read():
    """As plain data."""
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token="t"))

    assert convert_config(msgspec.to_builtins(config)) == config
