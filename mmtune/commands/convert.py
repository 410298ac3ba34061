"""`mmtune data convert`: records and media in common layouts to shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmtune.data.convert.base import Options
    from mmtune.data.convert.run import Report

EVERY = 10.0
"""Seconds between lines of progress, where there is no terminal."""
LARGE = 16_000_000
"""Bytes from which a file is announced before it is read."""


def run(source: str, out: str, options: Options, workers: int, resume: bool, overwrite: bool) -> None:
    """Convert and print the result.

    Raises:
        UsageError: a source without records, a folder with other shards, or nothing written.
    """
    from mmtune.data.convert.run import convert

    errors = Output("stderr")
    start = time.monotonic()
    if (size := _size(source)) >= LARGE:  # COCO's two lists are joined before the first record is there
        errors.say(f"reading {source} ({size / 1e6:.0f} MB)")
    try:
        with _progress(errors) as progress:
            report = convert(source, out, options, workers, resume, overwrite, errors.say, progress)
    except KeyboardInterrupt:
        errors.say("the same command with --resume continues from here")
        raise
    print("\n".join(summary(report, out)))
    errors.say(f"{time.monotonic() - start:.1f} s")


def _size(source: str) -> int:
    """Bytes of a file on this machine; 0 for others."""
    path = Path(source).expanduser()
    return path.stat().st_size if path.is_file() else 0


def summary(report: Report, out: str) -> list[str]:
    """The printed summary of a conversion."""
    folder = out.rstrip("/")
    total = report.written + report.refused
    size = f"{report.bytes / 1e9:.2f} GB" if report.bytes >= 1e8 else f"{report.bytes / 1e6:.2f} MB"
    shards = f"{report.shards} shard{'s' if report.shards != 1 else ''}"
    lines = [f"{total} records: {report.written} written into {shards} ({size}), {report.refused} refused"]
    for reason, count in report.reasons.most_common():
        lines.append(f"  {count} {reason}" + (f", first: {report.first[reason]}" if reason in report.first else ""))
    lines += [
        f"  field {name} of {count} records holds bytes and was left out" for name, count in report.passed.items()
    ]
    if report.empty:
        names = ", ".join(report.empty[:4]) + f" and {len(report.empty) - 4} more" * (len(report.empty) > 4)
        lines.append(f"  no {names}: all of their records were refused; the numbers of the others stay")
    lines += [f"every refused record: {folder}/convert.jsonl"] if report.refused else []
    return [*lines, f"in a recipe: data: ['{folder}/*.tar'], format: {{name: {report.format}}}"]


@contextmanager
def _progress(errors: Output) -> Iterator[Callable[[Report], None]]:
    """A progress line that is updated on a terminal; elsewhere a new line now and then."""
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading")
            yield lambda report: bar.update(task, description=_so_far(report))
        return
    last = time.monotonic()

    def say(report: Report) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            errors.say(_so_far(report))

    yield say


def _so_far(report: Report) -> str:
    return f"{report.written} records written into {report.shards} shards, {report.refused} refused"
