"""
The demo agent: an ordinary agent, in a process of its own, made with the SDK.

It has no model. It recognises a few kinds of question, calls one of its tools
for them, and streams its answer word by word as a model would.
"""

from __future__ import annotations

import ast
import asyncio
import json
import operator
import random
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from trunkline.sdk.agent import Agent
from trunkline.sdk.context import RunContext, ToolContext
from trunkline.sdk.errors import ToolError
from trunkline.sdk.messages import Message

HELP = (
    "I am the demo agent. I have no model, but I can show how answers stream and tools run. "
    'Ask me "what time is it in Tokyo", "2*(3+4)", "roll 3d6", or "count" and some text.'
)

STEP = 0.05
"""Seconds between two steps of a tool's progress, and about between two words."""

LEAVE = 2.0
"""Seconds for finishing answers and taking leave of the gateway."""

MAX_EXPRESSION = 200
"""Characters of an expression that `calculate` takes."""

MAX_QUESTION = 500
"""Characters of a message in which a question is looked for."""

MAX_RESULT_BITS = 4096
"""Size of the integers that `calculate` makes at most."""


def clock(zone: str = "UTC", ctx: ToolContext | None = None) -> str:
    """Tell the time in a time zone or a city."""
    _show_work(ctx, "reading the clock")
    name = _zones().get(zone.strip().lower().replace(" ", "_"))
    if name is None:
        raise ToolError(f"I know no time zone or city named {zone.strip()!r}.")
    return f"{datetime.now(ZoneInfo(name)):%H:%M on %A, %d %B %Y} ({name})"


