"""The process that reads parquet and Arrow files: the file comes by pieces from the program that asks, rows go back.

A library in C++ that believes what a file says cannot be bounded from inside. So this process has a limit of memory,
and who asks has a clock, see `rows`. Nothing is opened here.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO, Any

from mmtune.data.convert import _talk
from mmtune.errors import DataError

CHUNK = 16 << 20
"""Most bytes of the file that are asked for at once."""


def main() -> None:
    """Serve until the other side is gone."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve more address space than they use
    from mmtune.data.convert import columns

    with contextlib.suppress(EOFError, OSError):
        columns.packages()  # what they take is not of a file
        _bind(_heard()[0]["memory"])
        while True:
            asked, _ = _heard()
            try:
                file: IO[bytes] = io.BufferedReader(_Asked(asked["size"]), 1 << 16)
                if "count" in asked:
                    _send_rows(columns.read(file, columns.Start(asked["row"], asked["number"])), asked["count"])
                else:
                    _say({"rows": columns.count(file, asked["name"], asked["size"])})
            except (DataError, MemoryError) as error:
                _say(_talk.fault(error))


def _send_rows(raws: Any, count: int) -> None:
    """So many rows, and a word where there are fewer."""
    sent = 0
    while sent < count and (raw := next(raws, None)) is not None:
        try:
            if raw.fault is not None:
                raise raw.fault
            row, spans, data = _talk.without_bytes(raw.row)
        except (DataError, ValueError, MemoryError) as error:
            _say(_talk.fault(error))
        else:
            _say({"row": row, "bytes": spans}, data)
        sent += 1
    if sent < count:
        _say({"ended": True})


def _say(head: dict[str, Any], data: bytes = b"") -> None:
    _talk.send(sys.stdout.buffer, head, data)


def _heard() -> tuple[dict[str, Any], bytes]:
    return _talk.receive(_exactly)


def _exactly(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _bind(memory: int) -> None:
    """Let this process have so many bytes of address space beyond what it has now, where the system can see to it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", "rb") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Asked(io.RawIOBase):
    """The file, as the other side reads it."""

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        _say({"offset": self.at, "size": min(len(buffer), CHUNK)})
        data = _heard()[1]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
