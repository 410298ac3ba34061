"""Direct preference optimization: the loss against liger-kernel and the paper's formula, the reference, and runs."""

from __future__ import annotations

import copy
import json
import math
import shutil
from contextlib import suppress

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

from mmtune import config, registry, sequences, testing
from mmtune.collate import collate
from mmtune.data import index, ledger
from mmtune.errors import CheckpointError, ConfigError, DataError
from mmtune.objectives._preference import dpo
from mmtune.recipe import Recipe
from mmtune.reference import Reference
from mmtune.testing import objectives as checks
from mmtune.training import loop, setup, terms
from mmtune.training.distributed import Runtime
from mmtune.training.estimate import estimate
from mmtune.training.replay import replay
from mmtune.types import IGNORE
from tests.training import test_resume, world
from tests.training.test_replay import poison

DPO = registry.find("objectives", "dpo")


def made(**options):
    return testing.make("objectives", "dpo", options)


# ----------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_by_hand():
    """Equation 7 of the paper, written out: the log of the odds that the preferred answer wins."""
    chosen, rejected = torch.tensor([0.0, 2.0, -3.0]), torch.tensor([0.0, -1.0, 4.0])
    wins = [1 / (1 + math.exp(-0.5 * x)) for x in (0.0, 3.0, -7.0)]
    assert dpo(chosen, rejected, 0.5).tolist() == pytest.approx([-math.log(p) for p in wins])
    smoothed = [-0.9 * math.log(p) - 0.1 * math.log(1 - p) for p in wins]
    assert dpo(chosen, rejected, 0.5, 0.1).tolist() == pytest.approx(smoothed, rel=1e-5)


@pytest.mark.parametrize("sft", [0.0, 0.7])
def test_loss_rewards_and_gradient_are_those_of_liger_kernel(sft):
    """From the hidden states of two models, padded, over the whole vocabulary there; packed and in one model here."""
    objective, model = made(beta=0.3, sft_weight=sft), checks.text_model()
    reference, given = copy.deepcopy(model).requires_grad_(False), checks.examples(sequences=objective.sequences)
    checks.begun(objective, model)
    batch = collate([given[:3], given[3:]], model.llm.tokenizer.pad)
    sums, counts, gradient = checks.asked(objective, model, batch)
    loss = terms.total(terms.lost(objective, sums), terms.lost(objective, counts)) / counts["dpo"]

    answers = [list(zip(e.tokens.split(e.sequences), e.labels.split(e.sequences), strict=True)) for e in given]
    texts = [answer[0] for answer in answers] + [answer[1] for answer in answers]  # preferred ones first
    tokens, labels = (
        torch.nn.utils.rnn.pad_sequence([text[part] for text in texts], batch_first=True, padding_value=fill)
        for part, fill in enumerate((0, IGNORE))
    )
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    own, other = (one.llm.forward(one.llm.embed(tokens), places, None) for one in (model, reference))
    weights = [one.llm.model.get_output_embeddings().weight for one in (model, reference)]
    theirs = LigerFusedLinearDPOLoss(beta=0.3, alpha=sft, compute_nll_loss=sft > 0, compiled=False)
    model.zero_grad()
    found, (*_, chosen, rejected) = theirs(weights[0], own, labels, ref_input=other, ref_weight=weights[1])
    found.backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert float(loss) == pytest.approx(found.item(), rel=1e-4) and abs(float(loss) - math.log(2)) > 1e-3
    assert float(sums["chosen"]) == pytest.approx(float(chosen.sum()), rel=1e-3)
    assert float(sums["rejected"]) == pytest.approx(float(rejected.sum()), rel=1e-3)
    torch.testing.assert_close(gradient / counts["dpo"], grads, rtol=1e-3, atol=1e-4 * float(grads.abs().max()))


# ------------------------------------------------------------------------------------------------------ the reference


def both(model, batch, reference):
    with reference.swapped_in(model):
        return sequences.log_probs(model, batch)


def groups_of(model):
    return {"all": [(name, p) for name, p in model.named_parameters() if p.requires_grad]}


def test_a_reference_says_what_the_model_said_whatever_has_moved_since():
    model = checks.text_model()
    batch = collate([checks.examples(sequences=2)], model.llm.tokenizer.pad)
    reference = Reference(groups_of(model))
    with torch.no_grad():
        at_first = sequences.log_probs(model, batch)
    assert torch.equal(both(model, batch, reference), at_first)
    checks.moved(model)
    with torch.no_grad():
        now = sequences.log_probs(model, batch)
    assert torch.equal(both(model, batch, reference), at_first) and not torch.allclose(now, at_first)
    with torch.no_grad():
        assert torch.equal(sequences.log_probs(model, batch), now)


