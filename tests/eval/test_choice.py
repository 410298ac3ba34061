"""Choices: what is compared, that the likeliest one is the answer, and that its likelihood is that of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtune import generate, registry
from mmtune.checkpoint import store
from mmtune.collate import collate
from mmtune.data.formats.base import Record
from mmtune.errors import ConfigError, DataError, Reason, UsageError
from mmtune.eval.answers import answered
from mmtune.eval.instructions import reworded, spread
from mmtune.eval.run import evaluate
from mmtune.eval.tasks.base import Outcome
from mmtune.types import MediaRef, Sample, Turn
from tests.losses import cross_entropy
from tests.training import world

CHOICE = registry.find("eval/tasks", "choice")
TEXTS = ["red", "deep green", "blue"]


def record(answer: str, choices: Any = TEXTS, question: str = "which colour?", **more: Any) -> bytes:
    facts = {"conversations": world.said(question, answer), "choices": choices, **more}
    return json.dumps({name: value for name, value in facts.items() if value is not None}).encode()


def asked(answer: str, choices: Any = TEXTS, **config: Any) -> Any:
    task = CHOICE(CHOICE.Config(**config))
    return next(task.questions([Record("s/1", {"json": record(answer, choices)}, "1")]))


@pytest.mark.parametrize(
    ("answer", "choices", "right"),
    [
        ("deep green", TEXTS, ("deep green", tuple(TEXTS))),
        ("Deep green.", TEXTS, ("deep green", tuple(TEXTS))),
        ("B", TEXTS, ("B", ("A", "B", "C"))),
        ("(B)", TEXTS, ("(B)", ("(A)", "(B)", "(C)"))),
        ("B. deep green", TEXTS, ("B. deep green", ("A. red", "B. deep green", "C. blue"))),
        ("blue", {"1": "red", "2": "blue"}, ("blue", ("red", "blue"))),
        ("2", {"1": "red", "2": "blue"}, ("2", ("1", "2"))),
        ("D", {"label": ["C", "D"], "text": ["red", "blue"]}, ("D", ("C", "D"))),
        ("3", [1, 2, 3], ("3", ("1", "2", "3"))),
    ],
)
def test_choices_are_scored_as_the_answer_is_spelled(answer: str, choices: Any, right: Any) -> None:
    question = asked(answer, choices)
    assert (question.answers[0], question.choices) == right
    assert question.sample.turns[-1].role == "user"


@pytest.mark.parametrize(
    ("answer", "choices", "reason"),
    [
        ("violet", TEXTS, Reason.bad_json),
        ("red", None, Reason.missing_key),
        ("red", ["red"], Reason.missing_key),
        ("red", "red", Reason.missing_key),
        ("red", ["red", "Red."], Reason.bad_json),
        ("red", ["red", ""], Reason.bad_json),
        ("0", [str(n) for n in range(27)], Reason.missing_key),
    ],
)
def test_what_cannot_be_told_apart_is_left_out_by_name(answer: str, choices: Any, reason: Reason) -> None:
    with pytest.raises(DataError, match="s/1") as caught:
        asked(answer, choices)
    assert caught.value.reason is reason


def test_by_byte_a_long_choice_has_its_chance() -> None:
    question = asked("deep green")
    task = CHOICE(CHOICE.Config())
    found = [Outcome(question, "red", task.judge(question, "red"), choices=(-3.0, -5.0, -9.0))]
    assert task.measured(found) == {"accuracy": 0.0, "accuracy_norm": 1.0}
    found.append(Outcome(question, "deep green", task.judge(question, "deep green"), choices=(-9.0, -1.0, -9.0)))
    assert task.measured(found) == {"accuracy": 0.5, "accuracy_norm": 1.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return world.recipe(tmp_path_factory.mktemp("model"), length=64, batch_tokens=64)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "own.tar"
    members = {"0.png": world.png("red"), "0.json": record("red", question="<image>\nwhich colour?")}
    members |= {"1.json": record("C"), "2.json": record("violet")}
    members |= {"3.json": record("red", ["red", "deep green " * 40])}
    world.write_tar(path, members)
    return str(path)


def test_the_answer_is_the_likeliest_choice(
    run: Path, shard: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As likely as the loss of training says; nothing is decoded; what does not fit or is no choice is counted."""
    monkeypatch.setattr(generate, "answer_batch", lambda *_: pytest.fail("decoded"))
    model, processor, _ = store.load_run(run)
    report = evaluate((model, processor), "choice", [shard])
    rows = report["answers"]["plain"]
    assert report["skipped"] == {"bad_json": 1, "too_long": 1} and len(rows) == 2
    assert {*report["measures"]["plain"]["overall"]} == {"accuracy", "accuracy_norm"}
    assert "accuracy norm" in capsys.readouterr().out
    for row in rows:
        assert row["answer"] == max(row["choices"], key=row["choices"].get)
        assert row["right"] == (row["answer"] == row["truth"])
    sample = Sample("x", (Turn("user", ("which colour?",)),))
    for text, likely in rows[1]["choices"].items():
        with torch.no_grad():
            loss, _ = cross_entropy(model, collate([[answered(processor, sample, text)]]))
        assert likely == pytest.approx(-float(loss), rel=1e-4)


