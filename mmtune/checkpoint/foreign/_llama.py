"""LLaMA as its authors store it and as transformers does: one table of names, the order of rows, the joining of shards.

Meta's layout is a folder with `params.json` and `consolidated.NN.pth`: one file for each rank of the model-parallel
run that wrote them (65B: eight). Published LLaMA-Adapter weights use its names, with their own tensors beside them.

Both layouts hold the same numbers but for one thing: the rotary embedding turns channels (0,1), (2,3), ... of a head
as pairs in Meta's, channels (0,d/2), (1,d/2+1), ... in transformers'. So the rows of wq and wk are in another order,
and with them whatever has an entry for each of those rows: their bias, the up matrix of their low-rank pair, a scale
of their output. Nothing with input width changes, and neither does a gate, which has one number for each head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtune.checkpoint.keymap import Rule, Turn
from mmtune.errors import CheckpointError

LINEARS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
"""Every matrix of a layer: Meta's name to transformers'."""
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ROTATED = ("attention.wq", "attention.wk")
"""Matrices whose rows are in another order."""
OURS = "llm.model."
"""What stands before transformers' names in a whole model of ours."""
EMPTY = ("rope.freqs", "layers.{i}.attention.inner_attention.rope.freqs")
"""Names in Meta's files that follow from the sizes."""

_BY_ROWS = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
_BY_COLUMNS = ("attention.wo", "feed_forward.w2")


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    """Width of the feed-forward."""
    vocab: int
    eps: float = 1e-5
    theta: float = 10000.0

    @classmethod
    def read(cls, params: Mapping[str, Any], vocab: int | None = None) -> Shape:
        """From the fields of a `params.json`.

        Args:
            vocab: rows of the embedding, for files that say -1, as the first release does.

        Raises:
            CheckpointError: fields that are missing, or a rotary embedding that is scaled.
        """
        missing = [name for name in ("dim", "n_layers", "n_heads", "multiple_of") if name not in params]
        if missing:
            raise CheckpointError(
                seen=f"params.json without {', '.join(missing)}", expected="the sizes of a LLaMA in Meta's layout"
            )
        if params.get("use_scaled_rope"):
            raise CheckpointError(
                seen="params.json with use_scaled_rope",
                expected="a plain rotary embedding: LLaMA 1 or 2",
                hint="take the transformers layout of this model",
            )
        stored = int(params.get("vocab_size", -1))
        rows = stored if stored > 0 else vocab
        if rows is None:
            raise CheckpointError(seen=f"params.json with vocab_size {stored}", expected="the rows of the embedding")
        dim, heads = int(params["dim"]), int(params["n_heads"])
        return cls(
            dim=dim,
            layers=int(params["n_layers"]),
            heads=heads,
            kv_heads=int(params.get("n_kv_heads") or heads),
            hidden=hidden_width(dim, int(params["multiple_of"]), params.get("ffn_dim_multiplier")),
            vocab=rows,
            eps=float(params.get("norm_eps", 1e-5)),
            theta=float(params.get("rope_theta", 10000.0)),
        )

    def config(self, length: int = 2048) -> dict[str, Any]:
        """Arguments of transformers' LlamaConfig; `length` is the most places of a row."""
        return {
            "hidden_size": self.dim,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.hidden,
            "vocab_size": self.vocab,
            "rms_norm_eps": self.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "max_position_embeddings": length,
            "tie_word_embeddings": False,
        }


