"""Checkpoints in two bytes a number: opened as they were published, trained in float32, written in one type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune import dtypes
from mmtune.checkpoint import convert, store
from tests.checkpoint.foreign.makers import llava_hf as tiny
from tests.checkpoint.foreign.test_llava_hf import check, picture, train


def published(path: Path) -> Path:
    """A folder as the llava-hf repositories have it: float16, and saying so."""
    folder, _ = tiny.folder(path)
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    hf_config = json.loads((folder / "config.json").read_text())
    for tree in (hf_config, hf_config["text_config"], hf_config["vision_config"]):
        tree["dtype"] = tree["torch_dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(hf_config))
    return folder


def opened(folder: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("half") / "llava")


def test_in_float32_the_logits_are_those_of_float32(half: Path, tmp_path: Path) -> None:
    """The tower too, whose settings say float16; in float16 the logits are off by 4e-4."""
    run = convert.import_checkpoint("llava_hf", [str(half)], tmp_path / "run", changes=["run.precision=fp32"])
    model, _, recipe = store.load_run(run)
    assert recipe.model.llm.dtype == "float32"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check(half, opened(half), run, picture(tmp_path))


def test_the_type_of_the_checkpoint_is_kept_and_told(half: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = convert.import_checkpoint("llava_hf", [str(half)], tmp_path / "run", say=lines.append)
    assert any("published in float16, opened in bfloat16" in line for line in lines)
    assert "published in float16" in (run / "card.md").read_text()
    model, _, recipe = store.load_run(run)
    assert (recipe.model.llm.dtype, recipe.run.precision) == ("bfloat16", "bf16")
    assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(run / "parts/llm/model.safetensors").values()} == {torch.float16}
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out", ["names=saved"])
    before, after = (load_file(one / "model.safetensors") for one in (half, out))
    assert before.keys() == after.keys() and {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert all(torch.equal(before[name], after[name]) for name in before), "not a digit is lost on the way"
    assert json.loads((out / "config.json").read_text()).get("dtype") == "float16"


def test_a_tower_from_float16_trains(half: Path, tmp_path: Path) -> None:
    run = convert.import_checkpoint("llava_hf", [str(half)], tmp_path / "run")
    changes = ["groups.tower={match: ['branches.sight.encoder.*'], lr: 0.001}", "schedule.steps=4"]
    tuned = train(run, tmp_path / "tuned", tmp_path / "shards", *changes)
    held = load_file(tuned / "weights" / "tower.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in held.values())
    base = load_file(tuned.parent / "run/parts/sight/model.safetensors")
    name = "embeddings.patch_embedding.weight"
    moved = (held[f"branches.sight.encoder.tower.{name}"] - base[name].float()).abs().max()
    assert 0 < float(moved) < 0.1
    for dtype in ("float16", "float32"):
        out = convert.export_checkpoint(tuned, "llava_hf", tmp_path / dtype, [f"dtype={dtype}"])
        kinds = {tensor.dtype for tensor in load_file(out / "model.safetensors").values()}
        assert kinds == {dtypes.TYPES[dtype]}


def test_types_are_settled_in_one_place() -> None:
    model = torch.nn.ModuleDict({"llm": torch.nn.Linear(2, 2).half(), "encoder": torch.nn.Linear(2, 2).bfloat16()})
    model["connector"] = torch.nn.Linear(2, 2)
    model.tuned = {}
    model.requires_grad_(False)
    model["llm"].weight.requires_grad_(True)
    changed = dtypes.settle(model, "bf16")
    assert model["llm"].weight.dtype == torch.float32 and model["llm"].bias.dtype == torch.bfloat16
    assert changed["float16 to bfloat16"] == ("llm.bias", 2)
    dtypes.settle(model, "fp32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_float16_is_kept_where_bfloat16_is_not_computed() -> None:
    assert dtypes.opened_as("float16", "cpu") == "bfloat16"
    assert dtypes.opened_as("float16", "mps") == "float16"
    assert dtypes.opened_as("bfloat16", "mps") == "bfloat16" and dtypes.opened_as("float64", "cpu") == "float32"
