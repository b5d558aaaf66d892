"""
Asking agents over HTTP, and asking no more than once.

With an ``Idempotency-Key`` a request belongs to its user and not to the
connection that asked: whoever repeats it gets the same answer, or waits for
the one that is on its way. Without a key it is cancelled when its caller leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Raw

from trunkline.config import LimitsConfig
from trunkline.errors import ErrorCode, GatewayError
from trunkline.http.answers import OpenRequest, RequestAnswer, RequestListing
from trunkline.http.callers import Caller, Callers
from trunkline.http.events import EventStream, event
from trunkline.http.table import IDEMPOTENCY_KEY, Call, Endpoint, Stream, query_of
from trunkline.limits import Budget
from trunkline.messages import create_message, decode_message, encode
from trunkline.payloads import (
    AgentList,
    AgentListing,
    RouteAnswer,
    RouteExplain,
    RouteExplained,
    RouteRequest,
    read,
)

ANSWERS_KEPT = 600.0
"""Seconds that the answer to a request with a key can be asked for again."""

ANSWERS_PER_USER = 1_000
"""Answers that are kept for one user; the oldest go first."""

ANSWERS_BYTES = 16 * 1024 * 1024
"""Bytes of answers that are kept for all users; the oldest go first."""

NULL = b"null"

Owner = tuple[str, str | None]
Place = tuple[Owner, str]
"""A user's key."""


class Job:
    """
    A request with a key.

    Attributes:
        digest: Of the body, so that a key is not used for two requests.
        task: Gives the answer, or the error that became of it.
        ended_at: When it ended, by the loop's clock; None until then.
        size: Bytes of the answer.
    """

    __slots__ = ("digest", "ended_at", "size", "task")

    def __init__(self, digest: bytes, task: asyncio.Task[RequestAnswer]) -> None:
        self.digest = digest
        self.task = task
        self.ended_at: float | None = None
        self.size = 0


