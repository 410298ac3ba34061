"""ImageBind's towers: clips of sound, log-mel pictures, pictures by Pillow, and the blocks against torch's own."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from mmtune.encoders import _imagebind
from mmtune.encoders.imagebind_audio import Config, ImagebindAudio, clip_spans
from mmtune.encoders.imagebind_vision import Config as SightConfig
from mmtune.encoders.imagebind_vision import ImagebindVision
from mmtune.errors import CheckpointError, ConfigError, MediaError
from mmtune.types import Media
from tests.encoders.tiny import SIGHT, SOUND, imagebind_folder

TINY = {"tower_width": 8, "depth": 1, "heads": 1}
"""For tests of what comes before the tower."""


def sound(seconds: float, channels: int = 1, rate: int = 16000, offset: float = 0.0, seed: int = 0) -> Media:
    g = torch.Generator().manual_seed(seed)
    wave = torch.rand(channels, round(seconds * rate), generator=g) * 0.5 - 0.25 + offset
    return Media("audio", wave, rate=rate, origin="made")


# ------------------------------------------------------------------------------------------------------------- clips


def starts(samples: int, clips: int, spacing: str) -> list[int]:
    return [begin for begin, _ in clip_spans(samples, 16000, 2.0, clips, spacing)]


def test_clips_end_with_the_sound():
    assert starts(8 * 16000, 3, "full") == [0, 48000, 96000]
    assert clip_spans(8 * 16000, 16000, 2.0, 3, "full")[-1] == (96000, 128000)


def test_clips_of_the_older_rule_stop_short():
    assert starts(8 * 16000, 3, "short") == [0, 32000, 64000]


def test_bounds_are_cut_and_not_rounded():
    """7.3 - 2.0 is a little less than 5.3, so the places fall just below whole samples."""
    assert starts(116800, 3, "full") == [0, 42399, 84799]
    assert clip_spans(52800, 16000, 2.0, 8, "short")[1] == (2599, 34599)


@pytest.mark.parametrize("spacing", ["full", "short"])
@pytest.mark.parametrize("samples", [8000, 32000])
def test_a_short_sound_gives_the_same_clip_again(spacing, samples):
    assert clip_spans(samples, 16000, 2.0, 3, spacing) == [(0, 32000)] * 3
    one = ImagebindAudio(Config(**TINY, spacing=spacing)).prepare(sound(samples / 16000))
    assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])


def test_one_clip_is_the_beginning():
    assert starts(8 * 16000, 1, "full") == [0]


# ---------------------------------------------------------------------------------------------------------- pictures


def test_the_shape_and_the_fill():
    """198 whole frames in two seconds; zeros to 204 before the normalisation, so the fill is louder than silence."""
    silence = Media("audio", torch.zeros(1, 32000), rate=16000)
    x = ImagebindAudio(Config(**TINY)).prepare(silence)
    assert x.shape == (3, 1, 128, 204)
    assert torch.allclose(x[..., 198:], torch.tensor(4.268 / 9.138))
    assert torch.allclose(x[..., :198], torch.tensor((math.log(2**-23) + 4.268) / 9.138), atol=1e-5)
    short = ImagebindAudio(Config(**TINY)).prepare(sound(0.5))
    assert torch.allclose(short[..., 48:], torch.tensor(4.268 / 9.138))
    assert short[..., :48].std() > 0.01


def test_low_tones_lie_in_low_rows():
    time = torch.arange(32000) / 16000
    encoder = ImagebindAudio(Config(**TINY))
    rows = []
    for hertz in (300.0, 3000.0):
        x = encoder.prepare(Media("audio", torch.sin(2 * math.pi * hertz * time)[None], rate=16000))
        rows.append(int(x[0, 0, :, 100].argmax()))
    mel = [1127 * math.log(1 + hertz / 700) for hertz in (300.0, 3000.0, 20.0, 8000.0)]
    expected = [(m - mel[2]) / (mel[3] - mel[2]) * 129 - 1 for m in mel[:2]]
    assert np.allclose(rows, expected, atol=1.5)


def test_the_first_channel_is_heard_and_the_mean_is_of_all():
    encoder = ImagebindAudio(Config(**TINY))
    left = sound(2.0).data
    other = torch.cat([left, torch.rand(1, 32000) + 0.4])
    both = encoder.prepare(Media("audio", other, rate=16000))
    by_hand = encoder.prepare(Media("audio", left - other.mean(), rate=16000))
    alone = encoder.prepare(Media("audio", left, rate=16000))
    # A constant goes out with each frame's own mean, so that only pre-emphasis at its first sample could tell.
    torch.testing.assert_close(both, by_hand, atol=2e-3, rtol=0)
    torch.testing.assert_close(both, alone, atol=2e-3, rtol=0)
    swapped = encoder.prepare(Media("audio", other.flip(0), rate=16000))
    assert (swapped - both).abs().max() > 0.1


def test_a_running_mean_moves_overlapping_clips_only():
    one = sound(3.0, offset=0.05)
    kept = one.data.clone()
    clip, running = (ImagebindAudio(Config(**TINY, centre=how)).prepare(one) for how in ("clip", "running"))
    assert torch.equal(one.data, kept), "the media was changed"
    assert torch.equal(clip[0], running[0])
    assert not torch.equal(clip[1], running[1])
    apart = sound(6.0, offset=0.05)
    clip, running = (ImagebindAudio(Config(**TINY, centre=how)).prepare(apart) for how in ("clip", "running"))
    assert torch.equal(clip, running)


def test_other_rates_are_resampled():
    encoder = ImagebindAudio(Config(**TINY, frames=1))
    time = torch.arange(96000) / 48000
    tone = torch.sin(2 * math.pi * 440 * time)[None] * 0.5
    fast = encoder.prepare(Media("audio", tone, rate=48000))
    slow = encoder.prepare(Media("audio", tone[:, ::3], rate=16000))
    loud = slow > slow.max() - 0.5
    torch.testing.assert_close(fast[loud], slow[loud], atol=0.02, rtol=0)


def test_too_short_a_sound_is_refused():
    encoder = ImagebindAudio(Config(**TINY))
    assert encoder.prepare(sound(0.025)).shape == (3, 1, 128, 204)
    with pytest.raises(MediaError, match="24.9 ms"):
        encoder.prepare(Media("audio", torch.zeros(1, 399), rate=16000))


# ------------------------------------------------------------------------------------------------------------ towers


@torch.no_grad()
def by_torch(tower: _imagebind.Tower, tokens: torch.Tensor, extra: bool) -> torch.Tensor:
    """The blocks by torch's own multi-head attention, sequence first, as published."""
    for block in tower.blocks:
        width = block.out.in_features
        attention = nn.MultiheadAttention(width, block.heads, add_bias_kv=extra)
        state = {"in_proj_weight": block.qkv.weight, "in_proj_bias": block.qkv.bias}
        state |= {"out_proj.weight": block.out.weight, "out_proj.bias": block.out.bias}
        if extra:
            state |= {"bias_k": block.extra_key, "bias_v": block.extra_value}
        attention.load_state_dict(state)
        x = block.norm1(tokens).transpose(0, 1)
        tokens = tokens + attention.eval()(x, x, x, need_weights=False)[0].transpose(0, 1)
        tokens = tokens + block.fc2(nn.functional.gelu(block.fc1(block.norm2(tokens))))
    return tokens


