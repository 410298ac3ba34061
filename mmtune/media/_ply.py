"""PLY: the element `vertex` of ascii, little-endian and big-endian files, with all its plain properties.

Elements before the points, and lists among them, are stepped over. Elements after (faces) are not read; that
they can be there at all is checked by their least size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from mmtune.media import _ply_lists
from mmtune.media._cloud import HEADER, Columns, Gate, fields, named
from mmtune.media._rows import rows

TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
LONG = 1 << 24
"""Most bytes of a header with its comments."""
_END = re.compile(rb"[\r\n]end_header[ \t]*(?=[\r\n])")
_REMARKS = re.compile(rb"(?<=[\r\n])(?:comment|obj_info)\b[^\r\n]*[\r\n]")
TRAIL = 16
"""Bytes of white space that may follow the last element."""


@dataclass
class _Element:
    """One element of the header."""

    name: str
    count: int
    properties: list[_ply_lists.Property] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    @property
    def lists(self) -> bool:
        """Whether items may be of different size."""
        return any(one.items for one in self.properties)

    @property
    def stride(self) -> int:
        """Bytes of one, the least where it has lists."""
        return sum(np.dtype(one.kind).itemsize for one in self.properties)


def read(data: bytes, gate: Gate) -> Columns:
    """The points. Raises MediaError."""
    order, elements, start = _header(data, gate)
    index = next((i for i, element in enumerate(elements) if element.name == "vertex"), None)
    if index is None:
        raise gate.refusal("no element vertex", "points")
    before, points, after = elements[:index], elements[index], elements[index + 1 :]
    if not order:
        return _ascii(data[start:], gate, before, points, after)
    for element in before:
        if element.count * element.stride > len(data) - start:
            raise gate.refusal(f"{element.count} of {element.name[:40]}", "as much data as the header claims")
        start += element.count * element.stride
        if element.lists and element.count:
            start -= element.count * element.stride
            start = _ply_lists.end(data, start, element.count, element.properties, order, gate)
    left = max(0, len(data) - start)
    gate.admit(points.count, len(points.properties), points.stride, left)
    if points.lists:
        return _ply_lists.read(data, start, points.count, points.properties, order, gate)
    left -= points.count * points.stride
    least = sum(element.count * element.stride for element in after)
    whole = not any(element.lists and element.count for element in after)
    rest = data[start + points.count * points.stride + least :]
    if least > left or (whole and (len(rest) > TRAIL or rest.strip())):
        raise gate.refusal(f"{left} bytes behind the points", f"{least}, as the header says")
    kind = np.dtype([(one.name, order + one.kind) for one in points.properties])
    return fields(np.frombuffer(data, kind, points.count, start))


def _ascii(body: bytes, gate: Gate, before: list[_Element], points: _Element, after: list[_Element]) -> Columns:
    gate.admit(points.count, len(points.properties), 2 * len(points.properties) - 1, len(body))
    lines = sum(element.count for element in (*before, points, *after))
    there = body.count(b"\n") + body.count(b"\r") + 1
    if there < lines:
        raise gate.refusal(f"{there} lines of data", f"{lines}, as the header says")
    skip = sum(element.count for element in before)
    if points.lists:
        return _ply_lists.read_text(body, skip, points.count, points.properties, gate)
    table = rows(body, gate, skip, points.count)
    if table.shape[1] != len(points.properties):
        raise gate.refusal(f"{table.shape[1]} numbers in a line", f"{len(points.properties)}, as the header says")
    return _ply_lists.typed(named(table, tuple(one.name for one in points.properties)), points.properties)


def _header(data: bytes, gate: Gate) -> tuple[str, list[_Element], int]:
    """Byte order (empty for text), elements, and where the data begin."""
    found = _END.search(data, 0, LONG)
    head = _REMARKS.sub(b"", data[: found.start() + 1]) if found else data[:LONG]
    if not found or len(head) > HEADER:
        raise gate.refusal(f"no end_header in {len(head)} bytes", f"a header of at most {HEADER} beside comments")
    newline = b"\r\n" if data[3:5] == b"\r\n" else data[3:4]
    if not data.startswith(newline, found.end()):
        raise gate.refusal("end_header is not a line of its own", "a PLY header")
    order: str | None = None
    elements: list[_Element] = []
    for line in head.decode("latin1").splitlines()[1:]:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in ORDERS and order is None:
                order = ORDERS[kind]
            case ["element", name, count]:
                elements.append(_Element(name, gate.count(count)))
            case ["property", "list", length, item, _] if elements and length in TYPES and item in TYPES:
                _add(elements[-1], "", TYPES[length], TYPES[item])
            case ["property", kind, name] if elements and kind in TYPES:
                _add(elements[-1], name, TYPES[kind])
            case _:
                raise gate.refusal(f"the header line {line[:80]!r}", "format, element, property or comment")
    if order is None:
        raise gate.refusal("no format line", f"format {' or '.join(ORDERS)} 1.0")
    return order, elements, found.end() + len(newline)


def _add(element: _Element, name: str, kind: str, items: str = "") -> None:
    """A further property. A list, and a property with the name of another, gets an unused name."""
    plain = name and name not in element.names and not name.startswith(".")
    element.names.add(name)
    element.properties.append(_ply_lists.Property(name if plain else f".{len(element.properties)}", kind, items))
