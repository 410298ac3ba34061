"""The whole way: shards, fifty steps, a falling loss, a run folder, an answer, a score."""

from __future__ import annotations

import json

import pytest

from mmtune import generate
from mmtune.checkpoint.store import load_run
from mmtune.data.formats.base import Record
from mmtune.eval.controls import CONTROLS
from mmtune.eval.run import evaluate
from mmtune.training.loop import train
from mmtune.types import MediaRef, Sample, Turn
from tests.training import world

CHANGES = {
    "groups": {
        "sight": {"match": ["branches.sight.connector.*"], "lr": 1e-2, "streams": ["pictures"]},
        # a random language model has to learn to speak, too
        "speech": {"match": ["llm.*"], "lr": 1e-2, "streams": ["pictures", "words"]},
    },
    "streams": {"pictures": {"share": 4}},
    "schedule": {"steps": 50, "warmup": 5},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(world.recipe(folder, CHANGES, batch_tokens=512), folder / "run", progress="off").finished
    return folder


def losses(run):
    rows = [json.loads(line) for line in (run / "run/metrics.jsonl").read_text().splitlines()]
    return [row["loss/pictures"] for row in rows if row["stream"] == "pictures"]


def test_the_loss_falls(run):
    seen = losses(run)
    assert len(seen) > 30 and sum(seen[-5:]) < 0.5 * sum(seen[:5])


def test_it_answers(run):
    model, processor, _ = load_run(run / "run")
    answers = {}
    for colour in world.COLOURS:
        medium = MediaRef("image", world.png(colour), colour)
        sample = Sample(colour, (Turn("user", (medium, "what colour is it?")),))
        example = processor.example(sample, answer=True)
        tokens = list(generate.stream(model, example, processor.stops, max_tokens=8))
        answers[colour] = processor.tokenizer.decode(tokens).strip()
    right = [colour for colour, answer in answers.items() if answer == colour]
    assert len(right) >= 3, answers


def test_scores_and_controls(run, capsys):
    report = evaluate(run / "run", "pocket_qa", [str(run / "pictures" / "part-*.tar")], controls=CONTROLS)
    scores = {control: rows["overall"] for control, rows in report["scores"].items()}
    assert list(scores) == list(CONTROLS) and all(one["total"] == 16 for one in scores.values())
    plain = scores["plain"]["accuracy"]
    assert plain >= 0.5, report["answers"]["plain"]
    assert scores["reversed"] == scores["shuffled"] == scores["plain"], "one frame has one order"
    assert scores["blind"]["accuracy"] <= 0.25, "four colours, each as often"
    assert scores["other_media"]["accuracy"] < plain
    assert report["constant"]["scores"]["overall"]["accuracy"] == 0.25
    said = capsys.readouterr().out
    assert "95 % interval" in said and "type colour" in said and "other_media" in said
    written = json.loads((run / "run/eval/pocket_qa.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert len(written["answers"]["plain"]) == 16


def test_batches_answer_as_one_by_one(run):
    """What a report holds is what a chat would say."""
    from mmtune.data.shards import Corpus
    from mmtune.eval.tasks.pocket_qa import PocketQA

    report = evaluate(run / "run", "pocket_qa", [str(run / "pictures" / "part-*.tar")], limit=5, quiet=True)
    model, processor, _ = load_run(run / "run")
    records: list[Record] = list(Corpus([str(run / "pictures" / "part-*.tar")]))[:5]
    questions = list(PocketQA(PocketQA.Config()).questions(records))
    for question, answer in zip(questions, report["answers"]["plain"], strict=True):
        tokens = list(generate.stream(model, processor.example(question.sample, answer=True), processor.stops, 24))
        assert processor.tokenizer.decode(tokens).strip() == answer["answer"] and question.id == answer["id"]
