"""Writing beside training: a save takes a copy of what moves, and a thread brings it to the disk.

One save is written at a time; the next one waits for it. A write that fails is not lost in its thread: `failed` is
looked at after every step, and `wait` raises.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from mmtune.output import Output

OnFailure = Literal["stop", "go_on"]


class AsyncWriter:
    """Writes saves in a thread. Leaving the `with` waits for the last one.

    Args:
        say: reports failures and of waiting.
        on_failure: `stop` keeps the first failure for `wait` to raise; `go_on` says it, counts it, and the
            next save tries again. The last save of a run has no next one: its failure is always raised.
    """

    def __init__(self, say: Callable[[str], None] = print, on_failure: OnFailure = "stop") -> None:
        self._say, self._on_failure = say, on_failure
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.failures = 0
        """Writes that failed."""
        self.waited = 0.0
        """Seconds that training stood still for a write that was not done when the next one was due."""

    @property
    def failed(self) -> bool:
        """Whether the run has to stop because of a write."""
        return self._error is not None

    def start(self, step: int, write: Callable[[], None], last: bool = False) -> None:
        """Write in the background. Waits for the write before it, and raises what that one raised.

        Args:
            last: no other save comes after this one.
        """
        if self._thread is not None and self._thread.is_alive():
            begun = time.monotonic()
            self._thread.join()
            self.waited += time.monotonic() - begun
            self._say(f"note: the save of step {step} had to wait for the one before; save less often or write faster")
        self.wait()
        # no daemon: an interpreter that ends waits for it, so that what was promised gets written
        self._thread = threading.Thread(target=self._run, args=(step, write, last), name=f"mmtune-save-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Return when all is on the disk. Raises what a write raised, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, step: int, write: Callable[[], None], last: bool) -> None:
        try:
            write()
        except BaseException as error:
            self.failures += 1
            if last or self._on_failure == "stop" or not isinstance(error, Exception):
                self._error = error  # first: saying it may fail
            with contextlib.suppress(OSError, ValueError):
                self._say(f"warning: the state of step {step} was not saved: {error}")

    def __enter__(self) -> AsyncWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.wait()
            return
        # an error is on its way already; a failed write was said when it failed
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            Output("stderr").say(f"a save failed too: {self._error}")