def hidden_width(dim: int, multiple_of: int, factor: float | None = None) -> int:
    """Width of the feed-forward: two thirds of 4 * dim, times `factor`, rounded up to a multiple of `multiple_of`."""
    width = int(2 * 4 * dim / 3)
    if factor is not None:
        width = int(factor * width)
    return multiple_of * -(-width // multiple_of)


# ------------------------------------------------------------------------------------------------------ order of rows


def to_halves(heads: int) -> Turn:
    """Rows [heads*d,...] from pairs next to each other (Meta) to two halves of a head (transformers)."""
    return lambda x: x.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(x.shape)


def to_pairs(heads: int) -> Turn:
    """The way back from `to_halves`."""
    return lambda x: x.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(x.shape)


def turns(linear: str, heads: int, kv_heads: int) -> dict[str, Turn]:
    """`into` and `out` of a rule for something with an entry for each output of `linear` (Meta's name); often none."""
    if linear not in ROTATED:
        return {}
    number = heads if linear.endswith("wq") else kv_heads
    return {"into": to_halves(number), "out": to_pairs(number)}


# ------------------------------------------------------------------------------------------------------------ tables


def backbone(heads: int, kv_heads: int, theirs: str = "", ours: str = OURS, tied: bool = False) -> list[Rule]:
    """Rules for every weight of a LLaMA.

    Args:
        theirs, ours: what stands before the names on either side.
        tied: whether the head is the embedding, and so not stored by transformers.
    """
    rules = [
        Rule(f"{theirs}tok_embeddings.weight", f"{ours}model.embed_tokens.weight"),
        *per_linear("{linear}.weight", "{linear}.weight", heads, kv_heads, theirs=theirs, ours=ours),
        *norms(theirs=theirs, ours=ours),
    ]
    return rules if tied else [*rules, Rule(f"{theirs}output.weight", f"{ours}lm_head.weight")]


def norms(theirs: str = "", ours: str = OURS, last: bool = True, optional: bool = False) -> list[Rule]:
    """Rules for the norms of the layers and, with `last`, the one after them."""
    rules = [
        Rule(
            f"{theirs}layers.{{i}}.{name}.weight",
            f"{ours}model.layers.{{i}}.{ours_name}.weight",
            optional=optional,
        )
        for name, ours_name in NORMS.items()
    ]
    final = Rule(f"{theirs}norm.weight", f"{ours}model.norm.weight", optional=optional)
    return [*rules, final] if last else rules


def per_linear(
    theirs_name: str,
    ours_name: str,
    heads: int,
    kv_heads: int,
    linears: Sequence[str] = tuple(LINEARS),
    by_output: bool = True,
    theirs: str = "",
    ours: str = OURS,
    optional: bool = False,
) -> list[Rule]:
    """One rule for each of `linears` (Meta's names), for something that every layer has beside these matrices.

        per_linear("{linear}.bias", "{linear}.bias", 32, 32, ["attention.wq", "attention.wo"])
        per_linear("{block}.lora_{leaf}_l2.weight", "{linear}.lora_B.default.weight", 32, 32)

    Args:
        theirs_name: `{linear}` stands for attention.wq, `{block}` for attention and `{leaf}` for wq.
        ours_name: the same of transformers' name: self_attn.q_proj, self_attn, q_proj.
        by_output: whether the first axis is the output of the matrix, so that the order of rows matters.
    """
    return [
        Rule(
            f"{theirs}layers.{{i}}." + _fill(theirs_name, linear),
            f"{ours}model.layers.{{i}}." + _fill(ours_name, LINEARS[linear]),
            optional=optional,
            **(turns(linear, heads, kv_heads) if by_output else {}),
        )
        for linear in linears
    ]


def _fill(pattern: str, linear: str) -> str:
    block, leaf = linear.split(".")
    for field, value in (("{linear}", linear), ("{block}", block), ("{leaf}", leaf)):
        pattern = pattern.replace(field, value)
    return pattern


# ------------------------------------------------------------------------------------------------------------ shards


def shard_axis(name: str, whole_dim: int, tensor: Tensor) -> int | None:
    """The axis along which the ranks of a run cut a tensor of Meta's; none for one that each of them holds.

    The embedding is cut along its width in LLaMA 1 and 2, later along the vocabulary, as `whole_dim` says. Of what
    LLaMA-Adapter adds, a bias is cut where the outputs are and a scale where the inputs are.

    Raises:
        CheckpointError: a name that is not of a LLaMA.
    """
    if name.endswith(("norm.weight", "rope.freqs")):
        return None
    if name == "tok_embeddings.weight":
        return 1 if tensor.shape[1] != whole_dim else 0
    if name == "output.weight":
        return 0
    piece = ".".join(name.split(".")[2:])
    linear, _, kind = piece.rpartition(".") if piece.endswith((".weight", ".bias")) else piece.rpartition("_")
    if linear in _BY_ROWS and kind in ("weight", "bias", "scale"):
        return None if kind == "scale" else 0
    if linear in _BY_COLUMNS and kind in ("weight", "bias", "scale"):
        return {"weight": 1, "bias": None, "scale": 0}[kind]
    raise CheckpointError(seen=f"{name} among shards of a LLaMA", expected="names of Meta's layout, without a prefix")


def merge(shards: Sequence[Mapping[str, Tensor]], dim: int) -> dict[str, Tensor]:
    """The files of all ranks, in order of their numbers, as one.

    Args:
        dim: width of the model, from params.json.

    Raises:
        CheckpointError: no file at all, files with different names, or replicated tensors that differ; all listed.
    """
    if not shards:
        raise CheckpointError(
            seen="no consolidated.*.pth",
            expected="the weights of a LLaMA in Meta's layout",
            hint="name the folder of one size, such as LLaMA/7B",
        )
    first, *others = shards
    wrong = [
        f"{name}: not in every file" for name in sorted(set().union(*shards)) if any(name not in s for s in shards)
    ]
    if wrong:
        raise CheckpointError(seen="shards that do not fit: " + "; ".join(wrong), expected="the same names in each")
    if not others:
        return dict(first)
    whole: dict[str, Tensor] = {}
    for name, tensor in first.items():
        pieces = [tensor, *(shard[name] for shard in others)]
        axis = shard_axis(name, dim, tensor)
        if axis is not None:
            whole[name] = torch.cat(pieces, dim=axis)
        elif all(piece.shape == tensor.shape and torch.equal(piece, tensor) for piece in pieces):
            whole[name] = tensor
        else:
            wrong.append(f"{name}: every rank holds it, but they differ")
    if wrong:
        raise CheckpointError(seen="shards that do not fit: " + "; ".join(wrong), expected="files of one model")
    return whole
