"""Where the configuration comes from, and what it refuses."""

import os
import stat
import tomllib

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trunkline.config import DEFAULT_WS_CONFIG
from trunkline.errors import ConfigError
from trunkline.settings import (
    default_toml,
    ensure_token,
    load_settings,
    local_token,
    read_environment,
    settings_table,
)


@pytest.fixture
def home(tmp_path):
    """An environment with a home of its own and nothing else."""
    return {"HOME": str(tmp_path)}


@pytest.fixture
def write(tmp_path):
    def write(text, name="trunkline.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


class TestPrecedence:
    def test_defaults_apply_where_nothing_is_said(self, home):
        """Without file, environment and flags the defaults hold."""
        config = load_settings({}, home)

        assert msgspec.structs.replace(config, data_dir=None) == DEFAULT_WS_CONFIG

    def test_flags_win_over_environment_over_file(self, home, write):
        """Each source overrides the one below it, setting by setting."""
        path = write("port = 1\n[limits]\nmax_buffered = 1\npublish_burst = 1\nmax_depth = 9\n")
        environ = home | {
            "TRUNKLINE_LIMITS__MAX_BUFFERED": "2",
            "TRUNKLINE_LIMITS__PUBLISH_BURST": "2",
        }

        limits = load_settings({"limits.publish_burst": 3, "port": None}, environ, path).limits

        assert (limits.max_depth, limits.max_buffered, limits.publish_burst) == (9, 2, 3)

    def test_a_token_wins_over_a_token_file_of_a_lower_source(self, home, write):
        """A secret and its file are one setting, so a flag replaces either."""
        path = write('[auth]\ntoken_file = "absent"\n')

        config = load_settings({"auth.token": "from-a-flag"}, home, path)

        assert config.auth.token == "from-a-flag"
        assert config.auth.token_file is None


class TestEnvironment:
    def test_reads_every_type(self):
        """Numbers, booleans, lists, words and texts have their type."""
        found = read_environment(
            {
                "TRUNKLINE_PORT": "0",
                "TRUNKLINE_INSECURE": "true",
                "TRUNKLINE_AUTH__TOKEN": "null",
                "TRUNKLINE_AUTH__TIMEOUT": "2.5",
                "TRUNKLINE_BIND": "all",
                "TRUNKLINE_MAX_PAYLOAD": "10",
                "TRUNKLINE_ORIGINS__ALLOWED_ORIGINS": "https://a.example, https://b.example",
            }
        )

        assert found == {
            "port": 0,
            "insecure": True,
            "auth": {"token": "null", "timeout": 2.5},
            "bind": "all",
            "max_payload": 10,
            "origins": {"allowed_origins": ["https://a.example", "https://b.example"]},
        }

    @pytest.mark.parametrize(
        "name", sorted(s.path for s in settings_table().values() if s.default is not None)
    )
    def test_can_set_every_setting(self, name):
        """Each setting has a variable, and its default written as text comes back."""
        setting = settings_table()[name]
        default = setting.default
        text = ",".join(default) if isinstance(default, tuple) else str(default).lower()

        found = read_environment({setting.variable: text})

        *groups, key = name.split(".")
        for group in groups:
            found = found[group]
        assert found == {key: list(default) if isinstance(default, tuple) else default}

    def test_refuses_an_unknown_variable(self, home):
        """A misspelt variable is an error that says what was meant."""
        with pytest.raises(ConfigError, match=r"TRUNKLINE_LIMITS__MAX_BUFFERD.*MAX_BUFFERED\?"):
            load_settings({}, home | {"TRUNKLINE_LIMITS__MAX_BUFFERD": "1"})

    def test_ignores_what_client_commands_read_and_what_is_not_ours(self, home):
        """The documented variables of the clients are no settings."""
        environ = {"TRUNKLINE_URL": "x", "TRUNKLINE_TOKEN": "y", "OTHER": "z"}

        assert read_environment(environ) == {}

    def test_names_the_variable_of_an_unreadable_value(self, home):
        """A value of the wrong type is an error with the variable's name."""
        with pytest.raises(ConfigError, match="TRUNKLINE_PORT: Expected `int`"):
            load_settings({}, home | {"TRUNKLINE_PORT": "many"})


class TestFile:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[limits]\nmax_bufferd = 3\n", r"`\$\.limits\.max_bufferd`; did you mean limits.max_"),
            ("nonsense = 3\n", r"`\$\.nonsense`$"),
            ("[limits.deep]\nx = 3\n", r"`\$\.limits\.deep`"),
            ("limits = 3\n", r"write \[limits\]"),
            ("[limits]\nmax_buffered = 0\n", r">= 1 - at `\$\.limits\.max_buffered`"),
            ("port = 65536\n", r"<= 65535 - at `\$\.port`"),
            ('port = "18789"\n', r"Expected `int`.*`\$\.port`"),
            ("port = \n", r"is not TOML: .*line 1"),
        ],
    )
    def test_errors_name_the_place(self, home, write, text, message):
        """Unknown keys, wrong types, ranges and syntax are errors with their path."""
        with pytest.raises(ConfigError, match=message):
            load_settings({}, home, write(text))

    def test_must_exist(self, home, tmp_path):
        """A file that is named and absent is an error, not the defaults."""
        with pytest.raises(ConfigError, match="cannot read"):
            load_settings({}, home, tmp_path / "absent.toml")

    @given(key=st.from_regex(r"[a-z_]{1,20}", fullmatch=True))
    def test_refuses_every_key_that_is_no_setting(self, tmp_path_factory, key):
        """What the configuration does not know is refused, whatever its name."""
        assume(not any(path.split(".")[0] == key for path in settings_table()))
        path = tmp_path_factory.getbasetemp() / "any.toml"
        path.write_text(f"{key} = 1")

        with pytest.raises(ConfigError, match=rf"`\$\.{key}`"):
            load_settings({}, {"HOME": "/nonexistent"}, path)


class TestSecrets:
    def test_are_read_from_their_files(self, home, write):
        """A file's text is the secret, without the line end that editors add."""
        token, password = write("s3cret\n", "t"), write("pass word\n", "p")

        auth = load_settings(
            {"auth.token_file": str(token), "auth.password_file": str(password)}, home
        ).auth

        assert (auth.token, auth.password) == ("s3cret", "pass word")

    def test_do_not_show_themselves(self, home):
        """No representation of the configuration holds a secret."""
        config = load_settings({"auth.token": "s3cret", "auth.password": "pass-word"}, home)

        shown = f"{config!r} {config} {config.auth!r} {config.auth.token!r}"

        assert "s3cret" not in shown
        assert "pass-word" not in shown

    def test_and_their_file_in_one_source_are_refused(self, home):
        """Two values for one secret are an error, not a guess."""
        with pytest.raises(ConfigError, match="both set"):
            load_settings({"auth.token": "a" * 8, "auth.token_file": "b"}, home)

    def test_whose_file_is_absent_are_refused(self, home):
        """A missing secret file is an error that names it."""
        with pytest.raises(ConfigError, match=r"cannot read auth\.token_file"):
            load_settings({"auth.token_file": "/nonexistent/token"}, home)


class TestUnsafeStarts:
    @pytest.mark.parametrize("insecure", [False, True])
    @pytest.mark.parametrize("mode", ["token", "password", "none"])
    @pytest.mark.parametrize("bind", ["loopback", "all", "tailscale"])
    def test_of_every_bind_and_mode_are_refused_exactly_without_sign_in(
        self, home, bind, mode, insecure
    ):
        """Beyond loopback the gateway starts only with sign-in, or when told to be insecure."""
        flags = {"bind": bind, "auth.mode": mode, "insecure": insecure, "auth.password": "long"}
        unsafe = bind != "loopback" and mode == "none" and not insecure

        try:
            load_settings(flags, home)
            refused = False
        except ConfigError as error:
            refused = "refusing" in str(error)

        assert refused == unsafe

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
    def test_of_a_host_beyond_loopback_are_refused_too(self, home, host):
        """Naming an address does not get around the rule."""
        with pytest.raises(ConfigError, match="without sign-in"):
            load_settings({"host": host, "auth.enabled": False}, home)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"auth.mode": "password"}, r"auth\.password_file"),
            ({"auth.token": ""}, r"auth\.token is empty"),
            ({"auth.token": "two words"}, r"auth\.token"),
            ({"auth.token": "tök"}, r"auth\.token"),
            ({"auth.mode": "password", "auth.password": ""}, r"auth\.password is empty"),
            ({"tls.cert": __file__}, "belong together"),
            ({"history.store": "memory", "history.durability": "disk"}, r"history\.store"),
            ({"tls.cert": "/nonexistent", "tls.key": __file__}, r"cannot read tls\.cert"),
            ({"bind": "tailscale", "host": "192.0.2.1"}, "loopback"),
            (
                {"bind": "tailscale", "tls.cert": __file__, "tls.key": __file__},
                "tailscale encrypts",
            ),
        ],
    )
    def test_of_contradictions_are_refused(self, home, flags, message):
        """What cannot work is said before anything starts."""
        with pytest.raises(ConfigError, match=message):
            load_settings(flags, home)


