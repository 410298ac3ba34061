"""NPY and NPZ: one array [points,3+extra] of numbers, or a structured one of named fields. Never objects.

An array [values,points], as networks take it, is turned where it can be nothing else, and refused where it can. Of an
NPZ the array with one of `NAMES` is taken, or the only one there is; the others are not read.
"""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

from mmtune.media._cloud import HEADER, Columns, Gate, named

_CHANNELS = range(3, 10)
"""Values that a point usually has: x, y, z, with a brightness, a time, a colour, a normal."""
_LONG = 64
"""Values that no point has."""
NAMES = ("points", "xyz", "pos", "coords", "coord", "pc", "point_cloud", "cloud", "vertices")
"""What the points of an archive are called; the first that is there is taken."""
MEMBERS = 64
"""Most arrays of an NPZ."""


class _InPieces(io.BytesIO):
    """Gives at most so many bytes at a time: of an archive the list of its members, too, which the library makes an
    object each of."""

    MOST = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.MOST if size is None or size < 0 else min(size, self.MOST))


def read(data: bytes | bytearray, gate: Gate) -> Columns:
    """The points of an NPY. Raises MediaError, or what numpy raises of a damaged header."""
    file = io.BytesIO(data[: 2 * HEADER])
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, kind = np.lib.format.read_array_header_2_0(file)
    else:
        raise gate.refusal(f"version {version} of the format", "1.0 or 2.0")
    start = file.tell()
    if kind.hasobject or start > HEADER:
        raise gate.refusal(f"an array of {kind}", "numbers", "store it with a numeric dtype")
    if any(type(side) is not int or side < 0 for side in shape):
        raise gate.refusal(f"an array of shape {list(shape)}", "[points,3+extra], or [points] of named fields")
    count, there = math.prod(shape), len(data) - start
    if kind.names:
        width = sum(math.prod(kind[name].shape) for name in kind.names)
        gate.admit(count, width, kind.itemsize, there)
    else:
        shape = _settled(shape, gate)
        gate.admit(shape[0], shape[1], kind.itemsize * shape[1], there)
        if kind.kind not in "fiu" or kind.shape:
            raise gate.refusal(f"an array of {str(kind)[:80]}", "whole or floating-point numbers")
    if count * kind.itemsize != there:
        raise gate.refusal(f"{there} bytes for an array of shape {list(shape)}", "no more, no less")
    flat = np.frombuffer(data, kind, offset=start)
    if kind.names:
        return _fields(flat)
    table = flat.reshape(shape, order="F" if fortran else "C")
    return named(table.T if _is_turned(shape) else table)


def _settled(shape: tuple[int, ...], gate: Gate) -> tuple[int, int]:
    """[points,values] or [values,points], sides of 1 in front left out. Raises MediaError where it may be either."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise gate.refusal(f"an array of shape {list(shape)}", "[points,3+extra], or [points] of named fields")
    few, many = shape
    long = many > 3 if few == 3 else many > 2 * max(_CHANNELS) if few in _CHANNELS else many >= _LONG > few
    if long and not _is_turned((few, many)):
        raise gate.refusal(
            f"an array of shape {list(shape)}, which may be {many} points as [values,points]", "[points,3+extra]",
            "store it transposed",
        )  # fmt: skip
    return few, many


def _is_turned(shape: tuple[int, ...]) -> bool:
    """Whether the points are side by side: a few rows that are much longer than any point is."""
    return shape[0] in _CHANNELS and shape[1] >= _LONG


def _fields(flat: np.ndarray) -> Columns:
    """Fields of numbers as columns; one of three values may be called xyz or rgb. Others are ignored."""
    columns: Columns = []
    for name in flat.dtype.names or ():
        kind = flat.dtype[name]
        if kind.base.kind not in "fiu" or len(kind.shape) > 1:
            continue
        values = flat[name].reshape(len(flat), -1)
        together = {"xyz": "xyz", "position": "xyz", "points": "xyz", "rgb": ("red", "green", "blue")}.get(name.lower())
        if values.shape[1] == 3 and together:
            columns += [(one, values[:, i]) for i, one in enumerate(together)]
        else:
            many = values.shape[1] > 1
            columns += [(f"{name}_{i}" if many else name, values[:, i]) for i in range(values.shape[1])]
    return columns


def read_archive(data: bytes, gate: Gate) -> Columns:
    """The points of an NPZ. Raises MediaError, or what zipfile raises of a damaged archive."""
    with zipfile.ZipFile(_InPieces(data)) as archive:
        listed = archive.infolist()
        arrays = {info.filename.removesuffix(".npy"): info for info in listed if info.filename.endswith(".npy")}
        if not arrays or len(listed) > MEMBERS:
            raise gate.refusal(f"an archive of {len(listed)} members", f"arrays, and at most {MEMBERS} members")
        chosen = next((arrays[name] for name in NAMES if name in arrays), next(iter(arrays.values())))
        if len(arrays) > 1 and not arrays.keys() & {*NAMES}:
            raise gate.refusal(f"arrays {', '.join(arrays)[:120]}", f"one array, or one called {' or '.join(NAMES)}")
        if chosen.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or chosen.flag_bits & 1:
            raise gate.refusal(f"{chosen.filename[:80]} is packed in another way", "stored or deflated, no password")
        most = min(gate.limits.bytes, HEADER + 8 * gate.limits.point_values)
        if chosen.file_size > most:
            raise gate.refusal(f"an array of {chosen.file_size} bytes", f"at most {most}")
        with archive.open(chosen) as file:
            whole = bytearray(file.read(HEADER))
            if not whole.startswith(b"\x93NUMPY"):
                raise gate.refusal("an archive whose array is none", "arrays in NPY format")
            while len(whole) < most and (piece := file.read(_InPieces.MOST)):
                whole += piece
        return read(whole, gate)
