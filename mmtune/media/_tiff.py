"""How many strips a TIFF's directory claims, looked at before the library makes a Python number of each."""

from __future__ import annotations

from mmtune.errors import MediaError, Reason

_STRIPS = frozenset({258, 273, 277, 279, 324, 325, 339})
"""Tags whose values the library reads one by one: bits, offsets and sizes of strips and tiles, sample formats."""
_MOST = 1 << 20
"""Most values of one of them; a picture has as many strips as rows at most."""


def check(data: bytes, origin: str) -> None:
    """Refuse a directory with millions of strips. Tags that nobody reads are not looked at.

    Raises MediaError: unreadable_image.
    """
    order = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"+\x00", b"\x00+")

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    start = number(8, 8) if big else number(4, 4)
    entry, wide = (20, 8) if big else (12, 4)
    first = start + (8 if big else 2)
    entries = min(number(start, 8 if big else 2), max(0, len(data) - first) // entry)
    for place in range(entries):
        at = first + place * entry
        tag, count = number(at, 2), number(at + 4, wide)
        if tag in _STRIPS and count > _MOST:
            raise MediaError(
                Reason.unreadable_image, f"{origin}: tag {tag} with {count} values", f"at most {_MOST} of them",
                "store the picture again",
            )  # fmt: skip
