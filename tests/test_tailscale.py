"""Sharing over a tailnet, against a program that behaves like `tailscale`."""

import json
import sys

import pytest

from trunkline import tailscale
from trunkline.config import DEFAULT_WS_CONFIG, TailscaleConfig
from trunkline.errors import ConfigError
from trunkline.tailscale import TailscaleError, prepare_share

NAME = "box.tail1234.ts.net"

FAKE = """\
#!{python}
import json, pathlib, sys, time
folder = pathlib.Path(__file__).parent
state = json.loads((folder / "state.json").read_text())
args = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(args) + "\\n")
if "hang" in state:
    time.sleep(60)
if args[0] == "status":
    print(json.dumps(state["status"]))
elif args[:2] == ["serve", "status"]:
    print(json.dumps(state["serve"]))
elif "fail" in state:
    sys.exit(state["fail"])
elif args[-1] == "off":
    state["serve"] = {{}}
elif "ignore" not in state:
    place = "{name}:443"
    web = {{place: {{"Handlers": {{"/": {{"Proxy": args[-1]}}}}}}}}
    state["serve"] = {{"TCP": {{"443": {{"HTTPS": True}}}}, "Web": web}}
    if args[0] == "funnel":
        state["serve"]["AllowFunnel"] = {{place: True}}
(folder / "state.json").write_text(json.dumps(state))
"""


class Node:
    """A fake program with its state and the calls that it got."""

    def __init__(self, folder):
        self._folder = folder
        self.program = folder / "tailscale"
        self.program.write_text(FAKE.format(python=sys.executable, name=NAME))
        self.program.chmod(0o755)
        self.set(
            status={"BackendState": "Running", "Self": {"DNSName": f"{NAME}."}},
            serve={},
        )

    def set(self, **state):
        path = self._folder / "state.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | state))

    @property
    def served(self):
        return json.loads((self._folder / "state.json").read_text())["serve"]

    @property
    def calls(self):
        return (self._folder / "calls").read_text().splitlines()

    def config(self, **changes):
        return TailscaleConfig(command=str(self.program), **changes)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.mark.parametrize("mode", ["serve", "funnel"])
async def test_the_port_is_shared_and_taken_back(node, mode):
    """The gateway's port is shared under the node's name while it runs, and not after."""
    share = await prepare_share(node.config(mode=mode))

    await share.start(18789)
    during = node.served
    await share.stop()

    assert share.url == f"https://{NAME}"
    assert during["Web"][f"{NAME}:443"]["Handlers"]["/"]["Proxy"] == "http://127.0.0.1:18789"
    assert ("AllowFunnel" in during) == (mode == "funnel")
    assert node.served == {}
    assert f"{mode} --bg --yes --https=443 http://127.0.0.1:18789" in node.calls


async def test_the_name_and_the_proxy_become_part_of_the_configuration(node):
    """Requests under the node's name pass, and tailscale's headers are believed."""
    share = await prepare_share(node.config())

    config = share.apply(share.apply(DEFAULT_WS_CONFIG))

    assert config.origins.allowed_hosts == (NAME,)
    assert config.proxies.trusted == ("127.0.0.1/32",)


async def test_stopping_twice_is_harmless(node):
    """The second stop runs nothing."""
    share = await prepare_share(node.config())
    await share.start(1)
    await share.stop()
    calls = node.calls

    await share.stop()

    assert node.calls == calls


async def test_the_sharing_stays_where_it_is_asked_to(node):
    """Without reset_on_exit nothing is taken back."""
    share = await prepare_share(node.config(reset_on_exit=False))
    await share.start(1)

    await share.stop()

    assert node.served != {}


async def test_what_others_share_is_not_replaced(node):
    """A port that leads elsewhere is refused, and still leads there afterwards."""
    other = {"Web": {f"{NAME}:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:9"}}}}}
    node.set(serve=other)
    share = await prepare_share(node.config())

    with pytest.raises(TailscaleError, match=r"already leads to http://127\.0\.0\.1:9"):
        await share.start(18789)
    await share.stop()

    assert node.served == other


async def test_a_port_shared_more_widely_than_asked_is_refused(node):
    """What the internet can reach is not mistaken for sharing inside the tailnet."""
    funnel = await prepare_share(node.config(mode="funnel"))
    await funnel.start(18789)
    share = await prepare_share(node.config(mode="serve"))

    with pytest.raises(TailscaleError, match="another mode"):
        await share.start(18789)


async def test_a_program_that_does_nothing_is_noticed(node):
    """The sharing is checked, not believed."""
    node.set(ignore=True)
    share = await prepare_share(node.config())

    with pytest.raises(TailscaleError, match="did not share"):
        await share.start(18789)


async def test_a_failing_program_is_quoted(node):
    """The error holds what the program said."""
    node.set(fail="Funnel is not enabled on your tailnet")
    share = await prepare_share(node.config(mode="funnel"))

    with pytest.raises(TailscaleError, match="Funnel is not enabled"):
        await share.start(18789)


async def test_a_failure_to_take_back_does_not_stop_the_exit(node):
    """The gateway ends even if the sharing cannot be taken back."""
    share = await prepare_share(node.config())
    await share.start(18789)
    node.set(fail="no")

    await share.stop()

    assert node.served != {}


async def test_a_missing_program_is_a_configuration_error(tmp_path):
    """The sentence names the program and the setting."""
    config = TailscaleConfig(command=str(tmp_path / "absent"))

    with pytest.raises(ConfigError, match=r"cannot run the program .*absent.*tailscale\.command"):
        await prepare_share(config)


@pytest.mark.parametrize(
    "status",
    [{"BackendState": "Stopped", "Self": {"DNSName": f"{NAME}."}}, {"BackendState": "Running"}, []],
)
async def test_a_node_that_is_not_up_is_a_configuration_error(node, status):
    """Without a tailnet there is nothing to share into."""
    node.set(status=status)

    with pytest.raises(ConfigError, match=r"bind = .tailscale"):
        await prepare_share(node.config())


async def test_a_program_that_hangs_is_given_up(node, monkeypatch):
    """No command of the program holds the gateway up for ever."""
    monkeypatch.setattr(tailscale, "COMMAND_TIMEOUT", 0.3)
    node.set(hang=True)

    with pytest.raises(ConfigError, match="did not end"):
        await prepare_share(node.config())
