"""What the cases over a LLaMA share: a model of the file's sizes, and the passes that the files hold outputs of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import LlamaConfig
from vectors._base import Got

from mmtune.checkpoint.foreign import _llama
from mmtune.errors import CheckpointError
from mmtune.llm.hf import HF, Config
from mmtune.types import IGNORE, Batch

Forward = Callable[[Batch, Any], Tensor]
"""(batch, cache) -> hidden [B,T,D]"""


def language_model(config: Mapping[str, Any]) -> HF:
    """A random LLaMA of the sizes that a vector's `config` gives, with a tokenizer that nobody asks."""
    shape = _llama.Shape.read(config)
    with tempfile.TemporaryDirectory() as name:
        hf_config = shape.config(int(config.get("max_seq_len", 64)))
        LlamaConfig(architectures=["LlamaForCausalLM"], **hf_config).save_pretrained(name)
        words = models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")
        Tokenizer(words).save(str(Path(name) / "tokenizer.json"))
        llm = HF(Config(folder=name))
        llm.load_weights()
    return llm.requires_grad_(False)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], but: Sequence[str] = ()) -> None:
    """Put tensors into a module by name: every parameter of it and no other name, except names in `but`."""
    own = dict(module.named_parameters())
    wrong = [f"missing {name}" for name in own if name not in tensors and name not in but]
    wrong += [f"unexpected {name}" for name in tensors if name not in own]
    wrong += [f"of another shape {n}" for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    if wrong:
        raise CheckpointError(seen="; ".join(wrong), expected="every parameter of the model and no other")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def batch(tokens: Tensor, labels: Tensor | None = None, start: int = 0, **media: Any) -> Batch:
    """Tokens [B,T], published labels [B,T] (0: not scored, not shifted) -> a batch of one sample in each row."""
    ours = torch.full_like(tokens, IGNORE)
    if labels is not None:
        ours[:, :-1] = torch.where(labels[:, 1:] == 0, IGNORE, labels[:, 1:])
    positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    return Batch(tokens, ours, positions, torch.ones_like(tokens, dtype=torch.int32), **media)


def whole(llm: HF, forward: Forward, given: Batch, outputs: Mapping[str, Tensor]) -> Iterator[Got]:
    """`logits`, `hidden_<layer>` where the file has them, and `loss` where the batch has labels."""
    states: dict[int, Tensor] = {}
    layers = llm.model.get_decoder().layers
    hooks = [
        layer.register_forward_hook(lambda module, args, out, i=i: states.__setitem__(i, out))
        for i, layer in enumerate(layers)
    ]
    hidden = forward(given, None)
    for hook in hooks:
        hook.remove()
    logits = llm.head(hidden)
    yield Got("logits", logits)
    for i, state in states.items():
        if f"hidden_{i}" in outputs:
            yield Got(f"hidden_{i}", state)
    if "loss" in outputs:
        wanted = given.labels != IGNORE
        loss = nn.functional.cross_entropy(logits[wanted], given.labels[wanted])
        yield Got("loss", loss.reshape(outputs["loss"].shape))


def steps(llm: HF, forward: Forward, tokens: Tensor, prefill: int, **media: Any) -> Tensor:
    """Last logits after `prefill` tokens, then after each further token with the cache -> [B,T-prefill+1,V]"""
    cache = llm.new_cache()
    found = [llm.head(forward(batch(tokens[:, :prefill], **media), cache)[:, -1])]
    for t in range(prefill, tokens.shape[1]):
        found.append(llm.head(forward(batch(tokens[:, t : t + 1], start=t, **media), cache)[:, -1]))
    return torch.stack(found, dim=1)
