"""Large pictures in overlapping tiles: the positions of the tiles, and the merging of lines that are read in them.

Reading a picture in one piece shrinks its longer side until the engine takes it, and the letters with it: 400 x 9000
pixels become 88 x 2000. In tiles the letters keep their size. Lines in the overlap are read twice and reported once; a
line that a border cuts is put together again and read again, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

TILE = 1600
"""Longest side of a tile, pixels."""
OVERLAP = 200
"""Pixels that two tiles have in common: letters up to this height are whole in one of them."""
_EDGE = 8
"""A line that ends so near to a border between tiles, pixels, may be cut there."""
_SAME = 0.5
"""Share of the smaller of two boxes from which they are one line read twice."""
_COVERED = 0.8
"""Share of a cut line from which others say all of it."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels of the picture."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture: left, top, right, bottom, and which of these sides are inside the picture."""

    box: tuple[int, int, int, int]
    inner: tuple[bool, bool, bool, bool]


@dataclass(frozen=True)
class Line:
    """A line of text, as it was read in one tile."""

    text: str
    score: float
    box: Box
    tile: int = -1
    cut: tuple[bool, bool, bool, bool] = (False, False, False, False)
    """Sides on which a border of the tile may have cut it."""

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a picture, in reading order, and how much of it they are."""

    tiles: tuple[Tile, ...]
    read: tuple[float, float] = (1.0, 1.0)
    """Parts of width and height that the tiles cover, from the upper left."""


def tile_grid(height: int, width: int, most: int) -> TileGrid:
    """Tiles of one size, evenly laid, at most `most`: of a picture that needs more, the first rows or columns."""
    lefts, tops = _starts(width), _starts(height)
    columns, rows = len(lefts), len(tops)
    if columns * rows > most:
        if height >= width:
            rows = max(1, most // columns)
        else:
            columns = max(1, most // rows)
        rows, columns = min(rows, most), min(columns, most)
    tiles = []
    for row, top in enumerate(tops[:rows]):
        for column, left in enumerate(lefts[:columns]):
            box = (left, top, min(width, left + TILE), min(height, top + TILE))
            inner = (column > 0, row > 0, column < len(lefts) - 1, row < len(tops) - 1)
            tiles.append(Tile(box, inner))
    return TileGrid(tuple(tiles), (tiles[-1].box[2] / width, tiles[-1].box[3] / height))


def placed(tile: Tile, number: int, text: str, score: float, box: Box) -> Line:
    """A line read in a tile, with its box in the picture."""
    left, top, right, bottom = tile.box
    ends = (box[0], box[1], right - left - box[2], bottom - top - box[3])
    cut = tuple(inner and end <= _EDGE for inner, end in zip(tile.inner, ends, strict=True))
    moved = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return Line(text, score, moved, number, cut)  # type: ignore[arg-type]


def merged(lines: Sequence[Line], reread: Callable[[Box], tuple[str, float] | None]) -> list[Line]:
    """The lines of the picture, each once and whole.

    Args:
        reread: reads the one line that is in a box.
    """
    kept: list[Line] = []
    for line in sorted((one for one in lines if not any(one.cut)), key=lambda one: -_area(one.box)):
        if not any(other.tile != line.tile and _common(line.box, other.box) > _SAME for other in kept):
            kept.append(line)
    cut = [line for line in lines if any(line.cut) and _covered(line, kept) < _COVERED]
    result = [line for line in kept if not any(_continues(line, piece) for piece in cut)]
    for group in _chains([*cut, *(line for line in kept if line not in result)]):
        if len(group) == 1:
            if group[0].cut[1] or group[0].cut[3]:
                continue  # a strip of letters, whose whole line was not found
            result.append(group[0])
            continue
        box = _around(line.box for line in group)
        if found := reread(box):
            result.append(Line(*found, box))
    return result


def with_large(lines: Iterable[Line], coarse: Iterable[Line]) -> list[Line]:
    """Lines of the tiles, with those of letters too tall for a tile as they are read in the whole picture, shrunk."""
    large = [line for line in coarse if min(line.height, line.width) > 0.75 * OVERLAP]
    return [*large, *(line for line in lines if not any(_inside(line.box, other.box) for other in large))]


def ordered(lines: Sequence[Line]) -> list[Line]:
    """Lines in reading order: columns of prose one after another, all else row by row, each row from the left."""
    if len(lines) < 2:
        return list(lines)
    for axis in (0, 1):
        parts = _split(lines, axis)
        if len(parts) > 1 and (axis == 1 or all(map(_is_prose, parts))):
            return [line for part in parts for line in ordered(part)]
    return [line for row in _rows(lines) for line in row]


def _starts(length: int) -> list[int]:
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(number * (length - TILE) / (count - 1)) for number in range(count)]


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _both(one: Box, other: Box) -> float:
    return _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))


def _common(one: Box, other: Box) -> float:
    return _both(one, other) / max(1e-9, min(_area(one), _area(other)))


def _covered(line: Line, others: Iterable[Line]) -> float:
    return sum(_both(line.box, other.box) for other in others) / max(1e-9, _area(line.box))


def _inside(one: Box, other: Box) -> bool:
    x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
    return other[0] <= x <= other[2] and other[1] <= y <= other[3]


def _continues(one: Line, other: Line) -> bool:
    """Whether two lines of different tiles are parts of one."""
    if one.tile == other.tile or not (any(one.cut) or any(other.cut)) or not _both(one.box, other.box):
        return False
    down = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return down > _SAME * min(one.height, other.height)


def _chains(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines in groups, each of parts of one line."""
    groups: list[list[Line]] = []
    for line in lines:
        joined = [group for group in groups if any(_continues(line, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([line, *(other for group in joined for other in group)])
    return groups


def _around(boxes: Iterable[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _split(lines: Sequence[Line], axis: int) -> list[list[Line]]:
    """Lines on both sides of every blank strip that goes through all of them, twice as wide as a line is high.

    axis: 0 for strips from top to bottom, 1 from left to right.
    """
    gap = 2 * median(line.height for line in lines)
    parts: list[list[Line]] = []
    end = float("-inf")
    for line in sorted(lines, key=lambda one: one.box[axis]):
        if line.box[axis] - end > gap:
            parts.append([])
        parts[-1].append(line)
        end = max(end, line.box[axis + 2])
    return parts


def _is_prose(lines: Sequence[Line]) -> bool:
    """Whether a column is of sentences rather than of the cells of a table or the prices of a bill."""
    return len(lines) >= 3 and median(line.width / max(1.0, line.height) for line in lines) >= 6


def _rows(lines: Sequence[Line]) -> list[list[Line]]:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda one: (one.box[1] + one.box[3]) / 2):
        middle = (line.box[1] + line.box[3]) / 2
        if rows and middle <= rows[-1][0].box[1] + 0.7 * rows[-1][0].height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda one: one.box[0]) for row in rows]
