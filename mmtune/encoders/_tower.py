"""Shared by encoders that are one frozen tower: frames folded into one axis, chunks that bound memory, the fingerprint.

An entry builds a tower and says what it computes for a stack of frames (pictures, or segments of sound); everything
else is here.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtune import random_state
from mmtune.encoders._layers import LayersConfig
from mmtune.encoders.base import Encoder
from mmtune.types import Features
from mmtune.weights_file import digest


class TowerEncoder(Encoder):
    """A tower over single frames.

    A subclass sets `structure` and `tower_name`, calls `measure` at the end of its constructor, and defines
    `tower_forward` and `input_shape`; its config has the fields `frames` and `chunk`. The tower is always in evaluation
    mode: dropout and the like stay off also when a parameter group opens its weights.
    """

    config: Any
    structure: dict[str, Any]
    """What the tower was built from, part of the fingerprint."""
    tower_name: ClassVar[str]
    """Attribute that holds the tower, the first part of its parameters' names."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one prepared frame."""
        raise NotImplementedError

    @abstractmethod
    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Prepared frames [R,...] through `tower` -> tokens [R,N,E] and their grid, if they have one."""
        raise NotImplementedError

    def identity(self) -> list[Any]:
        """Everything beside weights and config that decides the features; part of the fingerprint."""
        return [self.structure]

    @staticmethod
    def seeded(build: Callable[[], nn.Module]) -> nn.Module:
        """A tower whose random weights are the same every time, without touching the caller's random state."""
        with random_state.seeded(0):
            return build()

    def measure(self, build: Callable[[], nn.Module]) -> None:
        """Set width, tokens per frame and grid by running a second tower from `build` on the meta device: no memory,
        no arithmetic, and no formula per architecture."""
        with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
            tokens, self.grid = self.tower_forward(build().eval(), torch.empty(1, *self.input_shape))
        self.tokens_per_frame, self.width = tokens.shape[1], tokens.shape[2]
        self.max_frames = self.config.frames
        if isinstance(self.config, LayersConfig):
            self.layers = len(self.config.layers or (None,))
        self.eval()

    def train(self, mode: bool = True) -> TowerEncoder:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, x: Tensor, frames: Tensor) -> Features:
        """[M,F,...], bool [M,F] -> tokens [M,F,N,E]; only real frames are computed, the others are zero."""
        dtype, tower = next(self.parameters()).dtype, getattr(self, self.tower_name)
        whole = bool(frames.all())
        real = x.flatten(0, 1) if whole else x[frames]
        blank = not real.shape[0]
        if blank:
            # The tower runs all the same, so that an opened one is part of every process's graph.
            real = torch.zeros_like(x[:1, :1]).flatten(0, 1)
        done = torch.cat([self.tower_forward(tower, part.to(dtype))[0] for part in real.split(self.config.chunk)])
        if whole:
            return Features(done.unflatten(0, tuple(frames.shape)), frames, self.grid)
        out = done.new_zeros(*frames.shape, *done.shape[1:])
        return Features(out + done.sum() * 0 if blank else out.index_put((frames,), done), frames, self.grid)

    def fingerprint(self) -> str:
        """sha256 over what the tower is built from, its settings and its weights, wherever these are."""
        config = self.config.model_dump(mode="json", exclude={"weights", "model", "revision", "chunk"})
        about = json.dumps([type(self).__qualname__, config, *self.identity()], sort_keys=True, default=str)
        return digest(sorted(self.state_dict().items()), about)
