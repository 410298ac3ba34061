"""Reads letters in pictures and in frames of videos, with rapidocr on onnxruntime (`pip install 'mmtune[ocr]'`).

The models are part of rapidocr's wheel, so nothing is downloaded. A few frames of a video are read; a text that is in
all of them is reported once, every other one with its time. The engine shrinks a picture until its longer side has
2000 pixels; a larger one is read in tiles instead, see `_tiles.py`, so that its letters keep their size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mmtune.errors import ModelError
from mmtune.experts import _tiles
from mmtune.experts._quote import over_frames
from mmtune.experts.base import Evidence, Expert, ExpertConfig
from mmtune.types import MediaRef

if TYPE_CHECKING:
    from numpy import ndarray

REVISION = 2
"""Counted up when this file reads differently."""


WHOLE = 2000
"""Longest side, pixels, that is read in one piece."""
_CHUNK = 1500
"""Longest piece of a line that is recognised at once, pixels."""


class Config(ExpertConfig):
    name: str = "ocr"
    seconds: Annotated[float, Field(gt=0, le=3600)] = 180.0
    """Deadline of one call, seconds: a picture of sixteen tiles full of text takes two cores most of a minute."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Lines that it is less sure of are left out."""
    letters: Literal["any", "latin"] = "any"
    """latin leaves out lines with letters of other scripts, which patterns are easily taken for."""
    turned: bool = False
    """Also look for lines that stand on their head. Short upright words are then at times read upside down. Without it
    a page that is rotated by 90 or 180 degrees gives almost nothing: of five lines one and none, with it four and
    five."""
    side: Annotated[int, Field(ge=32, le=4096)] = 736
    """Pictures are enlarged until their shorter side has so many pixels before lines are looked for; less is faster."""
    tiles: Annotated[int, Field(ge=1, le=256)] = 16
    """Most tiles of 1600 x 1600 pixels that a larger picture is read in, some seconds each; omitted parts are reported.
    Frames of a video share them, and are read in one piece where they need more."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of the engine; 0 lets it choose."""


