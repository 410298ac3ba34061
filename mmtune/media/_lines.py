"""Points as lines of numbers: XYZ (also called TXT, CSV, PTS) and the vertices of OFF."""

from __future__ import annotations

import re

from mmtune.media._cloud import HEADER, Columns, Gate, named
from mmtune.media._formats import first_row
from mmtune.media._rows import rows

_OFF = re.compile(rb"(C?)(N?)OFF(?=[\s\d])")
_COUNTS = re.compile(
    rb"\s*(?:#[^\r\n]*[\r\n]\s*)*(\d{1,15})[ \t]+(\d{1,15})([ \t]+\d{1,15})?[ \t]*(#[^\r\n]*)?(?=[\r\n])"
)


def read_xyz(data: bytes, gate: Gate) -> Columns:
    """x, y, z and what follows, one point a line; a first line with the number of points alone is understood.

    Raises MediaError, or what numpy raises of a line that is none.
    """
    found = first_row(data)
    if found is None:
        raise gate.refusal("text whose first line is no point", "x, y and z in a line")
    start, count, line = found
    if count is not None:
        gate.admit(count, len(line.replace(b",", b" ").replace(b";", b" ").split()))
    gap = next((mark for mark in (",", ";") if mark.encode() in line), None)
    table = rows(data[start:], gate, comments=True, gap=gap)
    if count not in (None, len(table)):
        raise gate.refusal(f"{len(table)} lines of points", f"{count}, as the first line says")
    return named(table)


def read_off(data: bytes, gate: Gate) -> Columns:
    """The vertices; faces are not read, and no points are drawn on them. Raises as `read_xyz`."""
    keyword = _OFF.match(data)
    counts = keyword and _COUNTS.match(data, keyword.end(), keyword.end() + HEADER)
    if not keyword or not counts:
        raise gate.refusal(
            f"a file that begins with {data[:24]!r}", "OFF, COFF, NOFF or CNOFF in text, then the number of vertices"
        )
    vertices, faces = (gate.count(counts[i].decode()) for i in (1, 2))
    body = data[counts.end() :]
    gate.admit(vertices, 3, 5, len(body))
    lines = body.count(b"\n") + body.count(b"\r") + 1
    if lines < vertices + faces:
        raise gate.refusal(f"{lines} lines", f"{vertices} vertices and {faces} faces")
    table = rows(body, gate, most=vertices, comments=True)
    names = ("x", "y", "z", *(("nx", "ny", "nz") if keyword[2] else ()))
    extra = table.shape[1] - len(names)
    if extra < 0 or (keyword[1] and extra not in (3, 4)):
        raise gate.refusal(
            f"{table.shape[1]} numbers in a line", f"{len(names)}{', then a colour' if keyword[1] else ''}"
        )
    return named(table, names + ("red", "green", "blue", "alpha")[: extra if keyword[1] else 0])
