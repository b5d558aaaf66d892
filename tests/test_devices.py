"""The records of devices: what is asked, approved, and ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from peers import person

from trunkline.auth import OWNER
from trunkline.authdb import AuthDatabase
from trunkline.clients import Identity
from trunkline.credentials import Credentials
from trunkline.devices import LIFETIME, Approval, Devices, own_user, to_public
from trunkline.errors import ErrorCode, GatewayError

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class Desk:
    """Devices in a database, and a clock that a test turns."""

    def __init__(self, path=None):
        self.database = AuthDatabase(path)
        self.credentials = Credentials(self.database)
        self.devices = Devices(self.database, self.credentials)

    def ask(self, device_id="laptop", key=KEY, role=None, address="192.0.2.1", total=64, mine=8):
        return self.devices.request(
            device_id=device_id,
            public_key=key,
            name="Ada's laptop",
            role=role,
            address=address,
            address_key=address,
            total=total,
            per_address=mine,
        )[0]

    def pair(self, device_id="laptop", key=KEY, by=OWNER, **approval):
        request = self.ask(device_id, key)
        return self.devices.approve(request.request_id, Approval(**approval), by)


@pytest.fixture
def desk():
    made = Desk()
    yield made
    made.database.close()


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1_000_000

    monkeypatch.setattr("trunkline.devices.now_ms", lambda: Clock.now)
    return Clock


def refusal(action):
    with pytest.raises(GatewayError) as caught:
        action()
    return caught.value.code


# Asking


def test_who_asks_again_keeps_the_request(desk, clock):
    """Its id and its end; so nobody waits for ever."""
    first = desk.ask()
    clock.now += 5_000

    assert desk.ask() == first
    assert desk.devices.pending() == [first]


def test_a_request_ends_after_ten_minutes(desk, clock):
    """It can neither be found nor approved any more."""
    request = desk.ask()
    clock.now += LIFETIME

    assert desk.devices.pending() == []
    with pytest.raises(LookupError):
        desk.devices.approve(request.request_id, Approval(), OWNER)


def test_sixty_four_may_wait_and_no_more(desk):
    """Whoever waits already may still ask again."""
    for number in range(64):
        desk.ask(f"d{number}", address=f"192.0.2.{number}")

    assert refusal(lambda: desk.ask("d64", address="192.0.2.64")) == ErrorCode.OVERLOADED
    assert desk.ask("d0", address="192.0.2.99").device_id == "d0"
    assert len(desk.devices.pending()) == 64


def test_one_address_cannot_take_all_places(desk):
    """Another one finds room."""
    for number in range(8):
        desk.ask(f"d{number}")

    assert refusal(lambda: desk.ask("d8")) == ErrorCode.OVERLOADED
    assert desk.ask("d8", address="192.0.2.2").device_id == "d8"


def test_places_are_free_again_when_requests_have_ended(desk, clock):
    """Without anybody looking after it."""
    for number in range(8):
        desk.ask(f"d{number}")
    clock.now += LIFETIME

    assert desk.ask("d8").device_id == "d8"


# Deciding


def test_an_approved_device_is_known_by_its_name_and_key(desk):
    """Neither alone is worth anything."""
    device = desk.pair(roles=frozenset({"node"}), scopes=frozenset({"approve"}))

    assert desk.devices.known("laptop", KEY) == device
    assert desk.devices.known("laptop", OTHER) is None
    assert desk.devices.known("other", KEY) is None
    assert device.identity.roles == {"node"}
    assert device.identity.scopes == {"approve"}
    assert desk.devices.pending() == []


def test_a_device_is_a_user_of_its_own_unless_somebody_is_named(desk):
    """The key is part of the name, so another key never becomes the same user."""
    assert desk.pair().user_id == own_user("laptop", KEY)
    assert own_user("laptop", KEY) != own_user("laptop", OTHER)
    assert len(own_user("x" * 128, KEY)) <= 128
    assert desk.pair("phone", OTHER, user_id="ada").user_id == "ada"


def test_another_key_under_the_name_inherits_nothing(desk):
    """It has to be approved, gets what that approval gives, and ends what was before."""
    old = desk.pair(roles=frozenset({"control"}), scopes=frozenset({"admin"}))
    token = desk.devices.issue(old)

    request = desk.ask(key=OTHER)
    assert request.replaces
    assert desk.devices.known("laptop", OTHER) is None
    assert desk.devices.known("laptop", KEY) is not None
    new = desk.devices.approve(request.request_id, Approval(), OWNER)

    assert (new.roles, new.scopes) == ({"webchat"}, set())
    assert new.revision != old.revision
    assert desk.devices.known("laptop", KEY) is None
    assert desk.credentials.find(token) is None


@pytest.mark.parametrize(
    "approval",
    [
        {"roles": frozenset()},
        {"roles": frozenset({"king"})},
        {"scopes": frozenset({"everything"})},
        {"session_patterns": ("a b",)},
        {"user_id": "a b"},
        {"expires_at": 1},
    ],
    ids=str,
)
def test_what_cannot_be_granted_is_a_clear_error(desk, approval):
    """The request stays."""
    request = desk.ask()

    with pytest.raises(ValueError, match=r"."):
        desk.devices.approve(request.request_id, Approval(**approval), OWNER)

    assert desk.devices.pending() == [request]


def test_the_role_that_the_device_asks_for_must_be_granted(desk):
    """Or it would be let in and refused in one."""
    request = desk.ask(role="node")

    with pytest.raises(ValueError, match="asks for the role node"):
        desk.devices.approve(request.request_id, Approval(), OWNER)


def approver(*scopes, **more):
    return Identity(
        user_id="ada",
        roles=frozenset({"control", "webchat"}),
        scopes=frozenset({"credential:admin", *scopes}),
        **more,
    )


@pytest.mark.parametrize(
    ("by", "approval"),
    [
        (approver(), {"roles": frozenset({"node"})}),
        (approver(), {"scopes": frozenset({"approve"})}),
        (approver(), {"scopes": frozenset({"admin"})}),
        (approver(), {"user_id": "grace"}),
        (approver(session_patterns=("acme-*",)), {}),
        (approver(session_patterns=("acme-*",)), {"session_patterns": ("*-acme",)}),
        (approver(agent_patterns=("a", "b")), {"agent_patterns": ("c",)}),
        (approver(expires_at=10**15), {"expires_at": 10**15 + 1}),
        (person("ada", "control"), {"roles": frozenset({"control"})}),
        (person("ada", "webchat", "credential:admin"), {}),
    ],
    ids=[
        "a role",
        "a scope",
        "every scope",
        "another user",
        "every session",
        "other sessions",
        "other agents",
        "a later end",
        "without the scope",
        "without the role",
    ],
)
def test_nobody_grants_more_than_they_have(desk, by, approval):
    """Roles, scopes, another's name, patterns, time; and it takes the right to grant at all."""
    request = desk.ask()

    refused = refusal(lambda: desk.devices.approve(request.request_id, Approval(**approval), by))

    assert refused == ErrorCode.FORBIDDEN
    assert desk.devices.pending() == [request]
    assert desk.devices.list() == []


