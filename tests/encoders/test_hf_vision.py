"""The transformers towers give what the library gives, block by block."""

import json

import pytest
import torch
import transformers

from mmtune.encoders.hf_vision import Config, HfVision
from mmtune.errors import CheckpointError, ConfigError
from tests.encoders.tiny import hf_folder

KINDS = ("clip", "siglip", "dinov2")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp(kind) / "model", kind)


@pytest.fixture(scope="module")
def library(kind, folder):
    name = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "dinov2": "Dinov2Model"}[kind]
    return getattr(transformers, name).from_pretrained(folder).eval()


def made(folder, **options):
    encoder = HfVision(Config(weights=str(folder), **options))
    encoder.load_weights()
    return encoder


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[:, None], torch.ones(len(x), 1, dtype=torch.bool)).tokens[:, 0]


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_any_layer(kind, folder, library, layer):
    x = torch.randn(2, 3, 24, 24)
    encoder = made(folder, layer=layer)
    blocks = library.encoder.layers if kind != "dinov2" else library.encoder.layer
    seen = []
    handle = blocks[layer].register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        library(x)
    handle.remove()
    prefix = 0 if kind == "siglip" else 1
    assert encoder.grid == (3, 3)
    torch.testing.assert_close(run(encoder, x), seen[0][:, prefix:])
    torch.testing.assert_close(run(made(folder, layer=layer, tokens="all"), x), seen[0])


def test_the_last_layer_normed(kind, folder, library):
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        want = library(x).last_hidden_state
        want = library.post_layernorm(want) if kind == "clip" else want
    torch.testing.assert_close(run(made(folder, layer=-1, norm=True, tokens="all"), x), want)


def test_pooled(folder, library):
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(run(made(folder, tokens="pooled"), x)[:, 0], library(x).pooler_output)


def test_another_size(folder):
    encoder = made(folder, size=40)
    assert encoder.grid == (5, 5)
    assert run(encoder, torch.randn(1, 3, 40, 40)).shape == (1, 25, 32)


def test_statistics_come_from_the_folder(kind, folder):
    pixels = made(folder).pixels
    assert pixels.mean == (0.5, 0.5, 0.5)
    assert pixels.resize == ("stretch" if kind == "siglip" else "crop")


def test_a_block_can_be_asked_for_again_after_an_error(folder):
    encoder = made(folder)
    with pytest.raises((RuntimeError, ValueError)):
        run(encoder, torch.randn(1, 5, 24, 24))
    assert not any(block._forward_hooks for block in encoder.tower.modules())
    assert run(encoder, torch.randn(1, 3, 24, 24)).shape == (1, 9, 32)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="llama"):
        HfVision(Config(weights=str(tmp_path)))


def test_a_folder_without_weights_speaks(tmp_path):
    hf_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        made(tmp_path)
