"""Questions and their answers, by hand for one scene and by rule for many."""

import random

import pytest

from mmtune.data.world.language import NUMBERS, Question, captions, describe, listed, questions, vocabulary
from mmtune.data.world.scene import LEVELS, Event, Scene, Sign, Solid, Sound, draw_scene

SCENE = Scene(
    level="easy",
    solids=(
        Solid("circle", "red", "small", 0, event=Event("move", 0.05, 0.4, "right")),
        Solid("star", "blue", "large", 4, event=Event("vanish", 0.55, 0.9)),
        Solid("ring", "white", "large", 8),
    ),
    sound=Sound("beep", "low", 2),
    sign=None,
    background=(0.1, 0.1, 0.1),
    noise=0.0,
    seed=1,
)


def every(scene: Scene, **options: bool) -> dict[str, set[Question]]:
    """All questions that a hundred draws give, by type."""
    out: dict[str, set[Question]] = {}
    for seed in range(100):
        for question in questions(scene, random.Random(seed), **options):
            out.setdefault(question.type, set()).add(question)
    return out


def answers(kind: str, part: str) -> set[str]:
    return {q.answer for q in every(SCENE)[kind] if part in q.question}


def test_the_description_in_full():
    assert describe(SCENE) == (
        "a small red circle at the top-left moves right first. a large blue star at the center vanishes last. "
        "a large white ring at the bottom-right."
    )


@pytest.mark.parametrize(
    ("kind", "part", "answer"),
    [
        ("colour", "star", "blue"),
        ("shape", "white", "ring"),
        ("size", "circle", "small"),
        ("count", "", "three"),
        ("position", "circle end", "top-center"),
        ("position", "the circle start", "top-left"),
        ("list", "colors", "red, blue and white"),
        ("event", "circle", "moves right"),
        ("event", "star", "vanishes"),
        ("event", "ring", "stays still"),
        ("direction", "circle", "right"),
        ("order", "first", "red circle"),
        ("order", "last", "blue star"),
        ("before", "the circle change before the star", "yes"),
        ("before", "the star change before the circle", "no"),
        ("before", "the star change after the circle", "yes"),
        ("does", "circle moves right", "yes"),
        ("does", "circle moves left", "no"),
    ],
)
def test_answers_by_hand(kind, part, answer):
    assert answers(kind, part) == {answer}


@pytest.mark.parametrize("level", LEVELS)
def test_a_question_has_one_answer(level):
    rng = random.Random(3)
    for _ in range(60):
        said: dict[str, str] = {}
        scene = draw_scene(rng, level)
        for seed in range(20):
            for q in questions(scene, random.Random(seed), heard=level == "full"):
                assert said.setdefault(q.question, q.answer) == q.answer
                assert q.answer == q.answer.lower() and q.answer.strip()


def test_sounds_signs_and_textures_are_asked_about_on_the_full_level_only():
    rng = random.Random(4)
    easy = {q.type for _ in range(200) for q in questions(draw_scene(rng, "easy"), rng)}
    full = {q.type for _ in range(200) for q in questions(draw_scene(rng, "full"), rng, heard=True)}
    assert full - easy == {"text", "texture", "speed", "which", "sound", "sound count", "pitch"}
    assert easy < full


def test_captions_say_the_same_in_several_ways():
    several = captions(SCENE, random.Random(0))
    assert len(set(several)) == 3 and all(describe(SCENE) in text for text in several)


def test_a_sign_is_read():
    scene = Scene(**{f: getattr(SCENE, f) for f in SCENE.__slots__} | {"sign": Sign("stop", 6), "level": "full"})
    assert {q.answer for q in every(scene)["text"]} == {"stop"} and "says stop" in describe(scene)


def test_lists_and_words():
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert len(vocabulary()) == len(set(vocabulary())) and NUMBERS[3] == "three"
