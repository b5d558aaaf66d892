"""A trial: a gateway, loads of clients on it, faults, and the judgement at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from websockets.asyncio.client import ClientConnection

from e2e.checker import Violation, check
from e2e.client import Plan, content_sha, dial, principal, request
from e2e.loader import Order
from e2e.processes import PATIENCE, Gateway, LoaderProcess
from e2e.records import Ack, Fault, Final, Logged, Nack, Recorder, Send, load
from trunkline.messages import GatewayMessage, decode_message
from trunkline.payloads import HistoryPage, read

AGENT = {
    "id": "ada",
    "type": "custom",
    "name": "Ada",
    "capabilities": {"chat": True, "tools": [], "streaming": True, "modes": []},
    "graceMs": 60_000,
}


class Report(NamedTuple):
    """How a trial ended."""

    violations: list[Violation]
    counts: Counter[str]
    """What happened to the clients, by name."""
    stored: int
    """Messages in all logs at the end."""


class Peer:
    """A connection for single requests."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._n = 0

    async def send(self, frame: str) -> None:
        """Send a frame."""
        await self._connection.send(frame)

    async def ask(
        self, type: str, session: str | None = None, /, **payload: object
    ) -> GatewayMessage:
        """Send a request and return its answer; what comes in between is dropped."""
        self._n += 1
        id = f"r{self._n}"
        await self.send(request(type, id, session, **payload))
        return await self.next(lambda message: message.reply_to == id)

    async def send_chunk(self, session: str, run: str, index: int, text: str) -> None:
        """Send a piece of an agent's answer."""
        chunk = {"runId": run, "index": index, "content": text, "done": False}
        await self.send(request("chat_stream", f"{run}.{index}", session, **chunk))

    async def next(self, wanted: Callable[[GatewayMessage], bool]) -> GatewayMessage:
        """Return the next message that is wanted; others are dropped."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message = decode_message(await self._connection.recv())
                if wanted(message):
                    return message

    async def close(self) -> None:
        """Say goodbye."""
        await self._connection.close()


@asynccontextmanager
async def peer(url: str, device: str = "tester", role: str = "control") -> AsyncIterator[Peer]:
    """Connect for single requests."""
    connection = await dial(url, device, role=role)
    try:
        yield Peer(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def agent(url: str, session: str) -> AsyncIterator[tuple[Peer, GatewayMessage]]:
    """Connect an agent to a session; yield it and how it was registered."""
    async with peer(url, "agent", "node") as speaking:
        await speaking.ask("session_join", session)
        yield speaking, await speaking.ask("agent_register", **AGENT)


def by_id(message: GatewayMessage) -> str:
    """Return what a message is called in the events: its id."""
    return message.id


async def read_log(
    asking: Peer, session: str, name: Callable[[GatewayMessage], str] = by_id
) -> Final:
    """Read a session's whole log through ``session_history``."""
    log: list[Logged] = []
    after = 0
    while True:
        answer = await asking.ask("session_history", session, after=after, limit=300)
        assert answer.type == "session_history", answer
        page = read(answer, HistoryPage)
        for raw in page.messages:
            message = decode_message(raw)
            assert message.seq is not None
            sha = content_sha(bytes(message.payload))
            who = principal(message.sender)
            log.append(Logged(seq=message.seq, id=name(message), principal=who, sha=sha))
        if not page.more:
            return Final(session=session, epoch=page.epoch, log=log, trimmed=page.first - 1)
        after = log[-1].seq


