"""What was skipped, and why: one JSON line for each sample, written when the step that would have held it is made.

With it every sample is accounted for: what the index holds = what was trained + what is in here. The reasons are a
closed list. A run whose data is mostly bad is stopped.

The place in the file is part of what a run saves. Lines written after a save are cut off when the run goes on from it,
because their steps come again; lines from before it have to be there, to the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.errors import CheckpointError, DataError, Note, Reason


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
        self.notes: Counter[str] = Counter()
        """What was unusual about media that were used, earlier parts of the run included."""
        self.held_out: Counter[str] = Counter()
        """Held-out samples that could not be used, by reason; they are no part of the counts above."""
        self._noted: set[tuple[str, str]] = set()
        self.good = 0
        """Samples taken by this process."""
        self._bad = 0
        self._row = 0
        self._last = ""
        self._sum: Any = None
        """Running digest of the file; none until it is asked for."""
        self._bytes = 0

    # --------------------------------------------------------------------------------------------- saving, going on

    def position(self) -> dict[str, Any]:
        """Where the ledger stands: plain values, to be saved and given to `restore`."""
        if self._sum is None:
            held = self.path.read_bytes() if self.path is not None and self.path.exists() else b""
            self._sum, self._bytes = hashlib.sha256(held), len(held)
        return {
            "bytes": self._bytes,
            "sha256": self._sum.hexdigest(),
            "good": self.good,
            "bad": self._bad,
            "row": self._row,
            "notes": dict(self.notes),
        }

    def faults(self, position: Mapping[str, Any]) -> list[str]:
        """What of the lines before a position is not as it was, in words. A ledger without a file has no faults."""
        if self.path is None:
            return []
        held = self.path.read_bytes() if self.path.exists() else b""
        size = position["bytes"]
        if len(held) < size:
            return [f"{self.path.name} has {len(held)} bytes of the {size} that were saved"]
        if hashlib.sha256(held[:size]).hexdigest() != position["sha256"]:
            return [f"{self.path.name}: its first {size} bytes are not those that were saved"]
        return []

    def restore(self, position: Mapping[str, Any]) -> None:
        """Count on from a position. Lines that were written after it are for `rewind` to drop."""
        self.good, self._bad, self._row = position["good"], position["bad"], position["row"]
        self.notes = Counter(position.get("notes", {}))  # states of before there were any have none
        self._sum = None

    def flush(self) -> None:
        """Bring the lines to the disk. Raises OSError."""
        if self.path is not None and self.path.exists():
            disk.flush(self.path)

    def rewind(self, step: int) -> None:
        """Drop the lines of this and later steps, and count those that stay."""
        rows = read(self.path) if self.path is not None else []
        kept = [row for row in rows if row["step"] < step]
        self.counts = Counter(row["reason"] for row in kept if not row.get("held_out"))
        self.held_out = Counter(row["reason"] for row in kept if row.get("held_out"))
        self._noted = {(row["stream"], row["id"]) for row in kept if row.get("held_out")}
        if self.path is not None and len(kept) < _lines(self.path):
            # flushed, as what it replaces is: a saved state counts on its lines
            disk.write_file(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._sum = None

    def take(self, count: int = 1, notes: Iterable[Note] = ()) -> None:
        """Note samples that were used, and what was unusual about their media."""
        self.good += count
        self.notes.update(str(Note(note)) for note in notes)
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
            CheckpointError: the line could not be written.
            DataError: too much of the data cannot be used; the line is written before that.
        """
        reason = Reason(reason)
        row = {"step": step, "id": id, "shard": shard, "member": member, "reason": str(reason), "detail": detail}
        self._line({**row, **more})
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

    def note_held_out(
        self, stream: str, id: str, shard: str, member: str, reason: Reason | str, detail: str, step: int
    ) -> None:
        """Note a held-out sample that cannot be used, the first time. It counts for no limit of the training data.

        Raises CheckpointError: the line could not be written.
        """
        if (stream, id) in self._noted:
            return
        row = {"step": step, "id": id, "shard": shard, "member": member, "reason": str(Reason(reason))}
        self._line({**row, "detail": detail, "stream": stream, "held_out": True})
        self._noted.add((stream, id))
        self.held_out[str(reason)] += 1

    def _line(self, row: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        line = (json.dumps(row) + "\n").encode()
        try:
            disk.append(self.path, line)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error.strerror}; {row['id']} was skipped as {row['reason']}",
                "a line for every sample that is not used",
                "make room, and go on with --resume",
            ) from error
        if self._sum is not None:
            self._sum.update(line)
            self._bytes += len(line)

    def summary(self) -> str:
        """Counts by reason, the most first; "nothing skipped" when there are none."""
        said = [f"{reason} {count}" for reason, count in self.counts.most_common()]
        said += [f"held out: {reason} {count}" for reason, count in self.held_out.most_common()]
        return ", ".join(said) or "nothing skipped"

    def unusual(self) -> str:
        """Counts of what was unusual about media that were used; empty for nothing."""
        return ", ".join(f"{note} {count}" for note, count in self.notes.most_common())


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ledger; a torn last line, left by a kill, is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def _lines(path: Path) -> int:
    """Lines of a file, torn ones included."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0
