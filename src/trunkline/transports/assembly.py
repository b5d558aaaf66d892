"""One message that comes in fragments, or compressed, or both."""

from __future__ import annotations

import codecs

from trunkline.errors import CloseCode, Disconnect
from trunkline.transports.deflate import InflateError, Inflater


class Assembly:
    """
    Puts one message together and judges it on the way.

    Args:
        text: Whether it is text, and must be UTF-8.
        deflated: Whether it is compressed.
        max_size: Bytes that the whole message may have, inflated.
        max_fragments: Frames that it may come in.
    """

    __slots__ = ("_decoder", "_fragments", "_inflater", "_parts", "_room", "text")

    def __init__(self, *, text: bool, deflated: bool, max_size: int, max_fragments: int) -> None:
        self.text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")() if text else None
        self._inflater = Inflater() if deflated else None
        self._room = max_size
        self._fragments = max_fragments
        self._parts: list[bytes] = []

    def add(self, payload: bytes, *, last: bool) -> bytes | None:
        """
        Take the next fragment.

        Returns:
            The whole message after its last fragment, else None. Text is
            known to be UTF-8.

        Raises:
            Disconnect: There are too many fragments or bytes, or the bytes
                are damaged or not UTF-8.
        """
        self._fragments -= 1
        if self._fragments < 0:
            raise Disconnect(CloseCode.POLICY, "too many fragments")
        data = self._inflate(payload, last)
        self._room -= len(data)
        if self._room < 0:
            raise Disconnect(CloseCode.TOO_LARGE, "the message is too large")
        self._check_text(data, last)
        self._parts.append(data)
        return b"".join(self._parts) if last else None

    def _inflate(self, payload: bytes, last: bool) -> bytes:
        if self._inflater is None:
            return payload
        try:
            return self._inflater.inflate(payload, self._room, last=last)
        except InflateError:
            raise Disconnect(CloseCode.INVALID_UTF8, "the compressed data is damaged") from None

    def _check_text(self, data: bytes, last: bool) -> None:
        if self._decoder is None:
            return
        try:
            self._decoder.decode(data, last)
        except UnicodeDecodeError:
            raise Disconnect(CloseCode.INVALID_UTF8, "the message is not UTF-8") from None
