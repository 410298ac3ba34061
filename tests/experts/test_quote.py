"""Evidence to the line that a model reads, and frames to evidence."""

from __future__ import annotations

import pytest

from mmtune.experts._quote import over_frames, plain, quote
from mmtune.experts.base import Evidence, ExpertConfig

HERE, THERE = (0.1, 0.1, 0.3, 0.2), (0.6, 0.6, 0.9, 0.8)


def _text(*evidence: Evidence, cut: bool = False, **options) -> str | None:
    made = quote("ocr", evidence, ExpertConfig(name="x", **options), cut)
    return made and made.text


def test_pieces_stand_in_their_order_and_none_twice() -> None:
    assert _text(Evidence("EXIT"), Evidence("only"), Evidence("exit ")) == "EXIT / only"
    assert _text() is None and _text(Evidence(" \n")) is None


def test_what_is_unsure_is_left_out() -> None:
    unsure, sure = Evidence("dim", 0.4), Evidence("clear", 0.6)
    assert _text(unsure, sure, Evidence("unscored"), min_score=0.5) == "clear / unscored"


def test_times_are_said() -> None:
    assert _text(Evidence("taxi", span=(1.04, 2.0)), Evidence("bus")) == "taxi (1.0-2.0 s) / bus"
    assert _text(Evidence("taxi", span=(1.0, 1.0))) == "taxi (1.0 s)"


def test_the_length_is_bounded_and_a_cut_is_marked() -> None:
    text = _text(*(Evidence(f"line {number}") for number in range(99)), max_chars=40)
    assert text is not None and len(text) <= 40 and text.endswith(" ...") and text.startswith("line 0 / line 1")
    assert _text(Evidence("all"), cut=True) == "all ..."


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\n b\tc\r\n", "a b c"),
        ("\x1b[2Jred\x00", "[2Jred"),
        ("right\u202eto left\u2066", "rightto left"),
        ("in\u200bvi\u00adsi\ufeffble", "invisible"),
        ("a\u2028b\x85c", "a b c"),
        ("half \ud83d pair", "half pair"),
        ("tag\U000e0041s \ue000", "tags"),
        ("Grüße 日本 😀 ½", "Grüße 日本 😀 ½"),
    ],
)
def test_text_is_one_line_of_what_can_be_seen(text: str, clean: str) -> None:
    assert plain(text) == clean
    assert plain(plain(text)) == plain(text)


def test_what_every_frame_shows_is_said_once_and_without_a_time() -> None:
    frames = [(time, [Evidence("Stop", 0.8 + time / 10, box=HERE)]) for time in (0.0, 1.0)]
    assert over_frames(frames) == [Evidence("Stop", 0.9, box=HERE)]


def test_what_some_frames_show_has_a_time_and_comes_later() -> None:
    stop, bus = Evidence("stop", 0.9, box=HERE), Evidence("bus", 0.9, box=THERE)
    frames = [(0.5, [bus, stop]), (1.5, [bus, stop]), (2.5, [stop])]
    found = over_frames(frames)
    assert [(one.text, one.span) for one in found] == [("stop", None), ("bus", (0.5, 1.5))]


def test_two_readings_of_one_place_are_one_text() -> None:
    right, wrong = Evidence("taxi", 0.9, box=HERE), Evidence("tax1", 0.95, box=HERE)
    frames = [(0.0, [right]), (1.0, [wrong]), (2.0, [right])]
    assert [one.text for one in over_frames(frames)] == ["taxi"]


def test_other_texts_and_other_places_stay_apart() -> None:
    frames = [
        (0.0, [Evidence("Good evening", box=HERE)]),
        (1.0, [Evidence("and now the news", box=HERE), Evidence("Good eve", box=THERE)]),
    ]
    assert {one.text for one in over_frames(frames)} == {"Good evening", "and now the news", "Good eve"}


def test_a_still_picture_has_no_times() -> None:
    assert over_frames([(None, [Evidence("a"), Evidence("b")])]) == [Evidence("a"), Evidence("b")]
    assert over_frames([]) == []
