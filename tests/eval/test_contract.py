"""Every eval task keeps the contract; a newcomer is tested by being there, and by records that it asks about."""

import json
from types import SimpleNamespace

import pytest

from mmtune import registry, testing
from mmtune.data.formats.base import Record
from mmtune.errors import ConfigError
from mmtune.eval.tasks.base import Outcome, Question, Task, TaskConfig
from mmtune.training.best_metric import best_metric_of
from mmtune.types import Sample, Turn

ASKED = {"type": "colour", "temporal": True, "question": "which colour", "answer": "red", "alternatives": ["scarlet"]}
TALK = [{"from": "human", "value": "what is this"}, {"from": "gpt", "value": "a dog"}]
RECORDS = {
    "pocket_qa": [
        Record("s/1", {"json": json.dumps({"video": "1.mp4", "questions": [ASKED]}).encode(), "mp4": b"film"}, "1")
    ],
    "choice": [
        Record("s/1", {"json": json.dumps({"conversations": TALK, "choices": ["a cat", "a dog"]}).encode()}, "1"),
        Record("s/2", {"json": json.dumps({"conversations": TALK, "choices": {"A": "a dog", "B": "b"}}).encode()}, "2"),
    ],
    "qa": [Record("s/1", {"json": json.dumps({"conversations": TALK, "type": "thing"}).encode()}, "1")],
}
"""Records that a task asks about."""


@pytest.mark.parametrize("check", testing.checks("eval/tasks"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("eval/tasks"))
def test_contract(name, check):
    assert name in RECORDS, f"task {name}: add records that it asks about"
    check(testing.make("eval/tasks", name, records=RECORDS[name]))


class Overlap(Task):
    """Says nothing but its scores, and `accuracy` is not among them."""

    def questions(self, corpus):
        for record in corpus:
            facts = json.loads(record.files["json"])
            yield Question(record.id, Sample(record.id, (Turn("user", (facts["q"],)),)), (facts["a"],))

    def score(self, question, answer):
        return {"overlap": len(set(answer) & set(question.answers[0])) / 10}


class Exact(Overlap):
    def score(self, question, answer):
        return {"accuracy": answer == question.answers[0]}


class Share(Exact):
    """A measure of the whole corpus beside the means."""

    measures = {"accuracy": "higher", "share": "lower"}

    def summary(self, outcomes):
        return {**super().summary(outcomes), "share": len({one.answer for one in outcomes}) / len(outcomes)}


class Misspelt(Overlap):
    right = "overlp"


class Promising(Overlap):
    measures = {"overlap": "higher", "bleu": "higher"}


def made(cls):
    return cls(TaskConfig(name="mine"))


def outcomes(task):
    (question,) = task.questions([Record("s/1", {"json": b'{"q": "x", "a": "yes"}'})])
    return [Outcome(question, text, task.judge(question, text)) for text in ("yes", "no")]


def test_a_task_without_accuracy_is_measured_by_what_it_scores():
    task = made(Overlap)
    assert task.measured(outcomes(task)) == {"overlap": pytest.approx(0.15)}
    assert task.is_right({"overlap": 1.0}) is None
    assert made(Exact).measured(outcomes(made(Exact))) == {"accuracy": 0.5}
    assert [made(Exact).is_right(one.scores) for one in outcomes(made(Exact))] == [True, False]


@pytest.mark.parametrize("cls", [Misspelt, Promising])
def test_a_score_that_is_promised_and_not_given_is_named(cls):
    task = made(cls)
    with pytest.raises(ConfigError, match="overlp|bleu"):
        task.measured(outcomes(task))


def test_a_measure_of_the_whole_stands_beside_the_means():
    task = made(Share)
    assert task.measured(outcomes(task)) == {"accuracy": 0.5, "share": 1.0}


def test_a_measure_that_is_neither_better_high_nor_low_is_named():
    class Vague(Share):
        measures = {"accuracy": "higher", "share": "percent"}

    given = testing.tasks.make(Vague, TaskConfig(name="mine"), [Record("s/1", {"json": b'{"q": "x", "a": "yes"}'})])
    with pytest.raises(AssertionError, match="share.*percent"):
        testing.tasks.measures_can_be_printed(given)


def recipe(best=None):
    return SimpleNamespace(eval=SimpleNamespace(every=5, best=best), streams={})


def test_the_best_state_is_chosen_by_a_score_that_was_not_named_before(monkeypatch):
    monkeypatch.setattr("mmtune.training.best_metric.held_out_sections", lambda recipe: {})
    task = made(Overlap)
    for told in (None, "mine/overlap"):
        best = best_metric_of(recipe(told), task)
        values = ({"mine/overlap": value} for value in (0.2, 0.1, 0.3))
        assert [best.update(step, one) for step, one in enumerate(values, 1)] == [True, False, True]
        again = best_metric_of(recipe(told), task)
        again.load(best.state())
        assert (again.measure, again.value, again.step) == ("mine/overlap", 0.3, 3)
    best = best_metric_of(recipe("mine/bleu"), task)
    with pytest.raises(ConfigError, match="mine/overlap"):
        best.update(1, {"mine/overlap": 0.5})
    with pytest.raises(ConfigError, match=r"eval\.best"):
        best_metric_of(recipe("other/bleu"), task)