def test_a_pairing_ends_with_the_rights_of_who_approved_it(desk, clock):
    """Unless it was to end earlier."""
    device = desk.pair(by=approver(expires_at=clock.now + 1000))
    assert device.expires_at == clock.now + 1000

    clock.now += 1000

    assert desk.devices.known("laptop", KEY) is None


def test_a_rejected_device_may_ask_again(desk):
    """With another request."""
    first = desk.ask()

    desk.devices.reject(first.request_id)

    assert desk.devices.pending() == []
    assert desk.ask().request_id != first.request_id


def test_a_request_is_found_by_its_device_only_where_no_other_calls_itself_so(desk):
    """Somebody must compare the fingerprints then."""
    first = desk.ask()
    assert desk.devices.find_request("laptop") == first

    desk.ask(key=OTHER)

    with pytest.raises(LookupError, match="fingerprints"):
        desk.devices.find_request("laptop")
    assert desk.devices.find_request(first.request_id) == first


# The token


def test_a_token_is_made_once(desk):
    """It is bound to the device and grants what the device has."""
    device = desk.pair(user_id="ada")

    token = desk.devices.issue(device)
    again = desk.devices.issue(desk.devices.get("laptop"))

    stored = desk.credentials.find(token)
    assert (stored.kind, stored.device_id, stored.user_id) == ("device", "laptop", "ada")
    assert again is None


