"""Bytes of a record to text, strictly; and members to media references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmtune.data._json import MAX_BYTES
from mmtune.data._names import SUFFIXES, natural
from mmtune.data.formats.base import Record
from mmtune.errors import DataError, Reason
from mmtune.types import Kind, MediaRef

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def text(raw: bytes, origin: str, most: int) -> str:
    """Strict UTF-8; a byte order mark in front is dropped.

    Args:
        most: most characters.

    Raises DataError bad_text: not UTF-8, a control character, or too long.
    """
    if len(raw) > MAX_BYTES:
        raise DataError(Reason.bad_text, f"{origin}: {len(raw)} bytes of text", f"at most {MAX_BYTES}")
    try:
        return check(raw.decode("utf-8").removeprefix("\ufeff"), origin, most)
    except UnicodeDecodeError as error:
        raise DataError(Reason.bad_text, f"{origin}: byte {error.start} is not UTF-8", "UTF-8 text") from error


def check(value: str, origin: str, most: int) -> str:
    """The text itself. Raises DataError bad_text for control characters, lone surrogates, or too much of it."""
    if len(value) > most:
        raise DataError(Reason.bad_text, f"{origin}: {len(value)} characters", f"at most {most}")
    found = _CONTROL.search(value)
    if found:
        raise DataError(
            Reason.bad_text, f"{origin}: character U+{ord(found[0]):04X} at place {found.start()}", "printable text"
        )
    return value


# ------------------------------------------------------------------------------------------------------------- media


def members(record: Record, kind: Kind) -> list[str]:
    """Suffixes of a record's members of a kind, sorted: numbers inside count as numbers."""
    found = (suffix for suffix in record.files if SUFFIXES.get(suffix.rpartition(".")[2]) == kind)
    return sorted(found, key=natural)


def ref(record: Record, suffix: str, kind: Kind) -> MediaRef:
    """A reference to a member, its bytes read."""
    return MediaRef(kind, record.files[suffix], f"{record.id}.{suffix}")


def named(record: Record, kind: Kind, names: Sequence[str]) -> list[MediaRef]:
    """The members that some file names mean.

    A name means the member of the same name, whatever its folder, else the member with the same end
    (`0.jpg`, `jpg`). Names from before the shards were written match nothing; they are then taken in order,
    when there are as many members of this kind as names. A video that is named as a picture is a video all the same.

    Raises DataError missing_key.
    """
    own = {f"{record.key.rpartition('/')[2]}.{suffix}".lower(): suffix for suffix in record.files}
    found = []
    for name in names:
        base = name.replace("\\", "/").rpartition("/")[2].lower()
        found.append(own.get(base) or (base if base in record.files else None))
    if None in found:
        there = members(record, kind)
        if any(found) or len(there) != len(names):
            lost = [name for name, suffix in zip(names, found, strict=True) if suffix is None]
            raise DataError(
                Reason.missing_key,
                f"{record.id}: no member for {kind} {', '.join(lost)[:120]}; there are {_listed(record.files)}",
                "a member for every file that the record names",
            )
        found = list(there)
    return [ref(record, suffix, _shown(suffix, kind)) for suffix in found if suffix is not None]


def _shown(suffix: str, kind: Kind) -> Kind:
    """What a member is, that a record names as a kind: a video has a sound and points may come in any file."""
    return "video" if kind == "image" and SUFFIXES.get(suffix.rpartition(".")[2]) == "video" else kind


def _listed(suffixes: Iterable[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes) or "none"


def missing(record: Record, what: str) -> DataError:
    """The error for a record without a member that the format needs."""
    seen = f"{record.id} has no {what}; its members are {_listed(record.files)}"
    return DataError(Reason.missing_key, seen, f"a member with {what}")
