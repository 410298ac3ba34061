"""Describes pictures, videos and whatever else a run of mmtune takes, with that run or a model of transformers.

    mmtune chat runs/large --video clip.mp4 --expert caption:run=runs/small "What happens?"
    mmtune chat --image a.jpg --expert caption:folder=models/blip "What is this?"

A run is asked as it is in a chat. A model of transformers sees single pictures, of a video a few frames with their
times. Both are read from folders; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from mmtune import config as configs
from mmtune import paths
from mmtune.errors import MmtuneError
from mmtune.experts._quote import over_frames
from mmtune.experts.base import Evidence, Expert, ExpertConfig
from mmtune.types import KINDS, Kind, MediaRef, Sample, Turn

if TYPE_CHECKING:
    from mmtune.experts._pipeline import Describer

REVISION = 1
"""Counted up when this file describes differently."""
DESCRIBE = "Describe what you see."
_WHOLE = 1 << 20
"""Files up to so many bytes are known by their content, larger ones by size and time of change."""


class Config(ExpertConfig):
    name: str = "caption"
    seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Deadline of one call, seconds, reading the weights included."""
    run: str | None = None
    """Folder of a run of mmtune."""
    folder: str | None = None
    """Folder of a model for image-text-to-text, as transformers saves it; instead of `run`."""
    request: str = ""
    """The question to it; empty for "Describe what you see.", or for no text where a model only continues text."""
    ask: bool = False
    """Ask what the person asks instead."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 80
    """Longest description."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    @model_validator(mode="after")
    def _one(self) -> Config:
        if (self.run is None) == (self.folder is None):
            message = "say either run or folder, as caption:run=FOLDER"
            configs.raise_problems("Config", [configs.problem("run", message)])
        return self


class Caption(Expert):
    """One description of the whole medium; of a video by frames, one for each stretch that looks alike."""

    Config = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._path = Path(paths.resolve(config.run or config.folder or "")).expanduser()
        self._run: Any = None
        self._describer: Describer | None = None
        if config.run is not None:
            self.kinds = _kinds(self._path)  # type: ignore[misc]  # a class says it for most experts

    @property
    def version(self) -> str:
        return f"caption {REVISION}, mmtune {metadata.version('mmtune')}, {_digest(self._path)}"

    @property
    def asks(self) -> bool:
        return self.config.ask

    def start(self) -> None:
        """Read the weights. Raises CheckpointError, ConfigError, ModelError."""
        if self.config.folder is not None:
            from mmtune.experts._pipeline import Describer

            self._describer = Describer(self._path, self.config.device)
            return
        import torch

        from mmtune.checkpoint import store

        device = self.config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, processor, _ = store.load_run(self._path, device)
        self._run = model.eval(), processor

    def look(self, ref: MediaRef, question: str | None) -> Iterable[Evidence]:
        request = question or self.config.request
        if self._describer is None:
            return [Evidence(self._answer(ref, request or DESCRIBE))]
        media = self.load(ref)
        pictures = media.data.permute(0, 2, 3, 1).numpy()  # [F,height,width,3]
        times = media.times.tolist() if media.times is not None and len(pictures) > 1 else [None] * len(pictures)
        said = [self._describer.describe(picture, request, DESCRIBE, self.config.max_tokens) for picture in pictures]
        return over_frames([(time, [Evidence(text)]) for time, text in zip(times, said, strict=True)])

    def _answer(self, ref: MediaRef, request: str) -> str:
        from mmtune import generate

        model, processor = self._run
        example = processor.example(Sample("caption", (Turn("user", (ref, request)),)), answer=True)
        [ids] = generate.answer_batch(model, [example], processor.stops, self.config.max_tokens)
        return processor.tokenizer.decode(ids).strip()


def _kinds(run: Path) -> tuple[Kind, ...]:
    """Kinds of media that a run takes, read from its recipe without heavy packages."""
    try:
        branches = configs.read(run / "recipe.yaml")["model"]["branches"]
        found = {kind for branch in branches.values() for kind in branch["kinds"]}
    except (MmtuneError, LookupError, TypeError, AttributeError):
        return ("image", "video")  # the mistake is reported when the expert is asked
    return tuple(kind for kind in KINDS if kind in found)


def _digest(folder: Path) -> str:
    """What tells one state of a folder of weights from another, without reading gigabytes."""
    digest = hashlib.sha256(str(folder).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)} {facts.st_size}".encode())
        digest.update(path.read_bytes() if facts.st_size <= _WHOLE else str(facts.st_mtime_ns).encode())
    return digest.hexdigest()
