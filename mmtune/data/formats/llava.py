"""Conversations with media, in the spellings that are about: LLaVA's, ShareGPT's, and chat messages.

Turns: `conversations` with `from` (human, user, gpt, assistant, system) and `value`, or `messages` with `role` and
`content`, where the content is text or a list of parts (`{"type": "text", "text": ...}`, `{"type": "image"}`,
`{"type": "image_url", "image_url": {"url": NAME}}` and the same for video and audio). Weights of turns and records, and
fields that can't be honoured, are as in `_fields`; clip ranges of videos and sounds as in `_clips`.

Media: `image`, `video`, `audio`, `points` or their plurals, a name or a list of names (a name may be an object with
`path`, `url` or the kind, and a clip range), looked for among the members of the record; where a record names none, its
members of the kinds that the text has places for. `<image>`, `<video>`, `<audio>`, `<points>` in the turns before an
answer are their places:

- as many placeholders as media of a kind: each takes the next one;
- `<image>` where there is no picture is the place of a video, as LLaVA-NeXT and LLaVA-Video write it;
- media and no place: they come first in the first turn of the user;
- such a word inside a sentence, where there are no media of that kind, is text (`the <video> tag`), and so it is in an
  answer; alone at an end of a turn it stands for media, and a record without them is refused;
- the words of other tools stand for places as `_places` says;
- any other count: the record is refused as `placeholder_mismatch`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmtune.data import _json
from mmtune.data.formats import _clips, _fields, _placeholders, _read
from mmtune.data.formats._fields import FieldsConfig
from mmtune.data.formats._placeholders import Placeholder
from mmtune.data.formats.base import Format, Record
from mmtune.errors import DataError, Reason
from mmtune.types import KINDS, Kind, MediaRef, Part, Role, Sample, Turn

ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}
FIELDS: dict[str, Kind] = {
    "image": "image", "images": "image", "video": "video", "videos": "video",
    "audio": "audio", "audios": "audio", "points": "points", "point": "points", "point_cloud": "points",
}
NAMES = ("path", "url", "file", "name")
"""Keys under which an object has the name of a file, beside its kind."""


class Config(FieldsConfig):
    name: str = "llava"
    kinds: tuple[Kind, ...] = KINDS
    """Kinds of media that a record may hold; one with another kind is skipped as wrong_media_type."""
    max_chars: int = 200_000
    """Longest turn, characters; a longer one is skipped as bad_text."""


@dataclass
class Named:
    """A medium that a record names, and the seconds of it that are meant."""

    name: str
    range: _clips.Range = (None, None)


Said = tuple[Role, list[str], float]
"""A turn: role, texts and places, weight."""


class Llava(Format):
    """One conversation a record."""

    Config = Config
    config: Config
    refused: ClassVar[Mapping[str, str]] = _fields.RECORD
    """Fields of a record that cannot be honoured, and what they would mean."""

    def sample(self, record: Record) -> Sample:
        """Raises DataError: missing_key, bad_json, bad_text, empty_target, placeholder_mismatch, wrong_media_type,
        bad_weight, bad_range, unused_field, download_failed."""
        if "json" not in record.files:
            raise _read.missing(record, ".json")
        facts = self.config.without(_json.tree(record.files["json"], f"{record.id}.json"))
        status = facts.get("status")
        if isinstance(status, str) and status != "success":
            raise DataError(Reason.download_failed, f"{record.id}: status {status!r}", "status success")
        _fields.refuse(facts, self.refused, record.id)
        return self.conversation(record, facts)

    def conversation(self, record: Record, facts: dict[str, Any]) -> Sample:
        """The conversation of facts that are read already."""
        names: dict[Kind, list[Named]] = {}
        turns = self._turns(record, facts, names)
        media = self._media(record, facts, names, _placeholders.count(turns))
        turns = _placeholders.settle(turns, {kind: len(refs) for kind, refs in media.items()}, record.id)
        return Sample(record.id, _fill(record, turns, media))

    def _turns(self, record: Record, facts: dict[str, Any], names: dict[Kind, list[Named]]) -> list[Said]:
        """The turns; names of content parts go to `names`."""
        key = next((key for key in ("conversations", "messages", "conversation") if key in facts), None)
        listed = facts.get(key) if key else None
        if not isinstance(listed, list) or not listed or not all(isinstance(turn, dict) for turn in listed):
            raise DataError(Reason.bad_json, f"{record.id}: no turns", "conversations or messages: a list of turns")
        whole = _fields.weight(facts, record.id)
        turns: list[Said] = []
        system = None if _json.absent(facts.get("system")) else facts["system"]
        if system is not None and not isinstance(system, str):
            raise DataError(Reason.bad_json, f"{record.id}: system is {str(system)[:80]!r}", "text")
        if system and system.strip():
            turns.append(("system", [_read.check(system, f"{record.id}: system", self.config.max_chars)], 1.0))
        for number, turn in enumerate(listed):
            turns.append(self._turn(self.config.without(turn), f"{record.id}: turn {number}", whole, names))
        if not any(role == "assistant" for role, _, _ in turns):
            raise DataError(Reason.empty_target, f"{record.id}: no answer", "a turn of the assistant")
        return turns

    def _turn(self, turn: dict[str, Any], where: str, whole: float, names: dict[Kind, list[Named]]) -> Said:
        """One turn; `whole` is the weight of its record."""
        said = turn.get("from", turn.get("role"))
        role = ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise DataError(Reason.bad_json, f"{where} is from {str(said)[:80]!r}", f"one of {', '.join(ROLES)}")
        _fields.refuse(turn, _fields.TURN, where)
        weight = _fields.weight(turn, where, role, whole)
        parts = self._parts(where, turn.get("value", turn.get("content")), role, names)
        _clips.of_turn(turn, [part for part in parts if isinstance(part, Placeholder)], where)
        if role == "assistant" and not "".join(parts).strip():
            raise DataError(Reason.empty_target, f"{where}: a blank answer", "text")
        return role, parts, weight

    def _parts(self, where: str, content: Any, role: Role, names: dict[Kind, list[Named]]) -> list[str]:
        """Texts and places of one turn."""
        parts: list[str] = []
        for item in content if isinstance(content, list) else [content]:
            if isinstance(item, dict):
                item = self.config.without(item)
                _fields.refuse(item, _fields.PART, where)
                kind = part_word(item)
                if kind == "text":
                    item = item.get("text")
                elif kind in FIELDS and role != "assistant":
                    placeholder = Placeholder(FIELDS[kind])
                    if (named := self._named(item, kind, where)) is not None:
                        names.setdefault(FIELDS[kind], []).append(named)
                    else:
                        placeholder.index = item.get("index")
                    parts.append(placeholder)
                    continue
            if not isinstance(item, str):
                seen = f"{where} holds {str(item)[:80]!r}"
                raise DataError(Reason.bad_json, seen, "text, or parts of text and media")
            said = _read.check(item, where, self.config.max_chars)
            parts += _placeholders.split(said) if role != "assistant" else [said]
        return parts

    def _named(self, item: dict[str, Any], kind: str, where: str) -> Named | None:
        """What an object says of a medium: its name under one of several keys, and a range of time."""
        for key in (str(item.get("type", kind)), f"{kind}_url", kind, FIELDS[kind], *NAMES):
            name = item.get(key)
            if isinstance(name, dict):
                inside = self.config.without(name)
                _fields.refuse(inside, _fields.PART, where)
                item, name = {**inside, **item}, name.get("url", name.get("path"))
            if isinstance(name, str):
                return Named(name, _clips.of_part(item, where))
        range_ = _clips.of_part(item, where)
        if range_ != (None, None):
            raise DataError(Reason.bad_range, f"{where}: a range of time of {kind} without a name", "a name")
        return None

    def _media(
        self, record: Record, facts: dict[str, Any], names: dict[Kind, list[Named]], placeholders: Counter[str]
    ) -> dict[Kind, list[MediaRef]]:
        """Media of the record by kind."""
        inside = set(names)
        for field, kind in FIELDS.items():
            value = facts.get(field)
            if _json.absent(value) or kind in inside:
                continue
            listed = [self._entry(one, field, record.id) for one in (value if isinstance(value, list) else [value])]
            if listed and names.get(kind, listed) != listed:
                seen = f"{record.id}: {field} and another field name different media"
                raise DataError(Reason.placeholder_mismatch, seen, "one field for each kind of media")
            if listed:
                names[kind] = listed
        found: dict[Kind, list[MediaRef]] = {}
        for kind, several in names.items():
            refs = _read.named(record, kind, [one.name for one in several])
            for one, ref in zip(several, refs, strict=True):
                found.setdefault(ref.kind, []).append(_clips.with_range(ref, one.range, f"{record.id}: {one.name}"))
        if not names:
            there: dict[Kind, list[str]] = {kind: s for kind in KINDS if (s := _read.members(record, kind))}
            wanted = {"video" if kind == "image" and kind not in there else kind for kind in placeholders}
            chosen = {kind: s for kind, s in there.items() if kind in wanted} or there
            found = {kind: [_read.ref(record, one, kind) for one in s] for kind, s in chosen.items()}
        if strange := sorted(set(found) - set(self.config.kinds)):
            raise DataError(
                Reason.wrong_media_type, f"{record.id} has {', '.join(strange)}", f"only {', '.join(self.config.kinds)}"
            )
        return _clips.of_record(facts, found, record.id)

    def _entry(self, value: Any, field: str, where: str) -> Named:
        """One entry of a field of media: a name, or an object with a name and a range of time."""
        if isinstance(value, str):
            return Named(value)
        if isinstance(value, dict):
            value = self.config.without(value)
            _fields.refuse(value, _fields.PART, f"{where}: {field}")
            if (named := self._named(value, field, f"{where}: {field}")) is not None:
                return named
        seen = f"{where}: {field} is {str(value)[:80]!r}"
        raise DataError(Reason.bad_json, seen, "a name or a list of names")


def part_word(part: dict[str, Any]) -> str:
    """What a part of a turn is: `text`, or one of FIELDS; by its `type`, or without one by what it has."""
    word = part["type"] if "type" in part else next((key for key in ("text", *FIELDS) if key in part), "")
    return str(word).removesuffix("_url").removeprefix("input_").removeprefix("output_")


def _fill(record: Record, turns: list[Said], media: dict[Kind, list[MediaRef]]) -> tuple[Turn, ...]:
    """Turns with media in their places; media without any place come first in the first turn of the user."""
    placeholders = _placeholders.count(turns)
    left = {kind: iter(refs) for kind, refs in media.items()}
    first: list[Part] = [ref for kind, refs in media.items() if not placeholders[kind] for ref in refs]
    filled = []
    for role, parts, weight in turns:
        done: list[Part] = [next(left[str(p)]) if isinstance(p, Placeholder) else p for p in parts]  # type: ignore[index]
        if role == "user" and first:
            done, first = [*first, *done], []
        filled.append(Turn(role, tuple(done), weight))
    if first:
        raise DataError(Reason.placeholder_mismatch, f"{record.id}: media, and no turn of a user", "a user's turn")
    return tuple(filled)
