"""The real engine on a drawn sign, in its process as in a chat."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import util

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmtune.experts import _tiles, ocr
from mmtune.experts._cache import Cache
from mmtune.experts._runner import Runner
from mmtune.experts.ocr import OCR, Config, _latin
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


# ------------------------------------------------------------------------------------------------ larger pictures

WORDS = ("river", "stone", "amber", "cloud", "forest", "window", "garden", "silver", "market", "bridge", "winter")


@pytest.fixture(scope="module")
def reader() -> OCR:
    """The engine in this process, counting its calls in `calls`."""
    made = OCR(Config(threads=1, side=320))
    made.start()
    engine, made.calls = made._engine, 0

    def counted(pixels: np.ndarray, **options: bool):
        made.calls += options["use_det"]
        return engine(pixels, **options)

    made._engine = counted
    return made


def page(size: tuple[int, int], rows: list[tuple[str, int, int]], letters: int = 32) -> np.ndarray:
    image = Image.new("RGB", size, (245, 245, 240))
    for text, x, y in rows:
        ImageDraw.Draw(image).text((x, y), text, font=ImageFont.load_default(letters), fill=(10, 10, 10))
    return np.asarray(image)


def sentence(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 7 + place * (3 + number % 4)) % len(WORDS)] for place in range(length))


def read(reader: OCR, picture: np.ndarray) -> list[str]:
    reader.calls = 0
    return [one.text for one in reader._read(picture) if one.score is None or one.score >= reader.config.min_score]


def test_a_tall_picture_is_read_line_by_line(reader: OCR) -> None:
    rows = [sentence(number, 3) for number in range(40)]
    assert read(reader, page((400, 3600), [(text, 20, 20 + 88 * number) for number, text in enumerate(rows)])) == rows
    assert reader.calls <= 3


def test_a_wide_picture_is_read_line_by_line(reader: OCR) -> None:
    rows = [sentence(number, 30) for number in range(2)]  # each longer than a tile
    assert read(reader, page((4200, 160), [(text, 20, 20 + 70 * number) for number, text in enumerate(rows)])) == rows
    assert reader.calls <= 3


def test_a_picture_that_is_both_is_read_line_by_line(reader: OCR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "WHOLE", 1000)
    monkeypatch.setattr(_tiles, "TILE", 800)
    rows = [sentence(number, 8) for number in range(12)]
    assert read(reader, page((1200, 1150), [(text, 20, 20 + 93 * number) for number, text in enumerate(rows)])) == rows
    assert reader.calls == 5  # four tiles, and the whole for letters too tall for them


def test_an_ordinary_picture_is_read_in_one_call_as_the_engine_reads_it(reader: OCR) -> None:
    picture = page((900, 300), [("TAXI 42", 500, 40), ("river stone", 30, 44), ("amber", 30, 150)])
    plain = reader._engine(picture[..., ::-1].copy(), use_det=True, use_rec=True, use_cls=False)
    reader.calls = 0
    found = reader._read(picture)
    assert reader.calls == 1 and [(one.text, one.score) for one in found] == [
        (text, pytest.approx(score)) for text, score in zip(plain.txts, plain.scores, strict=True)
    ]


def test_what_is_not_read_is_said_first(reader: OCR) -> None:
    few = OCR(Config(threads=1, side=320, tiles=1))
    few._engine = reader._engine
    said = [one.text for one in few._read(page((200, 4000), [("river", 20, 20), ("stone", 20, 3900)]))]
    assert said == ["(only the upper 40% of the picture was read)", "river"]
