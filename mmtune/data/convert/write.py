"""One piece of a source to one shard, its index beside it, and a note of what was refused.

A shard is a function of its piece alone. It is written under another name and renamed when it is whole; the note in
`.convert/` is written last and says that the piece is done. So a conversion that was killed continues with the pieces
that have no note, and ends with the shards that it would have ended with. Nothing here is written through a link.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.data import index as indexes
from mmtune.data.convert import locations, sources
from mmtune.data.convert.base import Options, Piece, Raw, Refusal
from mmtune.data.convert.media import Roots
from mmtune.data.convert.records import Builder
from mmtune.data.convert.schemas import SCHEMAS
from mmtune.data.convert.sources import Source
from mmtune.errors import DataError, MediaError, MmtuneError, Reason

NOTES = ".convert"
"""Folder of the notes, inside the folder of the shards, while a conversion goes on."""


@dataclass
class ShardNote:
    """The result of a piece."""

    written: int = 0
    bytes: int = 0
    """Of the shard; 0 where no record of the piece could be written, and so there is none."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    """Fields left out, and of how many records."""

    def dump(self) -> str:
        return json.dumps(vars(self), ensure_ascii=True)

    @classmethod
    def parse(cls, text: str) -> ShardNote:
        """Raises ValueError, TypeError."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs."""

    source: Source
    schema: str
    options: Options
    out: Path

    def builder(self) -> Builder:
        folders = tuple(locations.parse(one) for one in self.options.media)
        if not folders or self.source.reader == "folder":  # whose media are named by where they are in it
            folders = (self.source.root, *folders)
        roots = Roots(folders, open=not self.options.media)
        return Builder(SCHEMAS[self.schema], roots, self.options, self.source.reader == "folder")

    def shard(self, number: int) -> Path:
        return self.out / f"{number:05d}.tar"

    def note(self, number: int) -> Path:
        return self.out / NOTES / f"{number:05d}.json"

    def stored(self, number: int) -> ShardNote:
        """The note of a piece. Raises OSError, ValueError and TypeError."""
        return ShardNote.parse(self.note(number).read_text(encoding="utf-8"))

    def done(self, number: int) -> ShardNote | None:
        """The note of a piece, if it is done and its shard is there."""
        try:
            note = self.stored(number)
            there = self.shard(number).stat().st_size if note.bytes else 0
        except (OSError, ValueError, TypeError):
            return None
        return note if there == note.bytes else None

    def work(self, number: int, piece: Piece) -> bytes:
        """Write the shard of a piece; returns its note as JSON. Raises MmtuneError: a disk that is full or fails."""
        try:
            note = _shard(self.shard(number), self.builder(), sources.read(self.source, piece))
            text = note.dump()
            disk.write_file(self.note(number), text)
        except OSError as error:
            seen = f"{error.filename or self.shard(number)}: {error.strerror or error}"
            hint = "correct that, then the same command with --resume continues"
            raise MmtuneError(seen, "a source that can be read, and room for the shards", hint) from error
        return text.encode()


def build(builder: Builder, raw: Raw) -> dict[str, bytes] | Refusal:
    """The members of one record, or why it is refused. Raises OSError of a disk that fails."""
    key = f"{raw.number - 1:09d}"
    try:
        if raw.row is None:
            raise raw.fault or DataError(Reason.bad_json, "nothing could be read", "a record")
        return builder.members(raw.row, key)
    except (DataError, MediaError) as error:
        seen = re.sub(rf"\b{key}: ", "", error.seen)
        seen = re.sub(rf"\b{key}(\.json)?(?![.\d]|\w)", "the record", seen)
        hint = "--ignore FIELD leaves it out" if error.reason == Reason.unused_field else error.hint
        return Refusal.of(raw, DataError(error.reason, seen, error.expected, hint))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # a record of an unforeseen shape is one refused record, and does not end the conversion
        seen = f"the record has an unforeseen shape: {type(error).__name__}: {error}"[:400]
        return Refusal.of(raw, DataError(Reason.bad_json, seen, f"a record of {builder.schema.about}"))


def _shard(path: Path, builder: Builder, raws: Any) -> ShardNote:
    note = ShardNote()
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with disk.create(draft) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for raw in raws:
                    made = build(builder, raw)
                    if isinstance(made, Refusal):
                        note.refused.append(made.line_of_report())
                        continue
                    for suffix, content in made.items():
                        about = tarfile.TarInfo(f"{raw.number - 1:09d}.{suffix}")
                        about.size, about.mode = len(content), 0o644
                        tar.addfile(about, io.BytesIO(content))
                    note.written += 1
            file.flush()
            os.fsync(file.fileno())
        if note.written:
            note.bytes = draft.stat().st_size
            os.replace(draft, path)
            index = indexes.scan(path)
            disk.write_file(indexes.beside(path), index.dump())
    finally:
        draft.unlink(missing_ok=True)
    note.passed = dict(sorted(builder.passed.items()))
    return note
