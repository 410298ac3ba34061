"""Media as a program has them: paths, encoded bytes, pictures of PIL, arrays, tensors, lists of frames.

Values in memory are encoded without loss, so the rest of the program sees one form of media: references to bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.errors import UsageError
from mmtune.serve.references import of_bytes, reference, sniffed
from mmtune.types import Kind, MediaRef


def references_to(kind: Kind, value: Any) -> list[MediaRef]:
    """One or several media of a kind.

    Args:
        value: what `reference_to` takes, or a list or tuple of such. For a video, a list of pictures is its frames.

    Raises:
        UsageError: see `reference_to`.
    """
    several = isinstance(value, (list, tuple)) and not (kind in ("video", "audio") and _is_pair(value))
    if not several or (kind == "video" and _are_frames(value)):
        return [reference_to(kind, value)]
    if not value:
        raise UsageError(seen=f"{kind}=[]", expected="at least one, or no such argument")
    return [reference_to(kind, one) for one in value]


def reference_to(kind: Kind | None, value: Any) -> MediaRef:
    """One medium.

    Args:
        kind: the kind of media; None detects it by content.
        value: any of

            - a path, as text or `pathlib.Path`, or the bytes of a media file;
            - image: a picture of PIL, or an array or tensor [height,width,channels], [channels,height,width] or
              [height,width], whole numbers 0..255 or floating point 0..1;
            - video: a list of such pictures or of paths of pictures, an array or tensor [frames,...] of them, or one of
              these with frames per second, as (frames, 25); one frame a second when that is not given;
            - audio: (samples, rate), with samples [samples] or [channels,samples] in -1..1 and rate in Hz;
            - points: an array or tensor [points,3+extra];
            - a cell of a Hugging Face data set: {"bytes": ..., "path": ...}, or {"array": ..., "sampling_rate": ...};
            - a `mmtune.types.MediaRef`, which may hold a range of a clip.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(value, MediaRef):
        if kind and value.kind != kind:
            raise UsageError(seen=f"{value!r} given as {kind}", expected=kind)
        return value
    if isinstance(value, Mapping):
        return reference_to(kind, _of_cell(value))
    if isinstance(value, (str, os.PathLike)):
        return reference(kind, os.fspath(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return of_bytes(kind, bytes(value), f"{len(value)} bytes")
    if hasattr(value, "read") and callable(value.read):
        return reference_to(kind, value.read())
    if kind is None and _is_pil(value):
        kind = "image"
    if kind is None:
        raise UsageError(seen=f"a {type(value).__name__} of no kind", expected="its kind", hint='kind="image"')
    return _encoded(kind, value)


def _of_cell(cell: Mapping[str, Any]) -> Any:
    """The medium in a cell of a Hugging Face data set; the bytes go before the path, which may be of elsewhere."""
    if cell.get("array") is not None and cell.get("sampling_rate") is not None:
        return cell["array"], cell["sampling_rate"]
    for key in ("bytes", "path"):
        if cell.get(key) is not None:
            return cell[key]
    raise UsageError(
        seen=f"a mapping with {', '.join(map(str, cell)) or 'nothing in it'}",
        expected="bytes or path of a media file, or array and sampling_rate of a sound",
    )


def _encoded(kind: Kind, value: Any) -> MediaRef:
    from mmtune.media import encode

    if kind == "image":
        data = encode.picture(value)
    elif kind == "video":
        frames, fps = value if _is_pair(value) else (value, 1.0)
        data = encode.clip(_frames(frames), fps)
    elif kind == "audio":
        if not _is_pair(value):
            raise UsageError(
                seen=f"sound as a {type(value).__name__}", expected="(samples, rate), a path, or the bytes of a file"
            )
        data = encode.sound(*value)
    else:
        data = encode.cloud(value)
    return MediaRef(kind, data, f"{kind} in memory")


def _frames(value: Any) -> Any:
    """Frames, with those that are paths or bytes of pictures decoded; one picture is one frame; an array as it is."""
    if _is_pil(value) or (_rank(value) == 3 and value.shape[-1] in (3, 4)):  # no film is three pixels wide
        return [value]
    if not isinstance(value, Sequence):
        return value
    from mmtune import media

    return [
        media.load(reference_to("image", one)).data[0] if isinstance(one, (str, os.PathLike, bytes)) else one
        for one in value
    ]


def _is_pair(value: Any) -> bool:
    """Whether it is a value with its rate."""
    return isinstance(value, tuple) and len(value) == 2 and hasattr(value[1], "__float__") and not _rank(value[1])


def _are_frames(value: Sequence[Any]) -> bool:
    """Whether a list holds the frames of one video rather than several videos."""
    return bool(value) and all(_is_frame(one) for one in value)


def _is_frame(one: Any) -> bool:
    if isinstance(one, (str, os.PathLike)):
        try:
            with Path(one).expanduser().open("rb") as file:
                head = file.read(1 << 16)
        except (OSError, ValueError):
            return False
        return sniffed(head) == "image" and not head.startswith(b"GIF8")
    if isinstance(one, bytes):
        return sniffed(one[: 1 << 16]) == "image" and not one.startswith(b"GIF8")
    return _is_pil(one) or _rank(one) in (2, 3)


def _rank(one: Any) -> int:
    return len(getattr(one, "shape", ()))


def _is_pil(value: Any) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)