def test_a_token_is_not_made_for_a_record_that_has_changed_meanwhile(desk):
    """The command line may be quicker."""
    device = desk.pair()
    desk.devices.rotate("laptop", OWNER)

    assert desk.devices.issue(device) is None
    assert not any(stored.valid(0) for stored in desk.credentials.list())


def test_rotating_ends_the_token_and_keeps_the_key(desk):
    """The device gets another one when it proves its key again."""
    first = desk.pair()
    old = desk.devices.issue(first)

    rotated = desk.devices.rotate("laptop", OWNER)
    new = desk.devices.issue(rotated)

    assert rotated.revision != first.revision
    assert desk.devices.known("laptop", KEY) is not None
    assert desk.credentials.find(old) is None
    assert desk.credentials.find(new) is not None


def test_revoking_ends_key_and_token(desk):
    """Who asks again waits for approval like a stranger."""
    token = desk.devices.issue(desk.pair())

    desk.devices.revoke("laptop", OWNER)

    assert desk.devices.known("laptop", KEY) is None
    assert desk.credentials.find(token) is None
    assert not desk.ask().replaces


def test_what_is_not_there_cannot_be_changed(desk):
    """A plain `LookupError`."""
    for action in (desk.devices.rotate, desk.devices.revoke):
        with pytest.raises(LookupError):
            action("nobody", OWNER)
    with pytest.raises(LookupError):
        desk.devices.reject("nobody")


def test_nobody_ends_or_replaces_a_device_that_has_more_than_they(desk):
    """One tenant's administrator cannot send another's devices away."""
    device = desk.pair(session_patterns=("acme-*",))
    by = approver(session_patterns=("other-*",), agent_patterns=("other-*",))
    request = desk.ask(key=OTHER)
    replacing = Approval(session_patterns=("other-*",), agent_patterns=("other-*",))

    assert refusal(lambda: desk.devices.revoke("laptop", by)) == ErrorCode.FORBIDDEN
    assert refusal(lambda: desk.devices.rotate("laptop", by)) == ErrorCode.FORBIDDEN
    assert (
        refusal(lambda: desk.devices.approve(request.request_id, replacing, by))
        == ErrorCode.FORBIDDEN
    )
    assert desk.devices.get("laptop") == device


def test_the_public_form_holds_no_key(desk):
    """But the fingerprint; and it is plain JSON."""
    request = desk.ask(key=OTHER)
    data = [to_public(request), to_public(desk.pair())]

    assert data[0]["fingerprint"]
    assert data[1]["userId"]
    assert not {"publicKey", "revision"} & (data[0].keys() | data[1].keys())
    assert json.loads(json.dumps(data))[1]["sessionPatterns"] == ["*"]


# Kills

APPROVE = """
import sys
from trunkline.auth import OWNER
from trunkline.authdb import AuthDatabase
from trunkline.credentials import Credentials
from trunkline.devices import Approval, Devices
database = AuthDatabase(Path(sys.argv[1]))
devices = Devices(database, Credentials(database))
while True:
    for name in "01234567":
        print(name, flush=True)
        request, _ = devices.request(
            device_id=name, public_key=bytes(range(32)), name=None, role=None,
            address="", address_key="", total=64, per_address=64,
        )
        devices.issue(devices.approve(request.request_id, Approval(), OWNER))
    for name in "01234567":
        devices.revoke(name, OWNER)
"""


