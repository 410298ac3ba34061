"""The real engine on a drawn sign, in its process as in a chat."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import util

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmtune.experts._cache import Cache
from mmtune.experts._runner import Runner
from mmtune.experts.ocr import Config, _latin
from mmtune.types import MediaRef

pytestmark = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("rapidocr", "onnxruntime")),
    reason="the extra `ocr` is not installed: pip install 'mmtune[ocr]'",
)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner(Config(seconds=600, frames=3, side=320, threads=1), Cache(None))
    yield made
    made.close()


def sign(text: str, low: int = 40) -> Image.Image:
    image = Image.new("RGB", (320, 160), (235, 235, 225))
    ImageDraw.Draw(image).text((30, low), text, font=ImageFont.load_default(48), fill=(10, 10, 10))
    return image


def still(image: Image.Image) -> MediaRef:
    file = io.BytesIO()
    image.save(file, "PNG")
    return MediaRef("image", file.getvalue(), "sign.png")


def film(frames: list[Image.Image]) -> MediaRef:
    """One frame a second."""
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1000)
    return MediaRef("video", file.getvalue(), "film.gif")


def test_a_sign_is_read(runner: Runner) -> None:
    found = runner.look(still(sign("TAXI 42")))
    assert found.status == "found", found.note
    assert found.quote is not None and (found.quote.source, found.quote.text) == ("ocr", "TAXI 42")
    [line] = found.evidence
    left, top, right, bottom = line.box or (0, 0, 0, 0)
    assert 0 < left < 0.2 and 0.5 < right < 1 and 0.2 < top < bottom < 0.8
    assert line.score is not None and line.score > 0.8 and line.span is None


def test_nothing_is_read_where_nothing_is_written(runner: Runner) -> None:
    found = runner.look(still(Image.fromarray(np.full((120, 200, 3), 200, np.uint8))))
    assert (found.status, found.evidence, found.note) == ("nothing", (), "")


def test_a_film_is_read_with_times(runner: Runner) -> None:
    frames = [sign("OPEN"), sign("OPEN"), sign("CLOSED")]
    found = runner.look(film(frames))
    assert found.quote is not None, found.note
    assert found.quote.text.startswith("OPEN (0.") and "CLOSED (" in found.quote.text
    same = runner.look(film([sign("OPEN", low) for low in (40, 41, 42)]))
    assert same.quote is not None and same.quote.text == "OPEN"


def test_what_is_no_picture_is_told(runner: Runner) -> None:
    found = runner.look(MediaRef("image", b"\x89PNG\r\n\x1a\n" + bytes(30), "bad.png"))
    assert found.status == "failed" and "bad.png" in found.note


def test_latin_letters() -> None:
    assert _latin("Größe 42, 3.5 €!") and _latin("-") and not _latin("中") and not _latin("Ⅲ") and not _latin("x²")
