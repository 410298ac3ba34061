"""What ships in mmtune/pocket: it loads, is small, is portable, and answers about clips that it never saw."""

import random
from pathlib import Path

import pytest

from mmtune import paths
from mmtune.data.world.draw import clip, frame
from mmtune.data.world.language import questions
from mmtune.data.world.scene import draw_scene
from mmtune.data.world.sound import wave
from mmtune.data.world.video import jpeg, mp4

POCKET = paths.PACKAGE / "pocket"


@pytest.fixture(scope="module")
def talk():
    from mmtune.checkpoint.store import load_run

    return load_run(POCKET / "chat", "cpu")


def ask(talk, kind: str, data: bytes, question: str) -> str:
    from mmtune import generate
    from mmtune.types import MediaRef, Sample, Turn

    model, processor, _ = talk
    sample = Sample("q", (Turn("user", (MediaRef(kind, data, "drawn"), question)),))
    ids = generate.answer_batch(model, [processor.example(sample, answer=True)], processor.stops, 16)[0]
    return processor.tokenizer.decode(ids).strip()


def test_all_of_it_is_small():
    assert sum(f.stat().st_size for f in POCKET.rglob("*") if f.is_file()) < 25e6


def test_nothing_in_it_names_a_place_of_one_machine():
    for file in POCKET.rglob("*"):
        if file.suffix in (".yaml", ".json", ".md"):
            text = file.read_text()
            assert str(Path.home()) + "/" not in text and str(paths.PACKAGE.parent) not in text, file


def test_it_answers_about_clips_of_the_test_split(talk):
    rng = random.Random("packaged")
    right = asked = 0
    for _ in range(6):
        scene = draw_scene(rng, "easy", "test")
        video = mp4(clip(scene), wave(scene))
        for question in questions(scene, rng):
            if question.type in ("colour", "shape", "size", "position", "direction"):
                right += ask(talk, "video", video, question.question) == question.answer
                asked += 1
    assert asked > 20 and right / asked > 0.8, f"{right} of {asked}"


def test_it_answers_about_a_picture(talk):
    scene = draw_scene(random.Random("picture"), "easy", "test").snapshot(0.0)
    solid = scene.solids[0]
    assert ask(talk, "image", jpeg(frame(scene, 0.0)), f"What color is the {solid.shape}?") == solid.colour
