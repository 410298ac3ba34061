"""Point clouds as pictures, after P2P (arXiv 2208.02812): views, sampling, projection, and the learned canvas.

Letters: `R` clouds, `P` points of each, `C` channels of a point, `S` side of the square an object is drawn in, `I` side
of the picture. The first axis of a picture (rows) is x of the turned cloud, the second (columns) is y; z points to the
viewer and is dropped. Coordinates are computed in float32 whatever the weights are, or points would change their pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FRONT = ((1.0, -0.5),)
"""Theta and phi, in units of pi, of the view with x to the right, y up and z to the viewer (for clouds with y up)."""
VALIDATION = tuple((float(theta), -0.35) for theta in np.linspace(0.1, 2, 9)[:8])
"""The published views for validation."""
TEST = tuple((float(t), float(p)) for p in np.linspace(-0.4, -0.2, 4) for t in np.linspace(0, 2, 11)[:10])
"""The published views for testing."""
AXES = {"y": ((2, 0, 1), (-1.0, -1.0, 1.0)), "z": ((1, 0, 2), (1.0, -1.0, 1.0))}
"""Which axis points up in the file -> columns to pick and their signs, so that z points up."""
NEIGHBOURS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))
"""The pixels that a point covers, from its own."""


def rotations(angles: Tensor) -> Tensor:
    """Theta and phi, radians [...,2] -> [...,3,3]: about z by -theta, after about (sin theta, -cos theta, 0) by -phi.

    A point p becomes R p. The type of the angles is kept.
    """
    theta, phi = angles[..., 0], angles[..., 1]
    upright = torch.zeros_like(angles[..., :1]).expand(*theta.shape, 3).clone()
    upright[..., 2] = 1
    lying = torch.stack([theta.sin(), -theta.cos(), torch.zeros_like(theta)], -1)
    return _about(upright, -theta) @ _about(lying, -phi)


def _about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotation matrices about unit axes [...,3] by angles [...]."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    same = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return cos * same + (1 - cos) * axis[..., :, None] * axis[..., None, :] + sin * cross


def farthest(points: np.ndarray, count: int, skip: float = 0.0) -> np.ndarray:
    """Farthest point sampling: indices int64 [count] of [P,3], beginning with point 0, each the farthest from those
    before it.

    Args:
        skip: points whose squared distance from the origin is at most this are never chosen after the first step, as
            the published sampler does with 1e-3; 0 leaves out none.
    """
    x = np.ascontiguousarray(points.T, np.float32)  # [3,P]
    near = (x[0] * x[0] + x[1] * x[1] + x[2] * x[2] <= np.float32(skip)) if skip > 0 else np.zeros(x.shape[1], bool)
    least = np.full(x.shape[1], 1e10, np.float32)
    least[near] = -1
    chosen = np.zeros(count, np.int64)
    for step in range(1, count):
        d = x - x[:, chosen[step - 1], None]
        d *= d
        np.minimum(least, d[0] + d[1] + d[2], out=least)
        least[near] = -1
        chosen[step] = int(least.argmax())
    return chosen


class Projection(NamedTuple):
    """Where the points of clouds fall on a square of S pixels."""

    size: Tensor
    """[R], side of a pixel in the unit of the cloud."""
    cell: Tensor
    """int64 [R,P,2], row and column of each point before centring."""
    centre: Tensor
    """int64 [R,2], middle of what the points cover, counted from 1."""
    offset: Tensor
    """[R,2], the shift that puts the middle there."""
    index: Tensor
    """int64 [R,P,9,2], pixels that a point covers, in the order of `NEIGHBOURS`."""


def project(cloud: Tensor, side: int) -> Projection:
    """[R,P,>=2] onto squares of `side` pixels: one scale for both axes, the longer one filled, the rest in the middle.

    A cloud without extent falls on one pixel.
    """
    flat = cloud[..., :2].float()
    low, high = flat.amin(1), flat.amax(1)  # [R,2]
    size = (high - low).amax(1) / (side - 3)
    step = torch.where(size > 0, size, torch.ones_like(size))
    cell = torch.floor((flat - low[:, None]) / step[:, None, None])
    around = torch.tensor(NEIGHBOURS, dtype=flat.dtype, device=flat.device)
    wide = cell[:, :, None] + around + 1  # [R,P,9,2]
    centre = torch.floor((wide.amax((1, 2)) + wide.amin((1, 2))) / 2)
    offset = torch.ceil(side / 2 - centre - 1)  # published for even sides, where it is whole as it stands
    index = (wide + offset[:, None, None]).long().clamp_(0, side - 1)
    return Projection(size, cell.long(), centre.long(), offset, index)


def to_pixels(cloud: Tensor, side: int, extent: float) -> tuple[Tensor, Tensor]:
    """[R,P,>=2] onto squares that show -extent..extent, wherever the object is.

    Returns:
        int64 [R,P,9,2] as `Projection.index`, and bool [R,P,9], which of them are inside.
    """
    cell = torch.floor((cloud[..., :2].float() + extent) * (side / (2 * extent)))
    around = torch.tensor(NEIGHBOURS, dtype=cell.dtype, device=cell.device)
    wide = cell[:, :, None] + around
    inside = ((wide >= 0) & (wide < side)).all(-1)
    return wide.clamp(0, side - 1).long(), inside


def paint(
    depth: Tensor, colours: Tensor, index: Tensor, inside: Tensor, side: int, background: tuple[float, ...]
) -> Tensor:
    """The plain picture: in each pixel the colour of the point that is nearest to the viewer.

    Args:
        depth: [R,P], larger is nearer.
        colours: [R,P,3] in 0..1.
        index, inside: [R,P,9,2] and bool [R,P,9], as from `to_pixels`.

    Returns:
        [R,3,side,side] in 0..1; `background` where no point falls. Points of one depth are averaged.
    """
    rows = index.shape[0]
    flat = (index[..., 0] * side + index[..., 1]).flatten(1)  # [R,P*9]
    far = depth.amin() - 1
    reach = torch.where(inside, depth[..., None], far).flatten(1)
    front = torch.full((rows, side * side), float(far), device=depth.device).scatter_reduce(1, flat, reach, "amax")
    seen = (inside.flatten(1) & (reach >= front.gather(1, flat))).float()[..., None]
    tinted = colours[:, :, None].expand(-1, -1, index.shape[2], -1).flatten(1, 2) * seen
    total = torch.zeros(rows, side * side, 4, device=depth.device)
    total.scatter_add_(1, flat[..., None].expand(-1, -1, 4), torch.cat([tinted, seen], -1))
    empty = total[..., 3:] == 0
    behind = torch.tensor(background, device=depth.device)
    picture = torch.where(empty, behind, total[..., :3] / total[..., 3:].clamp(min=1))
    return picture.transpose(1, 2).unflatten(2, (side, side))


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut.  [R,C,I,I] -> [R,C,I,I]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Canvas(nn.Module):
    """Points to a picture that is learned: features of each point among its neighbours, summed where points fall, then
    coloured by convolutions. Parameter names are the published ones without the leading `enc.`.

    Args:
        near: neighbours of a point, itself included.
        inner: channels of the first layer.
        width: channels C of a point; a multiple of 4.
        size: side I of the picture.
    """

    def __init__(self, near: int = 32, inner: int = 8, width: int = 64, size: int = 224) -> None:
        super().__init__()
        self.near, self.size = near, size
        self.input_trans = nn.Conv1d(3, inner, 1)
        self.graph_layer = nn.Sequential(
            nn.Conv2d(2 * inner, width, 1, bias=False), nn.GroupNorm(4, width), nn.LeakyReLU(0.2)
        )
        self.proj_layer = nn.Conv1d(width, width, 1)
        self.img_block = nn.Sequential(_Block(width), nn.Conv2d(width, width, 1))
        self.img_layer = nn.Conv2d(width, 3, 1)

    def features(self, points: Tensor) -> Tensor:
        """[R,P,3] -> [R,P,C]"""
        with torch.no_grad():
            # one cloud at a time: a table of distances is P x P
            nearest = torch.stack([self._nearest(cloud) for cloud in points.float()])  # [R,P,near]
        x = self.input_trans(points.to(self.input_trans.weight.dtype).transpose(1, 2)).transpose(1, 2)
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        centre = x[:, :, None].expand(-1, -1, nearest.shape[2], -1)
        edges = torch.cat([x[rows, nearest] - centre, centre], -1).permute(0, 3, 1, 2)  # [R,2*inner,P,near]
        return self.proj_layer(self.graph_layer(edges).amax(-1)).transpose(1, 2)

    def _nearest(self, cloud: Tensor) -> Tensor:
        far = torch.cdist(cloud, cloud, compute_mode="donot_use_mm_for_euclid_dist")
        return far.topk(min(self.near, len(cloud)), largest=False, sorted=False).indices

    def spread(self, features: Tensor, index: Tensor, side: int, inside: Tensor | None = None) -> Tensor:
        """Features [R,P,C] summed over the pixels [R,P,9,2] of their points -> [R,I,I,C], zero where there are none.

        `inside` [R,P,9] leaves pixels out.
        """
        rows, _, width = features.shape
        flat = (index[..., 0] * side + index[..., 1]).flatten(1)
        every = features.float()[:, :, None].expand(-1, -1, index.shape[2], -1)
        if inside is not None:
            every = every * inside[..., None]
        canvas = torch.zeros(rows, side * side, width, device=features.device)
        canvas = canvas.scatter_add(1, flat[..., None].expand(-1, -1, width), every.flatten(1, 2))
        border = (self.size - side) // 2
        return F.pad(canvas.unflatten(1, (side, side)), (0, 0, border, border, border, border))

    def coloured(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """[R,I,I,C] -> features [R,C,I,I] and the picture [R,3,I,I] in 0..1."""
        x = self.img_block(canvas.permute(0, 3, 1, 2).to(self.img_layer.weight.dtype))
        return x, torch.sigmoid(self.img_layer(x))

    def forward(self, points: Tensor, index: Tensor, side: int, inside: Tensor | None = None) -> Tensor:
        """Points as they are [R,P,3] and the pixels [R,P,9,2] where their view falls -> [R,3,I,I] in 0..1."""
        return self.coloured(self.spread(self.features(points), index, side, inside))[1]


def radians(views: tuple[tuple[float, float], ...]) -> Tensor:
    """Views in units of pi as float64 [F,2] in radians."""
    return torch.tensor(views, dtype=torch.float64).reshape(-1, 2) * math.pi
