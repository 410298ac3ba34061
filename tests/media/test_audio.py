"""Sound: right values at the right rate from every format; absent, failed and excessive stay apart."""

import struct
import wave

import numpy as np
import pytest
import torch

from mmtune.errors import MediaError, Reason
from mmtune.media.base import Limits
from tests.media import make


def refused(data: bytes, limits: Limits | None = None, **sampling) -> MediaError:
    with pytest.raises(MediaError) as error:
        make.get("audio", data, limits, **sampling)
    return error.value


def loudest(values: torch.Tensor, rate: int) -> float:
    """Frequency of the strongest partial, Hz."""
    spectrum = torch.fft.rfft(values * torch.hann_window(len(values))).abs()
    return spectrum.argmax().item() * rate / len(values)


def test_integer_samples_keep_their_values():
    values = np.array([-1.0, -0.5, 0.0, 0.25, 32767 / 32767])
    media = make.get("audio", make.wav(values))
    assert media.rate == 16000 and media.data.dtype == torch.float32
    assert media.data.tolist() == [[round(v * 32767) / 32768 for v in values]]


@pytest.mark.parametrize(("width", "stored", "expected"), [
    (1, bytes([0, 128, 192]), [-1.0, 0.0, 0.5]),
    (3, b"\x00\x00\x80\x00\x00\x00\x00\x00\x40", [-1.0, 0.0, 0.5]),
    (4, struct.pack("<3i", -(2**31), 0, 2**30), [-1.0, 0.0, 0.5]),
])  # fmt: skip
def test_every_width_is_scaled_by_its_range(tmp_path, width, stored, expected):
    path = tmp_path / "x"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(stored)
    assert make.get("audio", path.read_bytes()).data.tolist() == [expected]


def test_channels_are_kept_apart():
    both = np.stack([make.sine(16000, 0.1), -make.sine(16000, 0.1)])
    media = make.get("audio", make.wav(both))
    assert media.data.shape == (2, 1600) and media.data.is_contiguous()
    assert torch.allclose(media.data[0], -media.data[1], atol=1e-4)
    floats = make.get("audio", make.float_wav(both.T.ravel(), channels=2))
    assert torch.allclose(floats.data, torch.from_numpy(both), atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "form", "rate", "sample", "slack"),
    [
        ("mp3", "mp3", 16000, "fltp", 0),
        ("flac", "flac", 16000, "s16", 0),
        ("libopus", "ogg", 48000, "flt", 0),
        ("aac", "ipod", 16000, "fltp", 2048),
        ("aac", "mp4", 16000, "fltp", 2048),
        ("aac", "matroska", 16000, "fltp", 2048),
        ("pcm_s16le", "wav", 16000, "s16", 0),
        ("pcm_s16le", "avi", 16000, "s16", 0),
    ],
)
def test_every_format_gives_the_tone(codec, form, rate, sample, slack):
    media = make.get("audio", make.sound(codec, form, rate, 1.0, sample))
    assert media.rate == 16000 and abs(media.data.shape[1] - 16000) <= slack
    assert abs(loudest(media.data[0], 16000) - 440) < 2
    assert 0.45 < media.data[0, 4000:12000].abs().max() < 0.56


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 44101, 96000])
def test_rates_are_changed(rate):
    media = make.get("audio", make.wav(make.sine(rate, 0.5), rate))
    assert media.data.shape == (1, -(-round(rate * 0.5) * 16000 // rate))
    assert abs(loudest(media.data[0], 16000) - 440) < 3
    assert make.get("audio", make.wav(make.sine(rate, 0.5), rate), rate=rate).data.shape[1] == round(rate * 0.5)


def test_the_sound_of_a_video():
    media = make.get("audio", make.video(16, sound=True))
    assert abs(media.data.shape[1] / 16000 - 2) < 0.2
    assert abs(loudest(media.data[0], 16000) - 440) < 3


def test_a_video_without_sound_has_none():
    error = refused(make.video(4))
    assert error.reason == Reason.no_audio_stream and "holds video" in str(error)


def test_seconds_takes_the_beginning():
    tone = np.concatenate([make.sine(16000, 0.5), np.zeros(16000, np.float32)])
    media = make.get("audio", make.wav(tone), seconds=0.25)
    assert media.data.shape == (1, 4000) and media.data.abs().max() > 0.4
    assert make.get("audio", make.wav(tone), seconds=99.0).data.shape == (1, 24000)


@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        (0, Reason.unreadable_audio),
        (1, Reason.audio_limits),
        (10_000_000, Reason.audio_limits),
        (0xFFFFFFFF, Reason.unreadable_audio),
    ],
)
def test_absurd_rates_are_refused(rate, reason):
    assert refused(make.float_wav(make.sine(16000, 0.1), rate)).reason == reason


