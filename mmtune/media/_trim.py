"""JPEG and PNG without unused parts: profiles, texts, thumbnails, lists of further pictures.

They are taken out before a library sees the file, so none of them is unpacked, checked or warned of, however large or
damaged it is. What is said of the way the picture is turned is kept beside. A file whose structure is not understood
is left as it is: the library judges it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import _exif

_KEPT = {0xE0: b"JFIF\x00", 0xEE: b"Adobe"}
"""Application segments that decide how pixels are read: JFIF, and Adobe's note on colour; the first of each."""
_MOST = 100_000
"""Most segments or chunks of a file: each takes a library time and memory, and there is no use for so many."""
_TRANSPARENT = {0: range(2, 7), 2: range(6, 9), 3: range(257)}
"""Bytes of the transparent colour, by the PNG's colour type: grey, RGB, palette. Others have an alpha channel."""
_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"


@dataclass(frozen=True)
class Trimmed:
    """A picture's file as the library gets it."""

    data: bytes
    turned: int = 1
    """Orientation, 1 to 8."""
    scans: int = 1
    """JPEG: passes over the picture that decoding takes."""
    notes: tuple[Note, ...] = ()


def plain(data: bytes, origin: str) -> Trimmed:
    """Of another format: as it is."""
    return Trimmed(data)


def jpeg(data: bytes, origin: str) -> Trimmed:
    """Without application segments and comments. Raises MediaError: there are too many."""
    kept, exif, xmp, parts, at, whole = [data[:2]], b"", b"", 0, 2, False
    progressive, waiting, segments = False, dict(_KEPT), 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        mark, segments = data[at + 1], _count(segments, origin)
        if mark in (0xFF, 0x01, 0xD8):  # fill bytes, and marks without a length
            at += 1 if mark == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or mark in (0x00, 0xD9):
            break
        body = at + 4
        if mark == 0xDA:
            progressive = progressive or data[body] < parts
            whole = True
            break
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            progressive, parts = mark in (0xC2, 0xC6, 0xCA, 0xCE), data[at + 9] if at + 9 < len(data) else 0
        if mark == 0xE1:
            if not exif and data.startswith(b"Exif\x00\x00", body):
                exif = data[body : at + 2 + length]
            elif not xmp and data.startswith(_XMP, body):
                xmp = data[body : at + 2 + length]
        side = 0xE0 <= mark <= 0xEF or mark == 0xFE
        if not side or (mark in waiting and data.startswith(waiting[mark], body) and waiting.pop(mark)):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    turned = _exif.orientation(exif, xmp)
    if not whole:
        return Trimmed(data, turned)
    return Trimmed(b"".join([*kept, data[at:]]), turned, _scans(data, at, origin) if progressive else 1)


def _count(segments: int, origin: str) -> int:
    """One more. Raises MediaError."""
    if segments >= _MOST:
        seen = f"{origin}: a picture in more than {segments} pieces"
        raise MediaError(Reason.unreadable_image, seen, f"at most {_MOST}", "store the picture again")
    return segments + 1


def _scans(data: bytes, at: int, origin: str) -> int:
    """Start-of-scan marks from `at` up to the end of the picture."""
    scans = marks = 0
    while match := _MARK.search(data, at):
        mark, at, marks = data[match.start() + 1], match.end(), _count(marks, origin)
        if mark == 0xD9:
            break
        if mark == 0xDA:
            scans += 1
        if mark not in (0x01, 0xD8):
            at += int.from_bytes(data[at : at + 2], "big")
    return max(1, scans)


def gif(data: bytes, origin: str) -> Trimmed:
    """Without remarks and the like before the first picture. Raises MediaError: there are too many."""
    flags = data[10] if len(data) > 10 else 0
    start = at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, parts = b"", 0
    while data[at : at + 1] == b"!":
        end = at + 2
        while end < len(data) and data[end]:
            end, parts = end + 1 + data[end], _count(parts, origin)
        end, parts = end + 1, _count(parts, origin)
        if data[at + 1 : at + 2] == b"\xf9":  # how the picture is shown
            control = data[at:end]
        at = end
    return Trimmed(b"".join([data[:start], control, data[at:]]))


def png(data: bytes, origin: str) -> Trimmed:
    """Without chunks that a reader may leave out, but for transparency that makes sense. Raises MediaError: there are
    too many."""
    kept, at, exif, xmp, odd, chunks = [data[:8]], 8, b"", b"", False, 0
    name, lengths = b"", _TRANSPARENT.get(data[25], range(0)) if len(data) > 25 else range(0)
    while at + 8 <= len(data) and name != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end, chunks = at + 12 + length, _count(chunks, origin)
        if not name.isalpha():
            kept.append(data[at:])
            break
        if name == b"tRNS" and length not in lengths:
            odd = True
        elif name[:1].isupper() or name == b"tRNS":
            kept.append(data[at:end])
        elif not exif and name == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif not exif and name in (b"tEXt", b"zTXt") and data.startswith(b"Raw profile type exif\x00", at + 8):
            packed = name == b"zTXt"
            exif = _exif.profile(data[at + 30 + packed : end - 4], packed)
        elif not xmp and name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\x00", at + 8):
            xmp = data[at + 8 : end - 4]
        at = end
    cut = at > len(data) or (name != b"IEND" and at + 8 > len(data))
    notes = ((Note.odd_metadata,) if odd else ()) + ((Note.end_missing,) if cut else ())
    return Trimmed(b"".join(kept), _exif.orientation(exif, xmp), notes=notes)
