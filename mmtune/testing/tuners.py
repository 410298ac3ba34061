"""Checks of tuners: what they name is what they added or opened, and nothing is said otherwise before a step."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune import model, random_state
from mmtune.llm.base import LLM
from mmtune.testing import _pocket
from mmtune.training.resume import step_generator
from mmtune.tuners.base import Tuner, TunerConfig

STEPS = 3
"""A factor that starts at zero lets its partner learn from the second step on, and a gate in front from the third."""
CALLS = 12
"""Steps in which step callbacks are called."""


def make(cls: type[Tuner], settings: TunerConfig) -> Tuner:
    """A tuner, for the language model that ships with mmtune: four layers of a Llama."""
    return cls(settings)


def tuned(tuner: Tuner) -> tuple[LLM, list[str]]:
    """The small language model after the tuner, and the names it gave; all draws the same every time."""
    llm = _pocket.llm()
    with random_state.seeded(0):
        return llm, tuner.apply(llm)


def read(llm: LLM) -> Tensor:
    """Logits of ten tokens."""
    ids = torch.arange(30, 40)[None]
    return llm.head(llm.forward(llm.embed(ids), torch.arange(10)[None], None))


def names_are_exact(tuner: Tuner) -> None:
    """Each name once, each a parameter of the model; what was added is named, and nothing else is open."""
    llm = _pocket.llm()
    before = {id(parameter) for parameter in llm.parameters()}
    names = tuner.apply(llm)
    there = dict(llm.named_parameters())
    assert names, "no parameter is named"
    assert len(set(names)) == len(names), "a name twice"
    assert set(names) <= set(there), f"no parameters of the model: {sorted(set(names) - set(there))[:5]}"
    added = {name for name, parameter in there.items() if id(parameter) not in before}
    assert added <= set(names), f"added and not named: {sorted(added - set(names))[:5]}"
    opened = {name for name, parameter in there.items() if parameter.requires_grad}
    assert opened <= set(names), f"open and not named: {sorted(opened - set(names))[:5]}"


@torch.no_grad()
def a_fresh_model_is_as_before(tuner: Tuner) -> None:
    """Tuning starts from what the model said."""
    torch.testing.assert_close(read(tuned(tuner)[0]), read(_pocket.llm()), atol=1e-4, rtol=1e-4)


def all_of_it_learns(tuner: Tuner) -> None:
    """After some steps every named parameter has moved, and the model says something else."""
    llm = _pocket.llm()
    plain = read(llm).detach()
    with random_state.seeded(0):
        (names,) = model.tune(llm, [tuner.config]).values()
    chosen = {name: parameter for name, parameter in llm.named_parameters() if f"llm.{name}" in set(names)}
    begun = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    optimizer = torch.optim.AdamW(chosen.values(), lr=0.05, weight_decay=0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        read(llm).logsumexp(-1).square().sum().backward()
        optimizer.step()
    still = [name for name, parameter in chosen.items() if torch.equal(parameter, begun[name])]
    assert still == [], f"not moved in {STEPS} steps: {', '.join(still[:5])}"
    assert not torch.allclose(read(llm), plain, atol=1e-6), "the model says what it said"


def builds_are_alike(tuner: Tuner) -> None:
    """The same names and, from the same seed, the same numbers each time."""
    (one, names), (two, again) = tuned(tuner), tuned(tuner)
    assert names == again, "other names the second time"
    there, other = dict(one.named_parameters()), dict(two.named_parameters())
    differ = [name for name in names if not torch.equal(there[name], other[name])]
    assert differ == [], f"drawn apart from the seed: {', '.join(differ[:5])}"


def builds_on_the_meta_device(tuner: Tuner) -> None:
    """Names and shapes without memory: what `mmtune plan` and `show` do."""
    llm, names = tuned(tuner)
    twin = model.build(_pocket.section(), device="meta").llm
    with torch.device("meta"):
        again = tuner.apply(twin)
    here, there = dict(llm.named_parameters()), dict(twin.named_parameters())
    assert again == names, "other names on the meta device"
    assert [there[name].shape for name in names] == [here[name].shape for name in names], "other shapes there"


def step_callbacks_work_on_what_is_named(tuner: Tuner) -> None:
    """What a tuner leaves for every step asks for parameters of its own, and its penalty is a finite scalar."""
    llm, names = tuned(tuner)
    own = {id(llm.get_parameter(name)) for name in names}
    for name, callback in llm.step_callbacks.items():
        assert own.issuperset(map(id, callback.parameters())), (
            f"{name} asks for parameters that the tuner does not name"
        )
        callback.begin(CALLS)
        callback.before(0, step_generator(0, 0))
        penalty = callback.penalty()
        assert penalty is None or (penalty.shape == () and torch.isfinite(penalty)), f"{name}: a penalty of {penalty}"


def step_callbacks_go_on_alike(tuner: Tuner) -> None:
    """A run that is stopped, and continues from the weights and what `state` gave, is the run that was not."""
    if not tuned(tuner)[0].step_callbacks:
        return
    straight, stopped = called(tuner), called(tuner, stop=CALLS // 2)
    differ = [name for name in straight if not torch.equal(straight[name], stopped[name])]
    assert differ == [], f"not as before after `load`: {', '.join(differ[:5])}"


def called(tuner: Tuner, stop: int | None = None) -> dict[str, Tensor]:
    """What is trained after `CALLS` steps with all hooks, built again before step `stop`."""
    llm, names = _begun(tuner)
    for step in range(CALLS):
        if step == stop:
            states = {n: {k: v.clone() for k, v in c.state().items()} for n, c in llm.step_callbacks.items()}
            weights = {name: llm.get_parameter(name).detach().clone() for name in names}
            llm, names = _begun(tuner)
            for name, tensor in weights.items():
                llm.get_parameter(name).data.copy_(tensor)
            for name, callback in llm.step_callbacks.items():
                callback.load(states[name])
        generator = step_generator(0, step)
        for callback in llm.step_callbacks.values():
            callback.before(step, generator)
        penalties = [found for one in llm.step_callbacks.values() if (found := one.penalty()) is not None]
        (read(llm).logsumexp(-1).square().mean() + sum(penalties)).backward()
        for name in names:
            if (grad := llm.get_parameter(name).grad) is not None:
                llm.get_parameter(name).data.sub_(grad / (1 + grad.norm()), alpha=0.1)
        for callback in llm.step_callbacks.values():
            callback.updated()
        llm.zero_grad()
    return {name: llm.get_parameter(name).detach() for name in names}


def _begun(tuner: Tuner) -> tuple[LLM, list[str]]:
    llm, names = tuned(tuner)
    for name in names:
        llm.get_parameter(name).requires_grad_(True)
    for callback in llm.step_callbacks.values():
        callback.begin(CALLS)
    return llm.train(), names


CHECKS = (
    names_are_exact,
    a_fresh_model_is_as_before,
    all_of_it_learns,
    builds_are_alike,
    builds_on_the_meta_device,
    step_callbacks_work_on_what_is_named,
    step_callbacks_go_on_alike,
)
