"""ImageBind's file `imagebind_huge.pth`: the sound or the image tower of it, in and out.

The towers of the other senses are left unread. The published weights are not for commercial use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmtune.checkpoint.foreign._imagebind import ENCODERS, LICENCE, encoder, pick, rules
from mmtune.checkpoint.foreign.base import (
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Part,
    Piece,
    ReadBack,
    Role,
    Source,
)
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError

FILE = "imagebind_huge.pth"


class Config(ForeignConfig):
    modality: Literal["audio", "vision"] = "audio"
    """Which tower is brought in."""
    spacing: Literal["full", "short"] = "full"
    """Where the clips of a sound lie: `full` is ImageBind's rule, `short` the one that Video-LLaMA runs with."""
    frames: int | None = Field(default=None, ge=1)
    """Clips taken from a sound, or frames from a video; null is the encoder's own default."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads, which the file does not tell; null is as published, 12 for sound and 16 for sight."""
    mels: int = Field(default=128, ge=1)
    """Mel filters of the sound tower."""
    length: int = Field(default=204, ge=1)
    """Frames of 10 ms of the sound tower."""
    stride: int = Field(default=10, ge=1)
    """Steps between the patches of the sound tower."""


class Imagebind(Foreign):
    """See the module."""

    Config = Config
    config: Config
    about = "ImageBind's sound or image tower (option modality); the published weights are not for commercial use"
    imports = "encoder"
    roles = (Role("imagebind", FILE),)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """The tower as a folder for `encoder: {name: imagebind_audio}` or `imagebind_vision`."""
        config, source = self.config, sources["imagebind"]
        tensors = pick(source.tensors(), config.modality)
        section = encoder(tensors, config.modality, "", config.heads, config.mels, config.length, config.stride)
        facts = {"licence": LICENCE}
        if config.modality == "audio":
            section["spacing"] = config.spacing
            facts["centre"] = (
                "running: the published code subtracts each clip's mean in place, so its weights expect it"
            )
        if config.frames is not None:
            section["frames"] = config.frames
        table = KeyMap(rules(config.modality, "encoder:"))
        return Imported({"encoder": section}, [Piece(str(source), table, tensors)], {"encoder": Part("")}, facts)

    def write(self, run: Opened) -> Exported:
        """Every ImageBind tower of the run in one file, by its published names. Raises CheckpointError for none."""
        found: dict[str, Any] = {}
        for modality, name in ENCODERS.items():
            branch = next((b for b, s in run.recipe.model.branches.items() if s.encoder.name == name), None)
            if branch is not None:
                tensors = run.tensors({modality: f"branches.{branch}.encoder"})
                own = {n: t for n, t in tensors.items() if n.startswith(f"{modality}:")}
                found |= KeyMap(rules(modality, f"{modality}:")).out(own)
        if not found:
            seen = {branch: section.encoder.name for branch, section in run.recipe.model.branches.items()}
            raise CheckpointError(f"a run with the encoders {seen}", f"one of {', '.join(ENCODERS.values())}")
        return Exported({FILE: found})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        found = []
        for modality, name in ENCODERS.items():
            branches = {b: s.encoder for b, s in run.recipe.model.branches.items() if s.encoder.name == name}
            for branch, settings in list(branches.items())[:1]:
                own = ("frames", "heads", "mels", "length", "stride", "spacing")
                options = {key: getattr(settings, key) for key in own if hasattr(settings, key)}
                source = Source("imagebind", folder / FILE, scratch)
                found.append(ReadBack({"imagebind": source}, {**options, "modality": modality}, {branch: branch}))
        return found
