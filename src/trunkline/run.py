"""
The composition root: one configuration becomes one running gateway.

Everything that the gateway is made of is chosen here, and here only: where the
logs go, which store keeps the sessions, who shares the port, and how the
process ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import structlog
from msgspec.structs import replace

from trunkline.audit import Audit
from trunkline.auth import OWNER
from trunkline.authdb import AUTH_FILE, AuthDatabase
from trunkline.config import (
    DEFAULT_WS_CONFIG,
    AuthConfig,
    Secret,
    WebSocketTransportConfig,
    bind_address,
    is_loopback_address,
)
from trunkline.errors import ConfigError
from trunkline.events import AuditEntry
from trunkline.failpoints import Failpoint
from trunkline.history import History
from trunkline.history.sqlite import SqliteHistory
from trunkline.logs import Logs, configure_logs
from trunkline.records import Records
from trunkline.records.sqlite import SqliteRecords
from trunkline.reloads import Reloader, Source
from trunkline.settings import TOKEN_FILE, data_folder, ensure_token, secrets_of
from trunkline.stalls import StallWatch
from trunkline.tailscale import TailscaleShare, prepare_share
from trunkline.transports.listener import ListenerOptions, make_ssl_context
from trunkline.transports.websocket import WebSocketGateway

T = TypeVar("T")

LOG_FILE = "log.db"
"""The file in the data folder that holds the sessions' logs and the records."""

SWITCH_INTERVAL = 0.0005
"""Seconds; at Python's own 0.005 the thread that commits waits long for a busy loop."""

GC_THRESHOLD = 50_000
"""
Objects made and not freed until Python looks for unused cycles; its own 700
makes a busy gateway, which has few cycles, spend an eighth of its time looking.
"""

OTHER_FILES = 256
"""
Open files that a gateway may need besides the connections of its port: databases, pipes, keys
fetched, the port of the metrics.
"""

AGENT_PATIENCE = 5.0
"""Seconds that the demo agent has to end by itself."""

log = structlog.get_logger(__name__)


def make_stores(
    config: WebSocketTransportConfig, failpoint: Failpoint | None = None
) -> tuple[History | None, Records | None]:
    """Make the stores that a configuration asks for; None stands for memory."""
    kept = config.history
    if kept.store == "memory":
        return None, None
    history = SqliteHistory(
        data_folder({}, config.data_dir) / LOG_FILE,
        durability=kept.durability,
        max_messages=kept.max_messages,
        max_age=kept.max_age,
        max_bytes=kept.max_bytes,
        failpoint=failpoint,
    )
    return history, SqliteRecords(history.database)


def open_authdb(config: WebSocketTransportConfig) -> AuthDatabase:
    """
    Open the credentials and users in a configuration's data folder.

    Raises:
        ConfigError: The file is damaged, cannot be used, or others may read it.
    """
    return AuthDatabase(data_folder({}, config.data_dir) / AUTH_FILE)


def make_gateway(
    config: WebSocketTransportConfig,
    failpoint: Failpoint | None = None,
    authdb: AuthDatabase | None = None,
) -> WebSocketGateway:
    """
    Make the gateway that a configuration describes, without starting it.

    Args:
        authdb: Its credentials and users, see `open_authdb`.
        failpoint: Where a test wants the process to end, if anywhere.

    Raises:
        ConfigError: The configuration cannot work.
    """
    history, records = make_stores(config, failpoint)
    tls = config.tls
    if tls.cert is not None and tls.key is not None:
        try:
            make_ssl_context(tls.cert, tls.key)
        except OSError as error:
            raise ConfigError(f"tls.cert and tls.key do not work: {error}") from None
    return WebSocketGateway(
        config, history=history, records=records, authdb=authdb, failpoint=failpoint
    )


def check(config: WebSocketTransportConfig) -> WebSocketTransportConfig:
    """
    Return a configuration that works, without listening or writing anything.

    Raises:
        ConfigError: `serve` would refuse it.
    """
    auth = config.auth
    if auth.required and auth.mode == "token" and auth.token is None:
        made_by_first_run = replace(auth, token=Secret(secrets.token_urlsafe()))
        make_gateway(replace(config, auth=made_by_first_run))
    else:
        make_gateway(config)
    return config


class Reloading(NamedTuple):
    """When to read the configuration anew, and where."""

    source: Source
    asked: asyncio.Event


