"""ImageBind-LLM that was brought in: what it computes, with sound too, and full-size names of the way out."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from mmtune import config
from mmtune import model as models
from mmtune.checkpoint import convert, store
from mmtune.checkpoint.foreign.base import Opened
from mmtune.recipe import Recipe
from mmtune.types import Features
from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.makers import imagebind_llm as maker


def test_sound_goes_through_the_same_bind_network(tmp_path):
    made = maker.make(tmp_path)
    save_file(maker.tensors(), tmp_path / "7B.safetensors")  # read without another process
    paths = {**made.paths, "adapter": tmp_path / "7B.safetensors"}
    words = [f"{role}={path}" for role, path in paths.items()]
    run = convert.import_checkpoint("imagebind_llm", words, tmp_path / "run", [*made.options, "sound=true"])
    model = store.load_run(run)[0]
    assert model.branches["sound"].kinds == ("audio",)
    vectors = torch.randn(2, 3, 1, maker.WIDTH)
    given = Features(vectors, torch.ones(2, 3, dtype=torch.bool))
    sight, sound = (model.branches[name].connector(given).tokens for name in ("sight", "sound"))
    assert torch.equal(sight, sound) and sight.shape == (2, 1, meta.DIM)
    assert model.branches["sound"].encoder.config.centre == "running"
    convert.export_checkpoint(run, "imagebind_llm", tmp_path / "out", [])
    assert (tmp_path / "out" / "imagebind_llm.pth").is_file()


def opened(name: str) -> Opened:
    """A shipped recipe at full size, on the meta device."""
    recipe = config.load(Recipe, name)
    return Opened(models.build(recipe.model, weights=False, device="meta"), recipe)


def written(kind: str, recipe: str) -> dict[str, tuple[int, ...]]:
    ((_, tree),) = convert.importer(kind).write(opened(recipe)).tensors.items()
    return {name: tuple(tensor.shape) for name, tensor in tree["model"].items()}


def test_names_and_shapes_at_full_size():
    names = written("imagebind_llm", "imagebind_llm_7b_stage2")
    want = {"image_bind_proj.weight": (4096, 1024), "image_bind_proj.bias": (4096,), "prefix_query.weight": (32, 4096)}
    for i in (1, 2, 3):
        want[f"image_bind_norm_{i}.weight"] = (4096,)
        want |= {f"image_bind_f{n}_{i}.weight": (4096, 16384) if n == 2 else (16384, 4096) for n in (1, 2, 3)}
    shapes = {"attention": {f"w{x}": (4096, 4096) for x in "qkvo"}}
    shapes["feed_forward"] = {"w1": (11008, 4096), "w2": (4096, 11008), "w3": (11008, 4096)}
    for i in range(32):
        start = f"llama.layers.{i}."
        want |= {f"{start}attention_norm.weight": (4096,), f"{start}ffn_norm.weight": (4096,)}
        want[f"{start}attention.gate"] = (1, 32, 1, 1)
        for block, matrices in shapes.items():
            for leaf, (rows, columns) in matrices.items():
                want[f"{start}{block}.lora_{leaf}_l1.weight"] = (16, columns)
                want[f"{start}{block}.lora_{leaf}_l2.weight"] = (rows, 16)
                if leaf not in ("wk", "wv"):
                    want[f"{start}{block}.{leaf}.bias"] = (rows,)
    assert names == {**want, "llama.norm.weight": (4096,)}


def test_names_and_shapes_of_the_chat_variant_at_full_size():
    names = written("llama_adapter_65b", "llama_adapter_v2_65b")
    want = {}
    for i in range(80):
        for name, (inputs, outputs) in {
            **{f"attention.w{x}": (8192, 8192) for x in "qkvo"},
            "feed_forward.w1": (8192, 22016),
            "feed_forward.w2": (22016, 8192),
            "feed_forward.w3": (8192, 22016),
        }.items():
            want[f"layers.{i}.{name}_scale"], want[f"layers.{i}.{name}_bias"] = (inputs,), (outputs,)
        want |= {f"layers.{i}.attention_norm.weight": (8192,), f"layers.{i}.ffn_norm.weight": (8192,)}
    assert names == want
    count = lambda end: sum(torch.Size(shape).numel() for name, shape in want.items() if name.endswith(end))  # noqa: E731
    assert (count("_bias"), count("_scale"), count("norm.weight")) == (6_799_360, 5_693_440, 1_310_720)
