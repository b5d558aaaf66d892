"""An agent at work: its registration, its runs, its requests."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from trunkline.errors import ErrorCode
from trunkline.messages import create_message, encode
from trunkline.payloads import (
    AgentHeartbeat,
    AgentRegistered,
    AgentUnregister,
    ChatComplete,
    RouteCancel,
    RouteDelivery,
    RouteError,
    RouteResponse,
    RunCancel,
    RunState,
    RunStatus,
    SessionInfo,
    read,
)
from trunkline.sdk.answer import Pieces
from trunkline.sdk.client import GatewayClient
from trunkline.sdk.connection import State
from trunkline.sdk.context import Context, RunContext, ToolContext, failure_text
from trunkline.sdk.errors import (
    ConnectionLost,
    RequestFailed,
    ToolError,
    TrunklineError,
    refusal,
)
from trunkline.sdk.events import run_of
from trunkline.sdk.messages import Message
from trunkline.sdk.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trunkline.sdk.agent import Agent
    from trunkline.sdk.tools import AnyTool

log = logging.getLogger("trunkline.sdk")

BEATS_PER_LEASE = 3
"""Heartbeats in the time after which the gateway would give the agent up."""

KEPT_ENDS, KEPT_BYTES = 100, 4 * 1024 * 1024
"""How many ended answers are kept, and their bytes; a lost connection has swallowed fewer."""

MAX_REASON = 4_096
"""Characters of what others are told about a failure."""


class Serving:
    """
    One agent on one connection.

    Args:
        agent: Who serves.
        client: A client that has not been opened.
    """

    def __init__(self, agent: Agent, client: GatewayClient) -> None:
        self.gateway = client
        self.stopping = False
        """Whether no more work is begun."""
        self._agent = agent
        self._wire = client.wire
        self._generation: int | None = None
        self._announced = agent.registration()
        self._lease = 60.0
        # A run's id is unique only within its session.
        self._runs: dict[tuple[str, str], RunContext] = {}
        self._requests: dict[str, ToolContext] = {}
        self._ended: OrderedDict[str, Pieces] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(agent.max_concurrent) if agent.max_concurrent else None
        self._registered = asyncio.Event()
        self._stopped = asyncio.Event()
        self._refused: TrunklineError | None = None
        self._beating: asyncio.Task[None] | None = None

    # Beginning and end

    async def open(self) -> None:
        """Connect, register and join; raises as `Agent.serve` does."""
        self._wire.before_resume = self._register
        self.gateway.on_state(self._on_state)
        self.gateway.on("session_info", self._on_session_info)
        self.gateway.on("run_cancel", self._on_run_cancel)
        self.gateway.on("error", self._on_error)
        self.gateway.on("route_request", self._on_request)
        self.gateway.on("route_cancel", self._on_route_cancel)
        await self.gateway.open()
        await self._online()
        self._beating = asyncio.create_task(self._beat())
        for session_id in self._agent.sessions:
            session = await self.gateway.join(session_id)
            self._follow(session)
            await self._take_up(session, session.runs)
        log.info("agent %s is registered", self._agent.id)

    async def until_stopped(self) -> None:
        """Wait for `stop`; raises why the agent cannot go on."""
        await self._stopped.wait()
        self._check()

    def stop(self) -> None:
        """Begin no more work; `until_stopped` returns."""
        self.stopping = True
        self._stopped.set()

    async def drain(self) -> None:
        """Let what is at work end, for at most the agent's `drain_timeout`, and unregister."""
        self.stopping = True
        if self._wire.error is not None or self._refused is not None:
            return
        self._wire.post(self._heartbeat())
        working = [c.task for c in self._work() if c.task is not None]
        if working:
            await asyncio.wait(working, timeout=self._agent.drain_timeout)
        try:
            leave = AgentUnregister(id=self._agent.id)
            await self._wire.call("agent_unregister", leave, timeout=2.0)
        except TrunklineError as error:
            log.info("agent %s went without saying so: %s", self._agent.id, error)

    async def close(self) -> None:
        """Stop everything at once."""
        self.stopping = True
        tasks = list(self._tasks)
        if self._beating is not None:
            tasks.append(self._beating)
        for context in self._work():
            context.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.gateway.close()

    def _work(self) -> list[Context]:
        return [*self._runs.values(), *self._requests.values()]

    def _check(self) -> None:
        error = self._refused or self._wire.error
        if error is not None:
            raise error

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _slot(self) -> AbstractAsyncContextManager[Any]:
        return self._slots or nullcontext()

    # Registration

    def _register(self, resume: Callable[[], None]) -> None:
        """Register before the sessions are joined: their runs are ours again then."""
        self._registered.clear()
        self._announced = self._agent.registration()
        message = create_message("agent_register", self._agent.registration(self._generation))

        def answer(reply: Message | TrunklineError) -> None:
            if isinstance(reply, Message):
                self._on_registered(read(reply, AgentRegistered))
                resume()
            elif isinstance(reply, RequestFailed) and reply.retryable:
                loop = asyncio.get_running_loop()
                loop.call_later(reply.retry_after or 1.0, self._register, resume)
            elif not isinstance(reply, ConnectionLost):
                self._refuse(reply)

        self._wire.ask(message, answer)

    def _on_registered(self, registered: AgentRegistered) -> None:
        self._generation = registered.generation
        self._lease = registered.lease_ms / 1000
        still_open = {(run.session_id or "", run.run_id): run.index for run in registered.runs}
        for key, run in list(self._runs.items()):
            if key in still_open:
                run.answer.rewind(still_open[key])
            else:
                run.cancel()
        for request_id, request in list(self._requests.items()):
            if request_id not in registered.requests:
                request.cancel()
        self._registered.set()
        for request_id in registered.requests:
            self._answer_again(request_id, (registered.received or {}).get(request_id, 0))
        self.announce()

    def _answer_again(self, request_id: str, received: int) -> None:
        """Send what was written to a connection that was lost already, and never arrived."""
        request = self._requests.get(request_id)
        pieces = request.pieces if request is not None else self._ended.get(request_id)
        if pieces is None:
            return
        missing = [pieces.last()] if pieces.broken else pieces.after(received)
        if missing is None:
            self._give_up(request_id)
        else:
            for message in missing:
                self._wire.post(message)

    def _give_up(self, request_id: str, wait: float = 0.0) -> None:
        """End a request, after `wait` seconds, whose answer has a hole: none is better than a wrong one."""
        request = self._requests.get(request_id)
        pieces = request.pieces if request is not None else self._ended.get(request_id)
        if pieces is None or pieces.broken:
            return
        if request is not None:
            request.cancel()
        reason = _reason(ErrorCode.AGENT_LOST, "a piece of the answer was lost on the way")
        response = RouteResponse(request_id=request_id, ok=False, error=reason)
        end = create_message("route_response", response, id=f"{request_id}.{pieces.count}")
        pieces.broken = True
        pieces.add(end)
        self._keep(request_id, pieces)
        asyncio.get_running_loop().call_later(wait, self._wire.post, end)

    def announce(self) -> None:
        """Tell the gateway what has changed since the agent told it last; without a connection, the next."""
        now = self._agent.registration()
        if now == self._announced or not self._registered.is_set():
            return
        self._announced = now

        def answer(reply: Message | TrunklineError) -> None:
            if isinstance(reply, RequestFailed):
                log.warning("what agent %s offers was not taken: %s", self._agent.id, reply)

        self._wire.ask(create_message("agent_register", now), answer)

    def _refuse(self, error: TrunklineError) -> None:
        self._refused = error
        self._registered.set()
        self._stopped.set()

    def _on_state(self, state: State) -> None:
        if state is State.CLOSED:
            self._registered.set()
            self._stopped.set()
        elif state is not State.CONNECTED:
            self._registered.clear()

    async def _online(self) -> None:
        """Wait until the agent is registered on a live connection."""
        while True:
            await self._registered.wait()
            self._check()
            if self._wire.connection.connected:
                return
            self._registered.clear()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease / BEATS_PER_LEASE)
            self._wire.post(self._heartbeat())

    def _heartbeat(self) -> Any:
        busy = self.stopping
        beat = AgentHeartbeat(
            id=self._agent.id,
            status="busy" if busy else "online",
            load=float(len(self._runs) + len(self._requests)),
        )
        return create_message("agent_heartbeat", beat)

    # Sessions

    def _on_session_info(self, message: Message) -> None:
        info = read(message, SessionInfo)
        if info.agent_id != self._agent.id:
            return
        session = self._wire.sessions.get(info.session_id)
        if info.status == "assigned":
            # One that it is in already is joined again, from where it was left.
            if not isinstance(session, Session):
                session = self.gateway.enter(info)
                self._follow(session)
            self._start(self._take_up(session, info.runs or ()))
        elif info.status == "unassigned" and session is not None:
            session.ended(StopAsyncIteration())

    def _follow(self, session: Session) -> None:
        self._start(self._listen(session))

    async def _listen(self, session: Session) -> None:
        try:
            async for message in session:
                if message.type == "chat":
                    await self._on_chat(session, message)
                elif message.type == "chat_complete":
                    self._on_complete(message)
        except TrunklineError as error:
            log.info("agent %s is no longer in %s: %s", self._agent.id, session.id, error)

    async def _take_up(self, session: Session, runs: Sequence[RunState]) -> None:
        """Answer what an earlier process, or another agent, left open."""
        for run in runs:
            seq = run.run_id.partition(".")[0]
            if run.agent_id == self._agent.id and seq.isdigit():
                page = await session.history(after=int(seq) - 1, limit=1)
                for message in page.messages:
                    await self._begin(session, message, run.run_id)

    # Runs

    async def _on_chat(self, session: Session, message: Message) -> None:
        run_id = f"{message.seq}.{self._agent.id}"
        if self._agent.id in (message.addressed or ()) and not _is_past(session, message, run_id):
            await self._begin(session, message, run_id)

    async def _begin(self, session: Session, message: Message, run_id: str) -> None:
        if self.stopping or self._agent.chat_handler is None:
            return
        # Further chats wait in the session, where their number is bounded.
        async with self._slot():
            pass
        if (session.id, run_id) in self._runs:
            return
        run = RunContext(self.gateway, self._agent.tools, session, message, run_id)
        self._runs[session.id, run_id] = run
        session.joined.append(run.send_text)
        run.task = self._start(self._answer(run))
        run.task.add_done_callback(lambda _: self._forget_run(run))

    def _forget_run(self, run: RunContext) -> None:
        run.ended()
        self._runs.pop((run.session.id, run.run_id), None)
        run.session.joined.remove(run.send_text)

    async def _answer(self, run: RunContext) -> None:
        assert self._agent.chat_handler is not None
        failure: str | None = None
        try:
            async with self._slot():
                await run.consume(self._agent.chat_handler)
        except asyncio.CancelledError:
            # The gateway ended the run before it told us so, or the agent stops.
            return
        except ToolError as error:
            failure = error.message[:MAX_REASON]
        except Exception:
            log.exception("agent %s failed to answer %s", self._agent.id, run.run_id)
            failure = "the agent failed"
        try:
            await self._complete(run, failure)
        except TrunklineError as error:
            log.warning("the end of run %s was not stored: %s", run.run_id, error)

    async def _complete(self, run: RunContext, failure: str | None) -> None:
        status: RunStatus = "ok" if failure is None else "error"
        end = ChatComplete(run_id=run.run_id, content=run.answer.text, status=status, error=failure)
        while True:
            try:
                await run.session.publish("chat_complete", end, reply_to=run.message.id)
                return
            except RequestFailed as refused:
                if not refused.retryable:
                    raise
                await asyncio.sleep(refused.retry_after or 1.0)

    def _on_error(self, message: Message) -> None:
        """A piece of an answer was refused: too many at a time, or one before it was."""
        prefix, _, index = (message.reply_to or "").rpartition(".")
        if prefix in self._requests or prefix in self._ended:
            self._piece_refused(prefix, int(index), refusal(message))
        for run in self._runs.values():
            if run.chunk_prefix == prefix:
                run.chunk_refused(int(index), refusal(message))

    def _piece_refused(self, request_id: str, number: int, error: RequestFailed) -> None:
        """Send a refused end again, after the time that is asked for; behind a chunk more has followed."""
        pieces, wait = self._ended.get(request_id), error.retry_after or 0.0
        if pieces is not None and number == pieces.count - 1 and error.retryable:
            asyncio.get_running_loop().call_later(wait, self._wire.post, pieces.last())
        else:
            self._give_up(request_id, wait)

    def _on_run_cancel(self, message: Message) -> None:
        run = self._runs.get((message.session_id or "", read(message, RunCancel).run_id))
        if run is not None:
            run.cancel()

    def _on_complete(self, message: Message) -> None:
        """Stop a run that the gateway has ended."""
        run = self._runs.get((message.session_id or "", run_of(message)))
        if run is not None and message.sender is not None and message.sender.kind == "gateway":
            run.cancel()

    # Requests

    def _on_request(self, message: Message) -> None:
        delivery = read(message, RouteDelivery)
        context = ToolContext(self.gateway, delivery.request_id)
        self._requests[delivery.request_id] = context
        context.task = self._start(self._serve(delivery, context))
        context.task.add_done_callback(lambda _: self._requests.pop(delivery.request_id, None))

    def _on_route_cancel(self, message: Message) -> None:
        request = self._requests.get(read(message, RouteCancel).request_id)
        if request is not None:
            request.cancel()

    async def _serve(self, delivery: RouteDelivery, context: ToolContext) -> None:
        try:
            tool = self._find_tool(delivery)
            async with self._slot():
                await self._call(tool, delivery, context)
        except ToolError as error:
            await self._respond(context, ok=False, error=_reason(error.code, error.message))
        except ConnectionLost:
            log.info("request %s ended with the connection", context.work_id)
        except Exception as error:
            log.exception("agent %s failed to serve %s", self._agent.id, context.work_id)
            reason = _reason(ErrorCode.HANDLER_ERROR, failure_text(error))
            await self._respond(context, ok=False, error=reason)

    def _find_tool(self, delivery: RouteDelivery) -> AnyTool:
        if self.stopping:
            raise ToolError("the agent is shutting down", ErrorCode.OVERLOADED)
        names = (delivery.method, (delivery.capability or "").removeprefix("tools:"))
        for name in names:
            if name in self._agent.tools:
                return self._agent.tools[name]
        raise ToolError(f"there is no tool {names[0] or names[1]}", "UNKNOWN_TOOL")

    async def _call(self, tool: AnyTool, delivery: RouteDelivery, context: ToolContext) -> None:
        arguments = tool.check(delivery.params)
        if not (delivery.stream and tool.streams):
            result = await tool.call(arguments, context)
            await self._respond(context, result=Raw(encode(result)))
            return
        async for piece in tool.stream(arguments, context):
            await self._respond(context, chunk=Raw(encode(piece)), done=False)
        # What the gateway refused it has said before it answers this; then there is no end to send.
        await self._wire.call("ping")
        await self._respond(context)

    async def _respond(self, context: ToolContext, **fields: Any) -> None:
        """Answer on whatever connection the agent has by then, no faster than the gateway takes it."""
        loop = asyncio.get_running_loop()
        await self._online()
        while wait := self._wire.stream_pace.take(loop.time()):
            await asyncio.sleep(wait)
            await self._online()
        request_id, pieces = context.work_id, context.pieces
        if pieces.broken:
            return
        response = RouteResponse(request_id=request_id, **fields)
        message = create_message("route_response", response, id=f"{request_id}.{pieces.count}")
        self._wire.post(message)
        pieces.add(message)
        if response.done:
            self._keep(request_id, pieces)
        await self._wire.connection.drain()

    def _keep(self, request_id: str, pieces: Pieces) -> None:
        """Keep an answer that has ended for a while, in case it does not arrive."""
        self._ended[request_id] = pieces
        kept = sum(pieces.size for pieces in self._ended.values())
        while len(self._ended) > 1 and (len(self._ended) > KEPT_ENDS or kept > KEPT_BYTES):
            _, oldest = self._ended.popitem(last=False)
            kept -= oldest.size


def _is_past(session: Session, message: Message, run_id: str) -> bool:
    """Whether a chat is from before the last join, and nobody waits for its answer."""
    head = (session.info and session.info.head) or 0
    return (message.seq or 0) <= head and all(run.run_id != run_id for run in session.runs)


def _reason(code: str, message: str) -> RouteError:
    return RouteError(code=code, message=message[:MAX_REASON])