class Trial:
    """
    A gateway and its load.

    Args:
        folder: Where everything is written.
        gateway: Not started yet.
        sessions: How many sessions the clients share.
    """

    def __init__(self, folder: Path, gateway: Gateway, sessions: int = 5) -> None:
        self.gateway = gateway
        self.sessions = [f"s{n}" for n in range(sessions)]
        self.loaders: list[LoaderProcess] = []
        self._folder = folder
        self._recorder = Recorder(folder / "trial.jsonl")
        self._clients = 0
        self._published = 0
        self._lost: Counter[str] = Counter()

    async def begin(self, failpoint: str = "") -> None:
        """Start the gateway and create the sessions."""
        await self.gateway.start(failpoint)
        await self.create_sessions()

    async def create_sessions(self) -> None:
        """Create the sessions at a gateway that runs."""
        async with peer(self.gateway.url) as asking:
            for session in self.sessions:
                answer = await asking.ask("session_create", sessionId=session)
                assert answer.type == "session_info", answer

    async def add_load(
        self,
        clients: int,
        *,
        address: Path | None = None,
        pause: float = 0.2,
        leaving: float = 0.0,
        heartbeat: float = 10.0,
        size: int = 100,
    ) -> LoaderProcess:
        """Start a process of clients, spread over the sessions; wait until they have joined."""
        plans = [
            Plan(
                name=f"c{number}",
                session=self.sessions[number % len(self.sessions)],
                seed=number,
                address=str(address or self.gateway.address),
                pause=pause,
                leaving=leaving,
                heartbeat=heartbeat,
                size=size,
            )
            for number in range(self._clients, self._clients + clients)
        ]
        self._clients += clients
        record = self._folder / f"load{len(self.loaders)}.{self._clients}.jsonl"
        loader = await LoaderProcess.start(record, plans)
        self.loaders.append(loader)
        await loader.obey(Order(attached=True))
        return loader

    async def kill_load(self, loader: LoaderProcess) -> None:
        """End a process of clients as ``kill -9`` does; what it saw still counts."""
        await loader.kill()
        self.loaders.remove(loader)
        self._lost.update(loader.counts)

    async def publish(self, asking: Peer, session: str, text: str) -> GatewayMessage:
        """Publish a message of the test's own, note it, and return the answer."""
        self._published += 1
        id = f"p{self._published}"
        frame = request("chat", id, session, message=text)
        sha = content_sha(bytes(decode_message(frame).payload))
        who, n = "owner/tester", self._published
        self._recorder.add(
            Send(proc="tester", session=session, id=id, principal=who, n=n, conn=1, sha=sha)
        )
        await asking.send(frame)
        answer = await asking.next(lambda message: message.reply_to == id)
        facts = answer.data()
        event: Ack | Nack
        if answer.type == "ack":
            place = {"epoch": facts["epoch"], "seq": facts["seq"]}
            event = Ack(proc="tester", session=session, id=id, **place)
        else:
            event = Nack(proc="tester", session=session, id=id, code=facts["code"])
        self._recorder.add(event)
        return answer

    async def progress(self, acked: int) -> None:
        """Wait until each load has so many more messages acknowledged."""
        await asyncio.gather(*(self._progress(loader, acked) for loader in self.loaders))

    @staticmethod
    async def _progress(loader: LoaderProcess, acked: int) -> None:
        counts = await loader.obey(Order())
        await loader.obey(Order(acked=counts.get("acked", 0) + acked))

    def note(self, fault: str) -> None:
        """Write a fault down."""
        self._recorder.add(Fault(kind=fault))

    async def order(self, order: Order) -> None:
        """Have an order obeyed by all loads."""
        await asyncio.gather(*(loader.obey(order) for loader in self.loaders))

    async def judge(self, patience: float = 5.0) -> Report:
        """
        Let everything come to rest, read the logs back, and compare.

        Args:
            patience: Seconds that readers have to get what is left.
        """
        await self.order(Order(publish=False, stay=True))
        async with peer(self.gateway.url) as asking:
            finals = [await read_log(asking, session) for session in self.sessions]
        heads = {final.session: final.trimmed + len(final.log) for final in finals}
        await self.order(Order(finish=heads, patience=patience))
        for final in finals:
            self._recorder.add(final)
        events = load(sorted(self._folder.glob("*.jsonl")))
        counts = sum((Counter(loader.counts) for loader in self.loaders), self._lost)
        return Report(check(events), counts, sum(len(final.log) for final in finals))

    async def delete_sessions(self) -> None:
        """Delete the sessions and their logs."""
        async with peer(self.gateway.url) as asking:
            for session in self.sessions:
                answer = await asking.ask("session_close", session, delete=True)
                assert answer.type != "error", answer

    async def leave(self) -> None:
        """Leave nothing running but the gateway."""
        for loader in self.loaders:
            await loader.kill()
        self._recorder.close()

    async def end(self) -> None:
        """Leave nothing running."""
        await self.leave()
        await self.gateway.kill()


@asynccontextmanager
async def trial(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    sessions: int = 5,
    failpoint: str = "",
) -> AsyncIterator[Trial]:
    """Run a trial with a gateway of its own."""
    running = Trial(folder, Gateway(folder, settings), sessions)
    try:
        await running.begin(failpoint)
        yield running
    finally:
        await running.end()
