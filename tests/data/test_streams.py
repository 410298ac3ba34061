"""Whose turn it is: shares, alternation, stages and mixed steps, and how many steps train a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.data.streams import Schedule
from mmtune.errors import ConfigError


def said(schedule, steps):
    return ["".join(schedule.streams(step)) for step in range(steps)]


def test_the_four_ways():
    assert said(Schedule({"a": 3, "b": 1}), 8) == list("aabaaaba")
    assert said(Schedule({"a": 1, "b": 1}, interleave="alternate"), 5) == list("ababa")
    assert said(Schedule({"a": 3, "b": 1}, interleave="alternate"), 4) == list("abab")
    stages = [(["a"], 3), (["b", "c"], 2), (["c"], 1)]
    assert said(Schedule({"a": 1, "b": 1, "c": 1}, interleave="stage", stages=stages), 9) == list("aaabccccc")
    assert said(Schedule({"a": 1, "b": 1}, interleave="mixed", parts=2), 3) == ["ab", "ab", "ab"]
    assert said(Schedule({"a": 2, "b": 1}, interleave="mixed", parts=2), 3) == ["ab", "aa", "ba"]


def test_the_seed_says_where_a_pattern_begins():
    assert said(Schedule({"a": 1, "b": 1}, seed=3), 3) == list("bab")
    assert said(Schedule({"a": 2, "b": 1}, seed=1, interleave="mixed", parts=3), 2) == ["baa", "baa"]


def test_parts_matter_to_mixed_only():
    assert Schedule({"a": 1, "b": 1}, parts=4).streams(0) == ("a",)


@given(
    shares=st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1),
    seed=st.integers(0, 50),
    interleave=st.sampled_from(["share", "alternate", "mixed"]),
    parts=st.integers(1, 5),
    steps=st.integers(0, 60),
    wanted=st.sets(st.sampled_from("abc")),
)
def test_steps_are_counted_without_going_through_them(shares, seed, interleave, parts, steps, wanted):
    schedule = Schedule(shares, seed, interleave, parts)
    assert schedule.count(steps, wanted) == sum(bool(wanted & set(schedule.streams(step))) for step in range(steps))


@given(seed=st.integers(0, 9), steps=st.integers(0, 30), wanted=st.sets(st.sampled_from("abc")))
def test_steps_of_stages_are_counted_too(seed, steps, wanted):
    schedule = Schedule({"a": 2, "b": 1, "c": 1}, seed, "stage", stages=[("ab", 7), ("c", 4), ("abc", 5)])
    assert schedule.count(steps, wanted) == sum(bool(wanted & set(schedule.streams(step))) for step in range(steps))


@pytest.mark.parametrize(
    "options",
    [
        {"interleave": "stage"},
        {"stages": [(["a"], 3)]},
        {"interleave": "stage", "stages": [(["x"], 3)]},
        {"interleave": "stage", "stages": [([], 3)]},
        {"interleave": "stage", "stages": [(["a"], 0)]},
    ],
)
def test_stages_that_make_no_sense(options):
    with pytest.raises(ConfigError):
        Schedule({"a": 1, "b": 1}, **options)
