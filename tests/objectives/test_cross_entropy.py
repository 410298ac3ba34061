"""Cross entropy with its z-loss and label smoothing: the formulas, by term, and what a run logs of them."""

import json
from dataclasses import replace

import pytest
import torch

from mmtune import config
from mmtune import model as model_module
from mmtune.errors import ConfigError
from mmtune.objectives.cross_entropy import Config, CrossEntropy, token_sums
from mmtune.testing import objectives as checks
from mmtune.training import loop
from tests.training import world


def logits():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(6, 11, generator=generator), torch.randint(0, 11, (6,), generator=generator)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])])
def test_the_formulas(weights):
    x, labels = logits()
    each = torch.ones(6) if weights is None else weights
    z = x.exp().sum(-1).log()
    nats = z - x[torch.arange(6), labels]
    torch.testing.assert_close(token_sums(x, labels, weights), (each * nats).sum()[None])
    both = token_sums(x, labels, weights, z_loss=0.25)
    torch.testing.assert_close(both, torch.stack([(each * nats).sum(), 0.25 * (each * z**2).sum()]))
    spread = 0.9 * nats + 0.1 * (z - x.mean(-1))
    torch.testing.assert_close(token_sums(x, labels, weights, label_smoothing=0.1), (each * spread).sum()[None])


def test_zero_leaves_the_loss_as_it_is_to_the_bit():
    x, labels = logits()
    assert torch.equal(token_sums(x, labels)[0], torch.nn.functional.cross_entropy(x, labels, reduction="sum"))


@pytest.mark.parametrize(
    "options", [{"z_loss": 0.01}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, options):
    check(CrossEntropy(Config(**options)))


@pytest.mark.parametrize("weighted", [False, True])
def test_pieces_of_the_head_are_the_whole(monkeypatch, weighted):
    model, objective = checks.text_model(), CrossEntropy(Config(z_loss=0.05, label_smoothing=0.1))
    batch = checks.collate([checks.examples(weighted)], model.llm.tokenizer.pad)
    whole = checks.asked(objective, model, batch)
    monkeypatch.setattr(model_module, "LOGITS", 3 * model.llm.tokenizer.vocabulary)
    pieces = checks.asked(objective, model, batch)
    torch.testing.assert_close(pieces[0], whole[0])
    torch.testing.assert_close(pieces[2], whole[2], atol=1e-4, rtol=1e-4)


def test_the_z_loss_pulls_the_denominator_to_one():
    model = checks.text_model()
    batch = checks.collate([checks.examples()], model.llm.tokenizer.pad)
    objective = CrossEntropy(Config(z_loss=1.0))
    before = float(objective.loss(model, batch)["z_loss"].detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        objective.loss(model, batch)["z_loss"].backward()
        optimizer.step()
    assert float(objective.loss(model, batch)["z_loss"].detach()) < 0.9 * before


@pytest.mark.parametrize("options", [{"z_loss": -1}, {"label_smoothing": 1}, {"label_smoothing": -0.1}])
def test_what_is_no_weight_is_refused(options):
    with pytest.raises(ConfigError):
        config.validate(Config, {"name": "cross_entropy", **options})


def test_a_run_logs_each_term_and_validates_by_it(tmp_path):
    """A stream with a z-loss has a row for each of its terms; one without has none. The loss is their sum."""
    changes = {
        "streams": {"words": {"objective": {"name": "cross_entropy", "z_loss": 1e-3}}},
        "eval": {"every": 4, "fraction": 0.2},
    }
    loop.train(world.recipe(tmp_path / "world", changes), tmp_path / "run", progress="off")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    words = [row for row in rows if "loss/words" in row]
    for row in words:
        total = row["loss/words/cross_entropy"] + row["loss/words/z_loss"]
        assert row["loss/words"] == pytest.approx(total, rel=1e-6) and row["loss/words/z_loss"] > 0
    assert words and not any("loss/pictures/cross_entropy" in row for row in rows)
    held = [row for row in rows if "eval/words/loss" in row]
    assert held and "eval/pictures/loss/cross_entropy" not in held[0]
    for row in held:
        total = row["eval/words/loss/cross_entropy"] + row["eval/words/loss/z_loss"]
        assert row["eval/words/loss"] == pytest.approx(total, rel=1e-6)


def test_log_probs_of_tokens_are_those_of_the_head(monkeypatch):
    model = checks.text_model()
    batch = checks.collate([[one] for one in checks.examples()], model.llm.tokenizer.pad)
    hidden, wanted = model(batch), batch.labels != checks.IGNORE
    expected = model.llm.head(hidden).float().log_softmax(-1)[wanted].gather(1, batch.labels[wanted][:, None])[:, 0]
    found = model.token_log_probs(hidden[wanted], batch.labels[wanted])
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32 and found.shape == (int(wanted.sum()),)
    monkeypatch.setattr(model_module, "LOGITS", 4 * model.llm.tokenizer.vocabulary)
    pieces = model.token_log_probs(hidden[wanted], batch.labels[wanted])
    torch.testing.assert_close(pieces, expected)
    (one,) = torch.autograd.grad(found.sum(), hidden, retain_graph=True)
    (other,) = torch.autograd.grad(pieces.sum(), hidden)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    nothing = model.token_log_probs(hidden[0, :0], batch.labels[0, :0])
    assert nothing.shape == (0,) and nothing.requires_grad


def test_a_batch_of_no_label_gives_every_term():
    model, objective = checks.text_model(), CrossEntropy(Config(z_loss=0.5))
    batch = checks.collate([checks.examples()], model.llm.tokenizer.pad)
    empty = replace(batch, labels=torch.full_like(batch.labels, checks.IGNORE))
    assert objective.counts(empty) == {"cross_entropy": 0, "z_loss": 0}
    sums = objective.loss(model, empty)
    assert list(sums) == ["cross_entropy", "z_loss"] and all(float(value.detach()) == 0 for value in sums.values())
