"""Secrets that were planted everywhere are found nowhere; strangers' text forges no line."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from processes import COMMAND, PATIENCE, clean_environ, invoke
from rawsocket import RawSocket, request, upgrade
from websockets.asyncio.client import connect

CONFIG_TOKEN = "canary01-config-token"
ENV_PASSWORD = "canary02-environment-password"
CANARIES = {
    "bearer": "canary03bearer",
    "query": "canary04query",
    "auth token": "canary05token",
    "auth password": "canary06password",
    "auth code": "canary07code",
    "Host": "canary08host",
    "Origin": "canary09origin",
    "Cookie": "canary10cookie",
    "X-Forwarded-For": "canary11forwarded",
    "deviceName": "canary12device",
    "chat": "canary13chat",
    "Sec-WebSocket-Protocol": "canary14protocol",
    "path": "canary15path",
    "HTTP body": "canary17body",
    "key": "canary18key",
    "signature": "canary19signature",
}
"""What strangers send, by where they send it."""

SPOKEN = "canary16-said-in-a-session"
"""What a member says: it may stand in the session's log, and nowhere else."""


class Served:
    """A gateway process whose output goes to files."""

    def __init__(self, folder, command):
        self.folder = folder
        self.data = folder / ".local" / "state" / "trunkline"
        self._files = [(folder / name).open("wb") for name in ("stdout", "stderr")]
        environ = clean_environ(folder) | {"TRUNKLINE_AUTH__PASSWORD": ENV_PASSWORD}
        self.process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=self._files[0],
            stderr=self._files[1],
        )  # fmt: skip
        self.port = 0

    @property
    def printed(self):
        return (self.folder / "stdout").read_text() + (self.folder / "stderr").read_text()

    @property
    def command_line(self):
        return Path(f"/proc/{self.process.pid}/cmdline").read_text()

    async def listening(self):
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(r"listening on http://127.0.0.1:(\d+)", self.printed)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        self.port = int(found[1])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        for file in self._files:
            file.close()


def configured(folder):
    file = folder / "gateway.toml"
    file.write_text(
        f'port = 0\n[auth]\ntoken = "{CONFIG_TOKEN}"\nmode = "token"\nmax_failures = 1000\n'
        '[log]\nlevel = "debug"\nformat = "json"\n'
    )
    return file


@asynccontextmanager
async def gateway(folder, *command):
    served = Served(folder, command or [*COMMAND, "serve", "--config", str(configured(folder))])
    try:
        await served.listening()
        yield served
    finally:
        served.close()


async def http(served, *args, **more):
    """One plain request; returns all that came back."""
    peer = await RawSocket.connect(served.port)
    more.setdefault("host", f"127.0.0.1:{served.port}")
    peer.send(request(*args, **more))
    answer = await peer.rest()
    await peer.close()
    return answer


async def upgraded(served, target="/ws", *headers):
    """One upgrade that need not succeed; returns all that came back within a moment."""
    peer = await RawSocket.connect(served.port)
    head = upgrade(target, *headers)
    if not any(header.startswith("Host:") for header in headers):
        head = head.replace(b"Host: 127.0.0.1\r\n", f"Host: 127.0.0.1:{served.port}\r\n".encode())
    else:
        head = head.replace(b"Host: 127.0.0.1\r\n", b"")
    peer.send(head)
    answer = await peer.head()
    body = b"" if answer.status == 101 else await peer.rest()
    await peer.close()
    return str(answer).encode() + body


async def plant_in_heads(served):
    c = CANARIES
    headers = (
        f"Authorization: Bearer {c['bearer']}",
        f"Cookie: session={c['Cookie']}",
        f"X-Forwarded-For: {c['X-Forwarded-For']}",
        f"Origin: https://{c['Origin']}.example",
        f"Sec-WebSocket-Protocol: {c['Sec-WebSocket-Protocol']}",
    )
    answers = []
    for target in ("/ws", f"/ws?token={c['query']}", f"/{c['path']}", "/metrics", "/healthz"):
        answers += [
            await http(served, target),
            await http(served, target, *headers),
            await http(served, target, host=f"{c['Host']}.example"),
            await upgraded(served, target),
            await upgraded(served, target, f"Host: {c['Host']}"),
        ]
        for header in headers:
            answers += [await http(served, target, header), await upgraded(served, target, header)]
    return answers


