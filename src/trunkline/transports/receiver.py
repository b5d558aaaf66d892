"""What a connection tells, to whom, and within which limits."""

from __future__ import annotations

from typing import Protocol

import msgspec

from trunkline.transport import Transport


class Receiver(Protocol):
    """
    Who hears a connection.

    No method may raise. `closed` comes exactly once, as the last call, from
    the loop: never from within a call that the receiver itself makes.
    """

    def opened(self, transport: Transport, /) -> None:
        """The connection is open, and may be written to."""

    def received(self, text: str, /) -> None:
        """One whole message came."""

    def too_large(self, limit: int, /) -> None:
        """A message is above `limit` bytes; after this call the connection closes with 1009."""

    def lagging(self, yes: bool, /) -> None:
        """The peer has fallen behind by more than ``lag_bytes``, or has caught up."""

    def closed(self, code: int, reason: str, /) -> None:
        """
        The conversation is over: nothing more comes, and writes are dropped.

        `code` and `reason` are those of the close frame that came or was sent
        first; 1005 stands for an empty one, 1006 for none at all.
        """


class ConnectionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and deadlines of every connection of a listener."""

    max_message: int = 1024 * 1024
    """Bytes of one incoming message; `Connection.max_message` may lower it."""
    lag_bytes: int = 256 * 1024
    """Unread outgoing bytes above which the receiver hears of a lag."""
    max_buffered: int = 1024 * 1024
    """Unread outgoing bytes with which the next write closes with 4008."""
    max_fragments: int = 1024
    """Frames that one message may come in."""
    fragment_deadline: float = 10.0
    """Seconds from a message's first fragment to its last."""
    control_rate: float = 10.0
    """Pings and pongs a second that are taken without end."""
    control_burst: int = 20
    """Pings and pongs that are taken at once."""
    close_timeout: float = 5.0
    """Seconds from our last frame until the socket is cut off."""
    compression: bool = False
    """Whether permessage-deflate is granted."""
    compress_min: int = 1024
    """Bytes from which an outgoing message is compressed."""
    binary: bool = False
    """Whether binary messages are taken; the gateway's protocol has none."""
    read_buffer: int = 4096
    """Bytes that the parser of an idle connection has."""
