"""The resampler against its definition, written out slowly, and against torchaudio where that loads."""

import math

import pytest
import torch

from mmtune.media import _resample
from mmtune.media._resample import resample

RATES = [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000), (16000, 44100), (16000, 16001), (96000, 8000)]


def by_definition(wave: torch.Tensor, source: int, target: int) -> torch.Tensor:
    length = math.ceil(wave.shape[1] * target / source)
    cut = 0.99 * min(source, target)
    frame_times = torch.arange(length).double()[:, None] / target - torch.arange(wave.shape[1]).double()[None] / source
    x = (frame_times * cut).clamp(-6, 6)
    kernel = torch.sinc(x) * torch.cos(x * math.pi / 12) ** 2 * cut / source
    return (wave.double() @ kernel.T).float()


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("length", [1, 2, 1301])
def test_it_is_the_windowed_sinc(source, target, length):
    wave = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) * 2 - 1
    got = resample(wave, source, target)
    assert got.shape == (2, -(-length * target // source))
    assert torch.allclose(got, by_definition(wave, source, target), atol=2e-6)


def test_both_ways_agree():
    wave = torch.rand(1, 30_000, generator=torch.Generator().manual_seed(0))
    gathered = _resample._by_gathering(wave, 160, 441, -(-30_000 * 160 // 441))
    assert torch.allclose(gathered, resample(wave, 44100, 16000), atol=2e-6)


def test_the_same_rate_is_untouched():
    wave = torch.rand(1, 10)
    assert resample(wave, 16000, 16000) is wave


def test_what_the_new_rate_cannot_hold_is_gone():
    frame_times = torch.arange(48000) / 48000
    high, low = (torch.sin(2 * math.pi * hertz * frame_times)[None] for hertz in (12_000.0, 1000.0))
    assert resample(high, 48000, 16000)[:, 100:-100].abs().max() < 0.01
    assert 0.98 < resample(low, 48000, 16000)[:, 100:-100].abs().max() < 1.02


@pytest.mark.parametrize(("source", "target"), [rates for rates in RATES if rates != (16000, 16001)])
def test_it_equals_torchaudio(source, target):
    try:
        from torchaudio.functional import resample as reference
    except Exception as error:  # a build for another torch raises OSError and others
        pytest.skip(f"torchaudio does not load: {type(error).__name__}")
    wave = torch.rand(2, source // 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(resample(wave, source, target), reference(wave, source, target), atol=5e-5)


def test_a_long_sound_that_is_cut_gives_the_same(monkeypatch):
    wave = torch.randn(2, 50_001, generator=torch.Generator().manual_seed(0))
    whole = _resample.resample(wave, 44100, 16000)
    monkeypatch.setattr(_resample, "_CHUNK", 1000)
    assert torch.allclose(_resample.resample(wave, 44100, 16000), whole, atol=1e-6)
    assert _resample.resample(wave, 48000, 16000).shape == (2, 16667)
