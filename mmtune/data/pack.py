"""Examples into rows: whole examples share a row, each a segment of its own.

A step takes examples in their order for as long as they fit, longest first, into the rows of the step; the first one
that does not fit begins the next step. So what is in a step follows from where it starts, and the position of a run in
its data is one number.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmtune.errors import ConfigError, DataError, Reason


@dataclass(frozen=True)
class BatchSpec:
    """How much one step holds, over all ranks. Raises ConfigError for values below one."""

    rows: int
    """Rows of one micro-step."""
    length: int
    """Most tokens of a row."""
    accumulate: int = 1
    """Micro-steps of a step."""
    examples: int | None = None
    """Most examples of a step; none for as many as fit."""
    pack: bool = True
    """Whether examples share rows. If not, each has a row of its own."""

    def __post_init__(self) -> None:
        wrong = [name for name in ("rows", "length", "accumulate", "examples") if (getattr(self, name) or 1) < 1]
        if wrong or not self.rows or not self.length or not self.accumulate:
            raise ConfigError(f"{self}", "at least one of everything")

    @property
    def all_rows(self) -> int:
        """Rows of a step."""
        return self.rows * self.accumulate

    def check(self, id: str, length: int) -> None:
        """Refuse an example that no row can hold. Raises DataError too_long."""
        if length > self.length:
            hint = "raise run.length or ask for fewer frames"
            raise DataError(Reason.too_long, f"{id}: {length} tokens", f"at most {self.length}", hint)


class Packer:
    """The rows of one step while they fill."""

    def __init__(self, spec: BatchSpec) -> None:
        self.spec = spec
        self.lengths: list[int] = []
        self._rows: list[list[int]] = []
        self._room: list[int] = []

    @property
    def full(self) -> bool:
        """Whether the step has as many examples as it may."""
        return self.spec.examples is not None and len(self.lengths) >= self.spec.examples

    def add(self, length: int) -> bool:
        """Take one more example; False, and nothing changed, when the step cannot hold it.

        It goes into the fullest row that still takes it; if there is none, all are laid again, longest first.
        """
        if self.full:
            return False
        index = len(self.lengths)
        if not self._fit(self._rows, self._room, index, length):
            if not self.spec.pack or sum(self.lengths) + length > self.spec.all_rows * self.spec.length:
                return False
            sizes = [*self.lengths, length]
            rows: list[list[int]] = []
            room: list[int] = []
            for one in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
                if not self._fit(rows, room, one, sizes[one]):
                    return False
            self._rows, self._room = rows, room
        self.lengths.append(length)
        return True

    def _fit(self, rows: list[list[int]], room: list[int], index: int, length: int) -> bool:
        best = None
        if self.spec.pack:
            fits = (row for row in range(len(rows)) if room[row] >= length)
            best = min(fits, key=lambda row: room[row], default=None)
        if best is None:
            if len(rows) == self.spec.all_rows or length > self.spec.length:
                return False
            best = len(rows)
            rows.append([])
            room.append(self.spec.length)
        rows[best].append(index)
        room[best] -= length
        return True

    def rows(self) -> list[list[int]]:
        """Examples by row, by the order they came in: rows by their first example."""
        return sorted(sorted(row) for row in self._rows)
