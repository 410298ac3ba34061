"""A whole conversion: the source is recognised, cut into pieces, and each piece becomes a shard."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmtune.data.convert import locations, rows, schemas, sources, state
from mmtune.data.convert.base import Options, Piece, Raw, Refusal, Row
from mmtune.data.convert.mirror import Mirror
from mmtune.data.convert.records import without
from mmtune.data.convert.write import Job, ShardNote, build
from mmtune.data.pool import Pool
from mmtune.errors import DataError, MmtuneError, Reason, UsageError

HEAD, HEADS = 100, {"columns": 10}
"""Records looked at together to tell how they are spelled, and how often, where none of the first can be read: 1000
times, but for files whose rows all have the same fields."""
TRIED = 8
"""Of these, records that are made for trial, to tell how large they are."""
SHARD = 256 << 20
"""Bytes of a shard that is aimed at."""
MOST = 1000
"""Most records of a shard, if nothing else is said."""


@dataclass
class Report:
    """The counts of a conversion, so far or at the end."""

    written: int = 0
    refused: int = 0
    shards: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Reason to the first record that was refused for it, in words."""
    hint: str = ""
    """What can be done about the first record that was refused."""
    passed: Counter[str] = field(default_factory=Counter)
    """Fields with bytes that were left out."""
    empty: list[str] = field(default_factory=list)
    """Names of shards that there are not, because every record of theirs was refused."""
    format: str = "llava"
    """The format that reads the shards."""

    def take(self, note: ShardNote) -> None:
        self.written += note.written
        self.bytes += note.bytes
        self.shards += bool(note.bytes)
        self.refused += len(note.refused)
        self.passed.update(note.passed)
        for line in note.refused:
            self.hint = self.hint if self.reasons else line.get("try", "")
            self.reasons[line["reason"]] += 1
            self.first.setdefault(line["reason"], described(line))


def described(line: dict[str, Any]) -> str:
    """A line of the report in words."""
    at = f"line {line['line']}" if line.get("line") else f"record {line['record']}"
    return f"{line['file']}, {at}: {line['message']}" if line.get("file") else f"{at}: {line['message']}"


