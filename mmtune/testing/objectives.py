"""Checks of objectives: sums and counts by term, the same however a batch is cut, nothing for padding; those of pairs
are asked about pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtune.collate import collate
from mmtune.frozen_model import FrozenModel
from mmtune.model import MultimodalModel
from mmtune.objectives.base import Objective, ObjectiveConfig
from mmtune.testing import _pocket
from mmtune.training.terms import lost, total
from mmtune.types import IGNORE, Batch, Example

LENGTHS = (9, 5, 12, 7)
"""Tokens of the examples of a batch."""


def make(cls: type[Objective], settings: ObjectiveConfig) -> Objective:
    """An objective, asked of the language model that ships with mmtune."""
    return cls(settings)


def examples(weighted: bool = False, sequences: int = 1) -> list[Example]:
    """Texts at random, so many in a sample; the first three tokens of each carry no label. Weights, where wanted,
    differ by example."""
    g = torch.Generator().manual_seed(0)
    made = []
    for number, length in enumerate(LENGTHS):
        lengths = tuple(length + more for more in range(sequences))
        texts = [torch.randint(20, 60, (one + 1,), generator=g) for one in lengths]
        tokens = torch.cat([text[:-1] for text in texts])
        labels = torch.cat([part for text in texts for part in (torch.full((3,), IGNORE), text[4:])])
        weights = (labels != IGNORE).float() * (1 + number / 2) if weighted else None
        parts = lengths if sequences > 1 else ()
        made.append(Example(f"test/{number}", tokens, labels, weights=weights, sequences=parts))
    return made


def text_model() -> MultimodalModel:
    """The whole language model open, so that a gradient can be seen."""
    model = _pocket.text_model()
    model.llm.requires_grad_(True)
    return model


def begun(objective: Objective, model: MultimodalModel) -> Objective:
    """An objective as the loop has it after some steps, with all that trains in one group. Other models that it asks
    are all the same: one that is surer of what it says than the model itself."""
    objective.check(model)
    groups = {"all": [(n, p) for n, p in model.named_parameters() if p.requires_grad]}
    objective.begin(model, groups, {name: _surer_model() for name in objective.config.model_names()})
    moved(model)
    return objective


def moved(model: MultimodalModel) -> None:
    """Change what trains a little, in place, as steps do."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=g)


def _surer_model() -> FrozenModel:
    model = _pocket.text_model()
    head = model.llm.head

    def louder(hidden: Tensor) -> Tensor:
        return 1.5 * head(hidden)

    model.llm.head = louder
    return FrozenModel(model)


Asked = tuple[dict[str, Tensor], dict[str, float], Tensor]


def asked(objective: Objective, model: MultimodalModel, batch: Batch, counts: dict[str, float] | None = None) -> Asked:
    """Sums, counts, and the gradient of all parameters in one row.

    Args:
        counts: of all that the batch is a part of; its own where none are given.
    """
    model.zero_grad()
    own = objective.counts(batch)
    sums = objective.loss(model, batch)
    total(lost(objective, sums), lost(objective, counts or own)).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    return {term: value.detach() for term, value in sums.items()}, own, gradient


def every_term_is_a_sum_and_a_count(objective: Objective) -> None:
    """float32 scalars, finite; the first with gradient and counted above zero; the same terms in both."""
    model = text_model()
    begun(objective, model)
    batch = collate([[one] for one in examples(sequences=objective.sequences)], model.llm.tokenizer.pad)
    counts = objective.counts(batch)
    sums = objective.loss(model, batch)
    assert sums.keys() == counts.keys() and counts, f"a loss of {', '.join(sums)}, counts of {', '.join(counts)}"
    for term, value in sums.items():
        assert value.shape == () and value.dtype == torch.float32, f"{term}: {value.dtype} {list(value.shape)}"
        assert torch.isfinite(value), f"{term}: {value.item()}"
        assert math.isfinite(counts[term]) and counts[term] >= 0, f"{term} counts {counts[term]}"
    first = next(iter(counts))
    assert first not in objective.measures, f"{first} is a measure, and comes before the primary term"
    assert sums[first].requires_grad and counts[first] > 0, f"{first}, the primary term, has no gradient or counts 0"
    assert objective.counts(batch) == counts, "counts that differ when they are asked for again"