class Jobs:
    """The requests with a key, at work or answered; bounded in number, bytes and time."""

    def __init__(self) -> None:
        self._working: dict[Place, Job] = {}
        # In the order in which they ended: what is to be forgotten is in front.
        self._answered: OrderedDict[Place, Job] = OrderedDict()
        self._of_user: dict[Owner, OrderedDict[Place, None]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._working) + len(self._answered)

    def find(self, owner: Owner, key: str, digest: bytes) -> Job | None:
        """
        Return the request that a user has made under a key.

        Raises:
            GatewayError: ``ID_CONFLICT``: it was another one.
        """
        self._expire()
        job = self._working.get((owner, key)) or self._answered.get((owner, key))
        if job is not None and job.digest != digest:
            raise GatewayError(ErrorCode.ID_CONFLICT, "this key was used for another request")
        return job

    def add(self, owner: Owner, key: str, job: Job) -> None:
        """Keep a request that has begun."""
        self._working[(owner, key)] = job
        job.task.add_done_callback(lambda task: self._done((owner, key), job))

    def _done(self, place: Place, job: Job) -> None:
        if self._working.pop(place, None) is None:  # stopped
            return
        if job.task.cancelled() or not _final(job.task.exception()):
            # No agent has got it, so that a repetition may well succeed.
            return
        job.ended_at = asyncio.get_running_loop().time()
        job.size = 0 if job.task.exception() else len(encode(job.task.result()))
        self._size += job.size
        self._answered[place] = job
        mine = self._of_user.setdefault(place[0], OrderedDict())
        mine[place] = None
        if len(mine) > ANSWERS_PER_USER:
            self._forget(next(iter(mine)))
        while self._size > ANSWERS_BYTES:
            self._forget(next(iter(self._answered)))

    def _expire(self) -> None:
        old = asyncio.get_running_loop().time() - ANSWERS_KEPT
        while self._answered:
            place, job = next(iter(self._answered.items()))
            if job.ended_at is None or job.ended_at > old:
                break
            self._forget(place)

    def _forget(self, place: Place) -> None:
        self._size -= self._answered.pop(place).size
        mine = self._of_user[place[0]]
        del mine[place]
        if not mine:
            del self._of_user[place[0]]

    async def stop(self) -> None:
        """Cancel what is at work, and forget all answers."""
        tasks = [job.task for job in self._working.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._working.clear()
        self._answered.clear()
        self._of_user.clear()
        self._size = 0


def _final(error: BaseException | None) -> bool:
    """Whether an outcome must not be tried again under the same key."""
    if not isinstance(error, GatewayError):
        return error is None
    return bool(error.details and error.details.get("delivered"))


class Requests:
    """The endpoints that ask agents."""

    def __init__(self, callers: Callers, limits: LimitsConfig) -> None:
        self._callers = callers
        self._open = Budget(limits.max_connections, limits.requests_per_connection)
        self.jobs = Jobs()

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of agents and requests."""
        return [
            Endpoint(
                method="GET",
                path="/agents",
                right="agent_list",
                run=_agents,
                summary="The agents that one may see.",
                query=query_of(AgentList, "capability", "type", "status"),
                answer=AgentListing,
            ),
            Endpoint(
                method="GET",
                path="/requests",
                right="requests",
                run=_open_requests,
                summary="The requests that are not answered yet.",
                answer=RequestListing,
            ),
            Endpoint(
                method="POST",
                path="/requests",
                right="route_request",
                run=self._request,
                summary="Ask an agent and wait for its answer; with `stream` as events.",
                headers=(IDEMPOTENCY_KEY,),
                body=RouteRequest,
                answer=RequestAnswer,
            ),
            Endpoint(
                method="POST",
                path="/requests/explain",
                right="route_explain",
                run=_explain,
                summary="Whom a request would reach, and why.",
                body=RouteExplain,
                answer=RouteExplained,
            ),
        ]

    async def _request(self, call: Call) -> Any:
        caller, key, body = call.caller, call.key, call.body or {}
        caller.check("route_request")
        streamed = msgspec.json.decode(body.get("stream", NULL)) is True
        if streamed and key is not None:
            raise GatewayError(
                ErrorCode.INVALID_PAYLOAD,
                f"a streamed answer cannot be repeated: leave out stream or {IDEMPOTENCY_KEY}",
                details={"path": "$.stream"},
            )
        if key is not None:
            return await self._once(caller, key, body)
        self._take(caller.key)
        if streamed:
            return self._stream(caller, body)
        try:
            return await _asked(caller, body)
        finally:
            self._open.give(_budget_key(caller.key))

    def _take(self, owner: Owner) -> None:
        if not self._open.take(_budget_key(owner)):
            raise GatewayError(
                ErrorCode.OVERLOADED,
                "this credential has too many open requests",
                details={"delivered": False},
                retry_after=1.0,
            )

    async def _once(self, caller: Caller, key: str, body: dict[str, Raw]) -> RequestAnswer:
        owner = caller.key
        digest = hashlib.sha256(encode(body)).digest()
        job = self.jobs.find(owner, key, digest)
        if job is None:
            self._take(owner)
            task = asyncio.get_running_loop().create_task(self._apart(caller, body))
            job = Job(digest, task)
            self.jobs.add(owner, key, job)
        # Whoever waits may leave; the request goes on.
        return await asyncio.shield(job.task)

    async def _apart(self, caller: Caller, body: dict[str, Raw]) -> RequestAnswer:
        """Ask with a client that outlives the call."""
        first = caller.client
        try:
            own = self._callers.make(first.identity, first.peer, passing=True)
            try:
                return await _asked(own, body)
            finally:
                own.leave()
        finally:
            self._open.give(_budget_key(caller.key))

    def _stream(self, caller: Caller, body: dict[str, Raw]) -> Stream:
        message = create_message("route_request", body)
        try:
            caller.send(message)
            refused = _refusal(caller, message.id)
        except BaseException:
            self._open.give(_budget_key(caller.key))
            raise
        stream = EventStream(caller.mailbox, refused, until=message.id)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await stream(scope, receive, send)
            finally:
                self._open.give(_budget_key(caller.key))

        return Stream(app)


def _budget_key(owner: Owner) -> str:
    return f"{owner[0]}\0{owner[1] or ''}"


def _refusal(caller: Caller, message_id: str) -> list[bytes]:
    """Raise the error with which a request was refused at once; return what else came."""
    came = []
    while (frame := caller.mailbox.take()) is not None:
        message = decode_message(frame)
        if message.reply_to == message_id:
            caller.raise_error(message)
            came.append(event(message.type, frame))
    return came


async def _asked(caller: Caller, body: dict[str, Raw]) -> RequestAnswer:
    """Ask, and collect the answer."""
    message = create_message("route_request", body)
    caller.send(message)
    chunks: list[Raw] = []
    size = 0
    while True:
        answer = read(await caller.answer(message.id), RouteAnswer)
        if answer.done:
            break
        chunks.append(answer.chunk)
        size += len(bytes(answer.chunk))
        if size > caller.gateway.config.limits.max_buffered:
            raise GatewayError(ErrorCode.MESSAGE_TOO_LARGE, "the answer is too long: ask to stream")
    if bytes(answer.chunk) != NULL:
        chunks.append(answer.chunk)
    return RequestAnswer(
        request_id=answer.request_id,
        agent_id=answer.agent_id,
        ok=answer.ok,
        result=answer.result,
        error=answer.error,
        chunks=chunks or None,
    )


async def _agents(call: Call) -> Any:
    return (await call.caller.ask("agent_list", call.query)).payload


async def _explain(call: Call) -> Any:
    return (await call.caller.ask("route_explain", call.body or {})).payload


async def _open_requests(call: Call) -> RequestListing:
    call.caller.require("requests")
    router = call.caller.gateway.router
    now = router.now()
    return RequestListing(
        requests=[
            OpenRequest(
                id=request.id,
                asker_id=request.asker.id,
                user_id=request.asker.user_id,
                capability=request.wanted.capability,
                agent_id=request.wanted.agent_id,
                agent=request.agent.id if request.agent else None,
                waiting=request.pool is not None,
                age=round(now - request.asked_at, 3),
                timeout_ms=round((request.ends_at - request.asked_at) * 1000),
            )
            for request in router.open_requests()
            if call.caller.knows(request.asker.identity)
        ]
    )
