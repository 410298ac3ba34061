"""Ctrl-C, SIGTERM and SIGUSR1: the first asks the run to finish its step and save, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 128 + signal.SIGUSR1}
"""Exit codes by the shell's custom: 128 and the number of the signal. Batch systems send SIGUSR1 before time is up."""

TWICE = 1.0
"""Seconds in which a signal that comes again is the same wish: batch systems and launchers each pass it on."""


class Stop:
    """Within `with Stop() as stop:`, `stop.code` is 0 until a signal came, then the exit code it asks for.

    Outside the main thread, where Python allows no handlers, signals keep their usual meaning.
    """

    def __init__(self) -> None:
        self.code, self._first = 0, 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in CODES:
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker gets Ctrl-C of the terminal too; its parent tells it when to end
        if self.code:
            if time.monotonic() - self._first < TWICE:
                return
            _say(b"\nleaving at once; the last saved state stands\n")
            os._exit(CODES[signal.Signals(number)])
        self.code, self._first = CODES[signal.Signals(number)], time.monotonic()
        _say(b"\nfinishing this step, then saving; once more leaves at once\n")


def _say(text: bytes) -> None:
    """Write, not print: print may be in the middle of a line when the signal comes. The reader may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, text)
