"""Weights of turns in the loss: what a token counts is what its turn says, however samples are packed and steps cut."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmtune.collate import collate
from mmtune.data import _serialize
from mmtune.errors import ShapeError
from mmtune.model import build
from mmtune.objectives.cross_entropy import Config, CrossEntropy
from mmtune.training.distributed import Runtime
from mmtune.training.nonfinite import run_alone
from mmtune.training.optim import GroupOptimizer
from mmtune.training.split_batch import padding, singles, split_batch
from mmtune.training.step import take_step
from mmtune.types import IGNORE, Batch, Example, Sample, Turn
from tests.llm import tiny
from tests.losses import Streams, cross_entropy
from tests.test_model import processor, section

ANSWERS = ("a red circle", "two", "a blue square and a red one", "yes")
WEIGHTS = ((0.5, 1), (0, 3), (1, 1), (0.125, 0))
"""What the two answers of each sample count."""
ASKED = Streams(CrossEntropy(Config()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("llm"))


def make(folder):
    torch.manual_seed(0)
    model = build(section(folder, branches={}))
    for name, parameter in model.llm.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def sample(number, weights):
    """Two exchanges with answers of these weights."""
    first, second = (Turn("assistant", (ANSWERS[(number + more) % 4],), weights[more]) for more in (0, 1))
    return Sample(f"{number}", (Turn("user", ("what is this",)), first, Turn("user", ("and now",)), second), "s")


def examples(model, weights=WEIGHTS):
    one = processor(model)
    return [one.example(sample(number, each)) for number, each in enumerate(weights)]


def batches(found, rows, accumulate=1):
    """Examples by row, and rows in so many micro-steps."""
    parts = [[[found[place] for place in row] for row in rows[step::accumulate]] for step in range(accumulate)]
    return [collate(part, stream="s") for part in parts]


def optimizers(model):
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {"norms": GroupOptimizer("norms", named, lr=0.05, weight_decay=0.0)}


def step(model, given):
    """One step, and the weights behind it."""
    outcome = take_step(model, given, optimizers(model), {"s": ["norms"]}, {"norms": 1.0}, Runtime("cpu"), ASKED)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return outcome, trained


def by_hand(model, weights=WEIGHTS):
    """Mean loss from the logits of each sample alone; every turn's text once more by itself, to find its tokens."""
    one, total, whole = processor(model), 0.0, 0.0
    for number, each in enumerate(weights):
        for turn in (0, 1):
            only = [1.0 if place == turn else 0.0 for place in (0, 1)]
            example = one.example(sample(number, only))
            batch = collate([[example]], width=len(example))
            nll = F.cross_entropy(model.llm.head(model(batch))[0], batch.labels[0], reduction="none").double()
            learned = batch.labels[0] != IGNORE
            total += each[turn] * float(nll[learned].detach().sum())
            whole += each[turn] * int(learned.sum())
    return total / whole, whole


