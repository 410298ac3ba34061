"""A tiny LLaMA folder as Meta lays it out: params.json, weights cut for several ranks, and a sentencepiece file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

DIM, LAYERS, HEADS, HIDDEN = 32, 3, 4, 96
"""HIDDEN follows from `multiple_of`: two thirds of 4 * 32, rounded up to 32 * 3."""
WORDS = ["▁", "▁a", "▁red", "▁b", "re", "ed", "red", "a", "b", "c", "d", "e", "r", "<", "s", ">", "/", "p", "o", "t"]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece(squeeze: bool = False, unigram: bool = False) -> bytes:
    """A byte-pair model; pieces that come first have better scores, as sentencepiece writes them."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, -float(place), 1) for place, word in enumerate(WORDS)]
    body = b"".join(field(1, field(1, t.encode()) + field(2, s) + field(3, k)) for t, s, k in pieces)
    trainer = field(3, 1 if unigram else 2) + field(35, 1)
    return body + field(2, trainer) + field(3, field(3, 1) + field(4, int(squeeze)) + field(5, 1))


def vocabulary() -> int:
    return 3 + 256 + len(WORDS)


def weights() -> dict[str, Tensor]:
    """Every tensor, whole, in Meta's order of rows."""
    made = {
        "tok_embeddings.weight": torch.randn(vocabulary(), DIM),
        "norm.weight": torch.rand(DIM) + 0.5,
        "output.weight": torch.randn(vocabulary(), DIM),
    }
    for i in range(LAYERS):
        for name in ("wq", "wk", "wv", "wo"):
            made[f"layers.{i}.attention.{name}.weight"] = torch.randn(DIM, DIM) / DIM**0.5
        for name, shape in (("w1", (HIDDEN, DIM)), ("w2", (DIM, HIDDEN)), ("w3", (HIDDEN, DIM))):
            made[f"layers.{i}.feed_forward.{name}.weight"] = torch.randn(*shape) / DIM**0.5
        for name in ("attention_norm", "ffn_norm"):
            made[f"layers.{i}.{name}.weight"] = torch.rand(DIM) + 0.5
    return made


def cut(name: str, tensor: Tensor, ranks: int) -> list[Tensor]:
    """What each rank holds."""
    if "norm" in name:
        return [tensor] * ranks
    columns = name.endswith(("wo.weight", "w2.weight", "tok_embeddings.weight"))
    return [piece.clone() for piece in tensor.chunk(ranks, dim=1 if columns else 0)]


def transformers_folder(path: Path) -> Path:
    """A LLaMA of the same sizes in transformers' layout, which is read where it lies and without another process."""
    from tests.llm.tiny import folder as tiny
    from tests.llm.tiny import llama_bpe

    sizes = {"num_hidden_layers": LAYERS, "intermediate_size": HIDDEN, "num_key_value_heads": HEADS}
    tiny(path, "llama", tokenizer=llama_bpe(), hidden_size=DIM, **sizes)
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return path


def folder(path: Path, ranks: int = 2) -> Path:
    """The folder of one size; the tokenizer lies one folder up, as published."""
    path.mkdir(parents=True)
    params = {"dim": DIM, "multiple_of": 32, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": 1e-6, "vocab_size": -1}
    (path / "params.json").write_text(json.dumps(params))
    (path.parent / "tokenizer.model").write_bytes(sentencepiece())
    whole = {name: cut(name, tensor, ranks) for name, tensor in weights().items()}
    for rank in range(ranks):
        tensors = {name: pieces[rank] for name, pieces in whole.items()}
        torch.save({**tensors, "rope.freqs": torch.zeros(4)}, path / f"consolidated.{rank:02}.pth")
    return path
