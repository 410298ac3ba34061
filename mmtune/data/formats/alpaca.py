"""Stanford Alpaca's records: `instruction`, `input` (which may be empty) and `output`, in the .json of a record.

The prompt that they were made for has two forms. Without input it is the template `alpaca`; with input another opening
sentence and a section for it, which `style: alpaca` writes for that template. Other templates want `style: plain`.
"""

from __future__ import annotations

from typing import Literal

from mmtune.data import _json
from mmtune.data.formats import _read
from mmtune.data.formats.base import Format, FormatConfig, Record
from mmtune.errors import DataError, Reason
from mmtune.types import Sample, Turn

PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
SECTION = "\n\n### Input:\n"


class Config(FormatConfig):
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
        """Raises DataError: missing_key, bad_json, bad_text, empty_target."""
        if "json" not in record.files:
            raise _read.missing(record, ".json")
        facts = _json.tree(record.files["json"], f"{record.id}.json")
        instruction, given, output = (self._text(record, facts, key) for key in ("instruction", "input", "output"))
        if not output.strip():
            raise DataError(Reason.empty_target, f"{record.id}: a blank output", "text")
        config = self.config
        if config.as_released:
            instruction = str((instruction,))
        turns = [Turn("assistant", (output,))]
        if config.style == "plain":
            turns.insert(0, Turn("user", ("\n".join(filter(None, (instruction, given))),)))
        elif given or config.as_released:
            turns = [Turn("system", (PAIRED,)), Turn("user", (instruction + SECTION + given,)), *turns]
        else:
            turns.insert(0, Turn("user", (instruction,)))
        return Sample(record.id, tuple(turns))

    def _text(self, record: Record, facts: dict[str, object], key: str) -> str:
        value = facts.get(key, "" if key == "input" else None)
        if not isinstance(value, str):
            raise DataError(Reason.bad_json, f"{record.id}: {key} is {str(value)[:80]!r}", "text")
        return _read.check(value, f"{record.id}: {key}", self.config.max_chars)
