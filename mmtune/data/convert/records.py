"""One record to the members of a shard, or the reason why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mmtune import registry
from mmtune.data.convert import schemas, strict
from mmtune.data.convert.base import Options, Row
from mmtune.data.convert.media import BYTES, Item, Roots
from mmtune.data.convert.schemas import Schema
from mmtune.data.formats import _clips, _fields
from mmtune.data.formats.base import Format, Record
from mmtune.data.formats.llava import FIELDS, part_word
from mmtune.errors import DataError, Reason
from mmtune.types import Kind

MAX_FRAMES = 10_000
"""Most pictures of one video."""
_FRAMES = ("frames", "video_frames")
_PART = ("url", "path", "source", "file", "name", *BYTES)
"""Fields of a part of a turn that name its medium, beside those called as its kind."""
_RATES = ("fps", "frame_rate", "video_fps")
_PART_RATES = ("fps", "sample_fps", "raw_fps")


@dataclass
class Builder:
    """Makes members of records. Every record is read as training will read it before it counts as written."""

    schema: Schema
    roots: Roots
    options: Options
    any_field: bool = False
    """Whether fields like `file` and `path` name media in every spelling."""
    passed: dict[str, int] = field(default_factory=dict)
    """Fields with bytes that belong to no medium, which a shard has no place for, and how often they came."""

    def __post_init__(self) -> None:
        entry = registry.find("data/formats", self.schema.format)
        self._reader: Format = entry(entry.Config(name=self.schema.format))

    def members(self, row: Row, key: str) -> dict[str, bytes]:
        """Suffix to content, media first. Raises DataError and MediaError: the record cannot be used."""
        if self.options.ignore:
            row = without(row, self.options.ignore)
        if self.options.rename:
            row = schemas.renamed(row, self.options.rename)
        if not self.schema.knows(row):
            has = ", ".join(str(key) for key, value in row.items() if value is not None)[:200]
            raise DataError(Reason.missing_key, f"the record has the fields {has or 'none'}", self.schema.about)
        draft = _Draft(
            self.schema.read(row), self.roots, self.options.frame_rate, self.any_field or self.schema.any_field
        )
        items = draft.media()
        names = []
        found: dict[str, bytes] = {}
        for number, item in enumerate(items):
            suffix = item.suffix if len(items) == 1 else f"{number}.{item.suffix}"
            found[suffix] = item.data
            names.append(f"{key}.{suffix}")
        facts = self._plain(draft.named(names))
        found["json"] = _json(facts)
        self._reader.read(Record(key, found, key))  # judges a NaN where it means something
        if b"NaN" in found["json"] or b"Infinity" in found["json"]:
            found["json"] = _json(strict.finite(facts))
        return found

    def _plain(self, facts: Row) -> Row:
        """Facts as JSON has them; counts the fields with bytes, which are left out."""
        plain = {}
        for name, value in facts.items():
            lost: list[int] = []
            plain[str(name)] = strict.jsonable(value, lost)
            if lost:
                self.passed[str(name)] = self.passed.get(str(name), 0) + 1
        return plain


class _Draft:
    """A record whose media are being found. `media` fills it, `named` puts the names of members where they belong."""

    def __init__(self, facts: Row, roots: Roots, rate: float, any_field: bool) -> None:
        self.facts, self.roots, self.any_field = dict(facts), roots, any_field
        self.rate = next((float(facts[key]) for key in _RATES if _positive(facts.get(key))), rate)
        self.items: list[Item] = []
        self._put: list[Callable[[list[str]], None]] = []

    def media(self) -> list[Item]:
        """All media in the order in which they are named: those inside turns, then those of fields."""
        inside = self._parts()
        self.facts = {key: one for key, one in self.facts.items() if key not in FIELDS or schemas.names_any(one)}
        for key, kind in schemas.media_of(self.facts, self.any_field).items():
            value = self.facts.pop(key)
            listed = value if isinstance(value, list) else [value]
            if kind in inside:  # the same media, named in turns, or another field, and in this one
                if inside[kind] != listed:
                    seen = f"{key} names others than the turns or another field"
                    raise DataError(Reason.placeholder_mismatch, seen, "the same media")
                continue
            if kind is not None and key in FIELDS:
                inside[kind] = listed
            self._field(key, kind, value)
        return self.items

    def named(self, names: list[str]) -> Row:
        """The record with names of members for its media."""
        for put in self._put:
            put(names)
        return self.facts

    def _field(self, key: str, kind: Kind | None, value: Any) -> None:
        several = isinstance(value, list) and not self._is_film(key, kind, value)
        listed = value if several else [value]
        at = [self._take(one, kind) for one in listed]
        more = {number: _more(one) for number, one in zip(at, listed, strict=True) if isinstance(one, dict)}
        for found in sorted({self.items[one].kind for one in at}):
            mine = [one for one in at if self.items[one].kind == found]
            name = key if key in FIELDS else found if len(mine) == 1 else f"{found.removesuffix('s')}s"
            if name in self.facts:
                raise DataError(Reason.bad_json, f"{key} and {name} both name media", "one of them", "--rename")
            self.facts[name] = None  # keeps its place among the fields
            self._put.append(
                lambda names, name=name, mine=mine: self._set(
                    name, [{"path": names[one], **more[one]} if more.get(one) else names[one] for one in mine], several
                )
            )

    def _set(self, name: str, values: list[Any], several: bool) -> None:
        self.facts[name] = values if several else values[0]

    def _parts(self) -> dict[Kind, list[Any]]:
        """Takes the media that parts of turns name; returns what they were called, by kind."""
        found: dict[Kind, list[Any]] = {}
        said = self.facts.get("conversations")
        if not isinstance(said, list):
            return found
        self.facts["conversations"] = said = [dict(turn) if isinstance(turn, dict) else turn for turn in said]
        for turn in said:
            content = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
            if not isinstance(content, list) or turn.get("from", turn.get("role")) in ("gpt", "assistant"):
                continue
            parts = [self._part(part, found) for part in content]
            turn["value" if "value" in turn else "content"] = parts
        return found

    def _part(self, part: Any, found: dict[Kind, list[Any]]) -> Any:
        word = part_word(part) if isinstance(part, dict) else ""
        if word not in FIELDS:
            return part
        kind = FIELDS[word]
        names = (part.get("type"), word, f"{word}_url", f"{word}_path", kind, *_PART)
        given = next((name for name in names if part.get(name)), "")
        value = {given: part[given]} if given in BYTES else part.get(given)
        rest = {name: one for name, one in part.items() if name not in ("type", *names)}
        new: Row = {"type": kind, **(_more(value) if isinstance(value, dict) else {}), **rest}
        if value is not None:
            found.setdefault(kind, []).append(value)
            rate = None
            if isinstance(value, list):  # a video in pictures, and how fast they follow each other
                rate = next((float(part[name]) for name in _PART_RATES if _positive(part.get(name))), None)
                for name in _PART_RATES:
                    new.pop(name, None)
            at = self._take(value, kind, rate)
            self._put.append(lambda names: new.__setitem__(kind, names[at]))
        return new

    # ----------------------------------------------------------------------------------------------------- one medium

    def _take(self, value: Any, kind: Kind | None, rate: float | None = None) -> int:
        """The place of a medium among all."""
        if kind == "video" and isinstance(value, str) and (names := self.roots.frames(value)):
            value = names
        item = self._film(value, rate or self.rate) if isinstance(value, list) else self.roots.item(value, kind)
        self.items.append(item)
        return len(self.items) - 1

    def _is_film(self, key: str, kind: Kind | None, value: list[Any]) -> bool:
        """Whether a list is one video, frame after frame, and not several videos."""
        if kind != "video" or not value or isinstance(value[0], list):
            return False
        return key.lower() in _FRAMES or self.roots.is_still(value[0])

    def _film(self, frames: list[Any], rate: float) -> Item:
        from mmtune.media import film

        if not 0 < len(frames) <= MAX_FRAMES:
            raise DataError(Reason.video_limits, f"a video of {len(frames)} pictures", f"1 to {MAX_FRAMES}")
        data = [self.roots.item(frame, "image").data for frame in frames]
        return Item("video", film.join(data, rate, "a video in pictures"), "mkv")


def _more(medium: Row) -> Row:
    """What an object says of a medium beside its name, for the format to read or to refuse."""
    return {word: one for word, one in medium.items() if word in _fields.PART or _clips.is_word(word)}


def _json(facts: Row) -> bytes:
    try:
        return json.dumps(facts, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character in a field; the format judges those that it reads
        return json.dumps(facts).encode()


def without(value: Any, names: tuple[str, ...]) -> Any:
    """A value without some fields, at any depth."""
    if isinstance(value, dict):
        return {key: without(one, names) for key, one in value.items() if key not in names}
    return [without(one, names) for one in value] if isinstance(value, list) else value


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1000
