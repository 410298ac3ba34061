import random
from dataclasses import replace

import numpy as np
import pytest

from mmtune.data.world.cloud import POINTS, RECORD, ply, points
from mmtune.data.world.draw import LABELS, RGB, clip, distance, frame, labels, plate
from mmtune.data.world.scene import (
    COLOURS,
    PITCHES,
    SHAPES,
    SIGNS,
    SOUNDS,
    Event,
    Scene,
    Sign,
    Solid,
    Sound,
    draw_scene,
)
from mmtune.data.world.sound import wave


def scene(
    *solids: Solid, sign: Sign | None = None, sound: Sound | None = None, noise: float = 0.0, seed: int = 3
) -> Scene:
    return Scene("full", solids, sound or Sound("beep", "low", 2), sign, (0.1, 0.1, 0.1), noise, seed)


def front(picture: np.ndarray) -> np.ndarray:
    """Where a picture differs from its background."""
    return np.abs(picture.astype(int) - picture[-1, -1].astype(int)).sum(-1) > 60


def test_a_picture_is_a_function_of_scene_time_and_side():
    one = draw_scene(random.Random(5), "full")
    assert np.array_equal(frame(one, 0.4), frame(one, 0.4))
    assert frame(one, 0.4).shape == (144, 144, 3) and frame(one, 0.4).dtype == np.uint8
    assert not np.array_equal(frame(one, 0.4), frame(replace(one, seed=one.seed + 1), 0.4))
    assert clip(one, 8, 72).shape == (8, 72, 72, 3)
    assert np.array_equal(clip(one, 4)[1], frame(one, 1.5 / 4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", [0, 5, 7])
def test_a_solid_lies_in_its_place_with_its_colour(shape, place):
    picture = frame(scene(Solid(shape, "orange", "large", place, angle=0.1)), 0.0)
    ys, xs = np.nonzero(front(picture))
    assert abs(xs.mean() / 48 - (place % 3 + 0.5)) < 0.06
    assert abs(ys.mean() / 48 - (place // 3 + 0.5)) < 0.06
    assert xs.min() // 48 == xs.max() // 48 and ys.min() // 48 == ys.max() // 48
    assert tuple(np.median(picture[front(picture)], axis=0)) == RGB["orange"]


def test_every_shape_has_an_outline_of_its_own():
    y, x = np.mgrid[-24:24, -24:24].astype(np.float32)
    masks = {s: distance(s, x, y, 18) < 0 for s in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert a == b or overlap < 0.85, (a, b, overlap)


def test_drawing_small_equals_shrinking_a_large_picture():
    one = scene(Solid("square", "red", "large", 4, "striped"), Solid("star", "cyan", "small", 0), sign=Sign("stop", 8))
    shrunk = frame(one, 0.0, 144).reshape(72, 2, 72, 2, 3).mean((1, 3))
    assert np.abs(shrunk - frame(one, 0.0, 72)).mean() < 2.5


def test_events_can_be_seen():
    grows = Solid("circle", "red", "small", 4, event=Event("grow", 0.2, 0.8))
    size = [front(frame(scene(grows), t)).sum() for t in (0.1, 0.5, 0.9)]
    assert size[0] * 1.3 < size[1] and size[1] * 1.3 < size[2]
    moves = Solid("circle", "red", "small", 4, event=Event("move", 0.2, 0.8, "left"))
    x = [np.nonzero(front(frame(scene(moves), t)))[1].mean() / 48 for t in (0.1, 0.9)]
    assert x[0] - x[1] == pytest.approx(1, abs=0.05)
    gone = Solid("circle", "red", "small", 4, event=Event("vanish", 0.2, 0.8))
    assert front(frame(scene(gone), 0.1)).any() and not front(frame(scene(gone), 0.9)).any()


def test_textures_are_different_pictures():
    drawn = [
        frame(scene(Solid("circle", "red", "large", 4, t)), 0.0).astype(int) for t in ("plain", "striped", "dotted")
    ]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert np.abs(a - b).sum(-1)[48:96, 48:96].mean() > 15


@pytest.mark.parametrize("side", [72, 144])
def test_signs_fit_their_place_and_no_two_look_alike(side):
    plates = {text: plate(text, side) for text in SIGNS}
    unit = side // 3
    for text, picture in plates.items():
        assert picture.shape[1] == unit and picture.shape[0] <= unit
        inner = picture[3:-3, 2:-2].mean(-1) < 150
        height = np.ptp(np.nonzero(inner.any(1))[0]) + 1
        assert height > 0.16 * unit, f"{text} is only {height} pixels high"
    for a in SIGNS:
        for b in SIGNS:
            assert a == b or np.abs(plates[a] - plates[b]).mean() > 4, (a, b)


def test_labels_say_what_the_picture_shows():
    one = scene(Solid("ring", "blue", "large", 2), Solid("cross", "white", "small", 6, "dotted"), sign=Sign("zoo", 4))
    names = labels(one, 0.0).reshape(9, 9, len(LABELS))
    assert names[1, 7, :4].tolist() == [SHAPES.index("ring") + 1, COLOURS.index("blue") + 1, 3, 1]
    assert names[7, 1, :4].tolist() == [SHAPES.index("cross") + 1, COLOURS.index("white") + 1, 1, 3]
    assert (names[3:6, 3:6, 4] == SIGNS.index("zoo") + 1).all() and (names[..., 4] > 0).sum() == 9
    busy = front(frame(one, 0.0, 72)).reshape(9, 8, 9, 8).mean((1, 3)) > 0.25
    assert not (busy & (names[..., 0] == 0) & (names[..., 4] == 0)).any(), "a patch full of paint has no name"
    assert (names[:, :, 0] > 0).sum() < 20
    for column, count in enumerate(LABELS.values()):
        assert names[..., column].max() <= count


def test_turning_changes_the_label_of_turnable_shapes_only():
    for shape, differs in (("square", True), ("circle", False)):
        turned = [labels(scene(Solid(shape, "red", "large", 4, angle=a)), 0.0)[40, 5] for a in (0.0, 0.785)]
        assert (turned[0] != turned[1]) == differs


def test_sounds_differ_by_kind_pitch_and_count():
    heard = {}
    for kind in SOUNDS:
        for pitch in PITCHES:
            for count in (1, 3):
                samples = wave(scene(sound=Sound(kind, pitch, count)))
                assert samples.shape == (32000,) and samples.dtype == np.float32 and np.abs(samples).max() <= 1
                heard[kind, pitch, count] = samples
                loud = np.abs(samples).reshape(-1, 160).max(1) > 0.08
                bursts = np.nonzero(np.diff(np.nonzero(loud)[0], prepend=-99) > 12)[0]
                assert len(bursts) == count, (kind, pitch, count)
    for kind in SOUNDS:
        power = [np.abs(np.fft.rfft(heard[kind, pitch, 3])) ** 2 for pitch in PITCHES]
        low, high = ((p * np.arange(len(p))).sum() / p.sum() for p in power)
        assert high > 1.5 * low, kind


def test_the_cloud_has_the_solids_of_the_start():
    late = Solid("circle", "red", "small", 0, event=Event("appear", 0.2, 0.8))
    one = scene(Solid("square", "green", "large", 8), late)
    cloud = points(one)
    assert len(cloud) == POINTS and set(zip(cloud["red"], cloud["green"], cloud["blue"], strict=True)) == {RGB["green"]}
    assert cloud["x"].mean() == pytest.approx(2 / 3, abs=0.05) and cloud["y"].mean() == pytest.approx(-2 / 3, abs=0.05)
    head, _, body = ply(one).partition(b"end_header\n")
    assert f"element vertex {POINTS}" in head.decode() and len(body) == POINTS * RECORD.itemsize
    assert np.array_equal(np.frombuffer(body, RECORD), cloud)
