"""Arrays by key in one growing file, read through a memory map: what the feature cache is made of.

`features.bin` holds the arrays one after the other, float16; `index.jsonl` one line for each: key, offset, frames; or
key, reason and detail for an item that cannot be decoded. A line is written after its array is on the disk, so what the
index names is there, and the remains of a killed writer after it are overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmtune import disk
from mmtune.errors import DataError, ModelError, Reason

MOST = 1 << 31
"""Largest index that is read, bytes."""


class FeatureFile:
    """Arrays [F,N,E] of one encoder.

    Args:
        folder: made when something is written.
        tokens, width: N and E.
        about: written beside the arrays, for people.
    """

    def __init__(self, folder: Path, tokens: int, width: int, about: dict[str, Any]) -> None:
        self.folder, self.tokens, self.width = folder, tokens, width
        self._about = {**about, "tokens": tokens, "width": width, "dtype": "float16"}
        self._map: np.memmap | None = None
        self.offsets: dict[str, tuple[int, int]] = {}
        """Key to offset in numbers and F."""
        self.faults: dict[str, tuple[str, str]] = {}
        """Key to reason and detail."""
        self.complete: set[str] = set()
        """Corpora that are in here whole."""
        self._cut = False
        self.load()

    def __contains__(self, key: str) -> bool:
        return key in self.offsets or key in self.faults

    def load(self) -> None:
        """Read the index again. Raises DataError when it is of arrays of another shape."""
        self._map = None
        self.offsets, self.faults, self.complete = {}, {}, set()
        about = self.folder / "about.json"
        if not about.exists():
            return
        found = _about(about)
        if (found.get("tokens"), found.get("width")) != (self.tokens, self.width):
            seen = f"{self.folder} holds features of {found.get('tokens')} x {found.get('width')}"
            raise DataError(Reason.digest_mismatch, seen, f"{self.tokens} x {self.width}", "delete this folder")
        length = self._bin.stat().st_size // 2 if self._bin.exists() else 0
        whole = True
        lines = disk.read_text(self._index, MOST).splitlines() if self._index.exists() else []
        for line in lines:
            try:
                row = _row(line)
            except (ValueError, RecursionError):  # the last line of a writer that was killed
                continue
            if "mark" in row:
                self.complete.add(row["mark"])
            elif "reason" in row:
                self.faults[row["key"]] = row["reason"], row["detail"]
            elif row["at"] + row["frames"] * self.tokens * self.width <= length:
                self.offsets[row["key"]] = row["at"], row["frames"]
            else:
                whole = False  # of a file that was cut
        self._cut = not whole
        if self._cut:
            self.complete.clear()
        if length:
            self._map = np.memmap(self._bin, dtype=np.float16, mode="r", shape=(length,))

    def read(self, key: str) -> np.ndarray:
        """A copy of an array, float16 [F,N,E]."""
        at, frames = self.offsets[key]
        size = frames * self.tokens * self.width
        assert self._map is not None
        return np.array(self._map[at : at + size]).reshape(frames, self.tokens, self.width)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Append to the file; one process at a time, others wait. The index is read again before and after."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        disk.folder(self.folder)
        with _open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.folder / "about.json").exists():
                disk.write_file(self.folder / "about.json", json.dumps(self._about, indent=1))
            self.load()
            if self._cut:
                self._forget()
            writer = Writer(self)
            try:
                yield writer
            finally:
                writer.close()
                self.load()

    def _forget(self) -> None:
        """Leave out the lines whose arrays are not there: others will be in their places."""
        rows = [{"key": key, "at": at, "frames": frames} for key, (at, frames) in self.offsets.items()]
        rows += [{"key": key, "reason": why, "detail": detail} for key, (why, detail) in self.faults.items()]
        disk.write_file(self._index, "".join(json.dumps(row) + "\n" for row in rows))
        self._cut = False

    @property
    def _bin(self) -> Path:
        return self.folder / "features.bin"

    @property
    def _index(self) -> Path:
        return self.folder / "index.jsonl"


def _open(path: Path, mode: str) -> Any:
    """A file to append to, through no link."""
    return os.fdopen(disk.open_plain(path, os.O_WRONLY | os.O_APPEND), mode)


def _about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(disk.read_text(path, 1 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(Reason.bad_json, f"{path}: {error}", "what features are kept here", "delete it") from error
    return found if isinstance(found, dict) else {}


def _row(line: str) -> dict[str, Any]:
    """A line of the index. Raises ValueError or RecursionError for what is none."""
    row = json.loads(line)
    if isinstance(row, dict):
        words = ("mark",) if "mark" in row else ("key", "reason", "detail") if "reason" in row else ("key",)
        numbers = ("at", "frames") if words == ("key",) else ()
        whole = all(type(row.get(one)) is int and row[one] >= 0 for one in numbers)
        if whole and all(isinstance(row.get(word), str) for word in words):
            return row
    raise ValueError(line[:80])


class Writer:
    """Appends to a feature file."""

    def __init__(self, feature_file: FeatureFile) -> None:
        self._file = feature_file
        step = feature_file.tokens * feature_file.width
        self._end = max((at + frames * step for at, frames in feature_file.offsets.values()), default=0)
        feature_file._map = None
        self._bin = _open(feature_file._bin, "ab")
        self._bin.truncate(self._end * 2)
        self._index = _open(feature_file._index, "a")
        self._end_line()
        self._lines: list[dict[str, Any]] = []
        self._waiting = 0

    def _end_line(self) -> None:
        """A torn last line must not swallow the next one."""
        size = self._index.seek(0, os.SEEK_END)
        if size:
            with self._file._index.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._index.write("\n")

    def put(self, key: str, array: np.ndarray) -> None:
        """Add an array, float32 or float16 [F,N,E]. Raises ModelError for numbers that float16 cannot hold."""
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ModelError(
                f"features of {key} reach {np.abs(array).max():g}",
                "finite numbers below 65504, which float16 holds",
                "leave out run.feature_cache for this encoder",
            )
        self._bin.write(half.tobytes())
        self._lines.append({"key": key, "at": self._end, "frames": array.shape[0]})
        self._file.offsets[key] = self._end, array.shape[0]
        self._end += half.size
        self._waiting += half.nbytes
        if self._waiting > 64 << 20:
            self.flush()

    def fault(self, key: str, reason: str, detail: str) -> None:
        """Note an item that cannot be decoded."""
        self._lines.append({"key": key, "reason": reason, "detail": detail})
        self._file.faults[key] = reason, detail

    def mark(self, name: str) -> None:
        """Note that all of a corpus is in here."""
        self._lines.append({"mark": name})

    def flush(self) -> None:
        """Bring arrays to the disk, then the lines that name them."""
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._index.write("".join(json.dumps(line) + "\n" for line in self._lines))
        self._index.flush()
        os.fsync(self._index.fileno())
        self._lines, self._waiting = [], 0

    def close(self) -> None:
        self.flush()
        self._bin.close()
        self._index.close()
