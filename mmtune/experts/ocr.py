"""Reads letters in pictures and in frames of videos, with rapidocr on onnxruntime (`pip install 'mmtune[ocr]'`).

The models lie in rapidocr's wheel, so nothing is fetched. A video is read in a few frames; what is read in all of them
is said once, everything else with its time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mmtune.errors import ModelError
from mmtune.experts._quote import over_frames
from mmtune.experts.base import Evidence, Expert, ExpertConfig
from mmtune.types import MediaRef

if TYPE_CHECKING:
    from numpy import ndarray

REVISION = 1
"""Counted up when this file reads differently."""


class Config(ExpertConfig):
    name: str = "ocr"
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Lines that it is less sure of are left out."""
    letters: Literal["any", "latin"] = "any"
    """latin leaves out lines with letters of other scripts, which patterns are easily taken for."""
    turned: bool = False
    """Also look for lines that stand on their head. Short upright words are then at times read upside down."""
    side: Annotated[int, Field(ge=32, le=4096)] = 736
    """Pictures are enlarged until their shorter side has so many pixels before lines are looked for; less is faster."""
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
        for place, (time, picture) in enumerate(zip(times, pictures, strict=True)):
            same = place > 0 and (picture == pictures[place - 1]).all()  # short videos repeat frames
            readings.append((time, readings[-1][1] if same else self._read(picture)))
        return over_frames(readings)

    def _read(self, picture: ndarray) -> list[Evidence]:
        """The lines of one picture, uint8 [height,width,3], from top to bottom."""
        result: Any = self._engine(picture[..., ::-1].copy())  # it wants blue first
        if result.txts is None or result.boxes is None:
            return []
        height, width = picture.shape[:2]
        found = []
        for text, score, corners in zip(result.txts, result.scores, result.boxes, strict=True):
            if self.config.letters == "latin" and not _latin(text):
                continue
            xs, ys = [corner[0] / width for corner in corners], [corner[1] / height for corner in corners]
            box = tuple(min(1.0, max(0.0, float(value))) for value in (min(xs), min(ys), max(xs), max(ys)))
            found.append(Evidence(str(text), min(1.0, max(0.0, float(score))), box=box))  # type: ignore[arg-type]
        return found


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
