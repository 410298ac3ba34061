"""Other models of a recipe: frozen, reading the same batches, part of what a run is resumed with; and a teacher."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import seal, store
from mmtune.collate import collate
from mmtune.errors import CheckpointError, ConfigError
from mmtune.frozen_model import FrozenModel
from mmtune.objectives.distill import Config, Distill, forward_kl
from mmtune.recipe import Recipe
from mmtune.training import loop, setup, stepper
from mmtune.training.distributed import Runtime
from tests.training import world

DISTILL = {"name": "distill", "temperature": 2.0, "kl": 0.5}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return world.tree(tmp_path_factory.mktemp("world"), save_every=2)


@pytest.fixture(scope="module")
def teacher(tree, tmp_path_factory):
    """A run of the same parts that learned something."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    loop.train(recipe(tree, {"groups": {"sight": {"lr": 0.05}, "speech": {"lr": 0.05}}}), out, progress="off")
    return out


def recipe(tree, changes=None):
    return config.validate(Recipe, config.merge(tree, changes or {}))


def taught(tree, teacher, changes=None):
    made = {"models": {"teacher": {"run": str(teacher)}}, "streams": {"pictures": {"objective": DISTILL}}}
    return recipe(config.merge(tree, made), changes)


def digests(out):
    files = [*sorted(out.glob("weights/*")), *sorted((out / "state/step-00000008").iterdir())]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def straight(tree, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    assert loop.train(taught(tree, teacher), out, progress="off").finished
    return out


def test_a_teacher_is_learned_from_and_stays_as_it_is(tree, teacher, straight):
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    pictures = [row for row in rows if row["stream"] == "pictures"]
    assert pictures and all(row["loss/pictures/kl"] > 0 for row in pictures)
    for row in pictures:
        both = row["loss/pictures/cross_entropy"] + row["loss/pictures/kl"]
        assert row["loss/pictures"] == pytest.approx(both, rel=1e-6)
    assert not any("loss/words/kl" in row for row in rows), "the other stream has no teacher"
    info = json.loads((straight / "state/step-00000008/run.json").read_text())
    model, _, _ = store.load_run(teacher)
    assert info["facts"]["models"] == {"teacher": store.digest(model.state_dict())}
    store.load_run(straight)  # the model that was trained needs no teacher


def test_a_stopped_run_goes_on_with_its_teacher_to_the_bit(tree, teacher, straight, tmp_path, monkeypatch):
    real, calls = stepper.take_step, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(stepper, "take_step", dies)
    moved = shutil.copytree(teacher, tmp_path / "moved")
    with pytest.raises(KeyboardInterrupt):
        loop.train(taught(tree, teacher), tmp_path / "run", progress="off")
    made = taught(tree, moved)
    assert loop.train(made, tmp_path / "run", resume=True, progress="off").finished, "it may lie elsewhere"
    assert digests(tmp_path / "run") == digests(straight)


def test_another_teacher_is_another_run(tree, teacher, straight, tmp_path):
    other, run = shutil.copytree(teacher, tmp_path / "other"), shutil.copytree(straight, tmp_path / "run")

    def fill(draft):
        for file in (teacher / "weights").glob("*.safetensors"):
            save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, draft / file.name)

    seal.write(other / "weights", fill)
    with pytest.raises(CheckpointError, match=r"(?s)models\.teacher: .*--allow models"):
        loop.train(taught(tree, other), run, resume=True, progress="off")
    assert loop.train(taught(tree, other), run, resume=True, progress="off", allow=["models"]).finished
    half = taught(tree, teacher, {"models": {"teacher": {"dtype": "bfloat16"}}})
    with pytest.raises(CheckpointError, match=r"models\.teacher: "):
        loop.train(half, run, resume=True, progress="off")


