"""A clip of a video or a sound: the frames and samples of its range by every rule, its times, and what is refused."""

import numpy as np
import pytest
import torch

from mmtune.errors import MediaError, Note, Reason, ShapeError
from mmtune.media.base import Sampling, frame_times
from mmtune.types import MediaRef
from tests.media import make

FILM = make.video(32, rate=8)  # 4 seconds, frame n at n / 8


clip = make.clip


def refused(kind: str, data: bytes, start=None, end=None) -> MediaError:
    with pytest.raises(MediaError) as error:
        clip(kind, data, start, end)
    return error.value


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [9, 11, 13, 15]),
        ("middle", [9, 11, 13, 15]),
        ("first", [8, 10, 12, 14]),
        ("video_llama", [8, 10, 12, 14]),
        ("fps", [9, 11, 13, 15]),
        ("pllava_train", [8, 10, 12, 14]),
    ],
)
def test_every_rule_chooses_among_the_frames_of_the_range(rule, expected):
    media = clip("video", FILM, 1.0, 2.0, frames=4, rule=rule, fps=30.0)
    assert make.numbers(media) == expected
    assert media.times.tolist() == [n / 8 for n in expected]
    ref = MediaRef("video", FILM, "item", 1.0, 2.0)
    assert frame_times(ref, Sampling(frames=4, rule=rule, fps=30.0)) == media.times.tolist()


@pytest.mark.parametrize("rule", ["pllava", "pllava_benchmark"])
def test_published_rules_stay_inside_the_range(rule):
    numbers = make.numbers(clip("video", FILM, 1.0, 2.0, frames=4, rule=rule))
    assert len(numbers) == 4 and min(numbers) >= 8 and max(numbers) < 16
    assert numbers == [n + 8 for n in make.numbers(clip("video", make.video(8, rate=8), frames=4, rule=rule))]


def test_one_side_may_be_open_and_a_moment_between_two_frames_shows_the_first():
    assert make.numbers(clip("video", FILM, 3.0, None, frames=2, rule="first")) == [24, 28]
    assert make.numbers(clip("video", FILM, None, 1.0, frames=2, rule="first")) == [0, 4]
    assert make.numbers(clip("video", FILM, 1.05, 1.06, frames=2)) == [8, 8]
    assert make.numbers(clip("video", FILM, 1.0, 3.0, frames=2, rule="first", seconds=1.0)) == [8, 12]


def test_times_count_from_the_first_frame_wherever_the_container_begins():
    late = make.video(16, times=[5000 + 125 * n for n in range(16)], form="matroska")
    media = clip("video", late, 1.0, 2.0, frames=2, rule="first")
    assert make.numbers(media) == [8, 12] and media.times.tolist() == [1.0, 1.5]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_range_that_the_item_does_not_hold_is_refused_and_rounding_is_not(kind):
    data = make.video(32, rate=8, sound=True)
    for start, end in ((9.0, None), (9.0, 10.0), (1.0, 60.0)):
        error = refused(kind, data, start, end)
        assert error.reason == Reason.bad_range
        assert f"from {start:g} to" in error.seen and "seconds" in error.seen and error.hint
    assert clip(kind, data, 3.0, 4.6, frames=2).notes == (Note.range_clamped,)
    assert clip(kind, data, 3.0, 3.5, frames=2).notes == ()


def test_ranges_are_checked_where_they_are_written():
    for kind, start, end in (
        ("image", 0.0, 1.0), ("points", 1.0, None), ("video", -1.0, None), ("video", 2.0, 2.0), ("video", 3.0, 1.0),
        ("audio", float("nan"), None), ("audio", None, float("inf")), ("video", "1", None), ("video", True, None),
        ("video", None, 0.0),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            MediaRef(kind, b"x", "item", start, end)


def ramp(seconds: float, rate: int = 16000) -> np.ndarray:
    """Samples that say where they are."""
    return np.linspace(-1, 1, round(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (None, 1.0), (2.5, None), (1.0001, 1.0002)])
def test_a_range_of_a_sound_has_the_samples_of_the_whole(start, end):
    data = make.wav(ramp(3.0))
    whole, part = clip("audio", data).data, clip("audio", data, start, end).data
    low, high = round((start or 0) * 16000), 48000 if end is None else round(end * 16000)
    assert torch.equal(part, whole[:, low:high])
    assert torch.equal(clip("audio", data, start, end, seconds=0.25).data, part[:, :4000])


@pytest.mark.parametrize(
    ("codec", "form", "sample"),
    [("aac", "mp4", "fltp"), ("libopus", "webm", "flt"), ("libopus", "ogg", "flt"), ("mp3", "mp3", "fltp"),
     ("flac", "flac", "s16"), ("aac", "matroska", "fltp")],
)  # fmt: skip
def test_a_range_late_in_a_coded_sound_is_where_it_belongs(codec, form, sample):
    rate = 48000 if codec == "libopus" else 16000
    data = make.sound(codec, form, rate, 6.0, sample)
    whole = clip("audio", data, rate=rate).data
    part = clip("audio", data, 4.0, 5.0, rate=rate).data
    assert part.shape[1] == rate
    rounding = (
        range(-rate // 1000, rate // 1000 + 1) if form in ("webm", "matroska") else (0,)
    )  # its times are whole milliseconds
    apart = [(part - whole[:, 4 * rate + shift : 5 * rate + shift]).abs().max() for shift in rounding]
    assert min(apart) < 0.02


def test_what_is_kept_by_content_is_kept_by_range():
    plain, other = MediaRef("video", FILM, "item"), MediaRef("video", FILM, "item", 1.0, 2.0)
    assert plain.range == "" and other.range == "@1.0-2.0" and plain.digest == other.digest
    assert MediaRef("video", FILM, "item", 1, 2).range == other.range
    assert MediaRef("video", FILM, "item", 1.0).range == "@1.0-"
    assert MediaRef("video", FILM, "item", None, 1.0).range == "@0.0-1.0"
    assert "@1.0-2.0" in repr(other)
