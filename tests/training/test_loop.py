"""A whole call of `train`: what it refuses, what it writes, how it stops."""

from __future__ import annotations

import io
import itertools
import json
import os
import time

import pytest
import torch
from PIL import Image

from mmtune import config, train
from mmtune.data import ledger
from mmtune.data.loader import Loader
from mmtune.errors import CheckpointError, DataError, ModelError, UsageError
from mmtune.objectives.cross_entropy import CrossEntropy
from mmtune.recipe import Recipe
from mmtune.training import loop, setup, stepper
from mmtune.training import resume as states
from tests.training import world


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return world.recipe(tmp_path_factory.mktemp("loop"))


def changed(recipe, *overrides):
    tree = recipe.model_dump(mode="json")
    for text in overrides:
        tree = config.override(tree, text)
    return config.validate(Recipe, tree)


def test_the_room_is_the_verb(recipe, tmp_path):
    result = train(recipe, tmp_path / "run", progress="off")
    assert (result.step, result.finished, result.code) == (8, True, 0) and 0 < result.loss < 10


def test_said_before_it_starts(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run", progress="lines")
    said = capsys.readouterr().out
    for words in (
        "branches.sight.encoder    (frozen)",
        "samples in each stream: pictures 16, words 16",
        "tokens    at most 1,024",
        "memory    about",
        "training 8/8",
        "done: 8 steps",
        "nothing skipped",
    ):
        assert words in said


def test_dry_run_writes_nothing(recipe, tmp_path):
    result = train(recipe, tmp_path / "run", dry_run=True, progress="off")
    assert result.loss > 0 and not (tmp_path / "run").exists()


def test_dry_run_writes_no_index_either(tmp_path, capsys):
    """The index of a shard that has none is made for the rehearsal alone; one that is out of date stays as it is."""
    fresh = world.recipe(tmp_path)
    for file in (tmp_path / "pictures").glob("*.json"):
        file.unlink()
    touched = sorted((tmp_path / "words").glob("*.tar"))[0]
    os.utime(touched, (1, 1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train(fresh, tmp_path / "run", dry_run=True, progress="lines")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "Nothing was written." in capsys.readouterr().out


def test_a_folder_holds_one_run(recipe, tmp_path):
    train(changed(recipe, "schedule.steps=2"), tmp_path / "run", progress="off")
    with pytest.raises(UsageError, match="holds a run already"):
        train(recipe, tmp_path / "run", progress="off")
    again = train(changed(recipe, "schedule.steps=2"), tmp_path / "run", resume=True, progress="off")
    assert again.finished and again.loss is None


def test_resume_with_another_recipe(recipe, tmp_path):
    train(changed(recipe, "schedule.steps=3"), tmp_path / "run", progress="off")
    other = changed(recipe, "schedule.steps=4", "groups.sight.lr=0.5", "run.workers=1")
    with pytest.raises(CheckpointError) as caught:
        train(other, tmp_path / "run", resume=True, progress="off")
    text = str(caught.value)
    assert "recipe.schedule.steps: 3 -> 4" in text and "recipe.groups.sight.lr: 0.003 -> 0.5" in text
    assert "workers" not in text
    assert train(other, tmp_path / "run", resume=True, progress="off", allow=["recipe"]).step == 4


def test_resume_with_other_groups_leaves_the_folder_as_it_was(recipe, tmp_path):
    run = tmp_path / "run"
    train(changed(recipe, "schedule.steps=2"), run, progress="off")
    before = (run / "recipe.yaml").read_bytes()
    tree = changed(recipe, "schedule.steps=3").model_dump(mode="json")
    tree["groups"]["eyes"] = tree["groups"].pop("sight")
    with pytest.raises(CheckpointError, match="optimizer states of .*sight"):
        train(config.validate(Recipe, tree), run, resume=True, progress="off", allow=["recipe"])
    assert (run / "recipe.yaml").read_bytes() == before


NORMS = (
    "groups.sight.match=[branches.sight.connector.*, llm.model.model.norm*]",
    "groups.speech.match=[llm*_layernorm*]",
)


@pytest.mark.parametrize(
    ("overrides", "words"), [(NORMS, "group 'speech'"), (("model.branches.sight.connector.hidden=24",), "misshapen")]
)
def test_an_allowed_recipe_that_does_not_fit_leaves_the_run_as_it_was(recipe, tmp_path, overrides, words):
    out = tmp_path / "run"
    short = changed(recipe, "schedule.steps=2")
    train(short, out, progress="off")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=words):
        train(changed(short, *overrides), out, resume=True, progress="off", allow=["recipe"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert train(short, out, resume=True, progress="off").finished


def test_what_is_allowed_already_stands_in_the_line_to_type(recipe, tmp_path, monkeypatch):
    train(changed(recipe, "schedule.steps=2"), tmp_path / "run", progress="off")
    monkeypatch.setattr(Loader, "fingerprint", lambda self: {"pictures": "x", "words": "y"})
    with pytest.raises(CheckpointError, match="--allow recipe --allow data") as caught:
        train(recipe, tmp_path / "run", resume=True, progress="off", allow=["recipe"])
    assert "recipe.schedule" not in str(caught.value)


@pytest.mark.parametrize("file", ["recipe.yaml", "base.yaml"])
@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_a_recipe_that_cannot_be_read_is_written_again(recipe, tmp_path, capsys, file, damage):
    out = tmp_path / "run"
    train(changed(recipe, "schedule.steps=2", "run.keep=3"), out, progress="off")
    before = (out / file).read_bytes()
    (out / file).unlink() if damage == "gone" else (out / file).write_text("[")
    (out / "best").mkdir()
    for left in (out, out / "best"):
        (left / f".{file}.draft-1").write_text("half")  # as a kill leaves it
    again = train(changed(recipe, "schedule.steps=2", "run.keep=3"), out, resume=True, progress="lines")
    assert again.finished and (out / file).read_bytes() == before
    assert "it is written again" in capsys.readouterr().out
    assert not list(out.rglob(".*.draft-*")), "nothing half done stays"


def test_a_last_save_that_fails_is_no_finished_run(recipe, tmp_path, monkeypatch, capsys):
    """Whatever the saves before it were allowed to do."""
    real, done = states.save, []

    def full(folder, state, keep=2):
        done.append(state.step)
        if state.step in (2, 4):
            raise CheckpointError("no room")
        return real(folder, state, keep)

    monkeypatch.setattr(states, "save", full)
    four = changed(recipe, "schedule.steps=4", "run.save_every=1", "run.failed_save=go_on")
    with pytest.raises(CheckpointError, match="no room"):
        train(four, tmp_path / "run", progress="lines")
    said = capsys.readouterr().out
    assert done == [1, 2, 3, 4] and "state of step 2 was not saved" in said and "done: 4 steps" not in said
    monkeypatch.undo()
    assert train(four, tmp_path / "run", resume=True, progress="off").finished


def test_resume_with_other_data(recipe, tmp_path, monkeypatch):
    train(changed(recipe, "schedule.steps=2"), tmp_path / "run", progress="off")
    monkeypatch.setattr(Loader, "fingerprint", lambda self: {"pictures": "x", "words": "y"})
    with pytest.raises(CheckpointError, match=r"data\.pictures"):
        train(changed(recipe, "schedule.steps=2"), tmp_path / "run", resume=True, progress="off")


def test_stop_after_minutes(recipe, tmp_path, capsys):
    short = changed(recipe, "run.stop_after_minutes=0.000001")
    result = train(short, tmp_path / "run", progress="lines")
    assert (result.step, result.finished, result.code) == (1, False, 0)
    assert f"mmtune train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert train(recipe, tmp_path / "run", resume=True, progress="off").step == 8


def poisoned(monkeypatch, steps):
    """The loss of these steps is not a number; the samples they held are given back."""
    real, number, held = stepper.take_step, iter(range(1000)), []

    def step(model, batches, *args):
        if next(number) not in steps:
            return real(model, batches, *args)
        held.extend(name for batch in batches for name in batch.ids)
        loss = CrossEntropy.loss
        bad = lambda *given: {term: value * float("nan") for term, value in loss(*given).items()}  # noqa: E731
        monkeypatch.setattr(CrossEntropy, "loss", bad)
        try:
            return real(model, batches, *args)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(stepper, "take_step", step)

    monkeypatch.setattr(stepper, "take_step", step)
    return held


def test_a_clock_that_jumps_moves_nothing(recipe, tmp_path, monkeypatch):
    now, jumps = time.time(), itertools.cycle([86400 * 365, -86400, 0, -86400 * 365])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    limited = changed(recipe, "run.stop_after_minutes=5", "run.save_every=2")
    assert train(limited, tmp_path / "run", progress="off").finished
    rows = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 9)) and time.time() != time.time()


@pytest.mark.parametrize("name", ["state", "weights"])
def test_a_file_where_a_folder_must_be_is_told_before_the_first_step(recipe, tmp_path, name):
    (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError, match=f"{name} is no folder"):
            train(recipe, tmp_path, resume=resume, progress="off")
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    "name", ["state", "weights", "tensorboard", "metrics.jsonl", "skipped.jsonl", "recipe.yaml", "card.md", ".lock"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_links_in_a_run_folder_are_not_written_through(recipe, tmp_path, name, resume):
    run, kept = tmp_path / "run", tmp_path / "kept"
    run.mkdir()
    if name in ("state", "weights", "tensorboard"):
        kept.mkdir()
        target = kept / "precious"
        target.write_text("mine")
        (run / name).symlink_to(kept)
    else:
        target = kept
        target.write_text("mine")
        (run / name).symlink_to(target)
    with pytest.raises(UsageError, match="link|holds a run"):
        train(recipe, run, resume=resume, progress="off")
    assert target.read_text() == "mine" and (kept == target or list(kept.iterdir()) == [target])
    assert [path.name for path in run.iterdir() if path.name != ".lock"] == [name] * (name != ".lock")


def test_samples_of_a_bad_step_are_named(recipe, tmp_path, monkeypatch):
    held = poisoned(monkeypatch, {2})
    assert train(recipe, tmp_path / "run", progress="off").finished
    rows = list(ledger.read(tmp_path / "run/skipped.jsonl"))
    assert sorted(row["id"] for row in rows) == sorted(held)
    assert {(row["reason"], row["step"]) for row in rows} == {("non_finite", 2)}
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["updated"] for row in metrics] == [1, 1, 0, 1, 1, 1, 1, 1]


def test_bad_steps_in_a_row_stop_the_run(recipe, tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 3, 4, 5})
    with pytest.raises(DataError, match="3 steps in a row"):
        train(recipe, tmp_path / "run", progress="off")


def test_out_of_memory_says_what_to_do(recipe, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(stepper, "take_step", full)
    with pytest.raises(ModelError, match=r"halve run\.batch_tokens"):
        train(recipe, tmp_path / "run", progress="off")


def test_no_folder(recipe):
    with pytest.raises(UsageError, match="no run folder"):
        train(recipe, progress="off")


def test_kept_features_are_used(recipe, tmp_path, capsys, monkeypatch):
    from mmtune.encoders.clip import Clip

    calls = []
    monkeypatch.setattr(Clip, "forward", lambda self, *args, real=Clip.forward: calls.append(1) or real(self, *args))
    kept = changed(recipe, f"run.feature_cache={tmp_path / 'features'}")
    train(kept, tmp_path / "one", progress="lines")
    assert len(calls) == 1, "sixteen pictures fit one batch; no step runs the encoder"
    train(kept, tmp_path / "two", progress="off")
    assert len(calls) == 1
    assert "features: 16 encoded, 0 kept, 0 failed" in capsys.readouterr().out
    weights = [(tmp_path / run / "weights/sight.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_random_crops_are_drawn_anew_in_each_epoch_and_alike_everywhere(tmp_path, monkeypatch, capsys):
    def slope(colour, shade=0):
        data = io.BytesIO()
        Image.linear_gradient("L").resize((24, 24)).rotate(shade * 20).convert("RGB").save(data, "PNG")
        return data.getvalue()

    monkeypatch.setattr(world, "png", slope)  # in one colour all crops are alike
    cropping = changed(world.recipe(tmp_path), "model.branches.sight.encoder.random_crop=[0.2, 0.5]")

    def crops(epoch, workers=0):
        made = changed(cropping, f"run.workers={workers}")
        run = setup.build(made, tmp_path, loop.Runtime("cpu"))
        stream = run.loader.streams["pictures"]
        return [run.loader.prepare("pictures", key, epoch).media["sight"][0] for key in stream.corpus.samples()]

    first, again, second = crops(0), crops(0, workers=2), crops(1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    keeping = changed(cropping, f"run.feature_cache={tmp_path / 'kept'}")
    train(keeping, tmp_path / "run", progress="lines")
    assert "features of sight are not kept" in capsys.readouterr().out and not (tmp_path / "kept").exists()


def test_half_precision_keeps_what_trains_whole(recipe, tmp_path):
    from safetensors.torch import load_file

    from mmtune.checkpoint.store import load_run

    result = train(changed(recipe, "run.precision=bf16"), tmp_path / "run", progress="off")
    assert result.finished and result.loss == pytest.approx(
        train(recipe, tmp_path / "whole", progress="off").loss, rel=0.02
    )
    stored = load_file(tmp_path / "run/weights/sight.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    load_run(tmp_path / "run")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_that_began_with_weights_of_another_goes_on_without_it(recipe, tmp_path, monkeypatch, frozen):
    """Stopped and taken up, it is the straight run, also with a connector that came from there and does not train."""
    train(recipe, tmp_path / "first", progress="off")
    tree = changed(recipe, f"run.init_from={tmp_path / 'first'}").model_dump(mode="json")
    if frozen:
        tree = config.override(tree, "model.freeze=['branches.sight.connector.*']")
        del tree["groups"]["sight"], tree["streams"]["pictures"]
        tree["streams"]["words"]["share"] = 1
    second = config.validate(Recipe, tree)
    train(second, tmp_path / "straight", progress="off")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "code", property(lambda self: 143, lambda self, value: None), raising=False)
        assert not train(second, tmp_path / "stopped", progress="off").finished
    (tmp_path / "first").rename(tmp_path / "moved")
    assert train(second, tmp_path / "stopped", resume=True, progress="off").finished
    for file in sorted((tmp_path / "straight" / "weights").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "stopped" / "weights" / file.name).read_bytes()


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_came_in_bfloat16_train_in_float32_and_can_be_used(recipe, tmp_path, frozen, capsys):
    """The language model is loaded in bfloat16; small steps would be rounded away there."""
    from safetensors.torch import load_file

    from mmtune.checkpoint.store import load_run

    lora = "{name: hf_peft, method: lora, r: 2, lora_alpha: 4, target_modules: [q_proj]}"
    changes = [
        f"model.tuners=[{lora}]",
        "model.llm.dtype=bfloat16",
        "schedule.lr_schedule=constant",
        "schedule.warmup=0",
    ]
    changes += ["groups.speech={match: ['@hf_peft'], lr: 1e-6, streams: [words]}", "schedule.steps=4"]
    if frozen:  # what a run keeps without training it is kept as exactly
        changes += ["groups.sight=null", "model.freeze=['branches.sight.connector.*']", "streams.pictures=null"]
    tree = recipe.model_dump(mode="json")
    for text in changes:
        tree = config.override(tree, text)
    for section in ("groups", "streams"):
        tree[section] = {name: one for name, one in tree[section].items() if one is not None}
    capsys.readouterr()
    whole = train(config.validate(Recipe, tree), tmp_path / "fp32", progress="lines")
    told = capsys.readouterr().out
    assert whole.finished and "frozen weights from bfloat16 to float32, as run.precision=fp32" in told
    stored = {n: t for file in (tmp_path / "fp32/weights").glob("*.safetensors") for n, t in load_file(file).items()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(0 < float(t.abs().max()) < 1e-5 for name, t in stored.items() if ".lora_B." in name)
    run = tmp_path / "run"
    assert train(config.validate(Recipe, config.override(tree, "run.precision=bf16")), run, progress="off").finished
    held = {name: t for file in (run / "weights").glob("*.safetensors") for name, t in load_file(file).items()}
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    seconds = [tensor for name, tensor in held.items() if ".lora_B." in name]
    assert seconds and all(0 < float(tensor.abs().max()) < 1e-5 for tensor in seconds), "steps of a millionth add up"
    model = load_run(run)[0]
    assert any(name.endswith("lora_B.default.weight") or ".lora_B." in name for name, _ in model.named_parameters())
    begun = config.override(tree, f"run.init_from={run}")
    begun = config.override(config.override(begun, "run.precision=bf16"), "run.save_every=2")
    assert train(config.validate(Recipe, begun), tmp_path / "next", progress="off").finished
    longer = config.validate(Recipe, config.override(begun, "schedule.steps=6"))
    assert train(longer, tmp_path / "next", resume=True, progress="off", allow=["recipe"]).step == 6
    if frozen:  # what came with the run it began with stays as it was, tuners' part too
        still = config.override(begun, "model.freeze=['branches.sight.connector.*', 'llm.*lora_A*']")
        still = config.override(still, "groups.speech.match=['*.lora_B.*']")
        train(config.validate(Recipe, still), tmp_path / "still", progress="off")
        kept = {n: t for file in (tmp_path / "still/weights").glob("*.safetensors") for n, t in load_file(file).items()}
        assert all(torch.equal(kept[name], held[name]) for name in held if ".lora_B." not in name)


RANK = """
import sys
from pathlib import Path
from mmtune import config
from mmtune.recipe import Recipe
from mmtune.training import loop, setup, stepper
from mmtune.training import resume as states
result = loop.train(config.load(Recipe, sys.argv[1]), Path(sys.argv[2]), progress="lines")
print(result)
"""


@pytest.mark.slow
def test_two_ranks_train_what_one_does(recipe, tmp_path):
    from safetensors.torch import load_file

    from tests.training.test_step import children

    file = tmp_path / "recipe.yaml"
    file.write_text(config.dump(changed(recipe, "run.batch_tokens=256", "schedule.steps=4")))
    outputs = children(RANK, [str(file), str(tmp_path / "two")])
    assert "done: 4 steps" in outputs[0] and "done" not in outputs[1], "one rank talks"
    train(config.load(Recipe, file), tmp_path / "one", progress="off")
    for group in ("sight", "speech"):
        one, two = (load_file(tmp_path / f"{run}/weights/{group}.safetensors") for run in ("one", "two"))
        assert all(torch.allclose(one[name], two[name], atol=2e-5) for name in one)
    with pytest.raises(AssertionError, match="holds a run already"):
        children(RANK, [str(file), str(tmp_path / "two")])
