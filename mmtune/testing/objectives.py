"""Checks of objectives: a sum and its weight, the same however a batch is cut, nothing for padding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtune.collate import collate
from mmtune.model import MultimodalModel
from mmtune.objectives.base import Objective, ObjectiveConfig
from mmtune.testing import _pocket
from mmtune.types import IGNORE, Batch, Example

LENGTHS = (9, 5, 12, 7)
"""Tokens of the examples of a batch."""


def make(cls: type[Objective], settings: ObjectiveConfig) -> Objective:
    """An objective, asked of the language model that ships with mmtune."""
    return cls(settings)


def examples(weighted: bool = False) -> list[Example]:
    """Texts at random; the first three tokens of each carry no label. Weights, where wanted, differ by example."""
    g = torch.Generator().manual_seed(0)
    made = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(20, 60, (length + 1,), generator=g)
        labels = torch.cat([torch.full((3,), IGNORE), tokens[4:]])
        weights = (labels != IGNORE).float() * (1 + number / 2) if weighted else None
        made.append(Example(f"test/{number}", tokens[:-1], labels, weights=weights))
    return made


def text_model() -> MultimodalModel:
    """The whole language model open, so that a gradient can be seen."""
    model = _pocket.text_model()
    model.llm.requires_grad_(True)
    return model


def asked(objective: Objective, model: MultimodalModel, batch: Batch) -> tuple[Tensor, float, Tensor]:
    """Loss, weight, and the gradient of all parameters in one row."""
    model.zero_grad()
    loss, weight = objective.loss(model, batch)
    loss.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return (
        loss.detach(),
        weight,
        torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]),
    )


def a_sum_and_its_weight(objective: Objective) -> None:
    """float32 scalar with gradient, and a finite weight that is not negative."""
    model = text_model()
    objective.check(model)
    loss, weight = objective.loss(model, collate([[one] for one in examples()], model.llm.tokenizer.pad))
    assert loss.shape == () and loss.dtype == torch.float32, f"a loss of {loss.dtype} {list(loss.shape)}"
    assert torch.isfinite(loss) and loss.requires_grad, f"a loss of {loss.item()}, gradient {loss.requires_grad}"
    assert math.isfinite(weight) and weight > 0, f"a weight of {weight}"


def cuts_of_a_batch_add_up(objective: Objective) -> None:
    """One row each, packed in one row, or one batch each: the same sum, weight and gradient."""
    model, given = text_model(), examples(objective.weighted)
    pad = model.llm.tokenizer.pad
    whole = asked(objective, model, collate([[one] for one in given], pad))
    alone = [asked(objective, model, collate([[one]], pad)) for one in given]
    cuts = {
        "packed in one row": asked(objective, model, collate([given], pad)),
        "each in a batch of its own": tuple(sum(part) for part in zip(*alone, strict=True)),
    }
    for name, cut in cuts.items():
        for what, one, other in zip(("loss", "weight", "gradient"), whole, cut, strict=True):
            one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
            close = torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
            assert close, f"{what} of a batch differs from that of its examples {name}"


def padding_alone_counts_nothing(objective: Objective) -> None:
    """A rank without a row still runs the model, and adds zero to loss, weight and gradient."""
    model = text_model()
    loss, weight, gradient = asked(objective, model, collate([], model.llm.tokenizer.pad))
    assert loss == 0 and weight == 0, f"loss {loss.item()} and weight {weight} for padding"
    assert not gradient.any(), "a gradient of padding"


def weights_count(objective: Objective) -> None:
    """One that is `weighted` gives twice the sum and twice the weight for twice the weights."""
    if not objective.weighted:
        return
    model, pad = text_model(), 0
    once = collate([[one] for one in examples(True)], pad)
    twice = collate([[one] for one in examples(True)], pad)
    twice.weights *= 2
    (loss, weight, _), (more, double, _) = asked(objective, model, once), asked(objective, model, twice)
    assert math.isclose(double, 2 * weight, rel_tol=1e-6), f"weight {weight}, and {double} for twice the weights"
    torch.testing.assert_close(more, 2 * loss, rtol=1e-4, atol=1e-4)


CHECKS = (a_sum_and_its_weight, cuts_of_a_batch_add_up, padding_alone_counts_nothing, weights_count)