async def plant_in_frames(served, bystander):
    """Send secrets before sign-in; returns all that came back."""
    c = CANARIES
    frames = [
        {"type": "connect", "id": "1", "payload": {"deviceName": c["deviceName"]}},
        {"type": "auth", "id": "2", "payload": {"token": c["auth token"]}},
        {"type": "auth", "id": "3", "payload": {"password": c["auth password"]}},
        {"type": "auth", "id": "4", "payload": {"code": c["auth code"]}},
        {"type": "auth", "id": "5", "payload": {"token": {"is": c["auth token"]}}},
        {
            "type": "connect",
            "id": "7",
            "payload": {
                "deviceId": "d",
                "publicKey": "A" * 43,
                "challengeResponse": c["signature"],
                "signature": c["signature"],
            },
        },
        {"type": "chat", "id": "6", "sessionId": "s", "payload": {"message": c["chat"]}},
    ]
    heard = []
    async with connect(f"ws://127.0.0.1:{served.port}/ws", proxy=None) as socket:
        for frame in frames:
            await socket.send(json.dumps(frame))
        await socket.send('{"type":"auth","payload":{"token":"' + c["auth token"])  # cut short
        await socket.send(json.dumps({"type": "ping", "id": "end"}))
        while not heard or '"end"' not in heard[-1]:
            heard.append(await socket.recv())
    await bystander.send(json.dumps({"type": "ping", "id": "end"}))
    while '"end"' not in (frame := await bystander.recv()):
        heard.append(frame)
    return heard


async def plant_in_calls(served):
    """Send secrets to the HTTP API, as a stranger, as a member and as an operator."""
    c = CANARIES
    body = json.dumps({"token": c["HTTP body"], "password": c["HTTP body"]})
    wrong = (f"Authorization: Bearer {c['bearer']}",)
    right = (f"Authorization: Bearer {CONFIG_TOKEN}",)
    answers = []
    for bearer in ((), wrong, right):
        for target in ("/sessions", "/requests", "/tokens", "/devices/none/approve", "/none"):
            peer = await RawSocket.connect(served.port)
            lines = (
                *(*bearer, "Content-Type: application/json", f"Content-Length: {len(body)}"),
                *(f"Idempotency-Key: {c['key']}{{", "Connection: close"),
            )
            name = f"127.0.0.1:{served.port}"
            head = request(f"/api/v1{target}", *lines, method="POST", host=name)
            peer.send(head + body.encode())
            answers.append(await peer.rest())
            await peer.close()
    assert all(answers)
    return answers


async def say(bystander):
    """Say something that looks like a sign-in, as a member of a session."""
    text = json.dumps({"type": "auth", "payload": {"token": SPOKEN}})
    frames = [
        {"type": "session_create", "id": "a", "payload": {"sessionId": "s"}},
        {"type": "chat", "id": "b", "sessionId": "s", "payload": {"message": text}},
    ]
    for frame in frames:
        await bystander.send(json.dumps(frame))
    while '"ack"' not in await bystander.recv():
        pass


def found_in(texts, secrets):
    return sorted({s for s in secrets for text in texts if s in text})


def files_of(served, *without):
    """The gateway's files as text, but for some."""
    for file in served.data.iterdir():
        if not file.name.startswith(without):
            yield file.read_bytes().decode("latin-1")


class TestSecrets:
    async def test_that_were_planted_everywhere_are_found_nowhere(self, tmp_path):
        """No log line, answer, frame, file or audit entry of a real gateway holds one."""
        owner = {"Authorization": f"Bearer {CONFIG_TOKEN}"}
        async with gateway(tmp_path) as served:
            url = f"ws://127.0.0.1:{served.port}/ws"
            async with connect(url, additional_headers=owner, proxy=None) as bystander:
                answers = await plant_in_heads(served)
                answers += await plant_in_calls(served)
                frames = await plant_in_frames(served, bystander)
                await say(bystander)
            served.end()

            secrets = [CONFIG_TOKEN, ENV_PASSWORD, *CANARIES.values()]
            heard = [answer.decode("latin-1") for answer in answers] + frames
            assert found_in(heard, [*secrets, SPOKEN]) == []
            assert found_in([served.printed], [*secrets, SPOKEN]) == []
            assert found_in(files_of(served), secrets) == []
            assert found_in(files_of(served, "log.db"), [SPOKEN]) == []
            assert found_in(files_of(served), [SPOKEN]) == [SPOKEN], "the search works"

    async def test_of_failing_code_stay_out_of_its_crash_dump(self, tmp_path):
        """A traceback shows where it happened and not what the variables held."""
        program = tmp_path / "program.py"
        program.write_text(FAILING)
        async with gateway(tmp_path, sys.executable, str(program), CONFIG_TOKEN) as served:
            owner = {"Authorization": f"Bearer {CONFIG_TOKEN}"}
            url = f"ws://127.0.0.1:{served.port}/ws"
            async with connect(url, additional_headers=owner, proxy=None) as socket:
                frame = {"type": "fail", "id": "f", "payload": {"note": CANARIES["chat"]}}
                await socket.send(json.dumps(frame))
                while "HANDLER_ERROR" not in (answer := await socket.recv()):
                    pass
            async with connect(url, proxy=None) as socket:
                frame = {"type": "auth", "id": "f", "payload": {"token": CANARIES["auth token"]}}
                await socket.send(json.dumps(frame))
                while "HANDLER_ERROR" not in (second := await socket.recv()):
                    pass
            served.process.wait(PATIENCE)

            secrets = [CONFIG_TOKEN, *CANARIES.values()]
            assert "the handler broke" in served.printed
            assert "the verifier broke" in served.printed
            assert "the program broke" in served.printed
            assert found_in([served.printed, answer, second], secrets) == []