def cuts_of_a_batch_add_up(objective: Objective) -> None:
    """One row each, packed in one row, or one batch each: the same sums, counts and gradient."""
    model, given = text_model(), examples(objective.weighted, objective.sequences)
    begun(objective, model)
    pad = model.llm.tokenizer.pad
    whole = asked(objective, model, collate([[one] for one in given], pad))
    alone = [asked(objective, model, collate([[one]], pad), whole[1]) for one in given]
    cuts = {
        "packed in one row": asked(objective, model, collate([given], pad)),
        "each in a batch of its own": (
            *({term: sum(one[part][term] for one in alone) for term in whole[0]} for part in (0, 1)),
            sum(one[2] for one in alone),
        ),
    }
    for name, cut in cuts.items():
        pairs = [(f"the gradient of {objective.config.name}", whole[2], cut[2])]
        pairs += [(f"the sum of {term}", whole[0][term], cut[0][term]) for term in whole[0]]
        pairs += [(f"the count of {term}", whole[1][term], cut[1][term]) for term in whole[0]]
        for what, one, other in pairs:
            one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
            close = torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
            assert close, f"{what} differs where its examples are {name}"


def padding_alone_counts_nothing(objective: Objective) -> None:
    """A rank without a row still runs the model, and adds zero to every sum, count and gradient."""
    model = text_model()
    begun(objective, model)
    batch = collate([[one] for one in examples(sequences=objective.sequences)], model.llm.tokenizer.pad)
    sums, counts, gradient = asked(objective, model, collate([], model.llm.tokenizer.pad), objective.counts(batch))
    assert counts.keys() == objective.counts(batch).keys(), f"padding has the terms {', '.join(counts)}"
    for term, value in sums.items():
        assert value == 0 and counts[term] == 0, f"{term}: a sum of {value.item()} and {counts[term]} for padding"
    assert not gradient.any(), "a gradient of padding"


def weights_count(objective: Objective) -> None:
    """One that is `weighted` gives twice the sum and twice the count of its primary term for twice the weights."""
    if not objective.weighted:
        return
    model, pad = text_model(), 0
    begun(objective, model)
    once = collate([[one] for one in examples(True, objective.sequences)], pad)
    twice = collate([[one] for one in examples(True, objective.sequences)], pad)
    twice.weights *= 2
    (sums, counts, _), (more, double, _) = asked(objective, model, once), asked(objective, model, twice)
    first = next(iter(counts))
    said = f"a count of {counts[first]}, and of {double[first]} for twice the weights"
    assert math.isclose(double[first], 2 * counts[first], rel_tol=1e-6), said
    torch.testing.assert_close(more[first], 2 * sums[first], rtol=1e-4, atol=1e-4)


def state_goes_round(objective: Objective) -> None:
    """What `state` gives is taken back by another of the same settings that began with another model."""
    other = text_model()
    moved(other)
    first, second = (begun(type(objective)(objective.config), model) for model in (text_model(), other))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second.load(saved)
    again = second.state()
    assert again.keys() == saved.keys(), f"{sorted(saved)} comes back as {sorted(again)}"
    assert all(torch.equal(saved[name], again[name]) for name in saved), "a state comes back with other numbers"


def the_model_is_left_as_it_was(objective: Objective) -> None:
    """Whatever weights were looked at on the way, `loss` leaves the model with its own, in the mode it had."""
    model = text_model()
    begun(objective, model)
    batch = collate([examples(sequences=objective.sequences)], model.llm.tokenizer.pad)
    for mode in (True, False):
        model.train(mode)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
        objective.loss(model, batch)
        wrong = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert not wrong, f"`loss` changed {', '.join(wrong[:4])}"
        now = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
        assert now == state, "`loss` left a module in another mode"


CHECKS = (
    every_term_is_a_sum_and_a_count,
    cuts_of_a_batch_add_up,
    padding_alone_counts_nothing,
    weights_count,
    state_goes_round,
    the_model_is_left_as_it_was,
)
