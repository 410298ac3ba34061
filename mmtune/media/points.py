"""Point clouds from bytes: PLY, PCD, NPY, NPZ, XYZ and OFF to float32 [points,3+extra].

One convention for all of them: x, y and z first, as they are in the file; then red, green and blue in 0..1, where there
are colours; then what else a point has, in the order of the file. `Media.columns` says which is which. Nothing is
moved, scaled or thinned here: what a cloud means is the encoder's business.

A file without names may hold colours: three columns after x, y and z, all whole numbers in 0..255 and some above 1,
are called red, green and blue. Other columns of such a file have no name. A point without a finite place, as an
organised cloud has where nothing was hit, is left out; so is any other column that is not finite throughout. Both are
noted.
"""

from __future__ import annotations

import numpy as np
import torch

from mmtune.errors import Note, Reason
from mmtune.media import _arrays, _lines, _pcd, _ply
from mmtune.media._cloud import Columns, Gate
from mmtune.media.base import Limits, Sampling, refusing
from mmtune.types import Media

READERS = {
    "ply": _ply.read,
    "pcd": _pcd.read,
    "npy": _arrays.read,
    "npz": _arrays.read_archive,
    "xyz": _lines.read_xyz,
    "off": _lines.read_off,
}
COORDINATES = ("x", "y", "z")
COLOUR = ("red", "green", "blue")
SPELLINGS = {
    **dict(zip("rgb", COLOUR, strict=True)),
    **{f"diffuse_{name}": name for name in COLOUR},
    **{f"normal_{axis}": f"n{axis}" for axis in COORDINATES},
    "a": "alpha",
}
"""Other names of columns."""
STEPS = 4096
"""Least number of float32 steps that the extent of a cloud must span."""


def decode(data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str) -> Media:
    """`data` of format `name` to Media with float32 [points,3+extra] and the names of its columns.

    Raises:
        MediaError: points_limits, or unreadable_points for everything else.
    """
    gate, notes = Gate(limits, origin), list[Note]()
    with refusing(Reason.unreadable_points, origin), np.errstate(all="ignore"):
        columns = _finite(_named(READERS[name](data, gate), gate), gate, notes)
        columns = _ordered(columns, gate)
        gate.admit(len(columns[0][1]), len(columns))
        table = np.empty((len(columns[0][1]), len(columns)), np.float32)
        for index, (_, values) in enumerate(columns):
            table[:, index] = values
        _check(columns, gate)
    names = tuple(name for name, _ in columns)
    return Media("points", torch.from_numpy(table), origin=origin, columns=names, notes=tuple(notes))


def _named(columns: Columns, gate: Gate) -> Columns:
    """The usual names; of columns with one name the first."""
    if len(columns) >= 6 and not any(name for name, _ in columns[3:]) and _are_colours(columns[3:6]):
        columns = [*columns[:3], *zip(COLOUR, (v for _, v in columns[3:6]), strict=True), *columns[6:]]
    columns = [(SPELLINGS.get(name.lower(), name.lower()), values) for name, values in columns]
    known = [name for name, _ in columns if name]
    if not {*known} >= {*COORDINATES} or any(known.count(name) > 1 for name in COORDINATES):
        raise gate.refusal(f"columns {', '.join(known)[:120]}", "x, y and z, each once")
    first = {name: index for index, (name, _) in reversed(list(enumerate(columns)))}
    return [column for index, column in enumerate(columns) if not column[0] or first[column[0]] == index]


def _finite(columns: Columns, gate: Gate, notes: list[Note]) -> Columns:
    """Without points that have no place, and without other columns that are not numbers throughout."""
    good = np.logical_and.reduce([np.isfinite(v.astype(np.float32)) for name, v in columns if name in COORDINATES])
    if not good.any():
        raise gate.refusal(f"{len(good)} points, none with finite x, y and z", "points")
    if not good.all():
        notes.append(Note.points_left_out)
        columns = [(name, values[good]) for name, values in columns]
    odd = {index for index, (_, values) in enumerate(columns) if not np.isfinite(values.astype(np.float32)).all()}
    if any(columns[index][0] in COLOUR for index in odd):
        odd |= {index for index, (name, _) in enumerate(columns) if name in COLOUR}
    if odd:
        notes.append(Note.columns_left_out)
    return [column for index, column in enumerate(columns) if index not in odd]


def _ordered(columns: Columns, gate: Gate) -> Columns:
    """Place, colour in 0..1, the rest."""
    table = dict(columns)
    coloured = COLOUR if table.keys() >= {*COLOUR} else ()
    first = [(name, table[name]) for name in COORDINATES]
    first += zip(coloured, _scaled([table[name] for name in coloured], gate), strict=True)
    return [*first, *((name, values) for name, values in columns if name not in (*COORDINATES, *coloured))]


def _are_colours(columns: Columns) -> bool:
    values = np.stack([values for _, values in columns])
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all() and (values > 1).any())


def _scaled(values: list[np.ndarray], gate: Gate) -> list[np.ndarray]:
    """Colours to 0..1: by their type, else by the smallest usual range that holds them."""
    if not values:
        return []
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    tops = {np.iinfo(v.dtype).max for v in values if v.dtype.kind == "u" and v.dtype.itemsize <= 2}
    ranges = tops if len(tops) == 1 else {255, 65535} | ({1} if values[0].dtype.kind == "f" else set())
    top = next((top for top in sorted(ranges) if high <= top), None)
    if not low >= 0 or top is None:
        raise gate.refusal(f"colours from {low:g} to {high:g}", "values from 0 up to 1, 255 or 65535")
    return [np.clip(v / np.float64(top), 0, 1) for v in values]


def _check(columns: Columns, gate: Gate) -> None:
    """Refuse places so far from the origin that float32 would move them."""
    coordinates = [values for _, values in columns[:3]]
    extent = max(float(v.max()) - float(v.min()) for v in coordinates)
    far = max(float(np.abs(v).max()) for v in coordinates)
    fine = all(v.dtype.kind == "f" and v.dtype.itemsize <= 4 for v in coordinates)
    if not fine and extent > 0 and far * 2.0**-23 * STEPS > extent:
        raise gate.refusal(
            f"a cloud of size {extent:g} at {far:g} from the origin", "a cloud near the origin", "move it there first"
        )