def test_records_without_choices_are_told_what_they_lack(run: Path, tmp_path: Path) -> None:
    world.write_tar(tmp_path / "own.tar", {"1.json": record("red", None), "2.json": record("red", None)})
    with pytest.raises(UsageError, match="'missing_key': 2.*own/1: choices is None"):
        evaluate(run, "choice", [str(tmp_path / "own.tar")], device="cpu")


def test_rows_at_once_change_no_likelihood(run: Path) -> None:
    model, processor, _ = store.load_run(run)
    sample = Sample("x", (Turn("user", ("which colour?",)),))
    examples = [answered(processor, sample, text) for text in ("red", "a much longer answer", "blue")]
    with torch.no_grad():
        together, alone = generate.score(model, [*examples, None]), generate.score(model, examples, rows=1)
    assert together[3] == (0.0, 0)
    for (one, tokens), (two, count) in zip(together[:3], alone, strict=True):
        assert one == pytest.approx(two, rel=1e-5) and tokens == count > 0


# ------------------------------------------------------------------------------------------------------ instructions

WORDINGS = "instructions=['{question}', 'Answer briefly. {question}']"


def test_questions_in_several_wordings(run: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same samples in each; a wording that is the question alone scores as the question."""
    report = evaluate(run, f"choice:{WORDINGS}", [shard], device="cpu")
    rows = report["answers"]
    assert {*rows} == {"plain", "instruction 1", "instruction 2"}
    assert len({tuple(row["id"] for row in held) for held in rows.values()}) == 1
    assert [row["choices"] for row in rows["instruction 1"]] == [row["choices"] for row in rows["plain"]]
    assert [row["choices"] for row in rows["instruction 2"]] != [row["choices"] for row in rows["plain"]]
    assert report["instructions"]["texts"]["instruction 2"] == "Answer briefly. {question}"
    each = [report["measures"][row]["overall"]["accuracy"] for row in ("instruction 1", "instruction 2")]
    assert report["instructions"]["measures"]["accuracy"]["mean"] == sum(each) / 2
    assert "over instructions" in capsys.readouterr().out


@pytest.mark.parametrize("wordings", [["{question}"], ["{question}", "{question}"], ["{question}", "Answer."]])
def test_wordings_that_cannot_be_compared_are_refused(run: Path, shard: str, wordings: list[str]) -> None:
    with pytest.raises(ConfigError, match="two wordings or more"):
        evaluate(run, f"choice:instructions={wordings}", [shard], device="cpu")


def test_a_wording_leaves_media_where_they_are() -> None:
    image = MediaRef("image", world.png("red"), "1.png")
    sample = Sample("x", (Turn("user", ("one",)), Turn("assistant", ("two",)), Turn("user", (image, "\nwhat is it? "))))
    turns = reworded(sample, "Say: {question} Be short.").turns
    assert turns[:2] == sample.turns[:2]
    assert turns[2].parts == (image, "\nSay: what is it? Be short. ")


def test_sensitivity_is_the_deviation_over_the_mean() -> None:
    """Two wordings with a and b: |a - b| / (a + b); scale and order of wordings change nothing; no mean, none."""
    found = spread({"one": {"x": 0.2, "y": 0.5}, "two": {"x": 0.6, "y": 0.5}})
    assert found["x"]["sensitivity"] == pytest.approx(0.4 / 0.8) and found["y"]["sensitivity"] == 0
    assert (found["x"]["low"], found["x"]["high"]) == (0.2, 0.6)
    turned = spread({"two": {"x": 6.0}, "one": {"x": 2.0}})
    assert turned["x"]["sensitivity"] == pytest.approx(found["x"]["sensitivity"])
    assert spread({"one": {"x": 0.0}, "two": {"x": 0.0}})["x"]["sensitivity"] is None
    assert spread({"one": {"x": float("inf")}, "two": {"x": 1.0}})["x"]["sensitivity"] is None
