"""A path or a pipe named by a person becomes a `MediaRef`, checked before anything slow begins."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mmtune.addresses import bare
from mmtune.errors import UsageError
from mmtune.serve.time_ranges import Span, written
from mmtune.types import Kind, MediaRef

PIPE = "standard input"
"""What a medium out of a pipe is called."""
_HEAD = 1 << 16
"""Bytes of a file that are read to detect its kind."""
_COMPATIBLE: frozenset[tuple[str, str]] = frozenset({("audio", "video"), ("video", "image"), ("video", "audio")})
"""(asked, found) pairs left to the decoder: the sound of a film, an animation in an image format, and containers
whose first bytes do not say whether they hold pictures."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def reference(kind: Kind | None, path: str, span: Span | None = None) -> MediaRef:
    """A medium named by a person.

    Args:
        kind: the kind that was declared; None detects it by content.
        path: a file, `~` and `file://` included, or `-` for standard input.
        span: the part of a clip that is meant, seconds; none for all of it.

    Raises:
        UsageError: no such file, an address, nothing in the pipe, content that is plainly of another kind, or a range
            of something that has no time.
    """
    source: bytes | Path
    if path == "-":
        source = _piped()
        origin, head = PIPE, source[:_HEAD]
    else:
        source = located(path)
        origin, head = path, _head(source, path)
    return _checked(kind, source, origin, head, span)


def located(path: str) -> Path:
    """The file that a person means, wherever it may be. Raises UsageError for an address of another machine."""
    if not _ADDRESS.match(path):
        try:
            return Path(path).expanduser()
        except RuntimeError as error:
            user = path[1:].partition("/")[0]
            raise UsageError(
                seen=f"{path}: " + (f"there is no user {user} here" if user else "the home folder is not known"),
                expected="a path",
                hint=f"./{path} for a name that begins with a tilde",
            ) from error
    try:
        address = urlsplit(path)
        name = address.hostname or ""
    except ValueError:
        raise UsageError(seen=f"{path} is no address", expected="a path") from None
    if address.scheme.lower() == "file" and name in ("", "localhost"):
        return Path(unquote(path.split("://", 1)[1].removeprefix(address.netloc)))
    raise UsageError(
        seen=f"{bare(path)} is an address, and it is not read: a chat fetches nothing",
        expected="a file of this machine",
        hint="fetch it first, then name the file",
    )


def _piped() -> bytes:
    if sys.stdin.isatty():
        raise UsageError(
            seen="`-` for a medium while standard input is a terminal",
            expected="a pipe",
            hint='cat foo.jpg | mmtune chat --image - "What is this?"',
        )
    data = sys.stdin.buffer.read()
    if not data:
        raise UsageError(seen="nothing on standard input", expected="the bytes of a media file")
    return data


def of_bytes(kind: Kind | None, data: bytes, origin: str, span: Span | None = None) -> MediaRef:
    """A medium by its encoded bytes. Raises UsageError as `reference` does."""
    return _checked(kind, data, origin, data[:_HEAD], span)


def _checked(kind: Kind | None, source: bytes | Path, origin: str, head: bytes, span: Span | None) -> MediaRef:
    found = sniffed(head)
    if kind is None and found is None:
        raise UsageError(
            seen=f"{origin}, whose content is of no known kind",
            expected="an image, a video, a sound or a point cloud",
            hint="name the kind: --image, --video, --audio or --points",
        )
    if kind and found and found != kind and (kind, found) not in _COMPATIBLE:
        raise UsageError(
            seen=f"{origin}, given as {kind}, holds {found}",
            expected=f"{kind}",
            hint=f"give it as {found}",
        )
    if span and kind is None and head.startswith(b"GIF8"):
        kind = "video"
    chosen = kind or found
    assert chosen is not None
    ref = MediaRef(chosen, source, origin)
    if span is None:
        return ref
    if chosen not in ("video", "audio"):
        raise UsageError(
            seen=f"{origin} is {chosen}, and {written(span)} of it is asked for", expected="a video or a sound"
        )
    return replace(ref, start=span[0], end=span[1])


def _head(path: Path, named: str) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(seen=f"{named} is a folder", expected="a media file", hint="name a file of it")
        if path.exists() and not path.is_file():
            raise UsageError(seen=f"{named} is no plain file", expected="a media file; `-` reads a pipe")
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(
            seen=f"{named}: {why}",
            expected="a media file that can be read",
            hint="check the name; a name with blanks needs quotes",
        ) from None  # it quotes the name, with what may be secret in it


def sniffed(head: bytes) -> Kind | None:
    """The kind of some bytes by their format; None for an unknown format."""
    from mmtune.errors import MmtuneError
    from mmtune.media import sniff

    try:
        return sniff(head)
    except MmtuneError:  # unknown content is the caller's decision
        return None
