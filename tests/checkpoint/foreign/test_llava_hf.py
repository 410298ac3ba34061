"""LLaVA as transformers computes it: same logits, same answer, in every spelling of names; trained, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmtune.checkpoint import convert, store
from mmtune.collate import collate
from mmtune.errors import CheckpointError
from mmtune.generate import answer_batch
from mmtune.types import MediaRef, Sample, Turn
from tests.checkpoint.foreign.makers import llava_hf as tiny

KINDS = ("llava", "llava_next")


def picture(path: Path, width: int = 90, height: int = 40) -> MediaRef:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path / "picture.png")
    return MediaRef("image", path / "picture.png", "picture.png")


def sample(ref: MediaRef) -> Sample:
    return Sample("one", (Turn("user", (ref, "what is this")),))


def ours(run: Path, ref: MediaRef):
    """(example, prepared picture, logits [T,V], greedy answer) of our run."""
    model, processor, _ = store.load_run(run)
    example = processor.example(sample(ref), answer=True)
    batch = collate([[example]], pad=model.llm.tokenizer.pad)
    with torch.no_grad():
        logits = model.llm.head(model(batch))[0, : len(example)]
    answer = answer_batch(model, [example], frozenset(), max_tokens=8)[0]
    return example, example.media["sight"][0], logits, answer


def theirs(model, example, item: torch.Tensor, image: int, ref: MediaRef):
    """(logits [T,V], greedy answer) of transformers, from the same tokens and the same pixels."""
    tokens = example.tokens.clone()
    slot = example.slots[0]
    tokens[slot.start : slot.start + slot.length] = image
    given = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}
    if type(model).__name__.startswith("LlavaNext"):
        width, height = Image.open(ref.source).size
        given["pixel_values"] = item[:, : 3 * tiny.SIZE**2].reshape(1, -1, 3, tiny.SIZE, tiny.SIZE)
        given["image_sizes"] = torch.tensor([[height, width]])
    else:
        given["pixel_values"] = item
    with torch.no_grad():
        logits = model(**given).logits[0]
        said = model.generate(**given, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    return logits, said[0, len(tokens) :].tolist()


def check(folder: Path, model, run: Path, ref: MediaRef) -> None:
    example, item, logits, answer = ours(run, ref)
    image = json.loads((folder / "config.json").read_text())["image_token_index"]
    expected, said = theirs(model, example, item, image, ref)
    torch.testing.assert_close(logits, expected[:, : logits.shape[1]], rtol=1e-5, atol=1e-5)
    assert answer == said


def reload(folder: Path):
    """A folder as transformers reads it, nothing missing and nothing left over."""
    from transformers import AutoModelForImageTextToText

    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(90, 40), (31, 67), (50, 50)])
def test_same_logits_and_answer(kind: str, width: int, height: int, tmp_path: Path) -> None:
    folder, model = tiny.folder(tmp_path / "published", kind)
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    check(folder, model, run, picture(tmp_path, width, height))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_several_layers_come_in_and_go_out(kind: str, tmp_path: Path) -> None:
    """The last but one layer, and hidden state 1, which is what comes out of the first block."""
    folder, model = tiny.folder(tmp_path / "published", kind, layers=[-2, 1])
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    encoder = store.read_recipe(run).model.branches["sight"].encoder
    assert (encoder.encoder if kind == "llava_next" else encoder).layers == (-2, 0)
    check(folder, model, run, picture(tmp_path))
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["vision_feature_layer"] == [-2, 1]
    check(out, reload(out), run, picture(tmp_path))


def test_a_layout_of_one_layer_refuses_several_by_name(tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published", layers=[-2, -1])
    with pytest.raises(CheckpointError, match="vision_feature_layer"):
        convert.import_checkpoint("pllava", [str(folder)], tmp_path / "pllava", ["lora_alpha=4"])
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    for layout in ("pllava", "llama_adapter_v2"):
        with pytest.raises(CheckpointError, match="branch sight: 2 layers(.|\n)*llava_hf"):
            convert.export_checkpoint(run, layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def respell(folder: Path, layout: str) -> None:
    """Rename the tensors of a folder from how transformers saves them."""
    tensors = load_file(folder / "model.safetensors")
    if layout == "published":
        named = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
    else:
        named = {}
        for name, tensor in tensors.items():
            name = name.replace("language_model.model.", "model.language_model.")
            name = name.replace("language_model.lm_head", "lm_head")
            old = ("vision_tower.", "multi_modal_projector.", "image_newline")
            named[f"model.{name}" if name.startswith(old) else name] = tensor
    assert named.keys() != tensors.keys()
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["published", "inner"])
def test_every_spelling_comes_in_and_goes_out(kind: str, layout: str, tmp_path: Path) -> None:
    folder, model = tiny.folder(tmp_path / "published", kind)
    respell(folder, layout)
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    ref = picture(tmp_path)
    check(folder, model, run, ref)
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out", [f"names={layout}"])
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    check(out, reload(out), run, ref)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_published_processor(kind: str, tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published", kind)
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    from transformers import CLIPImageProcessor, LlavaNextImageProcessor

    ref = picture(tmp_path, 70, 100)
    _, item, _, _ = ours(run, ref)
    reader = (CLIPImageProcessor if kind == "llava" else LlavaNextImageProcessor).from_pretrained(folder)
    expected = torch.as_tensor(reader(Image.open(ref.source), return_tensors="pt")["pixel_values"])
    expected = expected.reshape(-1, 3, tiny.SIZE, tiny.SIZE)
    if kind == "llava_next":
        item = item[:, : 3 * tiny.SIZE**2].reshape(expected.shape)
    difference = (item - expected).abs() * 0.26 * 255
    assert difference.max() <= 1.5 and difference.mean() < 0.2, "in steps of 8-bit colour"
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out")
    again = type(reader).from_pretrained(out)(Image.open(ref.source), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(again).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ({"vision_feature_layer": [-2, 0]}, "vision_feature_layer"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"vision_feature_layer": [-2, True]}, "vision_feature_layer"),
        ({"vision_feature_layer": [-2, -2]}, "vision_feature_layer"),
        ({"model_type": "video_llava"}, "video_llava"),
    ],
)
def test_variants_without_a_counterpart_are_refused(change: dict, word: str, tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published")
    hf_config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf_config, **change}))
    with pytest.raises(CheckpointError, match=word):
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")


def test_a_head_that_is_the_embedding(tmp_path: Path) -> None:
    folder, model = tiny.folder(tmp_path / "published", tie_word_embeddings=True)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    ref = picture(tmp_path)
    check(folder, model, run, ref)
    out = convert.export_checkpoint(run, "llava_hf", tmp_path / "out", ["names=saved"])
    assert load_file(out / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    check(out, reload(out), run, ref)
    # a head of its own, although config.json ties it
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "again")


def test_a_tokenizer_without_the_mark_of_a_picture(tmp_path: Path) -> None:
    """Its next free row of the embedding stands for the mark; where there is none, one is added."""
    for spare in (True, False):
        here = tmp_path / str(spare)
        folder, _ = tiny.folder(here / "published")
        llm = json.loads((folder / "tokenizer.json").read_text())
        free = min(t["id"] for t in llm["added_tokens"] if t["content"] in ("<image>", "<pad>"))
        llm["added_tokens"] = [t for t in llm["added_tokens"] if t["content"] not in ("<image>", "<pad>")]
        (folder / "tokenizer.json").write_text(json.dumps(llm))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        if not spare:
            tensors = load_file(folder / "model.safetensors")
            for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
                tensors[name] = tensors[name][:free].clone()
            save_file(tensors, folder / "model.safetensors")
            hf_config = json.loads((folder / "config.json").read_text())
            hf_config["text_config"]["vocab_size"] = free
            (folder / "config.json").write_text(json.dumps(hf_config))
        run = convert.import_checkpoint("llava_hf", [str(folder)], here / "run")
        out = convert.export_checkpoint(run, "llava_hf", here / "out")
        hf_config = json.loads((out / "config.json").read_text())
        assert hf_config["image_token_index"] == free
        check(out, reload(out), run, picture(here))


def train(recipe: Path, out: Path, folder: Path, *changes: str) -> Path:
    from mmtune import config
    from mmtune.recipe import Recipe
    from mmtune.training.loop import train as go
    from tests.training.world import shards

    data = [f"streams.instruct.data=[{shards(folder)}]", "streams.instruct.format=llava", "schedule.steps=1"]
    data += ["schedule.lr_schedule=constant", "run.workers=0", f"run.init_from={recipe}", "groups.connector.lr=0.01"]
    go(config.load(Recipe, recipe, [*data, *changes]), out=out, progress="off")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_trained_on_and_back_in_transformers(kind: str, tmp_path: Path) -> None:
    """An imported run, one step of training from its weights, out, and loaded by transformers: the same numbers."""
    folder, _ = tiny.folder(tmp_path / "published", kind)
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    tuned = train(run, tmp_path / "tuned", tmp_path / "shards")
    before, after = (load_file(one / "weights" / "connector.safetensors") for one in (run, tuned))
    assert before.keys() == after.keys()
    moved = {name: (before[name] - after[name]).abs().max().item() for name in before}
    assert all(0 < most < 0.02 for most in moved.values()), f"one step from the imported weights: {moved}"
    out = convert.export_checkpoint(tuned, "llava_hf", tmp_path / "out")
    ref = picture(tmp_path)
    check(out, reload(out), tuned, ref)


def test_a_lora_is_folded_in(tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published")
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run")
    lora = (
        "{name: hf_peft, method: lora, r: 4, lora_alpha: 8, target_modules: [q_proj, v_proj], init_lora_weights: false}"
    )
    changes = [f"model.tuners=[{lora}]", "groups.lora={match: ['@hf_peft'], lr: 0.01}"]
    tuned = train(run, tmp_path / "tuned", tmp_path / "shards", *changes)
    out = convert.export_checkpoint(tuned, "llava_hf", tmp_path / "out")
    check(out, reload(out), tuned, picture(tmp_path))


def test_what_the_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    folder, _ = tiny.folder(tmp_path / "published")
    run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "run", changes=["chat.max_tokens=9"])
    assert "max_tokens: 9" in (run / "recipe.yaml").read_text()
    lily = "{name: hf_peft, method: lily, r: 4, target_modules: [k_proj]}"
    changes = [f"model.tuners=[{lily}]", "groups.lily={match: ['@hf_peft'], lr: 0.01}"]
    tuned = train(run, tmp_path / "tuned", tmp_path / "shards", *changes)
    with pytest.raises(
        CheckpointError, match=r"hf_peft: lily, which cannot be merged(.|\n)*layers\.0\.self_attn\.k_proj"
    ):
        convert.export_checkpoint(tuned, "llava_hf", tmp_path / "out")
    pooled = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / "pooled", ["pool=[2, 2, 2]"])
    with pytest.raises(CheckpointError, match="sight: hf_vision and pool"):
        convert.export_checkpoint(pooled, "llava_hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_and_shapes_at_full_size() -> None:
    """What would be exported of the published recipe, on the meta device."""
    from mmtune import config
    from mmtune.checkpoint.foreign.base import Opened
    from mmtune.model import build
    from mmtune.recipe import Recipe

    recipe = config.load(Recipe, "llava_1_5_7b_stage1")
    model = build(recipe.model, weights=False, device="meta")
    written = convert.importer("llava_hf").write(Opened(model, recipe))
    names = {name: tuple(tensor.shape) for name, tensor in written.tensors["model.safetensors"].items()}
    assert names["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert names["multi_modal_projector.linear_1.weight"] == (4096, 1024)
    assert names["vision_tower.vision_model.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert len(names) == 391 + 4 + 291
    assert written.files["config.json"]["vision_feature_layer"] == -2


def test_a_base_for_pllava(tmp_path: Path) -> None:
    """Option pool: the projector of either version in PLLaVA's connector, where it pools a video."""
    for kind in KINDS:
        folder, model = tiny.folder(tmp_path / kind, kind)
        run = convert.import_checkpoint("llava_hf", [str(folder)], tmp_path / f"run_{kind}", ["pool=[2, 2, 2]"])
        ours, _, recipe = store.load_run(run)
        branch = recipe.model.branches["sight"]
        assert (branch.connector.name, branch.kinds, branch.encoder.frames) == ("pool", ("image", "video"), 2)
        projector = model.model.multi_modal_projector
        assert torch.equal(ours.branches["sight"].connector.linear_2.weight, projector.linear_2.weight)
