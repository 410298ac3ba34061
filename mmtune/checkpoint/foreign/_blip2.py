"""Shared by `eva`, `blip2` and `video_llama`: how the tower and the Q-Former of BLIP-2 are spelled in published files,
and which sizes their tensors tell.

A tensor does not tell the number of attention heads, so these are options of the importers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmtune.checkpoint.foreign.base import ForeignConfig, Opened, Piece, Source, unlike
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

POSITIONS = 512
"""Length of the counter that every BERT of these files stores as a buffer; nothing reads it."""
TOWER = ("blocks.", "patch_embed.", "pos_embed", "cls_token")
"""How names of the tower's own file begin."""
TEXT_SIDE = (
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.position_embeddings.weight",
    "Qformer.bert.encoder.layer.{layer}.intermediate.dense.{leaf}",
    "Qformer.bert.encoder.layer.{layer}.output.{name}.{leaf}",
    "Qformer.cls.{rest*}",
    "vision_proj.{leaf}",
    "text_proj.{leaf}",
    "itm_head.{leaf}",
    "temp",
)
"""Names of stage 1 that have no part in what the queries become."""
PROJECTIONS = ("opt_proj.{leaf}", "t5_proj.{leaf}", "llm_proj.{leaf}")
"""The way into the language model of a stage-2 file, which no encoder holds."""


class EyeConfig(ForeignConfig):
    """Options of everything that holds the eye. Sizes are read from the tensors, but for what these do not tell."""

    blocks: int = 39
    """Blocks of the tower that are used; the published file has 40, of which BLIP-2 leaves the last out."""
    vit_heads: int = 16
    """Attention heads of the tower."""
    qformer_heads: int = 12
    """Attention heads of every Q-Former."""


def tower(theirs: str, ours: str) -> list[Rule]:
    """Rules of the tower: `theirs` is "" in eva_vit_g.pth and "visual_encoder." in whole models."""
    return [
        Rule(f"{theirs}cls_token", f"{ours}vit.cls_token"),
        Rule(f"{theirs}pos_embed", f"{ours}vit.pos_embed"),
        Rule(f"{theirs}patch_embed.{{rest*}}", f"{ours}vit.patch_embed.{{rest*}}"),
        Rule(f"{theirs}blocks.{{rest*}}", f"{ours}vit.blocks.{{rest*}}"),
    ]


def unused_tower(names: Iterable[str], theirs: str, blocks: int) -> list[str]:
    """Patterns for what a file of the tower holds and BLIP-2 does not use: blocks at the top, final norm, head."""
    found = {int(hit[1]) for name in names if (hit := re.match(rf"{re.escape(theirs)}blocks\.(\d+)\.", name))}
    patterns = [f"{theirs}blocks.{n}.{{rest*}}" for n in sorted(found) if n >= blocks]
    return [*patterns, *(f"{theirs}{part}.{{leaf}}" for part in ("norm", "fc_norm", "head"))]


def norm(ours: str) -> list[Rule]:
    """Rules of the norm between tower and Q-Former."""
    return [Rule("ln_vision.{leaf}", f"{ours}ln_vision.{{leaf}}")]


def queries(ours: str, head: str = "") -> list[Rule]:
    """Rules of a Q-Former and its queries; `head` is "", "video_" or "audio_"."""
    return [
        Rule(f"{head}query_tokens", f"{ours}query_tokens"),
        Rule(f"{head}Qformer.bert.{{rest*}}", f"{ours}qformer.{{rest*}}"),
    ]


def counter(head: str = "") -> str:
    """Name of the stored counter of a Q-Former."""
    return f"{head}Qformer.bert.embeddings.position_ids"


def counted(tensors: Mapping[str, Tensor], head: str = "") -> dict[str, Tensor]:
    """Their tensors with the counter, which the published code writes into every file."""
    device = next(iter(tensors.values())).device
    return {**tensors, counter(head): torch.arange(POSITIONS, device=device)[None]}


def tower_sizes(tensors: Mapping[str, Tensor], theirs: str, config: EyeConfig) -> dict[str, int]:
    """Settings of `blip2_eva` that the tower's tensors tell, the published ones where they do not.

    Sizes are those of most tensors, so that a missing or misshapen tensor is reported by name, with all others.
    """
    stem = re.escape(theirs)
    patch = common(tensors, rf"{stem}patch_embed\.proj\.weight", 3, 14)
    rows = common(tensors, rf"{stem}pos_embed", 1, 257)
    return {
        "trained_size": max(1, round((rows - 1) ** 0.5)) * patch,
        "patch": patch,
        "vit_width": common(tensors, rf"{stem}blocks\.\d+\.norm\d\.weight", 0, 1408),
        "vit_depth": config.blocks,
        "vit_heads": config.vit_heads,
        "vit_hidden": common(tensors, rf"{stem}blocks\.\d+\.mlp\.fc1\.bias", 0, 6144),
    }