@pytest.mark.parametrize("round_", range(20))
def test_a_kill_in_the_middle_leaves_old_or_new(tmp_path, round_):
    """Each device is pending or paired, as a whole, and what is paired can be ended."""
    path = tmp_path / "auth.db"
    process = subprocess.Popen(
        [sys.executable, "-c", APPROVE, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(1 + round_):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()

    desk = Desk(path)
    pending = {request.device_id for request in desk.devices.pending()}
    paired = {device.device_id: device for device in desk.devices.list()}
    assert not pending & paired.keys()
    assert len(pending) <= 1
    for device in paired.values():
        assert device.public_key == KEY
        assert device.roles == {"webchat"}
        desk.devices.revoke(device.device_id, OWNER)
    assert desk.devices.list() == []
    desk.database.close()


# All together


class Pairings(RuleBasedStateMachine):
    """Asking and deciding in any order, against what a person would expect."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.now = 1_000_000
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("trunkline.devices.now_ms", lambda: self.now)
        self.waiting: dict[tuple[str, bytes], int] = {}
        self.paired: dict[str, tuple[bytes, frozenset[str]]] = {}
        self.tokens: dict[str, str] = {}

    def teardown(self) -> None:
        self.patch.undo()
        self.desk.database.close()

    def live(self):
        return {who for who, ends in self.waiting.items() if ends > self.now}

    @rule(target=requests, name=st.sampled_from("ab"), key=st.sampled_from([KEY, OTHER]))
    def ask(self, name, key):
        request = self.desk.ask(name, key)
        if (name, key) not in self.live():
            self.waiting[name, key] = self.now + LIFETIME
        assert request.expires_at == self.waiting[name, key]
        return request

    @rule(request=requests, roles=st.sampled_from([{"webchat"}, {"node", "observer"}]))
    def approve(self, request, roles):
        who = (request.device_id, request.public_key)
        current = {r.request_id for r in self.desk.devices.pending()}
        approval = Approval(roles=frozenset(roles))
        if request.request_id in current:
            assert who in self.live()
            self.desk.devices.approve(request.request_id, approval, OWNER)
            del self.waiting[who]
            self.paired[who[0]] = (who[1], frozenset(roles))
            self.tokens.pop(who[0], None)
        else:
            with pytest.raises(LookupError):
                self.desk.devices.approve(request.request_id, approval, OWNER)

    @rule(request=requests)
    def reject(self, request):
        if request.request_id in {r.request_id for r in self.desk.devices.pending()}:
            self.desk.devices.reject(request.request_id)
            del self.waiting[request.device_id, request.public_key]

    @rule(name=st.sampled_from("ab"))
    def issue(self, name):
        device = self.desk.devices.get(name)
        if device is not None:
            token = self.desk.devices.issue(device)
            assert (token is None) == (name in self.tokens)
            if token is not None:
                self.tokens[name] = token

    @rule(name=st.sampled_from("ab"))
    def rotate(self, name):
        if name in self.paired:
            self.desk.devices.rotate(name, OWNER)
            self.tokens.pop(name, None)

    @rule(name=st.sampled_from("ab"))
    def revoke(self, name):
        if name in self.paired:
            self.desk.devices.revoke(name, OWNER)
            del self.paired[name]
            self.tokens.pop(name, None)

    @rule(minutes=st.integers(1, 11))
    def wait(self, minutes):
        self.now += minutes * 60_000

    @invariant()
    def what_is_known_is_what_was_approved(self):
        for name in "ab":
            for key in (KEY, OTHER):
                device = self.desk.devices.known(name, key)
                if self.paired.get(name, (None,))[0] == key:
                    assert device is not None
                    assert device.roles == self.paired[name][1]
                else:
                    assert device is None

    @invariant()
    def who_waits_is_who_asked(self):
        pending = {(r.device_id, r.public_key) for r in self.desk.devices.pending()}
        assert pending == self.live()

    @invariant()
    def only_the_last_token_of_a_paired_device_is_good(self):
        living = {stored.id for stored in self.desk.credentials.list() if stored.valid(self.now)}
        found = {self.desk.credentials.find(token).id for token in self.tokens.values()}
        assert living == found


Pairings.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPairings = Pairings.TestCase
