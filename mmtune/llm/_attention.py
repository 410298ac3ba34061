"""The one attention function of every language model: who may look at whom, and where gated prompts come in.

Registered with transformers' attention interface, it is reached with queries and keys already rotated, keys already
joined with the cache, and the output projection still to come. Nothing of a model class is patched or copied, and the
mask has one source: the segments of the call. Everything that belongs to one call is in a `Call`, which travels down
the stack as an argument and is gone when the call returns; nothing is kept on a module.

Two packed samples with positions that restart but no mask see each other, without any error (logits off by 0.5 on a
tiny model), so there is no road through this file on which a packed row goes without a block-causal mask.

Letters: B rows, T tokens of the call, P cached tokens before them, S segments, H heads, d width of a head,
L prompt length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.errors import ModelError

NAME = "mmtune"
"""Name under which the function is registered with transformers."""

AttentionTerm = Callable[[nn.Module, Tensor, "Call"], Tensor]
"""A term added to the output of one attention module: (module, rotated queries [B,H,T,d], call) -> [B,T,H,d]."""


Prefix = Mapping[int, tuple[Tensor, Tensor]]
"""Layer to keys and values [1,h,L,d] that stand before every segment, rotated where the model rotates."""


@dataclass
class Call:
    """What one forward pass knows about attention.

    `segments` int [B,T] of the tokens of this call, or None: every row is one segment without padding. `seen` int
    [B,P] are the segments of the cached tokens, None where `segments` is None. A token sees the tokens of its own
    segment up to itself. Padding (segment 0) sees padding only: its results are not used, and no row of the
    softmax is empty. `attention_terms` are added to the output of the attention modules they name by layer number.
    """

    length: int
    past: int = 0
    segments: Tensor | None = None
    seen: Tensor | None = None
    attention_terms: Mapping[int, Sequence[AttentionTerm]] = field(default_factory=dict)
    prefix: Prefix = field(default_factory=dict)
    """Seen by every token, also from outside a sliding window."""
    reference: bool = False
    """Write the formula out in float32 instead of using a fused kernel."""
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """Bool [B or 1,1,T,P+T], True where a query may look; None where plain causal attention says the same.

        `window` is the number of tokens, itself included, that a sliding-window layer may look back on. A mask is made
        once for each window.
        """
        total = self.past + self.length
        if window is not None and window >= total:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make(window, total, device)
        return self._masks[window]

    def _make(self, window: int | None, total: int, device: torch.device) -> Tensor | None:
        if self.segments is None and window is None and (self.length == 1 or (self.past == 0 and not self.prefix)):
            return None
        positions = torch.arange(total, device=device)[None]
        allowed = positions[:, None] <= positions[:, self.past :, None]
        if self.segments is not None:
            keys = self.segments if self.seen is None else torch.cat([self.seen, self.segments], dim=1)
            allowed = allowed & (self.segments[:, :, None] == keys[:, None])
            # Padding may be between a prompt and what is decoded after it; a window does not count it.
            positions = (keys > 0).cumsum(1)
        if window is not None:
            allowed = allowed & (positions[:, None] > positions[:, self.past :, None] - window)
        return allowed[:, None]


def plain(segments: Tensor) -> bool:
    """Whether every row of int [B,T] is one segment (1) without padding, so that no mask is needed."""
    return bool((segments == 1).all())


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values [B,h,P,d] of grouped-query attention, each head repeated to [B,H,P,d] in order."""
    times = heads // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    mmtune_call: Call | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B,H,T,d], key and value [B,h,P+T,d] -> ([B,T,H,d], None).

    `attention_mask` is what the model made of its own accord; it is None, as no mask is registered under our name.

    Raises:
        ModelError: the model does not hand the call down, or asks for a variant of attention not written here.
    """
    call = mmtune_call
    if call is None:
        raise ModelError(
            seen=f"{type(module).__name__} was reached without the segments of its call",
            expected="a model class of transformers that hands extra arguments down to its attention",
            hint="run the model through mmtune's LLM.forward; if you did, this architecture is not supported",
        )
    asked = sorted(name for name in _REFUSED if others.get(name) is not None)
    if asked or attention_mask is not None:
        raise ModelError(
            seen=f"{type(module).__name__} asks for attention with {', '.join(asked) or 'a mask of its own'}",
            expected="softmax attention with a causal mask, with or without a sliding window",
            hint="this architecture is not supported yet",
        )
    heads = query.shape[1]
    mask = call.mask(sliding_window, query.device)
    first = call.prefix.get(getattr(module, "layer_idx", -1))
    if first is not None:
        key, value = (
            torch.cat([a.to(b.dtype).expand(len(b), -1, -1, -1), b], 2)
            for a, b in zip(first, (key, value), strict=True)
        )
        mask = None if mask is None else F.pad(mask, (first[0].shape[2], 0), value=True)
    key, value = repeat_heads(key, heads), repeat_heads(value, heads)
    causal = mask is None and call.length > 1
    if call.reference:
        out = _written_out(query, key, value, mask, causal, dropout, scaling)
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
        )
    out = out.transpose(1, 2)
    for term in call.attention_terms.get(getattr(module, "layer_idx", -1), ()):
        out = out + term(module, query, call)
    return out.contiguous(), None


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float, scaling: float | None
) -> Tensor:
    scores = query.float() @ key.float().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (F.dropout(scores.softmax(-1), dropout) @ value.float()).to(query.dtype)


_REFUSED = ("softcap", "s_aux", "position_bias", "head_mask")
"""Variants that change the numbers; going on without them would be wrong in silence."""


def prompt_term(
    module: nn.Module, query: Tensor, prompts: Tensor, mask: Tensor | None, segments: Tensor | None, gate: Tensor
) -> Tensor:
    """What prompts add to an attention module: gate * softmax(q k^T) v over the prompts alone.

    `prompts` [B,S,L,D] belong to segments 1..S of each row; `mask` bool of the same shape without D marks the real
    ones, None says that all are. [1,1,L,D] without a mask belong to every token, with one to segment 1. Keys and values
    are the module's own projections of the prompts, without the norm before the layer and without rotation; queries are
    rotated; the softmax has its own sum. `gate` (tanh already applied where the method has one) broadcasts against
    [B,T,H,d]. A token whose segment has no prompt gets zero. -> [B,T,H,d]

    LLaMA-Adapter (arXiv 2303.16199), equations 5 to 8, and LLaMA-Adapter V2 (arXiv 2304.15010).
    """
    b, heads, length, d = query.shape
    rows, owners, size, _ = prompts.shape
    key, value = _keys_and_values(module, prompts.reshape(rows, owners * size, -1).to(query.dtype), d)
    key, value = (repeat_heads(x, heads).expand(b, -1, -1, -1) for x in (key, value))
    if mask is None and (rows, owners) == (1, 1):
        term = F.scaled_dot_product_attention(query, key, value, scale=module.scaling).transpose(1, 2)
        return gate.to(term.dtype) * term
    mask = prompts.new_ones(rows, owners, size, dtype=torch.bool) if mask is None else mask
    owned = mask.reshape(rows, 1, owners * size).expand(b, length, -1)
    segments = query.new_ones(b, length) if segments is None else segments
    owner = torch.arange(1, owners + 1, device=query.device).repeat_interleave(size)
    owned = owned & (segments[:, :, None] == owner)
    some = owned.any(-1)
    allowed = (owned | ~some[..., None])[:, None]
    term = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=module.scaling).transpose(1, 2)
    return gate.to(term.dtype) * term * some[:, :, None, None]


def _keys_and_values(module: nn.Module, prompts: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Prompts [R,P,D] -> keys and values [R,h,P,d] by the module's own matrices.

    What `peft` put around a matrix is left out, as published: low-rank pairs are for the text. A norm that the model
    has on its keys belongs to them, or they would meet the queries at another scale.
    """
    if not (hasattr(module, "k_proj") and hasattr(module, "v_proj")):
        raise ModelError(
            seen=f"prompts in {type(module).__name__}, which has no k_proj and v_proj",
            expected="attention with matrices of these names, as Llama, Qwen, Mistral and Gemma have",
            hint="this architecture takes media as tokens only: fusion.name=tokens",
        )
    k, v = _bare(module.k_proj)(prompts), _bare(module.v_proj)(prompts)
    norm = getattr(module, "k_norm", None)
    if norm is None:
        k = k.unflatten(-1, (-1, d))
    elif norm.weight.shape[-1] == d:
        k = norm(k.unflatten(-1, (-1, d)))
    else:
        k = norm(k).unflatten(-1, (-1, d))
    return k.transpose(1, 2), v.unflatten(-1, (-1, d)).transpose(1, 2)


def _bare(projection: nn.Module) -> nn.Module:
    """A matrix without what `peft` put around it."""
    while hasattr(projection, "base_layer"):
        projection = projection.base_layer
    return projection


def register() -> str:
    """Make the function known to transformers; returns the name to ask for. May be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME
