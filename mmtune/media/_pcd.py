"""PCD: ascii, binary and binary_compressed (LZF), with all fields but padding. `rgb` is taken apart into colours."""

from __future__ import annotations

import re
import struct
import time

import numpy as np

from mmtune.errors import Reason
from mmtune.media._cloud import HEADER, Columns, Gate, fields, named
from mmtune.media._rows import rows

_DATA = re.compile(rb"(?:^|\n)DATA[ \t]+(\w+)[ \t]*\r?\n")
_KINDS = {"F": "f", "U": "u", "I": "i"}
_SIZES = {"f": (4, 8), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8)}
PIECE = 1 << 16
"""Steps of the decoder between two looks at the clock."""


def read(data: bytes, gate: Gate) -> Columns:
    """The points. Raises MediaError."""
    found = _DATA.search(data, 0, HEADER)
    if found is None:
        raise gate.refusal("no DATA line", f"a header of at most {HEADER} bytes")
    layout, count = _header(data[: found.start() + 1].decode("latin1"), gate)
    stride, left = layout.itemsize, len(data) - found.end()
    width = sum(int(np.prod(layout[name].shape)) for name in layout.names or () if name[0] != ".")
    body, form = found.end(), found[1].decode("latin1")
    if form == "ascii":
        return _packed(_ascii(data[body:], gate, layout, count), gate)
    if form == "binary":
        gate.admit(count, width, stride, left)
        return _packed(_split(fields(np.frombuffer(data, layout, count, body))), gate)
    if form != "binary_compressed":
        raise gate.refusal(f"DATA {form}", "ascii, binary or binary_compressed")
    gate.admit(count, width)
    if left < 8:
        raise gate.refusal("no sizes of the compressed data", "two whole numbers behind the header")
    packed, whole = struct.unpack_from("<II", data, body)
    if count * stride > 8 * gate.limits.point_values:
        seen = f"{gate.origin}: {count} points of {stride} bytes, unused fields included"
        raise gate.limits.refusal("point_values", Reason.points_limits, seen)
    if packed > left - 8 or whole != count * stride:
        raise gate.refusal(
            f"{packed} bytes that become {whole}", f"at most {left - 8} bytes that become {count * stride}"
        )
    flat = unpack(data[body + 8 : body + 8 + packed], whole, gate)
    columns, start = [], 0
    for name in layout.names or ():  # fields are stored one after the other, each as a whole
        kind, shape = layout[name].base, layout[name].shape
        size = count * layout[name].itemsize
        if not name.startswith("."):
            columns.append((name, np.frombuffer(flat, kind, size // kind.itemsize, start).reshape(count, *shape)))
        start += size
    return _packed(_split(columns), gate)


def _header(text: str, gate: Gate) -> tuple[np.dtype, int]:
    """The layout of one point, padding under names with a leading dot, and the number of points."""
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *values = line.split("#")[0].split() or [""]
        if key in said:
            raise gate.refusal(f"the header line {line[:80]!r} comes twice", "every line once")
        if key:
            said["FIELDS" if key == "COLUMNS" else key] = values
    strange = said.keys() - {"VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS"}
    names, sizes, types = (said.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = said.get("COUNT") or ["1"] * len(names)
    if strange or not names or not len(names) == len(sizes) == len(types) == len(counts):
        raise gate.refusal(
            f"a header with {', '.join(sorted(said))[:120]}", "FIELDS, SIZE, TYPE and COUNT of one length"
        )
    layout: list[tuple] = []
    for index, (name, size, kind, many) in enumerate(zip(names, sizes, types, counts, strict=True)):
        letter, width, number = _KINDS.get(kind, ""), gate.count(size), gate.count(many)
        if width not in _SIZES.get(letter, ()) or not 1 <= number <= 4096:
            raise gate.refusal(f"field {name[:40]}: {number} of type {kind[:8]}, {width} bytes", "numbers")
        name = f".{index}" if name == "_" else name
        if name.startswith(".") and name != f".{index}":
            raise gate.refusal(f"the field {name[:40]!r}", "a plain name")
        layout.append((name, f"<{letter}{width}", (number,)) if number > 1 else (name, f"<{letter}{width}"))
    if len({entry[0] for entry in layout}) != len(layout):
        raise gate.refusal(f"fields {' '.join(names)[:80]}", "every name once")
    wide, high = (gate.count((said.get(key) or [""])[0]) for key in ("WIDTH", "HEIGHT"))
    count = gate.count((said.get("POINTS") or [str(wide * high)])[0])
    if count != wide * high:
        raise gate.refusal(f"{count} points in {wide} x {high}", "as many points as width times height")
    return np.dtype(layout), count


def _ascii(body: bytes, gate: Gate, layout: np.dtype, count: int) -> Columns:
    names = []
    for name in layout.names or ():
        many = int(np.prod(layout[name].shape))
        names += [name] if many == 1 else [f"{name}_{i}" for i in range(many)]
    gate.admit(count, len(names), 2 * len(names) - 1, len(body))
    table = rows(body, gate, most=count)
    if table.shape[1] != len(names):
        raise gate.refusal(f"{table.shape[1]} numbers in a line", f"{len(names)}, as the header says")
    columns = []
    for name, values in named(table, tuple(names)):
        kind = layout[name].base if name in (layout.names or ()) else np.dtype("f8")
        if name in ("rgb", "rgba"):
            top = np.iinfo(kind).max if kind.kind in "ui" else np.finfo(kind).max
            fine = np.abs(values) <= top
            values = np.where(fine, values, 0).astype(kind)
            if not fine.all():  # no colour there; who has no place either goes with it
                colours = _packed([(name, values)], gate)
                columns += [(colour, np.where(fine, v / np.float64(255), np.nan)) for colour, v in colours]
                continue
        if not name.startswith("."):
            columns.append((name, values))
    return columns


def _split(columns: Columns) -> Columns:
    """Fields of several values as so many columns."""
    done: Columns = []
    for name, values in columns:
        if values.ndim == 1:
            done.append((name, values))
        else:
            done += [(f"{name}_{i}", values[:, i]) for i in range(values.shape[1])]
    return done


def _packed(columns: Columns, gate: Gate) -> Columns:
    """`rgb` and `rgba`, four bytes in one number (of a float the bits count), as three columns."""
    done: Columns = []
    for name, values in columns:
        if name not in ("rgb", "rgba"):
            done.append((name, values))
            continue
        if values.dtype.itemsize != 4:
            raise gate.refusal(f"{name} with {values.dtype.itemsize} bytes", "four bytes")
        bits = np.ascontiguousarray(values).view("<u4")
        done += [(c, (bits >> s & 255).astype(np.uint8)) for c, s in (("red", 16), ("green", 8), ("blue", 0))]
    return done


def unpack(packed: bytes, whole: int, gate: Gate) -> bytearray:
    """LZF data that become `whole` bytes. Raises MediaError: damaged, or it takes too long."""
    out = bytearray()
    at, end, steps = 0, len(packed), 0
    deadline = time.monotonic() + gate.limits.wall_seconds
    while at < end and len(out) <= whole:
        steps += 1
        if steps % PIECE == 0:
            gate.check_clock(deadline)
        code = packed[at]
        at += 1
        if code < 32:  # so many bytes, and one more, as they are
            out += packed[at : at + code + 1]
            at += code + 1
            continue
        length = code >> 5  # repeat what was written before
        if at + 1 + (length == 7) > end:
            break
        if length == 7:
            length += packed[at]
            at += 1
        back = ((code & 31) << 8 | packed[at]) + 1
        at += 1
        start = len(out) - back
        if start < 0:
            raise gate.refusal("compressed data that point before their beginning", "LZF data")
        length += 2
        piece = out[start : start + length]
        out += (piece * (length // back + 1))[:length]
    if at != end or len(out) != whole:
        raise gate.refusal(f"compressed data that give {len(out)} bytes", f"{whole}, as they say")
    return out
