"""Which pages and host names get in: every row of the table, and the grammar's edges."""

from __future__ import annotations

import ipaddress
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trunkline.errors import ConfigError
from trunkline.origins import HostPolicy, OriginPolicy, Refused, check_request, is_origin_allowed

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("cases").joinpath("origin_cases.json").read_text()
)["cases"]

LOOPBACK = "127.0.0.1:18789"


def is_v6_loopback(text: str) -> bool:
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        return ipaddress.IPv6Address(text[1:-1]) == ipaddress.IPv6Address("::1")
    except ValueError:
        return False


def policies(config: dict[str, Any]) -> tuple[HostPolicy, OriginPolicy]:
    loopback = config.get("bind", "loopback") == "loopback"
    return (
        HostPolicy(
            "127.0.0.1" if loopback else "0.0.0.0",
            config.get("port", 18789),
            config.get("allowed_hosts", ()),
            config.get("local_addresses", ()),
        ),
        OriginPolicy(
            config["allowed_origins"],
            strict=not config.get("allow_missing_origin", True),
            same_origin=config.get("allow_same_origin", True),
        ),
    )


def status(
    *,
    host: list[str | bytes] | None = None,
    origin: list[str | bytes] | None = None,
    hosts: HostPolicy | None = None,
    origins: OriginPolicy | None = None,
    **request: Any,
) -> int:
    """Return the status of a refusal, or 101."""
    try:
        check_request(
            hosts or HostPolicy("127.0.0.1", 18789),
            origins or OriginPolicy(()),
            host=[LOOPBACK] if host is None else host,
            origin=origin or [],
            **request,
        )
    except Refused as refused:
        return refused.status
    return 101


