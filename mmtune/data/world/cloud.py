"""The start of a scene as a point cloud: the solids cut out of a plate, with their colours, as a binary PLY file."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmtune.data.world.draw import RGB, distance, radius, shading
from mmtune.data.world.scene import Scene

POINTS = 400
"""Points of one solid."""
DEPTH = 0.3
"""Thickness of a solid, in places."""
RECORD = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])


def points(scene: Scene, each: int = POINTS) -> NDArray[np.void]:
    """[each * solids] of `RECORD`: x to the right, y up, z towards the viewer, in -1..1; colours 0..255.

    Only solids that are there at the start are in the cloud; half of the points are on front and back, half inside.
    """
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    parts = []
    for solid in scene.solids:
        if not solid.seen(0.0):
            continue
        r, found = radius(solid, 0.0), np.empty((0, 2))
        while len(found) < each:
            spots = rng.uniform(-1.2 * r, 1.2 * r, (4 * each, 2)).astype(np.float32)
            found = np.concatenate([found, spots[distance(solid.shape, spots[:, 0], spots[:, 1], r) <= 0]])
        x, y = found[:each].T
        shade = shading(solid.texture, x * 48, y * 48, 48)
        (cx, cy), angle = solid.centre(0.0), solid.turn(0.0)
        part = np.empty(each, RECORD)
        part["x"] = (cx + x * math.cos(angle) - y * math.sin(angle) - 1.5) / 1.5
        part["y"] = (1.5 - cy - x * math.sin(angle) - y * math.cos(angle)) / 1.5
        z = rng.uniform(-DEPTH / 2, DEPTH / 2, each)
        part["z"] = np.where(rng.random(each) < 0.5, np.copysign(DEPTH / 2, z), z) / 1.5
        for name, value in zip(("red", "green", "blue"), RGB[solid.colour], strict=True):
            part[name] = np.round(value * (np.ones(each) if shade is None else shade))
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, RECORD)


def ply(scene: Scene, each: int = POINTS) -> bytes:
    """`points` as a binary little-endian PLY file."""
    cloud = points(scene, each)
    kinds = {"f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    lines += [f"property {kinds[RECORD[name].str[1:]]} {name}" for name in RECORD.names or ()]
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii") + cloud.tobytes()
