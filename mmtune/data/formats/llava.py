"""Conversations with media, in the spellings that are about: LLaVA's, ShareGPT's, and chat messages.

Turns: `conversations` with `from` (human, user, gpt, assistant, system) and `value`, or `messages` with `role` and
`content`, where the content is text or a list of parts (`{"type": "text", "text": ...}`, `{"type": "image"}`,
`{"type": "image_url", "image_url": {"url": NAME}}` and the same for video and audio). A turn may say `"loss": false`.

Media: `image`, `video`, `audio`, `points` or their plurals, a name or a list of names, looked for among the members of
the record; where a record names none, its members of the kinds that the text has places for. `<image>`, `<video>`,
`<audio>`, `<points>` in the turns before an answer are their places:

- as many places as media of a kind: each takes the next one;
- media and no place: they come first in the first turn of the user;
- any other count, or a place in a user's turn and no media: the record is refused as `placeholder_mismatch`;
- such a word in an answer is text like any other.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mmtune.data import _json
from mmtune.data.formats import _read
from mmtune.data.formats.base import Format, FormatConfig, Record
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
_PLACE = re.compile(r"<(image|video|audio|points)>")


class _Place(str):
    """A place for media; its text is the kind."""


class Config(FormatConfig):
    name: str = "llava"
    kinds: tuple[Kind, ...] = KINDS
    """Kinds of media that a record may hold; one with another kind is skipped as wrong_media_type."""
    max_chars: int = 200_000
    """Longest turn, characters; a longer one is skipped as bad_text."""


class Llava(Format):
    """One conversation a record."""

    Config = Config
    config: Config

    def sample(self, record: Record) -> Sample:
        """Raises DataError: missing_key, bad_json, bad_text, empty_target, placeholder_mismatch, wrong_media_type."""
        if "json" not in record.files:
            raise _read.missing(record, ".json")
        facts = _json.tree(record.files["json"], f"{record.id}.json")
        status = facts.get("status")
        if isinstance(status, str) and status != "success":
            raise DataError(Reason.download_failed, f"{record.id}: status {status!r}", "status success")
        names: dict[Kind, list[str]] = {}
        turns = self._turns(record, facts, names)
        places = Counter(part for _, parts, _ in turns for part in parts if isinstance(part, _Place))
        media = self._media(record, facts, names, places)
        return Sample(record.id, _fill(record, turns, media, places))

    def _turns(
        self, record: Record, facts: dict[str, Any], names: dict[Kind, list[str]]
    ) -> list[tuple[Role, list[str], bool]]:
        """Turns as role, texts and places, and whether they are learned; names of content parts go to `names`."""
        key = next((key for key in ("conversations", "messages", "conversation") if key in facts), None)
        listed = facts.get(key) if key else None
        if not isinstance(listed, list) or not listed or not all(isinstance(turn, dict) for turn in listed):
            raise DataError(Reason.bad_json, f"{record.id}: no turns", "conversations or messages: a list of turns")
        turns = []
        system = facts.get("system")
        if isinstance(system, str) and system.strip():
            turns.append(("system", [_read.check(system, f"{record.id}: system", self.config.max_chars)], True))
        for number, turn in enumerate(listed):
            where = f"{record.id}: turn {number}"
            said = turn.get("from", turn.get("role"))
            role = ROLES.get(said) if isinstance(said, str) else None
            if role is None:
                raise DataError(Reason.bad_json, f"{where} is from {said!r}", f"one of {', '.join(ROLES)}")
            content = turn.get("value", turn.get("content"))
            parts = self._parts(where, content, role, names)
            if role == "assistant" and not "".join(parts).strip():
                raise DataError(Reason.empty_target, f"{where}: a blank answer", "text")
            turns.append((role, parts, turn.get("loss", turn.get("learn", True)) not in (False, 0)))
        if not any(role == "assistant" for role, _, _ in turns):
            raise DataError(Reason.empty_target, f"{record.id}: nobody answers", "a turn of the assistant")
        return turns

    def _parts(self, where: str, content: Any, role: Role, names: dict[Kind, list[str]]) -> list[str]:
        """Texts and places of one turn."""
        parts: list[str] = []
        for item in content if isinstance(content, list) else [content]:
            if isinstance(item, dict):
                kind = str(item.get("type", "")).removesuffix("_url").removeprefix("input_")
                if kind == "text":
                    item = item.get("text")
                elif kind in FIELDS and role != "assistant":
                    name = item.get(str(item["type"]), item.get(kind, item.get("url", item.get("path"))))
                    name = name.get("url") if isinstance(name, dict) else name
                    if isinstance(name, str):
                        names.setdefault(FIELDS[kind], []).append(name)
                    parts.append(_Place(FIELDS[kind]))
                    continue
            if not isinstance(item, str):
                seen = f"{where} holds {str(item)[:80]!r}"
                raise DataError(Reason.bad_json, seen, "text, or parts of text and media")
            said = _read.check(item, where, self.config.max_chars)
            parts += _split(said) if role != "assistant" else [said]
        return parts

    def _media(
        self, record: Record, facts: dict[str, Any], names: dict[Kind, list[str]], places: Counter[str]
    ) -> dict[Kind, list[MediaRef]]:
        """Media of the record by kind."""
        for field, kind in FIELDS.items():
            value = facts.get(field)
            if _json.absent(value) or kind in names:
                continue
            listed = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) for name in listed):
                seen = f"{record.id}: {field} is {str(value)[:80]!r}"
                raise DataError(Reason.bad_json, seen, "a name or a list of names")
            if listed:
                names[kind] = listed
        found = {kind: _read.named(record, kind, listed) for kind, listed in names.items()}
        if not names:
            wanted: list[Kind] = [kind for kind in KINDS if kind in places] or list(KINDS)
            found = {kind: [_read.ref(record, s, kind) for s in _read.members(record, kind)] for kind in wanted}
        found = {kind: refs for kind, refs in found.items() if refs}
        if strange := sorted(set(found) - set(self.config.kinds)):
            raise DataError(
                Reason.wrong_media_type, f"{record.id} has {', '.join(strange)}", f"only {', '.join(self.config.kinds)}"
            )
        for kind in sorted({*found, *places}):
            count, media = places[kind], len(found.get(kind, ()))
            if count != media and (count or not media):
                raise DataError(
                    Reason.placeholder_mismatch, f"{record.id}: {count} times <{kind}> and {media} media of that kind",
                    "as many places as media",
                )
        return found


def _split(said: str) -> list[str]:
    """Text cut at its places; odd pieces are kinds."""
    pieces = _PLACE.split(said)
    return [_Place(piece) if number % 2 else piece for number, piece in enumerate(pieces) if piece]


def _fill(
    record: Record, turns: list[tuple[Role, list[str], bool]], media: dict[Kind, list[MediaRef]], places: Counter[str]
) -> tuple[Turn, ...]:
    """Turns with media in their places; media without any place come first in the first turn of the user."""
    left = {kind: iter(refs) for kind, refs in media.items()}
    first: list[Part] = [ref for kind, refs in media.items() if not places[kind] for ref in refs]
    filled = []
    for role, parts, learn in turns:
        done: list[Part] = [next(left[str(p)]) if isinstance(p, _Place) else p for p in parts]  # type: ignore[index]
        if role == "user" and first:
            done, first = [*first, *done], []
        filled.append(Turn(role, tuple(done), learn))
    if first:
        raise DataError(Reason.placeholder_mismatch, f"{record.id}: media, and no turn of a user", "a user's turn")
    return tuple(filled)