@cache
def _zones() -> dict[str, str]:
    """Map names in lower case, and their last parts, to time zones."""
    found: dict[str, str] = {"utc": "UTC", "gmt": "UTC"}
    for name in sorted(available_timezones()):
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            continue  # a name without data on this machine
        found.setdefault(name.rpartition("/")[2].lower(), name)
        found[name.lower()] = name
    return found


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str, ctx: ToolContext | None = None) -> str:
    """Work out an arithmetic expression with + - * / // % ** and brackets."""
    _show_work(ctx, "working it out")
    if len(expression) > MAX_EXPRESSION:
        raise ToolError(f"That is longer than {MAX_EXPRESSION} characters.")
    try:
        value = _value(ast.parse(expression.replace("^", "**").strip(), mode="eval").body)
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    except ZeroDivisionError:
        raise ToolError("Nobody can divide by zero.") from None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise ToolError(f"I cannot work out {expression!r}.") from None


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _number(_UNARY[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow):
                _check_power(a, b)
            return _number(_BINARY[type(op)](a, b))
    raise ValueError(type(node).__name__)


def _check_power(base: float, exponent: float) -> None:
    # A power is refused by the size of its result, before it is worked out.
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and int(base).bit_length() * abs(exponent) > MAX_RESULT_BITS:
        raise OverflowError


def _number(value: Any) -> int | float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_RESULT_BITS:
        return value
    raise OverflowError  # too large, or complex


def count_text(text: str, ctx: ToolContext | None = None) -> dict[str, int]:
    """Count the characters, words and sentences of a text."""
    _show_work(ctx, "counting")
    return {
        "characters": len(text),
        "words": len(text.split()),
        "sentences": sum(bool(part.strip()) for part in re.split(r"[.!?]+", text)),
    }


def roll_dice(dice: str = "1d6", ctx: ToolContext | None = None) -> list[int]:
    """Roll dice, written like 3d6: three dice with six sides."""
    _show_work(ctx, "rolling")
    match = re.fullmatch(r"(\d{0,3})d(\d{1,4})", dice.strip().lower())
    number, sides = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if not (1 <= number <= 100 and sides >= 2):
        raise ToolError("Write dice like 3d6: at most 100 of them, with 2 to 9999 sides.")
    return [random.randint(1, sides) for _ in range(number)]


def _show_work(ctx: ToolContext | None, message: str) -> None:
    # The tools are done in no time; this is what one that is not looks like.
    if ctx is not None:
        for percent in (0, 30, 60, 90):
            ctx.progress(percent, message)
            time.sleep(STEP)


class Call(NamedTuple):
    """A tool that a message asks for."""

    tool: str
    args: dict[str, Any]


def understand(message: str) -> Call | None:
    """Find the tool that a message asks for, if it asks for one."""
    text = re.sub(r"^@[\w.:-]+[,:]?\s*", "", message.strip())
    if match := re.match(r"count\b[:,]?\s*(.*)", text, re.IGNORECASE | re.DOTALL):
        return Call("count_text", {"text": match[1].strip("\"' ")})
    if len(text) > MAX_QUESTION:
        return None
    if match := re.search(r"\broll\b\D*?(\d{0,3}d\d{1,4})?\W*$", text, re.IGNORECASE):
        return Call("roll_dice", {"dice": match[1] or "1d6"})
    if re.search(r"\b(what\b.*\btime|time (is|in|it))\b", text, re.IGNORECASE):
        place = re.search(r"\bin\s+([\w/ +-]+)", text, re.IGNORECASE)
        return Call("clock", {"zone": place[1].strip() if place else "UTC"})
    return _sum(text)


def _sum(text: str) -> Call | None:
    bare = re.sub(r"^(what is|what's|calculate|compute)\s+|[=?\s]+$", "", text, flags=re.IGNORECASE)
    allowed = re.fullmatch(r"[\d\s.+*/%^()-]+", bare)
    if allowed and re.search(r"\d", bare) and re.search(r"[+*/%^-]", bare):
        return Call("calculate", {"expression": bare})
    return None


def answer(call: Call, output: Any) -> str:
    """Make a sentence of what a tool gave."""
    match call.tool:
        case "clock":
            return f"It is {output}."
        case "calculate":
            return f"{call.args['expression']} = {output}"
        case "roll_dice":
            rolled = ", ".join(map(str, output))
            return f"You rolled {rolled}" + (f": {sum(output)} in all." if output[1:] else ".")
    counts = (f"{n} {what if n != 1 else what[:-1]}" for what, n in output.items())
    return f"I count {', '.join(counts)}."


def reply(message: str) -> str:
    """Answer a message that asks for no tool."""
    if re.match(r"\W*(help|hi|hello|hey)\b", message.strip(), re.IGNORECASE):
        return HELP
    return f"You said: {message.strip()}\nI only know a few tricks; say help to see them."


def demo_agent() -> Agent:
    """Make the agent."""
    agent = Agent("demo", name="Demo agent", sessions=["lobby"], drain_timeout=2.0)
    for tool in (clock, calculate, count_text, roll_dice):
        agent.add_tool(tool)

    @agent.on_chat
    async def talk(run: RunContext, message: Message) -> AsyncGenerator[str, None]:
        for piece in re.findall(r"\S+\s*", await _say(run, message.text)):
            yield piece
            await asyncio.sleep(STEP)

    return agent


async def _say(run: RunContext, message: str) -> str:
    call = understand(message)
    if call is None:
        return reply(message)
    try:
        return answer(call, await run.tool(call.tool, call.args))
    except ToolError as error:
        return error.message


async def serve(url: str) -> None:
    """
    Serve the gateway at `url` until standard input ends, or SIGTERM.

    The first line of the input is JSON, ``{"token", "password"}``: there a
    credential shows neither in the list of processes nor in the environment.
    """
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    options = {"device_name": "demo", **json.loads(await commands.readline())}
    agent = demo_agent()
    loop.add_signal_handler(signal.SIGTERM, agent.stop)
    serving = asyncio.create_task(agent.serve(url, **options))
    parent = asyncio.create_task(commands.read())
    await asyncio.wait([serving, parent], return_when=asyncio.FIRST_COMPLETED)
    parent.cancel()
    agent.stop()
    # A gateway that is gone lets nobody take leave.
    ended, _ = await asyncio.wait([serving], timeout=LEAVE)
    serving.cancel()
    for task in ended:
        task.result()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
