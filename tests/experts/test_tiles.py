"""Where tiles lie, and how lines of tiles become lines of a picture. No engine."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mmtune.experts import _tiles
from mmtune.experts._tiles import OVERLAP, TILE, Line, merged, ordered, placed, tile_grid


@pytest.mark.parametrize(("height", "width"), [(9000, 400), (400, 9000), (5000, 4500), (2001, 2001), (60, 30_000)])
def test_tiles_cover_the_picture_and_overlap(height: int, width: int) -> None:
    made = tile_grid(height, width, 256)
    assert made.read == (1.0, 1.0)
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(tile.box[axis], tile.box[axis + 2]) for tile in made.tiles})
        assert spans[0][0] == 0 and spans[-1][1] == length and len({end - begin for begin, end in spans}) == 1
        assert all(end - begin <= TILE for begin, end in spans)
        assert all(one[1] - other[0] >= OVERLAP for one, other in pairwise(spans))
    assert not any(tile.inner[0] for tile in made.tiles if tile.box[0] == 0)
    assert not any(tile.inner[3] for tile in made.tiles if tile.box[3] == height)


@pytest.mark.parametrize(
    ("height", "width", "most", "count", "read"),
    [
        (9000, 400, 3, 3, (1.0, 0.5)),
        (400, 9000, 3, 3, (0.5, 1.0)),
        (7000, 7000, 16, 15, (1.0, 0.6)),
        (9000, 9000, 1, 1, None),
    ],
)
def test_the_number_of_tiles_is_bounded(height: int, width: int, most: int, count: int, read) -> None:
    made = tile_grid(height, width, most)
    assert len(made.tiles) == count <= most
    assert read is None or made.read == pytest.approx(read, abs=0.05)


def never(_: _tiles.Box) -> tuple[str, float]:
    raise AssertionError("nothing is to be read again")


def at(tile: int, text: str, box: _tiles.Box, score: float = 0.9, most: int = 256) -> Line:
    """A line as one tile of a picture of 9000 x 400 pixels has it; the box is of the picture."""
    where = tile_grid(9000, 400, most).tiles[tile]
    left, top = where.box[:2]
    return placed(where, tile, text, score, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def test_what_two_tiles_read_is_said_once() -> None:
    first, second = tile_grid(9000, 400, 256).tiles[:2]
    middle = (first.box[3] + second.box[1]) / 2
    box = (20.0, middle - 15, 300.0, middle + 15)
    lines = [at(0, "river", box), at(1, "river", (21.0, middle - 14, 301.0, middle + 16))]
    assert [line.text for line in merged(lines, never)] == ["river"]


def test_a_strip_of_letters_at_a_border_is_not_said() -> None:
    end = tile_grid(9000, 400, 256).tiles[0].box[3]
    whole = (20.0, end - 20.0, 300.0, end + 12.0)
    lines = [at(0, "rlver", (20.0, end - 20.0, 300.0, float(end))), at(1, "river", whole)]
    assert [line.text for line in merged(lines, never)] == ["river"]
    assert merged(lines[:1], never) == []  # nobody saw it whole


def test_a_line_longer_than_a_tile_is_read_anew_as_a_whole() -> None:
    tiles = tile_grid(400, 4200, 256).tiles
    lines = [
        placed(tile, number, f"piece {number}", 0.9, (0.0 if number else 20.0, 50.0, tile.box[2] - tile.box[0], 80.0))
        for number, tile in enumerate(tiles)
    ]
    other = placed(tiles[0], 0, "below", 0.9, (20.0, 100.0, 600.0, 130.0))
    asked = []
    found = merged([*lines, other], lambda box: asked.append(box) or ("whole", 0.8))
    assert asked == [(20.0, 50.0, 4200.0, 80.0)]
    assert sorted((line.text, line.score) for line in found) == [("below", 0.9), ("whole", 0.8)]


def test_letters_too_tall_for_a_tile_are_taken_from_the_whole_picture() -> None:
    lines = [Line("H", 0.9, (100, 100, 300, 600)), Line("small", 0.9, (2000, 2000, 2300, 2040))]
    coarse = [Line("HUGE", 0.9, (90, 90, 1500, 620)), Line("smal", 0.9, (2000, 2000, 2300, 2040))]
    assert [line.text for line in _tiles.with_large(lines, coarse)] == ["HUGE", "small"]


def words(*cells: tuple[str, float, float, float]) -> list[Line]:
    return [Line(text, 0.9, (x, y, x + width, y + 30)) for text, x, y, width in cells]


def test_lines_of_a_row_are_read_from_the_left() -> None:
    cells = words(("b", 400, 13, 100), ("a", 10, 10, 100), ("d", 400, 58, 100), ("c", 10, 60, 100))
    assert [line.text for line in ordered(cells)] == ["a", "b", "c", "d"]


def test_columns_of_prose_are_read_one_after_another_and_bills_row_by_row() -> None:
    prose = words(*((f"{x}{y}", 600.0 * x, 50.0 * y, 500.0) for y in range(5) for x in range(2)))
    assert [line.text for line in ordered(prose)] == [f"{x}{y}" for x in range(2) for y in range(5)]
    bill = words(*((f"{y}{x}", 600.0 * x, 50.0 * y, 90.0 if x else 200.0) for y in range(5) for x in range(2)))
    assert [line.text for line in ordered(bill)] == [f"{y}{x}" for y in range(5) for x in range(2)]
