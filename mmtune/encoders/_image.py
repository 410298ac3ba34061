"""Shared by image towers: the config, and pixels of any size to the tower's input."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmtune.encoders._tower import TowerEncoder
from mmtune.encoders.base import EncoderConfig
from mmtune.errors import CheckpointError
from mmtune.media import Sampling
from mmtune.types import Kind, Media

Resize = Literal["crop", "pad", "fit", "stretch"]
SIDE = 4096
"""Longest side of a tower's picture, pixels; published ones go to 1,536."""
STRIP = 32
"""Ratio of the sides from which a picture is cut before it is scaled."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageConfig(EncoderConfig):
    frames: int = Field(default=8, ge=1, le=10_000)
    """Frames taken from a video; a still image is always one."""
    rule: Literal["uniform", "middle", "first", "fps", "video_llama", "pllava", "pllava_benchmark", "pllava_train"] = (
        "uniform"
    )
    """How the frames of a video are chosen; see `mmtune.media.Sampling`."""
    fps: float | None = Field(default=None, gt=0, le=10_000)
    """Frames per second for `rule: fps`, of which at most `frames` are taken."""
    decode_side: int | None = Field(default=None, ge=1, le=2**20)
    """Allow pictures to be decoded at a half, quarter or eighth while both sides stay at least this many pixels:
    quicker, not to the bit the same. Null decodes every pixel."""
    resize: Resize | None = None
    """How a picture becomes a square: `crop` scales the short side and cuts the middle, `pad` fills up to a square with
    the mean colour and scales (LLaVA 1.5), `fit` scales the long side and then fills up, `stretch` ignores the ratio of
    the sides (Video-LLaMA). Null does what the weights' preprocessing says."""
    size: int | None = Field(default=None, ge=1, le=SIDE)
    """Height and width in pixels; null is what the weights were trained with. Position tables are interpolated."""
    mean: tuple[float, float, float] | None = None
    """Mean colour in 0..1 that is subtracted; null is what the weights' preprocessing says."""
    std: tuple[float, float, float] | None = None
    """Deviation in 0..1 that is divided by; null is what the weights' preprocessing says."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the colours that the tower is given. bgr is for weights tuned on pictures that OpenCV had read, such as
    LLaMA-Adapter V2's; mean and deviation stay in the order of red, green, blue, as they were there."""
    random_crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """In training, cut a random rectangle with this least and greatest share of the area, the same in all frames of an
    item (published: [0.5, 1.0]). Not for runs that keep features on disk. Null always takes the whole picture."""
    chunk: int = Field(default=32, ge=1, le=2**20)
    """Frames that go through the tower at once; bounds memory, and fits a CPU cache."""


