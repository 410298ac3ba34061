"""The central types refuse what breaks their own description."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from mmtune.errors import MediaError, Reason, ShapeError
from mmtune.types import Batch, Embeds, Example, Features, FeatureShape, Media, MediaRef, Quote, Sample, Slot, Turn


def test_a_reference_reads_and_has_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"abc")
    inside, outside = MediaRef("image", b"abc", "t.tar/a.png"), MediaRef("image", path, str(path))
    assert inside.read() == outside.read() == b"abc"
    assert inside.digest == outside.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert pickle.loads(pickle.dumps(outside)) == outside
    assert "abc" not in repr(inside)


@pytest.mark.parametrize("kind", ["image", "video", "audio", "points"])
def test_a_missing_file_is_counted_by_its_kind(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        MediaRef(kind, tmp_path / "none", "none").read()  # type: ignore[arg-type]
    assert caught.value.reason is Reason(f"unreadable_{kind}")


def test_a_reference_is_bytes_or_a_path_of_a_known_kind() -> None:
    with pytest.raises(ShapeError, match="picture"):
        MediaRef("picture", b"", "x")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="str"):
        MediaRef("image", "a.png", "x")  # type: ignore[arg-type]


def test_media_that_are_right() -> None:
    frames = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    Media("image", frames[:1])
    Media("video", frames, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
    Media("audio", torch.zeros(2, 7), rate=16000)
    Media("points", torch.zeros(9, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "image", "data": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, "2 frames"),
        ({"kind": "video", "data": torch.zeros(2, 4, 4, 5, dtype=torch.uint8)}, "three channels"),
        ({"kind": "video", "data": torch.zeros(0, 3, 4, 5, dtype=torch.uint8)}, "nothing empty"),
        ({"kind": "video", "data": torch.zeros(2, 3, 4, 5)}, r"float32 \[2, 3, 4, 5\]\nexpected: uint8"),
        (
            {"kind": "video", "data": torch.zeros(2, 3, 4, 5, dtype=torch.uint8), "times": torch.zeros(2)},
            "times.*float32",
        ),
        (
            {
                "kind": "video",
                "data": torch.zeros(2, 3, 4, 5, dtype=torch.uint8),
                "times": torch.zeros(3, dtype=torch.float64),
            },
            "number of frames",
        ),
        ({"kind": "audio", "data": torch.zeros(1, 5)}, "rate None"),
        ({"kind": "points", "data": torch.zeros(5, 2)}, "x, y and z"),
        ({"kind": "audio", "data": [1.0], "rate": 1}, "list"),
    ],
)
def test_media_that_are_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Media(**arguments)


def test_turns_and_samples() -> None:
    ref = MediaRef("image", b"", "a")
    turn = Turn("user", ("see ", ref, "this", Quote("ocr", "word")))
    assert (turn.text, turn.media) == ("see this", (ref,))
    assert Sample("1", (turn, turn)).media == (ref, ref)
    with pytest.raises(ShapeError, match="bot"):
        Turn("bot", ("x",))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="str"):
        Turn("user", "x")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="int"):
        Turn("user", (3,))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="sample '1'"):
        Sample("1", ())


def example(**changes: object) -> Example:
    whole = {
        "id": "e",
        "tokens": torch.arange(6),
        "labels": torch.full((6,), -100),
        "slots": (Slot("a", 1, 2, 0), Slot("a", 3, 2, 1)),
        "media": {"a": [torch.zeros(1), torch.zeros(1)]},
    }
    return Example(**{**whole, **changes})  # type: ignore[arg-type]


def test_an_example_that_is_right() -> None:
    assert len(example()) == 6
    example(slots=(Slot("a", 2, 0, 0), Slot("a", 2, 0, 1)))  # a fusion that takes no places


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(6)}, "float32"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "length T"),
        ({"slots": (Slot("a", 5, 2, 0),)}, "inside the example"),
        ({"slots": (Slot("a", 1, 3, 0), Slot("a", 3, 1, 1))}, "do not overlap"),
        ({"slots": (Slot("a", 1, 1, 2),)}, "media item"),
        ({"slots": (Slot("b", 1, 1, 0),)}, "media item"),
    ],
)
def test_an_example_that_is_wrong(changes: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        example(**changes)


def test_a_slot_is_not_negative() -> None:
    with pytest.raises(ShapeError, match="negative"):
        Slot("a", -1, 2, 0)


def batch(**changes: object) -> Batch:
    rows = torch.zeros(2, 5, dtype=torch.int64)
    whole = {
        "tokens": rows,
        "labels": rows,
        "positions": rows,
        "segments": rows.int(),
        "media": {"a": torch.zeros(3, 2, 7)},
        "frame_mask": {"a": torch.ones(3, 2, dtype=torch.bool)},
        "slots": {"a": torch.zeros(3, 4, dtype=torch.int64)},
    }
    return Batch(**{**whole, **changes})  # type: ignore[arg-type]


def test_a_batch_moves() -> None:
    moved = batch(stream="s", ids=("1",)).to("meta")
    tensors = [moved.tokens, moved.labels, moved.positions, moved.segments]
    tensors += [moved.media["a"], moved.frame_mask["a"], moved.slots["a"]]
    assert all(tensor.is_meta for tensor in tensors)
    assert (moved.stream, moved.ids) == ("s", ("1",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": torch.zeros(2, 5, dtype=torch.int64)}, "segments is int64"),
        ({"labels": torch.zeros(2, 4, dtype=torch.int64)}, r"\[B,T\]"),
        ({"media": {}}, "same branches"),
        ({"frame_mask": {"a": torch.ones(3, 1, dtype=torch.bool)}}, r"\[M,F\]"),
        ({"frame_mask": {"a": torch.ones(3, 2)}}, "bool"),
        ({"slots": {"a": torch.zeros(2, 4, dtype=torch.int64)}}, r"\[M,4\]"),
        ({"slots": {"a": torch.zeros(3, 3, dtype=torch.int64)}}, r"\[M,4\]"),
    ],
)
def test_a_batch_that_is_wrong(changes: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        batch(**changes)


def test_features_and_embeds() -> None:
    frames = torch.ones(2, 3, dtype=torch.bool)
    Features(torch.zeros(2, 3, 6, 8), frames, (2, 3))
    with pytest.raises(ShapeError, match="height"):
        Features(torch.zeros(2, 3, 6, 8), frames, (2, 2))
    with pytest.raises(ShapeError, match=r"\[M,F,N,E\]"):
        Features(torch.zeros(2, 3, 8), frames)
    with pytest.raises(ShapeError, match=r"\[M,F\]"):
        Features(torch.zeros(3, 2, 6, 8), frames)
    Embeds(torch.zeros(2, 3, 8), frames)
    with pytest.raises(ShapeError, match=r"\[M,K\]"):
        Embeds(torch.zeros(2, 4, 8), frames)
    assert FeatureShape(width=8, tokens=6, grid=(2, 3)).frames == 1
    with pytest.raises(ShapeError, match="at least 1"):
        FeatureShape(width=0, tokens=6)
