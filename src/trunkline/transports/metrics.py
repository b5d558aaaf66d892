"""The port that is for metrics alone: on this machine, without sign-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import BaseRoute

from trunkline.config import MetricsConfig
from trunkline.http.app import create_app
from trunkline.origins import HostPolicy, Refused
from trunkline.transports.heads import RequestHead
from trunkline.transports.listener import Listener, ListenerOptions, Refusal

LISTENING = ListenerOptions(max_pending=32, max_refused=0, max_http=32)
"""Few ask for metrics, and open files are for clients."""


async def serve_metrics(
    config: MetricsConfig,
    routes: Sequence[BaseRoute],
    *,
    ready: Callable[[], bool],
    on_error: Callable[[BaseException], None],
) -> Listener | None:
    """
    Serve metrics on a port of their own, if that is wanted.

    Args:
        routes: What is served there.
        ready: Whether ``/readyz`` says 200.
        on_error: Hears of failures that no client can be told of.

    Raises:
        OSError: The address cannot be listened on.
    """
    if not config.enabled:
        return None

    def guard(head: RequestHead, address: Any, local: Any, tls: bool) -> Refusal | None:
        # A page that was rebound to this machine gives its own name as the Host.
        try:
            names = HostPolicy(config.host, local[1])
            names.check([*head.all(b"host")], local_address=local[0])
        except Refused as refused:
            return Refusal(refused.status, refused.reason)
        return None

    return await Listener.start(
        config.host,
        config.port,
        on_head=lambda *_: None,
        http_app=create_app(ready=ready, routes=routes),
        listening=LISTENING,
        guard=guard,
        on_error=on_error,
    )
