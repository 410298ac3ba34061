"""Hooks of a step: in which order they are called, with which draws, and a tuner of its own that draws a rank."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mmtune import registry, testing
from mmtune.errors import DataError
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.testing import tuners as checks
from mmtune.training import loop, stepper
from mmtune.training.gradients import OutOfMemory
from mmtune.training.replay import replay
from mmtune.training.resume import step_generator
from mmtune.tuners._budget import Budget
from mmtune.tuners.base import StepCallback, Tuner, TunerConfig
from mmtune.tuners.hf_peft import Config as PeftConfig
from mmtune.tuners.hf_peft import HfPeft
from tests.training import world

registry.allow(["tests.tuners.test_step_callbacks:Nested", "tests.tuners.test_step_callbacks:Noted"])

RANK = 4


class Rank(StepCallback):
    """The first factors of every pair take part in a step, as many as are drawn; all of them where nothing trains.

    The method is DyLoRA's, arXiv 2210.07558.
    """

    def __init__(self, llm):
        self.factors = [module["default"] for name, module in llm.named_modules() if name.endswith("lora_A")]
        self.own = [p for name, p in llm.named_parameters() if ".lora_" in name]
        self.drawn = RANK
        for factor in self.factors:
            factor.register_forward_hook(self.cut)

    def cut(self, module, args, out):
        kept = (torch.arange(RANK) < self.drawn).to(out)
        return out * kept * (RANK / self.drawn) if module.training else out

    def parameters(self):
        return self.own

    def before(self, step, generator):
        self.drawn = int(torch.randint(1, RANK + 1, (), generator=generator))


class Nested(Tuner):
    Config = TunerConfig

    def apply(self, llm):
        names = HfPeft(PeftConfig(method="lora", r=RANK, target_modules=["q_proj"])).apply(llm)
        llm.step_callbacks["nested"] = Rank(llm)
        return names


class Note(StepCallback):
    """Writes down what is called."""

    calls: list = []

    def __init__(self, gain):
        self.gain, self.seen = gain, torch.zeros(())

    def parameters(self):
        return [self.gain]

    def begin(self, steps):
        self.calls.append(("begin", steps))

    def before(self, step, generator):
        self.calls.append(("before", step, int(torch.randint(1000, (), generator=generator))))

    def penalty(self):
        self.calls.append(("penalty", self.gain.grad is not None))

    def updated(self):
        self.calls.append(("updated", self.gain.grad is not None))
        self.seen += 1

    def state(self):
        return {"seen": self.seen}

    def load(self, tensors):
        self.calls.append(("load", float(tensors["seen"])))
        self.seen = tensors["seen"].clone()


class Noted(Tuner):
    """Opens the last norm, and leaves a note of every call."""

    Config = TunerConfig

    def apply(self, llm):
        (name, gain), *_ = [(n, p) for n, p in llm.named_parameters() if n.endswith("model.norm.weight")]
        llm.step_callbacks["note"] = Note(gain)
        return [name]


@pytest.fixture
def calls():
    Note.calls.clear()
    return Note.calls


def recipe(folder, tuner, **run):
    changes = {
        "model": {"tuners": [{"name": f"tests.tuners.test_step_callbacks:{tuner}"}]},
        "groups": {"speech": {"match": [f"@tests.tuners.test_step_callbacks:{tuner}"], "streams": ["words"]}},
        "schedule": {"interleave": "alternate"},
    }
    return world.recipe(folder, changes, **run)


def of_steps(calls):
    return [call[0] for call in calls]


def test_the_order_of_calls(tmp_path, calls):
    """Half of the steps train it, and those alone ask it; gradients are there from the penalty on."""
    loop.train(recipe(tmp_path / "world", "Noted"), tmp_path / "run", progress="off")
    assert calls[0] == ("begin", 4)
    assert of_steps(calls[1:]) == ["before", "penalty", "updated"] * 4
    assert all(call[1] is True for call in calls if call[0] in ("penalty", "updated"))
    draws = [call[1:] for call in calls if call[0] == "before"]
    assert draws == [(step, int(torch.randint(1000, (), generator=step_generator(3, step)))) for step, _ in draws]
    assert [step for step, _ in draws] in ([0, 2, 4, 6], [1, 3, 5, 7])


def dies_in_training(made, out, steps, monkeypatch):
    """A run that is interrupted after some steps, between two saves."""
    real, left = stepper.take_step, iter([True] * steps)

    def dies(*args, **more):
        if not next(left, False):
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stepper, "take_step", dies)
        loop.train(made, out, progress="off")


def test_the_state_comes_back_after_begin(tmp_path, calls, monkeypatch):
    made = recipe(tmp_path / "world", "Noted", save_every=3)
    loop.train(made, tmp_path / "straight", progress="off")
    straight = list(calls)
    calls.clear()
    dies_in_training(made, tmp_path / "run", 4, monkeypatch)
    calls.clear()
    loop.train(made, tmp_path / "run", resume=True, progress="off")
    assert of_steps(calls[:2]) == ["begin", "load"]
    assert calls[2:] == straight[-len(calls[2:]) :], "and then as if nothing had been"


def test_a_step_that_is_tried_again_is_begun_once(tmp_path, calls, monkeypatch):
    real, tries = stepper.take_step, []

    def full(*args, **more):
        tries.append(1)
        if len(tries) == 1:
            raise OutOfMemory([0], (2, 64), "no room")
        return real(*args, **more)

    monkeypatch.setattr(stepper, "take_step", full)
    loop.train(recipe(tmp_path / "world", "Noted", out_of_memory="smaller"), tmp_path / "run", progress="off")
    assert len(tries) == 9 and of_steps(calls[1:]) == ["before", "penalty", "updated"] * 4


def test_a_step_that_is_not_finite_updates_nothing(tmp_path, calls, monkeypatch):
    real = CrossEntropy.loss
    bad = lambda *given: {term: value * float("nan") for term, value in real(*given).items()}  # noqa: E731
    monkeypatch.setattr(CrossEntropy, "loss", bad)
    with pytest.raises(DataError):
        loop.train(recipe(tmp_path / "world", "Noted"), tmp_path / "run", progress="off")
    assert set(of_steps(calls[1:])) == {"before"}
    made = {call[1:] for call in calls[1:]}
    calls.clear()
    replay(tmp_path / "run", device="cpu")
    again = {call[1:] for call in calls if call[0] == "before"}
    assert again and again <= made, "each sample is tried with the draws of its step"


def test_a_tuner_that_draws_its_rank_keeps_the_contract():
    testing.check("tuners", "tests.tuners.test_step_callbacks:Nested")


@pytest.mark.parametrize("check", [checks.step_callbacks_work_on_what_is_named, checks.step_callbacks_go_on_alike])
def test_adalora_keeps_the_contract_of_step_callbacks(check):
    options = {"target_r": 1, "init_r": 3, "tinit": 2, "tfinal": 3, "target_modules": ["q_proj"]}
    check(HfPeft(PeftConfig(method="adalora", **options)))


def test_a_state_that_forgets_is_seen(monkeypatch):
    """The check sees a callback that does not save what it counts."""
    options = {"target_r": 1, "init_r": 3, "tinit": 2, "tfinal": 3, "target_modules": ["q_proj"]}
    monkeypatch.setattr(Budget, "load", lambda self, tensors: None)
    with pytest.raises(AssertionError, match="not as before"):
        checks.step_callbacks_go_on_alike(HfPeft(PeftConfig(method="adalora", **options)))


def test_the_drawn_rank_is_what_trains():
    llm, names = checks.tuned(Nested(TunerConfig(name="nested")))
    llm.requires_grad_(True).train()
    (callback,) = llm.step_callbacks.values()
    for name in names:
        if "lora_B" in name:
            torch.nn.init.normal_(llm.get_parameter(name))
    seen = set()
    for step in range(12):
        callback.before(step, step_generator(0, step))
        llm.zero_grad()
        checks.read(llm).square().sum().backward()
        rows = [llm.get_parameter(name).grad.abs().sum(1) > 0 for name in names if "lora_A" in name]
        assert all(row.tolist() == [number < callback.drawn for number in range(RANK)] for row in rows)
        seen.add(callback.drawn)
    assert seen == {1, 2, 3, 4}


def test_a_run_that_draws_goes_on_to_the_bit(tmp_path, monkeypatch):
    made = recipe(tmp_path / "world", "Nested", save_every=3)
    loop.train(made, tmp_path / "straight", progress="off")
    dies_in_training(made, tmp_path / "broken", 5, monkeypatch)
    loop.train(made, tmp_path / "broken", resume=True, progress="off")
    one, other = (load_file(tmp_path / name / "weights/speech.safetensors") for name in ("straight", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    rows = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    assert all(row["updated"] for row in rows)
