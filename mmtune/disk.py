"""Small things done to a disk the careful way: whole, flushed, in one step, and through no link.

A folder that somebody hands over may hold links; what is written into it must not arrive elsewhere. So every file that
the program writes into a run folder is opened here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

PIECE = 16 << 20
"""Most bytes handed to the system at once."""


def flush(path: Path) -> None:
    """Ask the system to bring a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of a plain file, made where there is none; children of the process do not inherit it.

    Raises OSError: a link (`ELOOP`), which is not followed, or anything else that is no plain file.
    """
    # a pipe of that name would wait for a reader
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags | os.O_CREAT | extra, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise _link(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return handle


def folder(path: Path) -> Path:
    """A folder of ours, made where there is none. Raises OSError: a link, or a file of that name."""
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise _link(path)
    return path


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, "a link, and nothing is written through links", str(path))


def put(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file from pieces, without flushing it. Raises OSError."""
    _write(open_plain(path, os.O_WRONLY | os.O_TRUNC), chunks)


def append(path: Path, data: bytes) -> None:
    """Write behind what a file holds. Raises OSError."""
    _write(open_plain(path, os.O_WRONLY | os.O_APPEND), [data])


def _write(handle: int, chunks: Iterable[bytes | memoryview]) -> None:
    try:
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                rest = rest[os.write(handle, rest[:PIECE]) :]
    finally:
        os.close(handle)


def read_text(path: Path, most: int) -> str:
    """The text of a plain file of at most `most` bytes.

    Raises OSError where it cannot be read, and ValueError for a larger one, for one that is no file (a device, a pipe:
    a link may lead to either), and for text that is not UTF-8.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("no plain file")
        if state.st_size > most:
            raise ValueError(f"{state.st_size:,} bytes, and at most {most:,} are read")
        data = file.read(most + 1)  # a file that says it has no bytes, as those of /proc do, may have some
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data.decode("utf-8")


def write_file(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old one or the new one."""
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        put(draft, [text.encode()])
        flush(draft)
        os.replace(draft, path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)
