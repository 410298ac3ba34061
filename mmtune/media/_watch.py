"""The clock and the memory of one film or sound while a library reads it.

A library asks for the bytes of a file piece by piece. Whatever it builds of them (tables, streams, queues of packets)
it builds between two pieces, so looking at each piece bounds it in every container, and no child process is needed.
What other threads of this process take meanwhile counts too.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from functools import cache

from mmtune.errors import MediaError, Reason
from mmtune.media._limits import Limits

_LOOK = 8 << 20
"""Bytes that may be allocated before memory is checked again, which takes a system call."""
_PER_PIECE = 1 << 20
"""What a library may build of a piece of a file, 32 kB: tables of known containers take up to 30 times their bytes."""


class Watch:
    """Refuses an item that takes too long, or by which this process grows too much.

    Args:
        reason: of a refusal.
        origin: for messages.

    Attributes:
        seconds: the most time that the item may take.
    """

    def __init__(self, limits: Limits, reason: Reason, origin: str) -> None:
        self._limits, self._reason, self._origin = limits, reason, origin
        self.seconds = limits.wall_seconds
        self._deadline = time.monotonic() + self.seconds
        self._most = _taken() + limits.memory
        self._since = 0

    def keep(self, size: int) -> None:
        """So many bytes are held for what comes of the item, on which there are other limits."""
        self._most += size

    def tick(self, taken: int = _PER_PIECE) -> None:
        """To be called often. Raises MediaError, also each time that follows.

        Args:
            taken: bytes of memory that may have been taken since the last time.
        """
        if time.monotonic() > self._deadline:
            seen = f"{self._origin}: reading and decoding took more than {self.seconds:g} seconds"
            raise self._limits.refusal("wall_seconds", self._reason, seen)
        self._since += taken
        if self._since >= _LOOK:
            if _taken() > self._most:
                seen = f"{self._origin}: reading it takes more than {self._limits.memory} bytes beside what comes of it"
                raise self._limits.refusal("memory", self._reason, seen)
            self._since = 0

    def no_memory(self, expected: str) -> MediaError:
        """The error for an item for which there is no memory: `raise watch.no_memory(...)`."""
        return MediaError(self._reason, f"{self._origin}: it asks for too much memory", expected, "convert the file")


class Watched(io.BytesIO):
    """Bytes that are read under a watch."""

    def __init__(self, data: bytes, watch: Watch) -> None:
        super().__init__(data)
        self._watch = watch

    def read(self, size: int | None = -1, /) -> bytes:
        self._watch.tick()
        return super().read(size)


def _taken() -> int:
    """Bytes of memory of this process that no file stands for; where the system does not tell, the most it ever had."""
    if sys.platform == "linux":
        resident, shared = os.pread(_statm(os.getpid()), 128, 0).split()[1:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def _statm(process: int) -> int:
    """An open file, kept for the life of a process; a fork opens its own."""
    return os.open(f"/proc/{process}/statm", os.O_RDONLY | os.O_CLOEXEC)
