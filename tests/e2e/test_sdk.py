"""Applications on the SDK get every message once and in order, whatever happens to the gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sizes import Sizes

from e2e.checker import check
from e2e.client import TOKEN, content_sha, principal
from e2e.processes import Gateway
from e2e.proxy import Proxy
from e2e.records import Ack, Attach, Live, Recorder, Recv, Send, load
from e2e.trial import peer, read_log
from trunkline.messages import GatewayMessage, encode
from trunkline.sdk import GatewayClient, Session

CLIENTS = 10


def by_text(message: GatewayMessage) -> str:
    """Return what a message is called in the events: its text, for the SDK chooses the ids."""
    return str(message.data()["message"])


class Application:
    """
    What somebody makes of the SDK; it knows nothing of connections.

    So all that it reads counts as one attachment, across the gateway's deaths.
    """

    def __init__(self, client: GatewayClient, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        self._name = client.device_id
        self._moved = asyncio.Event()
        self.last = 0
        assert session.info is not None
        assert session.info.epoch is not None
        assert session.info.next is not None
        self._epoch = session.info.epoch
        recorder.add(
            Attach(
                proc=self._name,
                session=session.id,
                att=self._name,
                mode="fresh",
                epoch=self._epoch,
                start=session.info.next,
            )
        )

    async def read(self) -> None:
        """Read everything."""
        async for message in self._session:
            if message.seq is None:
                continue
            self.last = message.seq
            self._moved.set()
            self._recorder.add(
                Recv(
                    proc=self._name,
                    session=self._session.id,
                    att=self._name,
                    epoch=self._epoch,
                    seq=message.seq,
                    id=by_text(message),
                    principal=principal(message.sender),
                    sha=content_sha(bytes(message.payload)),
                )
            )

    async def say(self, n: int) -> None:
        """Say something, and wait until it is stored."""
        text = f"{self._name} {n}"
        session = self._session.id
        self._recorder.add(
            Send(
                proc=self._name,
                session=session,
                id=text,
                principal=f"owner/{self._name}",
                n=n,
                conn=1,
                sha=content_sha(encode({"message": text})),
            )
        )
        ack = await self._session.send(text)
        assert ack.epoch is not None
        assert ack.seq is not None
        self._recorder.add(
            Ack(proc=self._name, session=session, id=text, epoch=ack.epoch, seq=ack.seq)
        )

    async def reach(self, seq: int) -> None:
        """Wait until the log has been read up to `seq`."""
        while self.last < seq:
            self._moved.clear()
            await self._moved.wait()

    def note_end(self) -> None:
        """Note how far it has read."""
        live = Live(proc=self._name, session=self._session.id, last=self.last, epoch=self._epoch)
        self._recorder.add(live)


async def talk(application: Application, messages: int, rng: random.Random) -> None:
    """Say many things, a few at a time."""
    for n in range(0, messages, 4):
        await asyncio.gather(*(application.say(n + k) for k in range(4)))
        await asyncio.sleep(rng.uniform(0, 0.1))


@asynccontextmanager
async def applications(line: Proxy, recorder: Recorder) -> AsyncIterator[list[Application]]:
    """Run ten applications in one session."""
    running = []
    async with AsyncExitStack() as stack:
        for n in range(CLIENTS):
            client = GatewayClient(f"ws://{line.host}", token=TOKEN, device_id=f"app{n}")
            await stack.enter_async_context(client)
            application = Application(client, await client.join("s"), recorder)
            reading = asyncio.create_task(application.read())
            stack.callback(reading.cancel)
            running.append(application)
        yield running


async def restart(gateway: Gateway, line: Proxy) -> None:
    """Kill the gateway and start another one, which has another port."""
    line.up.clear()
    await gateway.kill()
    await gateway.start()
    line.target = gateway.port
    line.up.set()


async def test_applications_read_and_write_once(tmp_path: Path, sized: Sizes) -> None:
    """While the gateway is killed again and again, ten applications notice nothing."""
    rng = random.Random(1)
    messages = sized(40, 600, 4000)
    recorder = Recorder(tmp_path / "events.jsonl")
    async with Proxy() as line:
        gateway = Gateway(tmp_path, {"ORIGINS__ALLOWED_HOSTS": line.host})
        try:
            await restart(gateway, line)
            async with applications(line, recorder) as running:
                talking = asyncio.gather(*(talk(app, messages, rng) for app in running))
                for _ in range(sized(2, 10, 60)):
                    await running[0].reach(running[0].last + 40)
                    await restart(gateway, line)
                await talking
                async with peer(gateway.url) as asking:
                    final = await read_log(asking, "s", by_text)
                for application in running:
                    await application.reach(len(final.log))
                    application.note_end()
        finally:
            await gateway.kill()
    recorder.add(final)
    recorder.close()

    assert check(load([tmp_path / "events.jsonl"])) == []
    assert len(final.log) == CLIENTS * messages
    assert "Traceback" not in gateway.errors