def _is_side(value: Any, most: int = SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_real(value: Any, least: float = -math.inf) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= value and abs(value) < 1e6


_FITTING = (("size", 2, _is_side), ("mean", 3, _is_real), ("std", 3, partial(_is_real, least=1e-6)))
"""Settings of `Pixels`, how many numbers each has, and what is right for one."""


@dataclass(frozen=True)
class Pixels:
    """How uint8 frames become the tower's input."""

    size: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    short: int = 224
    """Length of the short side before the crop, pixels; only for `crop`."""
    resize: Resize = "crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bicubic", "bilinear", "nearest-exact"] = "bicubic"
    fill: tuple[int, int, int] | None = None
    """Colour of the border for `pad` and `fit`, 0..255; null is the mean colour, rounded down."""

    def __post_init__(self) -> None:
        for name, length, fits in _FITTING:
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == length and all(map(fits, value))):
                raise CheckpointError(
                    f"preprocessing of pictures with {name} {value!r}"[:200],
                    f"sides of 1 to {SIDE:,} pixels, three numbers of colour, and deviations above zero",
                    "compare it with the one that was published, or say `size`, `mean` and `std` of the encoder",
                )
        if not _is_side(self.short, 4 * SIDE):
            seen = f"preprocessing of pictures with a short side of {self.short!r}"[:200]
            raise CheckpointError(seen, f"1 to {4 * SIDE:,} pixels", "compare it with the published file")

    def overridden(self, config: ImageConfig) -> Pixels:
        """These settings with what the config sets itself."""
        changes: dict[str, Any] = {k: getattr(config, k) for k in ("resize", "mean", "std") if getattr(config, k)}
        if config.resize is not None:
            changes["fill"] = None
        if config.size is not None:
            # The part of the picture that the crop keeps stays the same.
            changes |= {"size": (config.size,) * 2, "short": round(self.short * config.size / min(self.size))}
        return replace(self, **changes)

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [F,3,height,width] -> float32 [F,3,size], normalised."""
        height, width = frames.shape[-2:]
        least, most = min(height, width), max(height, width)
        # A strip of a few pixels by many thousand would become a canvas of gigabytes: it is scaled before the border,
        # and cut before it is scaled. Only pixels at the border of such a strip differ by that.
        strip = most > STRIP * least
        if self.resize == "pad" and not strip:
            frames = self._scale(self._border(frames, (most, most)), self.size)
        elif self.resize in ("fit", "pad"):
            ratio = max(height / self.size[0], width / self.size[1])
            inner = tuple(max(1, round(side / ratio)) for side in (height, width))
            frames = self._border(self._scale(frames, inner), self.size)
        elif self.resize == "crop":
            if strip:
                frames = _crop_middle(frames, (min(height, STRIP * least), min(width, STRIP * least)))
            # As torchvision: the short side is exact, the long one is rounded down.
            sides = frames.shape[-2:]
            target = tuple(self.short if side == least else int(self.short * side / least) for side in sides)
            frames = _crop_middle(self._scale(frames, target), self.size)
        else:
            frames = self._scale(frames, self.size)
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return frames.float().sub_(mean).div_(std)

    def _scale(self, frames: Tensor, size: tuple[int, ...]) -> Tensor:
        """Resize uint8 frames; the 8-bit path rounds after each axis as Pillow does, and is the fast one."""
        if tuple(frames.shape[-2:]) == tuple(size):
            return frames
        smooth = self.interpolation != "nearest-exact"
        frames = frames.contiguous(memory_format=torch.channels_last)
        return F.interpolate(frames, size=size, mode=self.interpolation, antialias=smooth)

    def _border(self, frames: Tensor, size: tuple[int, ...]) -> Tensor:
        """Frames no larger than `size` in the middle of a canvas of that size."""
        height, width = frames.shape[-2:]
        if (height, width) == tuple(size):
            return frames
        fill = self.fill if self.fill is not None else tuple(int(255 * value) for value in self.mean)
        canvas = torch.tensor(fill, dtype=torch.uint8).view(1, 3, 1, 1).repeat(frames.shape[0], 1, *size)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        canvas[:, :, top : top + height, left : left + width] = frames
        return canvas


@dataclass(frozen=True)
class PillowPixels(Pixels):
    """Pixels resized by Pillow itself, to the bit, as pipelines over PIL images do; several times slower.

    torch rounds the same sums differently, so that about one value in two hundred is off by one or two of 255.
    """

    def _scale(self, frames: Tensor, size: tuple[int, ...]) -> Tensor:
        if tuple(frames.shape[-2:]) == tuple(size):
            return frames
        how = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR, "nearest-exact": Resampling.NEAREST}
        pictures = [Image.fromarray(frame.numpy()) for frame in frames.permute(0, 2, 3, 1).contiguous()]
        done = [np.array(picture.resize(size[::-1], how[self.interpolation])) for picture in pictures]
        return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


def _crop_middle(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the middle; a picture smaller than `size` is bordered with black first, as torchvision does."""
    missing = [max(0, want - have) for want, have in zip(size, frames.shape[-2:], strict=True)]
    if any(missing):
        (down, right) = missing
        frames = F.pad(frames, (right // 2, right - right // 2, down // 2, down - down // 2))
    top, left = (round((have - want) / 2) for want, have in zip(size, frames.shape[-2:], strict=True))
    return frames[:, :, top : top + size[0], left : left + size[1]]


def _random_rectangle(height: int, width: int, share: tuple[float, float], rng: np.random.Generator) -> list[int]:
    """Top, left, height and width of a rectangle with a random share of the area and a side ratio of 3/4 to 4/3."""
    for _ in range(10):
        area = height * width * rng.uniform(*share)
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return [int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w]
    return [0, 0, height, width]


class ImageEncoder(TowerEncoder):
    """A tower over single pictures [3,height,width]; besides what its base asks for, a subclass sets `pixels`."""

    kinds: ClassVar[tuple[Kind, ...]] = ("image", "video")
    config: ImageConfig
    pixels: Pixels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, *self.pixels.size)

    def identity(self) -> list[Any]:
        return [self.structure, asdict(self.pixels)]

    def sampling(self, kind: Kind) -> Sampling:
        """One frame for an image, `config.frames` by `config.rule` for a video."""
        config = self.config
        if kind == "image":
            return Sampling(frames=1, side=config.decode_side)
        return Sampling(frames=config.frames, rule=config.rule, fps=config.fps, side=config.decode_side)

    @property
    def draws(self) -> bool:
        return super().draws or self.config.random_crop is not None

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """uint8 [F,3,height,width] -> float32 [F,3,size,size], resized and normalised. Random only with `rng`.

        Raises MediaError for media that are not pictures.
        """
        frames = media.data if self.config.channels == "rgb" else media.data.flip(1)
        if rng is not None and self.config.random_crop is not None:
            top, left, h, w = _random_rectangle(*frames.shape[-2:], self.config.random_crop, rng)
            frames = frames[:, :, top : top + h, left : left + w]
            return replace(self.pixels, resize="stretch")(frames)
        return self.pixels(frames)
