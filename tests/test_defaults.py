"""What a fresh installation does without any configuration: nothing that one would regret."""

import contextlib
import os
import stat
from pathlib import Path

import pytest
from processes import Running, clean_environ, finished, invoke
from rawsocket import RawSocket, request, upgrade

LISTENING = "0A"
"""A socket's state in /proc/net/tcp."""


@pytest.fixture
def environ(tmp_path):
    return clean_environ(tmp_path)


@pytest.fixture
def served(environ):
    """A gateway of the first start, but for its port."""
    with contextlib.closing(Running(environ, "serve", "--port", "0")) as gateway:
        gateway.url = gateway.wait_for(r"listening on (http://\S+)")[1]
        gateway.port = int(gateway.url.rpartition(":")[2])
        yield gateway


def listens_on(pid):
    """The addresses on which a process listens, as the kernel has them."""
    folder = Path(f"/proc/{pid}/fd")
    inodes = {os.readlink(fd)[8:-1] for fd in folder.iterdir() if "socket:" in os.readlink(fd)}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                yield fields[1].partition(":")[0]


def test_listens_on_this_machine_only(served):
    """One socket, on 127.0.0.1."""
    assert list(listens_on(served.process.pid)) == ["0100007F"]


def test_makes_a_token_for_its_owner_alone(served, tmp_path):
    """256 random bits in a file that nobody else may read, in such a folder."""
    folder = tmp_path / ".local" / "state" / "trunkline"
    token = folder / "token"

    assert len(token.read_text().strip()) == 43  # of six bits each
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_wants_a_sign_in(served, environ):
    """Without a credential nobody is let in."""
    elsewhere = environ | {"TRUNKLINE_DATA_DIR": "/nowhere"}

    assert invoke(elsewhere, "status", "--url", served.url).exit_code == 4
    assert invoke(environ, "status", "--url", served.url).exit_code == 0


async def test_shows_no_metrics_to_strangers(served):
    """Whatever is there, it is not for everybody."""
    async with await RawSocket.connect(served.port) as peer:
        peer.send(request("/metrics", host=f"127.0.0.1:{served.port}"))
        answer = await peer.answer()

    assert answer.status in (401, 403, 404)


async def test_compresses_nothing(served):
    """Even for clients that offer it."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with await RawSocket.connect(served.port) as peer:
        head = upgrade("/ws", offer).replace(b"127.0.0.1", f"127.0.0.1:{served.port}".encode())
        peer.send(head)
        answer = await peer.head()

    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.parametrize(
    "options", [("--bind", "all"), ("--host", "0.0.0.0"), ("--host", "::")], ids=" ".join
)
def test_does_not_start_for_everybody_without_sign_in(environ, options):
    """Neither by the one option nor by the other."""
    ended = finished(environ, "serve", "--port", "0", "--auth", "none", *options)

    assert ended.returncode == 2
    assert "without sign-in" in ended.stderr