def qformer_sizes(
    tensors: Mapping[str, Tensor], head: str = "", depth: int = 12, queries: int = 32, cross_every: int = 2
) -> dict[str, int]:
    """queries, width, depth, hidden and cross_every of a Q-Former, read as `tower_sizes` does; published ones given."""
    stem = rf"{re.escape(head)}Qformer\.bert\."
    pattern = re.compile(rf"{stem}encoder\.layer\.(\d+)\.(\w+)\..+")
    hits = [(int(hit[1]), hit[2]) for name in tensors if (hit := pattern.fullmatch(name))]
    looking = sorted({layer for layer, part in hits if part == "crossattention"})
    depth = 1 + max((layer for layer, _ in hits), default=depth - 1)
    if looking:
        cross_every = looking[1] if len(looking) > 1 else depth
    return {
        "queries": common(tensors, rf"{re.escape(head)}query_tokens", 1, queries),
        "width": common(tensors, rf"{stem}.+\.LayerNorm\.weight", 0, 768),
        "depth": depth,
        "hidden": common(tensors, rf"{stem}.+\.intermediate_query\.dense\.bias", 0, 3072),
        "cross_every": cross_every,
    }


def eye_qformer(sizes: Mapping[str, int], heads: int) -> dict[str, int]:
    """The same as settings of `blip2_eva`."""
    renamed = {f"qformer_{key}": sizes[key] for key in ("width", "depth", "hidden")}
    return {**renamed, "queries": sizes["queries"], "cross_every": sizes["cross_every"], "qformer_heads": heads}


def common(tensors: Mapping[str, Tensor], pattern: str, axis: int, published: int) -> int:
    """The commonest size along an axis of the tensors whose names match; `published` where there are none."""
    names = re.compile(pattern)
    sizes = Counter(t.shape[axis] for name, t in tensors.items() if t.ndim > axis and names.fullmatch(name))
    del sizes[0]
    return sizes.most_common(1)[0][0] if sizes else published


def ratio(hidden: int, width: int) -> float:
    """How many widths `hidden` is, such that int(width * ratio) gives `hidden` back: 15 / 11 * 11 is 14.99..."""
    found = hidden / width
    return found if int(width * found) == hidden else math.nextafter(found, math.inf)


def refuse_strange(tensors: Mapping[str, Tensor], starts: Sequence[str], source: Source) -> None:
    """Raise CheckpointError for a file in which no name begins as the published ones do."""
    if not any(name.startswith(tuple(starts)) for name in tensors):
        what = f"the first of {len(tensors)} names in {source}"
        raise unlike(what, min(tensors, default="none"), ", ".join(f"{start}*" for start in starts))


def eye(
    source: Source, tower_source: Source | None, part: str, config: EyeConfig
) -> tuple[dict[str, Any], list[Piece]]:
    """Settings of `blip2_eva` and its pieces, from BLIP-2's file and the tower's.

    Raises CheckpointError: the tower in neither or both of the files, and what the sizes raise.
    """
    tensors = source.tensors(inside=("model",))
    refuse_strange(tensors, ("Qformer.", "query_tokens", "ln_vision."), source)
    ours, inside = f"{part}:", any(name.startswith("visual_encoder.") for name in tensors)
    if inside == (tower_source is not None):
        where = f"{source} holds visual_encoder.*, and {tower_source} the tower again" if inside else f"{source} alone"
        raise CheckpointError(where, "the tower once", "give `eva` where the file has no visual_encoder.*, else not")
    rules, ignored = [*norm(ours), *queries(ours)], [counter(), *TEXT_SIDE, *PROJECTIONS]
    pieces = []
    if tower_source is None:
        sizes = tower_sizes(tensors, "visual_encoder.", config)
        rules += tower("visual_encoder.", ours)
        ignored += unused_tower(tensors, "visual_encoder.", config.blocks)
    else:
        eva = tower_source.tensors(inside=("model", "state_dict"))
        refuse_strange(eva, TOWER, tower_source)
        sizes = tower_sizes(eva, "", config)
        pieces.append(Piece(str(tower_source), KeyMap(tower("", ours), unused_tower(eva, "", config.blocks)), eva))
    sizes |= eye_qformer(qformer_sizes(tensors), config.qformer_heads)
    return sizes, [Piece(str(source), KeyMap(rules, ignored), tensors), *pieces]


def options_of(encoder: Any) -> dict[str, int]:
    """Options that an encoder `blip2_eva` asks for, where its files are read again."""
    return {"blocks": encoder.vit_depth, "vit_heads": encoder.vit_heads, "qformer_heads": encoder.qformer_heads}


def branch(run: Opened) -> str:
    """The branch of a run whose encoder is `blip2_eva`. Raises CheckpointError when none or several are."""
    found = [name for name, one in run.recipe.model.branches.items() if one.encoder.name == "blip2_eva"]
    if len(found) != 1:
        raise CheckpointError(f"a run with {len(found)} branches of `blip2_eva`", "exactly one")
    return found[0]
