"""Small things done to a disk the careful way: whole, flushed, and in one step."""

from __future__ import annotations

import os
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


def put(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file from pieces, without flushing it. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                rest = rest[os.write(handle, rest[:PIECE]) :]
    finally:
        os.close(handle)


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
