"""What was skipped, and why: one JSON line for each sample, written when the step that would have held it is made.

With it every sample is accounted for: what the index holds = what was trained + what is in here. The reasons are a
closed list. A run whose data is mostly bad is stopped.

The position in the file is part of what a run saves. Lines written after a save are cut off when the run continues from
it, because their steps come again; lines from before it have to be there, to the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
            self._sum, self._bytes = _digest(self.path)
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
        size = position["bytes"]
        digest, length = _digest(self.path, size)
        if length < size:
            return [f"{self.path.name} has {length} bytes of the {size} that were saved"]
        if digest.hexdigest() != position["sha256"]:
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
        self.counts, self.held_out, self._noted, self._sum = Counter(), Counter(), set(), None
        if self.path is None or not self.path.exists():
            return
        for row in read(self.path):
            if row["step"] < step and row.get("held_out"):
                self.held_out[row["reason"]] += 1
                self._noted.add((row["stream"], row["id"]))
            elif row["step"] < step:
                self.counts[row["reason"]] += 1
        try:
            # flushed, as what it replaces is: a saved state counts on its lines
            disk.keep_lines(self.path, lambda line: (row := _row(line)) is not None and row["step"] < step)
        except (OSError, ValueError) as error:
            raise _unread(self.path, error) from error

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


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger; what is no line of one, as a torn last one that a kill left, is passed over.

    Every row has a whole `step`, a known `reason`, and text for `id` and `stream`. Raises CheckpointError for a file
    that is no plain one, or is larger than `disk.LINES`.
    """
    try:
        yield from (row for line in disk.lines(path) if (row := _row(line)) is not None)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unread(path, error) from error


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of a ledger, which may have come with a run folder from elsewhere; none for what is no such line."""
    try:
        row = json.loads(line)
        Reason(row["reason"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = all(type(row.get(name, 0)) is int and row.get(name, 0) >= 0 for name in ("step", "epoch"))
    named = all(isinstance(row.setdefault(name, ""), str) for name in ("id", "stream"))
    return row if whole and named and "step" in row else None


def _digest(path: Path | None, most: int | None = None) -> tuple[Any, int]:
    """Running sha256 of the first `most` bytes of a file and how many there are; nothing where there is none.

    Raises CheckpointError as `read` does.
    """
    total, size = hashlib.sha256(), 0
    if path is None or not path.exists():
        return total, size
    try:
        with disk.open_to_read(path, disk.LINES) as file:
            while piece := file.read(disk.LINE if most is None else min(disk.LINE, most - size)):
                total.update(piece)
                size += len(piece)
    except (OSError, ValueError) as error:
        raise _unread(path, error) from error
    return total, size


def _unread(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: {error}", "the lines that a run wrote of samples it could not use", "take it away")
