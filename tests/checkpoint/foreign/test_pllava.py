"""PLLaVA: against the same arithmetic in transformers, at several scales of the LoRA; whole and partial folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune.checkpoint import convert, store
from mmtune.collate import collate
from mmtune.errors import CheckpointError, ConfigError
from mmtune.types import Example, Slot
from tests.checkpoint.foreign.makers import llava_hf, pllava

FRAMES, BINS = 3, (3, 2, 2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    """(a LLaVA folder with its model, the PLLaVA folder tuned from it)"""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    base, model = llava_hf.folder(root / "base")
    torch.manual_seed(0)
    made = pllava.make(root)
    tensors = load_file(made.trained)
    # the same frozen parts as the base, so that a partial folder can be made of it
    for name, tensor in pllava.names(load_file(base / "model.safetensors")).items():
        if "lora_" not in name:
            tensors[name] = tensor
    save_file({name: t.contiguous() for name, t in tensors.items()}, made.trained, metadata={"format": "pt"})
    return base, model, made.paths["folder"]


def expected(model, tensors: dict, alpha: float, pixels: torch.Tensor, tokens: torch.Tensor, slot: Slot):
    """Logits of transformers' modules, the LoRA added to its matrices by hand."""
    scale = alpha / pllava.RANK
    inner = model.model
    kept = {}
    with torch.no_grad():
        for i, layer in enumerate(inner.language_model.layers):
            for name in pllava.TUNED:
                stem = f"language_model.base_model.model.model.layers.{i}.self_attn.{name}.lora"
                pair = tensors[f"{stem}_B.default.weight"] @ tensors[f"{stem}_A.default.weight"]
                weight = getattr(layer.self_attn, name).weight
                kept[weight] = weight.clone()
                weight += scale * pair
        seen = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        grid = inner.multi_modal_projector(seen).view(FRAMES, 3, 3, -1).permute(3, 0, 1, 2)
        pooled = torch.nn.functional.adaptive_avg_pool3d(grid[None], BINS)[0].flatten(1).T
        x = inner.get_input_embeddings()(tokens)[None].clone()
        x[0, slot.start : slot.start + slot.length] = pooled
        logits = model.lm_head(inner.language_model(inputs_embeds=x).last_hidden_state)[0]
        for weight, before in kept.items():
            weight.copy_(before)
    return logits


def run_logits(run: Path, pixels: torch.Tensor, tokens: torch.Tensor, slot: Slot) -> torch.Tensor:
    model, _, _ = store.load_run(run)
    example = Example("one", tokens, torch.full_like(tokens, -100), (slot,), {"sight": [pixels]})
    with torch.no_grad():
        return model.llm.head(model(collate([[example]])))[0, : len(tokens)]


@pytest.mark.parametrize("alpha", [0, 2, 8])
def test_same_logits_at_every_scale(published, alpha: int, tmp_path: Path) -> None:
    _, model, folder = published
    run = convert.import_checkpoint("pllava", [str(folder)], tmp_path / "run", [f"lora_alpha={alpha}"])
    tokens = BINS[0] * BINS[1] * BINS[2]
    tokens, slot = torch.arange(5, 5 + 6 + tokens), Slot("sight", 2, tokens, 0)
    pixels = torch.randn(FRAMES, 3, llava_hf.SIZE, llava_hf.SIZE)
    wanted = expected(model, load_file(folder / "model.safetensors"), alpha, pixels, tokens, slot)
    torch.testing.assert_close(run_logits(run, pixels, tokens, slot), wanted, rtol=1e-5, atol=1e-5)
    assert f"alpha {alpha}" in (run / "card.md").read_text()


def partial(folder: Path, to: Path) -> Path:
    """What training without DeepSpeed saves: projector and LoRA."""
    to.mkdir()
    tensors = load_file(folder / "model.safetensors")
    few = {name: t for name, t in tensors.items() if "lora_" in name or "multi_modal_projector" in name}
    save_file(few, to / "model.safetensors")
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def test_projector_and_lora_over_their_base(published, tmp_path: Path) -> None:
    base, _, folder = published
    few = partial(folder, tmp_path / "few")
    with pytest.raises(CheckpointError, match=r"few\b"):
        convert.import_checkpoint("pllava", [str(few)], tmp_path / "run", ["lora_alpha=2"])
    one = convert.import_checkpoint("pllava", [str(few), f"base={base}"], tmp_path / "run", ["lora_alpha=2"])
    two = convert.import_checkpoint("pllava", [str(folder)], tmp_path / "whole", ["lora_alpha=2"])
    states = [store.load_run(run)[0].state_dict() for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_older_names_of_the_matrices(published, tmp_path: Path) -> None:
    """peft before 0.6 did not say `base_layer`."""
    _, _, folder = published
    old = tmp_path / "old"
    old.mkdir()
    for file in folder.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    tensors = {n.replace(".base_layer", ""): t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, old / "model.safetensors")
    run = convert.import_checkpoint("pllava", [str(old)], tmp_path / "run", ["lora_alpha=4"])
    assert (run / "weights" / "lora.safetensors").is_file()


def test_the_scale_has_no_default(published, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without lora_alpha"):
        convert.import_checkpoint("pllava", [str(published[2])], tmp_path / "run")


def test_a_llava_is_not_a_pllava(published, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="llava_hf"):
        convert.import_checkpoint("pllava", [str(published[0])], tmp_path / "run", ["lora_alpha=4"])


def test_pooling_that_was_turned_off(published, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for file in published[2].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    hf_config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf_config, "use_pooling": False}))
    run = convert.import_checkpoint("pllava", [str(folder)], tmp_path / "run", ["lora_alpha=4"])
    connector = store.read_recipe(run).model.branches["sight"].connector
    assert (connector.time, connector.height, connector.width) == (3, 3, 3)


def test_names_and_shapes_at_full_size() -> None:
    """What would be exported of the published recipe, on the meta device."""
    from mmtune import config
    from mmtune.checkpoint.foreign.base import Opened
    from mmtune.model import build
    from mmtune.recipe import Recipe

    recipe = config.load(Recipe, "pllava_7b")
    model = build(recipe.model, weights=False, device="meta")
    written = convert.importer("pllava", ["lora_alpha=4"]).write(Opened(model, recipe))
    names = {name: tuple(tensor.shape) for name, tensor in written.tensors["model.safetensors"].items()}
    layer = "language_model.base_model.model.model.layers.31.self_attn"
    expected = {
        "multi_modal_projector.linear_1.weight": (4096, 1024),
        "multi_modal_projector.linear_2.bias": (4096,),
        "vision_tower.vision_model.encoder.layers.23.self_attn.q_proj.bias": (1024,),
        "vision_tower.vision_model.embeddings.position_embedding.weight": (577, 1024),
        f"{layer}.q_proj.base_layer.weight": (4096, 4096),
        f"{layer}.v_proj.lora_A.default.weight": (128, 4096),
        f"{layer}.v_proj.lora_B.default.weight": (4096, 128),
        f"{layer}.k_proj.weight": (4096, 4096),
        "language_model.base_model.model.lm_head.weight": (32064, 4096),
    }
    assert {name: names.get(name) for name in expected} == expected
    assert len(names) == 391 + 4 + 291 + 128
    hf_config = written.files["config.json"]
    assert (hf_config["pooling_shape"], hf_config["frame_shape"], hf_config["num_frames"]) == (
        [16, 12, 12],
        [24, 24],
        16,
    )