class TestEmbedded:
    async def test_a_program_that_sets_no_logs_up_shows_no_variables(self, tmp_path):
        """A gateway made in Python keeps secrets out of its tracebacks by itself."""
        program = tmp_path / "program.py"
        program.write_text(EMBEDDED)
        async with gateway(tmp_path, sys.executable, str(program), CONFIG_TOKEN) as served:
            async with connect(f"ws://127.0.0.1:{served.port}/ws", proxy=None) as socket:
                frame = {"type": "auth", "id": "f", "payload": {"token": CANARIES["auth token"]}}
                await socket.send(json.dumps(frame))
                while "HANDLER_ERROR" not in await socket.recv():
                    pass

            assert "the verifier broke" in served.printed
            assert found_in([served.printed], [CONFIG_TOKEN, *CANARIES.values()]) == []


EMBEDDED = """
import asyncio, sys
from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.config import AuthConfig


class Gateway(WebSocketGateway):
    def validate_token(self, token):
        raise RuntimeError("the verifier broke")


async def main():
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=sys.argv[1]))
    async with Gateway(config) as gateway:
        print("listening on", gateway.address, flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
"""

FAILING = """
import asyncio, sys
from trunkline.config import AuthConfig, HistoryConfig, WebSocketTransportConfig
from trunkline.run import running
from trunkline.auth import OWNER


def fail(client, message):
    secret = bytes(message.payload)
    raise RuntimeError("the handler broke")


async def main():
    config = WebSocketTransportConfig(
        port=0, auth=AuthConfig(token=sys.argv[1]), history=HistoryConfig(store="memory")
    )
    async with running(config) as gateway:
        done = asyncio.Event()

        def verify(token):
            if token == sys.argv[1]:
                return OWNER
            secret = token
            asyncio.get_running_loop().call_later(0.5, done.set)
            raise RuntimeError(f"the verifier broke: token={token}")

        gateway.validate_token = verify
        gateway.register_handler("fail", fail)
        print("listening on", gateway.address, flush=True)
        await done.wait()
        secret = sys.argv[1]
        raise RuntimeError("the program broke")


asyncio.run(main())
"""

HOSTILE = "x\r\nx\x1b[31mx\u202ex\u2028x\u0085x\x00"


class TestLines:
    async def test_of_strangers_forge_nothing(self, tmp_path):
        """Whatever stands in twenty fields, each line of the log is one JSON object, all visible."""
        frames = [
            {"type": HOSTILE, "id": "1"},
            {"type": "ping", "id": HOSTILE},
            {"type": "ping", "id": "1", "sessionId": HOSTILE},
            {"type": "ping", "id": "1", "timestamp": HOSTILE},
            *(
                {"type": "connect", "id": "1", "payload": {name: HOSTILE}}
                for name in ("deviceName", "deviceId", "role", "publicKey", "signature")
            ),
            *(
                {"type": "auth", "id": "1", "payload": {name: HOSTILE}}
                for name in ("token", "password", "code", "clientId", "clientType")
            ),
            {HOSTILE: HOSTILE},
        ]
        headers = ("User-Agent", "Referer", "Origin", "Cookie", "X-Forwarded-For", "Authorization")
        async with gateway(tmp_path) as served:
            async with connect(f"ws://127.0.0.1:{served.port}/ws", proxy=None) as socket:
                for frame in frames:
                    await socket.send(json.dumps(frame))
                await socket.send(HOSTILE)
                await socket.send(json.dumps({"type": "ping", "id": "end"}))
                while '"end"' not in await socket.recv():
                    pass
            for name in headers:
                await http(served, "/ws", f"{name}: x\x1b[31m\x85x")
            served.end()
            lines = (tmp_path / "stderr").read_text().splitlines()
            where = ("--data-dir", str(served.data))
            audited = invoke(clean_environ(tmp_path), "audit", "--json", *where).stdout

        assert all(json.loads(line)["event"].isprintable() for line in lines)
        assert all(line.isprintable() for line in lines)
        assert audited
        assert all(json.loads(line)["action"] for line in audited.splitlines())
        assert audited.isascii()


async def test_the_token_does_not_stand_in_the_command_line(tmp_path):
    """A token of the configuration or of the environment is not shown to other users by ps."""
    async with gateway(tmp_path) as served:
        assert found_in([served.command_line], [CONFIG_TOKEN, ENV_PASSWORD]) == []