class OCR(Expert):
    """Lines of text with their score, box and, in a video, time."""

    Config = Config

    @property
    def version(self) -> str:
        packages = (f"{name} {_installed(name)}" for name in ("rapidocr", "onnxruntime"))
        return ", ".join((f"reader {REVISION}", *packages))

    def start(self) -> None:
        """Read the models, some tenths of a second. Raises ModelError when a package is absent."""
        for name in ("rapidocr", "onnxruntime"):
            _installed(name)
        from rapidocr import RapidOCR

        threads = self.config.threads or -1
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.text_score": 0.0,  # judged later, so that results can be kept for any `min_score`
                "Global.use_cls": self.config.turned,
                "Det.limit_side_len": self.config.side,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": threads,
            }
        )

    def look(self, ref: MediaRef, question: str | None) -> Iterable[Evidence]:
        media = self.load(ref)
        pictures = media.data.permute(0, 2, 3, 1).numpy()  # [F,height,width,3]
        times = media.times.tolist() if media.times is not None and len(pictures) > 1 else [None] * len(pictures)
        readings: list[tuple[float | None, list[Evidence]]] = []
        for index, (time, picture) in enumerate(zip(times, pictures, strict=True)):
            same = index > 0 and (picture == pictures[index - 1]).all()  # short videos repeat frames
            readings.append((time, readings[-1][1] if same else self._read(picture, len(pictures))))
        return over_frames(readings)

    def _read(self, picture: ndarray, pictures: int = 1) -> list[Evidence]:
        """The lines of one picture, uint8 [height,width,3], in reading order; it has its share of the tiles."""
        height, width = picture.shape[:2]
        pixels = picture[..., ::-1].copy()  # the engine wants blue first
        said: list[Evidence] = []
        lines = None
        if max(height, width) > WHOLE:
            grid = _tiles.tile_grid(height, width, self.config.tiles)
            enough = grid.read == (1.0, 1.0) and len(grid.tiles) * pictures <= self.config.tiles
            if pictures == 1 or enough:
                lines = self._in_tiles(pixels, grid)
                said = _unread(grid)
        for line in self._lines(pixels) if lines is None else lines:
            if self.config.letters == "latin" and not _latin(line.text):
                continue
            sides = zip(line.box, (width, height, width, height), strict=True)
            box = tuple(min(1.0, max(0.0, value / side)) for value, side in sides)
            said.append(Evidence(line.text, min(1.0, max(0.0, line.score)), box=box))  # type: ignore[arg-type]
        return said

    def _lines(self, pixels: ndarray, tile: _tiles.Tile | None = None, number: int = -1) -> list[_tiles.Line]:
        """What the engine reads in one call, in its order."""
        if tile is not None:
            left, top, right, bottom = tile.box
            pixels = pixels[top:bottom, left:right].copy()
        result: Any = self._engine(pixels, use_det=True, use_rec=True, use_cls=self.config.turned)
        if result.txts is None or result.boxes is None:
            return []
        tile = tile or _tiles.Tile((0, 0, pixels.shape[1], pixels.shape[0]), (False,) * 4)
        found = []
        for text, score, corners in zip(result.txts, result.scores, result.boxes, strict=True):
            xs, ys = [float(corner[0]) for corner in corners], [float(corner[1]) for corner in corners]
            box = (min(xs), min(ys), max(xs), max(ys))
            found.append(_tiles.placed(tile, number, str(text), float(score), box))
        return found

    def _in_tiles(self, pixels: ndarray, grid: _tiles.TileGrid) -> list[_tiles.Line]:
        """The lines of a large picture."""
        found: list[_tiles.Line] = []
        for number, tile in enumerate(grid.tiles):
            found += self._lines(pixels, tile, number)
        lines = _tiles.merged(found, lambda box: self._reread(pixels, box))
        short, long = sorted(pixels.shape[:2])
        if short * WHOLE >= long * self.config.side:  # else letters too tall for a tile have no room in it
            lines = _tiles.with_large(lines, self._lines(pixels))
        return _tiles.ordered(lines)

    def _reread(self, pixels: ndarray, box: _tiles.Box) -> tuple[str, float] | None:
        """Text and score of the one line in a box; a long one is read in pieces, cut where words end."""
        left, top, right, bottom = (int(value) for value in box)
        strip = pixels[top : bottom + 1, left : right + 1]
        texts, scores = [], []
        for begin, end in _pieces(strip):
            piece = strip[:, begin:end].copy()
            result: Any = self._engine(piece, use_det=False, use_rec=True, use_cls=self.config.turned)
            if result.txts and str(result.txts[0]).strip():
                texts.append(str(result.txts[0]).strip())
                scores.append(float(result.scores[0]))
        weight = sum(map(len, texts))
        if not weight:
            return None
        return " ".join(texts), sum(score * len(text) for text, score in zip(texts, scores, strict=True)) / weight


def _pieces(strip: ndarray) -> list[tuple[int, int]]:
    """Where a line, uint8 [height,width,3], may be cut into pieces of at most `_CHUNK` pixels: in its widest gaps."""
    import numpy as np

    width = strip.shape[1]
    if width <= _CHUNK:
        return [(0, width)]
    grey = strip.astype(np.int16).mean(axis=2)
    blank = np.abs(grey - np.median(grey)).max(axis=0) < 40
    pieces, begin = [], 0
    while width - begin > _CHUNK:
        runs, start = [], None
        for x in range(begin + _CHUNK // 2, begin + _CHUNK):
            if blank[x]:
                start = x if start is None else start
            elif start is not None:
                runs.append((x - start, (x + start) // 2))
                start = None
        end = max(runs)[1] if runs else begin + _CHUNK
        pieces.append((begin, end))
        begin = end
    return [*pieces, (begin, width)]


def _unread(grid: _tiles.TileGrid) -> list[Evidence]:
    """What is to be said, first of all, where tiles do not reach over the whole picture."""
    across, down = grid.read
    if across >= 1 and down >= 1:
        return []
    part = f"the upper {down:.0%}" if down < 1 else f"the left {across:.0%}"
    return [Evidence(f"(only {part} of the picture was read)", box=(0.0, 0.0, across, down))]


def _latin(text: str) -> bool:
    return all(not letter.isalnum() or _simple(letter) for letter in text)


def _simple(letter: str) -> bool:
    """A Latin letter, or a digit as on a keyboard; Ⅲ and ² are neither."""
    return letter in "0123456789" or unicodedata.name(letter, "").startswith("LATIN ")


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"it needs the package {name!r}, which is not installed", hint="pip install 'mmtune[ocr]'"
        ) from None