LAYOUTS = {
    "one row": ([[0, 1, 2, 3]], 1),
    "a row each": ([[0], [1], [2], [3]], 1),
    "two rows": ([[0, 3], [1, 2]], 1),
    "two micro-steps": ([[0, 3], [1, 2]], 2),
    "four micro-steps": ([[0], [1], [2], [3]], 4),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_is_the_weighted_mean(folder, layout):
    model = make(folder)
    expected, whole = by_hand(model)
    reference, trained = step(make(folder), batches(examples(model), *LAYOUTS["one row"]))
    outcome, others = step(model, batches(examples(model), *layout))
    assert outcome.weight == whole and outcome.supervised == reference.supervised
    assert outcome.loss == pytest.approx(expected, rel=1e-5)
    assert max(float((trained[name] - others[name]).abs().max()) for name in trained) < 2e-6


@pytest.mark.parametrize("pieces", [2, 3, 4, 6])
def test_a_batch_that_is_cut_for_want_of_memory(folder, pieces):
    model = make(folder)
    found = examples(model)
    whole, trained = step(make(folder), batches(found, [[0], [1, 2], [3]]))
    parts = split_batch(batches(found, [[0], [1, 2], [3]])[0], pieces)
    outcome, others = step(model, parts)
    assert outcome.loss == pytest.approx(whole.loss, rel=1e-6) and outcome.weight == whole.weight
    assert max(float((trained[name] - others[name]).abs().max()) for name in trained) < 2e-6


def test_samples_alone_have_their_weights(folder):
    model = make(folder)
    found = examples(model)
    ones = singles(batches(found, [[0, 1], [2, 3]])[0])
    for example, one in zip(found, ones, strict=True):
        assert torch.equal(one.labels[0], example.labels)
        wanted = (example.labels != IGNORE).float() if example.weights is None else example.weights
        assert torch.equal(one.weights[0], wanted)
    losses, counts = zip(*(cross_entropy(model, one) for one in ones), strict=True)
    together, count = cross_entropy(model, batches(found, [[0, 1], [2, 3]])[0])
    torch.testing.assert_close(sum(losses), together)
    assert sum(counts) == count


def test_a_sample_tried_alone_is_the_mean_by_weight(folder):
    """Also where it weighs less than one token."""
    from types import SimpleNamespace

    model = make(folder)
    train_plan = SimpleNamespace(
        objectives=ASKED, gradient=SimpleNamespace(name="backward"),
        groups_by_stream={"s": ["norms"]}, optimizers=optimizers(model),
    )  # fmt: skip
    light = run_alone(model, batches(examples(model, [(1e-3, 1e-3)]), [[0]])[0], train_plan, Runtime("cpu"))
    plain = run_alone(model, batches(examples(model, [(1, 1)]), [[0]])[0], train_plan, Runtime("cpu"))
    assert light.loss == pytest.approx(plain.loss, rel=1e-5)
    assert light.norms["norms"] == pytest.approx(plain.norms["norms"], rel=1e-4)


def test_weights_of_one_cost_nothing(folder):
    """No tensor of weights is made, and the loss is that of a batch that knows none, to the bit."""
    model = make(folder)
    for ones in ([(1, 1)] * 4, [(1.0, 0), (0.0, 1), (1, 1.0), (0, 1)]):
        found = examples(model, ones)
        assert all(example.weights is None for example in found)
        batch = batches(found, [[0, 1, 2, 3]])[0]
        assert batch.weights is None and padding(batch).weights is None
        loss, count = cross_entropy(model, batch)
        logits = model.llm.head(model(batch))
        wanted = batch.labels != IGNORE
        assert torch.equal(loss, F.cross_entropy(logits[wanted], batch.labels[wanted], reduction="sum"))
        assert count == int(wanted.sum())


def test_zero_is_no_label_and_half_is_half(folder):
    model = make(folder)
    one = processor(model)
    both, second = (one.example(sample(0, weights)) for weights in ((1, 1), (0, 1)))
    assert int((second.labels != IGNORE).sum()) < int((both.labels != IGNORE).sum())
    half = one.example(sample(0, (0, 0.5)))
    assert torch.equal(half.labels, second.labels)
    assert torch.equal(half.weights, torch.where(second.labels == IGNORE, 0.0, 0.5))


def test_beside_samples_without_weights(folder):
    """A row of both kinds: a label counts 1 where nothing is said."""
    model = make(folder)
    plain, half = examples(model, [(1, 1), (0.5, 0.5)])
    batch = batches([plain, half], [[0, 1]])[0]
    size = len(plain)
    assert torch.equal(batch.weights[0, :size], (plain.labels != IGNORE).float())
    assert set(batch.weights[0, size:].tolist()) == {0.0, 0.5}
    assert bool(((batch.weights > 0) == (batch.labels != IGNORE)).all())


def test_pieces_of_the_head_have_their_weights(folder, monkeypatch):
    from mmtune import model as module

    model = make(folder)
    batch = batches(examples(model), [[0, 1, 2, 3]])[0]
    whole, weight = cross_entropy(model, batch)
    monkeypatch.setattr(module, "LOGITS", 3 * model.llm.tokenizer.vocabulary)
    pieces, same = cross_entropy(model, batch)
    torch.testing.assert_close(pieces, whole)
    assert weight == same


def test_weights_go_from_worker_to_rank(folder):
    for example in examples(make(folder)):
        back = _serialize.unpack(*_serialize.load(_serialize.dump(*_serialize.pack(example))))
        assert torch.equal(back.labels, example.labels)
        assert (back.weights is None) == (example.weights is None)
        assert example.weights is None or torch.equal(back.weights, example.weights)
    moved = batches(examples(make(folder)), [[0, 1]])[0].to("cpu")
    assert moved.weights is not None


def test_an_example_that_is_cut_keeps_the_weights_of_what_is_left(folder):
    model = make(folder)
    one = processor(model)
    whole = one.example(sample(0, (0.5, 2)))
    one.length, one.too_long = len(whole) - 3, "cut"
    short = one.example(sample(0, (0.5, 2)))
    assert len(short) == one.length
    assert torch.equal(short.weights[:-1], whole.weights[: len(short) - 1]) and short.weights[-1] == 0


@pytest.mark.parametrize("weight", [-1, -0.5, float("nan"), float("inf"), True, "1", None, 1e-30, 1e30])
def test_what_is_no_weight_makes_no_turn(weight):
    with pytest.raises(ShapeError, match="weight"):
        Turn("assistant", ("x",), weight)


def test_weights_have_the_shape_of_the_tokens():
    tokens = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ShapeError, match="weights"):
        Example("x", tokens, tokens, weights=torch.zeros(2))
    row = tokens[None]
    with pytest.raises(ShapeError, match="weights"):
        Batch(row, row, row, row.int(), weights=torch.zeros(1, 2))


