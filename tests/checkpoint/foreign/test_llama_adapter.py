"""LLaMA-Adapter V1 and V2: each kind of published file in and out, options by name, and one formula by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import convert, store
from mmtune.checkpoint.foreign import _llama, llama_adapter_v2
from mmtune.checkpoint.foreign.base import Opened
from mmtune.errors import CheckpointError
from mmtune.recipe import Recipe
from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.made import read
from tests.checkpoint.foreign.makers import llama_adapter_v1 as v1
from tests.checkpoint.foreign.makers import llama_adapter_v2 as v2


def logits(llm, tokens):
    with torch.no_grad():
        return llm.head(llm.forward(llm.embed(tokens), torch.arange(tokens.shape[1])[None], None))


@pytest.fixture
def first(tmp_path):
    torch.manual_seed(0)
    return v1.make(tmp_path / "published")


def test_v1_gate_by_name(first, tmp_path):
    """Two functions of one file; the tanh of the gate unless the raw one is asked for."""
    tokens = torch.arange(20, 29)[None]
    gates, answers = {}, {}
    for name, options in (("tanh", []), ("raw", ["raw_gate=true"])):
        run = convert.import_checkpoint("llama_adapter_v1", first.words, tmp_path / name, [*first.options, *options])
        model, _, recipe = store.load_run(run)
        assert recipe.model.tuners[0].gate == name
        gates[name], answers[name] = model.llm.prompts, logits(model.llm, tokens)
    assert (answers["tanh"] - answers["raw"]).abs().max() > 1e-3
    published = read(first.trained)
    for layer in range(meta.LAYERS):
        stored = published[f"layers.{layer}.attention.gate"].reshape(-1, 1)
        assert torch.equal(gates["tanh"].gate(layer), stored.tanh()) and torch.equal(gates["raw"].gate(layer), stored)
    assert torch.equal(gates["raw"].prompts(1), published["adapter_query.weight"][: v1.LENGTH])
    assert gates["raw"].layers == (1, 2)


def test_v1_training_checkpoint(first, tmp_path):
    """The whole frozen model beside the adapter is left out; a stranger is not."""
    tensors = {**meta.weights(), **read(first.trained), "rope.freqs": torch.zeros(4)}
    save_file(tensors, first.trained)
    run = convert.import_checkpoint("llama_adapter_v1", first.words, tmp_path / "run", first.options)
    model, _, _ = store.load_run(run)
    assert torch.equal(model.llm.prompts.weight, tensors["adapter_query.weight"])
    save_file({**tensors, "layers.0.attention.new_gate": torch.zeros(1, 1, 1, 1)}, first.trained)
    with pytest.raises(CheckpointError, match="new_gate"):
        convert.import_checkpoint("llama_adapter_v1", first.words, tmp_path / "again", first.options)


def test_a_model_trained_here_fits_the_published_layout(first, tmp_path):
    """Without gates in the lowest layers, which the published file has as well."""
    run = convert.import_checkpoint("llama_adapter_v1", first.words, tmp_path / "run", first.options)
    model, _, recipe = store.load_run(run)
    changed = recipe.model_copy(deep=True)
    object.__setattr__(changed.model.tuners[0], "spare_gates", False)
    del model.llm.prompts.gates["0"]
    (tensors,) = convert.importer("llama_adapter_v1").write(Opened(model, changed)).tensors.values()
    published = read(first.trained)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in published.items()}
    assert not tensors["layers.0.attention.gate"].any()


@pytest.mark.parametrize(("bias", "lora"), [(True, True), (True, False), (False, False)])
def test_v2_kinds(tmp_path, bias, lora):
    """LORA-BIAS, BIAS and CAPTION files, told by their tensors, in and out again as they were."""
    torch.manual_seed(0)
    made = v2.make(tmp_path / "published", bias, lora)
    options = [*made.options, "bgr=true", "black_image=true"]
    run = convert.import_checkpoint("llama_adapter_v2", made.words, tmp_path / "run", options)
    model, processor, recipe = store.load_run(run)
    assert [one.name for one in recipe.model.tuners] == ["bias_norm"] * bias + ["hf_peft"] * lora
    assert recipe.model.branches["sight"].encoder.channels == "bgr"
    assert (model.fusion.default_image_branch, processor.default_image_branch) == ("sight", "sight")
    convert.export_checkpoint(run, "llama_adapter_v2", tmp_path / "out")
    written = tmp_path / "out" / made.written
    before, after = load_file(made.trained), read(written, ("model",))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    rank = v2.RANK if lora else 16
    assert torch.load(written, weights_only=True)["config"] == {"w_bias": bias, "w_lora": lora, "lora_rank": rank}


def test_v2_pickled_and_wrapped_as_published(tmp_path, child):
    """{"model", "config"} in a .pth, with the prefix as an older file misspells it; the oddities are off by default."""
    torch.manual_seed(0)
    made = v2.make(tmp_path / "published", lora=False)
    old = {name.replace("llama.", "llma.", 1): tensor for name, tensor in load_file(made.trained).items()}
    file = made.trained.with_name("0123abcd_BIAS-7B.pth")
    torch.save({"model": old, "config": {"w_bias": True}}, file)
    words = [f"adapter={file}" if word.startswith("adapter=") else word for word in made.words]
    run = convert.import_checkpoint("llama_adapter_v2", words, tmp_path / "run", made.options)
    model, _, recipe = store.load_run(run)
    assert recipe.model.branches["sight"].encoder.channels == "rgb" and model.fusion.default_image_branch is None
    bias = model.llm.model.model.layers[1].self_attn.q_proj.bias
    assert torch.equal(bias, _llama.to_halves(meta.HEADS)(old["llma.layers.1.attention.wq.bias"]))


def test_v2_pairs_have_the_factor_one_and_are_for_the_text(tmp_path):
    """A matrix with bias and pair by hand, over rows in Meta's order; prompts go through the matrix alone."""
    torch.manual_seed(0)
    made = v2.make(tmp_path / "published")
    run = convert.import_checkpoint("llama_adapter_v2", made.words, tmp_path / "run", made.options)
    model, _, _ = store.load_run(run)
    tensors, x = load_file(made.trained), torch.randn(2, meta.DIM)
    site = model.llm.attention_modules()[1]
    weight = _llama.to_pairs(meta.HEADS)(site.q_proj.base_layer.weight)
    head = "llama.layers.1.attention."
    expected = x @ weight.T + tensors[f"{head}wq.bias"]
    expected = expected + x @ tensors[f"{head}lora_wq_l1.weight"].T @ tensors[f"{head}lora_wq_l2.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(_llama.to_pairs(meta.HEADS)(site.q_proj(x).T).T, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.fusion.prompts.gates["1"].weight, tensors[f"{head}gate"].reshape(-1, 1))
    assert torch.equal(model.fusion.prompts.gates["1"].extra, tensors[f"{head}new_gate"].reshape(1, 1))


def test_what_has_no_place_in_the_layout_is_refused(tmp_path):
    torch.manual_seed(0)
    made = v2.make(tmp_path / "published", lora=False)
    run = convert.import_checkpoint("llama_adapter_v2", made.words, tmp_path / "run", made.options)
    with pytest.raises(CheckpointError, match="`prompts` alone"):
        convert.export_checkpoint(run, "llama_adapter_v1", tmp_path / "out")
    raw = convert.import_checkpoint(
        "llama_adapter_v2", made.words, tmp_path / "raw", made.options, ["model.fusion.gate=raw"]
    )
    with pytest.raises(CheckpointError, match="added_prompts"):
        convert.export_checkpoint(raw, "llama_adapter_v2", tmp_path / "out")


# ------------------------------------------------------------------------------------------------ at full size, on meta


def built(name, tuners=None, **fusion):
    """A shipped recipe on the meta device, with other tuners or options of the fusion."""
    tree = config.load(Recipe, name).model_dump(mode="json")
    tree["model"]["fusion"] |= fusion
    if tuners is not None:
        tree["model"]["tuners"] = tuners
        tree["groups"]["speech"]["match"] = [f"@{one['name']}" for one in tuners]
    recipe = config.validate(Recipe, tree)
    return models.build(recipe.model, weights=False, device="meta"), recipe


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama_adapter_v1_7b", 300 * 4096 + 30 * 32),
        ("llama_adapter_v2_7b_stage1", 61_731_584),
        ("llama_adapter_v2_7b_stage2", 1_363_968),
    ],
)
def test_trained_numbers_to_the_last_digit(name, count):
    model, recipe = built(name)
    groups = store.groups_of(model, recipe)
    assert sum(parameter.numel() for named in groups.values() for _, parameter in named) == count


