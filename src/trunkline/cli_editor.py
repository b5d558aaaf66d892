"""
The line that a person types in the terminal client.

Keys come in as the terminal sends them; lines come out. The editor draws
nothing, so that what it shows can be drawn together with what arrives.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.cells import cell_len
from rich.text import Text

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
"""What switches a terminal's marks around pasted text on and off."""

_KEY = re.compile(
    r"\x1b\[[0-9;?]*[@-~]|\x1bO[@-~]|\x1b[^\[O\x1b]|[^\x1b]"  # whole keys
    r"|\x1b\[[0-9;?]*(?=[^0-9;?@-~])|\x1bO(?=[^@-~])|\x1b(?=\x1b)"  # broken ones, ignored
)


class LineEditor:
    """One line of text with a cursor, and the lines entered before it."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self.closed = False
        """Whether the person ended the input with Ctrl-D on an empty line."""
        self._entered: list[str] = []
        self._past: list[str] = [""]
        self._at = 0
        self._pending = ""
        self._pasting = False
        self._keys: dict[str, Callable[[], None]] = {
            "\r": self._enter,
            "\n": self._enter,
            "\x7f": self._backspace,
            "\b": self._backspace,
            "\x01": self._home,
            "\x02": self._left,
            "\x04": self._delete_or_close,
            "\x05": self._end,
            "\x06": self._right,
            "\x0b": self._cut_right,
            "\x0e": self._later,
            "\x10": self._earlier,
            "\x15": self._cut_left,
            "\x17": self._cut_word,
            "\x1b[A": self._earlier,
            "\x1b[B": self._later,
            "\x1b[C": self._right,
            "\x1b[D": self._left,
            "\x1b[F": self._end,
            "\x1b[H": self._home,
            "\x1b[1~": self._home,
            "\x1b[3~": self._delete,
            "\x1b[4~": self._end,
            "\x1bOA": self._earlier,
            "\x1bOB": self._later,
            "\x1bOC": self._right,
            "\x1bOD": self._left,
            "\x1bOF": self._end,
            "\x1bOH": self._home,
        }

    def feed(self, typed: str) -> list[str]:
        """
        Take what the terminal sent; a key may be split between two calls.

        Returns:
            The lines that were entered, empty ones left out.
        """
        data = self._pending + typed
        at = 0
        while match := _KEY.match(data, at):
            self._press(match[0])
            at = match.end()
        self._pending = data[at:]
        entered, self._entered = self._entered, []
        return entered

    def render(self, prompt: str, width: int) -> Text:
        """Return the line as one row of at most `width` cells, the cursor in reverse."""
        room = max(width - cell_len(prompt) - 1, 1)
        start = 0
        while cell_len(self.text[start : self.cursor]) > room - 1:
            start += 1
        before, under = self.text[start : self.cursor], self.text[self.cursor :][:1] or " "
        row = Text.assemble((prompt, "bold"), before, (under, "reverse"))
        row.append(self.text[self.cursor + 1 :])
        row.truncate(width)
        return row

    def _press(self, key: str) -> None:
        if key in ("\x1b[200~", "\x1b[201~"):
            self._pasting = key == "\x1b[200~"
        elif self._pasting and key in "\r\n\t":
            self._insert(" ")
        elif key.isprintable():
            self._insert(key)
        elif key in self._keys:
            self._keys[key]()

    def _set(self, text: str, cursor: int) -> None:
        self.text, self.cursor = text, cursor

    def _insert(self, text: str) -> None:
        at = self.cursor
        self._set(self.text[:at] + text + self.text[at:], at + len(text))

    def _enter(self) -> None:
        line = self.text.strip()
        if line:
            self._entered.append(line)
            self._past[-1:] = [line, ""]
        self._at = len(self._past) - 1
        self._set("", 0)

    def _backspace(self) -> None:
        if self.cursor:
            at = self.cursor
            self._set(self.text[: at - 1] + self.text[at:], at - 1)

    def _delete(self) -> None:
        self._set(self.text[: self.cursor] + self.text[self.cursor + 1 :], self.cursor)

    def _delete_or_close(self) -> None:
        if self.text:
            self._delete()
        else:
            self.closed = True

    def _left(self) -> None:
        self.cursor = max(self.cursor - 1, 0)

    def _right(self) -> None:
        self.cursor = min(self.cursor + 1, len(self.text))

    def _home(self) -> None:
        self.cursor = 0

    def _end(self) -> None:
        self.cursor = len(self.text)

    def _cut_left(self) -> None:
        self._set(self.text[self.cursor :], 0)

    def _cut_right(self) -> None:
        self.text = self.text[: self.cursor]

    def _cut_word(self) -> None:
        kept = re.sub(r"\S*\s*$", "", self.text[: self.cursor])
        self._set(kept + self.text[self.cursor :], len(kept))

    def _earlier(self) -> None:
        self._recall(self._at - 1)

    def _later(self) -> None:
        self._recall(self._at + 1)

    def _recall(self, at: int) -> None:
        if not 0 <= at < len(self._past):
            return
        if self._at == len(self._past) - 1:
            self._past[-1] = self.text
        self._at = at
        self._set(self._past[at], len(self._past[at]))