def test_weights_come_back_when_a_pass_fails():
    model = checks.text_model()
    reference = Reference(groups_of(model))
    checks.moved(model)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyError), reference.swapped_in(model):
        assert not model.training
        raise KeyError
    assert model.training and all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_pass_of_the_reference_leaves_the_gradient_of_autocast_alone():
    """Autocast keeps weights in two bytes beside the real ones; without gradient, and of other numbers, they are no
    good for the pass that follows."""
    model, objective = checks.text_model(), made()
    checks.begun(objective, model)
    batch = collate([checks.examples(sequences=objective.sequences)], model.llm.tokenizer.pad)
    with objective._reference.swapped_in(model), torch.autocast("cpu", torch.bfloat16):
        reference = sequences.log_probs(model, batch)
    grads = []
    for apart in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if apart:
                chosen, rejected = sequences.pairs(sequences.log_probs(model, batch) - reference)
                loss = dpo(chosen, rejected, 0.1).sum()
            else:
                loss = objective.loss(model, batch)["dpo"]
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(grads[1][name] is not None and torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_a_reference_of_another_model_is_refused():
    model = checks.text_model()
    reference = Reference(groups_of(model))
    name, tensor = next(iter(reference.state().items()))
    for wrong in ({}, {**reference.state(), name: tensor[:1]}, {**reference.state(), "x": tensor}):
        with pytest.raises(CheckpointError):
            reference.load(wrong)


def test_log_probs_of_a_sequence_are_the_same_wherever_it_is_packed():
    model, given = checks.text_model(), checks.examples(sequences=2)
    with torch.no_grad():
        packed = sequences.log_probs(model, collate([given[:3], given[3:]]))
        alone = torch.cat([sequences.log_probs(model, collate([[one]])) for one in given])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert sequences.tokens(collate([given[:1]])) == [6, 7] and sequences.tokens(collate([])) == []


# --------------------------------------------------------------------------------------------------------------- runs


def shard(folder, number=16, first=0):
    """Pictures with their colour as the preferred answer, and another colour as the other one."""
    members, names = {}, list(world.COLOURS)
    for place in range(first, first + number):
        key, colour, other = f"{place:06d}", names[place % 4], names[(place + 1) % 4]
        facts = {"image": f"{key}.png", "question": "what colour is it?", "chosen": colour, "rejected": other}
        members[f"{key}.png"], members[f"{key}.json"] = world.png(colour, place), json.dumps(facts).encode()
    folder.mkdir(parents=True, exist_ok=True)
    world.write_tar(folder / "pairs.tar", members)
    index.index_shards([str(folder / "pairs.tar")])
    return str(folder / "pairs.tar")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Pairs train the connector, and texts the norms of the language model."""
    folder = tmp_path_factory.mktemp("dpo")
    made = world.tree(folder, save_every=3, batch_tokens=192)
    made["streams"]["pictures"] |= {"data": [shard(folder / "pairs")], "format": "preference", "objective": "dpo"}
    made["groups"]["sight"]["lr"] = 1e-2
    made["eval"] = {
        "every": 4, "streams": {"val": {"data": [shard(folder / "held", 8, 40)], "like": "pictures"}},
        "best": "val/accuracy",
    }  # fmt: skip
    return made


def recipe(tree, **changes):
    return config.validate(Recipe, config.merge(tree, changes))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert loop.train(recipe(tree, schedule={"steps": 24}), out, progress="off").finished
    return out


def test_the_first_step_is_log_2_and_the_margin_rises(run):
    steps = [row for row in rows(run) if "loss/pictures" in row]
    assert steps[0]["loss/pictures"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(steps[0]["pictures/margin"]) < 1e-5
    assert steps[-1]["pictures/margin"] > 0.1 and steps[-1]["loss/pictures"] < 0.65
    assert steps[-1]["pictures/accuracy"] > 0.7 and "pictures/accuracy" not in next(
        r for r in rows(run) if "loss/words" in r
    )
    assert all("loss/pictures/dpo" not in row for row in steps)  # one term, so that it is the loss


def test_held_out_pairs_are_measured_and_choose_the_best_state(run):
    judged = [row for row in rows(run) if "eval/val/accuracy" in row]
    assert [row["step"] for row in judged] == [4, 8, 12, 16, 20, 24] and judged[-1]["eval/val/samples"] == 8
    assert judged[-1]["eval/val/margin"] > judged[0]["eval/val/margin"]
    assert (run / "best" / "weights").is_dir()


def test_the_reference_is_in_a_state_and_is_what_the_run_began_with(run, tree):
    held = test_resume.state(run, 24)
    at_first = setup.build(recipe(tree), None, Runtime("cpu")).groups
    began = {f"optimizer.@objective.pictures/{name}": p for named in at_first.values() for name, p in named}
    assert {name for name in held if "@objective" in name} == began.keys() and len(began) > 4
    assert all(torch.equal(held[name], p) for name, p in began.items())
    assert any(not torch.equal(p, held[f"weights/{name.partition('/')[2]}"]) for name, p in began.items())


def test_gone_on_with_from_a_saved_state_it_is_the_same_run(run, tree, tmp_path):
    """The reference is that of the first step, and not of the state."""
    shutil.copytree(run, tmp_path / "run")
    for later in sorted((tmp_path / "run" / "state").iterdir())[1:]:
        shutil.rmtree(later)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-00000021"]
    done = loop.train(recipe(tree, schedule={"steps": 24}), tmp_path / "run", resume=True, progress="off")
    assert done.finished and rows(run)[-1]["step"] == 24
    ours, theirs = test_resume.state(run, 24), test_resume.state(tmp_path / "run", 24)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = ("samples_per_second", "tokens_per_second", "data_wait", "eval/seconds")
    first, second = [
        [{k: v for k, v in row.items() if k not in timed} for row in rows(out)] for out in (run, tmp_path / "run")
    ]
    assert first == second


def test_any_cut_of_a_step_is_the_same_step(tree, tmp_path):
    """Rows of 64 tokens, one after another or all at once."""
    outs = []
    for accumulate, tokens in ((1, 256), (4, 64)):
        outs.append(tmp_path / str(accumulate))
        run = {"accumulate": accumulate, "batch_tokens": tokens}
        loop.train(
            recipe(tree, schedule={"steps": 6}, run=run, eval={"every": 0, "best": None}), outs[-1], progress="off"
        )
    for one, other in zip(*map(rows, outs), strict=True):
        same = [key for key in one if key.startswith(("loss", "pictures", "samples")) and "second" not in key]
        assert {key: one[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-3, abs=1e-5)


def test_a_stream_and_an_objective_that_do_not_go_together(tree, tmp_path):
    asked = {**tree, "eval": {}}
    with pytest.raises(ConfigError, match="2 conversations"):
        changes = {"pictures": {"objective": {"name": "cross_entropy"}}}
        loop.train(recipe(asked, streams=changes), tmp_path / "run", dry_run=True, progress="off")
    with pytest.raises(ConfigError, match="objective dpo takes 2"):
        changes = {"words": {"objective": {"name": "dpo"}}}
        loop.train(recipe(asked, streams=changes), tmp_path / "run", dry_run=True, progress="off")
    with pytest.raises(ConfigError, match="stream val: the format llava"):
        loop.train(
            recipe(tree, eval={"streams": {"val": {"format": {"name": "llava"}}}}), tmp_path / "run", dry_run=True
        )


def test_a_pair_that_is_not_finite_is_named_and_fails_again(tree, tmp_path, monkeypatch):
    poison(monkeypatch)
    changes = {"schedule": {"steps": 4, "warmup": 0}, "run": {"batch_tokens": 192}, "eval": {"every": 0, "best": None}}
    with suppress(DataError):  # for three such steps in a row
        loop.train(recipe(tree, **changes, groups={"speech": {"streams": ["words"]}}), tmp_path / "run", progress="off")
    found = list(ledger.read(tmp_path / "run/skipped.jsonl"))
    guilty = {row["id"] for row in found if row.get("fails_alone")}
    assert guilty and {int(id.rpartition("/")[2]) % 4 for id in guilty} == {3}
    _, trials = replay(tmp_path / "run", device="cpu")
    assert {trial.id for trial in trials if not trial.finite} == guilty


def test_samples_of_another_number_of_conversations_stop_a_step():
    """Where a format from elsewhere does not say what it makes."""
    single, pair = (testing.make("objectives", name) for name in ("cross_entropy", "dpo"))
    for objective, other in ((single, pair), (pair, single)):
        assert terms.counts_of(objective, collate([checks.examples(sequences=objective.sequences)]))
        assert set(terms.counts_of(objective, collate([])).values()) == {0}
        with pytest.raises(ConfigError, match="conversations"):
            terms.counts_of(objective, collate([checks.examples(sequences=other.sequences)]))


def test_a_picture_is_encoded_once_for_both_answers_and_both_models(tree, monkeypatch):
    made = setup.build(recipe(tree), None, Runtime("cpu"))
    encoder = made.model.branches["sight"].encoder
    forward, seen = encoder.forward, []
    monkeypatch.setattr(encoder, "forward", lambda x, frames: seen.append(len(x)) or forward(x, frames))
    batch = next(batch for _, (batch,) in made.loader.steps() if batch.stream == "pictures")
    made.train_plan.objectives["pictures"].loss(made.model, batch)
    assert seen == [len(batch.ids)] and len(batch.slots["sight"]) == 2 * len(batch.ids)


def test_the_copy_is_in_the_estimate_of_memory(tree):
    """Four bytes for each trained number; another stream's objective holds none."""
    built = setup.build(recipe(tree), None, Runtime("cpu"))
    plain = config.merge({**tree, "eval": {}}, {"streams": {"pictures": {"objective": {"name": "cross_entropy"}}}})
    asked = [config.validate(Recipe, one) for one in (tree, plain)]
    with_copy, without = (estimate(built.model, built.groups, {}, 1, one).shape.states for one in asked)
    trained = sum(parameter.numel() for named in built.groups.values() for _, parameter in named)
    assert with_copy - without == 4 * trained
