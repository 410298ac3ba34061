"""Multi-head attention over tensors that are not split into heads yet."""

from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B,T,E] -> [B,H,T,E/H]"""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B,H,T,E/H] -> [B,T,E]"""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with scale 1/sqrt(E/H).

    query [B,T,E], key and value [B,S,E] -> [B,T,E]. `mask` is bool [B,S], true where a key may be seen; a row that may
    see no key at all sees every key, so that its result is finite (the caller masks such rows). `dropout` is applied
    to the attention probabilities.
    """
    if mask is not None:
        mask = mask | ~mask.any(dim=1, keepdim=True)
        mask = mask[:, None, None, :]
    out = F.scaled_dot_product_attention(
        split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), attn_mask=mask, dropout_p=dropout
    )
    return merge_heads(out)