class TestDataFolder:
    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({"HOME": "/h"}, "/h/.local/state/trunkline"),
            ({"HOME": "/h", "XDG_STATE_HOME": "/s"}, "/s/trunkline"),
            ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, "/h/.local/state/trunkline"),
            ({"HOME": "/h", "XDG_STATE_HOME": "/s", "TRUNKLINE_DATA_DIR": "/d"}, "/d"),
        ],
    )
    def test_follows_the_xdg_specification(self, environ, expected):
        """The folder is the configured one, else below the user's state folder."""
        assert load_settings({}, environ).data_dir == expected


class TestFirstRun:
    def test_makes_a_token_that_only_its_owner_can_read(self, home, tmp_path):
        """The token has 256 bits and is stored 0600 in a folder 0700."""
        config, created = ensure_token(load_settings({}, home))

        path = tmp_path / ".local/state/trunkline/token"
        assert created
        assert len(config.auth.token) == 43
        assert path.read_text().strip() == config.auth.token
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert os.listdir(path.parent) == ["token"]

    def test_happens_once(self, home):
        """Later runs use the same token and do not show it again."""
        first, _ = ensure_token(load_settings({}, home))

        second, created = ensure_token(load_settings({}, home))

        assert second.auth.token == first.auth.token
        assert not created
        assert local_token(home) == first.auth.token

    @pytest.mark.parametrize(
        "flags", [{"auth.token": "given-by-hand"}, {"auth.mode": "none"}], ids=str
    )
    def test_makes_no_token_where_none_is_needed(self, home, tmp_path, flags):
        """A token of one's own, or no sign-in, leaves the disk as it was."""
        _, created = ensure_token(load_settings(flags, home))

        assert not created
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("mode", "text", "message"), [(0o644, "x", "chmod 600"), (0o600, "\n", "is empty")]
    )
    def test_refuses_a_token_that_is_open_or_empty(self, home, write, mode, text, message):
        """A token that others can read is no secret; an empty one lets everybody in."""
        path = write(text, "token")
        path.chmod(mode)

        with pytest.raises(ConfigError, match=message):
            ensure_token(load_settings({"data_dir": str(path.parent)}, home))

    def test_says_when_the_folder_cannot_be_made(self, home, write):
        """A data folder that cannot exist is an error that names it."""
        path = write("a file", "data")

        with pytest.raises(ConfigError, match="cannot keep the token"):
            ensure_token(load_settings({"data_dir": str(path)}, home))


class TestDefaultFile:
    def test_means_the_defaults(self, home, write):
        """The printed file, read back, changes nothing."""
        config = load_settings({}, home, write(default_toml()))

        assert msgspec.structs.replace(config, data_dir=None) == DEFAULT_WS_CONFIG

    def test_shows_and_documents_every_setting(self):
        """Each setting stands in it, below a sentence about it."""
        lines = default_toml().splitlines()

        for setting in settings_table().values():
            name = setting.path.rpartition(".")[2]
            spelled = [f"{name} = ", f"# {name} =", f"# [[{setting.path}]]"]
            at = next(n for n, line in enumerate(lines) if line.startswith(tuple(spelled)))
            assert lines[at - 1].startswith("# ")
            assert setting.doc

    def test_keeps_its_groups(self):
        """The file's tables are the groups of the configuration."""
        tables = {
            key
            for key, value in tomllib.loads(default_toml()).items()
            if value == {} or isinstance(value, dict)
        }

        assert tables == {path.split(".")[0] for path in settings_table() if "." in path}
