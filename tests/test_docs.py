"""The documentation: complete, current, and true where a machine can tell."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from trunkline import WebSocketGateway, WebSocketTransportConfig
from trunkline.authdb import AUTH_FILE
from trunkline.config import AuthConfig, LimitsConfig, convert_config
from trunkline.errors import CloseCode, ErrorCode
from trunkline.events import EVENTS
from trunkline.payloads import CLIENT_PAYLOADS, GATEWAY_PAYLOADS, MESSAGE_TYPES, PAYLOADS
from trunkline.rights import Condition
from trunkline.settings import settings_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
TUTORIAL = DOCS / "tutorial" / "first-agent.md"
TOKEN = "a-token-for-this-test"

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a language, without the indentation of their list."""
    for indent, found, block in _FENCE.findall(text_of(page)):
        if found == language:
            yield re.sub(f"^{indent}", "", block, flags=re.MULTILINE)


def blocks(language: str) -> list[Any]:
    found = [(page, block) for page in PAGES for block in fences(page, language)]
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}:{number}")
        for number, (page, block) in enumerate(found)
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    without_code = _FENCE.sub("", text_of(page))
    heads = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


# The reference


def test_the_generated_parts_are_current():
    """What stands in the pages is what the code says now; `make docs` writes it."""
    check = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert check.returncode == 0, check.stdout[-2000:] + check.stderr


@pytest.mark.parametrize("type", sorted(MESSAGE_TYPES))
def test_every_message_type_is_documented(type):
    """The reference has a section on each type."""
    assert f"### `{type}`\n" in text_of(REFERENCE / "protocol.md")


@pytest.mark.parametrize("kind", PAYLOADS, ids=lambda kind: kind.__name__)
def test_every_payload_says_what_it_is(kind):
    """The docstring of a payload is the first sentence of its documentation."""
    assert kind.__doc__


def test_every_error_code_and_close_code_is_documented():
    """No code is without a meaning."""
    page = text_of(REFERENCE / "protocol.md")

    for code in ErrorCode:
        assert re.search(rf"^\| `{code}` \| \S", page, re.MULTILINE), code
    for close in CloseCode:
        assert re.search(rf"^\| {int(close)} \| \S", page, re.MULTILINE), close


@pytest.mark.parametrize("setting", settings_table().values(), ids=lambda setting: setting.path)
def test_every_setting_is_documented(setting):
    """A setting has a docstring, and a row in the reference."""
    assert setting.doc
    assert f"| `{setting.path}` |" in text_of(REFERENCE / "configuration.md")


def test_every_event_is_documented():
    """An event has a row with its arguments and its meaning."""
    page = text_of(REFERENCE / "events.md")

    assert all(f"| `{event}` |" in page for event in EVENTS)


def test_every_condition_of_the_rights_is_explained():
    """Each word of the table of rights stands in the list below it."""
    listed = text_of(DOCS / "explanation" / "security.md").partition("| word | means |")[2]

    assert all(f"`{condition}`" in listed for condition in get_args(Condition))


# What the explanation of security says is shown


def proofs() -> dict[str, str]:
    """The rows of the tables of what is shown, by their first column."""
    shown = text_of(DOCS / "explanation" / "security.md").partition("## 9. What is shown")[2]
    return dict(re.findall(r"^\| `?([WST][-\w]*|limits\.\w+)`? \| (.+) \|$", shown, re.MULTILINE))


def test_every_test_that_is_said_to_show_something_exists():
    """Whoever renames or removes a test sees what it was for."""
    console = (ROOT / "tests" / "browser").exists()

    for row in proofs().values():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named or "not applicable" in row or "not shown" in row, row
        for file, name in named:
            if console or not file.startswith("browser/"):
                source = text_of(ROOT / "tests" / file)
                assert re.search(rf"\bdef {name}\(|^(class )?{name}\b", source, re.MULTILINE), name


def test_no_weakness_defect_or_limit_is_left_out():
    """Each has a row, be it to say that it is not shown."""
    ids = {f"W{number:02}" for number in range(1, 51)} | {f"S{number}" for number in range(1, 19)}
    limits = {f"limits.{field}" for field in LimitsConfig.__struct_fields__}

    assert ids | limits <= set(proofs())


def audited_actions() -> Iterator[str]:
    """The actions that the code puts into the audit log: every text of their form."""
    families = {"agent", "approval", "audit", "auth", "client", "config", "device", "gateway"}
    families |= {"session", "token", "user"}
    for module in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(text_of(module))):
            match node:
                case ast.Constant(value=str(text)) if re.fullmatch(r"[a-z]+\.[a-z]+", text):
                    if text.partition(".")[0] in families:
                        yield text
    yield from (f"token.{action}" for action in ("create", "revoke", "rotate"))
    yield from (f"user.{action}" for action in ("add", "remove", "passwd"))


