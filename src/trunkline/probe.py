"""
Reach a gateway step by step, and name the step that fails and what mends it.

The steps are those that every client takes: TCP, TLS, HTTP, the upgrade,
``session_info``, ``connect``, ``auth``, ``ping`` and the second hello. They are
taken one by one here, without the SDK, which would come back by itself and
say only that it could not.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import websockets.asyncio.client as ws_client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Origin, Subprotocol

from trunkline.errors import ErrorCode
from trunkline.messages import (
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    GatewayMessage,
    create_message,
    decode_message,
    encode,
)
from trunkline.sdk.policy import endpoint, is_loopback
from trunkline.version import package_version

PATIENCE = 10.0
"""Seconds that one step may take."""

_CONNECT = {
    "protocolVersion": PROTOCOL_VERSION,
    "deviceId": "trunkline-doctor",
    "deviceName": "trunkline doctor",
}

State = Literal["ok", "warning", "failed", "skipped"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found."""

    check: str
    """What was checked, in a word or two."""
    state: State
    said: str
    """What was found, in a sentence."""
    mend: str | None = None
    """The command, setting or deed that mends it."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway to reach, and as whom."""

    url: str
    token: str | None = None
    password: str | None = None
    user: str | None = None
    """Whose password it is; absent: the owner's."""
    origin: str | None = None
    """The origin of the web page to appear as; absent: as a program."""

    def __repr__(self) -> str:
        return f"Target({self.url!r})"


class Trouble(Exception):
    """
    A step failed.

    Args:
        said: What happened, in a sentence.
        mend: What to do.
    """

    def __init__(self, said: str, mend: str | None = None) -> None:
        super().__init__(said)
        self.mend = mend


class _Warned(Exception):
    """A step went well, but somebody should know something; like `Trouble`."""

    def __init__(self, said: str, mend: str | None = None) -> None:
        super().__init__(said)
        self.mend = mend


async def reach(target: Target) -> AsyncIterator[Finding]:
    """Take every step to a gateway; those behind one that fails are skipped."""
    visit = _Visit(target)
    failed = ""
    try:
        for name, step in visit.steps():
            if failed:
                yield Finding(check=name, state="skipped", said=f"{failed} comes first")
                continue
            finding = await _taken(name, step)
            failed = name if finding.state == "failed" else ""
            yield finding
    finally:
        await visit.leave()


async def _taken(name: str, step: Callable[[], Awaitable[str]]) -> Finding:
    try:
        async with asyncio.timeout(PATIENCE):
            return Finding(check=name, state="ok", said=await step())
    except _Warned as warned:
        return Finding(check=name, state="warning", said=str(warned), mend=warned.mend)
    except Trouble as trouble:
        return Finding(check=name, state="failed", said=str(trouble), mend=trouble.mend)
    except TimeoutError:
        said = f"no answer within {PATIENCE:.0f} s"
        mend = "look whether the gateway hangs, or a firewall or proxy holds the traffic back"
        return Finding(check=name, state="failed", said=said, mend=mend)
    except ConnectionClosed as closed:
        end = closed.rcvd
        said = f"the connection was closed ({f'{end.code} {end.reason}' if end else 'cut off'})"
        return Finding(check=name, state="failed", said=said, mend="look into the gateway's log")


