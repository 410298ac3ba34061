"""Random tensors by the published names of EVA, BLIP-2 and Video-LLaMA, in any size."""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

TINY = {"width": 16, "hidden": 64, "patch": 8, "side": 3, "blocks": 2}
FULL = {"width": 1408, "hidden": 6144, "patch": 14, "side": 16, "blocks": 39}


def linear(name: str, inner: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tower(width: int, hidden: int, patch: int, side: int, blocks: int) -> Shapes:
    """Names and shapes of `eva_vit_g.pth`, with so many blocks."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side * side, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for n in range(blocks):
        block = f"blocks.{n}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= {f"{block}.attn.{one}_bias": (width,) for one in "qv"}
        shapes |= {f"{block}.attn.qkv.weight": (3 * width, width)} | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", width, hidden) | linear(f"{block}.mlp.fc2", hidden, width)
    return shapes


def qformer(head: str, queries: int, width: int, hidden: int, depth: int, every: int, memory: int) -> Shapes:
    """Names and shapes of a Q-Former whose text side was taken out; `head` as "video_"."""
    start = f"{head}Qformer.bert"
    shapes: Shapes = {f"{head}query_tokens": (1, queries, width)}
    shapes |= norm(f"{start}.embeddings.LayerNorm", width)
    for n in range(depth):
        layer = f"{start}.encoder.layer.{n}"
        for part in ("attention", "crossattention") if n % every == 0 else ("attention",):
            inner = memory if part == "crossattention" else width
            shapes |= linear(f"{layer}.{part}.self.query", width, width)
            for one in ("key", "value"):
                shapes |= linear(f"{layer}.{part}.self.{one}", inner, width)
            shapes |= linear(f"{layer}.{part}.output.dense", width, width)
            shapes |= norm(f"{layer}.{part}.output.LayerNorm", width)
        shapes |= linear(f"{layer}.intermediate_query.dense", width, hidden)
        shapes |= linear(f"{layer}.output_query.dense", hidden, width) | norm(f"{layer}.output_query.LayerNorm", width)
    return shapes


def branch(head: str, table: str, proj: str, sizes: dict[str, int], rows: int, llm: int) -> Shapes:
    """What a VL or AL file holds."""
    shapes = qformer(head, **sizes)
    return shapes | {f"{table}.weight": (rows, sizes["memory"])} | linear(proj, sizes["width"], llm)


def sight(sizes: dict[str, int], llm: int) -> Shapes:
    return branch("video_", "video_frame_position_embedding", "llama_proj", sizes, 32, llm)


def sound(sizes: dict[str, int], llm: int) -> Shapes:
    return branch("audio_", "audio_position_embedding", "audio_llama_proj", sizes, 8, llm)


def draw(shapes: Shapes) -> dict[str, Tensor]:
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def counter(head: str = "") -> dict[str, Tensor]:
    """The buffer that every BERT of these files stores."""
    return {f"{head}Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}
