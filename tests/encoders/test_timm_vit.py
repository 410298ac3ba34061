"""The timm towers give what timm gives, load strictly, and build nothing that would be fetched."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mmtune import config
from mmtune.encoders.timm_vit import Config, TimmVit
from mmtune.errors import CheckpointError, ConfigError
from tests.encoders.tiny import TIMM, timm_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return timm_folder(tmp_path_factory.mktemp("timm"))


@pytest.fixture(scope="module")
def reference(folder):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=24, **TIMM).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def made(**options):
    encoder = TimmVit(config.validate(Config, options))
    encoder.load_weights()
    return encoder


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[:, None], torch.ones(len(x), 1, dtype=torch.bool)).tokens[:, 0]


def test_tokens_are_those_of_forward_features(folder, reference):
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        want = reference.forward_features(x)
    every = made(weights=str(folder), tokens="all")
    assert every.grid is None and every.tokens_per_frame == 10
    torch.testing.assert_close(run(every, x), want)
    patches = made(weights=str(folder))
    assert patches.grid == (3, 3)
    torch.testing.assert_close(run(patches, x), want[:, 1:])


def test_an_earlier_block_without_norm(folder, reference):
    x, seen = torch.randn(2, 3, 24, 24), []
    handle = reference.blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        reference(x)
    handle.remove()
    torch.testing.assert_close(run(made(weights=str(folder), layer=-2, norm=False), x), seen[0][:, 1:])


def test_the_classifier_is_there_when_asked_for(folder, reference):
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        want, before = reference(x), reference.forward_head(reference.forward_features(x), pre_logits=True)
    torch.testing.assert_close(run(made(weights=str(folder), tokens="logits", classes=5), x)[:, 0], want)
    pooled = made(weights=str(folder), tokens="pooled")
    torch.testing.assert_close(run(pooled, x)[:, 0], before)
    assert not any(name.startswith("tower.head.") for name in pooled.state_dict())


def test_preprocessing_comes_from_the_folder_or_the_tag(folder):
    pixels = made(weights=str(folder)).pixels
    assert (pixels.size, pixels.short, pixels.mean, pixels.std) == ((24, 24), 24, (0.5,) * 3, (0.25,) * 3)
    with torch.device("meta"):
        deit = TimmVit(Config(model="deit_tiny_patch16_224")).pixels
        tagged = TimmVit(Config(model="vit_tiny_patch16_224.augreg_in21k")).pixels
    assert (deit.mean, deit.short) == ((0.485, 0.456, 0.406), 248)
    assert tagged.mean == (0.5, 0.5, 0.5)


def test_another_size(folder):
    encoder = made(weights=str(folder), size=40)
    assert encoder.grid == (5, 5)
    assert run(encoder, torch.randn(1, 3, 40, 40)).shape == (1, 25, 24)


@pytest.mark.parametrize(
    ("model", "grid", "width"),
    [
        ("convnext_atto", (7, 7), 320),
        ("resnet18", (7, 7), 512),
        ("swin_tiny_patch4_window7_224", (7, 7), 768),
        ("vit_small_patch14_reg4_dinov2", (37, 37), 384),
        ("vit_base_patch16_siglip_224", (14, 14), 768),
        ("eva02_tiny_patch14_224", (16, 16), 192),
        ("beit_base_patch16_224", (14, 14), 768),
    ],
)
def test_other_families_build(model, grid, width):
    with torch.device("meta"):
        encoder = TimmVit(Config(model=model))
    assert (encoder.grid, encoder.width, encoder.tokens_per_frame) == (grid, width, grid[0] * grid[1])


def test_a_convolution_runs():
    encoder = made(model="resnet18", layer=-2, args={"stem_width": 8})
    assert run(encoder, torch.randn(1, 3, 224, 224)).shape == (1, 196, 256)


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(ConfigError, match="vit_"):
        made(model="vit_colossal_patch16")
    with pytest.raises(ConfigError, match="hf-hub"):
        made(model="hf-hub:someone/something")
    with pytest.raises(ConfigError, match="colour"):
        made(model="vit_tiny_patch16_224", args={"colour": 3})
    for key in ("pretrained", "checkpoint_path", "img_size"):
        with pytest.raises(ConfigError, match=key):
            made(model="vit_tiny_patch16_224", args={key: True})
    with pytest.raises(ConfigError, match="class"):
        made(model="resnet18", tokens="all")
    with pytest.raises(ConfigError, match="classes"):
        made(model="vit_tiny_patch16_224", args=TIMM, tokens="logits")


def test_loading_is_strict(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.bias"]
    tensors["cls_token"] = torch.zeros(1, 1, 25)
    tensors["stranger"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError) as error:
        made(weights=str(tmp_path))
    assert all(name in str(error.value) for name in ("norm.bias", "cls_token", "stranger"))


def test_a_folder_cannot_smuggle_arguments(folder, tmp_path):
    tree = json.loads((folder / "config.json").read_text())
    tree["model_args"] |= {"checkpoint_path": "/etc/passwd", "pretrained": True}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    assert made(weights=str(tmp_path)).grid == (3, 3)