@asynccontextmanager
async def running(
    config: WebSocketTransportConfig,
    failpoint: Failpoint | None = None,
    reloading: Reloading | None = None,
) -> AsyncIterator[WebSocketGateway]:
    """
    Run a gateway, and the logs of its process, for as long as the context lasts.

    Args:
        config: A configuration that has its credential, see `settings.ensure_token`.
        failpoint: Where a test wants the process to end, if anywhere.
        reloading: When to read the configuration anew, and where; absent: never.

    Raises:
        ConfigError: The configuration cannot work on this machine.
        OSError: The address cannot be listened on.
        TailscaleError: The gateway could not be shared.
    """
    logs = configure_logs(config.log, secrets=secrets_of(config))
    _warn(config)
    _tune_process(config)
    async with AsyncExitStack() as stack:
        flusher = asyncio.create_task(_flush(logs))
        stack.callback(flusher.cancel)
        watch = StallWatch()
        watch.start()
        stack.callback(watch.stop)
        share: TailscaleShare | None = None
        if config.bind == "tailscale":
            share = await prepare_share(config.tailscale)
            config = share.apply(config)
        authdb = stack.enter_context(closing(open_authdb(config)))
        audit = stack.enter_context(closing(Audit(authdb, config.audit)))
        gateway = make_gateway(config, failpoint, authdb)
        keep_audit(gateway, audit)
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        if share is not None:
            stack.push_async_callback(share.stop)
            await share.start(gateway.port)
            log.info("shared over tailscale", url=share.url)
        if reloading is not None:
            apply = _same if share is None else share.apply
            reloader = Reloader(gateway, logs, reloading.source, apply)
            task = asyncio.create_task(_reload_when(reloading.asked, reloader, gateway))
            stack.callback(task.cancel)
        yield gateway


def _same(config: WebSocketTransportConfig) -> WebSocketTransportConfig:
    return config


async def _reload_when(asked: asyncio.Event, reloader: Reloader, gateway: WebSocketGateway) -> None:
    while True:
        await asked.wait()
        asked.clear()
        reloader.reload()
        _allow_files(files_needed(gateway.config))


def keep_audit(gateway: WebSocketGateway, audit: Audit) -> None:
    """Write down what the gateway's features tell of, and its start and stop."""
    gateway.access.audit = audit
    gateway.on("audit", audit.append)
    number = {"version": version("trunkline")}
    gateway.on("started", lambda: audit.append(AuditEntry(action="gateway.start", detail=number)))
    gateway.on("stopped", lambda: audit.append(AuditEntry(action="gateway.stop", detail=number)))


def _warn(config: WebSocketTransportConfig) -> None:
    address = bind_address(config)
    if not is_loopback_address(address) and config.tls.cert is None:
        log.warning(
            "messages travel unencrypted: set tls.cert and tls.key, or put a proxy with TLS before",
            address=address,
        )
    if not config.auth.required:
        log.warning("sign-in is off: whoever reaches the gateway is its owner", address=address)


def _tune_process(config: WebSocketTransportConfig) -> None:
    """Set what Python and the system choose for small programs."""
    if config.history.durability == "disk":
        sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what was imported stays
    gc.set_threshold(GC_THRESHOLD)
    _allow_files(files_needed(config))


def files_needed(config: WebSocketTransportConfig) -> int:
    """Return how many files a gateway may have open, its connections among them."""
    port = ListenerOptions()
    # As many as the kernel keeps may come at once, before the first of them is counted.
    strangers = port.max_pending + port.max_refused + port.backlog
    return config.limits.max_connections + config.limits.http_connections + strangers + OTHER_FILES


