"""Data of `tools/claims`: instructions in text only, and the questions that are asked of a trained model.

The instructions are about scenes told in words, and each asks for an answer in a certain form, which the language
model was never trained to give. The same forms are then asked for about clips, which no training shows: whoever
answers those has its eyes from one stream and its manners from the other.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mmtune.data.formats.base import Record
from mmtune.data.world.language import describe, questions
from mmtune.data.world.scene import draw_scene
from mmtune.eval.metrics import exact_match, rouge_l
from mmtune.eval.tasks.base import Question, Task
from mmtune.eval.tasks.pocket_qa import Config as Clips
from mmtune.eval.tasks.pocket_qa import PocketQA
from mmtune.types import Sample, Turn

FORMS = {
    "sentence": ("Say it in words.", "the answer is {}"),
    "twice": ("Say it and repeat it.", "{0} {0}"),
    "hello": ("Say hello first.", "hello! {}"),
}
"""Name of a form: (how it is asked for, what the answer becomes)."""
PLAIN = "plain"
"""No form asked for: the answer as it is."""
EACH = 4
"""Questions about one told scene, each in a conversation of its own."""


def in_form(form: str, asked: str, answer: str) -> tuple[str, str]:
    """(question, answer) with the form asked for, and kept to."""
    wish, pattern = FORMS[form]
    return f"{asked} {wish}", pattern.format(answer)


def told(split: str, scenes: int, seed: int = 1, level: str = "easy") -> Iterator[dict[str, str]]:
    """Questions about scenes told in words: type, question, answer. A quarter of them asks for no form."""
    for number in range(scenes):
        rng = random.Random(f"told:{seed}:{level}:{split}:{number}")
        scene = draw_scene(rng, level, split)
        for one in questions(scene, rng, count=EACH):
            form = rng.choice((PLAIN, *FORMS))
            asked, answer = f"{describe(scene)} {one.question}", one.answer
            if form != PLAIN:
                asked, answer = in_form(form, asked, answer)
            yield {"type": form, "question": asked, "answer": answer}


def write(folder: Path, split: str, scenes: int) -> str:
    """Shards of told scenes, in LLaVA's spelling and without media; returns their pattern."""
    from webdataset import ShardWriter

    pattern = folder / f"told-{split}-*.tar"
    note = folder / f"told-{split}.json"
    rows = list(told(split, scenes))
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if not note.is_file() or json.loads(note.read_text()) != digest:
        for old in folder.glob(f"told-{split}-*"):
            old.unlink()
        with ShardWriter(str(folder / f"told-{split}-%05d.tar"), maxcount=4000, mtime=0, verbose=0) as shards:
            for number, row in enumerate(rows):
                talk = [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}]
                facts = {"conversations": talk, "questions": [row]}
                shards.write({"__key__": f"{number:07d}", "json": json.dumps(facts).encode()})
        note.write_text(json.dumps(digest))
    return str(pattern)


class Told(Task):
    """The questions of told scenes: text only."""

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        for record in corpus:
            for place, row in enumerate(json.loads(record.files["json"])["questions"]):
                yield _asked(f"{record.id}#{place}", record.id, row["question"], row["answer"], row["type"])

    def score(self, question: Question, answer: str) -> dict[str, float]:
        return {"accuracy": float(exact_match(answer, question.answers))}


class Formed(PocketQA):
    """The questions about clips, each with a form asked for; the type is the form."""

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        for one in super().questions(corpus):
            drawn = hashlib.sha256(one.id.encode()).digest()[0]
            form = list(FORMS)[drawn % len(FORMS)]
            medium, asked = one.sample.turns[0].parts
            pairs = [in_form(form, str(asked), answer) for answer in one.answers]
            turn = Turn("user", (medium, pairs[0][0]))
            yield replace(one, sample=replace(one.sample, turns=(turn,)), answers=tuple(a for _, a in pairs), type=form)


class Described(PocketQA):
    """Clips to describe; the accepted answers are the captions. `scores` gathers ROUGE-L of each description."""

    def __init__(self, config: Clips) -> None:
        super().__init__(config)
        self.scores: list[float] = []

    def questions(self, corpus: Iterable[Record]) -> Iterator[Question]:
        for record in corpus:
            captions = json.loads(record.files["json"])["captions"]
            first = next(super().questions([record]), None)
            if first is not None:
                turn = Turn("user", (first.sample.turns[0].parts[0], "Describe the clip."))
                sample = replace(first.sample, turns=(turn,))
                yield Question(record.id, sample, tuple(captions), "caption")

    def score(self, question: Question, answer: str) -> dict[str, float]:
        self.scores.append(rouge_l(answer, question.answers))
        return super().score(question, answer)


def _asked(key: str, record: str, asked: str, answer: str, type: str) -> Question:
    return Question(key, Sample(record, (Turn("user", (asked,)),)), (answer,), type)
