"""The child process of one expert, seen from the program that answers: started when needed, kept warm, killed in time.

The child is isolated and guarded, see `mmtune.children`: Ctrl-C at the terminal does not reach it, keys and passwords
of the environment stay here, and with it ends all that it started. What comes out of it is read in bounds: one answer
to one question, and of its standard error, which `MMTUNE_DEBUG=1` shows, no more than `MAX_NOISE` for each call.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from mmtune.children import Child
from mmtune.experts import _protocol

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""What tells libraries that there is no network."""
MAX_NOISE = 1 << 16
"""Most bytes of standard error that are shown for each call."""
_living: weakref.WeakSet[Process] = weakref.WeakSet()


class Failure(Exception):
    """A call that came to nothing; the text is one plain line."""


class Process:
    """A child that serves one expert.

    Args:
        setup: the first message to it: name and options of the expert, and whether it may use the network.
        folders: more places where it looks for modules.
    """

    def __init__(self, setup: Mapping[str, Any], folders: Sequence[str] = ()) -> None:
        self._said: queue.Queue[bytes | Exception | None] = queue.Queue()
        self._told: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._asked = threading.Event()
        self._noise = MAX_NOISE
        debug = os.environ.get("MMTUNE_DEBUG", "") not in ("", "0")
        self._child = Child(
            "mmtune.experts._child",
            folders,
            {} if setup["network"] else OFFLINE,
            subprocess.PIPE if debug else subprocess.DEVNULL,
        )
        _living.add(self)
        for work in (self._listen, self._write, *[self._show] * debug):
            threading.Thread(target=work, name="mmtune-expert", daemon=True).start()
        self._told.put((json.dumps(setup).encode(), b""))

    @property
    def number(self) -> int:
        """The process id of its guard."""
        return self._child.process.pid

    def call(self, facts: Mapping[str, Any], data: bytes, until: float) -> bytes:
        """Ask, and wait for the answer until `time.monotonic()` reaches `until`. After a failure the child is gone.

        Raises:
            Failure: it did not answer in time, ended, or said more than is read.
        """
        try:
            if not self._said.empty() and (early := self._said.get()) is not None:
                raise Failure(str(early))
            self._noise = MAX_NOISE
            self._asked.set()
            self._told.put((json.dumps(facts).encode(), data))
            reply = self._said.get(timeout=max(0.0, until - time.monotonic()))
            if reply is None:
                raise Failure(self._ending())
            if not isinstance(reply, bytes):
                raise Failure(str(reply))
        except queue.Empty:
            self.kill()
            raise Failure("it did not answer in time") from None
        except BaseException:  # Ctrl-C too: an answer that comes later would be taken for that to the next question
            self.kill()
            raise
        return reply

    def kill(self) -> None:
        """End the child and all that it started."""
        _living.discard(self)
        self._told.put(None)
        self._child.end()

    def _ending(self) -> str:
        """How a child ended whose output has ended."""
        try:
            code = self._child.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        return f"it was ended by {_signal(-code)}" if code < 0 else f"it ended with code {code}"

    def _listen(self) -> None:
        """Thread: reads the child's messages, until it ends or sends more than it was asked for."""
        assert self._child.process.stdout is not None
        with self._child.process.stdout as file:
            try:
                while (frame := _protocol.read(file, _protocol.MAX_REPLY)) is not None:
                    if not self._asked.is_set():
                        raise _protocol.WireError("it spoke without being asked")
                    self._asked.clear()
                    self._said.put(frame)
                self._said.put(None)
            except (_protocol.WireError, OSError, ValueError) as error:
                self._said.put(error)
                self.kill()  # nothing more is read of it

    def _write(self) -> None:
        """Thread: writes to the child. A child that does not read would block the thread that waits for an answer."""
        assert self._child.process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self._child.process.stdin as file:
            while (told := self._told.get()) is not None:
                for frame in told:
                    _protocol.write(file, frame)

    def _show(self) -> None:
        """Thread: what the child writes to standard error, as far as it is shown; the rest is read slowly."""
        assert self._child.process.stderr is not None
        with self._child.process.stderr as file:
            while data := file.read1(1 << 14):  # type: ignore[attr-defined]
                if self._noise <= 0:
                    time.sleep(0.005)
                    continue
                shown, self._noise = data[: self._noise], self._noise - len(data)
                text = shown.decode("utf-8", "replace")
                sys.stderr.write("".join(one if one.isprintable() or one in "\n\t" else "?" for one in text))
                if self._noise <= 0:
                    sys.stderr.write("\n(the expert writes more than is shown)\n")
                sys.stderr.flush()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@atexit.register
def _end_all() -> None:
    for process in list(_living):
        process.kill()
