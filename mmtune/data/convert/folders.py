"""Folders: which of their files hold the records, and media with a text of the same name beside them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmtune.data._names import SUFFIXES
from mmtune.data.convert import locations, strict
from mmtune.data.convert.base import Raw, Row, bad_text
from mmtune.data.convert.locations import Location
from mmtune.errors import DataError, Reason, UsageError

TEXTS = (".json", ".txt", ".caption")
"""Ends of the names of texts beside media, the one that says most first."""
MAX_TEXT = 16 << 20
"""Most bytes of a text beside a medium."""
_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "manifest.json"}
_METADATA = re.compile(r"(?:(.*)/)?metadata\.(?:jsonl|csv|parquet)")
_MEDIA = {f".{suffix}" for suffix, kind in SUFFIXES.items() if kind} | {".jfif", ".jpe", ".mpg", ".mpeg", ".aac", ""}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
           "valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}  # fmt: skip
_WORDS = re.compile(r"[-_./ ]")


@dataclass(frozen=True)
class Found:
    """Names of the files of a folder that matter."""

    names: tuple[str, ...]
    media: bool = False
    """Whether these are media, each with its text beside it, and texts without one; else they are files of records."""


def find(location: Location, split: str | None) -> Found:
    """What a folder is. Raises UsageError: no records, or several sets of them and none chosen."""
    names = [name for name in locations.listing(location) if not _hidden(name)]
    shown = locations.shown(location)
    sets = _saved(location, names) or _described(names) or _parquet(names)
    if sets:
        return Found(_chosen(shown, sets, split))
    if split:
        raise UsageError(f"--split {split}, and {shown} has no splits", "a data set with splits, or no --split")
    media = tuple(name for name in names if PurePosixPath(name).suffix.lower() in _MEDIA)
    stems = {_stem(name) for name in media}
    texts = {_stem(name): name for name in names if name.lower().endswith(TEXTS) and name not in _ABOUT}
    if texts.keys() & stems:
        lone = (name for stem, name in texts.items() if stem not in stems)
        return Found(tuple(sorted([*media, *lone])), media=True)
    lists = [name for name in names if name.lower().endswith(_TABLES) and "/" not in name and name not in _ABOUT]
    if len(lists) == 1:
        return Found(tuple(lists))
    if len(lists) > 1:
        seen = f"{shown} holds several files of records: {', '.join(lists[:6])}"
        raise UsageError(seen, "one of them", f"mmtune data convert {shlex.quote(f'{shown}/{lists[0]}')} --out FOLDER")
    if any(name.endswith(".tar") for name in names):
        raise UsageError(f"{shown} holds tar files, which are shards already", "records", f"mmtune data index {shown}")
    raise UsageError(
        f"{shown} holds {len(names)} files, and nothing that says what is in them",
        "a .txt or .json beside each medium, a metadata.jsonl or .csv, or a file of records",
        "write a table.csv into it: a line video,caption and then a line for each, or image,caption" if media else "",
    )


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _saved(location: Location, names: list[str]) -> dict[str, list[str]]:
    """Files of `datasets.save_to_disk` by split; what its caches left there is not of the set."""
    sets: dict[str, list[str]] = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        if base == "state.json" and isinstance(location, Path):
            try:
                state = json.loads((location / name).read_bytes()[:MAX_TEXT])
                files = [str(one["filename"]) for one in state["_data_files"]]
                selected = bool(state.get("_indices_data_files"))
            except (ValueError, KeyError, TypeError, OSError, RecursionError):
                continue
            inside = [f"{folder}/{file}" if folder else file for file in files]
            if selected:
                seen = f"{location / folder} is a selection of rows of its files, kept beside them"
                raise UsageError(seen, "a data set with its rows alone", "data.flatten_indices().save_to_disk(FOLDER)")
            if inside and all(file in names for file in inside):
                sets[folder] = inside
    return sets


def _described(names: list[str]) -> dict[str, list[str]]:
    """Tables called metadata, beside the media that they are about, by their folder."""
    found = [(match, name) for name in names if (match := _METADATA.fullmatch(name))]
    return {match[1] or "": [name] for match, name in found}


def _parquet(names: list[str]) -> dict[str, list[str]]:
    """Parquet files by set and split, as their names tell."""
    sets: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith((".parquet", ".arrow")):
            folder, _, base = name.rpartition("/")
            words = [word for word in _WORDS.split(base.lower()) if word][:1]
            inside = folder.split("/") if folder else []
            split = next((_SPLITS[word] for word in [*words, *inside[-1:]] if word in _SPLITS), "")
            outer = "/".join(part for part in inside if part.lower() not in _SPLITS and part != "data")
            sets.setdefault("/".join(filter(None, (outer, split))), []).append(name)
    return sets


def _chosen(shown: str, sets: dict[str, list[str]], split: str | None) -> tuple[str, ...]:
    if split is None and len(sets) == 1:
        return tuple(next(iter(sets.values())))
    split = split if split is None or split in sets else _SPLITS.get(split.lower(), split)
    if split in sets:
        return tuple(sets[split])
    known = ", ".join(sorted(name or "(no name)" for name in sets))
    seen = f"{shown} has no split {split}" if split else f"{shown} holds several data sets: {known}"
    best = "train" if "train" in sets else sorted(sets)[-1]
    raise UsageError(seen, f"--split with one of {known}", f"--split {best}")


# ---------------------------------------------------------------------------------------------------------- the records


def read(location: Location, names: tuple[str, ...], first: int) -> Iterator[Raw]:
    """One record for each medium, with what stands in the text of its name; and a fault for each text without one."""
    for number, name in enumerate(names, first):
        row, fault = None, None
        try:
            row = _row(location, name)
        except DataError as error:
            fault = error
        yield Raw(number, row=row, fault=fault, file=name)


def _row(location: Location, name: str) -> Row:
    base = _stem(name)
    if name.lower().endswith(TEXTS):
        seen = f"{name} has no medium of its name beside it, or none of a known format"
        raise DataError(Reason.missing_key, seen, f"{base}.jpg, {base}.mp4 or the like")
    spelled = ((end, end_) for end in TEXTS for end_ in (end.upper(), end))
    found = {end: raw for end, end_ in spelled if (raw := _text(location, base + end_)) is not None}
    if not found:
        seen = f"{name} has no text of its name beside it"
        raise DataError(Reason.missing_key, seen, f"{base}.txt or {base}.json")
    row = strict.loads(found[".json"]) if ".json" in found else {}
    for end in (".txt", ".caption"):
        if end in found:
            row.setdefault("caption", strict.decode(found[end]).strip())
    return {**row, "file": name}


def _text(location: Location, name: str) -> bytes | None:
    """A text beside a medium, or None. Links are not followed. Raises DataError."""
    where = locations.below(location, name)
    try:
        if isinstance(where, Path):
            file = os.fdopen(locations.open_regular(where, os.O_RDONLY | os.O_NOFOLLOW), "rb")
        else:
            file = locations.open_binary(where)  # type: ignore[assignment]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise bad_text(f"{name}: {error.strerror or error}", "a text that is no link and can be read") from error
    with file:
        raw = file.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise bad_text(f"{name}: more than {MAX_TEXT} bytes of text", "a caption or a conversation")
    return raw