@pytest.mark.parametrize("encode", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_table_holds(case, encode):
    """Each row of the table gets the status that the row asks for."""
    request = case["request"]
    if case["expect"]["decision"] == "config_error":
        with pytest.raises(ConfigError):
            policies(case["config"])
        return
    hosts, origins = policies(case["config"])

    answer = status(
        hosts=hosts,
        origins=origins,
        host=[encode(value) for value in request["host"]],
        origin=[encode(value) for value in request["origin"] or []],
        scheme=request["scheme"],
        sec_fetch_site="sec_fetch_site" in request,
        ambient_credential=request.get("ambient_auth", False),
    )

    assert answer == case["expect"]["status"]


class TestPatterns:
    @pytest.mark.parametrize(
        "pattern",
        [
            "https://*.",
            "https://*.*",
            "http://*:*",
            "http://*.com:*",
            "https://a.*.example.com",
            "https://*.192.0.2.7",
            "https://*.[2001:db8::1]",
            "https://example.com/",
            "https://example.com.",
            "https://example.com?x",
            "https://example.com#x",
            "https://example.com\n",
            " https://example.com",
            "https://example..com",
            "https://example.com:",
            "https://example.com:0",
            "https://example.com:080",
            "https://example.com:65536",
            "https://example.com:443:443",
            "https://-a.example.com",
            "https://a-.example.com",
            f"https://{'a' * 64}.example.com",
            "https://0x7f.0.0.1",
            "https://0177.0.0.1",
            "https://2130706433",
            "https://[::1",
            "https://[::1%25lo]",
            "https://[127.0.0.1]",
            "https://intranet",
            "ws://example.com",
            "WSS://example.com",
            "tauri://localhost:*",
            "app://*.example.com",
            "NULL",
            "://example.com",
            "https:example.com",
            "https:///example.com",
            "https://\uff41.example.com",
            "https://example.com:\uff18\uff10",
        ],
    )
    def test_what_is_outside_the_grammar_stops_the_start(self, pattern):
        """One malformed entry refuses the whole list, and the message shows it."""
        with pytest.raises(ConfigError) as refusal:
            OriginPolicy(["https://app.example.com", pattern])

        assert repr(pattern) in str(refusal.value)

    def test_a_star_names_the_setting_that_means_it(self):
        """Who writes `*` learns what it is called."""
        with pytest.raises(ConfigError, match="dangerously_allow_any_origin"):
            OriginPolicy(["*"])

    @pytest.mark.parametrize(
        ("pattern", "origin"),
        [
            ("HTTPS://App.Example.COM:443", "https://app.example.com"),
            ("https://app.example.com", "HTTPS://app.example.com:443"),
            ("http://*.localhost:*", "http://app.localhost:5173"),
            ("https://[2001:DB8:0:0::1]", "https://[2001:db8::1]"),
            ("http://192.0.2.7:*", "http://192.0.2.7"),
            ("moz-extension://0a-1b", "moz-extension://0A-1b"),
            ("app://obsidian.md:7", "app://obsidian.md:7"),
            ("null", "null"),
        ],
    )
    def test_spelling_does_not_matter(self, pattern, origin):
        """Pattern and origin are compared in canonical form."""
        assert is_origin_allowed(origin, [pattern])

    @pytest.mark.parametrize(
        ("pattern", "origin"),
        [
            ("https://*.example.com", "https://example.com"),
            ("https://*.example.com", "https://a.b.example.com"),
            ("https://*.example.com", "https://a.example.com:8443"),
            ("https://*.example.com:8443", "https://a.example.com"),
            ("https://*.example.com:*", "http://a.example.com"),
            ("http://127.0.0.1:*", "http://[::ffff:127.0.0.1]:80"),
            ("null", "https://null"),
        ],
    )
    def test_a_wildcard_is_one_label_or_any_port(self, pattern, origin):
        """Wildcards stretch neither over the apex, nor deeper, nor over schemes."""
        assert not is_origin_allowed(origin, [pattern])

    LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    HOST = rf"(?:{LABEL}\.)*{LABEL}|\[[0-9A-Fa-f:.]+\]"
    REFERENCE = re.compile(
        rf"null|(?i:https?)://(?:\*\.)?(?:{HOST})(?::(?:[1-9][0-9]{{0,4}}|\*))?"
        rf"|[A-Za-z][A-Za-z0-9+.-]*://(?:{HOST})(?::[1-9][0-9]{{0,4}})?"
    )
    PIECES = re.findall(
        r"\S+",
        "http https tauri ws :// : / * *. . - localhost a example.com 127.0.0.1 127.1 0x7f [::1] "
        "[ ] 80 443 0 65535 65536 null @ % \u00fc \uff11 ? # \\",
    )

    @given(
        st.one_of(
            st.text(max_size=30),
            st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=8).map("".join),
        )
    )
    @settings(max_examples=800, deadline=None)
    @example("http://localhost:*")
    def test_no_text_gets_past_the_grammar(self, text):
        """Any text is either in the grammar, or a `ConfigError` and nothing else."""
        try:
            OriginPolicy([text])
        except ConfigError:
            return

        assert self.REFERENCE.fullmatch(text)


