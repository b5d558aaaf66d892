"""Who a request is attributed to: every row of the table, and random chains against a reference."""

from __future__ import annotations

import ipaddress
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trunkline.errors import ConfigError
from trunkline.proxies import (
    UNIX,
    Attribution,
    BadForwarding,
    ProxyPolicy,
    is_loopback,
    limiter_key,
)

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("cases").joinpath("proxy_cases.json").read_text()
)["cases"]

PROXY, CLIENT = "10.0.0.1", "203.0.113.9"
TRUSTED = ("10.0.0.0/8",)


def raw(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers]


def ask(*headers: tuple[str, str], peer: str = PROXY, **settings: Any) -> Attribution:
    return ProxyPolicy(TRUSTED, **settings).attribute(peer, raw(*headers))


def refusal(*headers: tuple[str, str], peer: str = PROXY, **settings: Any) -> int:
    policy = ProxyPolicy(TRUSTED, **settings)
    with pytest.raises(BadForwarding) as refused:
        policy.attribute(peer, raw(*headers))
    return refused.value.status


def case_policy(config: dict[str, Any]) -> ProxyPolicy:
    return ProxyPolicy(
        config.get("trusted_proxies", ()),
        family=config.get("mode", "x-forwarded"),
        use_forwarded_host=config.get("use_forwarded_host", False),
        user_header=config.get("user_header"),
        trust_unix_socket=config.get("trust_unix_socket", False),
        auth_required=config.get("auth", "token") != "none",
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_table_holds(case):
    """Each row of the table gets the attribution, or the refusal, that the row asks for."""
    headers = raw(*map(tuple, case["request"]["headers"]))
    expect = dict(case["expect"])
    decision = expect.pop("decision")
    if decision == "config_error":
        with pytest.raises(ConfigError):
            case_policy(case["config"])
        return
    policy = case_policy(case["config"])
    if decision == "reject":
        with pytest.raises(BadForwarding) as refused:
            policy.attribute(case["request"]["peer"], headers)
        assert refused.value.status == expect["status"]
        return

    answer = policy.attribute(case["request"]["peer"], headers)

    sent = dict(case["request"]["headers"])
    told = answer._asdict()
    told["scheme"] = answer.scheme or "http"
    told["host"] = answer.host or sent.get("Host")
    assert {name: told[name] for name in expect} == expect


class TestTrust:
    @pytest.mark.parametrize(
        "entry",
        [
            "10.0.0.1/8",
            "10.0.0.0/08",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/0.255.255.255",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0-10.0.0.9",
            "2001:db8::1/48",
            "2001:db8::/129",
            "[2001:db8::1]",
            "fe80::1%lo",
            "::ffff:10.0.0.0/104",
            "0.0.0.0/0",
            "::/0",
            "0/0",
            "localhost",
            "proxy.internal",
            "private",
            "unix",
            "167772161",
            "\uff11\uff10.0.0.0/8",
        ],
    )
    def test_only_strict_networks_are_trusted(self, entry):
        """One malformed entry stops the start, and the message shows it."""
        with pytest.raises(ConfigError) as refused:
            ProxyPolicy(["10.0.0.0/8", entry])

        assert repr(entry) in str(refused.value)

    @pytest.mark.parametrize(
        "name",
        [
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Anything",
            "X-Real-IP",
            "CF-Connecting-IP",
            "True-Client-IP",
            "X-Client-IP",
            "Via",
            "Fly-Client-IP",
            "Tailscale-User-Login",
        ],
    )
    def test_any_sign_of_a_proxy_ends_locality(self, name):
        """A request from loopback is local only if no header says that a proxy was there."""
        answer = ask((name, ""), peer="127.0.0.1")

        assert (answer.local, answer.attributed, answer.forwarded) == (False, False, True)
        assert refusal((name, "x"), peer="127.0.0.1", auth_required=False) == 403

    def test_a_clean_request_needs_no_sign_in_to_be_local(self):
        """Without sign-in, loopback without a proxy still gets in."""
        answer = ask(("User-Agent", "x"), peer="127.0.0.1", auth_required=False)

        assert answer.local
        assert not answer.forwarded

    @pytest.mark.parametrize("header", ["X-Real-IP", "CF-Connecting-IP", "True-Client-IP"])
    def test_headers_of_one_vendor_are_never_believed(self, header):
        """Even a trusted proxy's X-Real-IP attributes nothing."""
        answer = ask((header, CLIENT))

        assert (answer.client_ip, answer.attributed) == (PROXY, False)

    def test_a_trusted_unix_peer_without_headers_is_not_local(self):
        """A proxy behind a Unix socket is not the user of this machine."""
        answer = ask(peer=UNIX, trust_unix_socket=True)

        assert (answer.local, answer.attributed) == (False, False)

    def test_a_peers_zone_is_dropped(self):
        """A link-local peer is the same whatever its interface is called."""
        assert ask(peer="fe80::1%eth0").client_ip == "fe80::1"

    def test_the_memory_of_peers_is_bounded(self):
        """Peers without number do not fill the memory."""
        policy = ProxyPolicy()

        for number in range(10_000):
            policy.attribute(str(ipaddress.IPv4Address(number)), [])

        assert len(policy._peers) <= 4096


class TestChain:
    @pytest.mark.parametrize(
        ("chain", "client"),
        [
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            (f"garbage, {CLIENT}, 10.0.0.2", CLIENT),
            (f",,{CLIENT}", CLIENT),
            (f'"unclosed, {CLIENT}', CLIENT),
            (f"\t{CLIENT} \t", CLIENT),
            ("::ffff:203.0.113.9", CLIENT),
            ("::FFFF:CB00:7109", CLIENT),
            ("[2001:DB8:0::9]", "2001:db8::9"),
        ],
    )
    def test_the_walk_ends_at_the_client(self, chain, client):
        """The rightmost untrusted hop is the client, else the leftmost; the rest is not parsed."""
        answer = ask(("X-Forwarded-For", chain))

        assert (answer.client_ip, answer.attributed, answer.local) == (client, True, False)

    @pytest.mark.parametrize(
        "hop",
        [
            "unknown",
            "203.0.113.256",
            "0313.0.113.9",
            "0xcb.0.113.9",
            "203.0.113.9:",
            "203.0.113.9:65536",
            "203.0.113.9:4711:1",
            "203.0.113.9/32",
            "203.0.113.9%eth0",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "[203.0.113.9]",
            "[2001:db8::9",
            "2001:db8::9]",
            "[2001:db8::9]x",
            "2001:db8:::9",
            "203.0.113.9 10.0.0.2",
            "203.0.113.9\x0b",
            '"203.0.113.9"',
            "unix",
            " , ",
        ],
    )
    def test_a_malformed_hop_that_is_reached_is_refused(self, hop):
        """A trusted proxy that sends nonsense is not guessed at."""
        assert refusal(("X-Forwarded-For", f"{CLIENT}, {hop}, 10.0.0.2")) == 400
        assert refusal(("X-Forwarded-For", hop)) == 400

    def test_the_limits_are_exact(self):
        """32 hops and 2,048 bytes pass, one more of either does not."""
        padding = "x" * (2048 - len(f",{CLIENT}"))

        assert ask(("X-Forwarded-For", ",".join([CLIENT] * 32))).client_ip == CLIENT
        assert refusal(("X-Forwarded-For", ",".join([CLIENT] * 33))) == 400
        assert ask(("X-Forwarded-For", f"{padding},{CLIENT}")).client_ip == CLIENT
        assert refusal(("X-Forwarded-For", f"{padding}x,{CLIENT}")) == 400
        assert refusal(("X-Forwarded-For", padding + "x"), ("X-Forwarded-For", CLIENT)) == 400


class TestSchemeAndHost:
    @pytest.mark.parametrize(
        ("value", "scheme"),
        [("HTTPS", "https"), ("https,https", "https"), ("WSS , https", "https"), ("ws", "http")],
    )
    def test_one_scheme_may_be_said_twice(self, value, scheme):
        """Proxies that agree are believed, in any spelling."""
        answer = ask(("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", value))

        assert answer.scheme == scheme

    @pytest.mark.parametrize("value", ["", "https,", "https;http", "https://", "\u017fecure"])
    def test_a_malformed_scheme_is_refused(self, value):
        """Nothing is made of a scheme that is none."""
        assert refusal(("X-Forwarded-Proto", value)) == 400

    def test_the_scheme_counts_without_a_chain(self):
        """A trusted proxy that tells only the scheme is believed, but attributes nothing."""
        answer = ask(("X-Forwarded-Proto", "https"))

        assert (answer.scheme, answer.attributed) == ("https", False)

    @pytest.mark.parametrize("value", ["", "a b", "a,b", "a\x00", "\u00e4.example"])
    def test_a_malformed_forwarded_host_is_refused(self, value):
        """An empty host must not fall back to the Host header."""
        assert refusal(("X-Forwarded-Host", value), use_forwarded_host=True) == 400

    def test_an_unused_forwarded_host_is_not_looked_at(self):
        """What the operator has not asked for cannot fail a request."""
        assert ask(("X-Forwarded-Host", "a b, c")).host is None

    def test_one_host_may_be_said_twice(self):
        """Proxies that agree on the host are believed."""
        answer = ask(("X-Forwarded-Host", "GW.example, gw.example"), use_forwarded_host=True)

        assert answer.host == "gw.example"


class TestForwarded:
    @pytest.mark.parametrize(
        ("value", "client"),
        [
            (f"for={CLIENT}, for=10.0.0.2", CLIENT),
            (f"for=1.2.3.4, for={CLIENT}, for=10.0.0.2", CLIENT),
            ("for=10.0.0.3, for=10.0.0.2", "10.0.0.3"),
            (f'for="{CLIENT}:4711" ; proto=https;', CLIENT),
            ('for="203.0\\.113.9";by="a\\"b,;c"', CLIENT),
            (f'for=6.6.6.6;x=", for={CLIENT};by="_a,b"', CLIENT),
            (f'for="unclosed, for="{CLIENT}"', CLIENT),
            (f"=;=, for={CLIENT}", CLIENT),
            ('for="[::ffff:203.0.113.9]"', CLIENT),
        ],
    )
    def test_the_walk_reads_elements(self, value, client):
        """Elements are found from the right, so that no open quote swallows a proxy's words."""
        assert ask(("Forwarded", value), family="forwarded").client_ip == client

    @pytest.mark.parametrize(
        "value",
        [
            "",
            f"for={CLIENT},",
            f"for={CLIENT}:4711",
            "for=[2001:db8::9]",
            'for="2001:db8::9"',
            'for="[fe80::1%25lo]"',
            f'for="{CLIENT}:_p"',
            f'for="{CLIENT}',
            f'for="{CLIENT}"x',
            f"for = {CLIENT}",
            f"for={CLIENT};proto",
            f"for={CLIENT};For={CLIENT}",
            f"for={CLIENT};proto=ftp",
            f"for={CLIENT};proto=",
            CLIENT,
        ],
    )
    def test_a_malformed_element_is_refused(self, value):
        """The grammar of RFC 7239 holds, and each parameter comes once."""
        assert refusal(("Forwarded", value), family="forwarded") == 400

    def test_scheme_and_host_are_those_of_the_chosen_element(self):
        """What the client or an inner proxy says of the scheme does not count."""
        value = (
            "for=1.2.3.4;proto=http;host=evil.example, "
            f'for={CLIENT};proto=wss;host="gw.example:8443", for=10.0.0.2;proto=http;host=inner'
        )

        answer = ask(("Forwarded", value), family="forwarded", use_forwarded_host=True)

        assert (answer.client_ip, answer.scheme, answer.host) == (
            CLIENT,
            "https",
            "gw.example:8443",
        )

    def test_the_limits_hold(self):
        """33 elements are too many, over several lines too."""
        lines = [("Forwarded", f"for={CLIENT}")] * 33

        assert refusal(*lines, family="forwarded") == 400
        assert ask(*lines[1:], family="forwarded").client_ip == CLIENT


class TestIdentity:
    USER = "X-Auth-User"

    def user(self, *values: str, **options: Any) -> str | None:
        return ask(*((self.USER, value) for value in values), user_header=self.USER, **options).user

    def test_only_a_configured_header_names_a_user(self):
        """Without the setting there is no such header."""
        assert ask((self.USER, "ana")).user is None

    def test_names_may_be_any_printable_text(self):
        """UTF-8 is fine, and blanks around it are not part of the name."""
        assert self.user(" Zo\u00eb Doe ") == "Zo\u00eb Doe"

    def test_a_stranger_names_nobody(self):
        """The header of an untrusted peer is not believed, but shows that it is not local."""
        header = (self.USER, "admin")

        answer = ask(header, peer="127.0.0.1", user_header=self.USER)

        assert (answer.user, answer.local) == (None, False)

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ([], 401),
            ([""], 401),
            (["ana", "bob"], 400),
            (["ana", "ana"], 400),
            (["", ""], 400),
            (["ana\x00"], 400),
            (["ana\u202e"], 400),
            (["ana\u2028"], 400),
            (["a" * 257], 400),
        ],
    )
    def test_an_identity_comes_once_and_is_printable(self, values, status):
        """Missing is 401, twice or unprintable is 400."""
        headers = [(self.USER, value) for value in values]

        assert refusal(*headers, user_header=self.USER) == status

    def test_an_identity_is_utf8(self):
        """Bytes that are not UTF-8 name nobody."""
        policy = ProxyPolicy(TRUSTED, user_header=self.USER)

        with pytest.raises(BadForwarding) as refused:
            policy.attribute(PROXY, [(self.USER.encode(), b"ana\xff")])

        assert refused.value.status == 400

    def test_loopback_names_users_only_if_asked_to(self):
        """Any program on this machine could send the header: it is an explicit choice."""
        policy = ProxyPolicy(["127.0.0.1/32"], user_header=self.USER, allow_loopback_identity=True)

        answer = policy.attribute("::ffff:127.0.0.1", raw((self.USER, "ana")))

        assert (answer.user, answer.local) == ("ana", False)

    @pytest.mark.parametrize("name", ["", "X User", "X-User:", "X-\u00dcser"])
    def test_what_is_no_header_name_stops_the_start(self, name):
        """The message names the setting."""
        with pytest.raises(ConfigError, match="user_header"):
            ProxyPolicy(TRUSTED, user_header=name)


