"""Stands between a run and the disk: counts what it does there, and kills it, fails it or slows it at the k-th call.

Counted are write, fsync, rename, replace, unlink, rmdir and mkdir under the run folder, made through `os`. A kill at a
write leaves half of it. A power cut is a kill after which the parent takes away what was not flushed: see `lose`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Shim:
    """Put around `os` in a process that is to die.

    Args:
        out: the run folder.
        kill: number of the call, from 1, at which the process kills itself.
        fail: number of the call that raises ENOSPC instead.
        full: every write from the call `fail` on raises it.
        journal: file that takes down each call, for `lose` and `sealed`.
        slow: seconds that each call takes.
    """

    def __init__(
        self,
        out: Path,
        kill: int | None = None,
        fail: int | None = None,
        full: bool = False,
        journal: Path | None = None,
        slow: float = 0.0,
    ) -> None:
        self.out, self.kill, self.fail, self.full, self.slow = str(out.absolute()), kill, fail, full, slow
        self.calls: list[str] = []
        self.bytes = 0
        """Bytes written."""
        self._real = {name: getattr(os, name) for name in CALLS}
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if journal else None

    def install(self) -> Shim:
        for name in CALLS:
            setattr(os, name, self._around(name, self._real[name]))
        os.remove = os.unlink
        return self

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(target: Any, *rest: Any, **options: Any) -> Any:
            path = self._path(target, options)
            if path is None:
                return real(target, *rest, **options)
            self.calls.append(f"{name} {path[len(self.out) + 1 :]}")
            if self.slow:
                time.sleep(self.slow)
            number = len(self.calls)
            if number == self.kill:
                if name == "write":
                    real(target, rest[0][: len(rest[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fail and (number == self.fail or (self.full and number > self.fail and name in ("write", "mkdir"))):
                raise OSError(errno.ENOSPC, "No space left on device")
            answer = real(target, *rest, **options)
            if name == "write":
                self.bytes += answer
            if self._journal is not None:
                other = os.fspath(rest[0]) if name in ("rename", "replace") else None
                inode = os.fstat(target).st_ino if name in ("write", "fsync") else None
                size = os.fstat(target).st_size if name == "fsync" else None
                line = json.dumps([name, path, str(other) if other else None, inode, size]) + "\n"
                self._real["write"](self._journal, line.encode())
            return answer

        return called

    def _path(self, target: Any, options: dict[str, Any]) -> str | None:
        """What a call is about, when it is in the run folder."""
        try:
            if isinstance(target, int):
                path = os.readlink(f"/proc/self/fd/{target}")
            elif options.get("dir_fd") is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), os.fspath(target))
            else:
                path = os.path.abspath(os.fspath(target))
        except (OSError, TypeError):
            return None
        inside = path.startswith(self.out + "/") and "/tensorboard" not in path
        return path if inside or path == self.out else None


def lose(out: Path, *journals: Path) -> int:
    """What a power cut takes, at its worst: bytes that were not flushed, and renames whose folder was not.

    Of a file that was flushed before, what was appended since is lost; of another one, half. Deletions stay, because
    nothing promises their order. Journals are of all lives of the run since the disk was whole. Returns how many things
    were lost.
    """
    dirty: set[int] = set()
    flushed: dict[int, int] = {}
    pending: list[tuple[str, str]] = []
    for name, path, other, inode, size in read(*journals):
        if name == "write":
            dirty.add(inode)
        elif name == "fsync":
            dirty.discard(inode)
            flushed[inode] = size
            pending = [(a, b) for a, b in pending if os.path.dirname(b) != path]
        elif name == "rename":
            pending.append((path, os.path.abspath(other)))
    lost = 0
    for path in out.rglob("*"):
        if path.is_file() and (inode := path.stat().st_ino) in dirty:
            os.truncate(path, flushed.get(inode, path.stat().st_size // 2))
            lost += 1
    for source, target in reversed(pending):
        if os.path.exists(target) and not os.path.exists(source) and os.path.isdir(os.path.dirname(source)):
            os.rename(target, source)
            lost += 1
    return lost


def read(*journals: Path) -> list[list[Any]]:
    """The calls that journals took down: name, path, other path of a rename, inode, size at a flush."""
    return [json.loads(line) for journal in journals if journal.exists() for line in journal.read_text().splitlines()]


def sealed(journal: Path) -> int:
    """Step of the newest state that has to be there: one that was renamed, and another call came after that.

    The one call is for flushing the folder. What comes next may rely on the state. Lines that are appended to logs are
    no such call: another thread writes them.
    """
    newest = step = 0
    for name, path, *_ in read(journal):
        found = re.search(r"/state/\.step-(\d+)\.draft$", path) if name == "rename" else None
        if found:
            step = int(found[1])
        elif not path.endswith(".jsonl"):
            newest = step
    return newest
