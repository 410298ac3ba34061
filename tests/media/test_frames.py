"""Which frames are shown at which time: plain arithmetic, checked against a slow reading of the definition."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from mmtune.media._frames import Timeline, choose, format_times, timeline, video_llama
from mmtune.media.base import Sampling

STEADY = Timeline(list(range(0, 160, 10)), 160, Fraction(1, 80))  # 16 frames in 2 seconds


def test_uniform_shows_the_middle_of_each_part():
    assert choose(STEADY, Sampling(frames=4)) == [2, 6, 10, 14]
    assert choose(STEADY, Sampling(frames=16)) == list(range(16))
    assert choose(STEADY, Sampling(frames=1)) == [8]


def test_middle_and_first_count_frames():
    slow_start = Timeline([0, 100, 101, 102], 103, Fraction(1))
    assert choose(slow_start, Sampling(frames=2)) == [0, 0]  # by time the first frame is nearly all there is
    assert choose(slow_start, Sampling(frames=2, rule="middle")) == [1, 3]
    assert choose(slow_start, Sampling(frames=2, rule="first")) == [0, 2]


def test_fps_gives_as_many_frames_as_the_length_holds_and_no_more_than_asked():
    assert choose(STEADY, Sampling(frames=8, rule="fps", fps=2.0)) == [2, 6, 10, 14]
    assert len(choose(STEADY, Sampling(frames=8, rule="fps", fps=30.0))) == 8
    assert choose(STEADY, Sampling(frames=8, rule="fps", fps=0.1)) == [8]


def test_fewer_frames_than_asked_are_repeated():
    two = Timeline([0, 1], 2, Fraction(1))
    assert choose(two, Sampling(frames=5)) == [0, 0, 1, 1, 1]
    assert choose(Timeline([7], 8, Fraction(1)), Sampling(frames=3)) == [0, 0, 0]


def test_video_llama_takes_first_frames_in_floating_steps():
    assert choose(STEADY, Sampling(frames=4, rule="video_llama")) == [0, 4, 8, 12]
    assert choose(STEADY, Sampling(frames=12, rule="video_llama")) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    long = Timeline(list(range(392)), 392, Fraction(1, 25))
    assert 244 in choose(long, Sampling(frames=24, rule="video_llama"))  # 15 * 392 / 24 = 245, rounded down below it
    assert 245 in choose(long, Sampling(frames=24, rule="first"))


def test_video_llama_shows_a_short_clip_as_it_is_and_never_more_than_asked():
    assert choose(Timeline([0, 1, 2], 3, Fraction(1)), Sampling(frames=8, rule="video_llama")) == [0, 1, 2]
    assert choose(Timeline([7], 8, Fraction(1)), Sampling(frames=8, rule="video_llama")) == [0]
    assert len(video_llama(54, 49)) == 50  # as published
    line = Timeline(list(range(54)), 54, Fraction(1, 25))
    assert choose(line, Sampling(frames=49, rule="video_llama")) == video_llama(54, 49)[:49]


@given(st.integers(1, 4000), st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_video_llama_with_a_power_of_two_is_whole_arithmetic(count, frames):
    n = min(count, frames)
    if n == frames:
        assert video_llama(count, frames) == [i * count // n for i in range(n)]
    else:
        assert video_llama(count, frames) == list(range(count))


def test_times_are_said_with_one_decimal():
    assert format_times([0.0, 0.04, 1.25, 6.2400001]) == ["0.0", "0.0", "1.2", "6.2"]


def test_seconds_takes_the_beginning():
    assert choose(STEADY, Sampling(frames=4, seconds=1.0)) == [1, 3, 5, 7]
    assert choose(STEADY, Sampling(frames=4, seconds=99.0)) == choose(STEADY, Sampling(frames=4))
    assert choose(STEADY, Sampling(frames=2, rule="first", seconds=1.0)) == [0, 4]


def test_the_last_frame_stays_for_its_duration_or_the_median_gap():
    assert timeline([4, 0, 2], [2, 2, 9], Fraction(1)) == Timeline([0, 2, 4], 6, Fraction(1))
    assert timeline([0, 2, 4, 9], [0, 0, 0, 0], Fraction(1)).end == 11
    assert timeline([3, 3, 5], [1, 1, 1], Fraction(1)).stamps == [3, 5]
    assert timeline([-4], [0], Fraction(1)).end == -3


@given(
    st.lists(st.integers(-1000, 100_000), min_size=1, max_size=40, unique=True),
    st.integers(1, 50),
    st.integers(1, 30),
)
def test_the_frame_shown_is_the_last_that_came(stamps, last, frames):
    line = timeline(stamps, [last] * len(stamps), Fraction(1, 1000))
    chosen = choose(line, Sampling(frames=frames))
    assert len(chosen) == frames and chosen == sorted(chosen)
    for i, index in enumerate(chosen):
        moment = line.stamps[0] + Fraction(2 * i + 1, 2 * frames) * (line.end - line.stamps[0])
        assert index == max(k for k, stamp in enumerate(line.stamps) if stamp <= moment)