def test_a_state_of_before_there_were_other_models(tree, tmp_path):
    loop.train(recipe(tree, {"schedule": {"steps": 4}}), tmp_path / "run", progress="off")
    for state in (tmp_path / "run/state").iterdir():
        info = json.loads((state / "run.json").read_text())
        del info["facts"]["models"], info["facts"]["recipe"]["models"]
        kept = {part.name: part.read_bytes() for part in state.glob("*.safetensors")}

        def fill(draft, kept=kept, info=info):
            for name, data in kept.items():
                (draft / name).write_bytes(data)
            (draft / "run.json").write_text(json.dumps(info))

        seal.write(state, fill)
    assert loop.train(recipe(tree, {"schedule": {"steps": 4}}), tmp_path / "run", resume=True, progress="off").finished


def test_a_teacher_that_is_not_there(tree, teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"streams\.pictures\.objective: no model tutor in .*there: teacher"):
        taught(tree, teacher, {"streams": {"pictures": {"objective": {"teacher": "tutor"}}}})
    with pytest.raises(CheckpointError, match=r"models\.teacher: .*nowhere has no recipe\.yaml") as caught:
        setup.build(taught(tree, tmp_path / "nowhere"), None, Runtime("cpu"))
    assert "models.teacher.run=FOLDER" in caught.value.hint


def fewer_tokens(tree, folder):
    connector = {"name": "pool", "time": 1, "height": 1, "width": 1, "hidden": 8}
    return {"model": {"branches": {"sight": {"connector": connector}}}}


def other_branch(tree, folder):
    held = tree["model"]["branches"]["sight"]
    return {
        "model": {"branches": {"sight": None, "look": held}},
        "groups": {"sight": {"match": ["branches.look.connector.*"]}},
    }


def other_crop(tree, folder):
    return {"model": {"branches": {"sight": {"encoder": {"mean": [0.1, 0.1, 0.1], "std": [1.0, 1.0, 1.0]}}}}}


def other_words(tree, folder):
    made = shutil.copytree(tree["model"]["llm"]["folder"], folder / "llm")
    file = made / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    (first, second) = [word for word in vocabulary if len(word) == 1 and word.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(told))
    return {"model": {"llm": {"folder": str(made)}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fewer_tokens, "branch sight: image is prepared in another way, or has another number of tokens"),
        (other_branch, "no branch sight; there are look"),
        (other_crop, "branch sight: image is prepared in another way"),
        (other_words, "another tokenizer"),
    ],
)
def test_a_teacher_that_cannot_read_the_same_batches(tree, tmp_path, change, said):
    changes = change(tree, tmp_path)
    made = config.merge(tree, changes)
    made["model"]["branches"] = {n: b for n, b in made["model"]["branches"].items() if b is not None}
    if change is fewer_tokens:
        made["model"]["branches"]["sight"]["connector"] = changes["model"]["branches"]["sight"]["connector"]
    other = config.validate(Recipe, made)
    store.save_run(tmp_path / "other", models.build(other.model), other)
    with pytest.raises(ConfigError, match=f"(?s)models.teacher, the run .*cannot read what this run reads.*{said}"):
        setup.build(taught(tree, tmp_path / "other"), None, Runtime("cpu"))


def test_a_teacher_has_a_precision_of_its_own(tree, teacher):
    made = taught(tree, teacher, {"models": {"teacher": {"dtype": "bfloat16"}}})
    built = setup.build(made, None, Runtime("cpu"))
    held = built.others.models["teacher"]
    assert {p.dtype for p in held.llm.parameters()} == {torch.bfloat16} and not held.training
    assert {p.dtype for p in built.model.llm.parameters()} == {torch.float32}
    _, (batch,) = next(iter(built.loader.steps()))
    built.loader.close()
    full = setup.build(taught(tree, teacher), None, Runtime("cpu")).others.models["teacher"]
    rough, exact = held.logits(held(batch)[0]), full.logits(full(batch)[0])
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):  # as in a run of half precision
        bare = setup.build(taught(tree, teacher, {"models": {"teacher": {"dtype": "float32"}}}), None, Runtime("cpu"))
        assert torch.equal(bare.others.models["teacher"](batch), full(batch))


