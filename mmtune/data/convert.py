"""Published annotation files and folders of media to shards.

`python -m mmtune.data.convert SPELLING FILE --media FOLDER --out FOLDER`

Spellings:
- llava: a JSON list, or JSON lines, of records with `conversations` or `messages` and names of media files;
- alpaca: a JSON list of `instruction`, `input`, `output`; no media;
- video_chatgpt: a JSON list of `q`, `a`, `video_id`;
- videochat2: a JSON list of `video` or `image` and `QA`, a list of `i`, `q`, `a`;
- webvid: a CSV of `videoid`, `page_dir`, `name`.

Every record becomes a LLaVA record in a .json member with its media beside it; webvid becomes a caption. Records whose
media are not there are counted and named, never written half.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from mmtune.data._names import SUFFIXES
from mmtune.data.formats.llava import FIELDS
from mmtune.data.index import index_shards
from mmtune.errors import MmtuneError, UsageError

Row = dict[str, Any]
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov")


def llava(row: Row, number: int) -> Row:
    """As it is."""
    return row


def alpaca(row: Row, number: int) -> Row:
    """Instruction and input in one turn of the user; and as they are, for the format `alpaca`."""
    asked = "\n".join(text for text in (row["instruction"], row.get("input", "")) if text)
    kept = {key: row.get(key, "") for key in ("instruction", "input", "output")}
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": row["output"]}], **kept}


def video_chatgpt(row: Row, number: int) -> Row:
    """One question about a video."""
    talk = [{"from": "human", "value": f"<video>\n{row['q']}"}, {"from": "gpt", "value": row["a"]}]
    return {"video": row["video_id"], "conversations": talk}


def videochat2(row: Row, number: int) -> Row:
    """Questions about a video or an image; the instruction `i` stands before the first question."""
    kind = "video" if "video" in row else "image"
    talk = []
    for place, turn in enumerate(row["QA"]):
        asked = "\n".join(text for text in (turn.get("i", "") if not place else "", turn["q"]) if text)
        said = f"<{kind}>\n{asked}" if not place else asked
        talk += [{"from": "human", "value": said}, {"from": "gpt", "value": turn["a"]}]
    return {kind: row[kind], "conversations": talk}


def webvid(row: Row, number: int) -> Row:
    """A caption of a video that lies at PAGE_DIR/VIDEOID.mp4."""
    return {"video": f"{row['page_dir']}/{row['videoid']}.mp4", "caption": row["name"]}


SPELLINGS: dict[str, Callable[[Row, int], Row]] = {
    "llava": llava, "alpaca": alpaca, "video_chatgpt": video_chatgpt, "videochat2": videochat2, "webvid": webvid,
}


def rows(path: Path) -> Iterator[Row]:
    """Records of a JSON list, of JSON lines, or of a CSV with a head line. Raises UsageError."""
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            listed = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(listed, list):
                raise UsageError(seen=f"{path} holds a {type(listed).__name__}", expected="a JSON list of records")
            yield from listed
    except (OSError, ValueError, csv.Error) as error:
        known = "a JSON list, JSON lines (.jsonl) or a CSV (.csv)"
        raise UsageError(seen=f"{path}: {error}", expected=known) from error


def find(root: Path, name: str, video: bool) -> Path | None:
    """A media file under `root`; a video without a suffix may have any. None when it is not there.

    Raises UsageError for a name that leads out of the folder.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UsageError(seen=f"the media file {name!r}", expected=f"a name below {root}")
    tries = [name] if not video else [name, *(f"{name}.{suffix}" for suffix in VIDEOS)]
    return next((root / one for one in tries if (root / one).is_file()), None)


def members(row: Row, key: str, root: Path | None) -> Row:
    """A record as members of a shard, media renamed to their place in it. Raises FileNotFoundError."""
    item: Row = {"__key__": key}
    facts = dict(row)
    for field, kind in FIELDS.items():
        if facts.get(field) is None:
            continue
        if root is None:
            raise UsageError(seen=f"a record with {field}", expected="--media FOLDER")
        value, names = facts[field], []
        for place, name in enumerate(value if isinstance(value, list) else [value]):
            path = find(root, name, kind == "video")
            suffix = path.suffix[1:].lower() if path else ""
            if path is None or suffix not in SUFFIXES:
                raise FileNotFoundError(name)
            end = f"{place}.{suffix}" if isinstance(value, list) else suffix
            item[end] = path.read_bytes()
            names.append(f"{key}.{end}")
        facts[field] = names if isinstance(value, list) else names[0]
    item["json"] = json.dumps(facts, ensure_ascii=False).encode()
    return item


def convert(
    found: Iterable[Row],
    spelling: str,
    out: Path,
    media: Path | None = None,
    per_shard: int = 1000,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write shards `out/00000.tar`, ... and index them; returns their paths. Raises UsageError."""
    from webdataset import TarWriter

    out.mkdir(parents=True, exist_ok=True)
    lost: list[str] = []

    def whole() -> Iterator[Row]:
        for number, row in enumerate(found):
            try:
                yield members(SPELLINGS[spelling](row, number), f"{number:09d}", media)
            except FileNotFoundError as error:
                lost.append(str(error))
            except (KeyError, TypeError, AttributeError) as error:
                seen = f"record {number} is no {spelling} record: {type(error).__name__}: {error}"
                raise UsageError(seen=seen, expected=f"one of {', '.join(SPELLINGS)}") from error

    items, paths = whole(), []
    while part := next(items, None):
        path = out / f"{len(paths):05d}.tar"
        draft = path.with_suffix(".tar.part")
        with draft.open("wb") as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            tar.write(part)
            for item in islice(items, per_shard - 1):
                tar.write(item)
        draft.replace(path)
        paths.append(path)
        say(f"{path}")
    if lost:
        say(f"{len(lost)} records left out, their media are not there, as {', '.join(lost[:3])}")
    if not paths:
        raise UsageError(seen="no record could be written", expected="records with their media", hint="see --media")
    for line in index_shards(paths)[-1:]:
        say(line)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mmtune.data.convert", description="Annotation files to shards.")
    parser.add_argument("spelling", choices=list(SPELLINGS))
    parser.add_argument("file", type=Path, help="JSON, JSON lines or CSV")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--media", type=Path, help="folder that the names of media are relative to")
    parser.add_argument("--per-shard", type=int, default=1000, help="records in a shard")
    parser.add_argument("--limit", type=int, help="only so many records")
    options = parser.parse_args(arguments)
    try:
        found = islice(rows(options.file), options.limit)
        convert(found, options.spelling, options.out, options.media, max(1, options.per_shard))
    except MmtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
