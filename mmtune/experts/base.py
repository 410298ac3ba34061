"""The contract of experts: small programs that read a medium and report what they find, beside the model that answers.

An expert is plugged in at inference only (LLaMA-Adapter V2): nothing of the model is trained for it. What it finds
enters the user's turn as quoted data, never as an instruction; see `_quote.py`. It runs in a child process with a
deadline, see `_runner.py`, so it may be slow, crash or hang without harm to the answer.

An expert is a file of this room, an entry point of the group `mmtune.experts`, or `package.module:Class`. One from
outside is imported by its own process only; a file of this room by the program that answers too, to read its `Config`.
Heavy packages are imported in `start`, since the kinds of media are needed before there is a medium.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mmtune.config import Config
from mmtune.errors import ShapeError
from mmtune.types import Kind, MediaRef

if TYPE_CHECKING:
    from mmtune.types import Media


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that an expert found. Raises ShapeError when a value is out of range."""

    text: str
    score: float | None = None
    """Confidence, 0..1; None if the expert has none."""
    span: tuple[float, float] | None = None
    """From when to when, seconds; none for the whole medium."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom, as parts of width and height, 0..1; none for the whole picture."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ShapeError(f"the text of evidence is a {type(self.text).__name__}", "text")
        if self.score is not None and not (_numbers(self.score) and 0 <= self.score <= 1):
            raise ShapeError(f"evidence with score {self.score!r}", "a number in 0..1")
        if self.span is not None:
            if not (isinstance(self.span, tuple) and len(self.span) == 2 and _numbers(*self.span)):
                raise ShapeError(f"evidence with span {self.span!r}", "(begin, end) in seconds")
            if not 0 <= self.span[0] <= self.span[1]:
                raise ShapeError(f"evidence with span {self.span!r}", "0 <= begin <= end")
        if self.box is not None:
            if not (isinstance(self.box, tuple) and len(self.box) == 4 and _numbers(*self.box)):
                raise ShapeError(f"evidence with box {self.box!r}", "(left, top, right, bottom)")
            left, top, right, bottom = self.box
            if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
                raise ShapeError(f"evidence with box {self.box!r}", "parts of width and height, 0..1, in order")

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "text": self.text,
            "score": self.score,
            "span": list(self.span) if self.span else None,
            "box": list(self.box) if self.box else None,
        }

    @classmethod
    def read(cls, tree: Any) -> Evidence:
        """What `record` wrote. Raises ShapeError for anything else."""
        if not isinstance(tree, dict) or set(tree) != {"text", "score", "span", "box"}:
            raise ShapeError(f"evidence is {str(tree)[:80]}", "text, score, span and box")
        for name in ("span", "box"):
            if not isinstance(tree[name], (list, type(None))):
                raise ShapeError(f"{name} of evidence is a {type(tree[name]).__name__}", "a list of numbers or null")
        span, box = (None if tree[name] is None else tuple(tree[name]) for name in ("span", "box"))
        return cls(tree["text"], tree["score"], span, box)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values) and all(
        map(math.isfinite, values)
    )


class ExpertConfig(Config):
    """What every expert's config has."""

    name: str
    """Name of the expert: its file in this room, an entry point, or package.module:Class."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Deadline of one call, seconds, the start of the process included."""
    frames: Annotated[int, Field(ge=1, le=64)] = 4
    """Frames of a video that it looks at."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Evidence that it is less sure of is left out."""
    max_chars: Annotated[int, Field(ge=16, le=20_000)] = 400
    """Most characters that it may add to a turn."""
    network: bool = False
    """Let it open connections; without, Python code in its process cannot."""


AFTERWARDS = frozenset({"seconds", "min_score", "max_chars", "network"})
"""Fields that do not change the findings of an expert, so they are not part of its key in the cache."""


class Expert(ABC):
    """One expert. Made in its own process; a file of this room also in the program that answers, to say its kinds."""

    Config: ClassVar[type[ExpertConfig]] = ExpertConfig
    kinds: ClassVar[tuple[Kind, ...]] = ("image", "video")
    """Kinds of media that it looks at."""

    def __init__(self, config: ExpertConfig) -> None:
        """Keep it light: weights are read in `start`."""
        self.config = config

    @property
    @abstractmethod
    def version(self) -> str:
        """Whatever, beside the config, decides what it finds: of its code, its packages and its weights.

        Results are kept on disk under it. Asked before each look, within the deadline of the call, so it must be quick.
        """

    @property
    def asks(self) -> bool:
        """Whether the question changes what it finds."""
        return False

    def start(self) -> None:  # noqa: B027  # not every expert has something to load
        """Load weights and heavy packages. Called once, in the child process, before the first `look`."""

    @abstractmethod
    def look(self, ref: MediaRef, question: str | None) -> Iterable[Evidence]:
        """What it finds, most important first. `ref` holds the encoded bytes; `load` decodes them.

        question: the user's question; None where `asks` is false.
        """

    def load(self, ref: MediaRef) -> Media:
        """The medium decoded, a video as `config.frames` frames with their times. Raises MediaError."""
        from mmtune import media

        return media.load(ref, media.Sampling(frames=self.config.frames))


Contract = Expert
