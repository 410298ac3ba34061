"""The sound towers of transformers give what the library gives; segments, strict weights, and the pocket's tower."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmtune import media, paths
from mmtune.data.world.scene import SOUNDS, draw_scene
from mmtune.data.world.sound import wav_bytes, wave
from mmtune.encoders.hf_audio import Config, HfAudio
from mmtune.errors import CheckpointError, ConfigError, MediaError
from mmtune.types import Media, MediaRef
from tests.encoders.tiny import sound_folder

KINDS = ("ast", "whisper", "clap")
RATE = 16000


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[str, object] = {}

    def get(kind):
        if kind not in made:
            made[kind] = sound_folder(tmp_path_factory.mktemp(kind) / "model", kind)
        return made[kind]

    return get


def made(folder, **options):
    encoder = HfAudio(Config(weights=str(folder), **options))
    encoder.load_weights()
    return encoder


def sound(seconds: float, channels: int = 1, rate: int = RATE, seed: int = 0) -> Media:
    g = torch.Generator().manual_seed(seed)
    return Media("audio", torch.rand(channels, round(seconds * rate), generator=g) - 0.5, rate=rate, origin="made")


@torch.no_grad()
def by_library(kind, folder, samples):
    """(tokens as the library orders them, pooled) of one segment, by its own feature extractor and model"""
    heard = transformers.AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=RATE, return_tensors="pt")
    if kind == "ast":
        out = transformers.ASTModel.from_pretrained(folder).eval()(heard["input_values"])
        return out.last_hidden_state, out.pooler_output
    if kind == "whisper":
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        tokens = model.model.encoder(heard["input_features"]).last_hidden_state
        return tokens, tokens.mean(1)
    model = transformers.ClapModel.from_pretrained(folder).eval()
    out = model.audio_model(heard["input_features"])
    return out.last_hidden_state.flatten(2).transpose(1, 2), out.pooler_output


def run(encoder, x):
    with torch.no_grad():
        return encoder(x[None], torch.ones(1, len(x), dtype=torch.bool)).tokens[0]


def test_it_is_the_librarys_tower(kind, folders):
    folder, one = folders(kind), sound(0.3)
    tokens, pooled = by_library(kind, folder, one.data[0].numpy())
    every = made(folder, tokens="all")
    torch.testing.assert_close(run(every, every.prepare(one)), tokens, atol=1e-5, rtol=1e-4)
    single = made(folder, tokens="pooled")
    torch.testing.assert_close(run(single, single.prepare(one))[:, 0], pooled, atol=1e-5, rtol=1e-4)
    patches = made(folder)
    prefix = 2 if kind == "ast" else 0
    torch.testing.assert_close(run(patches, patches.prepare(one)), tokens[:, prefix:], atol=1e-5, rtol=1e-4)
    assert patches.grid == {"ast": (2, 4), "whisper": (1, 50), "clap": (4, 16)}[kind]  # pitch, time


def test_the_window_and_the_rate_are_the_folders(kind, folders):
    encoder = made(folders(kind), frames=3)
    assert encoder.seconds == {"ast": 0.4, "whisper": 1.0, "clap": 1.0}[kind]
    asked = encoder.sampling("audio")
    assert (asked.rate, asked.seconds) == (RATE, pytest.approx(3 * encoder.seconds))
    assert made(folders(kind), frames=3, longer="spread").sampling("audio").seconds is None


def test_segments(folders):
    """Of 0.4 seconds: as many as the sound fills, at most four, and no crumbs."""
    encoder = made(folders("ast"), frames=4)
    lengths = {0.1: 1, 0.4: 1, 0.41: 1, 0.44: 2, 0.8: 2, 1.6: 4, 5.0: 4}
    assert {seconds: len(encoder.prepare(sound(seconds))) for seconds in lengths} == lengths
    one = sound(1.0)
    x = encoder.prepare(one)
    for i, begin in enumerate((0, 6400, 12800)):
        part = Media("audio", one.data[:, begin : begin + 6400], rate=RATE)
        assert torch.equal(x[i], encoder.prepare(part)[0])


def test_a_longer_sound_from_its_start_or_spread_out(folders):
    one = sound(2.0)
    first = made(folders("ast"), frames=3).prepare(one)
    spread = made(folders("ast"), frames=3, longer="spread").prepare(one)
    assert torch.equal(first, made(folders("ast"), frames=3).prepare(sound(1.2)))
    for i, begin in enumerate((0, 12800, 25600)):
        part = Media("audio", one.data[:, begin : begin + 6400], rate=RATE)
        assert torch.equal(spread[i], made(folders("ast")).prepare(part)[0])


def test_shorter_segments_than_the_window(folders):
    encoder = made(folders("whisper"), frames=2, seconds=0.5)
    x = encoder.prepare(sound(1.0))
    assert x.shape == (2, 16, 100)
    assert torch.equal(x[0], encoder.prepare(sound(1.0))[0])


def test_channels_are_averaged_and_rates_changed(folders):
    encoder = made(folders("ast"))
    two = sound(0.4, channels=2)
    mono = Media("audio", two.data.mean(0, keepdim=True), rate=RATE)
    assert torch.equal(encoder.prepare(two), encoder.prepare(mono))
    assert encoder.prepare(sound(0.4, rate=48000)).shape == (1, 40, 32)


def test_too_short_a_sound_is_refused(folders):
    with pytest.raises(MediaError, match="24.0 ms"):
        made(folders("ast")).prepare(sound(0.024))


def test_preparing_leaves_numpys_randomness_alone(kind, folders):
    encoder = made(folders(kind))
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    encoder.prepare(sound(0.4))
    assert np.array_equal(np.random.get_state()[1], before)


def test_every_mistake_in_the_weights_is_listed(kind, folders, tmp_path):
    for file in folders(kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    start = {"ast": "audio_spectrogram_transformer.", "whisper": "model.encoder.", "clap": "audio_model."}[kind]
    own = sorted(name for name in tensors if name.startswith(start) and name.endswith("norm.weight"))
    others = sorted(name for name in tensors if name.startswith(start) and name.endswith("proj.bias"))
    own = own or sorted(name for name in tensors if name.startswith(start) and name.endswith("layernorm.weight"))
    others = others or sorted(name for name in tensors if name.startswith(start) and "projection.bias" in name)
    gone, bent = own[0], others[0]
    del tensors[gone]
    tensors[bent] = torch.zeros(5)
    tensors[f"{start}extra"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        made(tmp_path)
    for word in (f"missing {gone.removeprefix(start)}", "extra", f"{bent.removeprefix(start)} is [5]"):
        assert word in str(caught.value)


def test_a_cut_file_is_refused(kind, folders, tmp_path):
    for file in folders(kind).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        made(tmp_path)


def _change(folder, tmp_path, name, **changes):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tree = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**tree, **changes}))
    return Config(weights=str(tmp_path))


def test_other_models_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="llama"):
        HfAudio(_change(folders("ast"), tmp_path, "config.json", model_type="llama"))


def test_a_fused_clap_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="unfused"):
        HfAudio(_change(folders("clap"), tmp_path, "config.json", audio_config={"enable_fusion": True}))


def test_preprocessing_for_another_tower_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="99"):
        HfAudio(_change(folders("ast"), tmp_path, "preprocessor_config.json", max_length=99))


def test_a_folder_without_preprocessing_speaks(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders("ast") / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        HfAudio(Config(weights=str(tmp_path)))


def test_segments_longer_than_the_window_are_refused(folders):
    with pytest.raises(ConfigError, match="0.4"):
        HfAudio(Config(weights=str(folders("ast")), seconds=1.0))


def test_preprocessing_is_part_of_the_fingerprint(folders, tmp_path):
    other = HfAudio(_change(folders("ast"), tmp_path, "preprocessor_config.json", mean=-1.0))
    other.load_weights()
    assert other.fingerprint() != made(folders("ast")).fingerprint()
    (tmp_path / "again").mkdir()
    same = HfAudio(_change(folders("ast"), tmp_path / "again", "preprocessor_config.json"))
    same.load_weights()
    assert same.fingerprint() == made(folders("ast"), chunk=1).fingerprint()


# ------------------------------------------------------------------------------------------------ the pocket's tower


def heard(split: str, count: int) -> tuple[list[Media], torch.Tensor]:
    """Drawn sounds out of WAV files, and their kind, pitch and count."""
    rng = random.Random(f"hearing {split}")
    scenes = [draw_scene(rng, "easy", split, most=2) for _ in range(count)]
    sounds = [media.load(MediaRef("audio", wav_bytes(wave(scene)), "drawn")) for scene in scenes]
    facts = [(SOUNDS.index(s.sound.kind), s.sound.pitch == "high", s.sound.count - 1) for s in scenes]
    return sounds, torch.tensor(facts, dtype=torch.int64)


def test_the_pocket_tower_hears_what_how_high_and_how_often():
    """A ridge regression on its pooled vectors of 200 training sounds names held-out ones."""
    encoder = made(paths.PREFIX + "pocket/audio", tokens="pooled")
    views = []
    for split, count in (("train", 200), ("test", 50)):
        sounds, facts = heard(split, count)
        x = torch.cat([encoder.prepare(one) for one in sounds])
        assert x.shape == (count, 208, 64), "a clip of two seconds is one segment"
        views.append((run(encoder, x)[:, 0].double(), facts))
    (x, wanted), (y, truth) = views
    mean, std = x.mean(0), x.std(0) + 1e-4
    x, y = ((torch.cat([(v - mean) / std, torch.ones(len(v), 1)], 1)) for v in (x, y))
    for column, least in ((0, 0.95), (1, 0.95), (2, 0.85)):
        goal = torch.nn.functional.one_hot(wanted[:, column]).double()
        layer = torch.linalg.solve(x.T @ x + 3.0 * torch.eye(x.shape[1]), x.T @ goal)
        right = ((y @ layer).argmax(1) == truth[:, column]).double().mean()
        assert right >= least, f"column {column}: {right}"


def test_the_pocket_tower_is_one_segment_also_out_of_a_video():
    from mmtune.data.world.video import mp4

    scene = draw_scene(random.Random(3), "easy", "train")
    data = mp4(np.zeros((8, 16, 16, 3), np.uint8), wave(scene))
    encoder = made(paths.PREFIX + "pocket/audio", frames=4)
    one = media.load(MediaRef("audio", data, "drawn"), encoder.sampling("audio"))
    assert len(encoder.prepare(one)) == 1
    assert encoder.grid == (4, 25)
