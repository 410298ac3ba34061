"""What a model answers: decoded token by token, or the likeliest of the choices of a question."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmtune import generate
from mmtune.errors import DataError
from mmtune.eval import instructions
from mmtune.types import Example, Sample, Turn

if TYPE_CHECKING:
    from mmtune.eval.tasks.base import Question, Task
    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    text: str
    nats: float = 0.0
    """Cross entropy of the first accepted answer, summed over its tokens, where the task asks for it."""
    tokens: int = 0
    """Tokens of that answer, the one that ends it included."""
    choices: tuple[float, ...] = ()
    """Log-likelihood of each choice of the question, nats."""

    def by_choice(self, question: Question) -> dict[str, float]:
        """The log-likelihood of each choice, by its text."""
        return dict(zip(question.choices, self.choices, strict=True))


def ask(
    model: MultimodalModel,
    processor: Processor,
    task: Task,
    questions: Sequence[Question],
    samples: Sequence[Sample],
    max_tokens: int,
) -> list[Answer]:
    """The answers to questions. A question with choices is answered by the likeliest one; of equal ones, the first.

    Args:
        samples: the conversation of each question as the model is shown it.
        max_tokens: longest answer that is decoded.
    """
    pairs = list(zip(questions, samples, strict=True))
    open_ones = [processor.example(sample, answer=True) for question, sample in pairs if not question.choices]
    decoded = iter(generate.answer_batch(model, open_ones, processor.stops, max_tokens)) if open_ones else iter(())
    # the first accepted answer and all choices of each question, none twice
    asked = [dict.fromkeys([*[one.answers[0]] * task.likelihood, *one.choices]) for one in questions]
    texts = [answered(processor, sample, text) for (_, sample), held in zip(pairs, asked, strict=True) for text in held]
    scores = iter(generate.score(model, texts))
    answers = []
    for question, held in zip(questions, asked, strict=True):
        likely = {text: next(scores) for text in held}
        loss, tokens = likely[question.answers[0]] if task.likelihood else (0.0, 0)
        chances = tuple(likely[text][0] if likely[text][1] else -math.inf for text in question.choices)
        if question.choices:
            text = question.choices[max(range(len(chances)), key=chances.__getitem__)]
        else:
            text = processor.tokenizer.decode(next(decoded)).strip()
        answers.append(Answer(text, 0.0 - loss, tokens, chances))
    return answers


def fits(processor: Processor, question: Question, task: Task, skipped: Counter[str]) -> bool:
    """Whether the model can be asked a question, in every wording and with every choice; if not, it is counted by
    reason, and left out under every control."""
    wordings = instructions.rows(task).values()
    samples = [question.sample, *(instructions.reworded(question.sample, wording) for wording in wordings)]
    try:
        for sample in samples:
            processor.example(sample, answer=True)
            for text in question.choices:
                _with(processor, sample, text)
    except DataError as error:
        skipped[error.reason.value] += 1
        return False
    return True


def _with(processor: Processor, sample: Sample, answer: str) -> Example:
    before = tuple(replace(turn, weight=0.0) for turn in sample.turns)
    return processor.example(replace(sample, turns=(*before, Turn("assistant", (answer,))), alternatives=()))


def answered(processor: Processor, sample: Sample, answer: str) -> Example | None:
    """A conversation with its answer, of which the answer alone is labelled; None if that is too long."""
    try:
        return _with(processor, sample, answer)
    except DataError:
        return None
