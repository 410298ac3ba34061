"""Point clouds through any image encoder: each view of a cloud becomes a picture, and a frame of the item.

Source: P2P, arXiv 2208.02812. `colouring: learned` is the published form: features of points, summed where they fall,
coloured by a small network that trains (its groups are `branches.NAME.encoder.draw.*`) before an image tower that
mostly does not. Its batch norms use the statistics of the batch while they train, as published. `colouring: plain`
learns nothing: each pixel takes the colour of the nearest point, and the image encoder sees what an eye would see.

`image` is the config of the image encoder, with weights of its own. `weights` is a safetensors file or folder with our
names: `draw.*` and `image.*` together, or `draw.*` alone where the image encoder has its own. `mmtune import p2p` makes
one. The picture is normalised with the image encoder's own statistics.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, WithJsonSchema
from torch import Tensor
from torch.nn import functional as F

from mmtune import registry
from mmtune.config import entry
from mmtune.encoders._image import ImageEncoder
from mmtune.encoders._weights import fill, locate, read_tensors
from mmtune.encoders.base import Encoder, EncoderConfig
from mmtune.errors import ConfigError, MediaError, Reason
from mmtune.layers import clouds
from mmtune.media import Sampling
from mmtune.types import Features, Kind, Media
from mmtune.weights_file import digest

COLOURS = ("red", "green", "blue")
GREY = 0.8
"""Brightness of points without colours, for plain colouring."""
VIEWS = {"front": clouds.FRONT, "validation": clouds.VALIDATION, "test": clouds.TEST}
Range = tuple[float, float]


class Config(EncoderConfig):
    name: str = "p2p_points"
    image: Annotated[entry("encoders"), WithJsonSchema({"type": "object", "description": "Any image encoder."})]
    """The image encoder that sees the pictures: `{name: clip, ...}`."""
    colouring: Literal["learned", "plain"] = "learned"
    """`learned` is P2P's canvas; `plain` paints the points in their own colours and has no parameters."""
    points: int = Field(default=4096, ge=4, le=2**20)
    """Points taken of a cloud, by farthest point sampling (published: 4096 for ModelNet40, 2048 for ScanObjectNN); a
    smaller cloud repeats its points. Plain colouring takes all up to `pool`."""
    pool: int = Field(default=32768, ge=4, le=2**24)
    """A larger cloud is thinned to so many points first, evenly in the order of the file."""
    skip_origin: float = Field(default=0.0, ge=0)
    """Squared distance from the origin up to which sampling passes points over; the published sampler: 0.001."""
    object: int | None = Field(default=None, ge=8, le=4096)
    """Side in pixels of the square that the object is drawn in; the rest of the picture is border (published: 224 for
    ModelNet40, 192 for ScanObjectNN). Null is the whole picture."""
    extent: float | None = Field(default=None, gt=0)
    """Show the square from -extent to extent instead of fitting the object into it, so that its place and size can be
    seen; for clouds in a known frame. Null fits, as published."""
    normalise: bool = True
    """Move the middle of the points to the origin and the farthest to distance 1 (published for ModelNet40 alone)."""
    up: Literal["y", "z"] = "y"
    """The axis of the file that points up."""
    views: Literal["front", "validation", "test"] | tuple[Range, ...] = "validation"
    """Views of a cloud, each a frame: the 8 or 40 published ones, `front` (x to the right, y up), or a list of [theta,
    phi] in units of pi."""
    train_views: int | None = Field(default=None, ge=1, le=1000)
    """In training, draw so many views at random (published: 1), and with them points and distortions as below;
    features are not kept on disk then. Null shows the same as ever."""
    theta: Range = (0.04, 1.94)
    """Range of theta for random views, units of pi."""
    phi: Range = (-0.4, -0.2)
    """Range of phi for random views, units of pi."""
    scale: Range = (2 / 3, 3 / 2)
    """Range of the random scale of each axis of a random view."""
    shift: float = Field(default=0.2, ge=0)
    """Largest random shift along each axis of a random view."""
    spare: int | None = Field(default=None, ge=4, le=2**24)
    """Points sampled in training, of which `points` are drawn at random; null is 75/64 of `points`, as published."""
    near: int = Field(default=32, ge=1, le=4096)
    """Neighbours of a point, itself included; learned colouring."""
    inner_width: int = Field(default=8, ge=1)
    """Channels of the first point layer; learned colouring."""
    point_width: int = Field(default=64, ge=4, multiple_of=4)
    """Channels of a point; learned colouring."""
    fine: int = Field(default=2, ge=1, le=8)
    """Plain colouring draws so many times larger, and averages: a point then covers 3 / fine pixels."""
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Colour in 0..1 where there are no points; plain colouring."""
    chunk: int = Field(default=8, ge=1, le=2**20)
    """Pictures drawn at once; bounds memory."""


class P2PPoints(Encoder):
    """Views of a cloud as frames; see the module. Raises ConfigError for an encoder that takes no images, or sizes that
    do not fit."""

    Config = Config
    config: Config
    kinds: ClassVar[tuple[Kind, ...]] = ("points",)
    train_mode_modules: ClassVar[tuple[str, ...]] = ("draw",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.image = registry.find("encoders", config.image.name)(config.image)
        if not isinstance(self.image, ImageEncoder) or len(set(self.image.pixels.size)) != 1:
            raise ConfigError(
                f"p2p_points around the encoder `{config.image.name}`", "an encoder of square pictures", "image: clip"
            )
        size = self.image.pixels.size[0]
        self.side = config.object or size
        if self.side > size or (size - self.side) % 2:
            raise ConfigError(f"`object: {self.side}` in pictures of {size} pixels", "an even border around it")
        self.draw: clouds.Canvas | None = None
        if config.colouring == "learned":
            sizes = (config.near, config.inner_width, config.point_width, size)
            self.draw = ImageEncoder.seeded(lambda: clouds.Canvas(*sizes))
        self.width, self.tokens_per_frame = self.image.width, self.image.tokens_per_frame
        self.grid, self.layers = self.image.grid, self.image.layers
        self.views = VIEWS[config.views] if isinstance(config.views, str) else config.views
        if not self.views:
            raise ConfigError("`views: []`", "at least one view", "views: front")
        self.max_frames = max(len(self.views), config.train_views or 1)
        self.eval()

    def load_weights(self) -> None:
        """Fill the image encoder, then what `config.weights` holds. Raises CheckpointError."""
        own = self.config.image.weights is not None
        self.image.load_weights()
        if self.config.weights is None:
            return
        path = locate(self.config.weights)
        tensors = read_tensors(path)
        if own and self.draw is not None:
            fill(self.draw, {name.removeprefix("draw."): t for name, t in tensors.items()}, str(path))
        else:
            fill(self, tensors, str(path))

    def sampling(self, kind: Kind) -> Sampling:
        """Clouds are read whole."""
        return Sampling()

    @property
    def draws(self) -> bool:
        return self.config.train_views is not None

    def prepare(self, media: Media, rng: np.random.Generator | None = None) -> Tensor:
        """float32 [points,3+extra] -> learned: float32 [F,P,6], each point as it is and as the view sees it; plain:
        pictures float32 [F,3,size,size], normalised. Random only with `rng`, and `train_views` set.

        Raises MediaError for media that are no points, and for clouds that have no extent in a view.
        """
        config = self.config
        random = rng if config.train_views is not None else None
        table = media.data.numpy()
        if len(table) > config.pool:
            table = table[np.linspace(0, len(table) - 1, config.pool).round().astype(np.int64)]
        columns, signs = clouds.AXES[config.up]
        points = table[:, list(columns)] * np.asarray(signs, np.float32)
        if config.normalise:
            points = points - points.mean(0)
            points = points / max(float(np.sqrt((points**2).sum(1).max())), np.finfo(np.float32).tiny)
        if config.colouring == "learned":
            points = points[self._chosen(points, random)]
        seen = self._seen(torch.from_numpy(points), random)  # [F,P,3]
        if config.extent is None and float((seen.amax(1) - seen.amin(1))[:, :2].amax(1).min()) <= 0:
            raise MediaError(
                Reason.unreadable_points, f"{media.origin}: a cloud without extent in a view", "more than one place"
            )
        if config.colouring == "learned":
            return torch.cat([torch.from_numpy(points).expand(len(seen), -1, -1), seen], -1)
        return self._normalised(self._painted(seen, _colours(media, table)))

    def _chosen(self, points: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Indices int64 [P] of the points to draw."""
        config, count = self.config, self.config.points
        if len(points) < count:
            return np.arange(count) % len(points)
        if rng is None:
            return clouds.farthest(points, count, config.skip_origin)
        spare = min(len(points), max(count, config.spare or count * 75 // 64))
        return rng.permutation(clouds.farthest(points, spare, config.skip_origin))[:count]

    def _seen(self, points: Tensor, rng: np.random.Generator | None) -> Tensor:
        """[P,3] as the views see it, [F,P,3]."""
        config = self.config
        if rng is None:
            return points @ clouds.rotations(clouds.radians(self.views)).float().transpose(1, 2)
        count = config.train_views or 1
        drawn = [(rng.uniform(*config.theta), rng.uniform(*config.phi)) for _ in range(count)]
        turned = points @ clouds.rotations(clouds.radians(tuple(drawn))).float().transpose(1, 2)
        scale, shift = (
            rng.uniform(*config.scale, (count, 1, 3)),
            rng.uniform(-config.shift, config.shift, (count, 1, 3)),
        )
        return turned * torch.from_numpy(scale).float() + torch.from_numpy(shift).float()

    def _pixels(self, seen: Tensor, side: int) -> tuple[Tensor, Tensor | None]:
        """Turned points [R,P,3] -> pixels int64 [R,P,9,2], and which of them are inside where some may not."""
        if self.config.extent is None:
            return clouds.project(seen, side).index, None
        return clouds.to_pixels(seen, side, self.config.extent)

    def _painted(self, seen: Tensor, colours: Tensor) -> Tensor:
        """Turned points [F,P,3], colours [P,3] -> [F,3,size,size] in 0..1."""
        fine, border = self.config.fine, (self.image.pixels.size[0] - self.side) // 2
        index, inside = self._pixels(seen, self.side * fine)
        if inside is None:
            inside = torch.ones(index.shape[:-1], dtype=torch.bool)
        every = colours.expand(len(seen), -1, -1)
        large = clouds.paint(seen[..., 2], every, index, inside, self.side * fine, self.config.background)
        picture = torch.tensor(self.config.background).view(3, 1, 1).repeat(len(seen), 1, *self.image.pixels.size)
        picture[:, :, border : border + self.side, border : border + self.side] = F.avg_pool2d(large, fine)
        return picture

    def _normalised(self, picture: Tensor) -> Tensor:
        """[R,3,size,size] in 0..1 -> with the image encoder's mean and deviation."""
        pixels = self.image.pixels
        mean, std = (torch.tensor(v, device=picture.device).view(3, 1, 1) for v in (pixels.mean, pixels.std))
        return (picture.float() - mean) / std

    def pictures(self, x: Tensor) -> Tensor:
        """Prepared views [R,P,6] -> [R,3,size,size] as the image encoder takes them; learned colouring only."""
        assert self.draw is not None
        done = []
        for part in x.float().split(self.config.chunk):
            index, inside = self._pixels(part[..., 3:], self.side)
            done.append(self.draw(part[..., :3], index, self.side, inside))
        return self._normalised(torch.cat(done))

    def forward(self, x: Tensor, frames: Tensor) -> Features:
        """[M,F,P,6] or [M,F,3,size,size], bool [M,F] -> tokens [M,F,N,E]; masked frames are not drawn, and zero."""
        if self.draw is None:
            return self.image(x, frames)
        real = x[frames]
        blank = not len(real)
        drawn = self.pictures(x.new_zeros(1, *x.shape[2:]) if blank else real)
        pictures = drawn.new_zeros(*frames.shape, *drawn.shape[1:])
        # The canvas runs all the same, so that an opened one is part of every process's graph.
        pictures = pictures + drawn.sum() * 0 if blank else pictures.index_put((frames,), drawn)
        return self.image(pictures, frames)

    def fingerprint(self) -> str:
        """sha256 over the settings, the canvas, and the image encoder's own fingerprint."""
        config: dict[str, Any] = self.config.model_dump(mode="json", exclude={"weights", "image", "chunk"})
        drawn = self.draw.state_dict() if self.draw is not None else {}
        return digest(sorted(drawn.items()), json.dumps([config, self.image.fingerprint()], sort_keys=True))


def _colours(media: Media, table: np.ndarray) -> Tensor:
    """[P,3] in 0..1; grey where the cloud has no colours."""
    if not {*COLOURS} <= {*media.columns}:
        return torch.full((len(table), 3), GREY)
    return torch.from_numpy(table[:, [media.columns.index(name) for name in COLOURS]])
