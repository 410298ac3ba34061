"""ImageBind's sound tower: clips of two seconds as log-mel pictures, each to one vector or to its patch tokens.

A sound gives always `frames` clips, which overlap where it is short and are all the same where it is no longer than
one clip. The settings are ImageBind's; Video-LLaMA's are `frames: 8, spacing: short, centre: running`.

`weights` is what `mmtune import imagebind` wrote. The published weights are not for commercial use, which is said when
they load. Keys: `tower.*`; `mmtune/checkpoint/foreign/imagebind.py` says which published name each one has.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mmtune.encoders._fbank import least, log_mel
from mmtune.encoders._imagebind import Tower, read
from mmtune.encoders._layers import LayersConfig
from mmtune.encoders._tower import TowerEncoder
from mmtune.encoders._weights import fill
from mmtune.errors import ConfigError, MediaError, Reason
from mmtune.media import Sampling
from mmtune.media._resample import resample
from mmtune.types import Kind, Media


class Config(LayersConfig):
    name: str = "imagebind_audio"
    frames: int = Field(default=3, ge=1, le=10_000)
    """Clips taken from a sound, whatever its length (ImageBind 3, Video-LLaMA 8)."""
    spacing: Literal["full", "short"] = "full"
    """Where the clips lie: `full` spreads them so that the last one ends with the sound (ImageBind); `short` divides
    the room by their number instead of the gaps between them, so that the last one stops earlier (Video-LLaMA)."""
    centre: Literal["clip", "running"] = "clip"
    """Which mean is subtracted: `clip` takes each clip's own; `running` also leaves the subtraction in the sound, so
    that overlapping clips lose it again. The published code does the latter: its weights ask for `running`."""
    clip_seconds: float = Field(default=2.0, gt=0, le=3600)
    """Length of a clip, seconds."""
    rate: int = Field(default=16000, ge=1000, le=768_000)
    """Samples per second, Hz."""
    mels: int = Field(default=128, ge=1)
    """Mel filters, the height of the picture."""
    length: int = Field(default=204, ge=1)
    """Frames of 10 ms, the width of the picture: shorter clips are filled with zeros, longer ones cut."""
    mean: float = -4.268
    """Subtracted from the logarithms, fill included."""
    std: float = Field(default=9.138, gt=0)
    """Divided by after that."""
    tokens: Literal["pooled", "patches", "all"] = "pooled"
    """`pooled` is the vector of a clip, of length 20 in the published weights; `patches` are the tokens after the last
    block (low mel row first), `all` puts the class token before them."""
    tower_width: int = Field(default=768, ge=1)
    """Width of the tower."""
    depth: int = Field(default=12, ge=1)
    """Blocks."""
    heads: int = Field(default=12, ge=1)
    """Attention heads; divides `tower_width`."""
    out: int = Field(default=1024, ge=1)
    """Width of the pooled vector."""
    patch: int = Field(default=16, ge=1)
    """Height and width of a patch, in mel filters and frames."""
    stride: int = Field(default=10, ge=1)
    """Steps between patches; smaller than `patch` where they overlap."""
    chunk: int = Field(default=32, ge=1, le=2**20)
    """Clips that go through the tower at once; bounds memory."""


class ImagebindAudio(TowerEncoder):
    """See the module. Raises ConfigError where a picture of `mels` by `length` holds no patch or heads do not fit."""

    Config = Config
    config: Config
    kinds: ClassVar[tuple[Kind, ...]] = ("audio",)
    tower_name = "tower"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.structure: dict[str, Any] = {}
        if min(config.mels, config.length) < config.patch or config.tower_width % config.heads:
            raise ConfigError(
                f"encoder `imagebind_audio` with {config.mels} x {config.length} values, patches of {config.patch}, "
                f"width {config.tower_width} and {config.heads} heads",
                "a picture no smaller than a patch, and heads that divide the width",
            )
        self.tower = self.seeded(self._build)
        self.measure(self._build)

    def _build(self) -> nn.Module:
        c = self.config
        stem = nn.Conv2d(1, c.tower_width, c.patch, c.stride, bias=False)
        grid = ((c.mels - c.patch) // c.stride + 1, (c.length - c.patch) // c.stride + 1)
        return Tower(stem, grid, c.tower_width, c.depth, c.heads, c.out, sound=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.config.mels, self.config.length)

    def tower_forward(self, tower: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Pictures [R,1,mels,length] -> tokens [R,N,E]; the grid for `patches`, (1,1) for `pooled`, none for `all`."""
        assert isinstance(tower, Tower)
        if self.config.tokens == "pooled":
            return tower(x)[:, None], (1, 1)
        tokens = tower.layers(x, self.config.indexes(self.config.depth, "the encoder `imagebind_audio`"))
        return (tokens, None) if self.config.tokens == "all" else (tokens[:, 1:], tower.grid)

    def sampling(self, kind: Kind) -> Sampling:
        """The whole sound at `config.rate`."""
        return Sampling(rate=self.config.rate)

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """float32 [channels,samples] -> float32 [F,1,mels,length]. Nothing is random.

        The mean is that of all channels, everything else is heard of the first channel only, as published.
        Raises MediaError for media that are not sound, and for sounds shorter than 25 ms.
        """
        config = self.config
        assert media.rate is not None
        wave = resample(media.data, media.rate, config.rate)
        if wave.shape[1] < least(config.rate):
            raise MediaError(
                Reason.unreadable_audio,
                f"{media.origin}: {wave.shape[1] / config.rate * 1000:.1f} ms of sound",
                "at least 25 ms, one frame of the filter bank",
            )
        spans = clip_spans(wave.shape[1], config.rate, config.clip_seconds, config.frames, config.spacing)
        if config.centre == "running":
            wave = wave.clone()
        pictures = []
        for begin, end in spans:
            clip = wave[:, begin:end]
            mean = clip.mean()
            clip = clip.sub_(mean) if config.centre == "running" else clip - mean
            pictures.append(self._picture(clip[:1]))
        return torch.stack(pictures)

    def _picture(self, clip: Tensor) -> Tensor:
        """float32 [1,samples] -> float32 [1,mels,length], normalised; fill is zero before that."""
        config = self.config
        found = log_mel(clip, config.rate, config.mels)[: config.length]
        picture = found.new_zeros(config.mels, config.length)
        picture[:, : len(found)] = found.T
        return ((picture - config.mean) / config.std)[None]

    def load_weights(self) -> None:
        """Fill the tower from `config.weights`. Raises CheckpointError."""
        if self.config.weights is not None:
            fill(self, *read(self.config.weights))


def clip_spans(
    samples: int, rate: int, seconds: float, clips: int, spacing: Literal["full", "short"]
) -> list[tuple[int, int]]:
    """First sample of each clip and the one after its last; an end may be beyond the sound.

    Exact fractions of the sound's length as a float, cut to whole samples: 5.3 s between two gaps at 16 kHz is sample
    42399, because 7.3 - 2.0 is a little less than 5.3.
    """
    room = Fraction(max(samples / rate - seconds, 0.0))
    gap = room / (max(clips - 1, 1) if spacing == "full" else clips)
    length = Fraction(seconds)
    return [(int(i * gap * rate), int((i * gap + length) * rate)) for i in range(clips)]
