"""Pictures from bytes: JPEG, PNG, WebP, GIF, BMP and TIFF to uint8 [1,3,height,width].

One convention for all of them: turned as EXIF says, which is all that is read of it; transparency over white, first
frame or page, sRGB taken as it is (an embedded colour profile is not applied, as in the pipelines that the published
encoders were trained with).
Values of more than 8 bits are scaled by the range of their type; a library default clips them, which turns most
16-bit pictures white.
"""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import torch
from PIL import Image, ImageFile

from mmtune.errors import MediaError, Note, Reason
from mmtune.media import _exif, _tiff, _trim
from mmtune.media._watch import Watch, Watched
from mmtune.media.base import Limits, Sampling, refusing
from mmtune.types import Media

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Orientation to what makes it upright."""
_STRIP = 1 << 20
"""Pixels converted at a time."""
_UNPACKED = 16
"""Most bytes that a pixel takes while it is unpacked, its kind of picture being what it may."""
_guard = threading.Lock()
"""Filters of warnings are global to the process, so only one thread may change them at a time."""


def _fresh_guard() -> None:
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_guard)


def decode(data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str) -> Media:
    """`data` of format `name` to Media with uint8 [1,3,height,width].

    What the library only warns of is noted, not refused.

    Raises:
        MediaError: too_many_pixels from the header alone; unreadable_image for everything else.
    """
    with _guard, warnings.catch_warnings(record=True) as warned, refusing(Reason.unreadable_image, origin):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.image_pixels
        try:
            pixels, notes = _pixels(data, name, sampling, limits, origin)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    notes = tuple(dict.fromkeys(((Note.odd_metadata,) if warned else ()) + notes))
    return Media("image", torch.from_numpy(pixels)[None], origin=origin, notes=notes)


def _pixels(
    data: bytes, name: str, sampling: Sampling, limits: Limits, origin: str
) -> tuple[np.ndarray, tuple[Note, ...]]:
    """uint8 [3,height,width], and notes on the file."""
    if name == "webp" and (size := _webp_size(data)) is not None:  # opening one takes memory for the whole canvas
        _check_size(*size, limits, origin)
    if name == "tiff":
        data = _tiff.trim(data, origin)
    trim = {"jpeg": _trim.jpeg, "png": _trim.png, "gif": _trim.gif}.get(name, _trim.plain)(data, origin)
    watch = Watch(limits, Reason.unreadable_image, origin)
    try:
        image: Image.Image = Image.open(Watched(trim.data, watch), formats=[name.upper()])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(origin, str(error), limits) from error
    with image:
        _check_size(*image.size, limits, origin)
        watch.keep(_UNPACKED * image.width * image.height)
        if image.width * image.height * trim.scans > limits.scan_pixels:
            raise limits.refusal(
                "scan_pixels", Reason.too_many_pixels, f"{origin}: {image.width} x {image.height} pixels in "
                f"{trim.scans} scans",
            )  # fmt: skip
        if sampling.side is not None:
            image.draft(None, (sampling.side, sampling.side))  # JPEG only; a no-op for the others
        image.load()  # turns a TIFF
        turned = trim.turned
        if name == "webp":
            turned = _exif.orientation(image.info.get("exif") or b"", image.info.get("xmp") or b"")
        if turned in _TURNS:
            image = image.transpose(_TURNS[turned])
        if name == "png" and image.mode == "RGB" and data[24] == 16 and "transparency" in image.info:
            key = image.info["transparency"]  # of 16 bits, of which the library keeps the upper half
            image.info["transparency"] = tuple(value >> 8 for value in key)
        return _rgb(image, origin), trim.notes


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP's canvas, by its first chunk (RFC 9649); None where there is no such chunk."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":  # flags, then both sizes less one, 24 bits each
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":  # a mark, then both sizes less one, 14 bits each
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":  # frame tag and start code, then both sizes in 14 bits, with a scale above
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return None


def _check_size(width: int, height: int, limits: Limits, origin: str) -> None:
    if width * height > limits.image_pixels:
        raise _too_large(origin, f"{width} x {height} pixels", limits)
    if width < 1 or height < 1:
        raise MediaError(Reason.unreadable_image, f"{origin}: {width} x {height} pixels", "at least one pixel")


def _rgb(image: Image.Image, origin: str) -> np.ndarray:
    """Any mode to uint8 [3,height,width], in strips: a second copy of a large picture is never whole."""
    out = np.empty((3, image.height, image.width), np.uint8)
    wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    top = _range(image, origin) if wide else 0.0
    clear = image.info.get("transparency") if image.mode.startswith("I;16") else None
    rows = max(1, _STRIP // image.width)
    for low in range(0, image.height, rows):
        high = min(image.height, low + rows)
        strip = image if rows >= image.height else image.crop((0, low, image.width, high))
        if wide:
            values = np.asarray(strip)
            grey = np.round(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
            out[:, low:high] = grey if clear is None else np.where(values == clear, 255, grey)
        else:
            out[:, low:high] = np.asarray(_opaque(strip)).transpose(2, 0, 1)
    return out


def _opaque(image: Image.Image) -> Image.Image:
    """Eight-bit modes to RGB, over white."""
    if image.has_transparency_data:
        straight = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", straight.size, (255, 255, 255, 255)), straight).convert("RGB")
    return image.convert("RGB")


def _range(image: Image.Image, origin: str) -> float:
    """What counts as white in a picture of more than 8 bits.

    16-bit: 65535. "I" (32-bit) and "F" say nothing of their range, so the smallest of the usual ranges that holds the
    values is taken: 1 (floats only), 255, 65535, 2^32 - 1.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 2**32 - 1:
        raise MediaError(
            Reason.unreadable_image,
            f"{origin}: {image.mode} values from {low:g} to {high:g}",
            "values from 0 up to 1, 255, 65535 or 4294967295",
            "store the picture with 8 or 16 bits",
        )
    if image.mode.startswith("I;16"):
        return 65535.0
    ranges = (1.0, 255.0, 65535.0, 2.0**32 - 1) if image.mode == "F" else (255.0, 65535.0, 2.0**32 - 1)
    return next(top for top in ranges if high <= top)


def _too_large(origin: str, seen: str, limits: Limits) -> MediaError:
    return limits.refusal("image_pixels", Reason.too_many_pixels, f"{origin}: {seen}")
