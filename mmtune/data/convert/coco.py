"""Captions as COCO has them: pictures in one list, captions in another, and the number of a picture in both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from mmtune.data.convert import text
from mmtune.data.convert.base import Piece, Raw, Row, bad_json
from mmtune.errors import DataError, Reason

LISTS = {"images": "file_name", "annotations": "caption"}
"""The two lists, and what an entry of each has."""


def rows(file: IO[bytes]) -> tuple[Row | DataError, ...] | None:
    """A record for each picture with all of its captions, then what belongs to no picture; none for other files."""
    lists: dict[str, list[Raw]] = {}
    behind, head = 0, text.begin(file)
    while len(lists) < len(LISTS):
        found = text.wrapper(head, [key for key in LISTS if key not in lists])
        if found is None:
            return None
        at, key = found
        raws, end = text.whole(file, text.Start(behind + at, wrapped=True), LISTS[key])
        if not raws:
            return None
        lists[key] = raws
        file.seek(end + 1)
        behind, head = end, b"{" + file.read(text.CHUNK)  # the bracket stands where the list ended
    return tuple(_joined(lists["images"], lists["annotations"]))


def _joined(images: list[Raw], annotations: list[Raw]) -> Iterator[Row | DataError]:
    pictures: dict[Any, Row] = {}
    lost: list[DataError] = []
    for raw in images:
        try:
            number, name = _pair(raw, "images", "id")
            pictures[number] = {"image": name, "image_id": number, "captions": []}
        except DataError as error:
            lost.append(error)
    for raw in annotations:
        try:
            number, caption = _pair(raw, "annotations", "image_id")
            if number not in pictures:
                seen = f"annotations, entry {raw.number}: no picture has the id {number}"
                raise DataError(Reason.missing_key, seen, "an entry in images")
            pictures[number]["captions"].append(caption)
        except DataError as error:
            lost.append(error)
    for row in pictures.values():
        seen = f"{row['image']} has no caption"
        yield row if row["captions"] else DataError(Reason.empty_target, seen, "an entry in annotations")
    yield from lost


def _pair(raw: Raw, listed: str, number: str) -> tuple[int | str, str]:
    """Number and text of an entry of a list. Raises DataError."""
    where = f"{listed}, entry {raw.number}"
    if raw.row is None:
        raise bad_json(f"{where}: {raw.fault.seen if raw.fault else 'nothing could be read'}")
    key, value = raw.row.get(number), raw.row.get(LISTS[listed])
    if not isinstance(key, (int, str)) or not isinstance(value, str):
        seen = f"{where}: {number} is {str(key)[:40]!r}, {LISTS[listed]} is {str(value)[:80]!r}"
        raise bad_json(seen, "a number, and text")
    return key, value


def read(piece: Piece) -> Iterator[Raw]:
    """The records of a piece, which carries them."""
    for number, one in enumerate(piece.start, piece.first):
        yield Raw(number, fault=one) if isinstance(one, DataError) else Raw(number, row=one)
