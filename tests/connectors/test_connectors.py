"""What each connector computes, against the definition written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmtune.connectors import linear, mlp, pool, qformer, video_qformer
from mmtune.errors import ConfigError
from mmtune.types import Features, FeatureShape


def shape(grid=(6, 4), frames=8, width=5):
    return FeatureShape(width, grid[0] * grid[1], grid, frames)


def full(frames, s, items=2):
    x = torch.randn(items, frames, s.tokens, s.width)
    return Features(x, torch.ones(items, frames, dtype=torch.bool), s.grid)


def plain_pool(connector, x, grid, bins):
    """Perceptron first, pooling last, as it is written in the paper: [M,F,N,E] -> [M,K,D]"""
    y = connector.linear_2(F.gelu(connector.linear_1(x))).unflatten(2, grid).permute(0, 4, 1, 2, 3)
    return F.adaptive_avg_pool3d(y, bins).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("grid", "frames", "bins"),
    [
        ((6, 4), 8, (8, 3, 2)),
        ((9, 7), 8, (3, 4, 5)),
        ((5, 5), 4, (2, 3, 3)),
        ((4, 4), 3, (3, 4, 4)),
        ((2, 2), 2, (1, 4, 4)),
    ],
)
def test_pool_is_pooling_after_the_perceptron(grid, frames, bins):
    s = shape(grid, frames)
    connector = pool.Pool(pool.Config(time=bins[0], height=bins[1], width=bins[2]), s, 7)
    features = full(frames, s)
    torch.testing.assert_close(connector(features).tokens, plain_pool(connector, features.tokens, grid, bins))


def test_pool_repeats_frames_of_a_short_video():
    s = shape(frames=8)
    connector = pool.Pool(pool.Config(time=8, height=2, width=2, short="repeat"), s, 7)
    features = full(3, s)
    repeated = features.tokens.repeat_interleave(3, dim=1)[:, :8]
    want = plain_pool(connector, repeated, s.grid, (8, 2, 2))
    torch.testing.assert_close(connector(features).tokens, want)
    assert connector.tokens_out(1) == connector.tokens_out(8) == 32


def test_pool_gives_an_image_one_time_bin():
    s = shape()
    connector = pool.Pool(pool.Config(time=4, height=3, width=2, bins=True), s, 7)
    assert [connector.tokens_out(f) for f in (1, 2, 4, 8)] == [6, 12, 24, 24]
    image = full(1, s)
    want = plain_pool(connector, image.tokens, s.grid, (1, 3, 2)) + connector.bins.mean(0)
    torch.testing.assert_close(connector(image).tokens, want)
    video = full(8, s)
    want = plain_pool(connector, video.tokens, s.grid, (4, 3, 2)) + connector.bins.flatten(0, 1)
    torch.testing.assert_close(connector(video).tokens, want)


def test_pool_as_published_has_two_linear_layers_only():
    connector = pool.Pool(pool.Config(), shape(grid=(24, 24), frames=16, width=8), 12)
    shapes = {name: tuple(t.shape) for name, t in connector.state_dict().items()}
    want = {"linear_1.weight": (12, 8), "linear_1.bias": (12,), "linear_2.weight": (12, 12), "linear_2.bias": (12,)}
    assert shapes == want
    assert connector.tokens_out(16) == 2304


def test_pool_needs_a_grid():
    with pytest.raises(ConfigError, match="`pool`"):
        pool.Pool(pool.Config(), FeatureShape(4, 5, None, 1), 6)


def test_linear_and_mlp():
    s = shape()
    features = full(3, s)
    one = linear.Linear(linear.Config(), s, 7)
    torch.testing.assert_close(one(features).tokens, one.proj(features.tokens).flatten(1, 2))
    two = mlp.Mlp(mlp.Config(), s, 7)
    want = nn.Sequential(two.layers[0], nn.GELU(), two.layers[1])(features.tokens).flatten(1, 2)
    torch.testing.assert_close(two(features).tokens, want)
    assert [tuple(layer.weight.shape) for layer in two.layers] == [(7, 5), (7, 7)]
    assert two.tokens_out(3) == 72


def test_gain_is_learned_and_matched():
    s = shape()
    connector = linear.Linear(linear.Config(gain=3.0), s, 7)
    torch.testing.assert_close(connector(full(1, s)).tokens.shape[1], 24)
    assert connector.scale.gain.item() == 3.0
    connector.calibrate(0.5)
    assert connector.scale.gain.item() == 3.0
    matched = linear.Linear(linear.Config(match_scale=True, out_norm=True), s, 7)
    matched.calibrate(0.5)
    assert matched.scale.gain.item() == 0.5
    assert linear.Linear(linear.Config(), s, 7).scale.gain is None


def test_qformer_reads_each_frame_alone():
    s = shape(grid=(2, 2), frames=3)
    connector = qformer.FrameQFormer(qformer.Config(queries=3, width=8, depth=3, heads=2), s, 7).eval()
    for parameter in connector.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = full(3, s)
    want = []
    for frame in features.tokens.flatten(0, 1):
        want.append(connector.proj(connector.qformer(connector.query_tokens, frame[None]))[0])
    out = connector(features).tokens
    torch.testing.assert_close(out, torch.stack(want).view(2, 9, 7), rtol=1e-5, atol=1e-5)
    turned = Features(features.tokens.flip(1), features.frame_mask, features.grid)
    torch.testing.assert_close(connector(turned).tokens.view(2, 3, 3, 7).flip(1), out.view(2, 3, 3, 7))
    assert [connector.tokens_out(n) for n in (1, 3)] == [3, 9]


def test_qformer_as_published():
    """Names and sizes of BLIP-2: cross-attention in every second of twelve layers, 105.1 million with the queries."""
    with torch.device("meta"):
        connector = qformer.FrameQFormer(qformer.Config(), FeatureShape(1408, 257, None, 1), 2560)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in connector.named_children()}
    assert round((count["qformer"] + 32 * 768) / 1e5) == 1052 and count["proj"] == 768 * 2560 + 2560
    looking = [n for n, layer in enumerate(connector.qformer.encoder.layer) if layer.crossattention is not None]
    assert looking == [0, 2, 4, 6, 8, 10]


def test_video_qformer_reads_sound_segments():
    """The sound branch of Video-LLaMA: one vector a segment, eight queries, a table of eight rows."""
    s = FeatureShape(1024, 1, None, 8)
    connector = video_qformer.VideoQFormer(video_qformer.Config(queries=8, frames=8), s, 16)
    shapes = {name: tuple(t.shape) for name, t in connector.state_dict().items() if not name.startswith("qformer.")}
    assert shapes["query_tokens"] == (1, 8, 768) and shapes["frame_positions.weight"] == (8, 1024)
    assert sum(p.numel() for p in connector.qformer.parameters()) == 19_691_520
    memory, mask = connector.memory(full(8, s, items=1))
    assert memory.shape == (1, 8, 1024) and mask.shape == (1, 8)


def test_video_qformer_reads_the_order_of_frames():
    s = shape(grid=(2, 2), frames=4)
    connector = video_qformer.VideoQFormer(video_qformer.Config(queries=3, width=8, heads=2, frames=4), s, 7).eval()
    for parameter in connector.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = full(4, s, items=1)
    reversed_ = Features(features.tokens.flip(1), features.frame_mask, features.grid)
    assert (connector(features).tokens - connector(reversed_).tokens).abs().max() > 0.01
    with torch.no_grad():
        connector.frame_positions.weight.zero_()
    torch.testing.assert_close(connector(features).tokens, connector(reversed_).tokens, rtol=1e-5, atol=1e-5)


def test_video_qformer_places_tell_where():
    s = shape(grid=(4, 4), frames=2)
    options = {"queries": 3, "width": 8, "heads": 2, "frames": 2}
    for token_positions in (False, True):
        torch.manual_seed(0)
        connector = video_qformer.VideoQFormer(
            video_qformer.Config(**options, token_positions=token_positions), s, 7
        ).eval()
        for parameter in connector.qformer.parameters():
            nn.init.normal_(parameter, std=0.5)
        features = full(1, s, items=1)
        moved = Features(features.tokens.flip(2), features.frame_mask, features.grid)
        same = torch.allclose(connector(features).tokens, connector(moved).tokens, atol=1e-4)
        assert same is not token_positions


def test_video_qformer_as_published():
    connector = video_qformer.VideoQFormer(video_qformer.Config(), FeatureShape(768, 32, None, 8), 16)
    count = sum(p.numel() for p in connector.qformer.parameters())
    assert count == 18_905_088
    shapes = {name: tuple(t.shape) for name, t in connector.state_dict().items() if not name.startswith("qformer.")}
    assert shapes == {
        "query_tokens": (1, 32, 768),
        "frame_positions.weight": (32, 768),
        "proj.weight": (16, 768),
        "proj.bias": (16,),
    }


@pytest.mark.parametrize(
    ("options", "word"), [({"frames": 4}, "at least 8"), ({"frames": 8, "pool": 2}, "no grid")], ids=["frames", "pool"]
)
def test_video_qformer_mistakes_speak(options, word):
    with pytest.raises(ConfigError, match=word):
        video_qformer.VideoQFormer(video_qformer.Config(**options), FeatureShape(16, 5, None, 8), 6)


def test_query_blocks_written_out():
    """Queries first, pre-norm blocks, exact GELU; what stands at the queries' places goes on."""
    from mmtune.connectors.query_blocks import Config, QueryBlocks

    torch.manual_seed(0)
    shape = FeatureShape(width=5, tokens=4)
    one = QueryBlocks(Config(queries=2, width=6, depth=1, heads=3, mlp_ratio=2.0), shape, 7)
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 1, 4, 5)
    norm = torch.nn.functional.layer_norm
    h = norm(x[:, 0] @ one.proj.weight.T + one.proj.bias, (6,), one.proj_norm.weight, one.proj_norm.bias)
    h = torch.cat([one.query.expand(2, 2, 6), h], 1)
    block = one.blocks[0]
    y = norm(h, (6,), block.norm1.weight, block.norm1.bias) @ block.attn.qkv.weight.T + block.attn.qkv.bias
    q, k, v = y.reshape(2, 6, 3, 3, 2).permute(2, 0, 3, 1, 4)
    y = ((q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 6)
    h = h + y @ block.attn.proj.weight.T + block.attn.proj.bias
    y = norm(h, (6,), block.norm2.weight, block.norm2.bias) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    h = h + y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    y = h[:, :2] @ one.out.weight.T + one.out.bias
    expected = norm(y, (7,), one.scale.norm.weight, one.scale.norm.bias)
    out = one(Features(x, torch.ones(2, 1, dtype=torch.bool)))
    torch.testing.assert_close(out.tokens, expected, atol=1e-5, rtol=1e-5)
    assert one.tokens_out(1) == one.tokens_out(5) == 2
