"""Which format some bytes are, judged from their first bytes only; names and suffixes are never asked.

The table is closed. What is not in it is refused before any decoder sees it, which keeps playlists (they can name
other files), rare picture formats (where decoder faults are found) and text out of the decoders.
"""

from __future__ import annotations

import struct

from mmtune.types import Kind

FORMATS: dict[str, tuple[Kind, ...]] = {
    "jpeg": ("image",),
    "png": ("image",),
    "webp": ("image",),
    "bmp": ("image",),
    "tiff": ("image",),
    "gif": ("image", "video"),
    "mp4": ("video", "audio"),
    "m4a": ("audio", "video"),
    "matroska": ("video", "audio"),
    "avi": ("video", "audio"),
    "wav": ("audio",),
    "flac": ("audio",),
    "ogg": ("audio",),
    "mp3": ("audio",),
    "ply": ("points",),
    "pcd": ("points",),
    "npy": ("points",),
}
"""Format to the kinds that it may be declared as. The first is what the bytes are called when nobody says."""

_PREFIXES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"ply\n", "ply"),
    (b"ply\r", "ply"),
    (b"# .PCD", "pcd"),
    (b"\x93NUMPY", "npy"),
)
_RIFF = {b"WAVE": "wav", b"AVI ": "avi", b"WEBP": "webp"}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def detect(data: bytes) -> str | None:
    """The name in `FORMATS` of these bytes, or None when they are of no format that is read here."""
    head = data[:32]
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return name
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in _PICTURE_BRANDS:
            return None
        return "m4a" if brand in (b"M4A ", b"M4B ") else "mp4"
    if head[4:8] in _ATOMS:
        return "mp4"
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "bmp"
    if _mp3_frame(head):
        return "mp3"
    return None


def names(kind: Kind) -> str:
    """The formats read for `kind`, for messages."""
    return ", ".join(name for name, kinds in FORMATS.items() if kind in kinds)


def _mp3_frame(head: bytes) -> bool:
    """True when the bytes begin with a Layer III frame header whose fields are all in use."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return False
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and bitrate not in (0, 15) and rate != 3
