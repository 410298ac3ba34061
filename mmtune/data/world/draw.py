"""Draws a scene: frames as uint8 pictures, and for every patch of a picture the names of what is there.

Solids are signed distances (negative inside, in pixels) turned into soft masks half a pixel wide, evaluated only in the
box around each solid. Everything scales with the side of the picture, so the same scene can be drawn at 144 px for a
file and at 72 px for an image tower without resizing.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmtune.data.world.scene import COLOURS, SHAPES, SIGNS, SIZES, TEXTURES, Scene, Solid

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

RGB = {
    "red": (225, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 235), "yellow": (235, 220, 50),
    "purple": (150, 50, 190), "orange": (245, 140, 30), "white": (240, 240, 240), "cyan": (50, 210, 220),
}  # fmt: skip
SMALL, LARGE = 0.21, 0.40
"""Radius of a small and of a large solid, in places."""
SHADE = 0.40
"""How bright the dark parts of a texture are, as a share of the solid's colour."""
PLATE = (236, 232, 214)
INK = (28, 28, 40)

SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5}
"""How often a shape looks the same in one full turn."""
TURNS = 4
"""How many turned positions `labels` tells apart within one symmetry step."""
LABELS = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "texture": len(TEXTURES),
    "sign": len(SIGNS),
    "turn": TURNS,
}
"""The columns of `labels` and how many names each has; class 0 of every column is "nothing of the kind"."""


def radius(solid: Solid, time: float) -> float:
    """Of a solid, in places."""
    return SMALL + (LARGE - SMALL) * solid.scale(time)