class TestOrigin:
    @pytest.mark.parametrize(
        "value",
        [
            "",
            " ",
            "https://app.example.com ",
            "https://app.example.com\t",
            "https://app.example.com\x00",
            "https://app.example.com\n",
            "https://app.example.com.",
            "https://app.example.com:0",
            "https://app.example.com#x",
            "https://a..example.com",
            "https://a-.example.com",
            "https://*.example.com",
            "https://0300.0.2.7",
            "https://0xc0.0.2.7",
            "https://a.0x",
            "https://[::1%25lo]",
            "https://[fe80::1%lo]",
            "https://[]",
            "https://::1",
            "about:blank",
            "null null",
            "https://" + "a" * 64 + ".example.com",
            "https://" + ".".join(["abcdefg"] * 32),
            "x" * 513,
        ],
    )
    def test_what_no_browser_writes_is_malformed(self, value):
        """A malformed Origin is refused with 400, whatever the list says."""
        anything = OriginPolicy((), allow_any=True)

        assert status(origin=[value], origins=anything) == 400
        assert not is_origin_allowed(value, ["https://app.example.com"])

    def test_bytes_beyond_ascii_are_malformed(self):
        """No byte above 127 is part of an origin."""
        assert status(origin=[b"https://app.example.com\xff"]) == 400

    def test_a_page_on_another_port_is_another_origin(self):
        """A page on this machine is not the gateway's page."""
        assert status(origin=["http://127.0.0.1:3000"]) == 403
        assert status(origin=["http://localhost:18789"]) == 403

    def test_the_break_glass_setting_admits_pages_but_no_opaque_ones(self):
        """`null` needs its own entry even if any origin is allowed."""
        anything = OriginPolicy((), allow_any=True)

        assert status(origin=["https://evil.com"], origins=anything) == 101
        assert status(origin=["null"], origins=anything) == 403

    def test_the_break_glass_setting_is_refused_where_pages_could_act_as_the_user(self):
        """Any origin together with ambient credentials does not start."""
        with pytest.raises(ConfigError, match="dangerously_allow_any_origin"):
            OriginPolicy((), allow_any=True, ambient=True)

    def test_an_ambient_credential_needs_an_origin(self):
        """A cookie without an Origin is refused; an empty Origin is malformed, not missing."""
        assert status(ambient_credential=True) == 403
        assert status(origin=["http://127.0.0.1:18789"], ambient_credential=True) == 101
        assert status(origin=[""], ambient_credential=True) == 400

    def test_a_reason_repeats_nothing_that_was_sent(self):
        """What an attacker sends never comes back in a reason."""
        sent = "https://marker.example"

        with pytest.raises(Refused) as refusal:
            check_request(
                HostPolicy("127.0.0.1", 1), OriginPolicy(()), host=["localhost:1"], origin=[sent]
            )

        assert "marker" not in refusal.value.reason
        assert "origins.allowed_origins" in refusal.value.reason


