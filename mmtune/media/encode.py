"""Encodes values in memory into bytes that `load` reads back exactly, so that the model sees the given values.

Pictures become PNG, frames FFV1 in Matroska, sound WAV, points NPY.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mmtune.errors import UsageError

Array = np.ndarray[Any, Any]
_KEPT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL that PNG holds as they are; others become RGB."""


def picture(value: Any) -> bytes:
    """A picture of PIL, or an array or tensor of pixels, as PNG.

    Args:
        value: [height,width,channels], [channels,height,width] or [height,width]; 1, 3 or 4 channels; whole numbers
            0..255, or floating point 0..1.

    Raises:
        UsageError: another shape or range.
    """
    from PIL import Image, ImageOps

    if isinstance(value, Image.Image):
        image = ImageOps.exif_transpose(value)
        image = image if image.mode in _KEPT_MODES else image.convert("RGB")
    else:
        pixels = _pixels(value)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, transparency=image.info.get("transparency"))
    return file.getvalue()


def clip(frames: Sequence[Any] | Any, fps: float = 1.0) -> bytes:
    """Frames as a film, without loss.

    Args:
        frames: pictures as `picture` takes them, all of one size; or one array or tensor of them, [frames,...].
        fps: frames a second.

    Raises:
        UsageError: no frames, frames of several sizes, or a rate that makes no sense.
    """
    import av

    if not 0 < fps <= 1000:
        raise UsageError(seen=f"{fps} frames a second", expected="more than 0, at most 1000")
    pictures = [_rgb(frame) for frame in frames]
    sizes = {frame.shape[:2] for frame in pictures}
    if len(sizes) != 1:
        found = f"of sizes (height, width) {sorted(sizes)[:4]}" if sizes else "a video of none"
        raise UsageError(seen=f"frames: {found}", expected="frames of one size")
    [(height, width)] = sizes
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(100_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def sound(samples: Any, rate: int) -> bytes:
    """Samples as WAV with 32-bit floating point.

    Args:
        samples: [samples], [channels,samples] or [samples,channels], the longer side being time; whole numbers of 16
            or 32 bits, or floating point in -1..1.
        rate: samples per second, Hz.

    Raises:
        UsageError: another shape or type, or no rate.
    """
    values = np.atleast_2d(array(samples))
    if not isinstance(rate, (int, np.integer)) or isinstance(rate, bool) or not 1 <= rate < 2**31:
        raise UsageError(seen=f"sound with rate {rate!r}", expected="samples per second, a whole number")
    if values.ndim != 2 or not values.size:
        raise UsageError(seen=f"sound of shape {list(values.shape)}", expected="[samples] or [channels,samples]")
    if values.shape[0] > values.shape[1]:
        values = values.T
    if values.dtype in (np.int16, np.int32):
        values = values / float(-np.iinfo(values.dtype).min)
    elif values.dtype.kind != "f":
        raise UsageError(seen=f"sound of {values.dtype}", expected="floating point in -1..1, int16 or int32")
    data = np.ascontiguousarray(values.T, dtype="<f4").tobytes()
    channels = values.shape[0]
    head = struct.pack("<HHIIHH", 3, channels, rate, rate * channels * 4, channels * 4, 32)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt \x10\0\0\0" + head + b"data" + _size(data) + data


def cloud(points: Any) -> bytes:
    """Points as NPY: [points,3+extra]. What its columns and rows must be is said by `load`."""
    values = array(points)
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise UsageError(
            seen=f"points of {values.dtype} {list(values.shape)}", expected="numbers [points,3+extra]: x, y, z and more"
        )
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
    return file.getvalue()


def array(value: Any) -> Array:
    """A tensor or whatever numpy reads as numbers. Raises UsageError for anything else."""
    if hasattr(value, "detach"):  # a tensor, wherever it is
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        made = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UsageError(seen=f"a {type(value).__name__} that is no array: {error}", expected="an array") from error
    if made.dtype.kind not in "fiub":
        raise UsageError(seen=f"a {type(value).__name__}", expected="an array or tensor of numbers")
    return made


def _size(data: bytes) -> bytes:
    if len(data) > 2**32 - 64:
        raise UsageError(seen=f"sound of {len(data)} bytes", expected="less than 4 GiB")
    return struct.pack("<I", len(data))


def _rgb(frame: Any) -> Array:
    from PIL import Image

    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    pixels = _pixels(frame)
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3])


def _pixels(value: Any) -> Array:
    """uint8 [height,width,channels] of an array in any of the usual layouts."""
    first = hasattr(value, "detach")  # tensors have channels first unless their shape says otherwise
    pixels = array(value)
    shape = list(pixels.shape)
    if pixels.ndim == 4 and shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    channels = (1, 3, 4)
    if pixels.ndim == 3 and pixels.shape[0] in channels and (first or pixels.shape[2] not in channels):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in channels or not pixels.size:
        raise UsageError(
            seen=f"a picture of shape {shape}",
            expected="[height,width,channels], [channels,height,width] or [height,width], with 1, 3 or 4 channels",
        )
    return np.ascontiguousarray(_bytes(pixels))


def _bytes(pixels: Array) -> Array:
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    top = 1.0 if pixels.dtype.kind in "fb" else 255.0
    if not (low >= 0 and high <= top):  # refuses NaN too
        raise UsageError(
            seen=f"pixels of {pixels.dtype} from {low:g} to {high:g}",
            expected=f"0 to {top:g}",
            hint="undo the normalisation; give floating point in 0..1 or whole numbers in 0..255",
        )
    return (pixels.astype(np.float64) * (255.0 / top)).round().astype(np.uint8)