def test_absurd_channels_are_refused():
    values = np.zeros(6400, np.float32)
    assert refused(make.float_wav(values, channels=0)).reason == Reason.unreadable_audio
    assert refused(make.float_wav(values, channels=64)).reason == Reason.audio_limits


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 32767.0])
def test_values_that_are_no_sound_are_refused(bad):
    values = make.sine(16000, 0.1)
    values[77] = bad
    error = refused(make.float_wav(values))
    assert error.reason == Reason.unreadable_audio and "-1..1" in str(error)


def test_a_little_overshoot_is_clipped():
    media = make.get("audio", make.float_wav(make.sine(16000, 0.1) * 2.4))
    assert media.data.max() == 1.0 and media.data.min() == -1.0


def test_empty_and_odd_bodies():
    assert refused(make.float_wav(np.zeros(0))).reason == Reason.unreadable_audio
    odd = bytearray(make.wav(make.sine(16000, 0.1)))
    assert make.get("audio", bytes(odd) + b"\x01").data.shape[1] >= 1600
    assert make.get("audio", bytes(odd[:-1])).data.shape[1] == 1599


@pytest.mark.parametrize(
    ("codec", "form", "sample"),
    [("pcm_s16le", "wav", "s16"), ("flac", "flac", "s16"), ("aac", "ipod", "fltp"), ("aac", "matroska", "fltp")],
)
def test_a_cut_file_is_never_taken_for_a_whole_one(codec, form, sample):
    data = make.sound(codec, form, 16000, 2.0, sample)
    have = make.get("audio", data).data.shape[1]
    refusals = 0
    for part in range(1, 30):
        try:
            got = make.get("audio", data[: len(data) * part // 30])
        except MediaError as error:
            assert error.reason in (Reason.unreadable_audio, Reason.no_audio_stream)
            refusals += 1
        else:
            assert got.data.shape[1] >= 0.88 * have
    assert refusals >= 25


def test_damage_never_escapes_as_another_exception():
    generator = np.random.default_rng(0)
    refusals = 0
    makes = (
        ("mp3", "mp3", 16000, "fltp"),
        ("flac", "flac", 16000, "s16"),
        ("libopus", "ogg", 48000, "flt"),
        ("aac", "ipod", 16000, "fltp"),
    )
    for codec, form, rate, sample in makes:
        data = make.sound(codec, form, rate, 0.5, sample)
        for _ in range(30):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 30):
                damaged[place] = generator.integers(0, 256)
            try:
                media = make.get("audio", bytes(damaged))
            except MediaError:
                refusals += 1
            else:
                assert torch.isfinite(media.data).all() and media.data.abs().max() <= 1
    assert refusals > 5


def test_limits():
    data = make.wav(make.sine(16000, 2.0))
    for limits, word in (
        (Limits(audio_seconds=1.0), "2 seconds"),
        (Limits(audio_values=1000), "1000 samples"),
        (Limits(channels=0), "1 channels"),
        (Limits(min_rate=20_000), "16000 Hz"),
        (Limits(wall_seconds=0.0), "0 seconds"),
        (Limits(bytes=100), "bytes"),
    ):
        error = refused(data, limits)
        assert error.reason == Reason.audio_limits and word in str(error)
    assert make.get("audio", data, Limits(audio_seconds=1.0), seconds=0.5).data.shape[1] == 8000
