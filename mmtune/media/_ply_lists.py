"""PLY elements with lists among their properties: the lists are stepped over, the rest is read.

Mostly every list of an element has the same length; then all items are of one size and are read at once. Else they are
gone through one by one, against the clock.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

import numpy as np

from mmtune.media._cloud import Columns, Gate, fields, named
from mmtune.media._rows import rows

_PIECE = 1 << 14
"""Lists between two looks at the clock."""


@dataclass(frozen=True)
class Property:
    """One property of an element."""

    name: str
    """One that begins with a dot is not read."""
    kind: str
    """Numpy type; of a list, that of its length."""
    items: str = ""
    """Numpy type of what a list holds; empty for no list."""


def read(data: bytes, start: int, count: int, properties: list[Property], order: str, gate: Gate) -> Columns:
    """Binary items from `start` on. Raises MediaError."""
    kind = _same(data, start, count, properties, order)
    if kind is not None:
        return fields(np.frombuffer(data, kind, count, start))
    values, _ = _walk(data, start, count, properties, order, gate)
    plain = np.dtype([(one.name, order + one.kind) for one in properties if not one.items])
    return fields(np.frombuffer(values, plain, count))


def end(data: bytes, start: int, count: int, properties: list[Property], order: str, gate: Gate) -> int:
    """Where binary items that begin at `start` end. Raises MediaError."""
    kind = _same(data, start, count, properties, order)
    return start + count * kind.itemsize if kind is not None else _walk(data, start, count, properties, order, gate)[1]


def _same(data: bytes, start: int, count: int, properties: list[Property], order: str) -> np.dtype | None:
    """The type of one item where all lists are as long as those of the first item; else none."""
    layout: list[tuple] = []
    at = start
    for index, one in enumerate(properties):
        layout.append((one.name if not one.items else f".length{index}", order + one.kind))
        at += np.dtype(one.kind).itemsize
        if one.items:
            many = _length(data, at, one, order)
            if many is None or at + many > len(data):
                return None
            layout.append((f".list{index}", order + one.items, (many,)))
            at += many * np.dtype(one.items).itemsize
    kind = np.dtype(layout)
    if start + count * kind.itemsize > len(data):
        return None
    table = np.frombuffer(data, kind, count, start)
    lengths = [name for name in table.dtype.names or () if name.startswith(".length")]
    for low in range(0, count, _PIECE):
        part = table[low : low + _PIECE]
        if not all((part[name] == table[name][0]).all() for name in lengths):
            return None
    return kind


def _length(data: bytes, at: int, one: Property, order: str) -> int | None:
    """The length that ends at `at`; None if it is not valid."""
    size = np.dtype(one.kind).itemsize
    if at > len(data):
        return None
    many = float(np.frombuffer(data, order + one.kind, 1, at - size)[0])
    return int(many) if 0 <= many == int(many) else None


def _walk(
    data: bytes, start: int, count: int, properties: list[Property], order: str, gate: Gate
) -> tuple[bytearray, int]:
    """The plain properties of all items, one after the other, and where the items end."""
    values = bytearray()
    at, steps, deadline = start, 0, time.monotonic() + gate.limits.wall_seconds
    runs = _runs(properties, order)
    for number in range(count):
        for plain, length, item in runs:
            steps += 1
            if steps % _PIECE == 0:
                gate.check_clock(deadline)
            if plain:
                values += data[at : at + plain]
                at += plain
            if length is None:
                continue
            at += length.size
            many = length.unpack_from(data, at - length.size)[0] if at <= len(data) else 0
            if not 0 <= many == many // 1 < len(data) + 1:
                raise gate.refusal(f"item {number} of {count} has no list where one ought to be", "a length")
            at += int(many) * item
        if at > len(data):
            raise gate.refusal(f"{number} items of {count}", "as much data as the header claims")
    return values, at


def _runs(properties: list[Property], order: str) -> list[tuple[int, struct.Struct | None, int]]:
    """What an item is made of: bytes of plain properties, then how the length of a list is read and the bytes of each
    thing in it, or none after the last."""
    runs: list[tuple[int, struct.Struct | None, int]] = []
    plain = 0
    for one in properties:
        if one.items:
            letter = np.dtype(one.kind).char
            runs.append((plain, struct.Struct(order + letter), np.dtype(one.items).itemsize))
            plain = 0
        else:
            plain += np.dtype(one.kind).itemsize
    return [*runs, (plain, None, 0)] if plain else runs


def read_text(body: bytes, skip: int, count: int, properties: list[Property], gate: Gate) -> Columns:
    """Items as lines of text. Raises MediaError."""

    def plain(piece: bytes) -> bytes:
        return b"\n".join(_plain(line.split(), properties, gate) for line in piece.splitlines())

    table = rows(body, gate, skip, count, plain=plain)
    kept = [one for one in properties if not one.items]
    return typed(named(table, tuple(one.name for one in kept)), kept)


def _plain(words: list[bytes], properties: list[Property], gate: Gate) -> bytes:
    """A line of text without its lists."""
    at, kept = 0, []
    for one in properties:
        if not one.items:
            kept.append(words[at] if at < len(words) else b"")
        elif at < len(words) and words[at].isdigit() and len(words[at]) <= 9:
            at += int(words[at])
        else:
            raise gate.refusal("a line of the points has no list where one ought to be", "a length")
        at += 1
    if at != len(words):
        raise gate.refusal(f"{len(words)} numbers in a line of the points", f"{at}")
    return b" ".join(kept)


def typed(columns: Columns, properties: list[Property]) -> Columns:
    """Numbers of a text in the types of the header, which say what range colours have; a column stays as it is where
    its numbers are not of its type. Unused ones are left out."""
    done: Columns = []
    for (name, values), one in zip(columns, properties, strict=True):
        if name.startswith("."):
            continue
        kind = np.dtype(one.kind)
        if kind.kind != "f":
            top = np.iinfo(kind)
            fits = ((values >= top.min) & (values <= top.max) & (values == np.floor(values))).all()
            values = values.astype(kind) if fits else values
        done.append((name, values))
    return done
