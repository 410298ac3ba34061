"""The layers against formulas written out in the plainest way."""

import pytest
import torch
from torch.nn import functional as F

from mmtune.errors import ModelError
from mmtune.layers.attention import attend
from mmtune.layers.norm import LayerNormFloat32
from mmtune.layers.positions import FramePositions, pool_grid, pooling_matrix, resize_grid
from mmtune.layers.qformer import QFormer


def test_attention_by_hand():
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    want = torch.zeros(2, 3, 8)
    for b in range(2):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            scores = q[b, :, part] @ k[b, mask[b], part].T / 2
            want[b, :, part] = scores.softmax(-1) @ v[b, mask[b], part]
    torch.testing.assert_close(attend(q, k, v, 2, mask), want)


def test_attention_with_nothing_to_see_is_finite():
    q, k = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    assert torch.isfinite(attend(q, k, k, 2, torch.zeros(1, 5, dtype=torch.bool))).all()


def test_norm_in_half_precision_survives_a_tiny_epsilon():
    norm = LayerNormFloat32(8, eps=1e-12).half()
    out = norm(torch.full((1, 8), 3.0).half())
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(("size", "bins"), [(24, 12), (9, 6), (7, 5), (4, 6), (3, 8), (1, 4), (5, 5), (8, 1)])
def test_pooling_matrix_is_adaptive_average_pooling(size, bins):
    x = torch.randn(3, size)
    torch.testing.assert_close(x @ pooling_matrix(size, bins).T, F.adaptive_avg_pool1d(x, bins))


@pytest.mark.parametrize(("grid", "bins"), [((6, 4), (3, 2)), ((9, 7), (4, 5)), ((3, 3), (3, 3))])
def test_pool_grid(grid, bins):
    x = torch.randn(2, grid[0] * grid[1], 5)
    want = F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, grid), bins).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_grid(x, grid, bins), want)


def test_a_matrix_made_while_answering_serves_training():
    with torch.inference_mode():
        pooling_matrix(11, 3)
    x = torch.randn(11, 2, requires_grad=True)
    (pooling_matrix(11, 3) @ x).sum().backward()
    assert x.grad is not None


def test_frame_positions_end():
    table = FramePositions(4, 6)
    assert torch.equal(table(3), table.weight[:3])
    with pytest.raises(ModelError, match="5 frames"):
        table(5)


def test_resize_grid():
    table = torch.randn(1 + 9, 4)
    assert resize_grid(table, (3, 3), (3, 3), prefix=1) is table
    larger = resize_grid(table, (3, 3), (6, 6), prefix=1)
    assert larger.shape == (37, 4)
    assert torch.equal(larger[0], table[0])
    even = torch.cat([table[:1], torch.ones(9, 4)])
    torch.testing.assert_close(resize_grid(even, (3, 3), (5, 4), prefix=1)[1:], torch.ones(20, 4))
    rough = resize_grid(table, (3, 3), (2, 2), prefix=1, antialias=False)[1:]
    body = table[1:].T.reshape(1, 4, 3, 3)
    want = F.interpolate(body, size=(2, 2), mode="bicubic", align_corners=False)
    torch.testing.assert_close(rough, want[0].flatten(1).T)
    assert not torch.allclose(rough, resize_grid(table, (3, 3), (2, 2), prefix=1)[1:], atol=0.01)
    with pytest.raises(ModelError, match="10 rows"):
        resize_grid(table, (2, 2), (3, 3), prefix=1)


def reference(state, queries, memory, heads, layers, every):
    """BERT's post-norm layers over a dict of weights, one sample at a time, without any of the code under test."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, y, name):
        q, k, v = (linear(z, f"{name}.self.{part}") for z, part in ((x, "query"), (y, "key"), (y, "value")))
        size = q.shape[-1] // heads
        out = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            out.append((q[:, part] @ k[:, part].T / size**0.5).softmax(-1) @ v[:, part])
        return norm(linear(torch.cat(out, -1), f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    x = norm(queries, "embeddings.LayerNorm")
    for n in range(layers):
        name = f"encoder.layer.{n}"
        x = attention(x, x, f"{name}.attention")
        if n % every == 0:
            x = attention(x, memory, f"{name}.crossattention")
        inner = linear(x, f"{name}.intermediate_query.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = norm(linear(inner, f"{name}.output_query.dense") + x, f"{name}.output_query.LayerNorm")
    return x


@pytest.mark.parametrize("every", [1, 2])
def test_qformer_by_hand(every):
    torch.manual_seed(0)
    model = QFormer(width=8, depth=3, heads=2, inner=12, memory_width=6, cross_every=every).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries, memory = torch.randn(1, 4, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out = model(queries, memory, mask)
    state = model.state_dict()
    for b in range(2):
        want = reference(state, queries[0], memory[b][mask[b]], 2, 3, every)
        torch.testing.assert_close(out[b], want, rtol=1e-5, atol=1e-5)


def test_qformer_has_the_published_names_and_start():
    model = QFormer(width=8, depth=2, heads=2, inner=12, memory_width=6, cross_every=2)
    names = set(model.state_dict())
    sub = {f"{part}.{kind}" for part in ("self.query", "self.key", "self.value") for kind in ("weight", "bias")}
    sub |= {f"output.{part}.{kind}" for part in ("dense", "LayerNorm") for kind in ("weight", "bias")}
    want = {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
    for n in range(2):
        layer = f"encoder.layer.{n}"
        want |= {f"{layer}.attention.{s}" for s in sub} | (
            {f"{layer}.crossattention.{s}" for s in sub} if n == 0 else set()
        )
        for part in ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"):
            want |= {f"{layer}.{part}.{kind}" for kind in ("weight", "bias")}
    assert names == want
    big = QFormer(width=64, depth=1, heads=4, inner=256, memory_width=64)
    weight = big.encoder.layer[0].intermediate_query.dense.weight
    assert 0.019 < weight.std() < 0.021
    assert not big.encoder.layer[0].attention.get_submodule("self").query.bias.any()


def test_qformer_drops_out_only_in_training():
    model = QFormer(width=8, depth=1, heads=2, inner=12, memory_width=6, dropout=0.5)
    queries, memory = torch.randn(1, 4, 8), torch.randn(1, 5, 6)
    assert not torch.equal(model(queries, memory), model(queries, memory))
    model.eval()
    assert torch.equal(model(queries, memory), model(queries, memory))


def test_heads_must_divide_the_width():
    with pytest.raises(ModelError, match="3 heads"):
        QFormer(width=8, depth=1, heads=3, inner=12, memory_width=6)
