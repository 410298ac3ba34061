"""The guard of a child process: it stands between a child and the program that started it, and leaves nothing behind.

It is the first half of the child's own process, before anything heavy is imported. Where the system has subreapers
(Linux), whatever the child starts comes back to the guard when its own parent ends, also if it moved to a session of
its own; so all of it can be found and ended. Elsewhere the child's group of processes is ended. The guard ends its
child on request, and when the program that started it is gone; and is itself gone when the child has ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36
"""Numbers of Linux, <sys/prctl.h>."""
_ROUNDS = 800
"""Most looks for what is left, 5 ms apart."""


def run(module: str, watch: int) -> None:
    """Run `main()` of a module, guarded.

    Args:
        watch: reading end of a pipe that says, by a byte or by its end, that it is time to leave; below 0 the system
            has no `fork`, and the module runs unguarded.
    """
    if watch < 0:
        _main(module)
        return
    _prctl(_SET_SUBREAPER, 1)
    guard = os.getpid()
    child = os.fork()
    if child:
        _stand(child, watch)
    os.close(watch)
    os.setpgid(0, 0)
    _prctl(_SET_DEATH_SIGNAL, 9)
    if os.getppid() != guard:
        os._exit(1)
    _main(module)


def _main(module: str) -> None:
    import importlib

    importlib.import_module(module).main()


def _prctl(what: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


def _stand(child: int, watch: int) -> NoReturn:
    import select
    import signal

    with contextlib.suppress(OSError):  # it did so itself, or is gone
        os.setpgid(child, child)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # the pipes are the child's
        os.dup2(nowhere, number)
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    ready = select.poll()  # `select` takes no numbers from 1024 on
    for number in (reading, watch):
        ready.register(number, select.POLLIN)
    status = _reap(child)
    while status is None:
        if any(number == watch for number, _ in ready.poll()):
            break
        os.read(reading, 4096)
        status = _reap(child)
    _sweep(child)
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.set_wakeup_fd(-1)
        _as_ended_by(-code)
    os._exit(code)


def _as_ended_by(number: int) -> None:
    """End as the child did; without a dump of memory, which would be the guard's."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _reap(child: int) -> int | None:
    """Take note of whatever ended; the status of the child if it is among them."""
    found = None
    try:
        while True:
            number, status = os.waitpid(-1, os.WNOHANG)
            if number == 0:
                return found
            if number == child:
                found = status
    except ChildProcessError:
        return found


def _sweep(child: int) -> None:
    """End everything that the child started, and the child."""
    import signal
    import time

    for _ in range(_ROUNDS):
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        for number in _below(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _below(top: int) -> list[int]:
    """Every process that descends from one, as Linux lists them; nothing where there is no such list."""
    parents: dict[int, int] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read(4096).rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found, known = [], {top}
    while more := [number for number, parent in parents.items() if parent in known and number not in known]:
        known.update(more)
        found += more
    return found