def distance(shape: str, x: Floats, y: Floats, r: float) -> Floats:
    """Signed distance (approximate, in the unit of x, y and r) to the outline of an upright shape about the origin."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95 * r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * r) - 0.26 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82 * r
    if shape == "triangle":
        y = y - 0.12 * r  # so that it fills its circle evenly
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.55 * r
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - r, y - 0.34 * r), np.maximum(y - r, x - 0.34 * r))
    if shape == "star":  # folded onto one half of one of five points; the outline there is the line from tip to notch
        step = 2 * math.pi / 5
        angle = np.abs((np.arctan2(x, -y) + step / 2) % step - step / 2)
        far = np.hypot(x, y)
        tip, notch = 1.1 * r, 0.46 * r
        nx, ny = notch * math.cos(step / 2), notch * math.sin(step / 2)
        length = math.hypot(tip - nx, ny)
        return (ny * (far * np.cos(angle) - tip) + (tip - nx) * far * np.sin(angle)) / length
    raise ValueError(f"shape {shape!r} is not one of {SHAPES}")


def shading(texture: str, x: Floats, y: Floats, unit: float) -> Floats | None:
    """Brightness 0..1 of a texture at (x, y) pixels from the middle; `unit` is the side of a place in pixels."""
    if texture == "striped":
        wave = np.sin(x * (2 * math.pi / (0.17 * unit)) + 0.6)
        return SHADE + (1 - SHADE) * np.clip(0.5 + wave * 0.9, 0, 1)
    if texture == "dotted":
        pitch = 0.19 * unit
        gap = np.hypot((x + pitch / 2) % pitch - pitch / 2, (y + pitch / 2) % pitch - pitch / 2)
        return SHADE + (1 - SHADE) * np.clip(0.5 + gap - 0.31 * pitch, 0, 1)
    return None


def frame(scene: Scene, time: float, side: int = 144) -> Pixels:
    """One picture, uint8 [side, side, 3], of the scene at `time` (0 to 1).

    The pixel noise is a function of the scene's seed and the side: it stands still, so that video files stay small.
    """
    unit = side / 3
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = np.asarray(scene.background, np.float32) * 255
    if scene.sign:
        _paste(canvas, plate(scene.sign.text, side), scene.sign.place, unit)
    for solid in scene.solids:
        if solid.seen(time):
            _stamp(canvas, solid, time, unit)
    if scene.noise:
        canvas += _grain(scene.seed, canvas.shape) * np.float32(scene.noise * 255)
    return np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8)


def clip(scene: Scene, frames: int = 8, side: int = 144) -> Pixels:
    """uint8 [frames, side, side, 3]: frame i shows the time (i + 0.5) / frames."""
    return np.stack([frame(scene, (i + 0.5) / frames, side) for i in range(frames)])


def labels(scene: Scene, time: float, grid: int = 9) -> NDArray[np.int64]:
    """What is on each patch of a picture cut into grid x grid patches: int64 [grid * grid, 6].

    Columns as in `LABELS`; 0 is nothing, names count from 1. A patch belongs to a solid when its middle is inside the
    solid's square or up to a quarter of a patch beside it, and to a sign when its middle is on the plate.
    """
    out = np.zeros((grid, grid, len(LABELS)), np.int64)
    middle = (np.arange(grid) + 0.5) * (3 / grid)
    if scene.sign:
        x, y = scene.sign.place % 3 + 0.5, scene.sign.place // 3 + 0.5
        out[np.ix_(np.abs(middle - y) < 0.4, np.abs(middle - x) < 0.5, [4])] = SIGNS.index(scene.sign.text) + 1
    for solid in scene.solids:
        if not solid.seen(time):
            continue
        (x, y), reach = solid.centre(time), radius(solid, time) + 0.25 * 3 / grid
        names = (
            SHAPES.index(solid.shape) + 1,
            COLOURS.index(solid.colour) + 1,
            1 + round(solid.scale(time) * (len(SIZES) - 1)),
            TEXTURES.index(solid.texture) + 1,
            0,
            _turn(solid, time),
        )
        out[np.ix_(np.abs(middle - y) < reach, np.abs(middle - x) < reach)] = names
    return out.reshape(grid * grid, len(LABELS))


def _turn(solid: Solid, time: float) -> int:
    if solid.shape not in SYMMETRY:
        return 0
    share = solid.turn(time) * SYMMETRY[solid.shape] / (2 * math.pi)
    return 1 + math.floor((share + 0.5 / TURNS) % 1.0 * TURNS) % TURNS


def _stamp(canvas: Floats, solid: Solid, time: float, unit: float) -> None:
    side = len(canvas)
    (x, y), r = solid.centre(time), radius(solid, time)
    x, y, r = x * unit, y * unit, r * unit
    reach = 1.18 * r + 1
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(side, int(x + reach) + 1), min(side, int(y + reach) + 1)
    dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x))[None, :]
    dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    angle = solid.turn(time)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    tx, ty = dx * cos + dy * sin, dy * cos - dx * sin
    mask = np.clip(np.float32(0.5) - distance(solid.shape, tx, ty, r), 0, 1)[..., None]
    colour = np.asarray(RGB[solid.colour], np.float32)
    shade = shading(solid.texture, tx, ty, unit)
    paint = colour if shade is None else shade[..., None] * colour
    box = canvas[top:bottom, left:right]
    box += mask * (paint - box)


def _paste(canvas: Floats, picture: Floats, place: int, unit: float) -> None:
    top = round((place // 3 + 0.5) * unit - picture.shape[0] / 2)
    left = round((place % 3 + 0.5) * unit - picture.shape[1] / 2)
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


@lru_cache(maxsize=256)
def plate(text: str, side: int) -> Floats:
    """The sign with a word, float32 [height, width, 3] in 0..255: dark letters, as large as fit, on a light plate."""
    from PIL import Image, ImageDraw, ImageFont

    fine = 4  # drawn this much larger, then averaged: letters keep their form at any side
    unit = side // 3
    height, width = round(0.74 * unit) * fine, unit * fine
    image = Image.new("RGB", (width, height), PLATE)
    draw = ImageDraw.Draw(image)
    edge = max(1, round(0.02 * unit)) * fine
    draw.rectangle((0, 0, width - 1, height - 1), outline=INK, width=edge // 2)
    room_x, room_y = width - 2 * edge - fine, height - 3 * edge
    size = 4.0
    while True:
        font = ImageFont.load_default(size + 2)
        box = draw.textbbox((0, 0), text, font=font, stroke_width=max(1, round(size * 0.03)))
        if box[2] - box[0] > room_x or box[3] - box[1] > room_y:
            break
        size += 2
    font, stroke = ImageFont.load_default(size), max(1, round(size * 0.03))
    box = draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
    at = ((width - box[2] - box[0]) / 2, (height - box[3] - box[1]) / 2)
    draw.text(at, text, font=font, fill=INK, stroke_width=stroke, stroke_fill=INK)
    return np.asarray(image.reduce(fine), np.float32)


@lru_cache(maxsize=1)
def _bank() -> Floats:
    return np.random.Generator(np.random.PCG64(20240229)).standard_normal(1 << 20, dtype=np.float32)


def _grain(seed: int, shape: tuple[int, ...]) -> Floats:
    """Normal noise read from a fixed long strip at a place that the seed decides: fast, and the same everywhere."""
    count = math.prod(shape)
    start = (seed * 0x9E3779B97F4A7C15 >> 17) % (len(_bank()) - count)
    return _bank()[start : start + count].reshape(shape)
