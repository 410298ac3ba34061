"""Checks of tuners: what they name is what they added or opened, and nothing is said otherwise before a step."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtune import model, random_state
from mmtune.llm.base import LLM
from mmtune.testing import _pocket
from mmtune.tuners.base import Tuner, TunerConfig

STEPS = 3
"""A factor that starts at zero lets its partner learn from the second step on, and a gate in front from the third."""


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


CHECKS = (
    names_are_exact,
    a_fresh_model_is_as_before,
    all_of_it_learns,
    builds_are_alike,
    builds_on_the_meta_device,
)