class TestKey:
    @pytest.mark.parametrize(
        ("spelling", "key"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("::FFFF:cb00:7109", "203.0.113.9"),
            ("0:0:0:0:0:ffff:203.0.113.9", "203.0.113.9"),
            ("2001:db8::1", "2001:db8::/64"),
            ("2001:DB8:0:0:ffff::2", "2001:db8::/64"),
            ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("unix", "unix"),
        ],
    )
    def test_one_client_has_one_key(self, spelling, key):
        """Spellings of one address, and addresses of one /64, count together."""
        assert limiter_key(spelling) == key
        assert ask(peer=spelling).key == key

    def test_a_forwarded_client_has_the_key_of_a_direct_one(self):
        """A client cannot get a second count by taking another way."""
        forwarded = ask(("X-Forwarded-For", "2001:db8::1"))

        assert forwarded.key == ask(peer="2001:db8::2").key

    def test_a_header_gets_a_stranger_no_second_count(self):
        """A remote peer counts under its own address whatever headers it makes up."""
        assert ask(("X-Forwarded-For", "1.1.1.1"), peer=CLIENT).key == CLIENT

    @pytest.mark.parametrize("peer", ["127.0.0.1", "unix", PROXY])
    def test_those_who_share_a_proxy_count_apart_from_it(self, peer):
        """Strangers behind a local proxy cannot lock out a user of the machine."""
        shared = ask(("Via", "x"), peer=peer)

        assert shared.key != limiter_key(peer)

    @pytest.mark.parametrize(
        ("address", "loopback"),
        [
            ("127.0.0.1", True),
            ("127.255.0.1", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            ("0.0.0.0", False),
            ("::", False),
            ("10.0.0.1", False),
            ("localhost", False),
            ("unix", False),
            ("", False),
        ],
    )
    def test_loopback_is_an_address(self, address, loopback):
        """Names and wildcard addresses are not loopback."""
        assert is_loopback(address) is loopback

    @given(st.ip_addresses())
    @settings(max_examples=300, deadline=None)
    def test_canonical_addresses_stay_as_they_are(self, address):
        """What is attributed once is attributed the same again."""
        policy = ProxyPolicy()
        once = policy.attribute(str(address), [])

        assert policy.attribute(once.client_ip, []) == once
        assert policy.attribute(address.exploded, []) == once

    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
    @settings(max_examples=200, deadline=None)
    def test_neighbours_in_a_network_share_its_key(self, address, host):
        """Two IPv6 addresses have one key exactly if they are in one /64."""
        neighbour = ipaddress.IPv6Address((int(address) >> 64 << 64) | host)
        stranger = ipaddress.IPv6Address(int(address) ^ (1 << 64))
        assume(not any(one.ipv4_mapped for one in (address, neighbour, stranger)))

        assert limiter_key(str(address)) == limiter_key(str(neighbour))
        assert limiter_key(str(address)) != limiter_key(str(stranger))


def reference(chain: str) -> str | None:
    """Walk a chain the simple way; None stands for a refusal."""
    tokens = [token.strip(" \t") for token in chain.split(",")]
    if len(tokens) > 32 or len(chain) > 2048:
        return None
    last = None
    while tokens:
        token = tokens.pop()
        if token.startswith("[") and "]" in token:
            text, _, rest = token[1:].partition("]")
            port = rest[1:] if rest.startswith(":") else None if not rest else "x"
            version = 6
        elif token.count(":") == 1:
            text, _, port = token.partition(":")
            version = 4
        else:
            text, port, version = token, None, None
        if "%" in text or (port is not None and not (port.isdigit() and int(port) < 65536)):
            return None
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return None
        if version not in (None, address.version):
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        last = str(address)
        if not last.startswith("10."):
            break
    return last


HOPS = [
    *("10.0.0.2", "10.255.0.1", "::ffff:10.0.0.3", "[::ffff:10.1.1.1]:9", "10.0.0.2:80"),
    *("10.0.0.2", "10.0.0.4", "203.0.113.9", "127.0.0.1", "::1", "2001:db8::9", "[::1]"),
    *("[2001:db8::9]:4711", "203.0.113.9:1", "203.0.113.9:65536", "203.0.113", "unknown", ""),
    *("[10.0.0.2]", "[::1", "fe80::1%lo", "10.0.0.2;", "_x", "0", "[::1]9", "10.0.0.2 10.0.0.3"),
]


def told(policy: ProxyPolicy, headers: list[tuple[bytes, bytes]]) -> str | None:
    try:
        answer = policy.attribute(PROXY, headers)
    except BadForwarding:
        return None
    assert not answer.local
    return answer.client_ip


def test_random_chains_agree_with_the_reference():
    """10,000 chains over one or two lines are read as a plain right-to-left walk reads them."""
    policy = ProxyPolicy(TRUSTED)
    dice = random.Random(7239)
    clients = set()

    for _ in range(10_000):
        hops = dice.choices(HOPS, weights=[4] * 7 + [1] * (len(HOPS) - 7), k=dice.randint(1, 36))
        lines = [", ".join(hops[:9]), ",".join(hops[9:])] if len(hops) > 9 else [",".join(hops)]
        client = told(policy, [(b"X-Forwarded-For", line.encode()) for line in lines])
        assert client == reference(",".join(lines)), lines
        clients.add(client)

    assert {None, "10.0.0.2", CLIENT, "2001:db8::9", "127.0.0.1"} <= clients


@given(st.lists(st.binary(max_size=60), max_size=3), st.sampled_from(["x-forwarded", "forwarded"]))
@settings(max_examples=400, deadline=None)
def test_no_bytes_break_the_parser(values, family):
    """Any bytes are either attributed or refused with 400, and never local."""
    policy = ProxyPolicy(TRUSTED, family=family, use_forwarded_host=True)
    names = (b"forwarded", b"x-forwarded-for", b"x-forwarded-proto")
    headers = [(name, value) for value in values for name in names]

    status = 200
    try:
        assert not policy.attribute(PROXY, headers).local
    except BadForwarding as refused:
        status = refused.status

    assert status in (200, 400)


@given(st.text(' ,;="\\[]:.forx019\t', max_size=60))
@settings(max_examples=800, deadline=None)
def test_what_a_client_sends_first_changes_nothing(junk):
    """Whatever stands before a proxy's element, its element decides."""
    policies = (ProxyPolicy(TRUSTED), ProxyPolicy(TRUSTED, family="forwarded"))

    for policy, name, element in zip(
        policies,
        (b"x-forwarded-for", b"forwarded"),
        (CLIENT, f'for="{CLIENT}";by="a,\\"b"'),
        strict=True,
    ):
        chain = f"{junk}, {element}"
        if chain.count(",") < 32:
            assert told(policy, [(name, chain.encode())]) == CLIENT
