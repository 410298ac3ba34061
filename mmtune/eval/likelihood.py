"""The likelihood of given answers under a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmtune.collate import collate
from mmtune.errors import DataError
from mmtune.types import IGNORE, Example, Sample, Turn

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor


def answered(processor: Processor, sample: Sample, answer: str) -> Example | None:
    """A conversation with its answer, of which the answer alone is labelled; None if that is too long."""
    before = tuple(replace(turn, weight=0.0) for turn in sample.turns)
    try:
        return processor.example(replace(sample, turns=(*before, Turn("assistant", (answer,))), alternatives=()))
    except DataError:
        return None


def answer_nats(model: MultimodalModel, examples: Sequence[Example | None], rows: int = 16) -> list[tuple[float, int]]:
    """Cross entropy over the labelled tokens of each example, summed, and their number; (0, 0) for None.

    Args:
        rows: examples at once.
    """
    found = [(0.0, 0)] * len(examples)
    there = [index for index, example in enumerate(examples) if example is not None]
    there.sort(key=lambda index: len(examples[index]))  # type: ignore[arg-type]
    for start in range(0, len(there), rows):
        indexes = there[start : start + rows]
        texts = [[examples[index]] for index in indexes]
        batch = collate(texts, model.llm.tokenizer.pad, multiple=1).to(model.device)  # type: ignore[arg-type]
        hidden, wanted = model(batch), batch.labels != IGNORE
        nats = -model.token_log_probs(hidden[wanted], batch.labels[wanted])
        counts = wanted.sum(1).tolist()
        for index, part, count in zip(indexes, nats.double().cpu().split(counts), counts, strict=True):
            found[index] = (float(part.sum()), count)
    return found
