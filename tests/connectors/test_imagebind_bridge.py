"""ImageBind-LLM's bind network: its formula, mixtures, and the retrieval cache."""

import pytest
import torch
from safetensors.torch import save_file

from mmtune.connectors.imagebind_bridge import Config, ImagebindBridge, Retrieval, RetrievalConfig
from mmtune.errors import CheckpointError
from mmtune.types import Features, FeatureShape

WIDTH, D = 6, 8


def make(**tree):
    torch.manual_seed(0)
    return ImagebindBridge(Config(ratio=2, **tree), FeatureShape(WIDTH, 1, frames=3), D).eval()


def features(count=2, frames=3):
    g = torch.Generator().manual_seed(1)
    return Features(torch.randn(count, frames, 1, WIDTH, generator=g), torch.ones(count, frames, dtype=torch.bool))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_by_its_formula():
    model, given = make(), features()
    x = unit(given.tokens.mean((1, 2))) @ model.proj.weight.T + model.proj.bias
    for block in model.blocks:
        y = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * block.norm.weight
        gated = torch.nn.functional.silu(y @ block.f1.weight.T) * (y @ block.f3.weight.T)
        x = x + gated @ block.f2.weight.T
    torch.testing.assert_close(model(given).tokens[:, 0], x, rtol=1e-5, atol=1e-5)


def test_length_of_what_comes_in_does_not_matter():
    """ImageBind gives sound a length of 20 and sight a length of 1."""
    model, given = make(), features()
    louder = Features(given.tokens * 20, given.frame_mask)
    torch.testing.assert_close(model(louder).tokens, model(given).tokens)


def test_mixtures():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    torch.testing.assert_close(ImagebindBridge.mix([a, b], [1.0, 0.5]), torch.tensor([[2 / 3, 1 / 3]]))


def test_retrieval_by_its_formula():
    g = torch.Generator().manual_seed(2)
    vectors = unit(torch.randn(7, WIDTH, generator=g))
    x = unit(torch.randn(2, WIDTH, generator=g))
    config = RetrievalConfig(file="-", nearest=3, temperature=5.0, share=0.25)
    got = Retrieval(config, vectors)(x)
    for row, one in enumerate(x):
        near = sorted(range(7), key=lambda i: -float(vectors[i] @ one))[:3]
        weights = torch.stack([5 * vectors[i] @ one for i in near]).softmax(0)
        prototype = unit(sum(w * vectors[i] for w, i in zip(weights, near, strict=True)))
        torch.testing.assert_close(got[row], unit(0.75 * one + 0.25 * prototype))


def test_retrieval_is_read_when_needed_and_rests_in_training(tmp_path):
    file = tmp_path / "cache.safetensors"
    plain, given = make(), features()
    model = make(retrieval={"file": str(file), "nearest": 2})
    model.train()
    torch.testing.assert_close(model(given).tokens, plain(given).tokens)
    model.eval()
    with pytest.raises(CheckpointError, match=r"cache\.safetensors"):
        model(given)
    save_file({"vectors": unit(torch.randn(4, WIDTH + 1))}, file)
    with pytest.raises(CheckpointError, match=r"at least 2 vectors of width 6"):
        model(given)
    save_file({"vectors": unit(torch.randn(4, WIDTH))}, file)
    assert not torch.allclose(model(given).tokens, plain(given).tokens)
    assert not [name for name in model.state_dict() if "retrieval" in name]
