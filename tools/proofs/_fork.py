"""Runs in processes of their own, started by forking, so that a start costs nothing and a kill is a real one.

The parent imports everything once and trains nothing itself: it must have no threads when it forks.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit status; minus the number of the signal that killed it."""
    value: Any
    """What its work returned, as far as JSON holds it; none when it did not come to an end."""
    said: str
    """Its output and errors."""
    seconds: float


class _Child:
    def __init__(self, work: Callable[[], Any], environment: Mapping[str, str] | None = None) -> None:
        self.began = time.monotonic()
        self.log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115
        self.pipe, theirs = os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            _live(work, environment or {}, theirs, self.log.fileno())
        os.close(theirs)
        self.data = b""

    def done(self, wait: float) -> bool:
        """Whether its pipe is closed: it has ended, or is about to."""
        if not select.select([self.pipe], [], [], max(0.0, wait))[0]:
            return False
        data = os.read(self.pipe, 1 << 20)
        self.data += data
        return not data

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # data workers, where the run was killed
        os.close(self.pipe)
        self.log.seek(0)
        said = self.log.read().decode("utf-8", "replace")
        self.log.close()
        value = json.loads(self.data) if self.data else None
        return Ended(os.waitstatus_to_exitcode(status), value, said, time.monotonic() - self.began)


def _forget() -> None:
    """A run in the parent has left its rank in accelerate's process-wide state; this is another process."""
    if state := sys.modules.get("accelerate.state"):
        state.PartialState._reset_state()


def _live(work: Callable[[], Any], environment: Mapping[str, str], pipe: int, log: int) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.update(environment)
        _forget()
        value = work()
        os.write(pipe, json.dumps(value, default=str).encode())
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def run(
    work: Callable[[], Any],
    seconds: float = 120.0,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
) -> Ended:
    """Run some work in a process of its own.

    Args:
        seconds: it is killed after that, whatever it does.
        kill_after: send the signal `number` after so many seconds, unless it has ended.
    """
    child = _Child(work)
    deadline = child.began + seconds
    moment = child.began + kill_after if kill_after is not None else None
    while True:
        now = time.monotonic()
        if moment is not None and now >= moment:
            child.signal(number)
            moment = None
        if now >= deadline:
            child.signal(signal.SIGKILL)
        if child.done((min(deadline, moment or deadline) - now) if now < deadline else 5.0):
            return child.end()


def ranks(work: Callable[[], Any], world: int = 2, seconds: float = 120.0) -> list[Ended]:
    """Run the same work as the ranks of one run, over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    children = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        children.append(_Child(work, {**where, **{name: str(value) for name, value in place.items()}}))
    deadline = time.monotonic() + seconds
    for child in children:
        while not child.done(deadline - time.monotonic()):
            if time.monotonic() >= deadline:
                for other in children:
                    other.signal(signal.SIGKILL)
                deadline = time.monotonic() + 5
    return [child.end() for child in children]


def all_fine(ended: Sequence[Ended]) -> bool:
    return all(one.code == 0 for one in ended)