def test_every_action_of_the_audit_log_is_explained():
    """Who reads the log finds each action in the table."""
    page = text_of(DOCS / "how-to" / "audit-and-logs.md")
    rows = re.findall(r"^\| (`[a-z.`, ]+`) \| \S", page, re.MULTILINE)
    explained = {action for row in rows for action in re.findall(r"`([a-z.]+)`", row)}

    others = {*settings_table(), AUTH_FILE}
    assert set(audited_actions()) - others - explained == set()


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def look_up(document: Any, pointer: str) -> Any:
    for part in pointer.removeprefix("#/").split("/"):
        document = document[part]
    return document


@pytest.mark.parametrize("name", ["protocol.schema.json", "asyncapi.json"])
def test_every_reference_within_a_schema_leads_somewhere(name):
    """The generated documents are whole."""
    document = json.loads(text_of(REFERENCE / name))

    found = set(references(document))

    assert found
    assert all(look_up(document, pointer) is not None for pointer in found)


def test_the_schema_has_every_message_of_both_directions():
    """What a client may send and what the gateway sends are complete."""
    schemas = json.loads(text_of(REFERENCE / "protocol.schema.json"))["$defs"]

    for name, payloads in (("ClientMessage", CLIENT_PAYLOADS), ("GatewayFrame", GATEWAY_PAYLOADS)):
        types = {choice["properties"]["type"]["const"] for choice in schemas[name]["anyOf"]}
        assert types == set(payloads)


# The pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    """Relative links name files that exist, and headings that they have."""
    for link in _LINK.findall(_FENCE.sub("", text_of(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_runs(block, tmp_path, monkeypatch):
    """An example is a program: it compiles, and defines what it says without an error."""
    monkeypatch.chdir(tmp_path)  # where it may leave its files
    # A program's own start waits for a gateway; the tutorial's are run below.
    program = re.sub(r"^asyncio\.run\(.*$", "", block, flags=re.MULTILINE)

    exec(compile(program, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_toml_block_is_a_configuration(block):
    """The settings in the documentation exist, and take these values."""
    assert convert_config(tomllib.loads(block))


def commands() -> list[list[str]]:
    """Every `trunkline` command line of the documentation."""
    text = "\n".join(block for page in PAGES for _, _, block in _FENCE.findall(text_of(page)))
    lines = re.findall(r"^\$ (?:.*\| *)?\S*?trunkline (.+)$", text, re.MULTILINE)
    return [shlex.split(line.partition(" > ")[0]) for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_line_has_words_that_exist(words):
    """Commands and options in the documentation are those of the program."""
    reference = text_of(REFERENCE / "cli.md")
    name = next(n for n in (2, 1) if f"### `trunkline {' '.join(words[:n])}`\n" in reference)
    section = reference.partition(f"### `trunkline {' '.join(words[:name])}`\n")[2]

    options = [word for word in words[name:] if word.startswith("--")]

    assert all(f"`{option}`" in section.partition("\n###")[0] for option in options)


# The tutorial


@asynccontextmanager
async def program(folder: Path, source: str, gateway: WebSocketGateway) -> AsyncIterator[Any]:
    """Run a program of the tutorial beside a gateway."""
    path = folder / "program.py"
    path.write_text(source, encoding="utf-8")
    environment = {**os.environ, "TRUNKLINE_URL": gateway.address, "TRUNKLINE_TOKEN": TOKEN}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, path), env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def ask(folder: Path, gateway: WebSocketGateway, text: str) -> str:
    """Ask as the tutorial does, from a terminal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trunkline", "chat", "--once"),
        *("--url", gateway.address, "--token", TOKEN, "--data-dir", str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(text.encode())
    return output.decode().strip()


@asynccontextmanager
async def agent_of_the_tutorial(number: int, folder: Path) -> AsyncIterator[WebSocketGateway]:
    """A gateway on which an agent of the tutorial serves."""
    config = WebSocketTransportConfig(port=0, auth=AuthConfig(token=TOKEN))
    async with WebSocketGateway(config) as gateway:
        arrived = asyncio.Event()
        gateway.on("session:join", lambda session, client: arrived.set())
        source = list(fences(TUTORIAL, "python"))[number]
        async with program(folder, source, gateway):
            await arrived.wait()
            yield gateway


async def test_the_first_agent_of_the_tutorial_answers(tmp_path):
    """The reader of the second step sees what the page shows."""
    async with agent_of_the_tutorial(0, tmp_path) as gateway:
        answer = await ask(tmp_path, gateway, "good morning")

    assert answer == "You said: good morning"
    assert answer in text_of(TUTORIAL)


async def test_the_second_agent_of_the_tutorial_uses_its_tool(tmp_path):
    """The reader of the third and the fourth step sees what the page shows."""
    other = tmp_path / "other"
    other.mkdir()
    async with agent_of_the_tutorial(1, tmp_path) as gateway:
        answer = await ask(tmp_path, gateway, "2 apples and 3 pears")
        source = list(fences(TUTORIAL, "python"))[2]
        async with program(other, source, gateway) as process:
            output = (await process.stdout.read()).decode()

    assert answer == "That makes 5."
    assert "the tool says 6.5" in output
    assert output in text_of(TUTORIAL)
