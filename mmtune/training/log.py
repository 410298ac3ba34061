"""What a run says of itself: metrics.jsonl always, trackers beside it, and lines or a bar for the reader.

Nothing in here may stop a run. A full disk or a broken tracker costs metrics, is counted, and is said once.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmtune import disk
from mmtune.output import Output
from mmtune.training.step import Outcome
from mmtune.training.trackers import Tracker

_errors = Output("stderr")

Style = Literal["auto", "bar", "lines", "off"]


def step_row(
    stream: str, outcome: Outcome, rates: Mapping[str, float], seconds: float, waited: float
) -> dict[str, float | int | str]:
    """A step as a row of metrics.

    Args:
        rates: learning rate of each group that the step trained.
        seconds: of the whole step.
        waited: seconds of it that went by before its data was there.
    """
    return {
        "stream": stream,
        **outcome.loss_values(),
        "samples": outcome.samples,
        "tokens": outcome.tokens,
        "supervised_tokens": outcome.supervised,
        "samples_per_second": outcome.samples / seconds,
        "tokens_per_second": outcome.tokens / seconds,
        "data_wait": waited / seconds,
        "updated": int(outcome.updated),
        **{f"lr/{name}": rate for name, rate in rates.items()},
        **{f"norm/{name}": norm for name, norm in outcome.norms.items()},
    }


class Metrics:
    """Numbers of a run, by step, as JSON lines and for trackers.

    Args:
        folder: the run folder; `metrics.jsonl` is written in it.
        start: the step the run continues from; rows of later steps, written by a run that was killed before
            it saved, are dropped so that each step has one row, and one more where it was validated.
        trackers: what else gets the numbers.
    """

    def __init__(self, folder: Path, start: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self.path = folder / "metrics.jsonl"
        self.lost = 0
        self._trackers = list(trackers)
        try:
            _drop_after(self.path, start)
        except (OSError, ValueError) as error:
            self.lost += 1
            _errors.say(f"warning: {self.path} could not be put in order: {error}; training goes on")

    def write(self, step: int, values: dict[str, float | int | str | None]) -> None:
        """One row. Values that are not numbers go to the JSON line only."""
        row = {"step": step, **{k: _finite(v) for k, v in values.items()}}
        try:
            disk.append(self.path, (json.dumps(row) + "\n").encode())
            numbers = {n: v for n, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            for tracker in self._trackers:
                tracker.write(step, numbers)
        except Exception as error:
            self.lost += 1
            if self.lost == 1:
                _errors.say(f"warning: metrics are not being written: {error}; training goes on")

    def close(self) -> None:
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                self.lost += 1
                _errors.say(f"warning: the numbers for {type(tracker).__name__} were not closed: {error}")


def _finite(value: Any) -> Any:
    """JSON has no NaN: the word is written instead, so that a row is always valid."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _drop_after(path: Path, start: int) -> None:
    """Keep rows of steps up to `start`. A torn last line, left by a kill, goes too. Writes only where a row goes."""
    if not path.exists():
        return
    disk.keep_lines(path, lambda line: _is_row(line, start))  # in one step: a kill or a full disk costs no rows


def _is_row(line: bytes, start: int) -> bool:
    """Whether a line is a row of a step up to `start`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= start


class Progress:
    """Tells the reader how far the work is: a bar on a terminal, now and then a line elsewhere.

    Args:
        style: `auto` takes the bar on a terminal and lines elsewhere; `off` says nothing.
        say: where lines go; stdout when not given.
    """

    def __init__(self, style: Style = "auto", say: Callable[[str], None] | None = None) -> None:
        terminal = say is None and sys.stdout is not None and sys.stdout.isatty()
        self.style: Style = ("bar" if terminal else "lines") if style == "auto" else style
        self._say = say or Output("stdout").say
        self._bar: Any = None
        self._task: Any = None
        self._total = 0
        self._last = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.style == "off":
            return
        if self._bar is not None:
            self._draw(lambda bar: bar.console.print(text, markup=False, highlight=False))
        else:
            self._say(text)

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of `total` parts."""
        self.stop()
        self._total, self._last = total, 0.0
        if self.style == "bar":
            from rich import progress as rich

            columns = (
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}"),
            )
            self._bar = rich.Progress(*columns)
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._draw(lambda bar: bar.start())
        else:
            self._task = title

    def at(self, done: int, note: str = "", every: float = 10.0) -> None:
        """Say how far it is; as a line at most once in `every` seconds, and always at the end."""
        if self._bar is not None:
            self._draw(lambda bar: bar.update(self._task, completed=done, note=note))
            return
        now = time.monotonic()
        if now - self._last >= every or done == self._total:
            self._last = now
            self.line(f"{self._task} {done}/{self._total}  {note}".rstrip())

    def stop(self) -> None:
        if self._bar is not None:
            self._draw(lambda bar: bar.stop())
            self._bar = None

    def _draw(self, how: Callable[[Any], None]) -> None:
        """Draw the bar, and do without from then on when its terminal is gone."""
        try:
            how(self._bar)
        except (OSError, ValueError, SystemExit):  # rich leaves the program where a pipe breaks
            bar, self._bar, self.style = self._bar, None, "off"
            with contextlib.suppress(OSError, ValueError, SystemExit):
                bar.stop()
