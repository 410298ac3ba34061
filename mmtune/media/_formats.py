"""Which format some bytes are, judged from their first bytes only; names and suffixes are never asked.

The table is closed. What is not in it is refused before any decoder sees it, which keeps playlists (they can name
other files), rare picture formats (where decoder faults are found) and text out of the decoders.
"""

from __future__ import annotations

import re
import struct

from mmtune.media import _mpeg
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
    "npz": ("points",),
    "off": ("points",),
    "xyz": ("points",),
}
"""Format to the kinds that it may be declared as. The first is the default."""

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
    (b"VERSION .", "pcd"),
    (b"VERSION 0.", "pcd"),
    (b"\x93NUMPY", "npy"),
)
_RIFF = {b"WAVE": "wav", b"AVI ": "avi", b"WEBP": "webp"}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OFF = re.compile(rb"C?N?OFF[\s\d]")
_NUMBER = re.compile(rb"[-+]?(?:(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|(?i:nan(\(\w*\))?|inf))")
_GAP = re.compile(rb"[ \t]*[,;][ \t]*|[ \t]+")
_COUNT = re.compile(rb"\d{1,15}")
_BOM = b"\xef\xbb\xbf"
_TEXT = 4096
"""Bytes within which the first point of a text, or a sound after a tag, must begin."""
_SOUND = re.compile(rb"fLaC\x00\x00\x00\x22|OggS\x00\x02")
"""How FLAC and OGG begin."""
_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def locate(data: bytes) -> tuple[str | None, int]:
    """The name in `FORMATS` of these bytes, and where in them the format begins, after tags and torn frames of sound.

    None and 0 when they are of no format that is read here.
    """
    name = _begin(data)
    if name not in (None, "mp3"):
        return name, 0
    tags = _mpeg.behind_tags(data)
    start = _mpeg.behind_zeros(data, tags)
    for at in {tags, start} - {0}:
        behind = _begin(data[at : at + _TEXT])
        if behind and behind != "mp3" and "audio" in FORMATS[behind]:
            return behind, at
    found = _mpeg.first_frame(data, start)
    if found is not None:
        return "mp3", found
    if mark := _SOUND.search(data, 0, start + _TEXT):  # after a tag that is not as long as it says, or rubbish
        return _begin(mark[0]), mark.start()
    return name, min(tags, len(data)) if name else 0


def detect(data: bytes) -> str | None:
    """The name in `FORMATS` of these bytes, or None when they are of no format that is read here."""
    return locate(data)[0]


def _begin(data: bytes) -> str | None:
    """The format whose mark these bytes begin with."""
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
    if _mpeg.frame(head, 0):
        return "mp3"
    if _OFF.match(head):
        return "off"
    if head[:4] == b"PK\x03\x04" and data[30 : 30 + int.from_bytes(data[26:28], "little")].endswith(b".npy"):
        return "npz"
    return "xyz" if first_row(data) else None


def names(kind: Kind) -> str:
    """The formats read for `kind`, for messages."""
    return ", ".join(name for name, kinds in FORMATS.items() if kind in kinds)


def first_row(data: bytes) -> tuple[int, int | None, bytes] | None:
    """Of text whose first line is three numbers or more: where its points begin, how many it says there are (a number
    alone in a line before them), and that first line. None for everything else."""
    count, start = None, len(_BOM) if data.startswith(_BOM) else 0
    if b"\x00" in data[:_TEXT]:
        return None
    for line in data[start:_TEXT].splitlines(keepends=True):
        text = line.strip()
        if text and not text.startswith((b"#", b"//")):
            words = [word for word in _GAP.split(text) if word]
            if not all(_NUMBER.fullmatch(word) for word in words):
                return None
            if len(words) != 1 or count is not None or not _COUNT.fullmatch(words[0]):
                return (start, count, text) if len(words) >= 3 else None
            count = int(words[0])
        start += len(line)
    return None
