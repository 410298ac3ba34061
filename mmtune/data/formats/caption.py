"""A medium and a text that says what it shows.

Reads shards of img2dataset (`.jpg .txt .json`) and of video2dataset (`.mp4 .txt .json`). The medium is the
user's turn, followed by a prompt if there is one; the caption is the answer. A record whose download failed (`status`
in its JSON is not `success`) is skipped as `download_failed`. Clip ranges of a video or sound are read (see `_clips`);
where clips were cut before, `ignore: [start, end]` leaves them alone.
"""

from __future__ import annotations

from typing import Any, Literal

from mmtune.data import _json
from mmtune.data.formats import _clips, _fields, _read
from mmtune.data.formats._fields import FieldsConfig
from mmtune.data.formats.base import Format, Record
from mmtune.errors import DataError, Reason
from mmtune.types import KINDS, Kind, MediaRef, Sample, Turn


class Config(FieldsConfig):
    name: str = "caption"
    kind: Kind | None = None
    """Which medium of a record is shown: image, video, audio or points. None: the one that a field of that name in the
    .json names, else the only kind that the record has. A video shown as audio gives its sound."""
    text: Literal["auto", "txt", "json"] = "auto"
    """Where the caption is: the .txt member, a field of the .json member, or auto: the field, then the .txt."""
    field: str = "caption"
    """Name of the field; text, or a list of texts that say the same."""
    choice: Literal["first", "seeded"] = "seeded"
    """Which text of a list: the first, or another one each epoch, drawn by seed, epoch and sample."""
    prompts: tuple[str, ...] = ()
    """What the user says after the medium; drawn as above where there are several. None: the medium alone."""
    max_chars: int = 20_000
    """Longest caption, characters; a longer one is skipped as bad_text."""


class Caption(Format):
    """One medium, one caption."""

    Config = Config
    config: Config

    def sample(self, record: Record) -> Sample:
        """Raises DataError: download_failed, missing_key, bad_text, bad_json, empty_target, bad_weight, bad_range,
        unused_field."""
        facts = _json.tree(record.files["json"], f"{record.id}.json") if "json" in record.files else {}
        facts = self.config.without(facts)
        status = facts.get("status")
        if not _json.absent(status) and status != "success":
            detail = str(facts.get("error_message") or "")[:200]
            seen = f"{record.id}: status {status!r} {detail}".strip()
            raise DataError(Reason.download_failed, seen, "status success")
        _fields.refuse(facts, _fields.RECORD, record.id)
        weight = _fields.weight(facts, record.id)
        answer = self._caption(record, facts)
        if not answer.strip():
            raise DataError(Reason.empty_target, f"{record.id}: the caption is blank", "a caption")
        shown = self._medium(record, facts)
        if entry := self._entry(facts, shown.kind):
            _fields.refuse(entry, _fields.PART, f"{record.id}: {shown.kind}")
            shown = _clips.with_range(shown, _clips.of_part(entry, f"{record.id}: {shown.kind}"), record.id)
        parts: list[str | MediaRef] = []
        parts += _clips.of_record(self._of(shown, facts), {shown.kind: [shown]}, record.id)[shown.kind]
        if self.config.prompts:
            parts.append(self.config.prompts[self._draw(record, len(self.config.prompts), 1)])
        return Sample(record.id, (Turn("user", tuple(parts)), Turn("assistant", (answer.strip(),), weight)))

    def _entry(self, facts: dict[str, object], kind: Kind) -> dict[str, Any]:
        """What an object that names the medium says of it; empty where a name alone stands, or none."""
        value = facts.get(kind, facts.get(f"{kind}s"))
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return self.config.without(value) if isinstance(value, dict) else {}

    def _of(self, shown: MediaRef, facts: dict[str, object]) -> dict[str, object]:
        """Facts without the clip ranges of the sound of a video that is shown alone, or the other way round."""
        other = {"video": "audio_", "audio": "video_"}.get(shown.kind, "\0")
        return {key: value for key, value in facts.items() if not key.startswith(other)}

    def _draw(self, record: Record, count: int, salt: int) -> int:
        return (record.draw >> (16 * salt)) % 65536 % count if self.config.choice == "seeded" else 0

    def _caption(self, record: Record, facts: dict[str, object]) -> str:
        config, most = self.config, self.config.max_chars
        value = facts.get(config.field)
        if config.text != "txt" and not _json.absent(value):
            where = f"{config.field} of {record.id}.json"
            texts = value if isinstance(value, list) else [value]
            if not texts or not all(isinstance(one, str) for one in texts):
                raise DataError(Reason.bad_json, f"{where} is {str(value)[:80]!r}", "text, or a list of texts")
            return _read.check(texts[self._draw(record, len(texts), 0)], where, most)
        if config.text != "json":
            for suffix in ("txt", "caption"):
                if suffix in record.files:
                    return _read.text(record.files[suffix], f"{record.id}.{suffix}", most)
        wanted = {"txt": ".txt", "json": f"field {config.field} in a .json", "auto": f".txt or field {config.field}"}
        raise _read.missing(record, wanted[config.text])

    def _medium(self, record: Record, facts: dict[str, object]) -> MediaRef:
        kind = self.config.kind
        if kind is None:
            told = {one: self._entry(facts, one).get("path", facts.get(one)) for one in KINDS}
            named = [(one, name) for one, name in told.items() if isinstance(name, str)]
            if len(named) == 1:
                return _read.named(record, named[0][0], [str(named[0][1])])[0]
            there: list[Kind] = [one for one in KINDS if _read.members(record, one)]
            if len(there) > 1:
                raise DataError(
                    Reason.missing_key,
                    f"{record.id} has {' and '.join(there)}, and the recipe does not say which to show",
                    "one kind of media in a record, or `kind` in the format",
                    f"format: {{name: caption, kind: {there[0]}}}",
                )
            if not there:
                raise _read.missing(record, "image, video, sound or points")
            kind = there[0]
        found = _read.members(record, kind)
        if not found and kind == "audio":
            found = _read.members(record, "video")
        if not found:
            raise _read.missing(record, kind)
        if len(found) > 1:
            seen = f"{record.id} has {len(found)} items of {kind}: {', '.join(f'.{one}' for one in found)}"
            hint = "several pictures with a text are a conversation, for the format llava"
            raise DataError(Reason.missing_key, seen, "one, or one that a field of the .json names", hint)
        return _read.ref(record, found[0], kind)
