"""The frames that PLLaVA's published code chooses; the numbers are worked out by hand from its description."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mmtune.media import Sampling, _pllava
from mmtune.media._frames import choose, timeline


def line(count: int):
    return timeline(list(range(count)), [1] * count, Fraction(1, 25))


@pytest.mark.parametrize(
    ("count", "frames", "wanted"),
    [(10, 4, [1, 3, 5, 8]), (1, 3, [0, 0, 0]), (5, 2, [1, 3]), (100, 2, [24, 74])],
)
def test_the_demo_cuts_half_a_segment_and_rounds_whole_ones(count: int, frames: int, wanted: list[int]) -> None:
    assert _pllava.chat(count, frames) == wanted
    assert choose(line(count), Sampling(frames=frames, rule="pllava")) == wanted


def test_the_benchmarks_cut_the_sum() -> None:
    assert _pllava.benchmark(9, 4) == [1, 3, 5, 8]
    assert _pllava.benchmark(99, 2, fps=10.0, bound=(2.0, 6.0)) == [30, 50]
    assert choose(line(10), Sampling(frames=4, rule="pllava_benchmark")) == [1, 3, 5, 8]


def test_training_takes_the_middle_or_draws_but_never_the_last() -> None:
    assert choose(line(10), Sampling(frames=3, rule="pllava_train")) == [1, 4, 7]
    drawn = [choose(line(10), Sampling(frames=3, rule="pllava_train", seed=seed)) for seed in range(200)]
    assert [sorted(set(slot)) for slot in zip(*drawn, strict=True)] == [[0, 1], [3, 4], [6, 7, 8]]
    assert drawn == [choose(line(10), Sampling(frames=3, rule="pllava_train", seed=seed)) for seed in range(200)]


def test_training_on_a_short_video() -> None:
    assert _pllava.training(2, 4) == [0, 1, 1, 1]
    drawn = [_pllava.training(5, 4, seed) for seed in range(100)]
    assert all(one == sorted(set(one)) for one in drawn), "drawn from all frames, in order"
    assert {one[0] for one in drawn} == {0, 1}


def test_so_many_a_second() -> None:
    assert _pllava.per_second(100, 25.0, 1.0) == [12, 38, 62, 88]
    assert _pllava.per_second(100, 25.0, 1.0, most=2) == [12, 38]
