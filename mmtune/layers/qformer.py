"""Querying transformer: BERT layers over learned queries that also attend to a memory of media tokens.

Source: BLIP-2, arXiv 2301.12597, section 3.1; Video-LLaMA, arXiv 2306.02858, uses two such layers with cross-attention
in each. Only the query side exists here: the text feed-forward, word and position embeddings and heads of the stage-1
model take no part once a language model reads the queries.

Parameter names are those of the published checkpoints with the leading `...Qformer.bert.` removed:
`embeddings.LayerNorm`, `encoder.layer.N.attention.self.query`, `encoder.layer.N.crossattention.output.dense`,
`encoder.layer.N.intermediate_query.dense`, `encoder.layer.N.output_query.LayerNorm` and so on. Post-norm, exact GELU,
norm epsilon 1e-12 computed in float32.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mmtune.errors import ModelError
from mmtune.layers.attention import attend
from mmtune.layers.norm import LayerNormFloat32

EPSILON = 1e-12
INIT_STD = 0.02


class _Heads(nn.Module):
    """Query, key and value projections and the attention itself.  [B,T,E], memory [B,S,W] -> [B,T,E]"""

    def __init__(self, width: int, heads: int, memory_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return attend(self.query(x), self.key(memory), self.value(memory), self.heads, mask, dropout)


class _Residual(nn.Module):
    """Linear, dropout, then norm of the sum with the residual.  [B,T,inner] -> [B,T,E]"""

    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = LayerNormFloat32(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _Attention(nn.Module):
    """Attention sub-layer with its residual; `self` and `output` are the published names."""

    def __init__(self, width: int, heads: int, memory_width: int, dropout: float) -> None:
        super().__init__()
        self.add_module("self", _Heads(width, heads, memory_width, dropout))
        self.output = _Residual(width, width, dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.get_submodule("self")(x, memory, mask), x)


class _Inner(nn.Module):
    """First half of the feed-forward.  [B,T,E] -> [B,T,inner]"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention (none when `memory_width` is None), feed-forward; each then its norm."""

    def __init__(self, width: int, heads: int, inner: int, memory_width: int | None, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, width, dropout)
        self.crossattention = None if memory_width is None else _Attention(width, heads, memory_width, dropout)
        self.intermediate_query = _Inner(width, inner)
        self.output_query = _Residual(inner, width, dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B,Q,E], memory [B,S,W], bool mask [B,S] over the memory -> [B,Q,E]"""
        x = self.attention(x, x, None)
        if self.crossattention is not None:
            x = self.crossattention(x, memory, mask)
        return self.output_query(self.intermediate_query(x), x)


class _Embeddings(nn.Module):
    """Norm and dropout over the queries as they are: no position, no type."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.LayerNorm = LayerNormFloat32(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor) -> Tensor:
        return self.dropout(self.LayerNorm(queries))


class _Encoder(nn.Module):
    def __init__(self, layers: list[QFormerLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class QFormer(nn.Module):
    """Stack of Q-Former layers.

    Args:
        width: width E of the queries and of every layer (BERT base: 768).
        depth: number of layers.
        heads: attention heads H; must divide `width`.
        inner: width of the feed-forward (BERT base: 3072).
        memory_width: width of the media tokens that are attended to.
        cross_every: cross-attention in layers 0, n, 2n, ...; 2 in BLIP-2, 1 in Video-LLaMA's own Q-Formers.
        dropout: on attention probabilities, sub-layer outputs and embedded queries (0.1 in the published models).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        inner: int,
        memory_width: int,
        cross_every: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(
                seen=f"width {width} with {heads} heads",
                expected="a width that the heads divide",
                hint="change `heads`",
            )
        self.embeddings = _Embeddings(width, dropout)
        self.encoder = _Encoder(
            [
                QFormerLayer(width, heads, inner, memory_width if i % cross_every == 0 else None, dropout)
                for i in range(depth)
            ]
        )
        self.apply(init_bert)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries [B,Q,E] (or [1,Q,E] for all), memory [B,S,W], bool [B,S] true where memory is real -> [B,Q,E]"""
        x = self.embeddings(queries.expand(memory.shape[0], -1, -1))
        for layer in self.encoder.layer:
            x = layer(x, memory, mask)
        return x


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation: linear weights N(0, 0.02), biases 0; norms stay at 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
