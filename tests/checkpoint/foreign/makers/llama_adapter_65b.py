"""The chat variant in tiny, with prompts in the upper two layers."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.checkpoint.foreign import meta
from tests.checkpoint.foreign.made import Made


def tensors(prompts: bool = True) -> dict[str, torch.Tensor]:
    made = {}
    for i in range(meta.LAYERS):
        sizes = {f"attention.w{x}": (meta.DIM, meta.DIM) for x in "qkvo"}
        sizes |= {"feed_forward.w1": (meta.DIM, meta.HIDDEN), "feed_forward.w3": (meta.DIM, meta.HIDDEN)}
        sizes["feed_forward.w2"] = meta.HIDDEN, meta.DIM
        for name, (inputs, outputs) in sizes.items():
            made[f"layers.{i}.{name}_scale"] = torch.rand(inputs) + 0.5
            made[f"layers.{i}.{name}_bias"] = torch.randn(outputs)
        for name in ("attention_norm", "ffn_norm"):
            made[f"layers.{i}.{name}.weight"] = torch.rand(meta.DIM) + 0.5
    if prompts:
        made["adapter_query.weight"] = torch.randn(2 * 3, meta.DIM)
        made |= {f"layers.{i}.attention.gate": torch.randn(1, meta.HEADS, 1, 1) for i in (1, 2)}
    return made


def make(path: Path) -> Made:
    llm = meta.transformers_folder(path / "llama")
    file = path / "chat.pth"
    torch.save({"model": tensors()}, file)
    written = "chat_llama_bias_scale_norm_tuning.pth"
    return Made({"llm": llm, "adapter": file}, file, inside=("model",), written=written)
