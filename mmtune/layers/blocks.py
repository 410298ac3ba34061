"""Pre-norm transformer blocks of vision transformers, for modules that attend over media tokens.

Source: the ViT block (arXiv 2010.11929, section 3.1) as LLaMA-Adapter V2's visual projection uses it: norm, attention,
residual, norm, feed-forward with exact GELU, residual; norm epsilon 1e-5, computed in float32; a bias everywhere.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.layers.attention import attend
from mmtune.layers.norm import LayerNormFloat32


class _Attention(nn.Module):
    """Self-attention; one matrix makes queries, keys and values, in this order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(query, key, value, self.heads, mask))


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One block; keys `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`, as published.

    [B,T,E], bool [B,T] true where a token may be seen (none: all) -> [B,T,E]
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = LayerNormFloat32(width)
        self.attn = _Attention(width, heads)
        self.norm2 = LayerNormFloat32(width)
        self.mlp = _FeedForward(width, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))
