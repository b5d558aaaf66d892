"""What `serve` asks of its process."""

import resource
from contextlib import closing

import pytest
from processes import Running, clean_environ

from trunkline.config import DEFAULT_WS_CONFIG, LimitsConfig, WebSocketTransportConfig
from trunkline.run import files_needed


@pytest.fixture
def few_files():
    """The usual low limit of open files, for us and for what we start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestOpenFiles:
    def test_the_limit_is_raised_to_what_the_connections_need(self, tmp_path, few_files):
        """WebSockets, plain HTTP, heads that have not come, and the gateway's own files."""
        environ = clean_environ(tmp_path)

        with closing(Running(environ, "serve", "--port", "0", "--auth", "none")) as gateway:
            gateway.wait_for("listening")
            soft, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)

        assert hard == few_files
        assert soft == hard or soft == files_needed(DEFAULT_WS_CONFIG)

    @pytest.mark.parametrize("limit", ["max_connections", "http_connections"])
    def test_what_is_needed_grows_with_each_limit_of_connections(self, limit):
        """One more connection is one more open file."""
        before = getattr(DEFAULT_WS_CONFIG.limits, limit)
        more = WebSocketTransportConfig(limits=LimitsConfig(**{limit: before + 1}))

        assert files_needed(more) == files_needed(DEFAULT_WS_CONFIG) + 1

    def test_a_limit_that_is_too_low_is_said(self, tmp_path, few_files):
        """An operator learns at start that not all connections can come."""
        config = tmp_path / "config.toml"
        config.write_text(f"[limits]\nmax_connections = {2**40}\n")
        options = ("--port", "0", "--auth", "none", "--config", str(config))

        with closing(Running(clean_environ(tmp_path), "serve", *options)) as gateway:
            said = gateway.wait_for("not all connections fit", "stderr")

        assert said
