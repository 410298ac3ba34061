"""Media that records name: found below the folders that were given, or in the record itself, and judged by content.

An annotation file may come from anywhere, so what it names is not trusted:

- a name is looked for below the media folders (`--media`, which may be repeated; without it the folder of the source);
  its real path, links followed, must be below one of them;
- an absolute name must be below one of them, too, if any was given. Without `--media` it may be anywhere;
- only plain files are opened, never devices or pipes, and nothing below /proc, /sys or /dev;
- only bytes of a known format of media, and of the kind that the record says, are ever copied into a shard;
- nothing is fetched from the web.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mmtune.data._names import natural
from mmtune.data.convert import locations
from mmtune.data.convert.locations import Location
from mmtune.errors import DataError, MediaError, Reason
from mmtune.media import Limits, sniff
from mmtune.media._formats import FORMATS, detect
from mmtune.types import Kind

SUFFIXES: dict[str, tuple[str, ...]] = {
    "jpeg": ("jpg", "jpeg"), "tiff": ("tif", "tiff"), "mp4": ("mp4", "mov", "m4v"), "matroska": ("mkv", "webm"),
    "ogg": ("ogg", "opus"), "m4a": ("m4a", "mp4"),
}  # fmt: skip
"""Format of the bytes to its suffixes, the one to write first; other formats have their name as suffix."""
TRIED: dict[Kind, tuple[str, ...]] = {
    "image": ("jpg", "jpeg", "png", "webp"), "video": ("mp4", "webm", "mkv", "avi", "mov"),
    "audio": ("wav", "flac", "mp3", "ogg", "m4a"), "points": ("npy", "ply", "pcd"),
}  # fmt: skip
"""Suffixes that are tried for a name without a file."""
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_DATA = re.compile(r"data:([\w.+/-]*)((?:;[\w=.+-]+)*),", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{90,}={0,2}\s*")
_SYSTEM = ("/proc", "/sys", "/dev")
BYTES = ("bytes", "data", "base64")
"""Fields of an object with the content of a medium."""
_NAMES = (
    "path", "file_name", "filename", "url", "uri", "src", "file", "name", "image", "video", "audio", "image_path",
    "video_path", "audio_path",
)  # fmt: skip
"""Fields of an object that is a medium."""


@dataclass(frozen=True)
class Item:
    """A medium as it goes into a shard."""

    kind: Kind
    data: bytes
    suffix: str


@dataclass(frozen=True)
class Roots:
    """Folders that media may come from."""

    folders: tuple[Location, ...]
    open: bool = False
    """Whether absolute names may be elsewhere, too: where the user named no folder."""
    most: int = Limits().bytes
    """Most bytes of one medium."""

    def item(self, value: Any, kind: Kind | None) -> Item:
        """The medium that a field means: a name, bytes, base64, or an object with one of these. Raises DataError."""
        data, name = self._bytes(value, kind)
        form = detect(data)
        if form is None:
            seen = f"{name} is no medium of a known format: " + (
                f"it begins with {data[:12]!r}" if data else "it is empty"
            )
            raise DataError(Reason.wrong_media_type, seen, "picture, video, sound or points")
        kinds = FORMATS[form]
        if kind is not None and kind not in kinds:
            raise DataError(Reason.wrong_media_type, f"{name} is {form}, in a field for {kind}", f"a file of {kind}")
        if form == "npz":
            raise DataError(Reason.unsafe_suffix, f"{name} is an .npz archive", "an array by itself", "numpy.save it")
        known = SUFFIXES.get(form, (form,))
        end = PurePosixPath(name).suffix[1:].lower()
        return Item(kind or kinds[0], data, end if end in known else known[0])

    def is_still(self, value: Any) -> bool:
        """Whether a value names a picture that is no film; false for a value that cannot be read."""
        try:
            data, _ = self._bytes(value, "image")
            return sniff(data) == "image" and detect(data) != "gif"
        except (DataError, MediaError):
            return False

    def frames(self, name: str) -> list[str]:
        """The pictures of a folder of frames, sorted, numbers inside names as numbers; none for anything else."""
        for folder in self.folders:
            if isinstance(folder, Path) and _is_name(name) and not _ADDRESS.match(name):
                with suppress(OSError):
                    real = Path(os.path.realpath(folder / name))
                    if real.is_dir() and real != Path(os.path.realpath(folder)):
                        return sorted((f"{name}/{one}" for one in os.listdir(real) if one[0] != "."), key=natural)
        return []

    # ------------------------------------------------------------------------------------------------- where it is

    def _bytes(self, value: Any, kind: Kind | None) -> tuple[bytes, str]:
        """Content, and a name for messages."""
        if isinstance(value, dict):
            return self._object(value, kind)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._small(bytes(value), "a medium in the record"), "a medium in the record"
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                Reason.bad_json, f"a medium is {str(value)[:80]!r}", "a name, or an object with path or bytes"
            )
        inline = _inline(value)
        if inline is not None:
            return self._small(inline, "a medium in the record"), "a medium in the record"
        scheme = _ADDRESS.match(value)
        if scheme is None:
            return self._named(value, kind)
        if scheme[1].lower() == "file":
            return self._named(unquote(urlsplit(value).path), kind)
        seen = f"{locations.Remote(value)} lies on the web" if scheme[1].lower().startswith("http") else value[:120]
        hint = "fetch the media first, for example with img2dataset, and name the files"
        raise DataError(Reason.download_failed, seen, "a file: nothing is fetched here", hint)

    def _object(self, value: dict[str, Any], kind: Kind | None) -> tuple[bytes, str]:
        """`{"bytes": ..., "path": ...}` and its kin; bytes count before names."""
        name = next((value[key] for key in _NAMES if isinstance(value.get(key), str) and value[key].strip()), "")
        for key in BYTES:
            data = value.get(key)
            if isinstance(data, str) and data:
                try:
                    data = base64.b64decode(data, validate=True)
                except (binascii.Error, ValueError):
                    raise DataError(Reason.bad_json, f"{key} is {data[:40]!r}", "base64") from None
            if isinstance(data, (bytes, bytearray, memoryview)):
                return self._small(bytes(data), name), name or "a medium in the record"
        if name:
            return self._bytes(name, kind)
        if "array" in value:
            hint = "write it with its encoded bytes: cast the column with decode=False before saving"
            raise DataError(Reason.bad_json, "a medium that was decoded into numbers", "encoded bytes, or a path", hint)
        raise DataError(Reason.bad_json, f"a medium is {str(value)[:80]!r}", "an object with path or bytes")

    def _small(self, data: bytes, name: str) -> bytes:
        if len(data) > self.most:
            raise DataError(Reason.too_long, f"{name}: {len(data)} bytes", f"at most {self.most} bytes")
        return data

    def _named(self, name: str, kind: Kind | None) -> tuple[bytes, str]:
        name = os.path.expanduser(name) if name.startswith("~/") else name
        if not _is_name(name):
            raise DataError(Reason.unsafe_member, f"the name {name[:80]!r}", "the name of a file, in UTF-8")
        lost: DataError | None = None
        for one in _spellings(name, kind):
            for folder in self.folders:
                try:
                    return self._open(folder, one), one
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    what = f"{one[:200]}: {error.strerror or error}"
                    lost = lost or DataError(Reason.missing_key, what, "a plain file that can be read")
                except DataError as error:
                    if error.reason != Reason.unsafe_member:
                        raise
                    lost = lost or error
        if lost:
            raise lost
        where = " or ".join(locations.shown(folder) for folder in self.folders)
        seen, hint = f"{name[:200]} is not there", f"--media {self._above(name) or 'FOLDER'} says where media are"
        if name.startswith("/") and self.open:
            raise DataError(
                Reason.missing_key, seen, "a file of this machine", "take the beginning off the names, and " + hint
            )
        raise DataError(Reason.missing_key, seen, f"a file below {where}", hint)

    def _above(self, name: str) -> str:
        """The parent of a given folder, where names begin with the folder's name; empty if there is none."""
        for folder in self.folders:
            if isinstance(folder, Path) and PurePosixPath(name).parts[:1] == (folder.absolute().name,):
                parent = folder.absolute().parent
                if os.path.lexists(parent / name):
                    return str(parent)
        return ""

    def _open(self, folder: Location, name: str) -> bytes:
        """Content of a file. Raises OSError, and DataError for one that is elsewhere or is too large."""
        if not isinstance(folder, Path):
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts:
                raise DataError(Reason.unsafe_member, f"the name {name[:200]!r}", f"a name below {folder}")
            with locations.open_binary(locations.below(folder, name)) as file:
                return self._small(file.read(self.most + 1), name)
        real = Path(os.path.realpath(folder / name))
        within = any(real.is_relative_to(os.path.realpath(one)) for one in self.folders if isinstance(one, Path))
        if not within and not (self.open and PurePosixPath(name).is_absolute()):
            if not os.path.lexists(folder / name):
                raise FileNotFoundError(name)
            hint = f"if it may be copied: --media {real.parent}, beside the other folders"
            expected = "a file below " + " or ".join(locations.shown(one) for one in self.folders)
            raise DataError(Reason.unsafe_member, f"{name[:200]} lies outside, at {real}", expected, hint)
        if any(real.is_relative_to(one) for one in _SYSTEM):
            raise DataError(Reason.unsafe_member, f"{name[:200]} is a file of the system", "a medium")
        # the last step of a path without links, so that the opened file is the checked one
        with os.fdopen(locations.open_regular(real, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > self.most:
                raise DataError(Reason.too_long, f"{name[:200]}: {size} bytes", f"at most {self.most} bytes")
            head = file.read(1 << 16)
            form = detect(head)
            if form in ("xyz", "off") and not within:  # any list of numbers is such a text
                raise DataError(Reason.unsafe_member, f"{name[:200]} is a text elsewhere", "a file below --media")
            if form is None:
                seen = f"{name[:200]} is no medium of a known format" + ("" if head else ": it is empty")
                raise DataError(Reason.wrong_media_type, seen, "picture, video, sound or points")
            return head + file.read(self.most)


def _spellings(name: str, kind: Kind | None) -> list[str]:
    """A name and what it may stand for: without its end, with its end in other letters, as addresses write it."""
    others = (name.strip(), name.replace("\\", "/"), unquote(name))
    tries = [name, *(other for other in others if other not in ("", name) and _is_name(other))]
    stem, dot, end = name.rpartition(".")
    if dot and "/" not in end and len(end) <= 5:
        tries += [f"{stem}.{other}" for other in (end.lower(), end.upper()) if other != end]
    return tries + [f"{name}.{end}" for end in (TRIED[kind] if kind else ())]


def _is_name(name: str) -> bool:
    """Whether a file may be called so: no zero in it, no half of a character, not endless."""
    return "\0" not in name and len(name) <= 4096 and not any(0xD800 <= ord(char) <= 0xDFFF for char in name)


def _inline(value: str) -> bytes | None:
    """The bytes of a data: address, or of base64 by itself that is of a known format. Raises DataError."""
    found = _DATA.match(value)
    if found:
        try:
            if ";base64" in found[2].lower():
                return base64.b64decode("".join(value[found.end() :].split()), validate=True)
        except (binascii.Error, ValueError):
            pass
        raise DataError(Reason.bad_json, f"a data address, {value[:40]!r}", "base64 that can be read")
    if len(value) > 90 and _BASE64.fullmatch(value):
        try:
            data = base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            return None
        return data if detect(data) else None
    return None
