"""Detects a source by its content: a file of records, the files of a data set, or a folder of media with texts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from mmtune.data.convert import coco, folders, locations, rows, tables, text
from mmtune.data.convert.base import Options, Piece, Raw
from mmtune.data.convert.locations import Location
from mmtune.errors import DataError, UsageError

Reader = Literal["text", "table", "columns", "folder", "coco"]
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ": ("xz", "unxz -k"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
"""First bytes of a packed file: its kind, and what unpacks it."""
_JSON = (".json", ".jsonl", ".ndjson", ".jsonlines")
_TABLE = (".csv", ".tsv")
KNOWN = "a JSON list, JSON lines, a CSV or TSV, parquet or Arrow files, or a folder of media with texts beside them"


@dataclass(frozen=True)
class Source:
    """Files of one kind, in their order."""

    reader: Reader
    what: str
    """For people: "a JSON list"."""
    root: Location
    """Where names of media are relative to, if nothing else is said."""
    files: tuple[Location, ...]
    start: Any = None
    """How the first record is found, for the readers `text` and `table`; names of files or records for the others."""

    def stamps(self) -> list[list[Any]]:
        """Name, size and time of every file, by which a source is known again."""
        return [[locations.shown(location), *locations.stamp(location)] for location in self.files]


def find(where: str, options: Options) -> Source:
    """The source at a path or address.

    Raises UsageError: nothing, something that holds no records, or several data sets of which none was chosen.
    """
    location = locations.parse(where)
    if isinstance(location, Path) and not location.exists():
        raise UsageError(f"{where}: nothing is there", KNOWN, "check the path; the working folder counts")
    if not locations.is_folder(location):
        return _file(location)
    found = folders.find(location, options.split)
    if found.media:
        return Source("folder", "a folder of media with texts beside them", location, (location,), found.names)
    if len(found.names) == 1:
        one = _file(locations.below(location, found.names[0]))
        return replace(one, what=f"{one.what} ({found.names[0]})")
    files = tuple(locations.below(location, name) for name in found.names)
    return Source(
        "columns",
        f"{len(files)} files of a data set",
        files[0].parent if isinstance(files[0], Path) else location,
        files,
    )


def _file(location: Location) -> Source:
    """One file, judged by its first bytes; the end of its name counts where these say nothing."""
    name = locations.shown(location)
    try:
        with locations.open_binary(location) as file:
            head = file.read(512)
            if head[:4] == b"PAR1" or head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
                what = "a parquet file" if head[:4] == b"PAR1" else "an Arrow file"
                return Source("columns", what, _parent(location), (location,))
            _refuse_others(head, name)
            first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            suffix = Path(location.name).suffix.lower()
            if suffix in _TABLE or (suffix not in _JSON and first not in (b"[", b"{", b"")):
                start: Any = tables.start_of(file, name)
                what = {"\t": "a TSV", ",": "a CSV"}.get(start.delimiter, f"a CSV with {start.delimiter}")
                return Source("table", what, _parent(location), (location,), start)
            if first == b"{" and (pictures := coco.rows(file)) is not None:
                return Source("coco", "captions of COCO", _parent(location), (location,), pictures)
            start, what = text.start_of(file, name)
            return Source("text", what, _parent(location), (location,), start)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}", "a file that can be read") from error


def _refuse_others(head: bytes, name: str) -> None:
    packed = next((kind for mark, kind in _PACKED.items() if head.startswith(mark)), None)
    if packed:
        sheet = name.lower().endswith((".xlsx", ".ods"))
        hint = "save it as CSV" if sheet else f"{packed[1]} {shlex.quote(name)}"
        raise UsageError(f"{name} is packed ({packed[0]})", KNOWN, hint)
    if head[257:262] == b"ustar":
        raise UsageError(f"{name} is a tar file, and so may be a shard already", KNOWN, f"mmtune data index {name}")
    from mmtune.media import sniff

    try:
        kind = sniff(head) if head[:1] not in (b"[", b"{") else None
    except DataError:
        kind = None
    except Exception:  # MediaError: no medium, which is right
        kind = None
    if kind and b"\0" in head:
        raise UsageError(f"{name} is a medium ({kind})", KNOWN, "give the folder or the file that says what it shows")


def _parent(location: Location) -> Location:
    if isinstance(location, Path):
        return location.parent
    return locations.Remote(location.url.rpartition("/")[0])


# -------------------------------------------------------------------------------------------------------------- pieces


def pieces(source: Source, per_shard: int, limit: int | None) -> Iterator[Piece]:
    """The source in pieces of `per_shard` records, the same whenever it is cut. Raises UsageError, OSError."""
    if source.reader in ("folder", "coco"):
        names = source.start[:limit]
        for first in range(0, len(names), per_shard):
            yield Piece(first + 1, len(names[first : first + per_shard]), names[first : first + per_shard])
    elif source.reader == "columns":
        yield from _rows(source, per_shard, limit)
    else:
        yield from _records(source, per_shard, limit)


def _records(source: Source, per_shard: int, limit: int | None) -> Iterator[Piece]:
    """Pieces of a text; records of one line stay in one piece, for only lines are found again."""
    begin, count, last = None, 0, -1
    with locations.open_binary(source.files[0]) as file:
        if source.reader == "text":
            starts = (span.start for span in text.spans(file, source.start))
        else:
            starts = (
                replace(source.start, offset=raw.offset, line=raw.line, number=raw.number)
                for raw in tables.read(file, source.start)
            )
        for start in islice(starts, limit):
            if begin is None or (count >= per_shard and start.offset != last):
                if begin is not None:
                    yield Piece(begin.number, count, begin)
                begin, count = start, 0
            count, last = count + 1, start.offset
    if begin is not None:
        yield Piece(begin.number, count, begin)


def _rows(source: Source, per_shard: int, limit: int | None) -> Iterator[Piece]:
    """Pieces of files with columns; a file begins a piece, and one that cannot be read is a piece with its fault."""
    number = 1
    for at, location in enumerate(source.files):
        try:
            with locations.open_binary(location) as file:
                found = rows.count(file, location.name)
        except (DataError, OSError) as error:
            fault = (
                error if isinstance(error, DataError) else text.bad_json(f"{location.name}: {error.strerror or error}")
            )
            yield Piece(number, 1, (at, fault))
            number += 1
            continue
        for row in range(0, found, per_shard):
            left = per_shard if limit is None else min(per_shard, limit - number + 1)
            if left < 1:
                return
            count = min(left, found - row)
            yield Piece(number, count, (at, row))
            number += count


def _read(reader: Reader, file: IO[bytes], start: Any, piece: Piece) -> Iterator[Raw]:
    if reader == "columns":
        return rows.read(file, start, piece.first, piece.count)
    return text.read(file, start) if reader == "text" else tables.read(file, start)


def read(source: Source, piece: Piece) -> Iterator[Raw]:
    """The records of a piece. Raises OSError."""
    if source.reader == "folder":
        yield from folders.read(source.files[0], piece.start, piece.first)
        return
    if source.reader == "coco":
        yield from coco.read(piece)
        return
    at, start = piece.start if source.reader == "columns" else (0, piece.start)
    label = source.files[at].name if len(source.files) > 1 else ""
    if isinstance(start, DataError):
        yield Raw(piece.first, fault=start, file=label)
        return
    with locations.open_binary(source.files[at]) as file:
        raws = _read(source.reader, file, start, piece)
        for raw in islice(raws, piece.count):
            yield replace(raw, file=label)
