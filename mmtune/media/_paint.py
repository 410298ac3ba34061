"""Decoded video frames to RGB: one size for all, transparency over white, turned as the container says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter


def shrink(width: int, height: int, side: int | None) -> int:
    """By how much (1, 2, 4 or 8) a frame may be shrunk while both sides keep at least `side` pixels."""
    if side is None:
        return 1
    return next((factor for factor in (8, 4, 2) if min(width, height) // factor >= side), 1)


class Painter:
    """Turns decoded frames into RGB, all of one size, and keeps them by key."""

    def __init__(self, side: int | None) -> None:
        self.side, self.frames = side, dict[int, np.ndarray]()
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.matrix: tuple[int, int, int, int] | None = None

    def keep(self, key: int, frame: Any) -> None:
        if self.size is None:
            factor = shrink(frame.width, frame.height, self.side)
            self.size = -(-frame.width // factor), -(-frame.height // factor)
            self.matrix = display_matrix(frame)
        width, height = self.size
        alpha = any(component.is_alpha for component in frame.format.components)
        form, depth = ("rgba", 4) if alpha else ("rgb24", 3)
        how = "AREA" if (width, height) != (frame.width, frame.height) else None
        painted = self.reformatter.reformat(
            frame, width=width, height=height, format=form, interpolation=how, threads=1
        )
        plane = painted.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, : width * depth]
        pixels = rows.reshape(height, width, depth)
        self.frames[key] = _over_white(pixels) if alpha else pixels.copy()

    def stack(self, keys: list[int]) -> torch.Tensor:
        """uint8 [F,3,height,width]"""
        stacked = np.stack([self.frames[key] for key in keys])  # [F,height,width,3]
        frames = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        if self.matrix is not None:
            frames = _turn(frames, self.matrix)
        return frames.contiguous()


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 [height,width,4] to uint8 [height,width,3]"""
    opacity = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Signs (a, b, c, d) of the display matrix, x' = a x + c y and y' = b x + d y; None for an upright picture."""
    if not (held := frame.side_data.get(SideData.DISPLAYMATRIX)):
        return None
    a, b, _, c, d = (int(v) for v in np.frombuffer(held, np.int32)[:5])
    signs = tuple(int(np.sign(v)) for v in (a, b, c, d))
    turns = (a == d == 0 and b != 0 != c) or (b == c == 0 and a != 0 != d)
    return signs if turns and signs != (1, 0, 0, 1) else None  # other angles are left as they are


def _turn(frames: torch.Tensor, matrix: tuple[int, int, int, int]) -> torch.Tensor:
    """Apply a display matrix to [F,3,height,width]."""
    a, b, c, d = matrix
    if a == 0:
        frames, across, down = frames.transpose(2, 3), c, b
    else:
        across, down = a, d
    flips = [axis for axis, sign in ((3, across), (2, down)) if sign < 0]
    return frames.flip(flips) if flips else frames
