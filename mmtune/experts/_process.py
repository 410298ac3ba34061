"""The child process of one expert, seen from the program that answers: started when needed, kept warm, killed in time.

The child gets a session of its own, so that it and all that it started are killed at once and Ctrl-C at the terminal
does not reach it. Of the environment it gets what a program needs to run (`KEPT`) and nothing else; keys and
passwords that lie there stay here.
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
from collections.abc import Mapping
from typing import Any

from mmtune.experts import _wire

KEPT = (
    "PATH", "HOME", "USER", "USERPROFILE", "LANG", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "PYTHONPATH",
    "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_*",
    "MKL_NUM_THREADS", "HF_HOME", "XDG_CACHE_HOME", "MMTUNE_CACHE", "MMTUNE_DEBUG",
)  # fmt: skip
"""Variables of the environment that a child gets; one that ends in a star stands for all that begin so."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""What tells libraries that there is no network."""
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from mmtune.experts import _child; _child.main()"
_living: weakref.WeakSet[Process] = weakref.WeakSet()


class Failure(Exception):
    """A call that came to nothing; the text is one plain line."""


class Process:
    """A child that serves one expert.

    Args:
        setup: what it is told first: the config of the expert, and whether it may use the network.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._said: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        # What it writes to standard error is noise in a chat; MMTUNE_DEBUG=1 shows it.
        debug = os.environ.get("MMTUNE_DEBUG", "") not in ("", "0")
        path = [os.path.abspath(entry) for entry in sys.path]  # "" means the current folder
        self._child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else subprocess.DEVNULL,
            env=environment(os.environ) | ({} if setup["network"] else OFFLINE),
            start_new_session=True,
        )
        _living.add(self)
        for work in (self._listen, self._write):
            threading.Thread(target=work, name="mmtune-expert", daemon=True).start()
        self._told.put((json.dumps(setup).encode(), b""))

    @property
    def number(self) -> int:
        """The process id."""
        return self._child.pid

    def call(self, facts: Mapping[str, Any], data: bytes, until: float) -> bytes:
        """Ask, and wait for the answer until `time.monotonic()` reaches `until`. After a failure the child is gone.

        Raises:
            Failure: it did not answer in time, ended, or said more than is read.
        """
        try:
            if not self._said.empty() and self._said.get() is not None:
                raise Failure("it spoke without being asked")
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()
        self._told.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=5)

    def _ending(self) -> str:
        """What became of a child whose output has ended."""
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        return f"it was ended by {_signal(-code)}" if code < 0 else f"it ended with code {code}"

    def _listen(self) -> None:
        """Thread: what the child says, until it ends."""
        assert self._child.stdout is not None
        with self._child.stdout as file:
            try:
                while (frame := _wire.read(file, _wire.MAX_REPLY)) is not None:
                    self._said.put(frame)
                self._said.put(None)
            except (_wire.WireError, OSError, ValueError) as error:
                self._said.put(error)

    def _write(self) -> None:
        """Thread: what the child is told. One that does not read would hold up whoever waits for an answer."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError, ValueError), self._child.stdin as file:
            while (told := self._told.get()) is not None:
                for frame in told:
                    _wire.write(file, frame)


def environment(whole: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a child gets."""

    def kept(name: str) -> bool:
        return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in KEPT)

    return {name: value for name, value in whole.items() if kept(name)}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@atexit.register
def _end_all() -> None:
    for process in list(_living):
        process.kill()
