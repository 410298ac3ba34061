"""Ranges of time behind the name of a clip."""

from __future__ import annotations

import pytest

from mmtune.errors import UsageError
from mmtune.serve.time_ranges import leading


@pytest.mark.parametrize(
    ("text", "span", "rest"),
    [
        ("00:10-00:20 what?", (10, 20), "what?"),
        ("10-20", (10, 20), ""),
        ("1:05-1:10.5 go", (65, 70.5), "go"),
        ("00:00:10-00:00:20", (10, 20), ""),
        ("1:00:00-1:00:05.25", (3600, 3605.25), ""),
        ("10s-20s?", (10, 20), "?"),
        ("1m5s\u20131m10s hi", (65, 70), "hi"),
        ("1h2m3.5s-1h3m", (3723.5, 3780), ""),
        ("10..20", (10, 20), ""),
        ("10-20m", (600, 1200), ""),
        ("0:10 - 0:20 go", (10, 20), "go"),
        ("90- what", (90, None), "what"),
        ("-0:20", (None, 20), ""),
    ],
)
def test_a_range_is_read_in_many_spellings(text: str, span: tuple, rest: str) -> None:
    found, behind = leading(text)
    assert (found, behind.strip()) == (span, rest)


@pytest.mark.parametrize("text", ["what 10-20", "5 people", "10-20people", "2024-11-27 log", "10 - 20 people?"])
def test_other_words_are_left_alone(text: str) -> None:
    assert leading(text) == (None, text)


@pytest.mark.parametrize("text", ["00:20-00:10", "10-10", "1:75-2:00", "00:10 what?", "1:60:00-2:00:00"])
def test_what_is_meant_as_a_range_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="behind a clip"):
        leading(text)