@pytest.fixture
def ear(tmp_path):
    tree = imagebind_folder(tmp_path / "ear", "imagebind_audio", SOUND)
    encoder = ImagebindAudio(Config(**tree))
    encoder.load_weights()
    return encoder


@pytest.fixture
def eye(tmp_path):
    tree = imagebind_folder(tmp_path / "eye", "imagebind_vision", SIGHT)
    encoder = ImagebindVision(SightConfig(**tree))
    encoder.load_weights()
    return encoder


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[:, None], torch.ones(len(x), 1, dtype=torch.bool)).tokens[:, 0]


def test_the_sound_tower(ear):
    tower = ear.tower
    x = torch.randn(3, 1, 16, 20)
    with torch.no_grad():
        patches = nn.functional.conv2d(x, tower.stem.weight, stride=3).flatten(2).transpose(1, 2)
        patches = nn.functional.layer_norm(patches, [16], tower.stem_norm.weight, tower.stem_norm.bias, 1e-5)
        tokens = torch.cat([tower.class_token.expand(3, -1, -1), patches], 1) + tower.positions
        trunk = by_torch(tower, tokens, extra=True)
        vector = nn.functional.layer_norm(trunk[:, 0], [16], tower.norm.weight, tower.norm.bias, 1e-6)
        vector = nn.functional.normalize(vector @ tower.head.weight.T, dim=-1) * tower.log_scale.exp()
    torch.testing.assert_close(run(ear, x)[:, 0], vector)
    torch.testing.assert_close(run(like(ear, "all"), x), trunk)
    torch.testing.assert_close(run(like(ear, "patches"), x), trunk[:, 1:])


def like(encoder, tokens):
    other = type(encoder)(encoder.config.model_copy(update={"tokens": tokens}))
    other.load_state_dict(encoder.state_dict())
    return other


def test_grids(ear, eye):
    assert (ear.grid, ear.width) == ((1, 1), 12)
    assert like(ear, "patches").grid == (5, 6)  # pitch, time
    assert like(ear, "all").grid is None
    assert like(eye, "patches").grid == (3, 3)


@pytest.mark.parametrize(("stored", "length"), [(math.log(20.0), 20.0), (9.0, 100.0)])
def test_the_length_of_a_sounds_vector(ear, stored, length):
    ear.tower.log_scale.fill_(stored)
    assert torch.allclose(run(ear, torch.randn(2, 1, 16, 20)).norm(dim=-1), torch.tensor(length))