class TestHost:
    @pytest.mark.parametrize(
        "value",
        [
            "localhost:18789.evil.com",
            "localhost:",
            "localhost:018789",
            "localhost:65536",
            "localhost :18789",
            " localhost:18789",
            "localhost:18789,evil.com",
            "http://localhost:18789",
            "localhost:18789/",
            "0x7f000001:18789",
            "0177.0.0.1:18789",
            "127.0.0.1.:18789",
            "::1",
            "[::1%lo]:18789",
            "loc\u00e4lhost:18789",
        ],
    )
    def test_a_malformed_host_is_refused(self, value):
        """What is no host is refused before any list is asked."""
        assert status(host=[value]) == 400

    def test_there_is_exactly_one_host(self):
        """None and two are refused, even two equal ones."""
        assert status(host=[]) == 400
        assert status(host=[LOOPBACK, LOOPBACK]) == 400

    @pytest.mark.parametrize(
        "value", ["localhost", "localhost:80", "127.0.0.1:18790", "[::2]:18789"]
    )
    def test_loopback_answers_to_its_own_port_only(self, value):
        """Another port or address is somebody else's."""
        assert status(host=[value]) == 421

    def test_the_host_is_judged_before_the_origin(self):
        """The first rule that is broken decides."""
        assert status(host=["a b"], origin=["a b"]) == 400
        assert status(host=["evil.com"], origin=["a b"]) == 421

    def test_a_refusal_names_the_setting(self):
        """421 says where to add the name, and does not repeat it."""
        with pytest.raises(Refused, match="allowed_hosts") as refusal:
            HostPolicy("127.0.0.1", 18789).check(["marker.example"])

        assert "marker" not in refusal.value.reason

    @pytest.mark.parametrize(
        "authority", ["localhost:18789", "127.0.0.1", "evil.com:18789", "a b", ""]
    )
    def test_an_absolute_target_must_agree(self, authority):
        """A request line that names another host than Host is refused."""
        assert status(target_authority=authority) == 400

    def test_an_absolute_target_that_agrees_is_fine(self):
        """The target is compared in canonical form."""
        hosts = HostPolicy("0.0.0.0", 443, ["gw.example.com"])

        answer = status(
            hosts=hosts,
            host=["gw.example.com"],
            target_authority="GW.example.com:443",
            scheme="https",
        )

        assert answer == 101

    def test_other_binds_answer_to_their_own_addresses(self):
        """Addresses cannot be rebound; names and foreign addresses must be listed."""
        hosts = HostPolicy("0.0.0.0", 18789, local_addresses=["192.168.1.5", "fd00::5"])

        assert status(hosts=hosts, host=["192.168.1.5:18789"]) == 101
        assert status(hosts=hosts, host=["[FD00:0::5]:18789"]) == 101
        assert status(hosts=hosts, host=["192.168.1.6:18789"]) == 421
        assert status(hosts=hosts, host=["192.168.1.5"]) == 421
        assert status(hosts=hosts, host=["localhost:18789"]) == 421
        assert status(hosts=hosts, host=["0.0.0.0:18789"]) == 421

    def test_the_address_that_the_peer_reached_is_ours_if_we_listen_everywhere(self):
        """The socket's own address counts on a wildcard bind, on no other."""
        everywhere, one = HostPolicy("::", 18789), HostPolicy("192.168.1.5", 18789)
        request: dict[str, Any] = {"host": ["10.9.9.9:18789"], "local_address": "::ffff:10.9.9.9"}

        assert status(hosts=everywhere, **request) == 101
        assert status(hosts=one, **request) == 421
        assert status(hosts=everywhere, **{**request, "host": ["10.9.9.9:80"]}) == 421
        assert status(hosts=one, host=["192.168.1.5:18789"]) == 101

    def test_a_listed_name_without_a_port_means_the_usual_ports(self):
        """The scheme's default port and the gateway's own, not any port."""
        hosts = HostPolicy("127.0.0.1", 18789, ["gw.internal"])

        assert status(hosts=hosts, host=["gw.internal"]) == 101
        assert status(hosts=hosts, host=["gw.internal:443"], scheme="https") == 101
        assert status(hosts=hosts, host=["gw.internal:18789"]) == 101
        assert status(hosts=hosts, host=["gw.internal:443"]) == 421
        assert status(hosts=hosts, host=["a.gw.internal"]) == 421

    @pytest.mark.parametrize(
        "entry", ["", "*", "*.example.com", "http://a.example", "a:0", "a:99999", "a.", "::1"]
    )
    def test_a_malformed_entry_stops_the_start(self, entry):
        """The message shows the entry."""
        with pytest.raises(ConfigError) as refusal:
            HostPolicy("127.0.0.1", 18789, [entry])

        assert repr(entry) in str(refusal.value)

    def test_the_gateways_own_origin_is_canonical(self):
        """What passes is the origin that a page of the gateway would have."""
        own = HostPolicy("127.0.0.1", 18789).check([b"LOCALHOST:18789"], scheme="https")

        assert own == ("https", "localhost", 18789)

    @given(st.text(string.ascii_letters + string.digits + ".-_:[]*@/% \x00\u00e9", max_size=24))
    @example("[0:0:0:0:0:0:0:1]")
    @settings(max_examples=500, deadline=None)
    def test_only_the_three_names_pass_on_loopback(self, text):
        """No text but the three spellings gets past a bare loopback gateway."""
        answer = status(host=[f"{text}:18789"])

        expected = text.lower() in ("localhost", "127.0.0.1") or is_v6_loopback(text)
        assert (answer == 101) == expected


class TestIsOriginAllowed:
    def test_a_missing_origin_is_a_client_with_a_token(self):
        """Command-line clients and agents send no Origin."""
        assert is_origin_allowed(None, [])

    def test_an_empty_list_admits_no_page(self):
        """Every page must be listed."""
        assert not is_origin_allowed("https://app.example.com", [])

    def test_a_bad_list_is_an_error_even_without_an_origin(self):
        """A malformed pattern never goes unnoticed."""
        with pytest.raises(ConfigError):
            is_origin_allowed(None, ["*"])
