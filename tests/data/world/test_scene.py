"""Scenes: repeatable, split by what they show, and a mirror image in time that shows the same single frames."""

import random
from dataclasses import replace

import pytest

from mmtune.data.world.language import TEMPORAL, does, questions
from mmtune.data.world.scene import DIRECTIONS, LEVELS, PLACES, SPLITS, Event, Scene, Solid, draw_scene, step

BACK = {way: next(w for w, d in DIRECTIONS.items() if d == (-x, -y)) for way, (x, y) in DIRECTIONS.items()}
MIRROR = {"grow": "shrink", "shrink": "grow", "vanish": "appear", "appear": "vanish", "move": "move"}


def scenes(level: str, count: int, split: str | None = None) -> list[Scene]:
    rng = random.Random(f"{level}:{split}")
    return [draw_scene(rng, level, split) for _ in range(count)]


def mirrored(scene: Scene) -> Scene:
    """The same clip from its end to its start, as a scene of its own."""
    solids = []
    for solid in scene.solids:
        event = solid.event
        if event:
            way = BACK[event.direction] if event.direction else None
            event = Event(MIRROR[event.kind], 1 - event.stop, 1 - event.start, way)
        solids.append(replace(solid, place=solid.end_place, size=solid.end_size, event=event))
    return replace(scene, solids=tuple(sorted(solids, key=lambda s: s.place)))


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_scene(level):
    assert scenes(level, 20) == scenes(level, 20)


@pytest.mark.parametrize("level", LEVELS)
def test_rules_of_the_world(level):
    for scene in scenes(level, 300):
        for feature in ("shape", "colour", "place", "end_place"):
            values = [getattr(s, feature) for s in scene.solids]
            assert len(set(values)) == len(values), feature
        assert 1 <= len(scene.solids) <= (4 if level == "full" else 3)
        assert [s.place for s in scene.solids] == sorted(s.place for s in scene.solids)
        events = scene.events
        assert len(events) <= 2
        if len(events) == 2:
            assert events[0].event.stop < events[1].event.start, "two changes never overlap"
        for solid in events:
            assert 0 <= solid.event.start < solid.event.stop <= 1
            assert 0 <= solid.end_place < len(PLACES)


def test_a_split_never_shows_what_another_shows():
    meanings = {split: {s.meaning for s in scenes("easy", 400, split)} for split in SPLITS}
    assert all(s.split == "test" for s in scenes("easy", 50, "test"))
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not meanings[one] & meanings[other]


@pytest.mark.parametrize("level", LEVELS)
def test_no_split_begins_with_a_picture_that_another_begins_with(level):
    """Single solids, so that many scenes begin alike; most of them go on differently."""
    rng = random.Random(3)
    drawn = {split: [draw_scene(rng, level, split, most=1) for _ in range(300)] for split in SPLITS}
    stills = {split: {s.still for s in some} for split, some in drawn.items()}
    assert len(stills["test"]) < len({s.meaning for s in drawn["test"]}), "some pictures began several scenes"
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or stills[one] & stills[other] <= {""}, "the empty picture alone is in all of them"
        for scene in drawn[one]:
            snapshot = scene.snapshot(0.0)
            assert snapshot.still == scene.still and scene.still_split == one
            if scene.still:
                assert snapshot.still_split == one and snapshot.split in (one, None)


def test_what_is_left_of_each_split():
    """Scenes with and without changes are kept alike: a split is a fair sample of the world."""
    every = scenes("easy", 20000)
    for some in (every, [s for s in every if not s.events], [s for s in every if len(s.events) == 2]):
        found = {split: sum(s.split == split for s in some) / len(some) for split in SPLITS}
        assert found == {
            "train": pytest.approx(0.48, abs=0.06),
            "val": pytest.approx(0.02, abs=0.01),
            "test": pytest.approx(0.02, abs=0.01),
        }


def test_jitter_and_noise_do_not_move_a_scene_to_another_split():
    for scene in scenes("easy", 50):
        shaken = replace(scene, noise=0.0, seed=1, solids=tuple(replace(s, dx=0.0, dy=0.0) for s in scene.solids))
        assert shaken.split == scene.split


def test_every_single_frame_is_also_a_frame_of_the_mirrored_clip():
    """So no frame by itself tells which way something moved, whether it grew or shrank, or which change came first."""
    asked = 0
    for scene in scenes("easy", 200):
        other = mirrored(scene)
        twins = {s.shape: s for s in other.solids}
        for frame in range(8):
            time = (frame + 0.5) / 8
            for solid in scene.solids:
                twin = twins[solid.shape]
                assert twin.centre(1 - time) == pytest.approx(solid.centre(time))
                assert twin.scale(1 - time) == pytest.approx(solid.scale(time))
                near_flip = abs(solid.event.progress(time) - 0.5) < 1e-6 if solid.event else False
                assert near_flip or twin.seen(1 - time) == solid.seen(time)
        for solid in scene.events:
            assert does(solid) != does(twins[solid.shape])
            asked += 1
        if len(scene.events) == 2:
            assert [s.shape for s in other.events] == [s.shape for s in reversed(scene.events)]
    assert asked > 200


def test_a_still_picture_is_never_asked_about_change():
    rng = random.Random(0)
    for scene in scenes("full", 100):
        assert not [q for q in questions(scene.snapshot(0.0), rng, still=True) if q.type in TEMPORAL]


def test_steps_stay_in_the_world():
    assert step(0, "left") == -1 and step(0, "right") == 1 and step(4, "up-left") == 0 and step(8, "down") == -1


def test_an_instant_change_happens_at_the_middle_of_its_event():
    solid = Solid("circle", "red", "small", 4, event=Event("vanish", 0.2, 0.6))
    assert solid.seen(0.39) and not solid.seen(0.41)