def test_the_file_at_full_size():
    """Every name and shape of LORA-BIAS-7B, written out."""
    tuners = llama_adapter_v2.tuned(bias=True, norms=True, r=16)
    model, recipe = built("llama_adapter_v2_7b_stage2", tuners, extra_gate=True)
    (file,) = convert.importer("llama_adapter_v2").write(Opened(model, recipe)).tensors.values()
    found = {name: tuple(tensor.shape) for name, tensor in file["model"].items()}
    wanted = {"adapter_query.weight": (310, 4096), "visual_query.weight": (10, 768), "llama.norm.weight": (4096,)}
    wanted |= {"clip_proj.weight": (768, 768), "clip_proj.bias": (768,), "visual_proj.weight": (4096, 768)}
    wanted |= {
        f"{n}.{x}": (w,) for n, w in (("clip_proj_norm", 768), ("visual_proj_norm", 4096)) for x in ("weight", "bias")
    }
    wanted["visual_proj.bias"] = (4096,)
    linears = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
    for i in range(8):
        for name, shape in linears.items():
            wanted |= {f"visual_blocks.{i}.{name}.weight": shape, f"visual_blocks.{i}.{name}.bias": shape[:1]}
        wanted |= {f"visual_blocks.{i}.{n}.{x}": (768,) for n in ("norm1", "norm2") for x in ("weight", "bias")}
    d, f = 4096, 11008
    matrices = {f"attention.{n}": (d, d) for n in ("wq", "wk", "wv", "wo")}
    matrices |= {"feed_forward.w1": (f, d), "feed_forward.w2": (d, f), "feed_forward.w3": (f, d)}
    for i in range(32):
        layer = f"llama.layers.{i}."
        wanted |= {f"{layer}attention_norm.weight": (d,), f"{layer}ffn_norm.weight": (d,)}
        wanted |= {f"{layer}attention.gate": (1, 32, 1, 1), f"{layer}attention.new_gate": (1, 1, 1, 1)}
        for name, (outputs, inputs) in matrices.items():
            block, leaf = name.split(".")
            wanted |= {f"{layer}{block}.lora_{leaf}_l1.weight": (16, inputs)}
            wanted |= {f"{layer}{block}.lora_{leaf}_l2.weight": (outputs, 16)}
            if leaf not in ("wk", "wv"):
                wanted[f"{layer}{name}.bias"] = (outputs,)
    assert found == wanted
    assert file["config"] == {"w_bias": True, "w_lora": True, "lora_rank": 16}