def test_published_sound_begins_at_twenty():
    assert torch.allclose(ImagebindAudio(Config(**SOUND)).tower.log_scale.exp(), torch.tensor(20.0))


def test_the_image_tower_sees_a_picture_twice(eye):
    tower = eye.tower
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        twice = x[:, :, None].repeat(1, 1, 2, 1, 1)
        patches = nn.functional.conv3d(twice, tower.stem.weight, stride=(2, 8, 8)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tower.class_token.expand(2, -1, -1), patches], 1) + tower.positions
        tokens = nn.functional.layer_norm(tokens, [16], tower.pre_norm.weight, tower.pre_norm.bias, 1e-6)
        trunk = by_torch(tower, tokens, extra=False)
    torch.testing.assert_close(run(like(eye, "all"), x), trunk, atol=1e-5, rtol=1e-5)
    assert torch.allclose(run(eye, x).norm(dim=-1), torch.tensor(1.0))


def test_frames_two_by_two(eye):
    pairs = type(eye)(eye.config.model_copy(update={"clip": 2, "frames": 3}))
    pairs.load_state_dict(eye.state_dict())
    assert pairs.sampling("video").frames == 6 and pairs.sampling("image").frames == 1
    frames = torch.randint(0, 256, (6, 3, 30, 40), dtype=torch.uint8)
    video = Media("video", frames, torch.arange(6, dtype=torch.float64))
    x, singles = pairs.prepare(video), eye.prepare(video)
    assert x.shape == (3, 3, 2, 24, 24)
    assert torch.equal(x[1, :, 0], singles[2]) and torch.equal(x[1, :, 1], singles[3])
    still = Media("image", frames[:1])
    torch.testing.assert_close(run(pairs, pairs.prepare(still)), run(eye, eye.prepare(still)))
    assert pairs.max_frames == 3


def test_pairs_need_an_even_number():
    with pytest.raises(ConfigError, match="clip: 2"):
        ImagebindVision(SightConfig(**SIGHT, clip=2, rule="fps", fps=1.0))


@pytest.mark.parametrize("shape", [(61, 83), (333, 251), (224, 224), (500, 40)])
def test_pictures_are_resized_as_pillow_does(shape):
    from torchvision import transforms as t

    steps = [t.Resize(224, t.InterpolationMode.BICUBIC), t.CenterCrop(224), t.ToTensor()]
    steps.append(t.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = t.Compose(steps)(Image.fromarray(picture))
    one = Media("image", torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous())
    torch.testing.assert_close(ImagebindVision(SightConfig(**TINY)).prepare(one)[0], theirs, atol=1e-6, rtol=0)


def test_another_size_resizes_positions(tmp_path):
    tree = imagebind_folder(tmp_path, "imagebind_vision", SIGHT)
    larger = ImagebindVision(SightConfig(**{**tree, "size": 48}))
    larger.load_weights()
    table = load_file(tmp_path / "model.safetensors")["tower.positions"]
    grid = table[0, 1:].T.reshape(1, 16, 3, 3)
    want = nn.functional.interpolate(grid, scale_factor=2.0, mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.equal(larger.tower.positions, torch.cat([table[:, :1], want], 1))


# ----------------------------------------------------------------------------------------------------------- weights


def test_the_licence_is_said_once(tmp_path, caplog):
    tree = imagebind_folder(tmp_path, "imagebind_audio", SOUND)
    _imagebind._say_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        ImagebindAudio(Config(**SOUND))
        assert not caplog.records, "random weights have no licence"
        for _ in range(2):
            ImagebindAudio(Config(**tree)).load_weights()
    assert [("not for commercial use" in r.getMessage()) for r in caplog.records] == [True]


def test_published_names_are_sent_to_the_importer(tmp_path):
    save_file({"modality_trunks.audio.blocks.0.norm_1.bias": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="mmtune import imagebind"):
        ImagebindAudio(Config(**SOUND, weights=str(tmp_path / "x.safetensors"))).load_weights()


def test_every_mistake_in_the_weights_is_listed(tmp_path):
    tree = imagebind_folder(tmp_path, "imagebind_audio", SOUND)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["tower.log_scale"]
    tensors |= {"tower.extra": torch.zeros(1), "tower.head.weight": torch.zeros(2, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        ImagebindAudio(Config(**tree)).load_weights()
    for word in ("missing tower.log_scale", "unexpected tower.extra", "tower.head.weight is [2, 3]"):
        assert word in str(caught.value)


@pytest.mark.parametrize("change", [{"mels": 3}, {"heads": 3}])
def test_sizes_that_do_not_fit(change):
    with pytest.raises(ConfigError, match="width 16 and [23] heads"):
        ImagebindAudio(Config(**{**SOUND, **change}))


def test_spacing_changes_the_fingerprint(ear):
    other = type(ear)(ear.config.model_copy(update={"spacing": "short"}))
    other.load_state_dict(ear.state_dict())
    assert other.fingerprint() != ear.fingerprint()
    assert json.loads(ear.config.model_dump_json())["spacing"] == "full"
