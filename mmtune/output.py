"""Lines for somebody who may be slow, stuck or gone. A run says what it does; it never waits for its reader."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import time
from typing import Literal, TextIO


class Output:
    """The reader of standard output or standard error.

    A pipe that is full is waited for once, `patience` seconds; from then on lines are dropped and counted until there
    is room again, and then their number is said. Files and terminals are written to as they are.
    """

    def __init__(self, stream: Literal["stdout", "stderr"], patience: float = 5.0) -> None:
        self._stream, self._patience, self._stuck = stream, patience, False
        self.lost = 0
        """Lines without a reader, in total."""
        self._unsaid = 0

    def say(self, text: str) -> None:
        stream: TextIO | None = getattr(sys, self._stream)
        if stream is None:  # a process that was started without one
            return
        with contextlib.suppress(OSError, ValueError):
            pipe = _pipe(stream)
            if pipe is None:
                print(text, file=stream, flush=True)
                return
            stream.flush()
            if self._unsaid and self._write(pipe, f"({self._unsaid} lines are missing here: no reader)\n"):
                self._unsaid = 0
            if self._unsaid or not self._write(pipe, text + "\n"):
                self.lost += 1
                self._unsaid += 1

    def _write(self, pipe: int, text: str) -> bool:
        """Whether the pipe took it. Of a long text, the first part may have got through."""
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        end = time.monotonic() + (0 if self._stuck else self._patience)
        ready = select.poll()  # `select` takes no numbers from 1024 on
        ready.register(pipe, select.POLLOUT)
        while rest:
            self._stuck = not ready.poll(max(0.0, end - time.monotonic()) * 1000)
            if self._stuck:
                return False
            rest = rest[os.write(pipe, rest[: select.PIPE_BUF]) :]
        return True


def _pipe(stream: TextIO) -> int | None:
    """The number of a stream that is a pipe or a socket; none for anything else."""
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    mode = os.fstat(number).st_mode
    return number if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
