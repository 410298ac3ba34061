"""A language model alone: pickled weights, or Meta's layout, to a folder of transformers with safetensors.

Many repositories that recipes name (Vicuna, the first LLaMA) hold pickled weights only, which mmtune does not open when
it trains. The folder written here is what `llm: {name: hf, folder: ...}` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mmtune.checkpoint.foreign import _llm
from mmtune.checkpoint.foreign.base import Foreign, Imported, Role, Source
from mmtune.errors import CheckpointError


class Llm(Foreign):
    """Import only: the folder that it writes is the layout of transformers already."""

    about: ClassVar[str] = "a language model alone, pickled or in Meta's layout, to safetensors in transformers' layout"
    imports = "llm"
    roles: ClassVar[tuple[Role, ...]] = (Role("folder", "folder with weights, config and tokenizer"),)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        section, parts, pieces = _llm.locate(sources["folder"])
        if not parts:
            raise CheckpointError(
                f"{sources['folder']} has safetensors in transformers' layout already",
                "pickled weights or Meta's layout",
                f"use it as it is: llm: {{name: hf, folder: {section['folder']}}}",
            )
        return Imported({"llm": section}, pieces, parts)
