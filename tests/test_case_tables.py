"""
The tables of origins and proxies, over real sockets (security.md T-S1, T-S2).

The gateways and their clients live in a network namespace, where a client may
come from any address. `namespaced` asks; here it is judged.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from namespaced import MODES, rows

COUNTED_ALONE = {"P037"}
"""Strangers that are not believed, and share their address with nobody that could be told apart."""

NAMESPACE = ("unshare", "--net", "--map-root-user")


def have_namespaces():
    """Whether this user may have a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not have_namespaces(), reason="needs network namespaces")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What real gateways answered to each row."""
    folder = tmp_path_factory.mktemp("namespace")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "namespaced", str(folder)],
        cwd=Path(__file__).parent,
        env={k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", rows("origin"), ids=lambda case: case["id"])
def test_a_gateway_answers_as_the_table_of_origins_says(answers, case, mode):
    """The upgrade and a POST alike, however clients sign in."""
    expect = case["expect"]
    wanted = ["config_error"] * 2
    if expect["decision"] != "config_error":
        # A POST that may pass is one that the path does not take.
        wanted = [expect["status"], 405 if expect["status"] == 101 else expect["status"]]

    assert answers[f"{case['id']} {mode}"] == wanted


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", rows("proxy"), ids=lambda case: case["id"])
def test_a_gateway_takes_clients_for_whom_the_table_of_proxies_says(answers, case):
    """Address, locality, scheme and host, as the gateway itself goes by them."""
    expect = dict(case["expect"])
    if case["id"] in COUNTED_ALONE:
        del expect["attributed"]

    assert {name: answers[case["id"]].get(name) for name in expect} == expect