def _allow_files(needed: int) -> None:
    """Raise the limit of open files if it is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (OSError, ValueError):  # some systems have a limit behind the limit
            allowed = soft
    if allowed < needed:
        log.warning("not all connections fit: raise the limit of open files", needed=needed)


async def _flush(logs: Logs) -> None:
    while True:
        await asyncio.sleep(1)
        logs.flush()


async def serve(
    config: WebSocketTransportConfig,
    failpoint: Failpoint | None = None,
    source: Source | None = None,
) -> None:
    """
    Run a gateway until SIGTERM or SIGINT, then send everybody away in good order.

    A second signal ends the process at once; what was acknowledged stays
    stored. SIGHUP reads the configuration and the certificate anew. Prints one line to stdout when connections are accepted. A new
    token is shown on stderr, this once.

    Args:
        config: The gateway's configuration.
        failpoint: Where a test wants the process to end, if anywhere.
        source: Where the configuration came from; absent: it is not read again.

    Raises:
        ConfigError: The configuration cannot work on this machine.
        OSError: The address cannot be listened on.
        TailscaleError: The gateway could not be shared.
    """
    stop = stop_signal()
    reloading = Reloading(source, reload_signal(stop)) if source is not None else None
    config, created = ensure_token(config)
    if created:
        show_token(config)
    async with running(config, failpoint, reloading) as gateway:
        print(f"trunkline {version('trunkline')} listening on {gateway.address}", flush=True)
        await stop.wait()
        log.info("stopping")
        await gateway.drain()


async def demo(config: WebSocketTransportConfig, command_line: Callable[[str], str]) -> None:
    """
    Run a gateway and, in a process of its own, the demo agent, until SIGTERM or SIGINT.

    Args:
        config: The gateway's configuration.
        command_line: Makes what a person types of the name of a command.

    Raises:
        ConfigError: The configuration cannot work on this machine.
        OSError: The address cannot be listened on.
    """
    stop = stop_signal()
    config, _ = ensure_token(config)
    async with running(config) as gateway, asyncio.TaskGroup() as tasks:
        arrived = asyncio.Event()
        gateway.on("agent:registered", lambda *_: _agent_came(arrived))
        keeper = tasks.create_task(_keep_agent(gateway.address, config.auth))
        introducing = tasks.create_task(_introduce(config, gateway, command_line, arrived))
        await stop.wait()
        keeper.cancel()
        introducing.cancel()


def _agent_came(arrived: asyncio.Event) -> None:
    if arrived.is_set():
        log.warning("the demo agent is back")
    arrived.set()


async def _keep_agent(url: str, auth: AuthConfig) -> None:
    """Run the demo agent; start it again, later each time, when it ends by itself."""
    credential = json.dumps({"token": auth.token, "password": auth.password}).encode()
    pause = 1.0
    while True:
        # Its input brings the credential, and ends when this process does, however that
        # happens; a session of its own keeps Ctrl-C from it, so that it is ended in order.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trunkline.demo", url),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(credential + b"\n")
            code = await process.wait()
        finally:
            await _end(process)
        log.error("the demo agent ended and will be started again", code=code, after=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 30.0)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(AGENT_PATIENCE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _introduce(
    config: WebSocketTransportConfig,
    gateway: WebSocketGateway,
    command_line: Callable[[str], str],
    arrived: asyncio.Event,
) -> None:
    await arrived.wait()
    url = gateway.address
    usual = url == f"http://127.0.0.1:{DEFAULT_WS_CONFIG.port}"
    chat, fresh = (
        command_line(name) + ("" if usual else f" --url {url}") for name in ("chat", "open")
    )
    print(
        f"trunkline {version('trunkline')} listening on {url}\n\n"
        f"  address  {url}\n"
        f"  token    {config.auth.token or 'none needed'}\n"
        f"  agent    demo\n\n"
        f"Talk to it in another terminal:\n\n    {chat}\n\n{_invite(gateway, fresh)}"
        "Ctrl-C ends both.",
        flush=True,
    )


def _invite(gateway: WebSocketGateway, fresh: str) -> str:
    """Return what a person is told of the console."""
    if gateway.codes is None:
        return f"Or in a browser:\n\n    {gateway.address}/\n\n"
    code, _ = gateway.codes.create(OWNER)
    return (
        f"Or in a browser; the link is good for one sign-in within two minutes:\n\n"
        f"    {gateway.address}/#code={code}\n\n"
        f"Another link, any time:\n\n    {fresh}\n\n"
    )


def show_token(config: WebSocketTransportConfig) -> None:
    """Tell the owner of a new token, on stderr."""
    print(
        f"A token was made for this gateway and is kept in {config.data_dir}/{TOKEN_FILE}:\n\n"
        f"    {config.auth.token}\n",
        file=sys.stderr,
        flush=True,
    )


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; the second signal ends the process."""
    stop = asyncio.Event()

    def received(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    return stop


def reload_signal(stop: asyncio.Event) -> asyncio.Event:
    """Return an event that SIGHUP sets; where our terminal is gone, it sets `stop` instead."""
    asked = asyncio.Event()
    attended = os.isatty(0)

    def received() -> None:
        gone = attended and not os.isatty(0)
        (stop if gone else asked).set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)
    return asked


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on the fastest event loop that this platform has."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
