"""The contract of encoders: prepared media to `Features`, one item with its frames at a time.

The base class has the common part (sampling from the config, the fingerprint); an entry has the rest.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from mmtune.config import Config
from mmtune.errors import MediaError, Reason
from mmtune.types import Features, FeatureShape, Kind, Media
from mmtune.weights_file import digest

if TYPE_CHECKING:
    from mmtune.media.base import Sampling


class EncoderConfig(Config):
    """What every encoder's config has."""

    name: str
    """Name of the encoder: its file in this room, or package.module:Class."""
    weights: str | None = None
    """Path of the weights; each encoder documents its layout. None: seeded random weights."""


class Encoder(nn.Module):
    """Media to features.

    Building makes the structure only and works on the meta device; `load_weights` fills it.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    kinds: ClassVar[tuple[Kind, ...]] = ()
    """Kinds of media it takes."""
    train_mode_modules: ClassVar[tuple[str, ...]] = ()
    """Modules of its own that go into training mode while their parameters train; all else stays in evaluation mode."""

    width: int
    """E, width of a feature token."""
    tokens_per_frame: int
    """N"""
    grid: tuple[int, int] | None = None
    """(height, width) with height * width == N, or none."""
    layers: int = 1
    """Layers of a tower whose features stand side by side in E."""
    extra: int = 0
    """Numbers at the end of a token that are no feature of a layer."""
    max_frames: int = 1
    """Most frames of an item."""

    def __init_subclass__(cls, **options: Any) -> None:
        """`sampling` and `prepare` are called for kinds that the encoder takes; others are refused before."""
        super().__init_subclass__(**options)
        for name in ("sampling", "prepare"):
            if name in vars(cls):
                setattr(cls, name, _refusing(vars(cls)[name]))

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def shape(self) -> FeatureShape:
        """What a connector is built from."""
        return FeatureShape(
            width=self.width,
            tokens=self.tokens_per_frame,
            grid=self.grid,
            frames=self.max_frames,
            layers=self.layers,
            extra=self.extra,
        )

    def load_weights(self) -> None:
        """Fill the structure from `config.weights`, strictly. Does nothing when there are none.

        Raises:
            CheckpointError: files missing, or names or shapes that do not match, all listed.
        """
        if self.config.weights is not None:
            raise NotImplementedError(f"{type(self).__name__}.load_weights")

    @abstractmethod
    def sampling(self, kind: Kind) -> Sampling:
        """What `mmtune.media.load` is asked for: how many frames, by what rule, at what rate.

        Raises:
            MediaError: `wrong_media_type` for a kind that the encoder does not take; the base class sees to that.
        """
        raise NotImplementedError

    @property
    def draws(self) -> bool:
        """Whether training sees an item otherwise each time: random frames, or what `prepare` does with `rng`."""
        return any(self.sampling(kind).draws for kind in self.kinds)

    @abstractmethod
    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """Decoded media to the encoder's input, [F,...]. Runs on CPU in a worker; deterministic without `rng`.

        Raises:
            MediaError: `wrong_media_type` for a kind that the encoder does not take; the base class sees to that.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, x: Tensor, frames: Tensor) -> Features:
        """[M,F,...], bool [M,F] -> tokens [M,F,N,E]. A frame that is not real changes nothing elsewhere."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """sha256 over config and weights, in hex: the key of the feature cache.

        The path of the weights is left out: the same numbers give the same features from any folder.
        """
        config = self.config.model_dump(mode="json", exclude={"weights"})
        about = json.dumps([type(self).__module__, type(self).__qualname__, config], sort_keys=True)
        return digest(sorted(self.state_dict().items()), about)


def _refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an encoder that takes a medium, or its kind, first; other kinds than the encoder's are refused."""

    @wraps(method)
    def refusing(self: Encoder, asked: Kind | Media, *args: Any, **options: Any) -> Any:
        kind, origin = (asked.kind, asked.origin) if isinstance(asked, Media) else (asked, "")
        if kind not in self.kinds:
            raise MediaError(
                Reason.wrong_media_type,
                f"{kind} {origin}".strip() + f" for the encoder `{self.config.name}`",
                " or ".join(self.kinds),
                "give it to a branch whose encoder takes this kind",
            )
        return method(self, asked, *args, **options)

    return refusing


def weights_path(text: str) -> Path:
    """A weights setting as a path: `~` is expanded. Existence is the loader's to check."""
    return Path(text).expanduser()


Contract = Encoder