CHILD = """
import json, sys
from tests.training.test_weights import *
model = make(sys.argv[1])
found = examples(model)
runtime = Runtime("cpu")
answers = []
for rows in ([[0, 1], [2, 3]], [[0], [1, 2, 3]], [[0, 1, 2, 3], []]):
    model = make(sys.argv[1])
    mine = [found[place] for place in rows[runtime.rank]]
    batch = collate([mine] if mine else [], stream="s")
    outcome = take_step(model, [batch], optimizers(model), {"s": ["norms"]}, {"norms": 1.0}, runtime, ASKED)
    trained = [p.detach().double().sum().item() for p in model.parameters() if p.requires_grad]
    answers.append([outcome.loss, outcome.weight, outcome.supervised, trained])
print(json.dumps(answers))
runtime.close()
"""


def test_two_ranks_are_one(folder):
    from tests.training.test_step import children

    model = make(folder)
    whole, trained = step(model, batches(examples(model), [[0, 1, 2, 3]]))
    sums = [tensor.double().sum().item() for tensor in trained.values()]
    outputs = [json.loads(output.strip().splitlines()[-1]) for output in children(CHILD, [str(folder)])]
    assert outputs[0] == outputs[1]
    for loss, weight, supervised, others in outputs[0]:
        assert loss == pytest.approx(whole.loss, rel=1e-6)
        assert (weight, supervised) == (whole.weight, whole.supervised)
        assert others == pytest.approx(sums, rel=1e-5)


def test_a_step_without_any_weight_moves_nothing(folder):
    model = make(folder)
    batch = batches(examples(model), [[0]])[0]
    nothing = replace(batch, labels=batch.labels * 0 + IGNORE, weights=batch.weights * 0)
    outcome, _ = step(model, [nothing])
    assert not outcome.updated and outcome.supervised == 0


def test_an_objective_that_knows_no_weights_stops_the_run(folder):
    """Rather than to leave them out without a word; records without any are its business as ever."""
    from mmtune.errors import ConfigError
    from mmtune.objectives.base import Objective, ObjectiveConfig, label_count

    class Plain(Objective):
        def counts(self, batch):
            return {"plain": label_count(replace(batch, weights=None))}

        def loss(self, model, batch):
            return {"plain": cross_entropy(model, replace(batch, weights=None))[0]}

    model = make(folder)
    more = {"objectives": {"s": Plain(ObjectiveConfig(name="plain"))}}
    given = {"groups_by_stream": {"s": ["norms"]}, "lr_multipliers": {"norms": 1.0}, "runtime": Runtime("cpu")}
    plain = batches(examples(model, [(1, 1)]), [[0]])
    assert take_step(model, plain, optimizers(model), **given, **more).updated
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="stream s has records with weights.*plain knows none"):
        take_step(model, batches(examples(model), [[0, 1]]), optimizers(model), **given, **more)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
