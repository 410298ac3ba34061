"""Numbers in lines of text, about a megabyte at a time, so that reading costs what the points do and little more."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator

import numpy as np

from mmtune.media._cloud import Gate

LINE = 1 << 20
"""Most bytes of a line, and bytes that are read at a time."""
_NAN = re.compile(rb"[-+]?(?:(?i:nan)\(\w*\)|1\.#\w+)")
"""Spellings of NaN and infinity by other C libraries."""
_COMMENT = re.compile(rb"(#|//)[^\r\n]*")
_BLANK = re.compile(rb"(?:^|(?<=\n))[ \t]*\n")
_GAPS = (b"\n", b" ", b"\t")


def pieces(data: bytes, gate: Gate, skip: int = 0, comments: bool = False) -> Iterator[bytes]:
    """The lines with something in them, each with its line feed, many at a time.

    Args:
        skip: so many of them are left out at the start.
        comments: whether there may be comments, which are taken out.

    Raises MediaError: a line is longer than any is, or the time is over.
    """
    at, deadline = 0, time.monotonic() + gate.limits.wall_seconds
    while at < len(data):
        gate.check_clock(deadline)
        if comments and (match := _COMMENT.match(data, at)):  # it may be longer than a line
            at = match.end()
        end = len(data)
        if end - at > LINE:
            end = 1 + data.rfind(b"\n", at, at + LINE) or 1 + data.rfind(b"\r", at, at + LINE)
            if not end:
                raise gate.refusal(f"a line of more than {LINE} bytes", "a point in each line")
        piece = _clean(data[at:end], comments)
        at = end
        if skip:
            lines = piece.count(b"\n")
            piece = b"" if lines <= skip else piece.split(b"\n", skip)[-1]
            skip = max(0, skip - lines)
        if piece and not piece.isspace():
            yield piece


def _clean(piece: bytes, comments: bool) -> bytes:
    """Lines as numpy reads them: no comments, no empty lines, each ended by a line feed."""
    if b"(" in piece or b"1.#" in piece:
        piece = _NAN.sub(b"nan", piece)
    if comments and (b"#" in piece or b"//" in piece):
        piece = _COMMENT.sub(b"", piece)
    if b"\r" in piece:
        piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    piece = piece if piece.endswith(b"\n") else piece + b"\n"
    # looking for empty lines takes as long as reading the numbers
    some = piece[:1] in _GAPS or any(b"\n" + gap in piece for gap in _GAPS)
    return _BLANK.sub(b"", piece) if some else piece


def rows(
    data: bytes,
    gate: Gate,
    skip: int = 0,
    most: int | None = None,
    comments: bool = False,
    gap: str | None = None,
    plain: Callable[[bytes], bytes] | None = None,
) -> np.ndarray:
    """Numbers in lines of text, float64 [points,columns], all lines of one length.

    Args:
        skip, comments: see `pieces`.
        most: lines to be read, of which none may be missing; what follows is not looked at. None reads all.
        gap: what separates numbers; none is white space.
        plain: makes of some whole lines what is read of them.

    Raises MediaError.
    """
    table, got = np.empty((0, 0)), 0
    for piece in pieces(data, gate, skip, comments):
        if most is not None and piece.count(b"\n") > most - got:
            piece = b"\n".join(piece.split(b"\n", most - got)[:-1])
        part = _numbers(plain(piece) if plain else piece, gap, gate, got)
        gate.admit(got + len(part), part.shape[1])
        if not got:
            lines = data.count(b"\n") + data.count(b"\r") + 1
            values = gate.limits.point_values // part.shape[1]
            table = np.empty((min(lines, gate.limits.points, values), part.shape[1]))
        elif part.shape[1] != table.shape[1]:
            raise gate.refusal(f"{part.shape[1]} numbers in a line behind {got} points", f"{table.shape[1]}")
        table[got : got + len(part)] = part
        got += len(part)
        if got == most:
            break
    if most is not None and got != most:
        raise gate.refusal(f"{got} lines of points", f"{most}, as the header says")
    if not got:
        raise gate.refusal("no numbers", "points")
    return table[:got]


def _numbers(piece: bytes, gap: str | None, gate: Gate, before: int) -> np.ndarray:
    try:
        return np.loadtxt(io.BytesIO(piece), np.float64, None, gap, ndmin=2, encoding="latin1")
    except ValueError as error:
        said = str(error).split(" at row")[0].split(";")[0][:200]
        raise gate.refusal(f"a line behind {before} points or more: {said}", "numbers, as many in each line") from error
