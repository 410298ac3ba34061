"""AdaLoRA: the budget follows its schedule, what was given up stays so, the penalty is the paper's, runs resume."""

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune.errors import ConfigError
from mmtune.tuners._budget import Budget
from mmtune.tuners.hf_peft import Config, HfPeft
from tests.llm import tiny
from tests.training import world

OPTIONS = {
    "method": "adalora",
    "target_r": 1,
    "init_r": 4,
    "tinit": 2,
    "tfinal": 3,
    "target_modules": ["q_proj", "v_proj"],
}
MATRICES, STEPS = 4, 12


def make(path, **more):
    llm = tiny.llm(path).requires_grad_(False)
    torch.manual_seed(0)
    names = HfPeft(config.validate(Config, {"name": "hf_peft", **OPTIONS, **more})).apply(llm)
    (budget,) = llm.step_callbacks.values()
    return llm, names, budget


def read(llm):
    ids = torch.arange(30, 40)[None]
    return llm.head(llm.forward(llm.embed(ids), torch.arange(10)[None], None))


def step(llm, optimizer, budget):
    loss = read(llm).logsumexp(-1).mean() + budget.penalty()
    loss.backward()
    optimizer.step()
    budget.updated()
    optimizer.zero_grad()


def active(llm):
    return sum(int((p != 0).sum()) for name, p in llm.named_parameters() if "lora_E" in name)


def test_the_budget_falls_as_scheduled_and_stays(tmp_path):
    llm, names, budget = make(tmp_path)
    budget.begin(STEPS)
    optimizer = torch.optim.Adam([llm.get_parameter(name) for name in names], lr=0.05)
    assert {id(p) for p in budget.parameters()} == {id(llm.get_parameter(name)) for name in names}
    start, target = 4 * MATRICES, 1 * MATRICES
    kept = None
    for t in range(1, STEPS + 1):
        step(llm, optimizer, budget)
        if t <= 2:
            want = start
        else:
            left = max(0.0, 1 - (t - 2) / (STEPS - 3 - 2))
            want = int((start - target) * left**3 + target) if t < STEPS - 3 else target
        assert active(llm) == want, t
        if t >= STEPS - 3:
            pattern = {name: p != 0 for name, p in llm.named_parameters() if "lora_E" in name}
            assert kept is None or all(torch.equal(kept[name], pattern[name]) for name in pattern)
            kept = pattern


def test_going_on_equals_going_through(tmp_path):
    def run(stop):
        llm, names, budget = make(tmp_path)
        budget.begin(STEPS)
        optimizer = torch.optim.SGD([llm.get_parameter(name) for name in names], lr=0.1)
        for t in range(STEPS):
            if t == stop:
                held = {name: tensor.clone() for name, tensor in budget.state().items()}
                weights = {name: llm.get_parameter(name).detach().clone() for name in names}
                llm, _, budget = make(tmp_path)
                budget.begin(STEPS)
                budget.load(held)
                for name, tensor in weights.items():
                    llm.get_parameter(name).data.copy_(tensor)
                optimizer = torch.optim.SGD([llm.get_parameter(name) for name in names], lr=0.1)
            step(llm, optimizer, budget)
        return [llm.get_parameter(name) for name in names]

    straight = run(None)
    for stop in (5, 10):
        assert all(torch.equal(a, b) for a, b in zip(run(stop), straight, strict=True))


def test_the_penalty(tmp_path):
    llm, _, budget = make(tmp_path, orth_reg_weight=0.25)
    found = []
    for name, p in llm.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            p = p if "lora_A" in name else p.T
            found.append(((p @ p.T - torch.eye(4)) ** 2).sum().sqrt())
    assert len(found) == 2 * MATRICES
    torch.testing.assert_close(budget.penalty(), 0.25 * sum(found) / len(found))
    assert make(tmp_path, orth_reg_weight=0)[2].penalty() is None


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="in 5 steps"):
        make(tmp_path)[2].begin(5)


def test_a_run_calls_it_in_its_own_steps_and_resumes(tmp_path, monkeypatch):
    """Two streams, of which one trains it: half of 8 steps. Stopped and resumed, the weights are the same."""
    from mmtune.training import loop, stepper

    tuner = {"name": "hf_peft", **OPTIONS, "tinit": 1, "tfinal": 1}
    changes = {
        "model": {"tuners": [tuner]},
        "groups": {"speech": {"match": ["@hf_peft"], "lr": 1e-2, "streams": ["words"]}},
    }
    recipe = world.recipe(tmp_path / "world", changes, save_every=3)
    updated, told = Budget.updated, []
    monkeypatch.setattr(Budget, "updated", lambda self: (told.append(self.step), updated(self)))
    loop.train(recipe, tmp_path / "straight", progress="off")
    assert told == [0, 1, 2, 3], "asked in the four steps of its stream"
    real, steps = stepper.take_step, []

    def dies(*args, **more):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stepper, "take_step", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, tmp_path / "broken", progress="off")
    loop.train(recipe, tmp_path / "broken", resume=True, progress="off")
    one, other = (load_file(tmp_path / name / "weights/speech.safetensors") for name in ("straight", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    kept = sum(int((t != 0).sum()) for name, t in one.items() if "lora_E" in name)
    assert kept == MATRICES, "the budget was settled in the third of the four steps"
