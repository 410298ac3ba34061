"""Names of members: which are plain, what of them is the key, and which suffixes are read, never read, or refused."""

from __future__ import annotations

import re

from mmtune.types import Kind

SUFFIXES: dict[str, Kind | None] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("mp4", "webm", "mkv", "avi", "mov", "m4v"), "video"),
    **dict.fromkeys(("wav", "flac", "mp3", "ogg", "opus", "m4a"), "audio"),
    **dict.fromkeys(("ply", "pcd", "npy", "xyz", "off"), "points"),
    **dict.fromkeys(("json", "txt", "caption"), None),
}
"""The closed table: last part of a suffix to the kind of media, or none for text. Other members are not read."""
UNSAFE = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "npz", "py", "pyc", "joblib", "dill"})
"""Suffixes that some readers execute. A sample with one is refused whole, at any place of the suffix."""
_NUMBER = re.compile(r"([0-9]+)")
_PLACE = re.compile(r"[^/\0\\]+")


def split(name: str) -> tuple[str, str] | None:
    """Key and suffix, lower case; none for names without a key or without a suffix."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or not suffix:
        return None
    return folder + slash + stem, suffix.lower()


def natural(name: str) -> list[tuple[bool, int, str, str]]:
    """For sorting: numbers inside a name count as numbers, however many digits they have."""
    parts = (part for part in _NUMBER.split(name) if part)
    values = ((part, part.lstrip("0") if part.isascii() and part.isdigit() else None) for part in parts)
    return [(False, 0, part, "") if value is None else (True, len(value), value, part) for part, value in values]


def safe(name: str) -> bool:
    """Whether a member name is a plain relative path in printable text."""
    plain = name.removeprefix("./").removesuffix("/")
    parts = plain.split("/")
    return (
        printable(name) == name
        and all(_PLACE.fullmatch(part) and part not in (".", "..") for part in parts)
        and not re.match(r"[A-Za-z]:", plain)
    )


def printable(name: str) -> str:
    return name if name.isprintable() and name.isascii() else "".join(
        char if char.isprintable() and not 0xD800 <= ord(char) <= 0xDFFF else f"\\x{ord(char):02x}" for char in name
    )


def holds_objects(head: bytes) -> bool:
    """Whether the header of an .npy file names Python objects, or is no header at all."""
    if not head.startswith(b"\x93NUMPY") or len(head) < 12:
        return True
    start, size = (10, int.from_bytes(head[8:10], "little"))
    if head[6] > 1:
        start, size = 12, int.from_bytes(head[8:12], "little")
    kind = re.search(rb"['\"]descr['\"]\s*:\s*['\"]([^'\"]*)['\"]", head[start : start + size])
    return kind is None or b"O" in kind[1]
