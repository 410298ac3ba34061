"""One process trains in a folder at a time.

The system's own file lock decides, because it goes away with the process that held it, however that ended. Children of
that process give up their part in it as soon as they are forked, so a data worker that was stopped and outlives its run
holds nothing. What is written inside says who holds the lock: process, boot of the machine, machine. It decides where
the file system has no locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.errors import UsageError

PATIENCE = 10.0
"""Seconds that processes of a killed run get to end."""
MOST = 4096
"""Bytes read of what a holder wrote."""
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def lock(out: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a run folder for this process.

    Args:
        say: reports a holder that left without a word.

    Raises:
        UsageError: another process is training in this folder, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = disk.open_plain(out / ".lock", os.O_RDWR)
    except OSError as error:
        raise UsageError(
            seen=f"the run folder {out} cannot be used: {error.filename or out}: {error.strerror}",
            expected="a folder that is new or may be written",
            hint="give another one with --out",
        ) from error
    try:
        _held.add(file)  # before the lock is there: a fork in between must not have it
        _take(out, file, say)
        _write(file, me())
        try:
            yield
        finally:
            _write(file, None)
    finally:
        _held.discard(file)
        os.close(file)


def _let_go() -> None:
    """In a child: close what it has of its parent's locks, which stay locked."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def me() -> dict[str, Any]:
    """This process, told apart from others of the same number by its start and the boot of the machine."""
    return {"process": os.getpid(), "started": _started(os.getpid()), "boot": _boot(), "machine": socket.gethostname()}


def alive(holder: dict[str, Any]) -> bool:
    """Whether the holder still runs; one on another machine is taken for alive, because nothing here can tell."""
    if holder.get("machine") != socket.gethostname():
        return True
    if holder.get("boot") != _boot():
        return False
    started = _started(int(holder.get("process", 0)))
    return started is not None and holder.get("started") in (None, started)


def _take(out: Path, file: int, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        # the holder is read after the lock was asked for: it wrote its name as soon as it had it
        held = _flock(file)
        holder = _read(file)
        if held is True or (held is None and (holder is None or not alive(holder))):
            if holder is not None:
                say(f"{_name(holder)} left {out} without a word, as a killed one does; its lock is taken over")
            return
        if holder is None or alive(holder) or time.monotonic() > deadline:
            raise _in_use(out, held, holder)
        time.sleep(0.05)


def _in_use(out: Path, held: bool | None, holder: dict[str, Any] | None) -> UsageError:
    if held is False and holder is not None and not alive(holder):
        return UsageError(
            seen=f"{_name(holder)}, which trained in {out}, is gone, but a process that it left behind holds its lock",
            expected="one run in a folder at a time",
            hint=f"find it with: fuser {out / '.lock'}; end it, and try again",
        )
    return UsageError(
        seen=f"{out} is in use by another run ({_name(holder)})",
        expected="one run in a folder at a time",
        hint="wait for it, or give another folder"
        + (f"; if it is gone, delete {out / '.lock'}" if held is None else ""),
    )


def _flock(file: int) -> bool | None:
    """Whether the system's lock could be taken; None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True


def _read(file: int) -> dict[str, Any] | None:
    try:
        holder = json.loads(os.pread(file, MOST, 0))
    except ValueError:
        return None
    return holder if isinstance(holder, dict) and isinstance(holder.get("process"), int) else None


def _write(file: int, holder: dict[str, Any] | None) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(holder).encode() if holder else b"", 0)


def _name(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "process unknown"
    return f"process {holder['process']} on {holder.get('machine')}"


def _boot() -> str | None:
    """The system's id of this boot of the machine; None if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process began, in the system's own count; None when there is no such process, or it is dead already."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"