def test_a_teacher_that_moves_stops_the_run(tree, teacher, tmp_path, monkeypatch):
    real = Distill.loss

    def nudge(self, model, batch):
        with torch.no_grad():
            next(self.teacher.parameters()).view(-1)[0] += 1e-3
        return real(self, model, batch)

    monkeypatch.setattr(Distill, "loss", nudge)
    with pytest.raises(CheckpointError, match=r"frozen weights of models\.teacher changed while training"):
        loop.train(taught(tree, teacher), tmp_path / "run", progress="off")


def test_features_are_kept_for_both_or_for_neither(tree, teacher, straight, tmp_path, capsys):
    cached = {"run": {"feature_cache": str(tmp_path / "features")}}
    loop.train(taught(tree, teacher, cached), tmp_path / "run", progress="lines")
    assert "features: " in capsys.readouterr().out
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            for out in (straight, tmp_path / "run")]  # fmt: skip
    for one, other in zip(*rows, strict=True):  # features are stored in two bytes
        assert one.get("loss/pictures/kl", 0) == pytest.approx(other.get("loss/pictures/kl", 0), rel=0.02, abs=1e-4)
    weights = str(shutil.copytree(tree["model"]["branches"]["sight"]["encoder"]["weights"], tmp_path / "tower"))
    for file in (tmp_path / "tower").glob("*.safetensors"):
        save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    other = recipe(tree, {"model": {"branches": {"sight": {"encoder": {"weights": weights}}}}})
    store.save_run(tmp_path / "other", models.build(other.model), other)
    loop.train(taught(tree, tmp_path / "other", cached), tmp_path / "second", progress="lines")
    assert "features of sight are not kept: model teacher has another encoder there" in capsys.readouterr().out


def test_divergence_in_numbers():
    ours, theirs = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[2.0, 0.0, 0.5, 9.0]])
    for temperature in (1.0, 3.0):
        q = torch.softmax(ours[0].double() / temperature, 0)
        p = torch.softmax(theirs[0, :3].double() / temperature, 0)
        wanted = temperature**2 * sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
        assert float(forward_kl(ours, theirs, temperature)) == pytest.approx(wanted, rel=1e-5)
    assert float(forward_kl(ours, ours + 7.0)) == pytest.approx(0, abs=1e-6)


def test_pieces_of_the_tokens_add_up(tree, teacher, monkeypatch):
    built = setup.build(taught(tree, teacher), None, Runtime("cpu"))
    _, (batch,) = next(iter(built.loader.steps()))
    built.loader.close()
    built.model.eval()
    objective = Distill(Config(temperature=2.0, cross_entropy=0.0))
    objective.begin(built.model, built.groups, built.others.models)

    def gradient():
        built.model.zero_grad()
        sums = objective.loss(built.model, batch)
        (sums["cross_entropy"] + sums["kl"]).backward()
        return float(sums["kl"].detach()), [p.grad.clone() for _, p in built.groups["sight"]]

    whole, at_once = gradient()
    monkeypatch.setattr(models, "LOGITS", 3 * built.model.llm.tokenizer.vocabulary)
    pieces, in_pieces = gradient()
    assert whole > 0 and pieces == pytest.approx(whole, rel=1e-5)
    for one, other in zip(at_once, in_pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    padding = objective.loss(built.model, collate([], built.model.llm.tokenizer.pad, "pictures"))
    assert [float(value.detach()) for value in padding.values()] == [0, 0]


def test_a_frozen_model_never_learns(tree, teacher):
    model, _, _ = store.load_run(teacher)
    model.requires_grad_(True)
    frozen = FrozenModel(model).train()
    assert not frozen.training and not any(module.training for module in frozen.modules())
    hidden = frozen(collate([], model.llm.tokenizer.pad, "pictures"))
    assert not hidden.requires_grad and not frozen.logits(hidden[0]).requires_grad
    assert not frozen.token_log_probs(hidden[0], torch.zeros(len(hidden[0]), dtype=torch.int64)).requires_grad
