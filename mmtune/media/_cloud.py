"""Shared by readers of point clouds: columns as they lie in the file, and the gate that each passes before it reads.

A reader says how many points of how many bytes the header claims; the gate holds that against the limits and against
the bytes that are there, so a header alone allocates nothing.
"""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass

import numpy as np

from mmtune.errors import MediaError, Reason
from mmtune.media._limits import Limits

Columns = list[tuple[str, np.ndarray]]
"""Name in the file (empty where it gives none) and values [points] of each column."""
HEADER = 1 << 18
"""Most bytes of a header."""
_NUMBER = re.compile(r"\d{1,15}")
_NAN = re.compile(rb"[-+]?(?:(?i:nan)\(\w*\)|1\.#\w+)")
"""How other libraries of C write what is no number."""
_COMMENT = re.compile(rb"(#|//)[^\r\n]*")
_BLANK = re.compile(rb"(?:^|(?<=\n))[ \t]*\n")


@dataclass(frozen=True)
class Gate:
    """Limits and name of one item."""

    limits: Limits
    origin: str

    def refusal(self, seen: str, expected: str, hint: str = "") -> MediaError:
        """The error for a damaged or unknown file: `raise gate.refusal(...)`."""
        return MediaError(Reason.unreadable_points, f"{self.origin}: {seen}", expected, hint)

    def admit(self, points: int, columns: int, stride: int = 0, there: int = 0) -> None:
        """Refuse a claim before anything is allocated.

        Args:
            points, columns: what the header says.
            stride: bytes of a point; 0 where they cannot be known (text).
            there: bytes that are left for them.

        Raises MediaError: unreadable_points, points_limits.
        """
        if points < 1 or columns < 3:
            raise self.refusal(f"{points} points with {columns} values each", "at least one point with x, y and z")
        if points * stride > there:
            raise self.refusal(
                f"{points} points of {stride} bytes, and {there} bytes for them", "as much data as the header claims"
            )
        limits, seen = self.limits, f"{self.origin}: {points} points with {columns} values each"
        if points > limits.points:
            raise limits.refusal("points", Reason.points_limits, seen)
        if points * columns > limits.point_values:
            raise limits.refusal("point_values", Reason.points_limits, seen)

    def check_clock(self, deadline: float) -> None:
        """Refuse what takes longer than the limit, `deadline` being the `time.monotonic()` at which it is over."""
        if time.monotonic() > deadline:
            seen = f"{self.origin}: decoding took more than {self.limits.wall_seconds:g} seconds"
            raise self.limits.refusal("wall_seconds", Reason.points_limits, seen)

    def count(self, text: str) -> int:
        """A whole number from a header. Raises MediaError."""
        if not _NUMBER.fullmatch(text):
            raise self.refusal(f"the number {text[:40]!r}", "a plain whole number")
        return int(text)


def rows(
    data: bytes, gate: Gate, skip: int = 0, most: int | None = None, comments: bool = False, gap: str | None = None
) -> np.ndarray:
    """Numbers in lines of text, float64 [points,columns], all lines of one length.

    Args:
        skip: lines with something in them that are left out at the start.
        most: lines to be read, of which none may be missing; what follows is not looked at. None reads all.
        comments: whether there may be comments.
        gap: what separates numbers; none is white space.
    """
    if b"(" in data or b"1.#" in data:
        data = _NAN.sub(b"nan", data)
    if comments and (b"#" in data or b"//" in data):
        data = _COMMENT.sub(b"", data)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if most is not None:  # numpy counts lines, and complains of empty ones
        data = _BLANK.sub(b"", data)
    if not data or data.isspace():
        raise gate.refusal("no numbers", "points")
    table = np.loadtxt(
        io.BytesIO(data), np.float64, None, gap, skiprows=skip, max_rows=most, ndmin=2, encoding="latin1"
    )  # fmt: skip
    if most is not None and len(table) != most:
        raise gate.refusal(f"{len(table)} lines of points", f"{most}, as the header says")
    return table


def named(table: np.ndarray, names: tuple[str, ...] = ("x", "y", "z")) -> Columns:
    """[points,columns] as columns; those behind the last name have none."""
    names += ("",) * (table.shape[1] - len(names))
    return [(name, table[:, place]) for place, name in enumerate(names)]


def fields(table: np.ndarray) -> Columns:
    """A structured array [points] as columns, fields without a use (named with a leading dot) left out."""
    return [(name, table[name]) for name in table.dtype.names or () if not name.startswith(".")]
