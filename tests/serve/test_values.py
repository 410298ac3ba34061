"""Media as a program has them: what is given is what is decoded, to the bit where that is possible."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune import media
from mmtune.errors import UsageError
from mmtune.media import encode
from mmtune.serve.conversation import Conversation
from mmtune.serve.values import reference_to, references_to
from mmtune.types import MediaRef
from tests.serve.fake import FakeEngine

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decoded(ref: MediaRef, frames: int = 5) -> np.ndarray:
    return media.load(ref, media.Sampling(frames=frames)).data.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        PIXELS[None],
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        np.ascontiguousarray(PIXELS.transpose(2, 0, 1)),
        PIXELS / 255.0,
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        PIXELS.astype(np.int64),
        Image.fromarray(PIXELS),
        png(PIXELS),
        bytearray(png(PIXELS)),
        io.BytesIO(png(PIXELS)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_picture_in_any_form_is_the_same_picture(value) -> None:
    assert np.array_equal(decoded(reference_to("image", value)), PIXELS[None])


def test_pictures_of_one_channel_and_of_other_modes() -> None:
    grey = np.repeat(PIXELS[:, :, :1], 3, axis=2)[None]
    flat = PIXELS[:, :, 0]
    for value in (flat, flat[:, :, None], torch.from_numpy(flat[None]), Image.fromarray(flat)):
        assert np.array_equal(decoded(reference_to("image", value)), grey)
    assert decoded(reference_to("image", Image.fromarray(PIXELS).convert("CMYK"))).shape == (1, 20, 30, 3)
    assert decoded(reference_to("image", Image.fromarray(PIXELS).convert("P"))).shape == (1, 20, 30, 3)
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6
    assert decoded(reference_to(None, turned)).shape == (1, 30, 20, 3)


@pytest.mark.parametrize(
    "value",
    [
        FRAMES,
        list(FRAMES),
        [Image.fromarray(frame) for frame in FRAMES],
        (FRAMES, 25),
        (list(torch.from_numpy(FRAMES)), 12.5),
        torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
        [png(frame) for frame in FRAMES],
    ],
    ids=["array", "arrays", "pictures", "with_fps", "tensors_with_fps", "tensor", "bytes"],
)
def test_a_video_in_any_form_has_the_same_frames(value) -> None:
    [ref] = references_to("video", value)
    assert np.array_equal(decoded(ref), FRAMES)


def test_the_rate_of_frames_is_kept() -> None:
    times = media.load(reference_to("video", (FRAMES, 10)), media.Sampling(frames=5)).times
    assert times is not None and np.allclose(times.numpy(), [0, 0.1, 0.2, 0.3, 0.4], atol=2e-3)


def test_one_picture_is_a_video_of_one_frame() -> None:
    for one in (FRAMES[0], Image.fromarray(FRAMES[0]), torch.from_numpy(FRAMES[0]), (FRAMES[0], 25)):
        assert np.array_equal(decoded(reference_to("video", one)), FRAMES[:1].repeat(5, 0))


def test_frames_may_be_files_and_several_videos_may_be_named(tmp_path: Path) -> None:
    paths = []
    for number, frame in enumerate(FRAMES):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(png(frame))
    [ref] = references_to("video", paths)
    assert np.array_equal(decoded(ref), FRAMES)
    clip = tmp_path / "clip.mkv"
    clip.write_bytes(encode.clip(FRAMES))
    assert len(references_to("video", [clip, str(clip)])) == 2 and len(references_to("image", paths)) == 5
    assert len(references_to("video", [FRAMES, FRAMES])) == 2


@pytest.mark.parametrize("stereo", [False, True])
def test_sound_keeps_its_samples(stereo: bool) -> None:
    wave = np.sin(np.arange(8000) / 20).astype(np.float32) * 0.5
    samples = np.stack([wave, -wave]) if stereo else wave
    for value in (samples, samples.T, torch.from_numpy(samples), (samples * 32768).astype(np.int16)):
        loaded = media.load(reference_to("audio", (value, 16000)), media.Sampling(rate=16000))
        assert np.allclose(loaded.data.numpy(), np.atleast_2d(samples), atol=1e-4)


def test_points_keep_their_columns() -> None:
    points = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    for value in (points, torch.from_numpy(points)):
        assert np.allclose(media.load(reference_to("points", value)).data.numpy()[:, :3], points[:, :3])


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("image", np.zeros((2, 3, 4, 5)), "a picture of shape"),
        ("image", PIXELS - 128.0, "undo the normalisation"),
        ("image", np.full((4, 4), np.nan), "undo the normalisation"),
        ("image", np.full((4, 4), 300), "from 300 to 300"),
        ("image", object(), "object"),
        ("image", "no/where.png", "no such file"),
        ("image", "https://example.org/a.png", "is not read"),
        ("image", [], "at least one"),
        ("video", [PIXELS, PIXELS[:10]], "frames of one size"),
        ("video", (FRAMES, 0), "frames a second"),
        ("audio", np.zeros(8), "samples, rate"),
        ("audio", (np.zeros(8), 0.5), "rate"),
        ("audio", (np.zeros(8, np.uint8), 8000), "floating point"),
        ("points", np.zeros(7), "numbers"),
        ("image", {"size": 3}, "a mapping with size"),
        ("audio", png(PIXELS), "give it as image"),
        ("points", MediaRef("image", b"x", "x"), "given as points"),
    ],
)
def test_what_is_no_medium_is_refused(kind, value, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        references_to(kind, value)


def test_cells_of_a_data_set_and_tuples_are_media_too() -> None:
    assert (decoded(reference_to("image", {"bytes": png(PIXELS), "path": "gone.png"})) == PIXELS).all()
    sound = reference_to("audio", {"path": None, "array": np.zeros(800), "sampling_rate": 8000})
    assert media.load(sound).data.shape[-1] == 1600, "a tenth of a second at 16 kHz"
    assert len(references_to("image", (PIXELS, Image.fromarray(PIXELS)))) == 2
    assert len(references_to("video", (PIXELS, PIXELS))) == 1, "two frames"
    assert len(references_to("video", (FRAMES, 25))) == 1


@pytest.mark.parametrize("question", [None, 5, b"what?"])
def test_a_question_that_is_no_text_is_refused(question) -> None:
    with pytest.raises(UsageError, match="a question that is a"):
        Conversation(FakeEngine()).ask(question)


def test_media_may_be_given_with_a_question() -> None:
    talk = Conversation(FakeEngine())
    talk.attach(PIXELS, kind="image")
    assert talk.ask("same?", image=[PIXELS, png(PIXELS)], video=(FRAMES, 5)).text == "a red circle"
    assert [ref.kind for ref in talk.turns[0].media] == ["image", "image", "image", "video"]
    talk.undo()
    assert len(talk.waiting) == 4


def test_media_of_a_question_that_failed_do_not_stay() -> None:
    talk = Conversation(FakeEngine())
    talk.engine.prompt = lambda _: (_ for _ in ()).throw(UsageError("too long"))
    with pytest.raises(UsageError, match="too long"):
        str(talk.ask("what?", image=PIXELS))
    assert talk.waiting == [] and talk.turns == []


def test_a_range_of_a_clip_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "clip.mkv").write_bytes(encode.clip(FRAMES))
    talk = Conversation(FakeEngine())
    talk.attach(tmp_path / "clip.mkv", start=1, end=3)
    assert talk.waiting[0].range == "@1.0-3.0"
