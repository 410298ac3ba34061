"""The open_clip tower gives what open_clip itself gives, and loads strictly."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmtune import config
from mmtune.encoders.clip import Clip, Config
from mmtune.errors import CheckpointError, ConfigError, ModelError
from mmtune.types import Media
from tests.encoders.tiny import VISION, clip_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), preprocess={"size": 24, "mean": [0.4] * 3, "std": [0.2] * 3})


@pytest.fixture(scope="module")
def reference(folder):
    tree = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**tree).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    return model


def made(folder, **options):
    encoder = Clip(Config(weights=str(folder), **options))
    encoder.load_weights()
    return encoder


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[:, None], torch.ones(len(x), 1, dtype=torch.bool)).tokens[:, 0]


@torch.no_grad()
def by_hand(model, x, layer, norm=False, project=False):
    """The tower's blocks one after another, class token in front."""
    v = model.visual
    h = v.conv1(x).flatten(2).transpose(1, 2)
    h = torch.cat([v.class_embedding.expand(len(x), 1, -1), h], 1) + v.positional_embedding
    h = v.ln_pre(h)
    for block in list(v.transformer.resblocks)[: len(v.transformer.resblocks) + 1 + layer]:
        h = block(h)
    h = v.ln_post(h) if norm else h
    return h @ v.proj if project else h


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("norm", [False, True])
def test_patches(folder, reference, layer, norm):
    x = torch.randn(2, 3, 24, 24)
    encoder = made(folder, layer=layer, norm=norm)
    assert encoder.grid == (3, 3)
    torch.testing.assert_close(run(encoder, x), by_hand(reference, x, layer, norm)[:, 1:])


def test_all_tokens_normed_and_projected(folder, reference):
    x = torch.randn(2, 3, 24, 24)
    encoder = made(folder, tokens="all", layer=-1, norm=True, project=True)
    assert (encoder.grid, encoder.tokens_per_frame, encoder.width) == (None, 10, 20)
    torch.testing.assert_close(run(encoder, x), by_hand(reference, x, -1, True, True))


def test_pooled_is_the_image_embedding(folder, reference):
    x = torch.randn(2, 3, 24, 24)
    encoder = made(folder, tokens="pooled")
    assert (encoder.grid, encoder.tokens_per_frame, encoder.width) == ((1, 1), 1, 20)
    with torch.no_grad():
        torch.testing.assert_close(run(encoder, x)[:, 0], reference.encode_image(x))


def test_chunks_change_nothing(folder):
    x = torch.randn(5, 3, 24, 24)
    torch.testing.assert_close(run(made(folder, chunk=2), x), run(made(folder), x))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", [(60, 90), (31, 24), (24, 24), (10, 100)])
def test_prepare_is_open_clips_preprocessing(tmp_path, mode, shape):
    preprocess = {"size": 24, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize_mode": mode}
    encoder = Clip(Config(model=str(clip_folder(tmp_path, preprocess=preprocess))))
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(shape[::-1], Image.BICUBIC)
    cfg = open_clip.transform.PreprocessCfg(**preprocess)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)(coarse)
    ours = encoder.prepare(Media("image", torch.from_numpy(np.array(coarse)).permute(2, 0, 1)[None].contiguous()))[0]
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs() * torch.tensor(preprocess["std"]).view(3, 1, 1) * 255
    assert difference.max() <= 1.01  # one step of 256: Pillow and torch round the same sums differently


def test_pad_fills_with_the_mean_colour(folder):
    encoder = made(folder, resize="pad")
    white = Media("image", torch.full((1, 3, 24, 12), 255, dtype=torch.uint8))
    x = encoder.prepare(white)[0]
    assert x.shape == (3, 24, 24)
    assert x[:, :, 0].abs().max() < 0.02  # int(255 * 0.4) / 255 is the mean, nearly
    assert x[:, :, 12].min() > 2.9


@pytest.mark.parametrize("resize", ["crop", "pad", "fit", "stretch"])
def test_a_strip_stays_small(folder, resize):
    strip = Media("image", torch.zeros(1, 3, 2, 60_000, dtype=torch.uint8))
    assert made(folder, resize=resize).prepare(strip).shape == (1, 3, 24, 24)


def test_a_batch_without_a_real_frame_keeps_an_open_tower_in_the_graph(folder):
    encoder = made(folder)
    out = encoder(torch.randn(1, 2, 3, 24, 24), torch.zeros(1, 2, dtype=torch.bool))
    assert not out.tokens.any()
    out.tokens.sum().backward()
    assert not encoder.visual.conv1.weight.grad.any()


def test_random_crop_needs_a_generator(folder):
    encoder = made(folder, random_crop=(0.5, 1.0))
    one = Media("video", torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8), torch.zeros(2, dtype=torch.float64))
    assert torch.equal(encoder.prepare(one), encoder.prepare(one))
    seeds = [encoder.prepare(one, np.random.default_rng(seed)) for seed in (1, 2)]
    assert not torch.equal(*seeds)
    assert all(x.shape == (2, 3, 24, 24) for x in seeds)


