"""A TIFF with the first directory alone, and in it what says how pixels are read.

Other tags, however many bytes they claim, further pictures and directories that lead to each other are taken out before
the library sees the file. The number of strips, and the length of the rest, are checked.
"""

from __future__ import annotations

from mmtune.errors import MediaError, Reason

_READ = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338}
    | {339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
)
"""Sizes, strips and tiles, kinds of samples, ways of packing, colours, orientation."""
_SMALL = {282: 16, 283: 16, 296: 16, 700: 1 << 16}
"""Resolution, noted where it is odd, and XMP, which may hold the orientation: most values that are kept."""
_MOST = 1 << 18
"""Most values of one that is read. A picture has as many strips as rows at most."""
_ENTRIES = 1 << 16
"""Most tags of a directory."""


def trim(data: bytes, origin: str) -> bytes:
    """The file without unused tags; unchanged if its first directory is missing, which the library then reports.

    Raises MediaError: unreadable_image, where what is read has millions of values.
    """
    order = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"+\x00", b"\x00+")

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    start = number(8, 8) if big else number(4, 4)
    entry, wide, few = (20, 8, 8) if big else (12, 4, 2)
    entries = number(start, few)
    end = start + few + entries * entry
    if entries > _ENTRIES or end > len(data):
        return data
    kept = []
    for at in range(start + few, end, entry):
        tag, count = number(at, 2), number(at + 4, wide)
        if tag in _READ and count > _MOST:
            raise MediaError(
                Reason.unreadable_image, f"{origin}: tag {tag} with {count} values", f"at most {_MOST} of them",
                "store the picture again",
            )  # fmt: skip
        if tag in _READ or count <= _SMALL.get(tag, -1):
            kept.append(data[at : at + entry])
    directory = len(kept).to_bytes(few, order) + b"".join(kept)  # type: ignore[arg-type]
    room = few + entries * entry + wide  # after it nothing, where the offset of the next one was
    whole = memoryview(data)  # pixels are copied once
    return b"".join([whole[:start], directory.ljust(room, b"\x00"), whole[end + wide :]])
