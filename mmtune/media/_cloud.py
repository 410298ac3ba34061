"""Shared by readers of point clouds: columns as they are in the file, and the gate that each passes before it reads.

A reader says how many points of how many bytes the header claims; the gate holds that against the limits and against
the bytes that are there, so a header alone allocates nothing.
"""

from __future__ import annotations

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
COLUMNS = 4096
"""Most values of a point."""
_NUMBER = re.compile(r"\d{1,15}")


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
            points, columns: numbers from the header.
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
        if columns > COLUMNS:
            raise self.refusal(f"points with {columns} values each", f"at most {COLUMNS}")
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


def named(table: np.ndarray, names: tuple[str, ...] = ("x", "y", "z")) -> Columns:
    """[points,columns] as columns; those after the last name have none."""
    names += ("",) * (table.shape[1] - len(names))
    return [(name, table[:, index]) for index, name in enumerate(names)]


def fields(table: np.ndarray) -> Columns:
    """A structured array [points] as columns, fields without a use (named with a leading dot) left out."""
    return [(name, table[name]) for name in table.dtype.names or () if not name.startswith(".")]
