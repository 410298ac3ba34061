"""Stanford Alpaca's records: `instruction`, `input` (which may be empty) and `output`, in the .json of a record.

The prompt that they were made for has two forms. Without input it is the template `alpaca`; with input another opening
sentence and a section for it, which `style: alpaca` writes for that template. Other templates want `style: plain`.

Read are also `system` (instead of the opening sentence), `history` (pairs of question and answer before this one) and
the weights of `_fields`. Media are refused: write these records as conversations, for the format `llava`.
"""

from __future__ import annotations

from typing import Literal

from mmtune.data import _json
from mmtune.data.formats import _fields, _read
from mmtune.data.formats._fields import FieldsConfig
from mmtune.data.formats.base import Format, Record
from mmtune.errors import DataError, Reason
from mmtune.types import KINDS, Sample, Turn

PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
SECTION = "\n\n### Input:\n"


class Config(FieldsConfig):
    name: str = "alpaca"
    style: Literal["alpaca", "plain"] = "alpaca"
    """alpaca: an input gets a section and its own opening sentence, for the template `alpaca`. plain: it stands on the
    line below the instruction."""
    as_released: bool = False
    """As the released code of LLaMA-Adapter V2 writes these records, by two slips: an instruction with brackets, quotes
    and a comma around it, and the section of the input also where it is empty. Its 7B weights were tuned on that."""
    max_chars: int = 200_000
    """Longest text, characters; a longer one is skipped as bad_text."""


class Alpaca(Format):
    """One instruction and its answer."""

    Config = Config
    config: Config

    def sample(self, record: Record) -> Sample:
        """Raises DataError: missing_key, bad_json, bad_text, empty_target, bad_weight, unused_field,
        wrong_media_type."""
        if "json" not in record.files:
            raise _read.missing(record, ".json")
        config = self.config
        facts = config.without(_json.tree(record.files["json"], f"{record.id}.json"))
        _fields.refuse(facts, _fields.RECORD | _fields.MEDIA, record.id)
        if media := [kind for kind in KINDS if _read.members(record, kind)]:
            seen = f"{record.id} has {' and '.join(media)}, and this format is text alone"
            raise DataError(Reason.wrong_media_type, seen, "no media", "write conversations, and format: llava")
        texts = (self._text(record, facts, key) for key in ("instruction", "input", "output", "system"))
        instruction, given, output, system = texts
        if not output.strip():
            raise DataError(Reason.empty_target, f"{record.id}: a blank output", "text")
        weight = _fields.weight(facts, record.id)
        if config.as_released:
            instruction = str((instruction,))
        asked = instruction
        if config.style == "plain":
            asked = "\n".join(filter(None, (instruction, given)))
        elif given or config.as_released:
            asked, system = instruction + SECTION + given, system or PAIRED
        opening = [Turn("system", (system,))] if system else []
        before = self._history(record, facts.get("history"), weight)
        return Sample(record.id, (*opening, *before, Turn("user", (asked,)), Turn("assistant", (output,), weight)))

    def _history(self, record: Record, history: object, weight: float) -> list[Turn]:
        """The turns before the question."""
        turns = []
        for pair in [] if _json.absent(history) else history if isinstance(history, list) else [history]:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                seen = f"{record.id}: history has {str(pair)[:80]!r}"
                raise DataError(Reason.bad_json, seen, "pairs of question and answer")
            asked, said = (_read.check(text, f"{record.id}: history", self.config.max_chars) for text in pair)
            turns += [Turn("user", (asked,)), Turn("assistant", (said,), weight)]
        return turns

    def _text(self, record: Record, facts: dict[str, object], key: str) -> str:
        value = facts.get(key)
        if key in ("input", "system") and _json.absent(value):
            return ""
        if not isinstance(value, str):
            raise DataError(Reason.bad_json, f"{record.id}: {key} is {str(value)[:80]!r}", "text")
        return _read.check(value, f"{record.id}: {key}", self.config.max_chars)
