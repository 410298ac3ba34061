"""A path or a pipe named on the command line becomes a `MediaRef`, checked before anything slow begins."""

import sys
from pathlib import Path

from mmtune.errors import UsageError
from mmtune.types import Kind, MediaRef

_HEAD = 1 << 16
"""Bytes of a file that are looked at to tell its kind."""
_COMPATIBLE: frozenset[tuple[str, str]] = frozenset({("audio", "video"), ("video", "image"), ("video", "audio")})
"""(asked, found) pairs left to the decoder: the sound of a film, an animation in an image format, and containers
whose first bytes do not say whether they hold pictures."""


def reference(kind: Kind | None, path: str) -> MediaRef:
    """A medium named by a person.

    Args:
        kind: what it is said to be; none looks at the content.
        path: a file, or `-` for standard input.

    Raises:
        UsageError: no such file, nothing in the pipe, or content that is plainly of another kind.
    """
    source: bytes | Path
    if path == "-":
        if sys.stdin.isatty():
            raise UsageError(
                seen="`-` for a medium while standard input is a terminal",
                expected="a pipe",
                hint='cat foo.jpg | mmtune chat --image - "What is this?"',
            )
        source = sys.stdin.buffer.read()
        origin, head = "standard input", source[:_HEAD]
        if not source:
            raise UsageError(seen="nothing on standard input", expected="the bytes of a media file")
    else:
        source = Path(path).expanduser()
        origin, head = path, _head(source)
    found = _sniffed(head)
    if kind is None and found is None:
        raise UsageError(
            seen=f"{origin}, whose content is of no known kind",
            expected="an image, a video, a sound or a point cloud",
            hint="name the kind: --image, --video, --audio or --points",
        )
    if kind and found and found != kind and (kind, found) not in _COMPATIBLE:
        raise UsageError(
            seen=f"{origin}, given as {kind}, holds {found}", expected=f"{kind}", hint=f"use --{found} {path}"
        )
    chosen = kind or found
    assert chosen is not None
    return MediaRef(chosen, source, origin)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise UsageError(
            seen=f"{path}: {(error.strerror or str(error)).lower()}",
            expected="a media file that can be read",
            hint="check the name; a name with blanks needs quotes",
        ) from error


def _sniffed(head: bytes) -> Kind | None:
    from mmtune.errors import MmtuneError
    from mmtune.media import sniff

    try:
        return sniff(head)
    except MmtuneError:  # unknown content is the caller's decision
        return None