def convert(
    where: str,
    out: str,
    options: Options,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Make shards of a source in the folder `out`, with an index beside each and `convert.jsonl`.

    Args:
        where: file, folder or address.
        workers: processes; the shards do not depend on their number.
        resume: continue with a conversion that was stopped.
        overwrite: remove the shards of an earlier conversion first.
        say: gets a line on the detected source.
        progress: called after every piece.

    Raises:
        UsageError: a source that holds no records, a folder that holds others' shards, or not one record written.
        MmtuneError: an address that does not answer, or a worker that died.
    """
    source = sources.find(where, options)
    for folder in map(locations.parse, options.media):
        if isinstance(folder, Path) and not folder.is_dir():
            seen = f"--media {folder}: " + ("no folder" if folder.exists() else "nothing is there")
            raise UsageError(seen, "a folder that names of media are relative to", "check the path")
    with ExitStack() as stack:
        stack.callback(rows.close)
        target = locations.parse(out)
        mirror = None
        if not isinstance(target, Path):
            mirror = Mirror(target, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmtune-"))))
            target = mirror.here
        if target.exists() and not target.is_dir():
            raise UsageError(f"--out {out} is a file", "a folder for the shards")
        job = _settled(source, target, options, resume)
        say(f"{where}: {source.what}; its records are read as `{job.schema}` ({_schema(job).about})")
        target.mkdir(parents=True, exist_ok=True)
        stack.enter_context(state.locked(target))
        if state.begin(job, resume, overwrite).get("finished"):
            say(f"{out}: this conversion is finished")
            return _finished(target, _schema(job).format)
        if mirror:
            mirror.settle()
        return _made(job, workers, mirror, out, progress)


def _schema(job: Job) -> schemas.Schema:
    return schemas.SCHEMAS[job.schema]


def _settled(source: sources.Source, out: Path, options: Options, resume: bool) -> Job:
    """The spelling of the records and their number in a shard, where these were not said."""
    head, schema = _recognised(source, options)
    job = Job(source, schema.name, options, out)
    if options.per_shard is None:
        known = _stored(out).get("settings", {}).get("per_shard") if resume else None
        job = replace(job, options=replace(options, per_shard=known or _fitting(job, head)))
    return job


def _recognised(source: sources.Source, options: Options) -> tuple[list[Raw], schemas.Schema]:
    """The first records of which any can be read, and how they are spelled. Raises UsageError where none can."""
    worst: UsageError | None = None
    for piece in islice(sources.pieces(source, HEAD, options.limit), HEADS.get(source.reader, 1000)):
        raws = sources.read(source, piece)
        head = list(islice(raws, TRIED))  # and no more is held: large media may be in them
        faults: list[UsageError] = []
        try:
            return head, schemas.choose(_readable(chain(head, raws), options, faults), options.format)
        except UsageError as unknown:
            worst = worst or (faults[0] if len(faults) == piece.count and options.format == "auto" else unknown)
    raise worst or UsageError(f"{source.what} without a record", sources.KNOWN)


def _readable(raws: Iterable[Raw], options: Options, faults: list[UsageError]) -> Iterator[Row]:
    """Rows under the names that they are to have; what cannot be read goes to `faults`."""
    for raw in raws:
        try:
            if raw.row is None:
                raise raw.fault or DataError(Reason.bad_json, "nothing could be read", "a record")
            yield schemas.renamed(without(raw.row, options.ignore), options.rename)
        except DataError as fault:
            faults.append(UsageError(f"{raw.where}: {fault.seen}", fault.expected, fault.hint))


def _fitting(job: Job, head: list[Raw]) -> int:
    """How many records make a shard of the size aimed at, by some of the first ones."""
    builder = job.builder()
    made = [members for raw in head[:TRIED] if not isinstance(members := build(builder, raw), Refusal)]
    each = sum(len(content) for members in made for content in members.values()) / max(1, len(made))
    return max(1, min(MOST, int(SHARD / max(1.0, each))))


def _made(job: Job, workers: int, mirror: Mirror | None, out: str, progress: Callable[[Report], None]) -> Report:
    report = Report(format=_schema(job).format)
    shards, count = [], 0
    for number, note in _notes(job, workers, mirror):
        report.take(note)
        if note.bytes:
            shards.append(job.shard(number))
        else:
            report.empty.append(job.shard(number).name)
        count = number + 1
        progress(report)
    about = {
        "written": report.written, "refused": report.refused, "shards": report.shards, "bytes": report.bytes,
        "reasons": dict(report.reasons), "left_out": dict(report.passed), "empty": report.empty,
    }  # fmt: skip
    lines = (line for number in range(count) for line in job.stored(number).refused)
    state.finish(job, about, shards, lines)
    if mirror:
        mirror.finish()
    if not report.written:
        (job.out / state.ABOUT).unlink()
        reason = next(iter(report.first.values()), "there is no record")
        hint = report.hint or "--media FOLDER says where media are" * ("missing_key" in report.reasons)
        raise UsageError(
            f"none of {report.refused} records could be written. {reason}",
            "records with their media",
            f"{hint}; ".removeprefix("; ") + f"all reasons are in {out.rstrip('/')}/{state.REPORT}",
        )
    return report


def _notes(job: Job, workers: int, mirror: Mirror | None) -> Iterator[tuple[int, ShardNote]]:
    """The result of every piece, in order; finished pieces are not made again."""

    def sent(number: int, note: ShardNote) -> tuple[int, ShardNote]:
        if mirror:
            mirror.sent(job.shard(number), job.note(number))
        return number, note

    assert job.options.per_shard is not None
    pieces = enumerate(sources.pieces(job.source, job.options.per_shard, job.options.limit))
    if workers < 2:
        for number, piece in pieces:
            done = job.done(number)
            yield (number, done) if done else sent(number, ShardNote.parse(job.work(number, piece).decode()))
        return
    pool = Pool(job.work, workers, lambda task: _named(task[1]))
    try:
        waiting: deque[tuple[int, int | ShardNote]] = deque()
        for number, piece in pieces:
            waiting.append((number, job.done(number) or pool.put(number, piece)))
            if len(waiting) >= 2 * workers:
                yield _fetched(pool, *waiting.popleft(), sent)
        while waiting:
            yield _fetched(pool, *waiting.popleft(), sent)
    finally:
        pool.close()


def _fetched(
    pool: Pool, number: int, task: int | ShardNote, sent: Callable[[int, ShardNote], tuple[int, ShardNote]]
) -> tuple[int, ShardNote]:
    if isinstance(task, ShardNote):
        return number, task
    try:
        return sent(number, ShardNote.parse(pool.get(task).decode()))
    except MmtuneError as error:
        if not error.hint and "Traceback" not in error.seen:
            raise  # it is named already
        hint = "--workers 1 --resume shows the fault itself; a killed worker often means too little memory"
        raise MmtuneError(error.seen, "workers that live until the end", hint) from error


def _named(piece: Piece) -> str:
    return f"records {piece.first} to {piece.first + piece.count - 1}"


def _stored(out: Path) -> dict[str, Any]:
    try:
        tree = json.loads((out / state.ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) and isinstance(tree.get("settings", {}), dict) else {}


def _finished(out: Path, form: str) -> Report:
    """The report of a conversion that was finished before."""
    tree = _stored(out)
    counts = {key: int(tree.get(key, 0)) for key in ("written", "refused", "shards", "bytes")}
    return Report(
        **counts,
        reasons=Counter(tree.get("reasons", {})),
        passed=Counter(tree.get("left_out", {})),
        empty=list(tree.get("empty", [])),
        format=form,
    )