def test_another_size_interpolates_positions(folder, reference):
    encoder = made(folder, size=40)
    assert encoder.grid == (5, 5)
    assert encoder.pixels.short == 40
    table = reference.visual.positional_embedding
    assert torch.equal(encoder.visual.positional_embedding[0], table[0])
    same = made(folder, size=24)
    assert torch.equal(same.visual.positional_embedding, table)


def test_settings_of_the_folder_and_of_the_config(folder):
    assert made(folder).pixels.mean == (0.4, 0.4, 0.4)
    assert made(folder, mean=(0.1, 0.2, 0.3)).pixels.mean == (0.1, 0.2, 0.3)
    assert made(folder, mean=(0.1, 0.2, 0.3)).fingerprint() != made(folder).fingerprint()


def test_fingerprint_does_not_depend_on_the_place(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert made(tmp_path).fingerprint() == made(folder, chunk=1).fingerprint()


def test_stays_in_evaluation_mode(folder):
    encoder = made(folder).train()
    assert not encoder.training
    assert not encoder.visual.training


def test_gradients_pass_when_the_tower_is_open(folder):
    encoder = made(folder)
    frames = torch.tensor([[True, False]])
    encoder(torch.randn(1, 2, 3, 24, 24), frames).tokens.sum().backward()
    assert encoder.visual.conv1.weight.grad.abs().sum() > 0


def test_every_mistake_in_the_weights_is_listed(folder, tmp_path):
    tensors = load_file(folder / "open_clip_model.safetensors")
    del tensors["visual.ln_pre.bias"]
    tensors["visual.extra"] = torch.zeros(1)
    tensors["visual.proj"] = torch.zeros(2, 3)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError) as caught:
        made(tmp_path / "broken.safetensors", model=str(folder))
    for word in ("missing ln_pre.bias", "unexpected extra", "proj is [2, 3]"):
        assert word in str(caught.value)


def test_no_pickles(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    torch.save({"a": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        made(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"model": "ViT-nonsense"}, ConfigError, "ViT-nonsense"),
        ({}, ConfigError, "neither"),
        ({"model": "ViT-B-32", "layer": -13}, ModelError, "-12"),
        ({"weights": "/nowhere/at/all"}, CheckpointError, "/nowhere/at/all"),
    ],
)
def test_mistakes_speak(options, error, word):
    with pytest.raises(error, match=word), torch.device("meta"):
        Clip(Config(**options))


@pytest.mark.parametrize(
    ("model", "options", "grid", "width"),
    [
        ("ViT-L-14-336-quickgelu", {}, (24, 24), 1024),
        ("EVA02-B-16", {}, (14, 14), 768),
        ("ViT-B-16-SigLIP", {"layer": -1}, (14, 14), 768),
        ("RN50", {"layer": -1}, (7, 7), 2048),
        ("convnext_base", {"layer": -1}, (7, 7), 1024),
    ],
)
def test_any_architecture_has_a_shape(model, options, grid, width):
    with torch.device("meta"):
        encoder = Clip(Config(model=model, **options))
    assert (encoder.grid, encoder.width) == (grid, width)


def test_siglip_statistics_come_with_the_name():
    with torch.device("meta"):
        encoder = Clip(Config(model="ViT-B-16-SigLIP"))
    assert encoder.pixels.mean == (0.5, 0.5, 0.5)
    assert encoder.pixels.resize == "stretch"


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match="layer"):
        config.validate(Config, {"name": "clip", "layers": 3})


def test_tiny_vision_is_what_the_tests_think():
    assert VISION["image_size"] // VISION["patch_size"] == 3


@pytest.mark.parametrize("quick", [False, True])
def test_a_plain_tower_is_what_the_builder_of_the_library_makes(tmp_path, quick):
    """It is built without that builder, which brings every other kind of tower with it."""
    vision = {"image_size": 24, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16, "mlp_ratio": 2.0}
    tree = {"embed_dim": 20, "quick_gelu": quick, "vision_cfg": vision}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(tree))
    tower = Clip(Config(model=str(tmp_path))).visual
    theirs = Clip.seeded(lambda: open_clip.model._build_vision_tower(20, dict(vision), quick)).eval()
    assert repr(tower) == repr(theirs)
    ours, want = tower.state_dict(), theirs.state_dict()
    assert ours.keys() == want.keys() and all(torch.equal(ours[name], want[name]) for name in want)
    x = torch.randn(2, 3, 24, 24)
    assert torch.equal(tower(x), theirs(x))


def test_swapped_channels(tmp_path):
    """bgr gives the tower what rgb gives it of a picture whose red and blue are swapped."""
    from mmtune.types import Media

    folder = str(clip_folder(tmp_path))
    rgb, bgr = (Clip(Config(weights=folder, channels=channels)) for channels in ("rgb", "bgr"))
    data = torch.randint(0, 256, (1, 3, 30, 20), dtype=torch.uint8)
    assert not torch.equal(bgr.prepare(Media("image", data)), rgb.prepare(Media("image", data)))
    assert torch.equal(bgr.prepare(Media("image", data)), rgb.prepare(Media("image", data[:, [2, 1, 0]])))
    assert bgr.fingerprint() != rgb.fingerprint()
