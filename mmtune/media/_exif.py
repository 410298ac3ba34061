"""How a picture is turned: all that is read of EXIF and XMP. The rest of them may be as damaged as it likes."""

from __future__ import annotations

import re
import zlib

_TAG = 0x0112
_READ = {1: 1, 3: 2, 4: 4}
"""Types that the tag is seen in, with their bytes: BYTE, SHORT, LONG."""
_XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)([1-8])")
_PROFILE = 1 << 17
"""Most bytes that a text with EXIF in it may unpack to."""


def orientation(exif: bytes = b"", xmp: bytes = b"") -> int:
    """1 to 8 as TIFF 6.0 counts them; 1, which is upright, where nothing says otherwise."""
    found = _of_tiff(exif.removeprefix(b"Exif\x00\x00"))
    if found is None and xmp and (match := _XMP.search(xmp)):
        found = int(match[1])
    return found or 1


def _of_tiff(data: bytes) -> int | None:
    """The tag in the first directory of a TIFF; None if it is missing or not valid."""
    order = {b"II": "little", b"MM": "big"}.get(data[:2])
    if order is None or len(data) < 8:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    for index in range(min(number(start, 2), max(0, len(data) - start - 2) // 12)):
        at = start + 2 + 12 * index
        if number(at, 2) == _TAG:
            value = number(at + 8, _READ.get(number(at + 2, 2), 2))
            return value if 1 <= value <= 8 else None
    return None


def profile(text: bytes, packed: bool) -> bytes:
    """EXIF out of a PNG text called "Raw profile type exif": hexadecimal digits after three lines."""
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, _PROFILE)
        except zlib.error:
            return b""
    try:
        return bytes.fromhex(b"".join(text[:_PROFILE].split(b"\n")[3:]).decode("latin1"))
    except ValueError:
        return b""