class _Visit:
    """One way through the steps, and what was learned on it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        parts = urlsplit(target.url)
        self._tls = parts.scheme in ("https", "wss")
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._base = f"{'https' if self._tls else 'http'}://{parts.netloc}"
        self._context = ssl.create_default_context() if self._tls else None
        self._socket: ws_client.ClientConnection | None = None
        self._info: dict[str, Any] = {}

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        """Return the steps in their order."""
        return [
            ("tcp", self._tcp),
            *([("tls", self._handshake)] if self._tls else []),
            ("http", self._http),
            ("ready", self._ready),
            ("upgrade", self._upgrade),
            ("session_info", self._welcome),
            ("connect", self._connect),
            ("auth", self._auth),
            ("ping", self._ping),
            ("hello", self._hello),
        ]

    async def leave(self) -> None:
        """Close what is open."""
        if self._socket is not None:
            await self._socket.close()

    # Up to the gateway

    async def _tcp(self) -> str:
        where = f"{self._host}:{self._port}"
        try:
            _, writer = await asyncio.open_connection(self._host, self._port)
        except socket.gaierror:
            raise Trouble(
                f"the name {self._host} is unknown", "look at the spelling of --url, and at the DNS"
            ) from None
        except ConnectionRefusedError:
            near = is_loopback(self._host)
            raise Trouble(
                f"nothing listens on {where}",
                "trunkline serve" if near else "start the gateway there, or look at its port",
            ) from None
        except OSError as error:
            raise Trouble(
                f"{where} cannot be reached: {error.strerror or error}",
                "look at the network, and at firewalls on the way",
            ) from None
        writer.close()
        return f"{where} answers"

    async def _handshake(self) -> str:
        try:
            _, writer = await asyncio.open_connection(self._host, self._port, ssl=self._context)
        except ssl.SSLCertVerificationError as error:
            raise _bad_certificate(error, self._host) from None
        except (OSError, EOFError) as error:
            raise Trouble(
                f"no TLS there: {getattr(error, 'reason', None) or error}",
                f"if the gateway has no TLS: --url {self._base.replace('https', 'http', 1)}",
            ) from None
        version = writer.get_extra_info("ssl_object").version()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return f"{version}, the certificate is valid for {self._host}"

    async def _get(self, path: str) -> httpx.Response:
        verify = self._context or False
        try:
            async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
                return await client.get(self._base + path, timeout=PATIENCE)
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:
            other = self._base.replace("http", "https", 1)
            raise Trouble(
                f"what listens there does not speak HTTP ({error})",
                None if self._tls else f"if it speaks TLS: --url {other}",
            ) from None

    async def _http(self) -> str:
        answer = await self._get("/healthz")
        if answer.status_code != 200:
            raise self._refused(answer.status_code, answer.text, answer.headers.get("location"))
        try:
            status = answer.json()["status"]
        except (ValueError, KeyError, TypeError):
            raise self._somebody_else("its health is not that of a gateway") from None
        return f"the gateway lives ({str(status)[:20]})"

    async def _ready(self) -> str:
        answer = await self._get("/readyz")
        if answer.status_code == 200:
            return "it takes new connections"
        if answer.status_code == 503:
            raise Trouble(
                "it takes no new connections: it is starting or stopping",
                "wait a moment; look into the gateway's log",
            )
        raise self._somebody_else(f"/readyz is answered by HTTP {answer.status_code}")

    def _somebody_else(self, why: str) -> Trouble:
        return Trouble(
            f"something else than a gateway answers there: {why}",
            f"look what listens: ss -ltnp 'sport = :{self._port}'"
            if is_loopback(self._host)
            else "look at --url, and where the proxy passes requests to",
        )

    def _refused(self, status: int, body: str, location: str | None = None) -> Trouble:
        why = _reason(body)
        match status:
            case 421:
                return Trouble(
                    f"the gateway is not reached under the name {self._host} (421)",
                    f'set origins.allowed_hosts = ["{self._host}"], restart the gateway',
                )
            case 403:
                return self._forbidden(why)
            case 400:
                return Trouble(
                    f"the request was refused as malformed (400): {why}",
                    "look which headers a proxy adds: proxies.trusted and proxies.family",
                )
            case 401:
                return Trouble("a proxy before the gateway wants a sign-in of its own (401)")
            case 502 | 504:
                return Trouble(
                    f"the proxy cannot reach the gateway ({status})",
                    "look whether the gateway runs, and at the proxy's upstream address",
                )
            case 503 | 429:
                return Trouble(f"the gateway takes no more ({status}): {why}", "wait, try again")
            case _ if 300 <= status < 400:
                return Trouble(
                    f"the address redirects to {location or 'another one'} ({status})",
                    "give the final address with --url: clients follow no redirects",
                )
        return self._somebody_else(f"HTTP {status}")

    def _forbidden(self, why: str) -> Trouble:
        if self._target.origin is not None:
            return Trouble(
                f"pages of {self._target.origin} may not connect (403)",
                f'set origins.allowed_origins = ["{self._target.origin}"], restart the gateway',
            )
        return Trouble(
            f"the gateway refused the request (403): {why}",
            "is there a proxy that it does not know? Set proxies.trusted to its address",
        )

    # Through the handshake

    async def _upgrade(self) -> str:
        url = endpoint(self._target.url, secret=False)
        origin = self._target.origin
        try:
            self._socket = await ws_client.connect(
                url,
                ssl=self._context,
                origin=Origin(origin) if origin is not None else None,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                proxy=None,
                compression=None,
                open_timeout=PATIENCE,
                ping_interval=None,
                close_timeout=1,
                max_size=None,
                process_exception=lambda error: error,
            )
        except InvalidStatus as refusal:
            raise self._no_upgrade(refusal.response.status_code, refusal.response.body) from None
        except (InvalidHandshake, EOFError, OSError) as error:
            raise Trouble(f"the upgrade failed: {error}", "look at the proxy on the way") from None
        return f"a WebSocket is open at {urlsplit(url).path}"

    def _no_upgrade(self, status: int, body: bytes | bytearray | None) -> Trouble:
        text = bytes(body or b"").decode(errors="replace")
        if status == 404:
            return Trouble(
                "there is no WebSocket at this path (404)",
                "leave the path out of --url, or give the one of the setting `path`",
            )
        if status in (200, 426):
            return Trouble(
                f"the request to upgrade did not arrive as such ({status})",
                "the proxy must pass on Upgrade and Connection: see docs/how-to/run-behind-a-proxy",
            )
        return self._refused(status, text)

    async def _welcome(self) -> str:
        message = await self._next()
        if message.type != "session_info":
            raise Trouble(f"the first message is {message.type[:40]!r}, not session_info")
        self._info = message.data()
        return f"this connection is {str(self._info.get('sessionId'))[:40]}"

    async def _next(self, reply_to: str | None = None) -> GatewayMessage:
        assert self._socket is not None
        while True:
            try:
                message = decode_message(await self._socket.recv())
            except (msgspec.DecodeError, msgspec.ValidationError):
                raise Trouble("what came is no message of a gateway") from None
            if reply_to is None or message.reply_to == reply_to:
                return message

    async def _ask(self, type: str, payload: dict[str, Any]) -> dict[str, Any]:
        assert self._socket is not None
        message = create_message(type, msgspec.Raw(encode(payload)))
        await self._socket.send(encode(message).decode())
        answer = await self._next(message.id)
        data: dict[str, Any] = answer.data()
        if answer.type == "error":
            raise _Denied(data)
        return data

    async def _connect(self) -> str:
        try:
            hello = await self._ask("connect", _CONNECT)
        except _Denied as denied:
            mend = "give client and gateway the same version of Trunkline"
            raise Trouble(f"the gateway refused: {denied}", mend) from None
        return f"it speaks protocol {hello.get('protocolVersion')}"

    async def _auth(self) -> str:
        target = self._target
        if not self._info.get("authRequired", True):
            if is_loopback(self._host):
                return "sign-in is off: everybody on this machine is let in"
            raise _Warned("sign-in is off: everybody is let in", 'set auth.mode = "token"')
        if target.token is None and target.password is None:
            raise Trouble(
                "the gateway wants a credential, and there is none",
                "give --token, or --data-dir where the gateway on this machine keeps its token",
            )
        if not self._tls and not is_loopback(self._host):
            raise Trouble(
                "a credential would travel unencrypted, so it was not sent",
                f"use https: --url {self._base.replace('http', 'https', 1)}",
            )
        given = {"token": target.token} if target.token else {"password": target.password}
        if target.user is not None and not target.token:
            given["user"] = target.user
        try:
            granted = await self._ask("auth", given)
        except _Denied as denied:
            raise denied.as_trouble(target) from None
        return f"signed in as {str(granted.get('userId'))[:64]}, role {granted.get('role')}"

    async def _ping(self) -> str:
        start = time.perf_counter()
        await self._ask("ping", {})
        return f"answered in {(time.perf_counter() - start) * 1000:.1f} ms"

    async def _hello(self) -> str:
        hello = await self._ask("connect", _CONNECT)
        version = str(hello.get("serverVersion"))[:40]
        said = f"trunkline {version}, up {round(hello.get('uptime', 0) / 1000)} s"
        if version != package_version():
            raise _Warned(f"{said}; this command is of {package_version()}", "upgrade the older")
        return said


class _Denied(Exception):
    """The gateway answered with an error."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(f"{data.get('code')}: {data.get('message')}")
        self.code = data.get("code")
        details = data.get("details")
        self.after = details.get("retryAfterMs") if isinstance(details, dict) else None

    def as_trouble(self, target: Target) -> Trouble:
        """Say what is wrong with a sign-in."""
        what = "token" if target.token else "password"
        if self.code == ErrorCode.AUTH_LOCKED:
            return Trouble(
                "too many wrong credentials came from this address",
                f"wait {round((self.after or 300_000) / 1000)} s, then give the right {what}",
            )
        if self.code == ErrorCode.AUTH_FAILED:
            return Trouble(
                f"the {what} is wrong, expired or revoked",
                f"give the right one with --{what}; the gateway's own token is in its data folder, "
                "in the file token",
            )
        return Trouble(f"the gateway refused: {self}")


def _bad_certificate(error: ssl.SSLCertVerificationError, host: str) -> Trouble:
    # The numbers are those of OpenSSL's X509_V_ERR_*.
    if error.verify_code == 10:
        return Trouble(
            "the certificate has expired",
            "renew it, then: kill -HUP the gateway or reload the proxy",
        )
    if error.verify_code in (62, 64):
        return Trouble(
            f"the certificate is not for {host}",
            "use a name that it is for, or get one for this name",
        )
    if error.verify_code in (18, 19, 20, 21):
        return Trouble(
            f"the certificate is not from an authority that this machine knows"
            f" ({error.verify_message})",
            "SSL_CERT_FILE=authority.pem trunkline doctor ...",
        )
    return Trouble(f"the certificate is not valid: {error.verify_message}", "get another one")


def _reason(body: str) -> str:
    """Return what a refusal says of itself."""
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return body.strip()[:100] or "without a reason"
