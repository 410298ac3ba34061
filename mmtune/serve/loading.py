"""Weights that are read while a person types the first question."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmtune.serve.run_info import to_stay
from mmtune.serve.terminal import say

if TYPE_CHECKING:
    from mmtune.serve.engine import Engine


class Loading:
    """An engine on its way, read by a thread."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._load = load
        self._ended = threading.Event()  # Ctrl-C inside `Thread.join` makes a thread look dead that is not
        threading.Thread(target=self._work, name="mmtune-load", daemon=True).start()

    def _work(self) -> None:
        try:
            self._engine = to_stay(self._load)
        except BaseException as error:  # handed to the thread that asks
            self._error = error
        self._ended.set()

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._ended.is_set()

    def failed(self, error: BaseException) -> bool:
        """Whether this is the error that reading ended with."""
        return self.done() and self._error is error

    def result(self) -> Engine:
        """The engine; waits for it. Raises what reading it raised."""
        if not self.done():
            say("(reading the weights)")
        while not self._ended.wait(0.2):  # in slices, so that Ctrl-C gets through
            pass
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine
