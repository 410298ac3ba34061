"""NPY and NPZ: one array [points,3+extra] of numbers, or a structured one [points] with named fields. Never objects.

Of an NPZ the array called `points` is taken, or the only one there is.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np

from mmtune.media._cloud import HEADER, Columns, Gate, fields, named

MEMBERS = 64
"""Most arrays of an NPZ."""


def read(data: bytes, gate: Gate) -> Columns:
    """The points of an NPY. Raises MediaError, or what numpy raises of a damaged header."""
    file = io.BytesIO(data)
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
    names = kind.names
    single = [kind[name] for name in names] if names else [kind]
    if not all(one.kind in "fiu" and not one.shape for one in single) or (names and any(n[:1] == "." for n in names)):
        raise gate.refusal(f"an array of {str(kind)[:80]}", "whole or floating-point numbers")
    if len(shape) != (1 if names else 2) or any(type(side) is not int or side < 0 for side in shape):
        raise gate.refusal(f"an array of shape {list(shape)}", "[points,3+extra], or [points] of named fields")
    width = len(names) if names else shape[1]
    gate.admit(shape[0], width, kind.itemsize * (1 if names else width), len(data) - start)
    if shape[0] * kind.itemsize * (1 if names else width) != len(data) - start:
        raise gate.refusal(f"{len(data) - start} bytes for an array of shape {list(shape)}", "no more, no less")
    flat = np.frombuffer(data, kind, offset=start)
    return fields(flat) if names else named(flat.reshape(shape, order="F" if fortran else "C"))


def read_archive(data: bytes, gate: Gate) -> Columns:
    """The points of an NPZ. Raises MediaError, or what zipfile raises of a damaged archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listed = archive.infolist()
        arrays = {info.filename.removesuffix(".npy"): info for info in listed if info.filename.endswith(".npy")}
        if not arrays or len(arrays) != len(listed) or len(listed) > MEMBERS:
            raise gate.refusal(f"an archive of {len(listed)} members", f"1 to {MEMBERS} arrays, each name once")
        chosen = arrays.get("points") or next(iter(arrays.values()))
        if len(arrays) > 1 and "points" not in arrays:
            raise gate.refusal(f"arrays {', '.join(arrays)[:120]}", "one array, or one called points")
        if chosen.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or chosen.flag_bits & 1:
            raise gate.refusal(f"{chosen.filename[:80]} is packed in another way", "stored or deflated, no password")
        most = min(gate.limits.bytes, HEADER + 8 * gate.limits.point_values)
        if chosen.file_size > most:
            raise gate.refusal(f"an array of {chosen.file_size} bytes", f"at most {most}")
        with archive.open(chosen) as file:
            head = file.read(HEADER)
            # the claim of the header is judged before the rest is unpacked
            _judge(head, gate, chosen.file_size)
            return read(head + file.read(most), gate)


def _judge(head: bytes, gate: Gate, size: int) -> None:
    if not head.startswith(b"\x93NUMPY"):
        raise gate.refusal("an archive whose array is none", "arrays in NPY format")
    if len(head) < min(size, HEADER):
        raise gate.refusal(f"{len(head)} bytes of {size}", "a whole array")
