"""The command line as processes: run to the end, left running, or at a terminal."""

import contextlib
import fcntl
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import cache
from pathlib import Path

import structlog
import typer.testing

from trunkline.cli import app

# Each call of the runner builds the whole command line anew, which takes longer than most commands.
typer.testing._get_command = cache(typer.testing._get_command)

OURS = ("TRUNKLINE_", "XDG_")
"""What the names of variables that the commands read begin with."""

COMMAND = [sys.executable, "-m", "trunkline"]

PATIENCE = 30.0
"""Seconds after which something that should have happened has not."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[@-~]")


def clean_environ(home):
    """An environment with a home of its own and none of our variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {"HOME": str(home), "USER": "ada", "COLUMNS": "200", "NO_COLOR": "1"}


def invoke(environ, *args, input=""):
    """Run a command to its end, within this process."""
    unset = {name: None for name in os.environ if name.startswith(OURS)}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return typer.testing.CliRunner().invoke(app, args, input=input, env=unset | environ)
    finally:
        # The command's log goes to a stream that the runner has closed by now.
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)


def finished(environ, *args, input=""):
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *args],
        env=environ,
        input=input,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Running:
    """A command that goes on, and what it printed so far."""

    def __init__(self, environ, *args):
        self.printed = ""
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, pattern, stream="stdout"):
        """Read lines up to one that matches; return the match."""
        for line in getattr(self.process, stream):
            self.printed += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}: {self.printed}{self.rest}")

    @property
    def rest(self):
        """What it printed to stderr and was not read yet."""
        return self.process.stderr.read()

    def children(self):
        """The ids of the processes that it started."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def end(self, number=signal.SIGTERM):
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self):
        """Be gone, whatever happened, with those who would keep its output open."""
        with contextlib.suppress(OSError):
            for child in self.children():
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


def wait_until_gone(pid):
    """Wait for the end of a process that need not be ours."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            gone, _, _ = select.select([handle], [], [], PATIENCE)
            assert gone, f"process {pid} still runs"
        finally:
            os.close(handle)


class Terminal:
    """A command at a terminal of 24 rows and 80 columns."""

    def __init__(self, environ, *args):
        self.shown = ""
        """Everything that appeared, without colours and cursor movements."""
        self._screen, self._keyboard = pty.openpty()
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._modes = termios.tcgetattr(self._keyboard)
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environ | {"TERM": "xterm-256color", "COLUMNS": "80"},
            stdin=self._keyboard,
            stdout=self._keyboard,
            stderr=self._keyboard,
            start_new_session=True,
        )

    def type(self, keys):
        """Press keys."""
        os.write(self._screen, keys.encode())

    def wait_for(self, text):
        """Watch until `text` has appeared since the last call; return what did."""
        seen = ""
        deadline = time.monotonic() + PATIENCE
        while text not in seen:
            ready, _, _ = select.select([self._screen], [], [], deadline - time.monotonic())
            assert ready, f"never showed {text!r}: {seen}"
            seen += _ANSI.sub("", os.read(self._screen, 65536).decode(errors="replace"))
        self.shown += seen
        return seen

    @property
    def restored(self):
        """Whether the terminal is as it was before the command."""
        return termios.tcgetattr(self._keyboard) == self._modes

    def close(self):
        """Be gone, whatever happened."""
        self.process.kill()
        self.process.wait()
        os.close(self._screen)
        os.close(self._keyboard)
