"""What was skipped, and why: one JSON line for each sample, written when the step that would have held it is made.

With it every sample is accounted for: what the index holds = what was trained + what is in here. The reasons are a
closed list. A run whose data is mostly bad is stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mmtune.errors import DataError, Reason


class Ledger:
    """Skipped samples of a run.

    Args:
        path: the file, appended to; none keeps counts only (ranks other than the first).
        max_bad_fraction: most skips as a share of all samples seen.
        minimum: samples to see before that share counts.
        max_in_a_row: most skips one after the other.
    """

    def __init__(
        self,
        path: Path | None = None,
        max_bad_fraction: float = 0.25,
        minimum: int = 200,
        max_in_a_row: int = 100,
    ) -> None:
        self.path = path
        self.max_bad_fraction, self.minimum, self.max_in_a_row = max_bad_fraction, minimum, max_in_a_row
        self.counts: Counter[str] = Counter()
        """Skips by reason, those of earlier parts of the run included."""
        self.good = 0
        """Samples taken by this process."""
        self._bad = 0
        self._row = 0
        self._last = ""

    def rewind(self, step: int) -> None:
        """Go on from a step: lines of this and later steps are dropped, because those steps come again.

        They were left by a run that was stopped after it wrote them and before it saved.
        """
        rows = read(self.path) if self.path is not None else []
        kept = [row for row in rows if row["step"] < step]
        self.counts = Counter(row["reason"] for row in kept)
        if self.path is not None and self.path.exists():
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            part.replace(self.path)

    def take(self, count: int = 1) -> None:
        """Note samples that were used."""
        self.good += count
        self._row = 0

    def skip(
        self,
        id: str,
        shard: str = "",
        member: str = "",
        reason: Reason | str = "",
        detail: str = "",
        step: int = 0,
        **more: Any,
    ) -> None:
        """Note a sample that was not used.

        Args:
            more: further plain values for the line, as the stream and the epoch.

        Raises:
            ValueError: a reason that is not in the list.
            DataError: too much of the data cannot be used; the line is written before that.
        """
        reason = Reason(reason)
        row = {"step": step, "id": id, "shard": shard, "member": member, "reason": str(reason), "detail": detail}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **more}) + "\n")
        self.counts[str(reason)] += 1
        if str(reason) == "non_finite":  # it was read well; the sample has been counted as taken
            return
        self._bad += 1
        self._row += 1
        self._last = f"{id}: {reason}: {detail}"
        seen = self.good + self._bad
        many = seen >= self.minimum and self._bad > self.max_bad_fraction * seen
        if many or self._row > self.max_in_a_row:
            what = f"{self._bad} of {seen} samples" if many else f"{self._row} samples in a row"
            raise DataError(
                reason,
                f"{what} could not be used ({self.summary()}); the last was {self._last}",
                f"at most {self.max_bad_fraction:.0%} bad samples, and {self.max_in_a_row} in a row",
                "mmtune data check PATTERN --recipe RECIPE says what is wrong with which samples",
            )

    def summary(self) -> str:
        """Counts by reason, the most first; "nothing skipped" when there are none."""
        return ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common()) or "nothing skipped"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger; a torn last line, left by a kill, is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
