"""Small things done to a disk the careful way: whole, flushed, in one step, and through no link.

A folder that somebody hands over may hold links; what is written into it must not arrive elsewhere. So every file that
the program writes into a run folder is opened here.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PIECE = 16 << 20
"""Most bytes handed to the system at once."""
LINE = 1 << 20
"""Longest line that is read, bytes."""
LINES = 4 << 30
"""Most bytes of a file that is read line by line: some twenty million lines of a ledger."""


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


def create(path: Path, mode: int = 0o644) -> BinaryIO:
    """A new file in place of what is there: a link goes, and what it leads to stays. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode), "wb")


def folder(path: Path, mode: int = 0o777) -> Path:
    """A folder of ours, made where there is none. Raises OSError: a link, or a file of that name."""
    if path.is_symlink():
        raise _link(path)
    path.mkdir(mode, exist_ok=True)
    return path


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, "a link, and nothing is written through links", str(path))


def put(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Replace a file by one of these pieces, without flushing it. Raises OSError."""
    with create(path) as file:
        _write(file.fileno(), chunks)


def append(path: Path, data: bytes) -> None:
    """Write after what a file holds. Raises OSError."""
    handle = open_plain(path, os.O_WRONLY | os.O_APPEND)
    try:
        _write(handle, [data])
    finally:
        os.close(handle)


def _write(handle: int, chunks: Iterable[bytes | memoryview]) -> None:
    for chunk in chunks:
        rest = memoryview(chunk).cast("B")
        while rest:
            rest = rest[os.write(handle, rest[:PIECE]) :]


def read_text(path: Path, most: int) -> str:
    """The text of a plain file of at most `most` bytes.

    Raises OSError where it cannot be read, and ValueError for a larger one, for one that is no file (a device, a pipe:
    a link may lead to either), and for text that is not UTF-8.
    """
    with open_to_read(path, most) as file:
        data = file.read(most + 1)  # a file that says it has no bytes, as those of /proc do, may have some
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data.decode("utf-8")


def open_to_read(path: Path, most: int) -> BinaryIO:
    """A plain file of at most `most` bytes, opened. Raises OSError, and ValueError as `read_text` does."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise ValueError("no plain file") from error
        raise
    state = os.fstat(handle)
    if stat.S_ISREG(state.st_mode) and state.st_size <= most:
        return os.fdopen(handle, "rb")
    os.close(handle)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("no plain file")
    raise ValueError(f"{state.st_size:,} bytes, and at most {most:,} are read")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain file, one in memory at a time; those longer than `LINE` are passed over.

    Raises OSError, and ValueError as `read_text` does, for a file of more than `LINES` bytes, too.
    """
    with open_to_read(path, LINES) as file:
        begins = True
        while piece := file.readline(LINE):
            ends = piece.endswith(b"\n")
            if begins and (ends or len(piece) < LINE):
                yield piece
            begins = ends


def keep_lines(path: Path, wanted: Callable[[bytes], bool]) -> None:
    """Take out of a file, in one step, the lines that are not wanted, and a torn last one. Raises as `lines` does."""

    def kept() -> Iterator[bytes]:
        return (line for line in lines(path) if line.endswith(b"\n") and wanted(line))

    if sum(map(len, kept())) != path.stat().st_size:
        _replace(path, kept())


def write_file(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old one or the new one."""
    _replace(path, [text.encode()])


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link alone. What cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        with suppress(OSError):
            path.unlink()


def clear_drafts(folder: Path) -> None:
    """Delete what killed writes left half done in a folder. For the one process that may write there."""
    for draft in folder.glob(".*.draft-*"):
        draft.unlink(missing_ok=True)


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
    try:
        put(draft, chunks)
        flush(draft)
        os.replace(draft, path)
        flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)
