"""
An answer while it is written, and how much of it the gateway has. No I/O here.

Text goes out in chunks with an index. After a lost connection the gateway
says which chunk it has last; everything behind that goes out again.
"""

from __future__ import annotations

MAX_CHUNK = 64 * 1024
"""Characters in one chunk; even fully escaped it fits a message."""


class Answer:
    """The text of one run."""

    def __init__(self) -> None:
        self._sent: list[str] = []  # by index
        self._new: list[str] = []

    @property
    def text(self) -> str:
        """Everything that was written."""
        return "".join(self._sent + self._new)

    def write(self, text: str) -> None:
        """Add to the end."""
        self._new.append(text)

    def take(self) -> tuple[int, str] | None:
        """Return the next chunk and its index; None if all of it has gone out."""
        waiting = "".join(self._new)
        if not waiting:
            return None
        content, rest = waiting[:MAX_CHUNK], waiting[MAX_CHUNK:]
        self._sent.append(content)
        self._new = [rest] if rest else []
        return len(self._sent) - 1, content

    def rewind(self, index: int) -> None:
        """The gateway has the chunks up to `index` and no more; -1 is none."""
        self._new[:0] = self._sent[index + 1 :]
        del self._sent[index + 1 :]
